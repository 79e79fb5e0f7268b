package check

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
)

func tnsPacket(kind byte, body string) string {
	p := make([]byte, tnsHeader)
	binary.BigEndian.PutUint16(p, uint16(tnsHeader+len(body)))
	p[4] = kind
	return string(p) + body
}

func tnsRefusal(text string) string {
	return tnsPacket(tnsRefuse, "\x22\x00"+string(binary.BigEndian.AppendUint16(nil, uint16(len(text))))+text)
}

// tnsListener plays Oracle's: it answers each connect packet as says does.
func tnsListener(says func(asked string) string) func(net.Conn) {
	return func(c net.Conn) {
		for {
			head := make([]byte, tnsHeader)
			if _, err := io.ReadFull(c, head); err != nil {
				return
			}
			body := make([]byte, int(binary.BigEndian.Uint16(head))-tnsHeader)
			if _, err := io.ReadFull(c, body); err != nil {
				return
			}
			if _, err := io.WriteString(c, says(string(body))); err != nil {
				return
			}
		}
	}
}

func TestOracleListeners(t *testing.T) {
	always := func(answer string) func(string) string { return func(string) string { return answer } }
	resent := false
	noDatabase := func(t *model.Target) { t.Database = "" }
	for _, tc := range []struct {
		name   string
		says   func(asked string) string
		opts   []func(*model.Target)
		status model.Status
		reason string
	}{
		{"accepts", always(tnsPacket(tnsAccept, strings.Repeat("\x00", 24))), nil, model.Up, "accepts the connection to d; the query is not run"},
		{"redirects", always(tnsPacket(tnsRedir, "\x00\x10(ADDRESS=...)")), nil, model.Up, "sends on to an instance of d; the query is not run"},
		{"wants it again", func(string) string {
			if !resent {
				resent = true
				return tnsPacket(tnsResend, "")
			}
			return tnsPacket(tnsAccept, "")
		}, nil, model.Up, "accepts"},
		{"wants it again and again", always(tnsPacket(tnsResend, "")), nil, model.Down, "asked 4 times for the connect packet again"},
		{"knows the instance, not the service", func(asked string) string {
			if strings.Contains(asked, "(SERVICE_NAME=d)") {
				return tnsRefusal("(DESCRIPTION=(TMP=)(VSNNUM=318767104)(ERR=12514)(ERROR_STACK=(ERROR=(CODE=12514)(EMFI=4))))")
			}
			if !strings.Contains(asked, "(SID=d)") {
				return tnsRefusal("(ERR=1)")
			}
			return tnsPacket(tnsAccept, "")
		}, nil, model.Up, "accepts the connection to d"},
		{"knows neither", func(asked string) string {
			if strings.Contains(asked, "SERVICE_NAME") {
				return tnsRefusal("(DESCRIPTION=(ERR=12514))")
			}
			return tnsRefusal("(DESCRIPTION=(ERR=12505))")
		}, nil, model.Down, "knows no database d (TNS-12505)"},
		{"is blocked", always(tnsRefusal("(DESCRIPTION=(ERR=12528))")), nil, model.Down, "refuses the connection (TNS-12528)"},
		{"refuses without a number", always(tnsRefusal("no\nway")), nil, model.Down, "refuses the connection: no?way"},
		{"refuses and is cut short", always(tnsPacket(tnsRefuse, "\x00\x00\x01\x00short")), nil, model.Down, "a refusal cut short"},
		{"answers a ping", always(tnsRefusal("(DESCRIPTION=(TMP=)(VSNNUM=318767104)(ERR=0)(ALIAS=LISTENER))")), []func(*model.Target){noDatabase}, model.Up, "the listener answers; the query is not run"},
		{"too short a packet", always("\x00\x07\x00\x00\x02\x00\x00\x00"), nil, model.Down, "not a TNS answer: a packet of 7 bytes"},
		{"an unknown packet", always(tnsPacket(99, "")), nil, model.Down, "not a TNS answer: a packet of type 99"},
		{"a name that would break the packet", nil, []func(*model.Target){func(t *model.Target) { t.Database = "d)(SID=e" }}, model.Down, "is no name of an Oracle service"},
		{"no login", nil, []func(*model.Target){func(t *model.Target) { t.Login = "" }}, model.Down, "needs a user: add login="},
		{"no query", nil, []func(*model.Target){func(t *model.Target) { t.Request = "/" }}, model.Down, "needs a query: add request="},
	} {
		t.Run(tc.name, func(t *testing.T) {
			oracle := func(t *model.Target) { t.Application = "oracle" }
			v := Perform(t.Context(), negotiateOracle, target(script(t, tnsListener(tc.says)), append([]func(*model.Target){database, oracle}, tc.opts...)...))
			if v.Status != tc.status || !strings.Contains(v.Reason, tc.reason) {
				t.Errorf("verdict %v, want %v: ...%s...", v, tc.status, tc.reason)
			}
		})
	}
}

func FuzzTNSAnswer(f *testing.F) {
	for _, s := range []string{tnsPacket(tnsAccept, ""), tnsRefusal("(ERR=12514)"), tnsRefusal("") + "x", "\x00\x00\x00\x00\x04\x00\x00\x00", tnsPacket(tnsRefuse, "\x00")} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		answer, err := readTNS(r)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("%q would break a log line", err)
			}
			return
		}
		if used := len(b) - r.Len(); used != int(binary.BigEndian.Uint16(b)) {
			t.Errorf("%d bytes used of a packet of %d", used, binary.BigEndian.Uint16(b))
		}
		if len(answer.text) > len(b) || strings.Trim(answer.code, "0123456789") != "" {
			t.Errorf("%+v", answer)
		}
	})
}
