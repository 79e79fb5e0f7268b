package heartbeat

import "github.com/batuta-ha/batuta/internal/model"

// Voucher says what a datagram was worth, for whoever has to choose among more
// of them than can be read.
type Voucher struct {
	Merit Merit
	// Node is who said it, and Generation which life of it.
	Node       model.NodeName
	Generation uint32
	// Number: by the link that the datagram came by, none up to it is wanted any more.
	Number uint32
}

// Merit is what became of a datagram.
type Merit uint8

// Merits. A recording is in vain unless it is as new as what the sender says;
// then it brings the same as the copy by another link.
const (
	InVain   Merit = iota // dropped; the rest of the voucher is not set
	Old                   // heard long ago, or of an earlier life: these bytes will never be of use; the rest is not set
	Heeded                // a message of delivery or an answer; the rest is not set
	Again                 // heard a moment ago: by another link, as a rule
	Original              // nobody else has brought this message
)

// recent is by how many numbers a link may be slower than another.
const recent = 10

// Voucher returns that of the latest step, if it took a datagram.
func (c *Core) Voucher() Voucher { return c.voucher }

// vouch makes it for a message with a number, after that was entered.
func (c *Core) vouch(p *peer, v verdict, seq uint32) {
	merit := Original
	if v == repeat || v == refuse {
		if merit = Again; !p.in.tracking || uint64(seq)+recent < uint64(p.in.last) {
			c.voucher.Merit = Old
			return
		}
	}
	number := seq
	if len(p.in.missing) > 0 {
		number = min(number, p.in.missing[0].seq-1)
	}
	c.voucher = Voucher{merit, p.name, p.in.generation, number}
}
