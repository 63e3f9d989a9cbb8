package overlay

import (
	"slices"
	"sync"
)

// Keeper makes the kernel have plans, one after the other, in the network namespace of the calling thread. It knows what the kernel has, so
// that a change costs what is different. The zero Keeper knows nothing yet. Watch is for another goroutine than the rest.
type Keeper struct {
	known bool // the kernel has what is wanted
	looks int

	mu   sync.Mutex // guards want, which Watch compares with what it is told
	want wanted
}

// wanted is what the kernel is to have.
type wanted struct {
	kernel Kernel
	plan   Plan
	device int // the index of the tunnel's; 0 if there is none, or none yet
}

// set is called ahead of what Watch is told of it.
func (x *Keeper) set(w wanted) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.want = w
}

// Put makes the kernel have a plan, and returns how many things it had to change. What fails is left out, and told. What the kernel has is
// listed with look, at first, after an error, and where the tunnel itself changes.
func (x *Keeper) Put(k Kernel, p Plan, look bool) (changes int, err error) {
	p = p.clone()
	if was := x.want; x.known && !look && was.kernel == k && sameDevice(was.plan.Tunnel, p.Tunnel) {
		x.set(wanted{k, p, was.device})
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

// Change is Put without look for the plan of before without what is gone, and with what has come. It returns false if that has to be put: what
// the kernel has is not known, or the change has failed.
func (x *Keeper) Change(k Kernel, gone, come Plan) (changes int, ok bool) {
	if !x.known || k != x.want.kernel {
		return 0, false
	}
	x.mu.Lock()
	x.want.plan.remove(gone)
	x.want.plan.add(come)
	x.mu.Unlock()
	c := &changer{}
	c.perform(differ(gone, come, x.want.device), x.want.device)
	x.known = len(c.errs) == 0
	return c.changes, x.known
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
	x.set(wanted{k, p, device})
	if p.Tunnel != nil {
		device = k.device(c, p.Tunnel)
		x.set(wanted{k, p, device})
	}
	c.perform(p.find(c, device), device)
	if p.Tunnel == nil {
		k.removeDevice(c)
	}
	x.known = len(c.errs) == 0
	return c.changes, c.err()
}

// Looks returns how often what the kernel has was listed.
func (x *Keeper) Looks() int { return x.looks }
