package nft

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/expr"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
)

// Node is what the rules need to know of the node they are for. A change of it makes the tables anew.
type Node struct {
	// Addresses are the node's addresses that take node ports.
	Addresses []netip.Addr
	// ClusterCIDRs and Interfaces say which connections come from the cluster's pods: by their source, or by the interface
	// they come in at ("cni0"; "veth*" for all that begin so). One that does not is from outside.
	ClusterCIDRs []netip.Prefix
	Interfaces   []string
	// ServiceCIDRs are the ranges of services' addresses. Connections to those that no service has are dropped.
	ServiceCIDRs []netip.Prefix
	// Mark is the bit of packets' marks that tells, from one hook to the next, what to masquerade. 0 means DefaultMark.
	Mark uint32
}

// DefaultMark is kube-proxy's bit, which other software knows to keep its hands off.
const DefaultMark = 0x4000

func (n *Node) mark() uint32 {
	if n.Mark == 0 {
		return DefaultMark
	}
	return n.Mark
}

func (n *Node) setMark() []expr.Any { return setMark(^n.mark(), n.mark()) }

// Change is what becomes different. A Key is in Put or in Delete, once.
type Change struct {
	// Node is nil if it stays as it is.
	Node   *Node
	Put    []*frontends.Frontend
	Delete []frontends.Key
	// Hairpin says of pods of this node whether they are, from now on, backends that connect to themselves through a service.
	Hairpin map[netip.Addr]bool
}

// variantBase is where the numbers of variants begin. They pass through the packet's priority, in which nothing else looks so.
const variantBase = 0x52570000

// state is what a table holds, or is about to. It is pure: what changes in it is written down in a batch.
type state struct {
	family
	node       Node
	frontends  map[frontends.Key]*placed
	clusterIPs map[netip.Addr]int // frontends of each
	hairpin    map[netip.Addr]struct{}
	// variants are numbered as they come to be used. They stay until the table is made anew: there are about as many as there are
	// different numbers of backends.
	variants map[variant]uint32
}

// placed is a frontend as it is in the kernel.
type placed struct {
	*frontends.Frontend
	backends, internal []netip.AddrPort // in the order of their indices
	slots              map[netip.AddrPort]uint32
}

// absent stands for a frontend that there is not.
var absent = &placed{Frontend: &frontends.Frontend{}}

func (p *placed) there() bool { return p.Port != 0 }

func newState(f family, n Node) *state {
	return &state{
		family: f, node: n, frontends: map[frontends.Key]*placed{}, clusterIPs: map[netip.Addr]int{},
		hairpin: map[netip.Addr]struct{}{}, variants: map[variant]uint32{},
	}
}

// batch is what a transaction does to the sets, deletions first, and the chains that it needs for that. Keys and data of
// elements lie one behind the other, all of a set equally long: at 250,000 elements, a struct for each would cost more than
// all else.
type batch struct {
	delete, add [numSets][]byte
	variants    []variant
}

func (b *batch) empty() bool {
	for i := range b.add {
		if len(b.add[i])+len(b.delete[i]) > 0 {
			return false
		}
	}
	return len(b.variants) == 0
}

// apply makes a change in the state and returns what it means for the kernel.
func (s *state) apply(c Change) *batch {
	b := &batch{}
	for _, k := range c.Delete {
		if p := s.frontends[k]; p != nil {
			s.change(b, k, p, absent)
			delete(s.frontends, k)
		}
	}
	for _, f := range c.Put {
		if f.Addr.Is4() == s.is4() {
			s.put(b, f)
		}
	}
	for a, on := range c.Hairpin {
		if a.Is4() == s.is4() {
			s.setHairpin(b, a, on)
		}
	}
	return b
}

// note makes a change in the state of a table that is about to be made anew.
func (s *state) note(c Change) {
	for _, k := range c.Delete {
		delete(s.frontends, k)
	}
	for _, f := range c.Put {
		if f.Addr.Is4() == s.is4() {
			s.frontends[f.Key] = &placed{Frontend: f}
		}
	}
	for a, on := range c.Hairpin {
		if a.Is4() == s.is4() {
			s.setHairpin(&batch{}, a, on)
		}
	}
}

func (s *state) is4() bool { return s.size == 4 }

// all returns the batch that fills an empty table for a node with all that is noted.
func (s *state) all(n Node) *batch {
	old := *s
	*s = *newState(s.family, n)
	b := &batch{}
	s.numberAll(b, old.frontends)
	for _, p := range old.frontends {
		s.put(b, p.Frontend)
	}
	for a := range old.hairpin {
		s.setHairpin(b, a, true)
	}
	b.add[clusterCIDRsSet] = s.intervals(n.ClusterCIDRs)
	b.add[serviceCIDRsSet] = s.intervals(n.ServiceCIDRs)
	return b
}

func (s *state) put(b *batch, f *frontends.Frontend) {
	old := s.frontends[f.Key]
	switch {
	case old == nil:
		old = absent
	case old.Frontend == f:
		return
	case (old.Affinity == 0) != (f.Affinity == 0): // its backends are in another set
		s.change(b, f.Key, old, absent)
		old = absent
	}
	p := &placed{Frontend: f, backends: arrange(old.backends, f.Backends), internal: arrange(old.internal, f.Internal)}
	if f.Affinity != 0 {
		p.slots = slots(old.slots, p.backends, p.internal)
	}
	s.change(b, f.Key, old, p)
	s.frontends[f.Key] = p
}

func (s *state) setHairpin(b *batch, a netip.Addr, on bool) {
	_, is := s.hairpin[a]
	if on == is {
		return
	}
	list := &b.add[hairpinSet]
	if on {
		s.hairpin[a] = struct{}{}
	} else {
		list = &b.delete[hairpinSet]
		delete(s.hairpin, a)
	}
	*list = putAddr(putAddr(*list, a), a)
}

// change brings what the kernel has for a key from old to new.
func (s *state) change(b *batch, k frontends.Key, old, new *placed) {
	list := backendsMap
	if old.Affinity != 0 || new.Affinity != 0 {
		list = slotsMap
	}
	fromAll, fromInternal := old.variants()
	toAll, toInternal := new.variants()
	for _, a := range s.addrs(k) {
		at := appendWhere(nil, a, k)
		changeList(b, list, at, 0, old.slots, new.slots, old.backends, new.backends)
		changeList(b, list, at, internalOffset, old.slots, new.slots, old.internal, new.internal)
		changeMembers(b, at, old.slots, new.slots)
		changeSources(b, at, outermost(old.Sources), outermost(new.Sources))
		changeElement(b, emptySet, at, old.rejects(), new.rejects(), nil, nil)
		changeElement(b, frontendsMap, at, fromAll != nil, toAll != nil, s.number(b, fromAll), s.number(b, toAll))
		changeElement(b, internalMap, at, fromInternal != nil, toInternal != nil, s.number(b, fromInternal), s.number(b, toInternal))
	}
	s.countClusterIP(b, k.Addr, old.ClusterIP, new.ClusterIP)
}

// addrs returns the addresses that a key stands for. A node port has elements for each of the node's, so that one lookup
// finds it as it finds all else.
func (s *state) addrs(k frontends.Key) []netip.Addr {
	if !k.NodePort() {
		return []netip.Addr{k.Addr}
	}
	var as []netip.Addr
	for _, a := range s.node.Addresses {
		if a.Is4() == s.is4() && !slices.Contains(as, a) {
			as = append(as, a)
		}
	}
	return as
}

func (p *placed) rejects() bool {
	return p.there() && len(p.backends) == 0 && p.Empty == frontends.Reject
}

// variants returns what a frontend's connections go through, those of all and those of pods and the host; nil if nothing.
func (p *placed) variants() (all, internal *variant) {
	v := variant{count: uint32(len(p.Backends)), masquerade: p.Masquerade, guarded: p.Sources != nil, affinity: p.Affinity}
	switch {
	case v.count > 0:
		all = &v
	case p.there() && p.Empty == frontends.Drop:
		all = &variant{}
	}
	if len(p.Internal) > 0 {
		i := v
		i.count, i.internal = uint32(len(p.Internal)), true
		if i.masquerade == frontends.Never {
			i.masquerade = frontends.Outside
		}
		internal = &i
	}
	return all, internal
}

// numberAll numbers the variants that frontends need by the order of their names, so that the same ones make the same table.
func (s *state) numberAll(b *batch, frontends map[frontends.Key]*placed) {
	need := map[variant]bool{}
	for _, p := range frontends {
		all, internal := p.variants()
		for _, v := range []*variant{all, internal} {
			if v != nil {
				need[*v] = true
			}
		}
	}
	byName := func(a, b variant) int { return strings.Compare(a.chain(), b.chain()) }
	for _, v := range slices.SortedFunc(maps.Keys(need), byName) {
		s.number(b, &v)
	}
}

// number returns the number of a variant as the data of an element, nil for nil.
func (s *state) number(b *batch, v *variant) []byte {
	if v == nil {
		return nil
	}
	n, ok := s.variants[*v]
	if !ok {
		n = variantBase + uint32(len(s.variants))
		s.variants[*v] = n
		b.variants = append(b.variants, *v)
		b.add[variantsMap] = putNumber(b.add[variantsMap], n)
	}
	return putNumber(nil, n)
}

func (s *state) countClusterIP(b *batch, a netip.Addr, was, is bool) {
	switch {
	case is && !was:
		if s.clusterIPs[a]++; s.clusterIPs[a] == 1 {
			b.add[clusterIPsSet] = putAddr(b.add[clusterIPsSet], a)
		}
	case was && !is:
		if s.clusterIPs[a]--; s.clusterIPs[a] == 0 {
			delete(s.clusterIPs, a)
			b.delete[clusterIPsSet] = putAddr(b.delete[clusterIPsSet], a)
		}
	}
}
