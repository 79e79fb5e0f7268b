package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/batuta-ha/batuta/internal/model"
)

const captures = "../heartbeat/testdata/"

func md5Ring(secret string) model.Keyring {
	return model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthMD5, Secret: secret}}}
}

// decode runs DebugDecode and returns the objects and the last line of stderr.
func decode(t *testing.T, capture []byte, keys model.Keyring) ([]map[string]any, string) {
	t.Helper()
	var out, errs bytes.Buffer
	if err := DebugDecode(&out, &errs, bytes.NewReader(capture), keys); err != nil {
		t.Fatal(err)
	}
	var objects []map[string]any
	for line := range strings.Lines(out.String()) {
		o := map[string]any{}
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		objects = append(objects, o)
	}
	lines := strings.Split(strings.TrimSpace(errs.String()), "\n")
	return objects, lines[len(lines)-1]
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(captures + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDebugDecode(t *testing.T) {
	capture := read(t, "bcast-md5-one-node-alone-then-second-joins.pcap")
	got, summary := decode(t, capture, md5Ring("123456"))
	if summary != "170 packets: 150 Heartbeat messages, 0 malformed, 20 others" {
		t.Errorf("summary: %s", summary)
	}
	want := map[string]any{
		"n": 1.0, "time": "2026-11-22T15:06:34.00694Z", "src": "10.77.0.1:49705", "dst": "10.77.0.255:694",
		"encoding": "netstring", "auth_ok": true, "auth": map[string]any{"index": 1.0, "method": "md5"}, "inner_auth_ok": true, "type": "NS_ackmsg",
		"fields": map[string]any{"t": "NS_ackmsg", "dest": "hb-a", "ackseq": "1", "destuuid": "7e7c3795019d4505b13c4c0e0e36dc84", "src": "hb-a",
			"srcuuid": "7e7c3795019d4505b13c4c0e0e36dc84", "hg": "6b0304fa", "ts": "6b0304fa", "ttl": "3", "auth": "1 1ee10f18106cefec1716dab593d4369a"},
	}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("first message (-want +got):\n%s", diff)
	}
	for _, o := range got {
		if o["auth_ok"] != true || o["inner_auth_ok"] != true {
			t.Errorf("packet %v is not accepted", o["n"])
		}
	}

	got, _ = decode(t, capture, md5Ring("wrong"))
	if got[0]["auth_ok"] != false {
		t.Error("a wrong key is accepted")
	}
}

// Echo requests to a ping node carry Heartbeat messages, but are ICMP.
func TestDebugDecodeCountsOthers(t *testing.T) {
	got, summary := decode(t, read(t, "mcast-crc-ping-node.pcap"), model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthCRC}}})
	for _, o := range got {
		if o["type"] == "NS_st" {
			t.Fatalf("packet %v is an ICMP packet", o["n"])
		}
	}
	t.Log(summary)
}

// A capture cut off in the middle of a packet is good up to there.
func TestDebugDecodeTruncated(t *testing.T) {
	capture := read(t, "bcast-md5-one-node-alone-then-second-joins.pcap")
	got, summary := decode(t, capture[:5000], md5Ring("123456"))
	if len(got) < 5 || !strings.HasPrefix(summary, "1") {
		t.Errorf("%d messages; %s", len(got), summary)
	}
	var out, errs bytes.Buffer
	if err := DebugDecode(&out, &errs, strings.NewReader("node a\n"), md5Ring("x")); err == nil || !strings.Contains(err.Error(), "not a packet capture") {
		t.Errorf("a text file: %v", err)
	}
}

// The same packets in every form of file, with VLAN tags and over IPv6.
func TestDebugDecodeForms(t *testing.T) {
	payload := []byte(">>>\nt=status\nsrc=a\nauth=1 " + "00" + "\n<<<\n\x00")
	when := time.Date(2026, 11, 22, 15, 0, 0, 123456789, time.UTC)
	ipv4 := frame(t, payload,
		&layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: layers.EthernetTypeDot1Q},
		&layers.Dot1Q{VLANIdentifier: 7, Type: layers.EthernetTypeIPv4},
		&layers.IPv4{Version: 4, TTL: 1, Protocol: layers.IPProtocolUDP, SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}})
	ipv6 := frame(t, payload,
		&layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: layers.EthernetTypeIPv6},
		&layers.IPv6{Version: 6, HopLimit: 1, NextHeader: layers.IPProtocolUDP, SrcIP: net6(1), DstIP: net6(2)})
	forms := map[string]func(*bytes.Buffer) packetWriter{
		"microseconds": func(b *bytes.Buffer) packetWriter { w := pcapgo.NewWriter(b); return header(t, w) },
		"nanoseconds":  func(b *bytes.Buffer) packetWriter { w := pcapgo.NewWriterNanos(b); return header(t, w) },
		"pcapng": func(b *bytes.Buffer) packetWriter {
			w, err := pcapgo.NewNgWriter(b, layers.LinkTypeEthernet)
			if err != nil {
				t.Fatal(err)
			}
			return w
		},
	}
	for name, open := range forms {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			w := open(&b)
			for _, f := range [][]byte{ipv4, ipv6} {
				if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: when, CaptureLength: len(f), Length: len(f)}, f); err != nil {
					t.Fatal(err)
				}
			}
			if ng, ok := w.(*pcapgo.NgWriter); ok {
				if err := ng.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			got, _ := decode(t, b.Bytes(), md5Ring("x"))
			if len(got) != 2 {
				t.Fatalf("%d messages of 2", len(got))
			}
			if got[0]["src"] != "10.0.0.1:1000" || got[1]["dst"] != "[fe80::2]:694" || got[1]["encoding"] != "text" || got[0]["auth_ok"] != false {
				t.Errorf("decoded: %v", got)
			}
			if at := got[0]["time"].(string); !strings.HasPrefix(at, "2026-11-22T15:00:00.123456") {
				t.Errorf("time %s", at)
			}
		})
	}
}

type packetWriter interface {
	WritePacket(gopacket.CaptureInfo, []byte) error
}

func header(t *testing.T, w *pcapgo.Writer) packetWriter {
	t.Helper()
	if err := w.WriteFileHeader(65536, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	return w
}

func net6(last byte) []byte {
	a := make([]byte, 16)
	a[0], a[1], a[15] = 0xfe, 0x80, last
	return a
}

func frame(t *testing.T, payload []byte, below ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	all := append(below, &layers.UDP{SrcPort: 1000, DstPort: 694}, gopacket.Payload(payload))
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, all...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// FuzzDebugDecode: a file is a capture or it is not; nothing in it ends the program.
func FuzzDebugDecode(f *testing.F) {
	b, err := os.ReadFile(captures + "bcast-md5-refused-retransmission.pcap")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:2000])
	f.Add([]byte("\x0a\x0d\x0d\x0a\x1c\x00\x00\x00\x4d\x3c\x2b\x1a\x01\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x1c\x00\x00\x00"))
	f.Fuzz(func(_ *testing.T, capture []byte) {
		var out, errs bytes.Buffer
		_ = DebugDecode(&out, &errs, bytes.NewReader(capture), md5Ring("123456"))
	})
}
