package ipvs

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// The kernel refuses with a number; these are the sentences.

var errPermission = errors.New("the kernel does not let this process use IPVS: run it as root, or with the capability NET_ADMIN")

func noScheduler(name string) error {
	return fmt.Errorf("the kernel has no scheduler %q: load its module (modprobe ip_vs_%s), or choose another: %w", name, name, plane.ErrNotSupported)
}

func noEngine(name string) error {
	return fmt.Errorf("the kernel has no persistence engine %q: load its module (modprobe ip_vs_pe_%s), or do without: %w", name, name, plane.ErrNotSupported)
}

func refusedService(v model.VirtualService, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT) && v.Persistence.Engine != "":
		return fmt.Errorf("the kernel lacks the scheduler %q or the persistence engine %q: load their modules (modprobe -a ip_vs_%s ip_vs_pe_%s): %w",
			v.Scheduler, v.Persistence.Engine, v.Scheduler, v.Persistence.Engine, plane.ErrNotSupported)
	case errors.Is(err, unix.ENOENT):
		return noScheduler(v.Scheduler)
	case errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("the kernel's IPVS is built without IPv6 (CONFIG_IP_VS_IPV6): use the ebpf or the proxy plane for this service: %w", plane.ErrNotSupported)
	case errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("the kernel's IPVS is built without %s (CONFIG_IP_VS_PROTO_%s): %w", v.Key.Proto, strings.ToUpper(v.Key.Proto.String()), plane.ErrNotSupported)
	}
	return err
}

func refusedReal(k model.ServiceKey, r model.RealServer, err error) error {
	switch {
	case errors.Is(err, unix.ESRCH):
		return errors.New("no such service in the table")
	case errors.Is(err, unix.EINVAL) && model.FamilyOf(r.Addr.Addr()) != k.Family():
		return fmt.Errorf("the service and the real server are of different address families, which this kernel's IPVS carries by ipip alone: %w", plane.ErrNotSupported)
	case errors.Is(err, unix.ERANGE):
		return fmt.Errorf("the kernel refuses weight %d or the thresholds upper %d, lower %d: %w", r.Weight, r.Upper, r.Lower, err)
	}
	return err
}

// loadModule is what ipvsadm does too where the kernel has no IPVS yet.
func loadModule() error {
	modprobe, err := exec.LookPath("modprobe")
	if err != nil {
		for _, name := range []string{"/sbin/modprobe", "/usr/sbin/modprobe"} { // often not in a service's PATH
			if modprobe, err = exec.LookPath(name); err == nil {
				break
			}
		}
	}
	if err != nil {
		return errors.New("modprobe is not installed")
	}
	var said bytes.Buffer
	cmd := exec.Command(modprobe, "ip_vs")
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(said.String()), "\n")
		if first == "" {
			first = err.Error()
		}
		return fmt.Errorf("modprobe ip_vs: %s", first)
	}
	return nil
}
