package lab

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// session is one life of a node, from boot to power loss: the connection to
// its init, and the jobs there.
type session struct {
	node   string
	bootID string
	c      *conn
	booted chan struct{} // closed when init is ready
	ended  chan struct{} // closed when init is gone

	mu     sync.Mutex
	next   int
	jobs   map[int]*job
	failed error // why it did not boot
}

// job is a request to init that waits for replies.
type job struct {
	started chan initReply // one reply: Started, Failed or Links
	done    chan struct{}  // closed when the process has ended, or the node
	code    int            // valid when done is closed and lost is false
	lost    bool           // the node went down first
}

func newSession(node, bootID string, c *conn) *session {
	s := &session{
		node: node, bootID: bootID, c: c,
		booted: make(chan struct{}), ended: make(chan struct{}), jobs: map[int]*job{},
	}
	go s.listen()
	return s
}

// listen delivers init's replies until the node is down.
func (s *session) listen() {
	defer close(s.ended)
	for {
		var reply initReply
		if _, err := s.c.Receive(&reply); err != nil {
			break
		}
		s.deliver(reply)
	}
	s.c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, j := range s.jobs {
		delete(s.jobs, id)
		j.lost = true
		close(j.done)
	}
	s.jobs = nil
}

func (s *session) deliver(reply initReply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[reply.ID]
	switch {
	case reply.Kind == replyReady:
		close(s.booted)
	case j == nil && reply.Kind == replyFailed:
		s.failed = fmt.Errorf("lab: boot of %s: %s", s.node, reply.Error)
	case j == nil: // cannot happen: init answers what it was asked
	case reply.Kind == replyExited:
		j.code = reply.Code
		delete(s.jobs, reply.ID)
		close(j.done)
	case reply.Kind == replyStarted:
		j.started <- reply
	default:
		delete(s.jobs, reply.ID)
		j.started <- reply
	}
}

// ask sends a request and returns the job that waits for its replies.
func (s *session) ask(req *initRequest, files ...*os.File) (*job, error) {
	s.mu.Lock()
	if s.jobs == nil {
		s.mu.Unlock()
		return nil, s.failure()
	}
	s.next++ // job 0 is the node itself
	req.ID = s.next
	j := &job{started: make(chan initReply, 1), done: make(chan struct{})}
	s.jobs[req.ID] = j
	s.mu.Unlock()
	if err := s.c.Send(req, files...); err != nil {
		s.mu.Lock()
		delete(s.jobs, req.ID)
		s.mu.Unlock()
		if s.over() {
			return nil, s.failure()
		}
		return nil, fmt.Errorf("lab: %s: %w", s.node, err)
	}
	return j, nil
}

// first waits for the first reply to a job.
func (s *session) first(j *job) (initReply, error) {
	select {
	case reply := <-j.started:
		if reply.Error != "" {
			return reply, errors.New(reply.Error)
		}
		return reply, nil
	case <-s.ended:
	}
	select {
	case reply := <-j.started: // it was the last thing init said
		return reply, nil
	default:
		return initReply{}, s.failure()
	}
}

// over tells that init is gone.
func (s *session) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// failure is why a session is over.
func (s *session) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return s.failed
	}
	return fmt.Errorf("lab: %s: %w", s.node, ErrDown)
}

// close ends the session and waits for its goroutine.
func (s *session) close() {
	s.c.Close()
	<-s.ended
}
