package heartbeat

// Reuse gives back what Step has returned, with the packets in it, for later
// steps: nobody may look at them any more. A caller need not do it; one that
// does gets beats that take no memory.
func (c *Core) Reuse(effects []Effect) {
	c.spare.used = true
	for _, e := range effects {
		switch e := e.(type) {
		case *Send:
			c.spare.sends = append(c.spare.sends, e)
		case *Sighted:
			c.spare.sights = append(c.spare.sights, e)
		}
	}
	clear(effects)
	c.spare.lists = append(c.spare.lists, effects[:0])
}

// spare is what was given back.
type spare struct {
	used   bool // something was, so it is to be expected again
	lists  [][]Effect
	sends  []*Send
	sights []*Sighted
}

func (s *spare) list() []Effect    { return pop(&s.lists) }
func (s *spare) send() *Send       { return some(pop(&s.sends)) }
func (s *spare) sighted() *Sighted { return some(pop(&s.sights)) }

// pop takes the last one; the zero value if there is none.
func pop[T any](all *[]T) (last T) {
	n := len(*all)
	if n == 0 {
		return last
	}
	last = (*all)[n-1]
	*all = (*all)[:n-1]
	return last
}

func some[T any](p *T) *T {
	if p == nil {
		p = new(T)
	}
	return p
}
