package alert

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	gomail "github.com/wneessen/go-mail"

	"github.com/batuta-ha/batuta/internal/model"
)

// Limits of a Mailer.
const (
	maxWaiting   = 500              // messages for one relay; the oldest of more are dropped
	attempts     = 4                // to send one message
	firstRest    = 2 * time.Second  // after an attempt that failed; doubled each time
	sessionLimit = 30 * time.Second // for one attempt
)

// sendmailPaths is where the local mail program is looked for.
var sendmailPaths = []string{"/usr/sbin/sendmail", "/usr/lib/sendmail", "/sbin/sendmail", "/usr/bin/sendmail"}

// Options say who sends and who hears of failures.
type Options struct {
	Identity Identity   // zero: LocalIdentity
	Sink     model.Sink // hears of mails that could not be sent; nil for nobody
	Port     int        // of relays; 0 for 25
	Sendmail string     // the local mail program; "" to look for it
}

// Mailer sends messages. Its methods may be called from any goroutine.
type Mailer struct {
	o      Options
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	queues map[string]*queue // by relay
	wg     sync.WaitGroup
}

// queue is what waits for one relay. A goroutine works on it while it is not
// empty.
type queue struct {
	relay   string
	waiting []Message
	working bool
	dropped int
	hurry   chan struct{} // closed when there is no time left to rest
}

// New makes a mailer; end it with Close.
func New(o Options) *Mailer {
	if o.Identity == (Identity{}) {
		o.Identity = LocalIdentity()
	}
	if o.Sink == nil {
		o.Sink = func(model.Event) {}
	}
	if o.Port == 0 {
		o.Port = gomail.DefaultPort
	}
	m := &Mailer{o: o, queues: map[string]*queue{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// Send queues a message and returns at once.
func (m *Mailer) Send(msg Message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	q := m.queues[msg.Relay]
	if q == nil {
		q = &queue{relay: msg.Relay, hurry: make(chan struct{})}
		m.queues[msg.Relay] = q
	}
	if len(q.waiting) >= maxWaiting {
		q.waiting = q.waiting[1:]
		q.dropped++
	}
	q.waiting = append(q.waiting, msg)
	if !q.working {
		q.working = true
		m.wg.Go(func() { m.work(q) })
	}
}

// Close takes no more messages, gives those that wait until ctx ends, and
// returns when nothing runs any more.
func (m *Mailer) Close(ctx context.Context) {
	m.mu.Lock()
	if !m.closed {
		m.closed = true
		for _, q := range m.queues {
			close(q.hurry)
		}
	}
	m.mu.Unlock()
	stop := context.AfterFunc(ctx, m.cancel)
	defer stop()
	m.wg.Wait()
	m.cancel()
}

// work sends what waits, in order, and ends.
func (m *Mailer) work(q *queue) {
	for {
		m.mu.Lock()
		if len(q.waiting) == 0 {
			q.working = false
			m.mu.Unlock()
			return
		}
		msg := q.waiting[0]
		q.waiting = q.waiting[1:]
		dropped := q.dropped
		q.dropped = 0
		m.mu.Unlock()
		if dropped > 0 {
			m.tell(msg, fmt.Sprintf("%d mails for %s were dropped: too many were waiting", dropped, relayName(q.relay)))
		}
		if err := m.deliver(q, msg); err != nil {
			m.tell(msg, fmt.Sprintf("emailalert: the mail %q to %s was not sent: %v", msg.Subject, msg.To, err))
		}
	}
}

func relayName(relay string) string {
	if relay == "" {
		return "the local mail program"
	}
	return "smtp=" + relay
}

func (m *Mailer) tell(msg Message, text string) {
	m.o.Sink(model.Event{At: time.Now(), Level: model.LevelWarning, Source: "alert", Kind: "mail-failed", Subject: msg.Instance, Text: text})
}

// permanent is an error that another attempt cannot mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// deliver sends one message, again after a rest where that may help.
func (m *Mailer) deliver(q *queue, msg Message) (err error) {
	rest := firstRest
	for n := 1; ; n++ {
		if err = m.attempt(msg); err == nil {
			return nil
		}
		if _, ok := errors.AsType[permanent](err); ok || n == attempts {
			return err
		}
		t := time.NewTimer(rest)
		select {
		case <-t.C:
		case <-q.hurry:
			t.Stop()
			return err
		}
		rest *= 2
	}
}

func (m *Mailer) attempt(msg Message) error {
	out, err := msg.compose(m.o.Identity, time.Now())
	if err != nil {
		return permanent{err}
	}
	ctx, cancel := context.WithTimeout(m.ctx, sessionLimit)
	defer cancel()
	if msg.Relay == "" {
		program, err := m.sendmail()
		if err != nil {
			return permanent{err}
		}
		return out.WriteToSendmailWithContext(ctx, program, "-f", m.o.Identity.Address())
	}
	err = m.relay(ctx, msg.Relay, out)
	e, ok := errors.AsType[*gomail.SendError](err)
	if !ok || e.IsTemp() || e.ErrorCode() < 500 {
		return err
	}
	if to := msg.recipients(); e.Reason == gomail.ErrSMTPRcptTo && len(to) > 1 {
		return m.each(ctx, msg, to)
	}
	return permanent{err}
}

// each sends a message to one recipient at a time: one of them was refused,
// and the others are not to go without.
func (m *Mailer) each(ctx context.Context, msg Message, to []string) error {
	var all error
	for _, one := range to {
		msg.To = one
		out, err := msg.compose(m.o.Identity, time.Now())
		if err == nil {
			err = m.relay(ctx, msg.Relay, out)
		}
		if err != nil {
			all = errors.Join(all, fmt.Errorf("to %s: %w", one, err))
		}
	}
	if all != nil {
		return permanent{all} // the others have theirs: once is enough
	}
	return nil
}

// relay hands a mail to a relay, in the clear where its TLS does not work: as
// mail servers among themselves do.
func (m *Mailer) relay(ctx context.Context, relay string, out *gomail.Msg) error {
	err := m.smtp(ctx, relay, out, gomail.TLSOpportunistic)
	if tlsError(err) {
		err = m.smtp(ctx, relay, out, gomail.NoTLS)
	}
	return err
}

// smtp makes one session: TLS where the relay offers it, whoever it is. A mail
// in the clear would be the alternative, so its certificate is not looked at
// (opportunistic security, RFC 7435).
func (m *Mailer) smtp(ctx context.Context, relay string, out *gomail.Msg, policy gomail.TLSPolicy) error {
	c, err := gomail.NewClient(relay, gomail.WithPort(m.o.Port), gomail.WithHELO(m.o.Identity.Host),
		gomail.WithTimeout(sessionLimit), gomail.WithTLSPolicy(policy),
		gomail.WithDialContextFunc(func(_ context.Context, network, addr string) (net.Conn, error) { return dial(ctx, network, addr) }),
		gomail.WithTLSConfig(&tls.Config{InsecureSkipVerify: true})) //nolint:gosec // see above
	if err != nil {
		return permanent{err}
	}
	return c.DialAndSendWithContext(ctx, out)
}

// dial connects to a relay. The connection ends with ctx, whatever the relay
// does: a session has no patience of its own.
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = c.Close() })
	return c, nil
}

// tlsError tells whether a session failed at its encryption.
func tlsError(err error) bool {
	if err == nil {
		return false
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return true
	}
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok
}

// sendmail finds the local mail program.
func (m *Mailer) sendmail() (string, error) {
	if m.o.Sendmail != "" {
		return m.o.Sendmail, nil
	}
	for _, p := range sendmailPaths {
		if i, err := os.Stat(p); err == nil && !i.IsDir() && i.Mode()&0o111 != 0 {
			return p, nil
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", errors.New("this machine has no sendmail program: install one, or name a relay with smtp=HOST")
}
