package check

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
)

// Databases that answer, but not with a row; the rest is tested against real
// ones.
func TestDatabasesThatAreNotReady(t *testing.T) {
	full := "\xff\x10\x04#08004Too many\nconnections"
	starting := "SFATAL\x00VFATAL\x00C57P03\x00Mthe database system is starting up\x00\x00"
	postgres := func(message byte, body string) string {
		return string(binary.BigEndian.AppendUint32([]byte{message}, uint32(4+len(body)))) + body
	}
	pgsql := func(t *model.Target) { t.Application = "pgsql" }
	for _, tc := range []struct {
		name   string
		play   func(net.Conn)
		opts   []func(*model.Target)
		reason string
	}{
		{"mysql: too many connections", func(c net.Conn) { _, _ = io.WriteString(c, string([]byte{byte(len(full)), 0, 0, 0})+full) }, nil,
			"Error 1040 (08004): Too many?connections"},
		{"mysql: an old protocol", func(c net.Conn) { _, _ = io.WriteString(c, "\x01\x00\x00\x00\x09") }, nil, "unsupported protocol version 9"},
		{"postgresql: starting up", func(c net.Conn) {
			// What asks for TLS is told that there is none, what comes then that it is too early.
			b := make([]byte, 8)
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			if binary.BigEndian.Uint32(b[4:]) == 80877103 {
				_, _ = io.WriteString(c, "N")
				return
			}
			_, _ = io.WriteString(c, postgres('E', starting))
			_, _ = c.Read(b)
		}, []func(*model.Target){pgsql}, "FATAL: the database system is starting up (57P03)"},
		{"mysql: no login", nil, []func(*model.Target){func(t *model.Target) { t.Login = "" }}, `a check of mysql needs a user: add login="..."`},
		{"postgresql: no query", nil, []func(*model.Target){pgsql, func(t *model.Target) { t.Request = "/" }}, `a check of pgsql needs a query: add request="SELECT ..."`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tg := target(script(t, tc.play), append([]func(*model.Target){database}, tc.opts...)...)
			v := Perform(t.Context(), For(tg), tg)
			if v.Status != model.Down || !strings.Contains(v.Reason, tc.reason) {
				t.Errorf("%v, want down: ...%s...", v, tc.reason)
			}
		})
	}
}
