package check

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
)

var ftpScript = []line{{"USER", "331 password\r\n"}, {"PASS p", "230-in\r\n230 welcome\r\n"}, {"PASS", "530 Login incorrect.\r\n"},
	{"TYPE I", "200 ok\r\n"}, {"PORT", "200 ok\r\n"}, {"EPRT", "200 ok\r\n"}, {"QUIT", "221 bye\r\n"}}

// ftpServer serves one file of any length to anybody.
type ftpServer struct {
	noActive, noPassive bool
	badActive           bool   // accepts PORT and then cannot connect
	noBinary            bool   // refuses TYPE
	elsewhere           bool   // names another host for passive data
	missing             bool   // there is no such file
	broken              bool   // the transfer is aborted at its end
	endless             bool   // the file never ends
	silentData          bool   // nothing comes over the data connection
	file                string // its content
}

func (s ftpServer) play(c net.Conn) {
	say := func(format string, args ...any) { fmt.Fprintf(c, format+"\r\n", args...) }
	say("220 ready")
	var open func() (net.Conn, error)
	in := bufio.NewScanner(c)
	for in.Scan() {
		word, rest, _ := strings.Cut(in.Text(), " ")
		switch word {
		case "USER":
			say("331 password")
		case "PASS":
			say("230 in")
		case "TYPE":
			if s.noBinary {
				say("504 no")
			} else {
				say("200 ok")
			}
		case "PORT", "EPRT":
			if s.noActive {
				say("500 Illegal PORT command.")
				continue
			}
			say("200 ok")
			open = func() (net.Conn, error) { return net.Dial("tcp", addressOf(word, rest)) }
			if s.badActive {
				open = nil
			}
		case "PASV", "EPSV":
			if s.noPassive {
				say("502 no")
				continue
			}
			host, _, _ := net.SplitHostPort(c.LocalAddr().String())
			l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
			if err != nil {
				return
			}
			defer l.Close()
			port := l.Addr().(*net.TCPAddr).Port
			host = "127,0,0,1"
			if s.elsewhere {
				host = "127,9,9,9"
			}
			if word == "PASV" {
				say("227 Entering Passive Mode (%s,%d,%d).", host, port>>8, port&255)
			} else {
				say("229 Entering Extended Passive Mode (|||%d|)", port)
			}
			open = l.Accept
		case "RETR":
			s.send(say, open)
		case "QUIT":
			say("221 bye")
			return
		default:
			say("500 %s?", word)
		}
	}
}

func (s ftpServer) send(say func(string, ...any), open func() (net.Conn, error)) {
	if s.missing {
		say("550 Failed to open file.")
		return
	}
	if open == nil {
		say("425 Failed to establish connection.")
		return
	}
	say("150 here")
	d, err := open()
	if err != nil {
		say("425 no")
		return
	}
	defer d.Close()
	if s.silentData {
		silent(d)
		return
	}
	_, _ = io.WriteString(d, s.file)
	if s.endless {
		repeat(d, strings.Repeat("x", 4096))
	}
	if s.broken {
		say("451 disk error")
		return
	}
	say("226 done")
}

// addressOf reads what PORT and EPRT name.
func addressOf(word, text string) string {
	if word == "EPRT" {
		f := strings.Split(text, "|")
		return net.JoinHostPort(f[2], f[3])
	}
	n := strings.Split(text, ",")
	high, _ := strconv.Atoi(n[4])
	low, _ := strconv.Atoi(n[5])
	return net.JoinHostPort(strings.Join(n[:4], "."), strconv.Itoa(high<<8|low))
}

func TestFTP(t *testing.T) {
	good := receive("all good")
	for _, tc := range []struct {
		name   string
		server ftpServer
		opts   []func(*model.Target)
		status model.Status
		reason string
	}{
		{"a file that matches", ftpServer{file: "x all good\n"}, []func(*model.Target){good}, model.Up, "11 bytes of /f"},
		{"a file that does not", ftpServer{file: "bad"}, []func(*model.Target){good}, model.Down, `RETR: receive="all good" is not in the file (3 bytes)`},
		{"an empty file", ftpServer{}, nil, model.Up, "0 bytes of /f"},
		{"no such file", ftpServer{missing: true}, nil, model.Down, "RETR: 550 Failed to open file."},
		{"no file asked for", ftpServer{}, []func(*model.Target){request("/")}, model.Up, "logged in"},
		{"no file to look into", ftpServer{}, []func(*model.Target){request("/"), good}, model.Down, "name it with request"},
		{"text only", ftpServer{noBinary: true, file: "all good"}, []func(*model.Target){good}, model.Up, "8 bytes"},
		{"passive only", ftpServer{noActive: true, file: "all good"}, []func(*model.Target){good}, model.Up, "8 bytes"},
		{"cannot connect to us", ftpServer{badActive: true, file: "all good"}, []func(*model.Target){good}, model.Up, "8 bytes"},
		{"neither", ftpServer{noActive: true, noPassive: true}, nil, model.Down, "PASV: 502 no"},
		{"passive, at another host: the server's is taken", ftpServer{noActive: true, elsewhere: true, file: "all good"}, []func(*model.Target){good}, model.Up, "8 bytes"},
		{"a transfer that breaks", ftpServer{broken: true, file: "all good"}, []func(*model.Target){good}, model.Down, "RETR: 451 disk error"},
		{"a file without end is looked into up to a point", ftpServer{endless: true, file: "all good"}, []func(*model.Target){good}, model.Up, "1048576 bytes"},
		{"and no further", ftpServer{endless: true}, []func(*model.Target){good}, model.Down, "(1048576 bytes)"},
		{"silent data", ftpServer{silentData: true}, []func(*model.Target){short}, model.Down, "RETR: no answer within 100ms"},
		{"no regular expression", ftpServer{}, []func(*model.Target){receive("(")}, model.Down, "missing closing"},
		{"a name of two lines", ftpServer{}, []func(*model.Target){request("/f\r\nDELE f")}, model.Down, "control character"},
	} {
		for _, network := range []string{"127.0.0.1", "::1"} {
			t.Run(tc.name+" "+network, func(t *testing.T) {
				t.Parallel()
				reason := tc.reason
				if network == "::1" {
					reason = strings.Replace(reason, "PASV", "EPSV", 1)
				}
				opts := append([]func(*model.Target){application("ftp"), request("/f"), login("u", "p")}, tc.opts...)
				wantVerdict(t, target(scriptAt(t, network, tc.server.play), opts...), tc.status, reason)
			})
		}
	}
}

func TestFTPLogin(t *testing.T) {
	for _, tc := range []struct {
		name   string
		script []line
		opts   []func(*model.Target)
		status model.Status
		reason string
	}{
		{"right", ftpScript, []func(*model.Target){login("u", "p")}, model.Up, "logged in"},
		{"wrong", ftpScript, []func(*model.Target){login("u", "x")}, model.Down, "PASS: 530 Login incorrect."},
		{"no password asked for", []line{{"USER", "230 in\r\n"}}, []func(*model.Target){login("u", "p")}, model.Up, "logged in"},
		{"nobody may", []line{{"USER", "530 no\r\n"}}, []func(*model.Target){login("u", "p")}, model.Down, "USER: 530 no"},
		{"anonymous", []line{{"USER anonymous", "331 e-mail\r\n"}, {"PASS ldirectord@", "230 in\r\n"}}, nil, model.Up, "logged in"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			wantVerdict(t, target(script(t, scripted("220-hello\r\n all\r\n220 ready\r\n", tc.script, nil)), append(tc.opts, application("ftp"))...), tc.status, tc.reason)
		})
	}
}

func TestPorts(t *testing.T) {
	for want, a := range map[string]string{"PORT 10,0,0,1,4,210": "10.0.0.1:1234", "EPRT |2|fd00::1|1234|": "[fd00::1]:1234"} {
		if got := portCommand(netip.MustParseAddrPort(a)); got != want {
			t.Errorf("%s: %q, want %q", a, got, want)
		}
	}
	for text, want := range map[string]uint16{
		"227 Entering Passive Mode (127,0,0,1,4,210)": 1234, "227 =127,0,0,1,4,210": 1234,
		"227 (127,0,0,1,4,999)": 0, "227 (127,0,0,1,0,0)": 0, "227 ok": 0,
	} {
		if got, ok := pasvPort(text); got != want && ok || ok != (want != 0) {
			t.Errorf("%q: %d, %v, want %d", text, got, ok, want)
		}
	}
	for text, want := range map[string]uint16{"229 ok (|||1234|)": 1234, "229 (|||99999|)": 0, "229 (|||0|)": 0, "229": 0} {
		if got, ok := epsvPort(text); got != want && ok || ok != (want != 0) {
			t.Errorf("%q: %d, %v, want %d", text, got, ok, want)
		}
	}
}
