package messenger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/story"
)

const captures = "../heartbeat/testdata/"

// recording is a capture of two real daemons and what is known about it.
type recording struct {
	Auth      map[string][2]string `json:"auth"`
	Deadtime  int                  `json:"deadtime_ms"`
	Keepalive int                  `json:"keepalive_ms"`
	Initdead  int                  `json:"initdead_ms"`
	Pings     []string             `json:"ping_nodes"`
	Partial   bool                 `json:"partial"`
	Nodes     map[string]string    `json:"nodes"` // addresses

	packets []captured
	uuid    map[string]string
}

type captured struct {
	at   time.Time
	src  string
	to   string // the one node that hears it; "" for all
	data []byte
}

func recordings(t *testing.T) map[string]*recording {
	t.Helper()
	b, err := os.ReadFile(captures + "vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*recording{}
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	for name, r := range all {
		f, err := os.Open(captures + name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		source, err := pcapgo.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		r.uuid = map[string]string{}
		for pkt := range gopacket.NewPacketSource(source, source.LinkType()).Packets() {
			if echo, ok := pkt.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok && echo.TypeCode.Type() == layers.ICMPv4TypeEchoReply {
				ip := pkt.NetworkLayer().(*layers.IPv4)
				for node, address := range r.Nodes {
					if address == ip.DstIP.String() {
						r.packets = append(r.packets, captured{pkt.Metadata().Timestamp, ip.SrcIP.String(), node, echo.Payload})
					}
				}
				continue
			}
			u, ok := pkt.Layer(layers.LayerTypeUDP).(*layers.UDP)
			if !ok {
				continue
			}
			p, err := heartbeat.Parse(u.Payload)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			r.packets = append(r.packets, captured{pkt.Metadata().Timestamp, p.Get("src"), "", u.Payload})
			r.uuid[p.Get("src")] = p.Get("srcuuid")
		}
	}
	return all
}

// play makes a core that takes the part of one node of the recording.
func (r *recording) play(t *testing.T, self string) (*Core, *refuser) {
	t.Helper()
	hb := model.Heartbeat{Self: model.NodeName(self), Nodes: []model.NodeName{"hb-a", "hb-b"},
		Keys:      model.Keyring{Send: 1, Keys: map[int]model.AuthKey{}},
		Keepalive: time.Duration(r.Keepalive) * time.Millisecond, DeadTime: time.Duration(r.Deadtime) * time.Millisecond,
		InitDead: time.Duration(r.Initdead) * time.Millisecond, WarnTime: 3 * time.Second,
		MaxRexmitDelay: 250 * time.Millisecond, HopFudge: 1, InnerAuth: true}
	hb.DeadPing = hb.DeadTime
	for _, host := range r.Pings {
		hb.Media = append(hb.Media, model.Medium{Kind: model.Ping, Name: host})
	}
	for index, k := range r.Auth {
		i, _ := strconv.Atoi(index)
		hb.Keys.Keys[i] = model.AuthKey{Method: map[string]model.AuthMethod{"crc": model.AuthCRC, "md5": model.AuthMD5, "sha1": model.AuthSHA1}[k[0]], Secret: k[1]}
	}
	c, err := NewCore(heartbeat.Config{Heartbeat: hb, Generation: 1_795_000_000, UUID: [16]byte([]byte(r.uuid[self])), Rand: rand.New(rand.NewPCG(1, 2))})
	if err != nil {
		t.Fatal(err)
	}
	auth, err := heartbeat.NewAuthenticator(hb.Keys)
	if err != nil {
		t.Fatal(err)
	}
	return c, &refuser{t: t, auth: auth, self: self, sent: map[string][]byte{}}
}

// refuser is the strictest receiver that the specification describes: it
// fails the test on anything that a real daemon would drop or misread.
type refuser struct {
	t    *testing.T
	auth *heartbeat.Authenticator
	self string
	seq  uint64
	hg   string
	sent map[string][]byte // by number
}

func (r *refuser) take(data []byte) {
	r.t.Helper()
	p, err := heartbeat.Parse(data)
	if err != nil {
		r.t.Fatalf("sent: %v", err)
	}
	if _, err := r.auth.Verify(&p); err != nil {
		r.t.Errorf("sent: %v", err)
	}
	if err := r.auth.VerifyInner(&p); err != nil {
		r.t.Errorf("sent: inner signature: %v", err)
	}
	typ := p.Get("t")
	number := func(name string, base int) uint64 {
		n, err := strconv.ParseUint(p.Get(name), base, 32)
		if err != nil || n == 0 || strings.ToLower(p.Get(name)) != p.Get(name) || p.Get(name)[0] == '0' {
			r.t.Errorf("sent: %s with %s=%q", typ, name, p.Get(name))
		}
		return n
	}
	number("ts", 16)
	number("hg", 16)
	number("ttl", 10)
	if p.Get("src") != r.self || len(p.Get("srcuuid")) != 16 || typ == "" || r.hg != "" && p.Get("hg") != r.hg {
		r.t.Errorf("sent: %s from %q in generation %s", typ, p.Get("src"), p.Get("hg"))
	}
	r.hg = p.Get("hg")
	if len(data) > 1400 {
		r.t.Errorf("sent: %s of %d bytes", typ, len(data))
	}
	if strings.HasPrefix(typ, "NS_") {
		if _, has := p.Lookup("seq"); has || p.Get("dest") == "" {
			r.t.Errorf("sent: %s with seq=%q dest=%q", typ, p.Get("seq"), p.Get("dest"))
		}
		return
	}
	seq := number("seq", 16)
	if before, again := r.sent[p.Get("seq")]; again {
		if !bytes.Equal(before, data) {
			r.t.Errorf("number %d was sent twice with different bytes", seq)
		}
		return
	}
	if seq != r.seq+1 {
		r.t.Errorf("number %d was sent after %d", seq, r.seq)
	}
	r.seq, r.sent[p.Get("seq")] = seq, data
	if typ == "status" && (p.Get("protocol") != "1" || number("dt", 16) < 1000 || model.ParseNodeState(p.Get("st")) == model.NodeUnknown) {
		r.t.Errorf("sent: status %+v", p.Fields)
	}
}

// The packets of a real daemon, at the times of the capture, make Batuta see
// what the daemon's own peer saw: who joins, dies, restarts and returns. What
// Batuta says meanwhile is acceptable to a daemon. Times are seconds from the
// first packet; compare with the events in vectors.json.
func TestReplay(t *testing.T) {
	var got strings.Builder
	all := recordings(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		r := all[name]
		if r.Partial {
			continue
		}
		for _, self := range []string{"hb-a", "hb-b"} {
			fmt.Fprintf(&got, "%s as %s\n", name, self)
			core, real := r.play(t, self)
			first := r.packets[0].at
			take := func(out Output) {
				for _, d := range out.Datagrams {
					real.take(d)
				}
				for _, e := range out.Events {
					if e.Kind == model.LinkChanged || e.Kind == model.MessageReceived && e.Message.Type != "status" {
						continue
					}
					fmt.Fprintf(&got, "  %7.3f %s\n", e.At.Sub(first).Seconds(), eventText(e))
				}
			}
			take(core.Start(first))
			for _, p := range r.packets {
				for next := core.Next(); next.Before(p.at); next = core.Next() {
					take(core.Tick(next))
				}
				if p.src != self && (p.to == "" || p.to == self) {
					take(core.Receive(p.at, "eth0", p.data, p.at))
				}
			}
			for end := r.packets[len(r.packets)-1].at.Add(8 * time.Second); core.Next().Before(end); {
				take(core.Tick(core.Next()))
			}
			if n := core.Counters(); n.Bad+n.Unknown > 0 || n.Received == 0 {
				t.Errorf("%s as %s: %+v", name, self, n)
			}
		}
	}
	story.Golden(t, "testdata/replay.txt", got.String())
}
