package overlay

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Planner makes plans for nodes that change.
type Planner struct {
	mode   Mode
	self   Node
	direct func(netip.Addr) bool
	nodes  map[string]Node // the others by their names
	taken  ranges
	plan   Plan
	left   int  // ranges that are left out
	fine   bool // none is
}

// Make is the function Make. The Plan changes with Change.
func (x *Planner) Make(mode Mode, self Node, others []Node, direct func(netip.Addr) bool) (Plan, error) {
	*x = Planner{mode: mode, self: self, direct: direct, nodes: make(map[string]Node, len(others))}
	if mode == VXLAN && len(self.Addrs) == 0 {
		return x.empty(0), fmt.Errorf("%w %s, this one, has no address: a tunnel has no end", ErrNode, self.Name)
	}
	x.plan = x.empty(len(others))
	if !slices.IsSortedFunc(others, Node.before) {
		others = slices.SortedFunc(slices.Values(others), Node.before)
	}
	for _, n := range others {
		x.nodes[n.Name] = n
	}
	if mode == Cloud {
		x.fine = true
		return x.plan, nil
	}
	var errs []error
	more := 0
	wrong := func(n Node, p netip.Prefix, err error) {
		if len(errs) >= toldEach {
			more++
			return
		}
		errs = append(errs, fmt.Errorf("%w %s, pods %s: %w", ErrNode, n.Name, p, err))
	}
	// Whose ranges are whose is known before anybody's address is looked at.
	x.taken = newRanges(self, others)
	type range_ struct {
		n    Node
		pods netip.Prefix
	}
	lead := make([]range_, 0, 2*len(others))
	for _, p := range self.PodCIDRs {
		x.taken.add(p.Masked())
	}
	for _, n := range others {
		if n.Name == self.Name {
			continue
		}
		for _, p := range n.PodCIDRs {
			p = p.Masked()
			if err := x.taken.check(p); err != nil {
				wrong(n, p, err)
				continue
			}
			x.taken.add(p)
			lead = append(lead, range_{n, p})
		}
	}
	for _, r := range lead {
		if err := x.lead(&x.plan, r.n, r.pods); err != nil {
			wrong(r.n, r.pods, err)
		}
	}
	x.left = len(errs) + more
	x.fine = x.left == 0
	return x.plan, joined(errs, more)
}

// Change is told of nodes by their names that have come, changed or, where the Node is none, gone. It returns what goes from the plan and what
// comes into it, the same as with a Make of all nodes, in a time that does not depend on how many there are. It returns false if only
// Make can tell: this node has changed, or something is wrong with a node, or has been so far, so that what is another's follows from it, too.
func (x *Planner) Change(nodes map[string]Node) (gone, come Plan, ok bool) {
	if !x.fine {
		return gone, come, false
	}
	x.fine = false // until it is done
	gone, come = x.empty(0), x.empty(0)
	for name := range nodes {
		old, there := x.nodes[name]
		if name == x.self.Name || there && x.leadAll(&gone, old) != nil {
			return gone, come, false
		}
		if there && x.mode != Cloud {
			x.taken.forget(old)
		}
		delete(x.nodes, name)
	}
	x.plan.remove(gone)
	for name, n := range nodes {
		if n.Name == "" {
			continue
		}
		x.nodes[name] = n
		if x.mode == Cloud {
			continue
		}
		if x.mode == VXLAN {
			if _, there := x.plan.Tunnel.Forward[macOf(name)]; there {
				return gone, come, false
			}
		}
		if !x.taken.admit(n) || x.leadAll(&come, n) != nil {
			return gone, come, false
		}
	}
	x.plan.add(come)
	x.fine = true
	return gone, come, true
}

// Left returns how many ranges of pods the plan leaves out.
func (x *Planner) Left() int { return x.left }

func (x *Planner) leadAll(p *Plan, n Node) error {
	if x.mode == Cloud {
		return nil
	}
	var errs []error
	for _, pods := range n.PodCIDRs {
		errs = append(errs, x.lead(p, n, pods.Masked()))
	}
	return errors.Join(errs...)
}

// empty returns a plan for no other node, with room for some.
func (x *Planner) empty(nodes int) Plan {
	p := Plan{Routes: make(map[netip.Prefix]Route, 2*nodes), near: x.direct != nil}
	if x.mode != VXLAN || len(x.self.Addrs) == 0 {
		return p
	}
	p.Tunnel = &Tunnel{
		Local: x.self.Addrs[0], MAC: macOf(x.self.Name),
		Neighbors: make(map[netip.Addr]MAC, 2*nodes), Forward: make(map[MAC]netip.Addr, nodes),
	}
	for _, c := range x.self.PodCIDRs {
		p.Tunnel.Addrs = append(p.Tunnel.Addrs, c.Masked().Addr())
	}
	return p
}

// remove takes out what another plan has, which is of the same node.
func (p Plan) remove(o Plan) {
	subtract(p.Routes, o.Routes)
	if p.Tunnel != nil && o.Tunnel != nil {
		subtract(p.Tunnel.Neighbors, o.Tunnel.Neighbors)
		subtract(p.Tunnel.Forward, o.Tunnel.Forward)
	}
}

func subtract[K comparable, V any](from, what map[K]V) {
	for k := range what {
		delete(from, k)
	}
}

// add puts in what another plan has, which is of the same node.
func (p Plan) add(o Plan) {
	maps.Copy(p.Routes, o.Routes)
	if p.Tunnel != nil && o.Tunnel != nil {
		maps.Copy(p.Tunnel.Neighbors, o.Tunnel.Neighbors)
		maps.Copy(p.Tunnel.Forward, o.Tunnel.Forward)
	}
}

func (p Plan) clone() Plan {
	p.Routes = maps.Clone(p.Routes)
	if p.Tunnel != nil {
		t := *p.Tunnel
		t.Neighbors, t.Forward = maps.Clone(t.Neighbors), maps.Clone(t.Forward)
		p.Tunnel = &t
	}
	return p
}
