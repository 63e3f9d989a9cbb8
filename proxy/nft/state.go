package nft

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
)

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
	nodePorts  map[frontends.Key]struct{} // those of frontends that are node ports
	clusterIPs map[netip.Addr]int         // frontends of each
	hairpin    map[netip.Addr]struct{}
	// variants are numbered as they come to be used. They stay until another agent starts: there are about as many as there are
	// different numbers of backends.
	variants map[variant]uint32
	found    map[string]uint32 // numbers that the kernel has for chains by their names
	taken    map[uint32]bool   // numbers that new variants may not have: a transaction cannot give one another meaning
	next     uint32            // the first number that may be free
	count    [numSets]int      // elements
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
		family: f, node: n, frontends: map[frontends.Key]*placed{}, nodePorts: map[frontends.Key]struct{}{},
		clusterIPs: map[netip.Addr]int{}, hairpin: map[netip.Addr]struct{}{}, variants: map[variant]uint32{}, next: variantBase,
	}
}

// batch is what a transaction does, deletions first. Keys and data of elements lie one behind the other, all of a set equally
// long: at 250,000 elements, a struct for each would cost more than all else.
type batch struct {
	delete, add [numSets][]byte
	dropSets    []string // that are not ours
	drop        []string // chains that go
	fill        []chain  // chains that are emptied and filled anew
	make        []chain
	anew        bool // the table and its sets are made, too
	replace     bool // in place of one that is deleted whole
}

func (b *batch) empty() bool {
	for i := range b.add {
		if len(b.add[i])+len(b.delete[i]) > 0 {
			return false
		}
	}
	return !b.anew && len(b.dropSets)+len(b.drop)+len(b.fill)+len(b.make) == 0
}

// apply makes a change in the state and returns what it means for the kernel.
func (s *state) apply(c Change) *batch {
	b := &batch{}
	if c.Node != nil {
		s.setNode(b, *c.Node)
	}
	for _, k := range c.Delete {
		if p := s.frontends[k]; p != nil {
			s.change(b, k, p, absent)
			s.forget(k)
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
	for i, spec := range s.specs() {
		s.count[i] += len(b.add[i])/spec.size() - len(b.delete[i])/spec.keySize()
	}
	return b
}

// note makes a change in the state of a table that is about to be read back.
func (s *state) note(c Change) {
	if c.Node != nil {
		s.node = c.Node.clone()
	}
	for _, k := range c.Delete {
		s.forget(k)
	}
	for _, f := range c.Put {
		if f.Addr.Is4() == s.is4() {
			s.remember(&placed{Frontend: f})
		}
	}
	for a, on := range c.Hairpin {
		if a.Is4() == s.is4() {
			s.setHairpin(&batch{}, a, on)
		}
	}
}

func (s *state) remember(p *placed) {
	s.frontends[p.Key] = p
	if p.NodePort() {
		s.nodePorts[p.Key] = struct{}{}
	}
}

func (s *state) forget(k frontends.Key) {
	delete(s.frontends, k)
	delete(s.nodePorts, k)
}

func (s *state) is4() bool { return s.size == 4 }

// all returns the batch that fills an empty table with all that is noted. What the kernel holds, if h is not nil, keeps its order
// and its numbers as far as they are of use.
func (s *state) all(h *held) *batch {
	old := *s
	*s = *newState(s.family, s.node)
	b := &batch{}
	s.reserve(b, old.frontends)
	need := map[variant]bool{}
	if h != nil {
		s.found, s.taken = h.numbers()
		for v := range old.variants { // those that were in use stay: it is no repair to take them out
			need[v] = true
		}
	}
	b.make = s.chains(&s.node)
	s.numberAll(b, need, old.frontends)
	for k, p := range old.frontends {
		have := absent
		if h != nil {
			have = h.placed(s, p.Frontend)
		}
		p := place(p.Frontend, have)
		s.change(b, k, absent, p)
		s.remember(p)
	}
	for a := range old.hairpin {
		s.setHairpin(b, a, true)
	}
	b.add[clusterCIDRsSet] = s.ranges(s.node.ClusterCIDRs)
	b.add[serviceCIDRsSet] = s.ranges(s.node.ServiceCIDRs)
	for i, spec := range s.specs() {
		s.count[i] = len(b.add[i]) / spec.size()
	}
	return b
}

// reserve makes room for the elements of frontends, where there are many.
func (s *state) reserve(b *batch, frontends map[frontends.Key]*placed) {
	var n int
	for _, p := range frontends {
		if p.Affinity == 0 && !p.NodePort() {
			n += len(p.Backends) + len(p.Internal)
		}
	}
	specs := s.specs()
	b.add[backendsMap] = make([]byte, 0, n*specs[backendsMap].size())
	b.add[frontendsMap] = make([]byte, 0, len(frontends)*specs[frontendsMap].size())
}

// setNode changes the node: the ranges that differ, the addresses of node ports, and the chains whose rules differ.
func (s *state) setNode(b *batch, n Node) {
	n = n.clone()
	s.changeRanges(b, clusterCIDRsSet, s.node.ClusterCIDRs, n.ClusterCIDRs)
	s.changeRanges(b, serviceCIDRsSet, s.node.ServiceCIDRs, n.ServiceCIDRs)
	old, before := s.nodeAddrs(), s.node
	s.node = n
	for k := range s.nodePorts {
		p := s.frontends[k]
		for _, a := range old {
			if !slices.Contains(s.nodeAddrs(), a) {
				s.changeAt(b, a, k, p, absent)
			}
		}
		for _, a := range s.nodeAddrs() {
			if !slices.Contains(old, a) {
				s.changeAt(b, a, k, absent, p)
			}
		}
	}
	if before.mark() == n.mark() && slices.Equal(before.Interfaces, n.Interfaces) && before.knowsPods(s.family) == n.knowsPods(s.family) {
		return
	}
	was := s.allChains(&before)
	for i, c := range s.allChains(&n) {
		if !slices.Equal(s.digests(c), s.digests(was[i])) {
			b.fill = append(b.fill, c)
		}
	}
}

// allChains returns the chains of the table as they are for a node, in the same order for each.
func (s *state) allChains(n *Node) []chain {
	cs := s.chains(n)
	for _, v := range slices.SortedFunc(maps.Keys(s.variants), byName) {
		cs = append(cs, chain{name: v.chain(), rules: v.rules(s.family, n)})
	}
	return cs
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
	p := place(f, old)
	s.change(b, f.Key, old, p)
	s.remember(p)
}

// place puts a frontend's backends where they are in have, as far as they are there.
func place(f *frontends.Frontend, have *placed) *placed {
	p := &placed{Frontend: f, backends: arrange(have.backends, f.Backends), internal: arrange(have.internal, f.Internal)}
	if f.Affinity != 0 {
		p.slots = slots(have.slots, p.backends, p.internal)
	}
	return p
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
	for _, a := range s.addrs(k) {
		s.changeAt(b, a, k, old, new)
	}
	s.countClusterIP(b, k.Addr, old.ClusterIP, new.ClusterIP)
}

// changeAt is change for one of the addresses that a key stands for.
func (s *state) changeAt(b *batch, a netip.Addr, k frontends.Key, old, new *placed) {
	list := backendsMap
	if old.Affinity != 0 || new.Affinity != 0 {
		list = slotsMap
	}
	fromAll, fromInternal := old.variants()
	toAll, toInternal := new.variants()
	var room [24]byte
	at := appendWhere(room[:0], a, k)
	changeList(b, list, at, 0, old.slots, new.slots, old.backends, new.backends)
	changeList(b, list, at, internalOffset, old.slots, new.slots, old.internal, new.internal)
	changeMembers(b, at, old.slots, new.slots)
	changeSources(b, at, outermost(old.Sources), outermost(new.Sources))
	changeElement(b, emptySet, at, old.rejects(), new.rejects(), nil, nil)
	changeElement(b, frontendsMap, at, fromAll != nil, toAll != nil, s.number(b, fromAll), s.number(b, toAll))
	changeElement(b, internalMap, at, fromInternal != nil, toInternal != nil, s.number(b, fromInternal), s.number(b, toInternal))
}

// addrs returns the addresses that a key stands for. A node port has elements for each of the node's, so that one lookup
// finds it as it finds all else.
func (s *state) addrs(k frontends.Key) []netip.Addr {
	if !k.NodePort() {
		return []netip.Addr{k.Addr}
	}
	return s.nodeAddrs()
}

func (s *state) nodeAddrs() []netip.Addr {
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
	case p.Sources != nil: // who is not let in is not told that there is nobody
		all = &variant{guarded: true}
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

// numberAll numbers the variants in need and those of frontends by the order of their names, so that the same ones make the same
// table.
func (s *state) numberAll(b *batch, need map[variant]bool, frontends map[frontends.Key]*placed) {
	for _, p := range frontends {
		all, internal := p.variants()
		for _, v := range []*variant{all, internal} {
			if v != nil {
				need[*v] = true
			}
		}
	}
	for _, v := range slices.SortedFunc(maps.Keys(need), byName) {
		s.number(b, &v)
	}
}

func byName(a, b variant) int { return strings.Compare(a.chain(), b.chain()) }

// number returns the number of a variant as the data of an element, nil for nil.
func (s *state) number(b *batch, v *variant) []byte {
	if v == nil {
		return nil
	}
	n, ok := s.variants[*v]
	if !ok {
		n, ok = s.found[v.chain()]
		if !ok {
			for s.taken[s.next] {
				s.next++
			}
			n = s.next
			s.next++
		}
		s.variants[*v] = n
		b.make = append(b.make, chain{name: v.chain(), rules: v.rules(s.family, &s.node)})
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
