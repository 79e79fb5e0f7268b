package node

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/alert"
	"github.com/batuta-ha/batuta/internal/model"
)

// mailNotice is the agent of MailTo::ADDRESS[::SUBJECT]: a mail when its group
// comes to this node, and one when it goes. A mail that cannot be sent keeps
// nothing from moving. That the group is here is kept by a file of the run
// directory, so that a daemon that begins anew does not write again.
type mailNotice struct {
	to, subject string
	send        func(alert.Message)
	self        model.NodeName
	mark        string // the file

	mu sync.Mutex
}

func (n *clusterNode) mailNotice(r model.Resource) (agent.Agent, error) {
	name := sha256.Sum256([]byte(r.Text)) // which may be longer than a file's name
	m := &mailNotice{subject: "Resource Group", self: n.hb.Self, mark: filepath.Join(n.RunDir, fmt.Sprintf("mailto-%x", name[:8]))}
	if len(r.Args) > 0 {
		m.to = strings.ReplaceAll(r.Args[0], " ", ",")
	}
	if m.to == "" {
		return nil, fmt.Errorf("resource %s: there is nobody to write to; write MailTo::root@localhost or MailTo::ADDRESS::SUBJECT", r.Text)
	}
	if len(r.Args) > 1 && r.Args[1] != "" {
		m.subject = r.Args[1]
	}
	if n.mailer == nil {
		n.mailer = alert.New(alert.Options{Sink: n.sink})
		n.closers = append(n.closers, closeMailer{n.mailer})
	}
	m.send = n.mailer.Send
	return m, nil
}

// closeMailer sends what waits, for a while.
type closeMailer struct{ *alert.Mailer }

func (c closeMailer) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), mailGrace)
	defer cancel()
	c.Mailer.Close(ctx)
	return nil
}

func (m *mailNotice) Start(context.Context) error {
	m.move(true, "Takeover in progress at %s on %s")
	return nil
}

func (m *mailNotice) Stop(context.Context) error {
	m.move(false, "Migrating resource away at %s from %s")
	return nil
}

// move writes when the group comes or goes, not each time somebody says so. A
// mark that cannot be made or removed costs a mail too many, at most.
func (m *mailNotice) move(here bool, format string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.here() == here {
		return
	}
	if here {
		_ = os.WriteFile(m.mark, nil, 0o600)
	} else {
		_ = os.Remove(m.mark)
	}
	what := m.subject + " " + fmt.Sprintf(format, time.Now().Format(time.UnixDate), m.self)
	m.send(alert.Message{To: m.to, Subject: what, Text: "\t" + what + "\n", Instance: "MailTo"})
}

// here tells whether the group is on this node.
func (m *mailNotice) here() bool {
	_, err := os.Stat(m.mark)
	return err == nil
}

func (m *mailNotice) Status(context.Context) (model.ResourceState, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.here() {
		return model.ResourceRunning, nil
	}
	return model.ResourceStopped, nil
}

var _ agent.Agent = (*mailNotice)(nil)
