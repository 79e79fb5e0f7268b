package beat

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// schedule gives every thread of this process, and those that they will make,
// the real-time policy SCHED_RR (sched(7)): it then waits for no ordinary
// process.
func schedule(priority int) error {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: uint32(priority)}
	done := map[int]bool{}
	for again := true; again; { // a thread may have been made by one that was not done yet
		again = false
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || done[tid] {
				continue
			}
			if err := unix.SchedSetAttr(tid, &attr, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("sched_setattr: %w", err)
			}
			done[tid], again = true, true
		}
	}
	return nil
}

// lockMemory keeps what this process touches from being swapped out. Address
// space alone costs nothing.
func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	return nil
}
