package overlay

import (
	"errors"
	"slices"
	"sync/atomic"
)

// Keeper makes the kernel have plans, one after the other, in the network namespace of the calling thread. It knows what the kernel has, so
// that a change costs what is different. The zero Keeper knows nothing yet. Put is for one goroutine, Watch for another.
type Keeper struct {
	want  atomic.Pointer[wanted] // nil before the first Put
	known bool                   // the kernel has that
	looks int
}

// wanted is what the kernel is to have. It does not change.
type wanted struct {
	kernel Kernel
	plan   Plan
	device int // the index of the tunnel's; 0 if there is none, or none yet
}

// Put makes the kernel have a plan, and returns how many things it had to change. What fails is left out, and told. What the kernel has is
// listed with look, at first, after an error, and where the tunnel itself changes.
func (x *Keeper) Put(k Kernel, p Plan, look bool) (changes int, err error) {
	if was := x.want.Load(); x.known && !look && was.kernel == k && sameDevice(was.plan.Tunnel, p.Tunnel) {
		x.want.Store(&wanted{k, p, was.device}) // ahead of what Watch is told of it
		c := &changer{}
		c.perform(differ(was.plan, p, was.device), was.device)
		if len(c.errs) == 0 {
			return c.changes, nil
		}
		changes = c.changes // the kernel has not what it was known to have
	}
	n, err := x.look(k, p)
	return changes + n, err
}

// sameDevice reports whether two tunnels differ at most in what their device knows of others.
func sameDevice(a, b *Tunnel) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Local == b.Local && a.MAC == b.MAC && slices.Equal(a.Addrs, b.Addrs)
}

func (x *Keeper) look(k Kernel, p Plan) (changes int, err error) {
	c, device := &changer{}, 0
	x.looks++
	x.known = false
	x.want.Store(&wanted{k, p, device})
	if p.Tunnel != nil {
		device = k.device(c, p.Tunnel)
		x.want.Store(&wanted{k, p, device})
	}
	c.perform(p.find(c, device), device)
	if p.Tunnel == nil {
		k.removeDevice(c)
	}
	x.known = len(c.errs) == 0
	return c.changes, errors.Join(c.errs...)
}

// Looks returns how often what the kernel has was listed.
func (x *Keeper) Looks() int { return x.looks }
