package cli

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

// decoded is one Heartbeat message of a capture. Names and meanings are part
// of the command line's contract.
type decoded struct {
	N           int         `json:"n"` // packet number in the capture, from 1
	Time        time.Time   `json:"time"`
	Src         string      `json:"src"`
	Dst         string      `json:"dst"`
	Encoding    string      `json:"encoding"`
	AuthOK      bool        `json:"auth_ok"`
	Auth        decodedAuth `json:"auth"`
	InnerAuthOK *bool       `json:"inner_auth_ok,omitempty"` // the signature in the auth field of a netstring packet
	Type        string      `json:"type"`
	Fields      fieldList   `json:"fields"`
}

type decodedAuth struct {
	Index  int    `json:"index"`
	Method string `json:"method"` // of the key with that index; "none" if there is none
}

// fieldList is a JSON object whose members keep their order on the wire. Of
// fields with the same name the first counts.
type fieldList []heartbeat.Field

// MarshalJSON writes strings as they are and everything else in hexadecimal.
func (l fieldList) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	seen := map[string]bool{}
	for _, f := range l {
		if seen[f.Name] {
			continue
		}
		seen[f.Name] = true
		if len(b) > 1 {
			b = append(b, ',')
		}
		value := f.Value
		if f.Type != heartbeat.FieldString {
			value = hex.EncodeToString([]byte(f.Value))
		}
		name, err := json.Marshal(f.Name)
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, name...), ':'), text...)
	}
	return append(b, '}'), nil
}

// DebugDecode prints the Heartbeat messages of a capture (pcap or pcapng) to
// w, one JSON object a line, whatever UDP port they use. Other packets are
// counted on errw. A capture that ends inside a packet is read up to there,
// with a word about it; the error is for files that are no capture.
func DebugDecode(w, errw io.Writer, pcap io.Reader, keys model.Keyring) error {
	auth, err := heartbeat.NewAuthenticator(keys)
	if err != nil {
		return err
	}
	source, link, err := openCapture(pcap)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	n, messages, other, malformed := 0, 0, 0, 0
	for {
		data, info, err := source.ReadPacketData()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			fmt.Fprintf(errw, "the capture ends early, after packet %d: %v\n", n, err)
			break
		}
		n++
		if len(info.AncillaryData) > 0 { // a pcapng file of several kinds of interfaces
			if l, ok := info.AncillaryData[0].(layers.LinkType); ok {
				link = l
			}
		}
		src, dst, payload, ok := udpPayload(data, link)
		if !ok || !looksLikeHeartbeat(payload) {
			other++
			continue
		}
		p, err := heartbeat.Parse(payload)
		if err != nil {
			malformed++
			fmt.Fprintf(errw, "packet %d, %s to %s: %v\n", n, src, dst, err)
			continue
		}
		messages++
		index, err := auth.Verify(&p) // first: what is encrypted can be read afterwards
		d := decoded{N: n, Time: info.Timestamp.UTC(), Src: src.String(), Dst: dst.String(), Encoding: p.Encoding.String(),
			Type: p.Get("t"), Fields: fieldList(p.Fields)}
		d.Auth.Index, d.Auth.Method, d.AuthOK = index, auth.Method(index).String(), err == nil
		if _, has := p.Lookup("auth"); has && p.Encoding == heartbeat.Netstring {
			good := auth.VerifyInner(&p) == nil
			d.InnerAuthOK = &good
		}
		if err := enc.Encode(d); err != nil {
			return err
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(errw, "%d packets: %d Heartbeat messages, %d malformed, %d others\n", n, messages, malformed, other)
	return nil
}

// packetReader is what pcapgo's two readers have in common.
type packetReader interface {
	ReadPacketData() ([]byte, gopacket.CaptureInfo, error)
}

func openCapture(r io.Reader) (packetReader, layers.LinkType, error) {
	b := bufio.NewReader(r)
	magic, err := b.Peek(4)
	if err != nil {
		return nil, 0, fmt.Errorf("not a packet capture: %w; want a pcap or pcapng file as tcpdump -w writes it", err)
	}
	if bytes.Equal(magic, []byte{0x0a, 0x0d, 0x0d, 0x0a}) {
		ng, err := pcapgo.NewNgReader(b, pcapgo.NgReaderOptions{WantMixedLinkType: true})
		if err != nil {
			return nil, 0, fmt.Errorf("not a readable pcapng file: %w", err)
		}
		return ng, layers.LinkTypeNull, nil // each packet says its own
	}
	classic, err := pcapgo.NewReader(b)
	if err != nil {
		return nil, 0, fmt.Errorf("not a packet capture: %w; want a pcap or pcapng file as tcpdump -w writes it", err)
	}
	// Some programs write more than they announce.
	classic.SetSnaplen(max(classic.Snaplen(), 256<<10))
	return classic, classic.LinkType(), nil
}

// udpPayload finds the UDP payload of a frame, through VLAN tags and either IP
// version. What an ICMP message quotes is no payload.
func udpPayload(data []byte, link layers.LinkType) (src, dst netip.AddrPort, payload []byte, ok bool) {
	pkt := gopacket.NewPacket(data, link, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	u, ok := pkt.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if !ok || pkt.NetworkLayer() == nil {
		return src, dst, nil, false
	}
	from, to := pkt.NetworkLayer().NetworkFlow().Endpoints()
	a, okA := netip.AddrFromSlice(from.Raw())
	b, okB := netip.AddrFromSlice(to.Raw())
	return netip.AddrPortFrom(a, uint16(u.SrcPort)), netip.AddrPortFrom(b, uint16(u.DstPort)), u.Payload, okA && okB
}

func looksLikeHeartbeat(b []byte) bool {
	return strings.HasPrefix(string(b[:min(len(b), 4)]), "###\n") || strings.HasPrefix(string(b[:min(len(b), 4)]), ">>>\n")
}
