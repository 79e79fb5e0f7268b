package check

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// Packets of TNS, the protocol of Oracle's listeners. It is not published;
// these facts are what its clients and servers show on the wire. A packet is
// length (2 bytes), checksum (2), type (1), flags (1), checksum (2) and a body.
const (
	tnsHeader  = 8
	tnsConnect = 1
	tnsAccept  = 2
	tnsRefuse  = 4
	tnsRedir   = 5
	tnsResend  = 11

	tnsLimit   = 1 << 17 // bytes of one connection
	tnsResends = 3       // times that a listener may ask for the packet again

	// Errors that a listener names in a refusal: it does not know the
	// service, or the instance, of that name.
	tnsNoService = "12514"
	tnsNoSID     = "12505"
)

// negotiateOracle asks the listener for a connection to the database, first as
// a service name and then, if it knows none such, as an instance name (SID).
// The server is up if the listener hands the connection on. The query is not
// run and Login does not log in: that needs Oracle's own client. Without
// Database the listener itself is asked whether it is there.
// NegotiateTimeout covers everything.
func negotiateOracle(ctx context.Context, t model.Target) model.Verdict {
	if _, err := sqlSettings(t); err != nil {
		return down(err.Error())
	}
	for _, c := range t.Database {
		if c <= ' ' || c > '~' || strings.ContainsRune(`()="'\`, c) {
			return down(fmt.Sprintf("database=%q is no name of an Oracle service", t.Database))
		}
	}
	within, cancel := context.WithTimeout(ctx, t.NegotiateTimeout)
	defer cancel()
	names := []string{"SERVICE_NAME=" + t.Database, "SID=" + t.Database}
	if t.Database == "" {
		names = []string{"COMMAND=ping"}
	}
	var answer tnsAnswer
	for _, name := range names {
		var err error
		if answer, err = askTNS(within, t, name); err != nil {
			return failed(ctx, within, err, t.NegotiateTimeout)
		}
		if answer.code != tnsNoService {
			break
		}
	}
	const but = "; the query is not run"
	switch {
	case answer.kind == tnsAccept:
		return up("the listener accepts the connection to " + t.Database + but)
	case answer.kind == tnsRedir:
		return up("the listener sends on to an instance of " + t.Database + but)
	case t.Database == "" && answer.code == "0":
		return up("the listener answers" + but)
	case answer.code == tnsNoService, answer.code == tnsNoSID:
		return down(fmt.Sprintf("the listener knows no database %s (TNS-%s)", t.Database, answer.code))
	case answer.code != "":
		return down("the listener refuses the connection (TNS-" + answer.code + ")")
	}
	return down("the listener refuses the connection: " + clean(answer.text))
}

// tnsAnswer is what a listener said to a connect packet.
type tnsAnswer struct {
	kind byte
	text string // of a refusal or a redirection
	code string // the error number in a refusal, "" for none
}

// askTNS sends one connect packet, again if the listener wants that, and reads
// the answer.
func askTNS(ctx context.Context, t model.Target, name string) (tnsAnswer, error) {
	conn, err := open(ctx, t.Addr, tnsLimit)
	if err != nil {
		return tnsAnswer{}, err
	}
	defer conn.Close()
	packet := tnsConnectPacket(t, name)
	for range tnsResends + 1 {
		if _, err := conn.Write(packet); err != nil {
			return tnsAnswer{}, err
		}
		answer, err := readTNS(conn)
		if err != nil || answer.kind != tnsResend {
			return answer, err
		}
	}
	return tnsAnswer{}, fmt.Errorf("the listener asked %d times for the connect packet again", tnsResends+1)
}

// tnsConnectPacket asks for what name says, in the fewest words that
// listeners since Oracle 8 understand.
func tnsConnectPacket(t model.Target, name string) []byte {
	text := fmt.Sprintf("(DESCRIPTION=(CONNECT_DATA=(%s)(CID=(PROGRAM=batuta)(HOST=director)(USER=batuta)))(ADDRESS=(PROTOCOL=TCP)(HOST=%s)(PORT=%d)))",
		name, t.Addr.Addr().WithZone(""), t.Addr.Port())
	const dataAt = 58
	p := make([]byte, dataAt, dataAt+len(text))
	binary.BigEndian.PutUint16(p, uint16(dataAt+len(text)))
	p[4] = tnsConnect
	for at, v := range map[int]uint16{
		8:  313,    // version, and
		10: 300,    // the lowest that will do
		14: 0x2000, // size of a session data unit
		16: 0x7fff, // and of a transport data unit
		18: 0x860e, // line turnaround and the like, as clients send it
		22: 1,      // byte order: big endian
		24: uint16(len(text)),
		26: dataAt,
	} {
		binary.BigEndian.PutUint16(p[at:], v)
	}
	return append(p, text...)
}

var tnsCode = regexp.MustCompile(`\((?:ERR|CODE)=([0-9]{1,9})\)`)

// readTNS reads one packet of a listener.
func readTNS(r io.Reader) (tnsAnswer, error) {
	head := make([]byte, tnsHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return tnsAnswer{}, tnsFault(err)
	}
	size, answer := int(binary.BigEndian.Uint16(head)), tnsAnswer{kind: head[4]}
	if size < tnsHeader {
		return tnsAnswer{}, fmt.Errorf("not a TNS answer: a packet of %d bytes", size)
	}
	body := make([]byte, size-tnsHeader)
	if _, err := io.ReadFull(r, body); err != nil {
		return tnsAnswer{}, tnsFault(err)
	}
	switch answer.kind {
	case tnsAccept, tnsResend, tnsRedir:
		return answer, nil
	case tnsRefuse: // two reasons, the length of the text, the text
		if len(body) < 4 || len(body) < 4+int(binary.BigEndian.Uint16(body[2:])) {
			return tnsAnswer{}, errors.New("not a TNS answer: a refusal cut short")
		}
		answer.text = string(body[4 : 4+binary.BigEndian.Uint16(body[2:])])
		if m := tnsCode.FindStringSubmatch(answer.text); m != nil {
			answer.code = m[1]
		}
		return answer, nil
	}
	return tnsAnswer{}, fmt.Errorf("not a TNS answer: a packet of type %d", answer.kind)
}

func tnsFault(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("connection closed before a TNS answer was complete")
	}
	if _, ok := errors.AsType[net.Error](err); ok || errors.Is(err, errTooMuch) {
		return err
	}
	return fmt.Errorf("not a TNS answer: %w", err)
}
