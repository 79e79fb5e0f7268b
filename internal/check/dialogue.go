package check

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

const (
	lineLimit     = 8 << 10  // bytes of one line; RFC 5321 asks for 512, capabilities of IMAP servers take more
	dialogueLimit = 64 << 10 // bytes of all that a server says in one dialogue

	// dialogueSteps times the negotiate time-out is what a whole dialogue may
	// take: each step may take it once, but a server that is slow at every one
	// is not well.
	dialogueSteps = 3

	// partGrace is how long an answer to the last words is waited for. It
	// changes no verdict: servers log a connection that just breaks off.
	partGrace = 500 * time.Millisecond
)

// dialogue is a conversation with a server in lines of text. Each step, that
// is what is sent and the whole answer to it, has the step's time; all steps
// together have the time and the bytes of the dialogue.
type dialogue struct {
	lines
	ctx  context.Context // ends with the dialogue
	conn net.Conn
	step time.Duration
	at   string    // the step that is made now, for the reader of a reason
	end  time.Time // of its time
}

// lines reads a bounded number of lines of bounded length.
type lines struct {
	in   *bufio.Reader
	left *io.LimitedReader
}

func newLines(r io.Reader) lines {
	left := &io.LimitedReader{R: r, N: dialogueLimit}
	return lines{in: bufio.NewReaderSize(left, lineLimit), left: left}
}

// line reads one line, without its end. The last one may lack an end.
func (l lines) line() (string, error) {
	b, err := l.in.ReadSlice('\n')
	switch {
	case err == nil, errors.Is(err, io.EOF) && len(b) > 0 && l.left.N > 0:
		return strings.TrimRight(string(b), "\r\n"), nil
	case errors.Is(err, bufio.ErrBufferFull):
		return "", fmt.Errorf("a line of more than %d bytes", lineLimit)
	case errors.Is(err, io.EOF) && l.left.N <= 0:
		return "", errors.New("an answer without end")
	case errors.Is(err, io.EOF):
		return "", errors.New("connection closed by the server")
	}
	return "", err
}

// reply is an answer of the kind of SMTP, FTP and NNTP: a code of three
// digits and text. Its string is the first line.
type reply struct {
	code int
	text string
}

// ok tells a positive completion reply (RFC 959 section 4.2.1, RFC 5321
// section 4.2.1, RFC 3977 section 3.2).
func (r reply) ok() bool { return r.code/100 == 2 }

// asError is nil for a positive reply.
func (r reply) asError() error {
	if r.ok() {
		return nil
	}
	return errors.New(clean(r.text))
}

// reply reads an answer of one or several lines: "250-..." goes on until the
// line that begins with "250 " (RFC 959 section 4.2, RFC 5321 section 4.2.1).
func (l lines) reply() (reply, error) {
	first, err := l.line()
	if err != nil {
		return reply{}, err
	}
	r := reply{text: first}
	code, rest, ok := replyCode(first)
	if !ok {
		return r, fmt.Errorf("not an answer: %q", clean(first))
	}
	r.code = code
	for more := strings.HasPrefix(rest, "-"); more; {
		next, err := l.line()
		if err != nil {
			return r, err
		}
		c, rest, ok := replyCode(next)
		more = !ok || c != code || strings.HasPrefix(rest, "-")
	}
	return r, nil
}

// replyCode reads the three digits that a reply's line begins with.
func replyCode(line string) (code int, rest string, ok bool) {
	if len(line) < 3 || len(line) > 3 && line[3] != ' ' && line[3] != '-' {
		return 0, "", false
	}
	for _, c := range []byte(line[:3]) {
		if c < '0' || c > '9' {
			return 0, "", false
		}
		code = 10*code + int(c-'0')
	}
	return code, line[3:], code >= 100
}

// fromTheStart are the protocols that speak TLS from the first byte on.
var fromTheStart = []string{"imaps", "pops"}

// converse connects to a target and holds the dialogue that talk leads. talk
// returns what is to be said of a server that is up, or why it is down.
func converse(ctx context.Context, t model.Target, talk func(*dialogue) (string, error)) model.Verdict {
	return converseWithin(ctx, t, dialogueSteps*t.NegotiateTimeout, talk)
}

// converseWithin is converse with a time of its own for the whole dialogue.
func converseWithin(ctx context.Context, t model.Target, whole time.Duration, talk func(*dialogue) (string, error)) model.Verdict {
	if err := portOf(t); err != nil {
		return down(err.Error())
	}
	for _, s := range []string{t.Login, t.Password} {
		if strings.ContainsFunc(s, func(c rune) bool { return c < ' ' }) {
			return down("login or passwd contains a control character: it cannot be sent")
		}
	}
	within, cancel := context.WithTimeout(ctx, whole)
	defer cancel()
	d := &dialogue{ctx: within, step: t.NegotiateTimeout, at: "connect"}
	said, err := d.hold(t, talk)
	if err == nil {
		return up(clean(said))
	}
	limit := d.step
	if within.Err() != nil {
		limit = whole
	}
	v := failed(ctx, within, err, limit)
	if v.Status == model.Down && d.at != "connect" {
		v.Reason = d.at + ": " + v.Reason
	}
	return v
}

func (d *dialogue) hold(t model.Target, talk func(*dialogue) (string, error)) (string, error) {
	connecting, cancel := context.WithTimeout(d.ctx, d.step)
	defer cancel()
	conn, err := dial(connecting, t.Addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(d.ctx, func() { _ = conn.Close() })()
	d.use(conn)
	if t.TLS || slices.Contains(fromTheStart, t.Application) {
		if err := d.secure(t); err != nil {
			return "", err
		}
	}
	d.begin("greeting")
	return talk(d)
}

// use makes conn the dialogue's connection.
func (d *dialogue) use(conn net.Conn) {
	d.conn, d.lines = conn, newLines(conn)
}

// secure goes on with TLS: at once, or after the server agreed to STARTTLS.
// What it said after that and before the handshake would be taken for words of
// the verified server: that is refused (CVE-2011-0411).
func (d *dialogue) secure(t model.Target) error {
	if d.in.Buffered() > 0 {
		return errors.New("the server went on talking before the TLS handshake")
	}
	d.begin("TLS")
	conn, err := secure(d.ctx, d.conn, t)
	if err != nil {
		return err
	}
	d.use(conn)
	return nil
}

// begin starts a step's time.
func (d *dialogue) begin(step string) {
	d.at, d.end = step, time.Now().Add(d.step)
	if last, ok := d.ctx.Deadline(); ok && last.Before(d.end) {
		d.end = last
	}
	_ = d.conn.SetDeadline(d.end) // an error shows at the next read or write
}

// send begins a step with a line, which is named by its first word.
func (d *dialogue) send(line string) error {
	name, _, _ := strings.Cut(line, " ")
	d.begin(name)
	return d.write(line)
}

func (d *dialogue) write(line string) error {
	_, err := io.WriteString(d.conn, line+"\r\n")
	return err
}

// ask sends a line and reads the reply to it.
func (d *dialogue) ask(line string) (reply, error) {
	if err := d.send(line); err != nil {
		return reply{}, err
	}
	return d.reply()
}

// must wants a positive reply.
func (d *dialogue) must(r reply, err error) (reply, error) {
	if err == nil {
		err = r.asError()
	}
	return r, err
}

// part says goodbye and waits a moment for the server to close.
func (d *dialogue) part(word string) {
	if d.send(word) != nil {
		return
	}
	_ = d.conn.SetReadDeadline(time.Now().Add(min(d.step, partGrace)))
	_, _ = io.Copy(io.Discard, d.left)
}
