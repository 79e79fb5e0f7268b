package heartbeat

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/batuta-ha/batuta/internal/model"
)

// vector is what vectors.json says of one capture of real daemons.
type vector struct {
	Auth map[string][2]string `json:"auth"`
}

func vectors(t testing.TB) map[string]vector {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	v := map[string]vector{}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v vector) ring(t testing.TB) model.Keyring {
	t.Helper()
	r := model.Keyring{Keys: map[int]model.AuthKey{}}
	for index, k := range v.Auth {
		i, err := strconv.Atoi(index)
		if err != nil {
			t.Fatal(err)
		}
		r.Send = i
		r.Keys[i] = model.AuthKey{Method: map[string]model.AuthMethod{"crc": model.AuthCRC, "md5": model.AuthMD5, "sha1": model.AuthSHA1}[k[0]], Secret: k[1]}
	}
	return r
}

// frame is one UDP payload of a capture, or that of an echo to a ping node.
type frame struct {
	at   time.Time
	data []byte
}

func frames(t testing.TB, file string) (out []frame) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for pkt := range gopacket.NewPacketSource(r, r.LinkType()).Packets() {
		if u, ok := pkt.Layer(layers.LayerTypeUDP).(*layers.UDP); ok && pkt.Layer(layers.LayerTypeICMPv4) == nil {
			out = append(out, frame{pkt.Metadata().Timestamp, u.Payload})
		}
		if e, ok := pkt.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok && (e.TypeCode.Type() == layers.ICMPv4TypeEchoRequest || e.TypeCode.Type() == layers.ICMPv4TypeEchoReply) {
			out = append(out, frame{pkt.Metadata().Timestamp, e.Payload})
		}
	}
	return out
}

// Every packet that a real daemon sent is understood, proves genuine by both
// of its signatures, and comes out identical when written again and when
// signed again.
func TestCaptures(t *testing.T) {
	captures, err := filepath.Glob("testdata/*.pcap")
	if err != nil || len(captures) < 11 {
		t.Fatalf("captures are missing: %v %v", captures, err)
	}
	known := vectors(t)
	for _, file := range captures {
		t.Run(filepath.Base(file), func(t *testing.T) {
			ring := known[filepath.Base(file)].ring(t)
			auth, err := NewAuthenticator(ring)
			if err != nil {
				t.Fatal(err)
			}
			n, inner := 0, 0
			for i, f := range frames(t, file) {
				p, err := Parse(f.data)
				if err != nil {
					t.Fatalf("packet %d: %v", i, err)
				}
				n++
				index, err := auth.Verify(&p)
				if err != nil {
					t.Errorf("packet %d: %v", i, err)
				}
				if diff := cmp.Diff(string(f.data), string(p.Append(nil))); diff != "" {
					t.Errorf("packet %d differs when written again (-captured +written):\n%s", i, diff)
				}
				_, signed := p.Lookup("auth")
				own := p.Fields
				if signed {
					inner++
					if err := auth.VerifyInner(&p); err != nil {
						t.Errorf("packet %d: inner signature: %v", i, err)
					}
					own = own[:len(own)-1]
				}
				if again := auth.Seal(nil, p.Encoding, own, signed, index); !bytes.Equal(again, f.data) {
					t.Errorf("packet %d differs when signed again (-captured +signed):\n%s", i, cmp.Diff(string(f.data), string(again)))
				}
			}
			if n < 50 || inner == 0 {
				t.Errorf("only %d packets, %d with inner signature: is this the capture?", n, inner)
			}
		})
	}
}

// A serial line carries the text encoding, without the NUL that UDP adds.
func TestSerialCapture(t *testing.T) {
	raw, err := os.ReadFile("testdata/serial-md5-text-encoding.txt")
	if err != nil {
		t.Fatal(err)
	}
	auth, err := NewAuthenticator(model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthMD5, Secret: "123456"}}})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for part := range bytes.SplitAfterSeq(raw, []byte(textEnd)) {
		if !bytes.HasSuffix(part, []byte(textEnd)) {
			continue // the recording ends inside a message
		}
		p, err := Parse(part)
		if err != nil {
			t.Fatalf("message %d: %v", n, err)
		}
		if _, err := auth.Verify(&p); err != nil {
			t.Errorf("message %d: %v", n, err)
		}
		if diff := cmp.Diff(string(part)+"\x00", string(p.Append(nil))); diff != "" {
			t.Errorf("message %d (-captured +written):\n%s", n, diff)
		}
		if uuid := p.Get("srcuuid"); len(uuid) != 16 {
			t.Errorf("message %d: uuid of %d bytes", n, len(uuid))
		}
		n++
	}
	if n < 10 {
		t.Errorf("only %d messages", n)
	}
}
