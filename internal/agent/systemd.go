package agent

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// systemctl is the program that manages units (systemctl(1)).
const systemctl = "systemctl"

// unitOf is the systemd unit that a resource without a script stands for: the
// one of its name. Heartbeat knows no units; today's packages bring no scripts.
func (s *script) unitOf(ctx context.Context) (string, bool) {
	if len(s.res.Args) > 0 {
		return "", false
	}
	unit := s.res.Agent
	if !strings.Contains(unit, ".") {
		unit += ".service"
	}
	out, err := s.systemctl(ctx, "show", "--property=LoadState", "--value", unit)
	return unit, err == nil && string(bytes.TrimSpace(out)) == "loaded"
}

// unit carries out an action on a unit. It prints what a script would.
func (s *script) unit(ctx context.Context, unit, action string) ([]byte, error) {
	if action == "status" {
		// is-active exits with 0 for active alone (systemctl(1)); a unit that
		// starts or stops is not yet what it will be.
		out, err := s.systemctl(ctx, "is-active", unit)
		if ctx.Err() != nil {
			return out, fmt.Errorf("resource %s: systemctl is-active %s: %w", s.res.Text, unit, context.Cause(ctx))
		}
		if err == nil {
			return []byte(unit + " is running"), nil
		}
		return []byte(unit + " is not running"), nil
	}
	out, err := s.systemctl(ctx, action, unit)
	if err != nil {
		return out, fmt.Errorf("resource %s: systemctl %s %s: %w%s", s.res.Text, action, unit, err, lastLine(out))
	}
	return out, nil
}

func (s *script) systemctl(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, systemctl, append([]string{"--no-ask-password", "--no-pager"}, args...)...)
	cmd.Env = s.opt.Environ
	return cmd.CombinedOutput()
}
