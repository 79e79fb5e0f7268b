// Package director is the balancing loop: what one ldirectord.cf describes,
// and a data plane, come in; checks run, the plane carries the table that
// follows from their verdicts, and events tell what was done. It decides
// nothing itself (balance does) and knows no protocol (check does). Goroutines
// and timers are in loop.go.
//
//	targets ─▶ schedule ─▶ check ─▶ verdicts ─▶ state.hear ─▶ balance ─▶ plane.Apply ─▶ events, hooks
//	file, HUP ─▶ Load ─▶ state.configure ─┘
package director

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/batuta-ha/batuta/internal/alert"
	"github.com/batuta-ha/batuta/internal/check"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// Config is what a director is made of. Director and Plane are required.
type Config struct {
	Director model.Director // its File is watched for changes, unless it is ""
	Plane    plane.Plane    // may be shared: services of others in it are left alone
	Sink     model.Sink     // hears what happens; nil for nobody

	// Debug hears of each check that was made; nil for nobody.
	Debug model.Sink

	// Load reads the configuration again, for Reload and autoreload. With an
	// error the running one stays in force. Nil: it cannot be reloaded.
	Load func() (*model.Director, error)

	// Check finds the check for a target; nil for check.For.
	Check func(model.Target) check.Func

	// Mail takes an e-mail alert and returns at once; nil for none.
	Mail func(alert.Message)

	// LookupAddr finds the names of an address, for maintenancedir; nil for
	// the system's resolver.
	LookupAddr func(ctx context.Context, addr string) (names []string, err error)

	// Reloaded hears of each configuration that comes into force after the
	// first, before the table follows. It is called by Run's goroutine and returns soon; nil for nobody.
	Reloaded func(model.Director)

	// Shell runs a command line (fallbackcommand, callback) until it ends or
	// ctx does; nil for /bin/sh -c.
	Shell func(ctx context.Context, command string) error

	// DrainFile is where real servers that an operator drained are remembered
	// over a restart; "" for nowhere.
	DrainFile string

	// Keep leaves every service in the table when Run returns. Otherwise
	// those with CleanStop go.
	Keep bool
}

// Loop is a director. Make one with New and let it work with Run.
type Loop struct {
	cfg    Config
	polls  bool // check.Poll may make checks: Check is the one and only
	active atomic.Bool
	ready  chan struct{}
	poke   chan struct{} // SetActive was called
	reload chan struct{} // Reload was called
	asked  chan order    // Drain or PutBack was called
	ended  chan struct{} // closed when Run returns

	mu sync.Mutex // guards st against Services
	st *state
}

// New prepares a director; nothing happens before Run. The error says which
// part of the configuration cannot be carried out.
func New(cfg Config) (*Loop, error) {
	if cfg.Plane == nil {
		return nil, errors.New("director: no data plane was given")
	}
	if err := validate(&cfg.Director); err != nil {
		return nil, err
	}
	if cfg.Sink == nil {
		cfg.Sink = func(model.Event) {}
	}
	polls := cfg.Check == nil
	if polls {
		cfg.Check = check.For
	}
	if cfg.Shell == nil {
		cfg.Shell = shell
	}
	if cfg.Mail == nil {
		cfg.Mail = func(alert.Message) {}
	}
	if cfg.LookupAddr == nil {
		cfg.LookupAddr = net.DefaultResolver.LookupAddr
	}
	if cfg.Reloaded == nil {
		cfg.Reloaded = func(model.Director) {}
	}
	return &Loop{
		cfg:    cfg,
		polls:  polls,
		ready:  make(chan struct{}),
		poke:   make(chan struct{}, 1),
		reload: make(chan struct{}, 1),
		asked:  make(chan order),
		ended:  make(chan struct{}),
		st:     newState(cfg.Director),
	}, nil
}

// validate refuses what config never produces.
func validate(d *model.Director) error {
	seen := make(map[model.ServiceKey]bool, len(d.Services))
	for i := range d.Services {
		k := d.Services[i].Virtual.Key
		if seen[k] {
			return fmt.Errorf("director %s: service %s is configured twice", d.Name, k)
		}
		seen[k] = true
	}
	return nil
}

// Ready is closed once the plane carries a table that serves: the first
// verdicts are applied, and every service has a real server that is up or is
// known to have none. After a restart that is so at once.
func (l *Loop) Ready() <-chan struct{} { return l.ready }

func (l *Loop) String() string { return "director " + l.cfg.Director.Name }

// SetActive says whether fallbackcommand and callback run, mails are sent and
// monitorfiles written. A director that is not active (a warm standby) checks and keeps the plane's table right all the
// same; when it becomes active, each fallbackcommand hears the present state.
func (l *Loop) SetActive(active bool) {
	l.active.Store(active)
	offer(l.poke)
}

// Active tells what SetActive said last; a new director is not active.
func (l *Loop) Active() bool { return l.active.Load() }

// Reload reads the configuration again, as on SIGHUP, and returns at once. A
// configuration with errors changes nothing; one event says why.
func (l *Loop) Reload() { offer(l.reload) }

// offer makes sure that a signal waits in c.
func offer(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Services describes the configured services as they are now, in file order.
func (l *Loop) Services() []model.ServiceView { return l.views(true) }

// States is Services without the history of the checks, for who asks often.
func (l *Loop) States() []model.ServiceView { return l.views(false) }

func (l *Loop) views(latency bool) []model.ServiceView {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.st.views(latency)
}
