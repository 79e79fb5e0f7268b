// Package link carries heartbeat datagrams over the media of ha.cf. Bytes go
// in and come out; a link neither authenticates nor understands them. A serial
// line alone looks inside, to write each datagram in the encoding of such lines.
package link

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Link is one heartbeat medium of this node. Send and Receive may be called
// at the same time from different goroutines.
type Link interface {
	// Name is the link name as cl_status shows it: the interface, device or host.
	Name() string
	// Send sends one datagram to all who listen on the medium. It does not
	// block, and does not keep the bytes; an error concerns this datagram only.
	Send(b []byte) error
	// Receive waits for the next datagram, which may be one's own. It returns
	// ErrClosed after Close; any other error is passing. The data are valid
	// until the next call.
	Receive() (Packet, error)
	// Close ends the link and every Receive that waits.
	Close() error
}

// Polled is a link that a loop waits for together with others, by its
// descriptors (poll(2)), instead of with a goroutine in Receive.
type Polled interface {
	Link
	// Descriptors appends what is to be waited for. It may change at any Send
	// or Take.
	Descriptors(room []unix.PollFd) []unix.PollFd
	// Take returns the next datagram that is there, or ErrNone. Any other error
	// is as Receive returns it. The data are valid until the next call.
	Take() (Packet, error)
	// Paced is what Pace was told last, which the loop that waits has to see to.
	Paced() time.Duration
}

// Guarded is a link whose kernel side can be told what to drop in a flood.
type Guarded interface {
	Link
	// Sift has the kernel drop what cannot be new of what these senders send,
	// and if shut most of what others send, before it costs anything.
	// Generation 0 has all of a sender's admitted; nil senders end it.
	Sift(senders []Sender, shut bool)
	// Expect renews what Sift was told of one of its senders.
	Expect(Sender)
	// Pace has Receive read from the kernel only so often, many packets at a
	// time: waking up is most of what a packet costs that comes alone. 0 ends it.
	Pace(time.Duration)
	// Dropped counts packets that the kernel dropped: no messages, others than
	// the preferred ones, or for want of room.
	Dropped() uint64
}

// Sender is where messages come from, and what is known of their numbers.
type Sender struct {
	Addr netip.Addr
	// Generation and Number: no message of that generation up to that number,
	// and none of an earlier one, is worth receiving. Generation 0: nothing is known.
	Generation, Number uint32
}

// Packet is one received datagram.
type Packet struct {
	Data []byte
	From netip.AddrPort // zero where the medium has no addresses
	At   time.Time      // when the kernel received it if it says so, else when it was read
}

var (
	// ErrClosed is returned by Receive after Close.
	ErrClosed = errors.New("link is closed")
	// ErrNone is returned by Take when nothing has come.
	ErrNone = errors.New("nothing has come")
)
