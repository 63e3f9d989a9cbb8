// Package overlay leads packets for the pods of other nodes to these nodes: what flannel's backends host-gw and vxlan do.
//
// plan.go decides, from what the cluster says of its nodes, which routes, neighbours and forwarding entries there are to be; kernel.go makes
// the kernel have them, and nothing else that is ours.
package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"maps"
	"net"
	"net/netip"
	"slices"
)

// Mode is how packets get to another node.
type Mode uint8

const (
	// Direct has a route by way of the other node's own address. All nodes are neighbours on one link.
	Direct Mode = iota
	// VXLAN packs packets into UDP between nodes (RFC 7348).
	VXLAN
	// Cloud leaves the routes to somebody else, who knows the podCIDRs, too.
	Cloud
)

// Modes are the names of modes in configurations.
var Modes = map[string]Mode{"direct": Direct, "vxlan": VXLAN, "cloud": Cloud}

// Node is what is known of a node.
type Node struct {
	Name     string
	PodCIDRs []netip.Prefix
	Addrs    []netip.Addr // its own, in the order of its Node object; the first of a family counts
}

// Equal reports whether two nodes are the same.
func (n Node) Equal(o Node) bool {
	return n.Name == o.Name && slices.Equal(n.PodCIDRs, o.PodCIDRs) && slices.Equal(n.Addrs, o.Addrs)
}

// addr returns a node's own address of a family.
func (n Node) addr(is4 bool) (netip.Addr, bool) {
	i := slices.IndexFunc(n.Addrs, func(a netip.Addr) bool { return a.Is4() == is4 })
	if i < 0 {
		return netip.Addr{}, false
	}
	return n.Addrs[i], true
}

// Route leads packets for Dst to Via, through the tunnel or by the link that Via is on.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr
	Tunnel bool
}

// MAC is a hardware address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// linkLocal returns the address that a link with that hardware address has by itself (RFC 4291, appendix A). IPv6 takes no gateway that
// another route leads to, be it the one that is to be replaced; these lead nowhere but to their link.
func (m MAC) linkLocal() netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// Tunnel is the tunnel's device and what it knows.
type Tunnel struct {
	Local netip.Addr // this node's end
	MAC   MAC
	Addrs []netip.Addr // what the node itself is known by to pods of other nodes
	// Neighbors are the other ends by the address that routes name.
	Neighbors map[netip.Addr]MAC
	// Forward is where the other ends are, by their hardware addresses.
	Forward map[MAC]netip.Addr
}

// Plan is what the kernel is to have. Two that are equal mean the same.
type Plan struct {
	Routes map[netip.Prefix]Route
	Tunnel *Tunnel // nil if there is none
	near   bool    // it depends on what links lead to
}

// ErrNode is wrapped by what is wrong with a node.
var ErrNode = errors.New("node")

// Make returns what self is to have for others, and what is wrong with some of these, which are left out. direct says of an address
// whether it is on a link of this node's, so that no tunnel is needed; nil means no for all. In the mode Direct it is taken for yes.
//
// A range of pods is left out that has a node's address in it, or overlaps with another's: whoever may write Node objects could
// otherwise lead all packets wherever he likes. The first by name keeps it, and this node's own come before all.
func Make(mode Mode, self Node, others []Node, direct func(netip.Addr) bool) (Plan, error) {
	return new(Planner).Make(mode, self, others, direct)
}

// Planner makes plans for nodes that change.
type Planner struct {
	mode   Mode
	self   Node
	direct func(netip.Addr) bool
	nodes  map[string]Node // the others by their names
	taken  ranges
	plan   Plan
	fine   bool // nothing is wrong with any node
}

// Make is the function Make. The Plan changes with Change.
func (x *Planner) Make(mode Mode, self Node, others []Node, direct func(netip.Addr) bool) (Plan, error) {
	*x = Planner{mode: mode, self: self, direct: direct, nodes: make(map[string]Node, len(others))}
	if mode == VXLAN && len(self.Addrs) == 0 {
		return x.empty(0), fmt.Errorf("%w %s, this one, has no address: a tunnel has no end", ErrNode, self.Name)
	}
	x.plan = x.empty(len(others))
	if byName := func(a, b Node) int { return cmp.Compare(a.Name, b.Name) }; !slices.IsSortedFunc(others, byName) {
		others = slices.SortedFunc(slices.Values(others), byName)
	}
	for _, n := range others {
		x.nodes[n.Name] = n
	}
	if mode == Cloud {
		x.fine = true
		return x.plan, nil
	}
	x.taken = newRanges(self, others)
	for _, p := range self.PodCIDRs {
		x.taken.add(p.Masked())
	}
	var errs []error
	for _, n := range others {
		if n.Name == self.Name {
			continue
		}
		for _, p := range n.PodCIDRs {
			p = p.Masked()
			err := x.taken.check(p)
			if err == nil {
				err = x.plan.lead(mode, self, n, p, direct)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%w %s, pods %s: %w", ErrNode, n.Name, p, err))
				continue
			}
			x.taken.add(p)
		}
	}
	x.fine = len(errs) == 0
	return x.plan, errors.Join(errs...)
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

func (x *Planner) leadAll(p *Plan, n Node) error {
	if x.mode == Cloud {
		return nil
	}
	var errs []error
	for _, pods := range n.PodCIDRs {
		errs = append(errs, p.lead(x.mode, x.self, n, pods.Masked(), x.direct))
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

// lead adds what leads to a range of a node's pods. A node that has an address of this one's, such as its object of a former name, would lead
// packets back here.
func (p *Plan) lead(mode Mode, self, n Node, pods netip.Prefix, direct func(netip.Addr) bool) error {
	next, ok := n.addr(pods.Addr().Is4())
	if mode == Direct || ok && direct != nil && direct(next) {
		if !ok {
			return errors.New("it has no address of that family")
		}
		if slices.Contains(self.Addrs, next) {
			return fmt.Errorf("its address %s is this node's", next)
		}
		p.Routes[pods] = Route{Dst: pods, Via: next}
		return nil
	}
	end, ok := n.addr(p.Tunnel.Local.Is4())
	if !ok {
		return errors.New("it has no address of the family that the tunnel is of")
	}
	if slices.Contains(self.Addrs, end) {
		return fmt.Errorf("its address %s is this node's", end)
	}
	mac := macOf(n.Name)
	if other, ok := p.Tunnel.Forward[mac]; mac == p.Tunnel.MAC || ok && other != end {
		return fmt.Errorf("its hardware address %s is another's", mac)
	}
	via := pods.Addr()
	if !via.Is4() {
		via = mac.linkLocal()
	}
	p.Routes[pods] = Route{Dst: pods, Via: via, Tunnel: true}
	p.Tunnel.Neighbors[via], p.Tunnel.Forward[mac] = mac, end
	return nil
}

// ranges are those that are taken. Nodes' ranges are of few lengths, so that all that have to do with another are found by asking for each.
type ranges struct {
	lengths map[int]bool // of all nodes' ranges, of both families
	taken   map[netip.Prefix]bool
	within  map[netip.Prefix]some[netip.Prefix] // ranges that are taken, by those around them
	nodes   map[netip.Prefix]some[netip.Addr]   // nodes' addresses, by the ranges around them
}

// some are n things, one of which was the first.
type some[T any] struct {
	n     int
	first T
}

func more[K comparable, T any](m map[K]some[T], k K, t T) {
	s, ok := m[k]
	if !ok {
		s.first = t
	}
	s.n++
	m[k] = s
}

func less[K comparable, T any](m map[K]some[T], k K) {
	s := m[k]
	if s.n--; s.n > 0 {
		m[k] = s
	} else {
		delete(m, k)
	}
}

func newRanges(self Node, others []Node) ranges {
	all := append([]Node{self}, others...)
	r := ranges{map[int]bool{}, make(map[netip.Prefix]bool, 2*len(all)), map[netip.Prefix]some[netip.Prefix]{}, map[netip.Prefix]some[netip.Addr]{}}
	for _, n := range all {
		for _, p := range n.PodCIDRs {
			r.lengths[p.Bits()] = true
		}
	}
	for _, n := range all {
		for _, a := range n.Addrs {
			for around := range r.around(a, a.BitLen()) {
				more(r.nodes, around, a)
			}
		}
	}
	return r
}

// around returns the ranges that an address is in, of the lengths that nodes' ranges have, and of so many bits at most.
func (r *ranges) around(a netip.Addr, bits int) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for n := range r.lengths {
			if n > bits {
				continue
			}
			if p, err := a.Prefix(n); err == nil && !yield(p) {
				return
			}
		}
	}
}

func (r *ranges) add(p netip.Prefix) {
	r.taken[p] = true
	for around := range r.around(p.Addr(), p.Bits()-1) {
		more(r.within, around, p)
	}
}

// forget takes out a node, whose ranges are all taken by it.
func (r *ranges) forget(n Node) {
	for _, p := range n.PodCIDRs {
		p = p.Masked()
		delete(r.taken, p)
		for around := range r.around(p.Addr(), p.Bits()-1) {
			less(r.within, around)
		}
	}
	for _, a := range n.Addrs {
		for around := range r.around(a, a.BitLen()) {
			less(r.nodes, around)
		}
	}
}

// admit takes in a node. It returns false if anything of it is in the way of another's, or of a length that is not known.
func (r *ranges) admit(n Node) bool {
	for _, a := range n.Addrs {
		for around := range r.around(a, a.BitLen()) {
			if r.taken[around] {
				return false
			}
			more(r.nodes, around, a)
		}
	}
	for _, p := range n.PodCIDRs {
		p = p.Masked()
		if !r.lengths[p.Bits()] || r.check(p) != nil {
			return false
		}
		r.add(p)
	}
	return true
}

// check returns why a range cannot be a node's.
func (r *ranges) check(p netip.Prefix) error {
	inner, ok := r.within[p]
	other := inner.first
	for around := range r.around(p.Addr(), p.Bits()) {
		if r.taken[around] {
			other, ok = around, true
		}
	}
	if ok {
		return fmt.Errorf("it overlaps with %s", other)
	}
	if in, ok := r.nodes[p]; ok {
		return fmt.Errorf("a node's address, %s, is in it", in.first)
	}
	return nil
}

// macOf returns the hardware address of a node's end of the tunnel. It follows from the name, so that nobody has to tell it. The bits say
// that it is one host's, and not a manufacturer's.
func macOf(name string) MAC {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	var m MAC
	copy(m[:], h.Sum(nil))
	m[0] = m[0]&^1 | 2
	return m
}
