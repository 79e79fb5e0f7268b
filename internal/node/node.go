// Package node is the composition root: it builds a running daemon of all the
// parts and is the only place that knows every one of them. Configuration and
// flags come in; tasks are built, supervised, and stopped in the right order.
// It decides nothing about services or resources itself.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/alert"
	"github.com/batuta-ha/batuta/internal/announce"
	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/beat"
	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/crm"
	"github.com/batuta-ha/batuta/internal/fence"
	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/link"
	"github.com/batuta-ha/batuta/internal/link/responder"
	"github.com/batuta-ha/batuta/internal/logfile"
	"github.com/batuta-ha/batuta/internal/messenger"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// Options say how to run a node of a cluster.
type Options struct {
	HaD              string         // directory of ha.cf, authkeys, haresources
	Node             model.NodeName // "" for the machine's own name
	Plane            string         // one of PlaneNames
	XDP              string         // one of XDPNames; "" is auto
	EBPFTable        map[string]int // some of EBPFSizes
	IPVS             model.IPVS     // where the plane is IPVS; what is set here outdoes the configuration
	HeartbeatAddress netip.Addr     // bind heartbeats to it; zero for all addresses
	RunDir           string
	StateDir         string
	Stderr           io.Writer
	Hangup           <-chan struct{} // a value asks for a reload
	Force            <-chan struct{} // closed: end at once, whatever still runs

	// Ready is called once the configuration is valid, the run directory is
	// locked and the API answers, before the first heartbeat. Its error ends
	// the run. nil for nothing to do.
	Ready func() error
	Debug int // added to the debug directive

	// Again makes a new life of this process, where a reload wants one: Run is
	// over then, and what ran on this node still does. It returns only an error.
	// nil: what is new in ha.cf and haresources counts from the next start on.
	Again    func() error
	Ordinary bool // whatever realtime says: an ordinary priority, memory not locked
}

// ErrBadConfig is wrapped when the configuration has errors; they have been
// written to Options.Stderr, all of them.
var ErrBadConfig = errors.New("the configuration has errors; nothing was started")

const (
	// While resources take long to stop, an operator hears of it this often.
	patience = 10 * time.Second
	// How long heartbeats go on after the resources are released, so that the
	// other node can ask again for a message that it missed.
	farewell = 1 * time.Second
)

// Run is the node daemon. It returns nil after a clean hand-over.
func Run(ctx context.Context, o Options) error {
	began := time.Now()
	dir, err := openRunDir(o.RunDir)
	if err != nil {
		return err
	}
	defer dir.close()
	cluster, err := loadCluster(o)
	if err != nil {
		return err
	}
	n := &clusterNode{Options: o, cluster: cluster, hb: *cluster.Heartbeat}
	defer n.closeAll()
	if err := n.build(); err != nil {
		return err
	}
	server, err := api.Listen(dir.socket(), n)
	if err != nil {
		return err
	}
	if o.Ready != nil {
		if err := o.Ready(); err != nil {
			return errors.Join(err, server.Close())
		}
	}
	n.startTook = time.Since(began)
	if err := n.run(ctx, server); err != nil || n.again == nil {
		return err
	}
	return o.Again()
}

// loadCluster reads the ha.d directory and reports every problem.
func loadCluster(o Options) (*model.Cluster, error) {
	reader, err := Reader(o.Node)
	if err != nil {
		return nil, err
	}
	reader.Starting = true
	cluster, problems := reader.Load(o.HaD)
	for _, p := range problems {
		fmt.Fprintln(o.Stderr, p)
	}
	if config.Failed(problems) {
		return nil, ErrBadConfig
	}
	return cluster, nil
}

// clusterNode is a node with its parts.
type clusterNode struct {
	Options
	cluster   *model.Cluster
	hb        model.Heartbeat
	sink      model.Sink
	plane     plane.Plane // nil where no resource balances
	book      *addressBook
	network   *announce.Network
	messenger *beat.Client
	responder *responder.Responder // nil where the kernel cannot answer
	silent    error                // why it cannot; nil where that is not wanted
	crm       *crm.Loop
	roots     []*instance
	directors *directors           // nil where no resource balances
	balancers map[string]*instance // by the argument of their resource
	mailer    *alert.Mailer        // of MailTo resources; nil without
	beside    []Task               // respawn, failfast, watchdog
	rates     *rateMeter
	recorder  *recorder // nil without a journal
	teller    *teller
	windows   *windowKeeper
	closers   []io.Closer
	startTook time.Duration  // from the begin of this life to its first beat
	again     *model.Cluster // what the next life of this process begins with; nil: none follows
	stopping  <-chan struct{}
}

// closeAll closes what build opened, last first.
func (n *clusterNode) closeAll() {
	for _, c := range slices.Backward(n.closers) {
		if err := c.Close(); err != nil && !errors.Is(err, link.ErrClosed) {
			n.sink(model.Event{At: time.Now(), Level: model.LevelWarning, Source: "node", Kind: "close-failed", Text: err.Error()})
		}
	}
}

// build makes every part; nothing runs yet.
func (n *clusterNode) build() error {
	stderr := stderrSink(n.Stderr)
	clusterLog := logfile.Heartbeat(logfile.HeartbeatOptions{
		LogFile: n.hb.LogFile, DebugFile: n.hb.DebugFile, Facility: n.hb.LogFacility, OldFormat: !n.hb.SyslogFormat,
		Host: string(n.hb.Self), PID: os.Getpid(), Sink: stderr})
	n.recorder = openRecorder(n.StateDir, n.hb.Self, stderr)
	n.teller = newTeller()
	n.sink = n.teller.sink(fanOut(stderr, n.quietDebug(clusterLog), n.recorder.hear))
	n.windows = newWindowKeeper(n.StateDir, n.sink)
	n.network = announce.New(announce.Options{Sink: n.sink})
	n.closers = append(n.closers, n.network)
	if err := n.buildDirectors(n.teller.sink(fanOut(stderr, n.recorder.hear))); err != nil {
		return err
	}
	if err := n.buildMessenger(); err != nil {
		return err
	}
	if err := n.buildCRM(); err != nil {
		return err
	}
	n.settleProcess()
	return n.buildPrograms()
}

func (n *clusterNode) buildDirectors(sink model.Sink) error {
	if len(n.cluster.Directors) == 0 {
		return nil
	}
	p, err := openPlane(planeOptions{name: n.Plane, sink: n.sink, runDir: n.RunDir, xdp: n.XDP, table: n.EBPFTable, ipvs: outdo(n.cluster.IPVS, n.IPVS)})
	if err != nil {
		return err
	}
	n.plane, n.book, n.rates = p, newAddressBook(p), newRateMeter(p)
	n.closers = append(n.closers, p)
	n.holdFound(context.Background())
	n.beside = append(n.beside, swapIn(context.Background(), p, n.sink, n.cluster.Directors)...)
	n.directors = newDirectors(directorsOptions{
		plane: p, sink: sink, search: []string{n.HaD, filepath.Join(n.HaD, "conf")},
		keep:     true, // another node takes over; the table stays until the plane is closed
		stateDir: n.StateDir,
	})
	n.balancers = map[string]*instance{}
	for _, d := range n.cluster.Directors {
		in, err := n.directors.add(d)
		if err != nil {
			return err
		}
		n.roots = append(n.roots, in)
		for _, argument := range d.Arguments {
			n.balancers[argument] = in
		}
	}
	return nil
}

// holdFound has the plane serve the addresses that an earlier life left on this
// machine: before the plane that served them lets go of new connections, which
// nobody would take until the addresses' resources are started.
func (n *clusterNode) holdFound(ctx context.Context) {
	for _, g := range n.cluster.Groups {
		for _, r := range g.Resources {
			if agent.KindOf(r) != agent.KindAddress {
				continue
			}
			if a, err := n.agentFor(r); err == nil {
				_, _ = a.Status(ctx) // which finds it; the resource manager tells errors
			}
		}
	}
}

// buildMessenger starts the beat process, which opens the links. It beats from
// when run starts it.
func (n *clusterNode) buildMessenger() (err error) {
	n.buildResponder()
	n.messenger, err = beat.Start(beat.Options{
		Begin:   n.nextLife,
		Sink:    n.sink,
		Renewed: func(g uint32) error { return messenger.StoreGeneration(messenger.IdentityDir(n.StateDir), g) },
		Heard:   func(f map[model.NodeName]heartbeat.Floor) error { return messenger.StoreFloors(n.StateDir, f) },
		Learnt:  func(m string) error { return messenger.StoreMargins(n.StateDir, m) },
	})
	if err != nil {
		return err
	}
	n.closers = append(n.closers, n.messenger)
	return nil
}

// nextLife is what a beat process begins with: the next generation, and what
// was heard of the others before.
func (n *clusterNode) nextLife() (beat.Life, error) {
	life := beat.Life{Heartbeat: *n.cluster.Heartbeat, Source: n.HeartbeatAddress, Boot: n.boot(), Ordinary: n.Ordinary}
	id, err := messenger.OpenIdentity(messenger.IdentityDir(n.StateDir), n.hb.GenerationTime, time.Now())
	if err != nil {
		return life, fmt.Errorf("this node's identity: %w", err)
	}
	life.Generation, life.UUID = id.Generation, id.UUID
	margins, err := messenger.LoadMargins(n.StateDir)
	if err != nil {
		n.say(model.LevelWarning, "margins-lost", err.Error())
	}
	life.Margins = heartbeat.FormatMargins(margins)
	// A node that does not start is worse than one that could be shown a recording.
	if life.Floors, err = messenger.LoadFloors(n.StateDir); err != nil {
		n.say(model.LevelWarning, "floors-lost", err.Error())
	}
	return life, nil
}

func (n *clusterNode) buildCRM() error {
	n.windows.send, n.windows.view = n.messenger.Send, n.messenger.View
	scripts := newEventScripts(n.scriptOptions(), n.sink)
	n.beside = append(n.beside, scripts)
	fence, err := n.fencing()
	if err != nil {
		return err
	}
	n.crm, err = crm.New(crm.Config{
		Fence:      fence,
		Self:       n.hb.Self,
		Peer:       peerOf(n.hb),
		Nodes:      n.hb.Nodes,
		Groups:     n.cluster.Groups,
		Failback:   n.hb.Failback,
		Ipfail:     ipfailWait(&n.hb),
		Agents:     n.agentFor,
		Send:       n.messenger.Send,
		Reannounce: n.network.Reannounce,
		Heard: func(e model.ClusterEvent) {
			n.windows.hear(e)
			scripts.hear(e)
		},
		Sink:    n.sink,
		Decided: n.messenger.Decided,
	})
	return err
}

// fencing is what resets the other node; nil without a device.
func (n *clusterNode) fencing() (func(context.Context, model.NodeName) error, error) {
	if n.hb.Fence.Type == "" {
		return nil, nil
	}
	d, err := fence.New(n.hb.Fence, fence.Options{})
	if err != nil {
		return nil, err
	}
	return d.Fence, nil
}

// ipfailWait is how long the node that sees fewer ping nodes waits before it
// gives up: each node misses one within two of its own beats, and the original
// looks every 250 ms. 0 without ipfail.
func ipfailWait(hb *model.Heartbeat) time.Duration {
	if !hb.Ipfail() {
		return 0
	}
	return 2*hb.Keepalive + 500*time.Millisecond
}

// peerOf is the other node; "" for a cluster of one.
func peerOf(hb model.Heartbeat) model.NodeName {
	for _, p := range hb.Nodes {
		if p != hb.Self {
			return p
		}
	}
	return ""
}

// agentFor finds the agent of a resource: built in where it concerns
// addresses and balancing, a script otherwise.
func (n *clusterNode) agentFor(r model.Resource) (agent.Agent, error) {
	switch agent.KindOf(r) {
	case agent.KindAddress:
		a, err := n.network.Address(r)
		if err != nil {
			return nil, err
		}
		if n.book == nil {
			return a, nil
		}
		return heldAddress{address: a, addr: a.Addr(), book: n.book}, nil
	case agent.KindDirector:
		in := n.balancers[strings.Join(r.Args, "::")]
		if in == nil {
			return nil, fmt.Errorf("resource %s: no director of that name was configured", r.Text)
		}
		return balancer{directors: n.directors, instance: in}, nil
	case agent.KindSource:
		return n.network.Source(r)
	case agent.KindARP:
		return n.network.ARP(r)
	case agent.KindMail:
		return n.mailNotice(r)
	case agent.KindDelay:
		return agent.Delay(r)
	case agent.KindPorts:
		// Heartbeat's own script, where it is installed, keeps its rules where
		// its administrator looks for them.
		if agent.HasScript(r, n.HaD) {
			break
		}
		return agent.PortBlock(r)
	case agent.KindScript, agent.KindUnset:
	}
	return agent.Script(r, n.scriptOptions())
}

// scriptOutput is where resource scripts print: the debug file, as with
// Heartbeat, else standard error. Neither holds a script up for long.
func (n *clusterNode) scriptOutput() io.Writer {
	if n.hb.DebugFile == "" {
		return logfile.Unhurried(n.Stderr)
	}
	return logfile.Unhurried(appender(n.hb.DebugFile))
}

// appender appends to a file that is opened anew for each write, so that it
// can be rotated.
type appender string

func (a appender) Write(b []byte) (int, error) {
	f, err := os.OpenFile(string(a), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, fmt.Errorf("script output: %w", err)
	}
	defer f.Close()
	return f.Write(b)
}

// run starts the tasks in their order and stops them in reverse: first the
// resources go, then the heartbeats, then all else. So it is, too, when one of
// them fails: a node that cannot go on must not keep its addresses.
func (n *clusterNode) run(ctx context.Context, server *api.Server) error {
	n.stopping = ctx.Done()
	c := newCrew(ctx)
	c.start(server)
	n.record(c)
	c.start(n.teller) // ends before the journal
	if n.directors != nil {
		for _, in := range n.roots {
			in.tellStart()
			c.start(in.loop)
		}
		c.start(n.directors)
		defer func() { n.directors.close(signalName(ctx)) }()
	}
	if n.rates != nil && n.rates.needed() {
		c.start(n.rates)
	}
	if n.responder != nil {
		c.start(n.responder)
	}
	c.start(n.messenger)
	if n.hb.LockMemory && !n.Ordinary {
		c.start(newUrgency(n.sink))
	}
	c.start(n.windows)
	for _, t := range n.beside {
		c.start(t)
	}
	c.start(&feeder{loop: n.crm, events: n.messenger.Events(), ended: n.messenger.Undecided})
	n.watch(ctx, c)
	if n.again != nil && n.leave(ctx, c) {
		return c.stop()
	}
	n.again = nil
	released := n.release(c)
	c.stopLast()
	if n.heard() {
		time.Sleep(farewell)
	}
	err := c.stop()
	if released {
		n.silence()
	}
	return err
}

// release hands the resources over. There is no limit to it but the
// operator's (Force): a node that stops beating while something still runs on
// it invites the other to start that a second time. It tells whether all is
// released.
func (n *clusterNode) release(c *crew) bool {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.crm.Stop(ctx) }()
	remind := time.NewTicker(patience)
	defer remind.Stop()
	var left error
	for {
		select {
		case left = <-done:
			if left == nil {
				return true
			}
			done = nil
			n.say(model.LevelCritical, "stop-incomplete", fmt.Sprintf("%v; heartbeats go on until a second TERM ends this daemon", left))
			select {
			case <-c.failed: // without heartbeats there is nothing to wait for
				c.fail(fmt.Errorf("hand the resources over: %w", left))
				return false
			default:
			}
		case <-remind.C:
			if names := n.unstopped(); names != "" {
				n.say(model.LevelWarning, "still-stopping", "still stopping "+names+"; a second TERM ends this daemon at once and leaves it as it is")
			}
		case <-n.Force:
			c.fail(errors.Join(fmt.Errorf("ended by a second signal; still not stopped: %s", n.unstopped()), left))
			return false
		}
	}
}

// unstopped names the resources that still run here.
func (n *clusterNode) unstopped() string {
	var names []string
	for _, r := range n.crm.Resources() {
		if r.Here != model.ResourceStopped {
			names = append(names, r.Name)
		}
	}
	return strings.Join(names, ", ")
}

func (n *clusterNode) say(level model.Level, kind, text string) {
	n.sink(model.Event{At: time.Now(), Level: level, Source: "node", Kind: kind, Text: text})
}

// heard tells whether another node lives that may have missed a message.
func (n *clusterNode) heard() bool {
	for _, v := range n.messenger.Known().Nodes {
		if v.Name != n.hb.Self && (v.State == model.NodeActive || v.State == model.NodeUp) {
			return true
		}
	}
	return false
}

// watch waits for the end, or for a reload that wants a new life of this
// process; it passes the other requests on.
func (n *clusterNode) watch(ctx context.Context, c *crew) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.failed:
			return
		case <-n.Hangup:
			if n.reload(); n.again != nil {
				return
			}
		}
	}
}

// feeder is the resource manager as a task: its events come from the messenger.
type feeder struct {
	loop   *crm.Loop
	events <-chan model.ClusterEvent
	ended  func()
}

func (f *feeder) Run(ctx context.Context) error {
	defer f.ended()
	return f.loop.Run(ctx, f.events)
}

func (f *feeder) Ready() <-chan struct{} { return f.loop.Ready() }
func (f *feeder) String() string         { return f.loop.String() }

// absolute makes a path independent of the working directory.
func absolute(p string) string {
	if a, err := filepath.Abs(p); err == nil {
		return a
	}
	return p
}
