package node

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/alert"
	"github.com/batuta-ha/batuta/internal/model"
)

// mailNotice is the agent of MailTo::ADDRESS[::SUBJECT]: a mail when its group
// comes to this node, and one when it goes. A mail that cannot be sent keeps
// nothing from moving.
type mailNotice struct {
	to, subject string
	send        func(alert.Message)
	self        model.NodeName

	mu   sync.Mutex
	here bool
}

func (n *clusterNode) mailNotice(r model.Resource) (agent.Agent, error) {
	m := &mailNotice{subject: "Resource Group", self: n.hb.Self}
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

// move writes when the group comes or goes, not each time somebody says so.
func (m *mailNotice) move(here bool, format string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.here == here {
		return
	}
	m.here = here
	what := m.subject + " " + fmt.Sprintf(format, time.Now().Format(time.UnixDate), m.self)
	m.send(alert.Message{To: m.to, Subject: what, Text: "\t" + what + "\n", Instance: "MailTo"})
}

func (m *mailNotice) Status(context.Context) (model.ResourceState, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.here {
		return model.ResourceRunning, nil
	}
	return model.ResourceStopped, nil
}

var _ agent.Agent = (*mailNotice)(nil)
