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

// Probe looks for what an earlier life left running.
func (c *Core) Probe(ctx context.Context) (found pair.Set) {
	for _, g := range c.groups {
		for _, m := range g.members {
			state, err := m.unit.agent.Status(ctx)
			switch {
			case err != nil:
				c.say(model.LevelDebug, "status-failed", m.Text, "resource %s: status at start: %v", m.Text, err)
				state = model.ResourceStopped
			case state == model.ResourceRunning:
				found |= g.set
				c.say(model.LevelNotice, "resource-found", m.Text, "resource %s runs already", m.Text)
			}
			c.set(m, state, nil)
		}
	}
	return found
}

// Perform carries out one operation on all groups of its set, in file order.
func (c *Core) Perform(ctx context.Context, j *Job) pair.Finished {
	f := pair.Finished{Op: j.op}
	for _, g := range c.groups {
		switch {
		case g.set&j.set == pair.None:
		case j.release:
			if !c.releaseGroup(ctx, g) {
				f.Failed |= g.set
			}
		case j.begin.Err() == nil && !c.acquireGroup(ctx, g, j.begin):
			f.Failed |= g.set
		}
	}
	return f
}

// acquireGroup starts a group, or else leaves it stopped. It tells false for a
// group that could not be started; one that is no longer wanted is none.
func (c *Core) acquireGroup(ctx context.Context, g *group, begin context.Context) bool {
	c.say(model.LevelInfo, "group-acquire", g.Key(), "Acquiring resource group: %s %s", g.Owner, g)
	ctx, cancel := c.hand.Limit(ctx, begin)
	defer cancel()
	for _, m := range g.members {
		if begin.Err() != nil {
			return true // the release that follows cleans up
		}
		if err := c.start(ctx, g, m); err != nil {
			c.set(m, model.ResourceFailed, err)
			if ctx.Err() != nil {
				c.say(model.LevelNotice, "start-ended", m.Text, "%v", err)
				return true
			}
			c.say(model.LevelError, "start-failed", m.Text, "%v; releasing its group", err)
			c.releaseGroup(ctx, g)
			c.set(m, model.ResourceFailed, err)
			return false
		}
		c.set(m, model.ResourceRunning, nil)
	}
	return true
}

// start starts a resource unless it runs. Some kinds are told in any case: they
// have more to do than the resource's state shows, such as telling the network
// of an address that was there already.
func (c *Core) start(ctx context.Context, g *group, m *member) error {
	if !agent.KindOf(m.Resource).Repeats() {
		state, err := m.unit.agent.Status(ctx)
		if err != nil {
			return fmt.Errorf("status before start: %w", err)
		}
		if state == model.ResourceRunning {
			m.unit.users[g] = true
			return nil
		}
	}
	c.set(m, model.ResourceStarting, nil)
	m.unit.users[g] = true
	return m.unit.agent.Start(ctx)
}

// releaseGroup stops a group in reverse order. It tells false when a resource
// still runs; what it needs is then left running, too.
func (c *Core) releaseGroup(ctx context.Context, g *group) bool {
	c.say(model.LevelInfo, "group-release", g.Key(), "Releasing resource group: %s %s", g.Owner, g)
	for _, m := range slices.Backward(g.members) {
		delete(m.unit.users, g)
		if len(m.unit.users) > 0 {
			c.set(m, model.ResourceStopped, nil) // another group goes on using it
			continue
		}
		c.set(m, model.ResourceStopping, nil)
		if err := c.stop(ctx, m); err != nil {
			m.unit.users[g] = true
			c.set(m, model.ResourceFailed, err)
			c.say(model.LevelCritical, "stop-failed", m.Text, "%v; it may still run here: stop it by hand", err)
			return false
		}
		c.set(m, model.ResourceStopped, nil)
	}
	return true
}

// drop stops, last first, what runs here and is in none of the new groups.
func (c *Core) drop(ctx context.Context, groups []model.ResourceGroup) error {
	kept := map[string]bool{}
	for _, g := range groups {
		for _, r := range g.Resources {
			kept[unitKey(r)] = true
		}
	}
	var errs []error
	for _, g := range slices.Backward(c.groups) {
		for _, m := range slices.Backward(g.members) {
			if m.state == model.ResourceStopped || m.state == model.ResourceUnknown || kept[unitKey(m.Resource)] {
				continue
			}
			c.say(model.LevelNotice, "resource-dropped", m.Text, "resource %s is no longer configured: stopping it", m.Text)
			if err := c.stop(ctx, m); err != nil {
				errs = append(errs, fmt.Errorf("%w; it may still run here: stop it by hand", err))
			}
			kept[unitKey(m.Resource)] = true // once
		}
	}
	return errors.Join(errs...)
}

// stop stops a resource, whether it runs or not, and insists: each second, ten
// times more. What its agent then calls stopped is stopped.
func (c *Core) stop(ctx context.Context, m *member) error {
	err := m.unit.agent.Stop(ctx)
	for i := 1; err != nil && i <= stopRetries; i++ {
		c.say(model.LevelWarning, "stop-retry", m.Text, "%v; trying again (%d of %d)", err, i, stopRetries)
		if !c.hand.Pause(ctx, stopPause) {
			return errors.Join(err, context.Cause(ctx))
		}
		err = m.unit.agent.Stop(ctx)
	}
	if err == nil {
		return nil
	}
	if state, statusErr := m.unit.agent.Status(ctx); statusErr == nil && state == model.ResourceStopped {
		c.say(model.LevelWarning, "stop-failed", m.Text, "%v; but its status is stopped", err)
		return nil
	}
	return err
}

func (c *Core) set(m *member, s model.ResourceState, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.state, m.err = s, err
}
