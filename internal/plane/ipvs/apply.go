package ipvs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// batchSize is how many changes go to the kernel in one message. Each refusal
// among them comes back as a message of about 1 KiB, and all of them must find
// room in the socket (net.core.rmem_default is about 200 KiB).
const batchSize = 64

// Apply carries changes out: many in one message where they do not hang on
// each other, and one by one those that need care.
func (p *Plane) Apply(ctx context.Context, changes []model.Change) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	var rows []error
	for len(changes) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		answers, err := p.together(changes)
		if err != nil {
			return err
		}
		if len(answers) == 0 { // the first one needs care
			answers = []error{errAgain}
		}
		for i, err := range answers {
			if errors.Is(err, errAgain) {
				err = p.carryOut(ctx, changes[i])
			}
			if err == nil {
				continue
			}
			if err := fatal(ctx, changes[i], err); err != nil {
				return err
			}
			rows = append(rows, &plane.RowError{Change: changes[i], Err: err})
		}
		changes = changes[len(answers):]
	}
	return errors.Join(rows...)
}

// fatal is the error of the whole call that follows from that of one change,
// nil where it is this change's alone.
func fatal(ctx context.Context, c model.Change, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%s: %w", c, errPermission)
	}
	if ctx.Err() != nil || isTrouble(err) {
		return fmt.Errorf("%s: %w", c, err)
	}
	return nil
}

// isTrouble tells an error of the connection, after which nothing is known,
// from the kernel's refusal of one request.
func isTrouble(err error) bool {
	var op *netlink.OpError
	return errors.As(err, &op) && op.Op != "receive" || errors.Is(err, os.ErrClosed) || errors.Is(err, unix.ENOBUFS)
}

// errAgain stands for a change that was not carried out yet: it needs care.
var errAgain = errors.New("to be carried out by itself")

// together sends changes from the front in one message, as many as do not hang
// on each other, and returns what became of each: nil, errAgain, or why it was
// refused. An empty list means that there are not two such changes.
func (p *Plane) together(changes []model.Change) ([]error, error) {
	var (
		requests []request
		messages []netlink.Message
		rows     = map[grave]bool{}
		services = map[model.ServiceKey]bool{}
	)
	for _, c := range changes[:min(len(changes), batchSize)] {
		r, err := requestFor(c)
		row := grave{service: c.Service.Key, real: r.real}
		if err != nil || rows[row] || c.Op == model.ServiceDelete && services[row.service] || r.adds && p.gone.left(row.service, row.real) > 0 {
			break
		}
		m, err := p.pack(r.command, r.message)
		if err != nil {
			break
		}
		rows[row], services[row.service] = true, true
		requests, messages = append(requests, r), append(messages, m)
	}
	if len(requests) < 2 {
		return nil, nil
	}
	// The kernel answers those that it refuses, and the last one, which cannot
	// fail, when it is done with all of them.
	last, err := p.pack(cmdGetInfo, nil)
	if err != nil {
		return nil, nil
	}
	for i, r := range requests {
		p.note(changes[i], r)
	}
	sent, err := p.raw.SendMessages(append(messages, last))
	if err != nil {
		return nil, fmt.Errorf("send %d changes to IPVS: %w", len(requests), err)
	}
	refused, err := p.refusals(sent)
	if err != nil {
		return nil, fmt.Errorf("%s and %d more: %w", changes[0], len(requests)-1, err)
	}
	answers := make([]error, len(requests))
	if len(refused) == 0 {
		return answers, nil
	}
	later := map[model.ServiceKey]bool{} // services that are not as they will be
	for i, r := range requests {
		errno, c := refused[i], changes[i]
		k := c.Service.Key
		switch {
		case errno == 0:
		case errno == r.misfit:
			answers[i], later[k] = errAgain, later[k] || !r.adds
		case errno == unix.ESRCH && later[k]:
			answers[i] = errAgain
		default:
			answers[i] = refusal(c, errno)
		}
	}
	return answers, nil
}

// refusals receives until the last request is answered, and returns what the
// kernel refused by the number of the request.
func (p *Plane) refusals(sent []netlink.Message) (map[int]unix.Errno, error) {
	refused := map[int]unix.Errno{}
	for {
		answers, err := p.receive()
		if err != nil {
			return nil, err
		}
		for _, a := range answers {
			i := int(a.Header.Seq - sent[0].Header.Sequence)
			switch {
			case i < 0 || i >= len(sent) || sent[i].Header.Sequence != a.Header.Seq:
				// of a request that was given up
			case a.Header.Type == unix.NLMSG_ERROR && len(a.Data) >= 4:
				if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(a.Data))); errno != 0 {
					refused[i] = errno
				}
				if i == len(sent)-1 {
					return nil, fmt.Errorf("ask IPVS for its version: %w", refused[i])
				}
			case i == len(sent)-1:
				return refused, nil
			}
		}
	}
}

// receiver returns a function that gives the messages of one datagram as they
// came: package netlink makes of a refusal an error that does not say which
// request it answers.
func receiver(c *netlink.Conn) (func() ([]syscall.NetlinkMessage, error), error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 1<<16)
	return func() ([]syscall.NetlinkMessage, error) {
		var n int
		var err error
		wait := raw.Read(func(fd uintptr) bool {
			n, _, err = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
		})
		if err := errors.Join(wait, err); err != nil {
			return nil, fmt.Errorf("receive from IPVS: %w", err)
		}
		return syscall.ParseNetlinkMessage(buf[:n])
	}, nil
}

func (p *Plane) pack(command uint8, data []byte) (netlink.Message, error) {
	m := genetlink.Message{Header: genetlink.Header{Command: command, Version: familyVersion}, Data: data}
	b, err := m.MarshalBinary()
	return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(p.family), Flags: netlink.Request}, Data: b}, err
}

// request is a change as the kernel hears it first: what a change says it
// does, not yet what is right where it was done already.
type request struct {
	command, other uint8      // other: where command does not fit what is there
	misfit         unix.Errno // the kernel's word for that
	message        []byte
	adds           bool
	real           netip.AddrPort // of the row
}

func requestFor(c model.Change) (r request, err error) {
	k, real := c.Service.Key, c.Real
	if !k.IsMark() && (real.Forward == model.Gate || real.Forward == model.IPIP) {
		// Only masq changes the port, so that is the port they have (ipvsadm(8) -r).
		real.Addr = netip.AddrPortFrom(real.Addr.Addr(), k.Addr.Port())
	}
	r.real = real.Addr
	switch c.Op {
	case model.ServiceAdd:
		r.command, r.other, r.misfit = cmdNewService, cmdSetService, unix.EEXIST
		r.message, err = encodeService(c.Service)
	case model.ServiceEdit:
		r.command, r.other, r.misfit = cmdSetService, cmdNewService, unix.ESRCH
		r.message, err = encodeService(c.Service)
	case model.ServiceDelete:
		r.command = cmdDelService
		r.message, err = encodeKey(k)
	case model.RealAdd:
		r.command, r.other, r.misfit, r.adds = cmdNewDest, cmdSetDest, unix.EEXIST, true
		r.message, err = encodeDest(k, real, true)
	case model.RealEdit:
		r.command, r.other, r.misfit, r.adds = cmdSetDest, cmdNewDest, unix.ENOENT, true
		r.message, err = encodeDest(k, real, true)
	case model.RealDelete:
		r.command = cmdDelDest
		r.message, err = encodeDest(k, real, false)
	case model.ChangeNone:
		err = errors.New("a change that changes nothing")
	}
	return r, err
}

// note remembers what Read and later additions must know of a change.
func (p *Plane) note(c model.Change, r request) {
	k := c.Service.Key
	switch c.Op {
	case model.ServiceAdd, model.ServiceEdit:
		v := c.Service
		v.Reals = nil
		p.spelled[k] = v
	case model.ServiceDelete:
		p.gone.note(grave{service: k})
		delete(p.spelled, k)
	case model.RealDelete:
		p.gone.note(grave{service: k, real: r.real})
	case model.RealAdd, model.RealEdit, model.ChangeNone:
	}
}

// carryOut carries one change out, whatever is there already.
func (p *Plane) carryOut(ctx context.Context, c model.Change) error {
	r, err := requestFor(c)
	if err != nil {
		return err
	}
	if r.adds {
		if err := p.bury(ctx, c.Service.Key, r.real); err != nil {
			return err
		}
	}
	p.note(c, r)
	err = p.tell(r.command, r.message)
	if r.misfit != 0 && errors.Is(err, r.misfit) {
		err = p.tell(r.other, r.message)
	}
	return refusal(c, err)
}

// refusal says in a sentence why a change was refused; nil where it was not,
// or where what it asks is so already.
func refusal(c model.Change, err error) error {
	switch c.Op {
	case model.ServiceAdd, model.ServiceEdit:
		return refusedService(c.Service, err)
	case model.RealAdd, model.RealEdit:
		return refusedReal(c.Service.Key, c.Real, err)
	case model.ServiceDelete, model.RealDelete:
		return unless(err, unix.ESRCH, unix.ENOENT)
	case model.ChangeNone:
	}
	return err
}

// unless takes some refusals for success.
func unless(err error, words ...unix.Errno) error {
	for _, w := range words {
		if errors.Is(err, w) {
			return nil
		}
	}
	return err
}
