package model_test

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/batuta-ha/batuta/internal/model"
)

func TestTunnelsAreReadAsTheyAreWritten(t *testing.T) {
	for text, want := range map[string]model.Tunnel{
		"ipip":             {},
		"gue:6080":         {Kind: model.TunnelGUE, Port: 6080},
		"gue:6080:csum":    {Kind: model.TunnelGUE, Port: 6080, Checksum: model.TunnelSum},
		"gue:6080:remcsum": {Kind: model.TunnelGUE, Port: 6080, Checksum: model.TunnelRemoteChecksum},
		"gre":              {Kind: model.TunnelGRE},
		"gre:csum":         {Kind: model.TunnelGRE, Checksum: model.TunnelSum},
	} {
		if got, err := model.ParseTunnel(text); err != nil || got != want || got.String() != text {
			t.Errorf("%s: %+v %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "ipip:80", "gue", "gue:0", "gue:65536", "gue:x", "gre:remcsum", "gre:csum:csum", "sit"} {
		if got, err := model.ParseTunnel(bad); err == nil {
			t.Errorf("%q is taken for %+v", bad, got)
		}
	}
}

func TestSyncDaemonsOfOneArgument(t *testing.T) {
	got, err := model.ParseSyncDaemon("eth1,id=7,maxlen=1400,group=224.0.0.99,port=1234,ttl=3")
	want := model.SyncDaemon{Interface: "eth1", ID: 7, MaxLen: 1400, Group: netip.MustParseAddr("224.0.0.99"), Port: 1234, TTL: 3}
	if err != nil || got != want {
		t.Errorf("%+v %v", got, err)
	}
	got.Role = model.SyncBackup
	if text := "backup sync daemon (mcast=eth1, syncid=7, maxlen=1400, group=224.0.0.99, port=1234, ttl=3)"; got.String() != text {
		t.Errorf("got  %s\nwant %s", got, text)
	}
	for bad, want := range map[string]string{
		"":                        `sync daemon "": want INTERFACE[,id=N][,maxlen=N][,group=ADDRESS][,port=N][,ttl=N]`,
		"id=3":                    `sync daemon "id=3": want INTERFACE[,id=N][,maxlen=N][,group=ADDRESS][,port=N][,ttl=N]`,
		"eth1,id=256":             `sync daemon: id="256": want a number up to 255`,
		"eth1,group=10.0.0.1":     `sync daemon: group="10.0.0.1": want a multicast address`,
		"eth1,color=red":          `sync daemon: "color": want id, maxlen, group, port or ttl`,
		"an-interface-too-long-1": `sync daemon "an-interface-too-long-1": want INTERFACE[,id=N][,maxlen=N][,group=ADDRESS][,port=N][,ttl=N]`,
	} {
		if _, err := model.ParseSyncDaemon(bad); err == nil || err.Error() != want {
			t.Errorf("%q\ngot  %v\nwant %s", bad, err, want)
		}
	}
}

// What the API tells of a row is the whole of it.
func TestRowsOfIPVSAsJSON(t *testing.T) {
	type doc struct {
		Service  model.VirtualService
		Timeouts model.Timeouts
		Sync     []model.SyncDaemon
	}
	want := doc{
		Service: model.VirtualService{Key: model.ServiceKey{Proto: model.UDP, Addr: netip.MustParseAddrPort("10.0.0.1:5060")}, Scheduler: "rr", OnePacket: true,
			Persistence: model.Persistence{Enabled: true, Timeout: time.Minute, Engine: "sip"},
			Reals: []model.RealServer{{Addr: netip.MustParseAddrPort("10.0.1.1:5060"), Forward: model.IPIP, Weight: 1, Upper: 9, Lower: 2,
				Tunnel: model.Tunnel{Kind: model.TunnelGUE, Port: 6080, Checksum: model.TunnelSum}}}},
		Timeouts: model.Timeouts{TCP: 900 * time.Second, TCPFin: 120 * time.Second, UDP: 300 * time.Second},
		Sync:     []model.SyncDaemon{{Role: model.SyncMaster, Interface: "eth1", ID: 1}},
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got doc
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Errorf("%s (-want +got):\n%s", text, diff)
	}
}

func FuzzParseIPVSWords(f *testing.F) {
	f.Add("eth1,id=7,ttl=3")
	f.Add("gue:6080:csum")
	f.Fuzz(func(t *testing.T, s string) {
		_, _ = model.ParseSyncDaemon(s)
		if tunnel, err := model.ParseTunnel(s); err == nil {
			if again, err := model.ParseTunnel(tunnel.String()); err != nil || again != tunnel {
				t.Errorf("%q is %+v, then %+v (%v)", s, tunnel, again, err)
			}
		}
	})
}
