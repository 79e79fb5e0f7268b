package crm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/pair"
)

// probe looks for what an earlier life left running.
func (l *Loop) probe(ctx context.Context) (found pair.Set) {
	for _, g := range l.groups {
		for _, m := range g.members {
			state, err := m.unit.agent.Status(ctx)
			switch {
			case err != nil:
				l.say(model.LevelDebug, "status-failed", m.Text, "resource %s: status at start: %v", m.Text, err)
				state = model.ResourceStopped
			case state == model.ResourceRunning:
				found |= g.set
				l.say(model.LevelNotice, "resource-found", m.Text, "resource %s runs already", m.Text)
			}
			l.set(m, state, nil)
		}
	}
	return found
}

// perform carries out one operation on all groups of its set, in file order.
func (l *Loop) perform(ctx context.Context, j *job) pair.Finished {
	f := pair.Finished{Op: j.op}
	for _, g := range l.groups {
		switch {
		case g.set&j.set == pair.None:
		case j.release:
			if !l.releaseGroup(ctx, g) {
				f.Failed |= g.set
			}
		case j.begin.Err() == nil && !l.acquireGroup(ctx, g, j.begin):
			f.Failed |= g.set
		}
	}
	return f
}

// acquireGroup starts a group, or else leaves it stopped. It tells false for a
// group that could not be started; one that is no longer wanted is none.
func (l *Loop) acquireGroup(ctx context.Context, g *group, begin context.Context) bool {
	l.say(model.LevelInfo, "group-acquire", g.Key(), "Acquiring resource group: %s %s", g.Owner, g)
	ctx, cancel := limit(ctx, begin)
	defer cancel()
	for _, m := range g.members {
		if begin.Err() != nil {
			return true // the release that follows cleans up
		}
		if err := l.start(ctx, g, m); err != nil {
			l.set(m, model.ResourceFailed, err)
			if ctx.Err() != nil {
				l.say(model.LevelNotice, "start-ended", m.Text, "%v", err)
				return true
			}
			l.say(model.LevelError, "start-failed", m.Text, "%v; releasing its group", err)
			l.releaseGroup(ctx, g)
			l.set(m, model.ResourceFailed, err)
			return false
		}
		l.set(m, model.ResourceRunning, nil)
	}
	return true
}

// start starts a resource unless it runs. Built-in agents are told in any
// case: they have more to do than the resource's state shows, such as telling
// the network of an address that was there already.
func (l *Loop) start(ctx context.Context, g *group, m *member) error {
	if agent.KindOf(m.Resource) == agent.KindScript {
		state, err := m.unit.agent.Status(ctx)
		if err != nil {
			return fmt.Errorf("status before start: %w", err)
		}
		if state == model.ResourceRunning {
			m.unit.users[g] = true
			return nil
		}
	}
	l.set(m, model.ResourceStarting, nil)
	m.unit.users[g] = true
	return m.unit.agent.Start(ctx)
}

// releaseGroup stops a group in reverse order. It tells false when a resource
// still runs; what it needs is then left running, too.
func (l *Loop) releaseGroup(ctx context.Context, g *group) bool {
	l.say(model.LevelInfo, "group-release", g.Key(), "Releasing resource group: %s %s", g.Owner, g)
	for _, m := range slices.Backward(g.members) {
		delete(m.unit.users, g)
		if len(m.unit.users) > 0 {
			l.set(m, model.ResourceStopped, nil) // another group goes on using it
			continue
		}
		l.set(m, model.ResourceStopping, nil)
		if err := l.stop(ctx, m); err != nil {
			m.unit.users[g] = true
			l.set(m, model.ResourceFailed, err)
			l.say(model.LevelCritical, "stop-failed", m.Text, "%v; it may still run here: stop it by hand", err)
			return false
		}
		l.set(m, model.ResourceStopped, nil)
	}
	return true
}

// stop stops a resource, whether it runs or not, and insists: each second, ten
// times more. What its agent then calls stopped is stopped.
func (l *Loop) stop(ctx context.Context, m *member) error {
	err := m.unit.agent.Stop(ctx)
	for i := 1; err != nil && i <= stopRetries; i++ {
		l.say(model.LevelWarning, "stop-retry", m.Text, "%v; trying again (%d of %d)", err, i, stopRetries)
		if !pause(ctx, stopPause) {
			return errors.Join(err, context.Cause(ctx))
		}
		err = m.unit.agent.Stop(ctx)
	}
	if err == nil {
		return nil
	}
	if state, statusErr := m.unit.agent.Status(ctx); statusErr == nil && state == model.ResourceStopped {
		l.say(model.LevelWarning, "stop-failed", m.Text, "%v; but its status is stopped", err)
		return nil
	}
	return err
}

func (l *Loop) set(m *member, s model.ResourceState, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m.state, m.err = s, err
}
