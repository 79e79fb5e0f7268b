// Package alert sends e-mail alerts. Messages come in and are queued at once;
// they go out by SMTP to a relay, or through this machine's own sendmail
// program, one after the other for each. It decides nothing about what is
// worth a mail, never holds up the caller, and keeps no more than a bounded
// number of messages for a relay that does not answer.
package alert

import (
	"fmt"
	"net/mail"
	"os"
	"os/user"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"
)

// Message is one alert, as the director words it.
type Message struct {
	To       string // one address, or several between commas
	From     string // for the From line; "" for Identity
	Relay    string // host that takes the mail on port 25; "" for this machine's sendmail program
	Subject  string
	Status   string // of the director: starting, running, stopping, reloading
	Service  string // servicename, "" for none
	Comment  string
	Instance string // name of the director, for events about this mail
	Text     string // the whole body; "" for ldirectord's
}

// Identity is who sends: the local user at this host.
type Identity struct{ User, Host string }

// LocalIdentity finds out who this process is.
func LocalIdentity() Identity {
	id := Identity{User: "root", Host: "localhost"}
	if u, err := user.Current(); err == nil && u.Username != "" {
		id.User = u.Username
	}
	if h, err := os.Hostname(); err == nil && h != "" {
		id.Host = h
	}
	return id
}

// Address is USER@HOST, the sender of the envelope.
func (id Identity) Address() string { return id.User + "@" + id.Host }

// Body is the text of a message: Text, or what ldirectord writes, word for word.
func (m Message) Body(id Identity) string {
	if m.Text != "" {
		return m.Text
	}
	b := new(strings.Builder)
	fmt.Fprintf(b, "ldirectord host: %s\nLog-Message: %s\nDaemon-Status: %s\n", id.Host, m.Subject, m.Status)
	if m.Service != "" || m.Comment != "" {
		b.WriteByte('\n')
	}
	if m.Service != "" {
		fmt.Fprintf(b, "Service name: %s\n", m.Service)
	}
	if m.Comment != "" {
		fmt.Fprintf(b, "Comment: %s\n", m.Comment)
	}
	return b.String()
}

// compose makes the mail. Recipients without a host are of this host. The
// error names the address that is none.
func (m Message) compose(id Identity, now time.Time) (*gomail.Msg, error) {
	out := gomail.NewMsg(gomail.WithNoDefaultUserAgent(), gomail.WithEncoding(gomail.EncodingQP))
	if err := out.EnvelopeFrom(id.Address()); err != nil {
		return nil, fmt.Errorf("sender: %w", err)
	}
	from := m.From
	if from == "" {
		from = id.Address()
	}
	from = id.complete(from)
	if _, err := mail.ParseAddress(from); err != nil {
		return nil, fmt.Errorf("emailalertfrom=%s is no address: %w", m.From, err)
	}
	if err := out.From(from); err != nil {
		return nil, fmt.Errorf("emailalertfrom=%s: %w", m.From, err)
	}
	for _, to := range m.recipients() {
		if err := out.AddTo(id.complete(to)); err != nil {
			return nil, fmt.Errorf("emailalert: %q is no address: %w", to, err)
		}
	}
	out.Subject(m.Subject)
	out.SetDateWithValue(now)
	out.SetMessageID()
	out.SetBodyString(gomail.TypeTextPlain, m.Body(id))
	return out, nil
}

// recipients splits To at its commas, those inside quotes excepted.
func (m Message) recipients() []string {
	if list, err := mail.ParseAddressList(m.To); err == nil {
		out := make([]string, 0, len(list))
		for _, a := range list {
			out = append(out, a.String())
		}
		return out
	}
	var out []string
	for part := range strings.SplitSeq(m.To, ",") { // a plain local name among them
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

// complete adds this host to a plain local name.
func (id Identity) complete(address string) string {
	if address != "" && !strings.ContainsAny(address, "@<> \"") {
		return address + "@" + id.Host
	}
	return address
}
