package link

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// sieve is the filter of one socket that looks at a message's numbers
// (bpf/sieve.c), beside what the plain ones look at.
type sieve struct{ objects sieveObjects }

// newSieve fails where this process or kernel cannot have an eBPF program.
func newSieve() (*sieve, error) {
	_ = rlimit.RemoveMemlock() // matters to kernels before 5.11 only
	s := &sieve{}
	if err := loadSieveObjects(&s.objects, nil); err != nil {
		return nil, fmt.Errorf("load the socket filter (it needs root, or CAP_BPF): %w", err)
	}
	return s, nil
}

func (s *sieve) attach(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, s.objects.Sieve.FD())
}

// know replaces the senders; if shut, others get through in a share only.
func (s *sieve) know(senders []Sender, shut bool) error {
	for _, known := range senders {
		if err := s.expect(known); err != nil {
			return err
		}
		if err := s.objects.Turns.Update(sieveAddress{Byte: known.Addr.As16()}, uint64(0), ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return err
		}
	}
	var gone []sieveAddress
	var at sieveAddress
	var value sieveSender
	for each := s.objects.Senders.Iterate(); each.Next(&at, &value); {
		if !slices.ContainsFunc(senders, func(k Sender) bool { return k.Addr.As16() == at.Byte }) {
			gone = append(gone, at)
		}
	}
	for _, at := range gone {
		_, _ = s.objects.Senders.Delete(at), s.objects.Turns.Delete(at)
	}
	return s.objects.Shut.Put(uint32(0), uint32(number(shut)))
}

// expect enters what is known of one sender now.
func (s *sieve) expect(k Sender) error {
	return s.objects.Senders.Update(sieveAddress{Byte: k.Addr.As16()}, sieveSender{Generation: k.Generation, Number: k.Number}, ebpf.UpdateAny)
}

func (s *sieve) Close() error { return s.objects.Close() }
