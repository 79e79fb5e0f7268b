package check

import (
	"bytes"
	"crypto/md5"
	"strings"
	"testing"

	"layeh.com/radius"

	"github.com/batuta-ha/batuta/internal/model"
)

// replies signs an answer as a server with that secret does.
func replies(t testing.TB, request string, code radius.Code, secret, message string, signed bool) string {
	t.Helper()
	p, err := radius.Parse([]byte(request), []byte(secret))
	if err != nil {
		t.Error(err)
		return ""
	}
	answer := p.Response(code)
	if signed {
		answer.Add(radiusMessageAuthenticator, make(radius.Attribute, md5.Size))
	}
	if message != "" {
		answer.Add(radiusReplyMessage, radius.Attribute(message))
	}
	if signed { // over the packet with the request's authenticator
		plain, err := answer.MarshalBinary()
		if err != nil {
			t.Error(err)
		}
		answer.Set(radiusMessageAuthenticator, sign(plain, []byte(secret)))
	}
	b, err := answer.Encode()
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func forRADIUS(t *model.Target) {
	t.Application, t.Proto, t.Login, t.Password, t.Secret = "radius", model.UDP, "bob", "hello", "s3cret"
}

func TestRADIUSAnswers(t *testing.T) {
	for _, tc := range []struct {
		name   string
		play   func(q string) []string
		opts   []func(*model.Target)
		status model.Status
		reason string
	}{
		{"accepted", func(q string) []string { return []string{replies(t, q, radius.CodeAccessAccept, "s3cret", "", false)} }, nil, model.Up, "Access-Accept"},
		{"accepted and signed", func(q string) []string { return []string{replies(t, q, radius.CodeAccessAccept, "s3cret", "hi", true)} }, nil, model.Up, "Access-Accept"},
		{"padding is ignored", func(q string) []string {
			return []string{replies(t, q, radius.CodeAccessAccept, "s3cret", "", true) + "\x00\x00\x00"}
		}, nil, model.Up, "Access-Accept"},
		{"rejected", func(q string) []string {
			return []string{replies(t, q, radius.CodeAccessReject, "s3cret", "go\naway", true)}
		}, nil, model.Down, "Access-Reject: go?away"},
		{"challenged", func(q string) []string {
			return []string{replies(t, q, radius.CodeAccessChallenge, "s3cret", "", true)}
		}, nil, model.Down, "Access-Challenge"},
		{"of another secret", func(q string) []string { return []string{replies(t, q, radius.CodeAccessAccept, "other", "", true)} },
			[]func(*model.Target){short}, model.Down, "the server's secret is another one"},
		{"with a forged signature", func(q string) []string {
			p, _ := radius.Parse([]byte(q), []byte("s3cret"))
			a := p.Response(radius.CodeAccessAccept)
			a.Add(radiusMessageAuthenticator, make(radius.Attribute, md5.Size))
			b, _ := a.Encode()
			return []string{string(b)}
		}, []func(*model.Target){short}, model.Down, "the server's secret is another one"},
		{"garbage before the answer", func(q string) []string {
			return []string{"", "garbage", q, strings.Repeat("\x02", 20), replies(t, q, radius.CodeAccessAccept, "s3cret", "", true)}
		}, nil, model.Up, "Access-Accept"},
		{"silence", func(string) []string { return nil }, []func(*model.Target){short}, model.Down, "no answer within 100ms"},
		{"no secret", nil, []func(*model.Target){func(t *model.Target) { t.Secret = "" }}, model.Down, "no secret"},
		{"too long a password", nil, []func(*model.Target){func(t *model.Target) { t.Password = strings.Repeat("x", 200) }}, model.Down, "passwd: "},
		{"too long a name", nil, []func(*model.Target){func(t *model.Target) { t.Login = strings.Repeat("x", 300) }}, model.Down, "login: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v := Perform(t.Context(), negotiateRADIUS, target(datagrams(t, tc.play), append([]func(*model.Target){forRADIUS}, tc.opts...)...))
			if v.Status != tc.status || !strings.Contains(v.Reason, tc.reason) {
				t.Errorf("verdict %v, want %v: ...%s...", v, tc.status, tc.reason)
			}
		})
	}
}

// The request carries what RFC 2865 and RFC 3579 want, by their rules.
func TestRADIUSRequest(t *testing.T) {
	_, packed, err := radiusRequest(target("127.0.0.1:1812", forRADIUS))
	if err != nil {
		t.Fatal(err)
	}
	p, err := radius.Parse(packed, []byte("s3cret"))
	if err != nil {
		t.Fatal(err)
	}
	if p.Attributes[0].Type != radiusMessageAuthenticator {
		t.Errorf("the first attribute is %d, want the Message-Authenticator", p.Attributes[0].Type)
	}
	password, err := radius.UserPassword(p.Get(radiusUserPassword), p.Secret, p.Authenticator[:])
	if name := string(p.Get(radiusUserName)); name != "bob" || string(password) != "hello" || err != nil {
		t.Errorf("%q logs in with %q, %v", name, password, err)
	}
	if a := p.Get(radiusNASAddress); !bytes.Equal(a, []byte{127, 0, 0, 1}) {
		t.Errorf("NAS-IP-Address %v", a)
	}
	want := bytes.Clone(packed)
	clear(want[22:38])
	if !bytes.Equal(packed[22:38], sign(want, p.Secret)) {
		t.Error("the Message-Authenticator is not the HMAC of the packet")
	}
}

func FuzzRADIUSAnswer(f *testing.F) {
	request, packed, err := radiusRequest(model.Target{Login: "bob", Password: "hello", Secret: "s3cret", Addr: target("127.0.0.1:1812").Addr})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(replies(f, string(packed), radius.CodeAccessAccept, "s3cret", "", true)))
	f.Add([]byte(replies(f, string(packed), radius.CodeAccessReject, "s3cret", "no", false)))
	f.Fuzz(func(t *testing.T, b []byte) {
		// The MD5 of the answer is made right, or nothing behind it is reached.
		if len(b) >= radiusHeader {
			b = bytes.Clone(b)
			b[1] = request.Identifier
			h := md5.New()
			h.Write(b[:4])
			h.Write(request.Authenticator[:])
			h.Write(b[radiusHeader:])
			h.Write(request.Secret)
			h.Sum(b[:4])
		}
		if p, ok := readRADIUS(b, request, packed); ok && p.Identifier != request.Identifier {
			t.Error("an answer to something else was taken")
		}
	})
}
