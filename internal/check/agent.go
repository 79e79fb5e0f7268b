package check

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// agentLimit is how much of an agent's line is read, in bytes.
const agentLimit = 1 << 10

// withAgent makes a check that, if it succeeds, also asks the agent on the real
// server how much that can take. An agent that does not answer within
// CheckTimeout says nothing: what it reported last stays. One that says "down"
// is believed.
func withAgent(f Func) Func {
	return func(ctx context.Context, t model.Target) model.Verdict {
		v := f(ctx, t)
		if v.Status != model.Up {
			return v
		}
		within, cancel := context.WithTimeout(ctx, t.CheckTimeout)
		defer cancel()
		load, err := askAgent(within, netip.AddrPortFrom(t.Addr.Addr(), t.AgentPort))
		switch {
		case err != nil:
		case load.Mode == model.LoadDown:
			return down("its agent reports " + load.String())
		default:
			v.Load = load
		}
		return v
	}
}

// askAgent reads the line that an agent sends to whoever connects: HAProxy's
// agent-check, without agent-send.
func askAgent(ctx context.Context, a netip.AddrPort) (model.Load, error) {
	conn, err := open(ctx, a, agentLimit)
	if err != nil {
		return model.Load{}, err
	}
	defer conn.Close()
	line, err := readLine(conn)
	if err != nil {
		return model.Load{}, err
	}
	load, ok := model.ParseLoad(line)
	if !ok {
		return model.Load{}, errors.New("not a report: " + clean(line))
	}
	load.Reason = clean(load.Reason)
	return load, nil
}

// readLine reads up to the first end of a line, or the end of the connection.
func readLine(r io.Reader) (string, error) {
	var line strings.Builder
	buf := make([]byte, 256)
	for {
		n, err := r.Read(buf)
		before, _, found := strings.Cut(string(buf[:n]), "\n")
		line.WriteString(before)
		switch {
		case found, errors.Is(err, io.EOF) && line.Len() > 0:
			return line.String(), nil
		case err != nil:
			return "", err
		}
	}
}
