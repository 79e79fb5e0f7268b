package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/batuta-ha/batuta/internal/model"
)

// ipvsFlags adds what the kernel's IPVS can be told besides its table.
func ipvsFlags(f *pflag.FlagSet, o *model.IPVS) {
	f.Func("ipvs-sync", "IPVS: share connections with the other directors over `INTERFACE[,id=N]`, the heartbeats' one", func(s string) error {
		d, err := model.ParseSyncDaemon(s)
		o.Sync = &d
		return err
	})
	f.Func("ipvs-timeouts", "seconds a silent connection stays, `TCP,TCPFIN,UDP` as for ipvsadm --set; 0: as it is (IPVS and eBPF; proxy: UDP)", func(s string) error {
		words := strings.Split(s, ",")
		if len(words) != 3 {
			return errors.New("want three numbers of seconds")
		}
		for i, to := range []*time.Duration{&o.Timeouts.TCP, &o.Timeouts.TCPFin, &o.Timeouts.UDP} {
			n, err := strconv.ParseUint(words[i], 10, 31)
			if err != nil {
				return fmt.Errorf("%q: want a number of seconds", words[i])
			}
			*to = time.Duration(n) * time.Second
		}
		return nil
	})
	f.Func("ipvs-sysctl", "IPVS: set net.ipv4.vs.`NAME=VALUE`; without it, what was set so before is put back (repeatable)", func(s string) error {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" || value == "" {
			return errors.New("want NAME=VALUE, as conn_reuse_mode=0")
		}
		o.Sysctls = append(o.Sysctls, model.Setting{Name: strings.TrimPrefix(name, "net.ipv4.vs."), Value: value})
		return nil
	})
}
