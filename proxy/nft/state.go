package nft

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
)

// Change is what becomes different. Delete comes first: a Key that is in Put, too, is there afterwards.
type Change struct {
	// Node is nil if it stays as it is.
	Node   *Node
	Put    []*frontends.Frontend
	Delete []frontends.Key
	// Hairpin says of pods of this node whether they are, from now on, backends that connect to themselves through a service.
	Hairpin map[netip.Addr]bool
}

// variantBase is where the numbers of variants begin, and variantEnd is behind the last. They pass through the packet's priority,
// in which nothing else looks so.
const variantBase, variantEnd = 0x52570000, 0x53000000

// maxIdle is how many variants may be without frontends before they are taken out. They are kept that long because numbers of
// backends go up and down; and taken out because a service that is scaled from one backend to thousands passes through as many.
var maxIdle = 64

// state is what a table holds, or is about to. It is pure: what changes in it is written down in a batch.
type state struct {
	family
	node       Node
	frontends  map[frontends.Key]*placed
	nodePorts  map[frontends.Key]struct{} // those of frontends that are node ports
	clusterIPs map[netip.Addr]int         // frontends of each
	hairpin    map[netip.Addr]struct{}
	variants   map[variant]uint32   // numbered as they come to be used
	users      map[variant]int      // frontends of each variant that has any
	left       map[variant]struct{} // chains that were variants', with nothing that leads there
	found      map[string]uint32    // numbers that the kernel has for chains by their names
	taken      map[uint32]bool      // numbers that new variants may not have: a transaction cannot give one another meaning
	next       uint32               // where to look for a free number: one that was in use is not to mean something else soon
	count      [numSets]int         // elements
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
		clusterIPs: map[netip.Addr]int{}, hairpin: map[netip.Addr]struct{}{}, variants: map[variant]uint32{}, users: map[variant]int{}, left: map[variant]struct{}{}, taken: map[uint32]bool{}, next: variantBase,
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

// variants takes the variants that are made or dropped out of a batch of apply, for a transaction before it. A packet has the rules of
// the generation that it began in, and the elements of the one of each lookup (the kernel's nft_do_chain): one that is under way would
// find a chain empty that is made together with the element that leads there.
func (b *batch) variants() *batch {
	first := &batch{drop: b.drop, make: b.make}
	first.delete[variantsMap], first.add[variantsMap] = b.delete[variantsMap], b.add[variantsMap]
	b.drop, b.make, b.delete[variantsMap], b.add[variantsMap] = nil, nil, nil, nil
	return first
}

// apply makes a change in the state and returns what it means for the kernel. Each place where connections arrive is compared once, as
// it was before and as it is in the end, so that no element is deleted that is not there, or added that is.
func (s *state) apply(c Change) *batch {
	b := &batch{}
	s.dropIdle(b)
	was := s.before(c)
	if c.Node != nil {
		s.setNode(b, *c.Node)
	}
	for _, k := range c.Delete {
		if p := s.frontends[k]; p != nil {
			s.use(b, p, -1)
			s.forget(k)
		}
	}
	for _, f := range c.Put {
		if f.Addr.Is4() == s.is4() {
			s.put(b, f)
		}
	}
	for i, place := range was.places {
		if is := s.at(place); is != was.there[i] {
			s.changeAt(b, place, was.there[i], is)
		}
	}
	for a, had := range was.clusterIPs {
		changeElement(b, clusterIPsSet, a.AsSlice(), had, s.clusterIPs[a] > 0, nil, nil)
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

// before is what there is where a change may make a difference.
type before struct {
	places     []frontends.Key // each once
	there      []*placed       // at these places
	clusterIPs map[netip.Addr]bool
}

func (s *state) before(c Change) *before {
	was := &before{clusterIPs: map[netip.Addr]bool{}}
	seen := map[frontends.Key]bool{}
	add := func(place frontends.Key) {
		if place.Addr.Is4() == s.is4() && !seen[place] {
			seen[place] = true
			was.places, was.there = append(was.places, place), append(was.there, s.at(place))
			was.clusterIPs[place.Addr] = s.clusterIPs[place.Addr] > 0
		}
	}
	addKey := func(k frontends.Key, nodeAddrs []netip.Addr) {
		if !k.NodePort() {
			add(k)
			return
		}
		for _, a := range nodeAddrs {
			add(frontends.Key{Addr: a, Protocol: k.Protocol, Port: k.Port})
		}
	}
	stay, move := s.movedAddrs(c.Node)
	if len(move) > 0 {
		for k := range s.nodePorts {
			addKey(k, move)
		}
	}
	nodeAddrs := slices.Concat(stay, move)
	for _, k := range c.Delete {
		addKey(k, nodeAddrs)
	}
	for _, f := range c.Put {
		addKey(f.Key, nodeAddrs)
	}
	return was
}

// movedAddrs returns which of the node's addresses stay, and which come or go. The node stays as it is if n is nil.
func (s *state) movedAddrs(n *Node) (stay, move []netip.Addr) {
	old := s.nodeAddrs(&s.node)
	if n == nil {
		return old, nil
	}
	new := s.nodeAddrs(n)
	for _, a := range old {
		if slices.Contains(new, a) {
			stay = append(stay, a)
		} else {
			move = append(move, a)
		}
	}
	for _, a := range new {
		if !slices.Contains(old, a) {
			move = append(move, a)
		}
	}
	return stay, move
}

// at returns what is at a place: the frontend of that very address, or else the node port. A service may have an address of the node
// for an external one, and its port be another's node port.
func (s *state) at(place frontends.Key) *placed {
	if p := s.frontends[place]; p != nil {
		return p
	}
	if slices.Contains(s.node.Addresses, place.Addr) {
		place.Addr = s.unspecified()
		if p := s.frontends[place]; p != nil {
			return p
		}
	}
	return absent
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

// use counts a frontend, with 1, or no longer, with -1, for what frontends share: variants and ClusterIPs.
func (s *state) use(b *batch, p *placed, n int) {
	all, internal := p.variants()
	for _, v := range []*variant{all, internal} {
		if v == nil {
			continue
		}
		s.number(b, v)
		if s.users[*v] += n; s.users[*v] == 0 {
			delete(s.users, *v)
		}
	}
	if p.ClusterIP {
		if s.clusterIPs[p.Addr] += n; s.clusterIPs[p.Addr] == 0 {
			delete(s.clusterIPs, p.Addr)
		}
	}
}

// dropIdle takes out the variants without frontends, if there are many. Their chains stay until the next time: before Linux 6.2 a chain
// is busy for a while after the element that led to it is gone. No packet is on its way to them, but for one that was seen before
// the last change; services looks such a one up again.
func (s *state) dropIdle(b *batch) {
	if len(s.variants)-len(s.users) <= maxIdle {
		return
	}
	for _, v := range slices.SortedFunc(maps.Keys(s.left), byName) {
		b.drop = append(b.drop, v.chain())
		delete(s.left, v)
	}
	for _, v := range slices.SortedFunc(maps.Keys(s.variants), byName) {
		if s.users[v] > 0 {
			continue
		}
		b.delete[variantsMap] = putNumber(b.delete[variantsMap], s.variants[v])
		delete(s.taken, s.variants[v])
		delete(s.variants, v)
		s.left[v] = struct{}{}
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

func (s *state) unspecified() netip.Addr {
	if s.is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

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
	s.found = nil // those that have not come to be used are taken out
	if h != nil {
		for v := range old.left { // these stay, too, for dropIdle
			if _, ok := s.variants[v]; !ok {
				s.left[v] = struct{}{}
				b.make = append(b.make, chain{name: v.chain(), rules: v.rules(s.family, &s.node)})
			}
		}
	}
	s.frontends, s.nodePorts = old.frontends, old.nodePorts
	for k, p := range s.frontends {
		have := absent
		if h != nil {
			have = h.placed(s, p.Frontend)
		}
		p = place(p.Frontend, have)
		s.frontends[k] = p
		s.use(b, p, 1)
		for _, a := range s.addrs(k) {
			s.changeAt(b, frontends.Key{Addr: a, Protocol: k.Protocol, Port: k.Port}, absent, p)
		}
	}
	for a := range old.hairpin {
		s.setHairpin(b, a, true)
	}
	for a := range s.clusterIPs {
		b.add[clusterIPsSet] = putAddr(b.add[clusterIPsSet], a)
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

// setNode changes the node: the ranges that differ, and the chains whose rules differ. Node ports are not its affair.
func (s *state) setNode(b *batch, n Node) {
	n = n.clone()
	s.changeRanges(b, clusterCIDRsSet, s.node.ClusterCIDRs, n.ClusterCIDRs)
	s.changeRanges(b, serviceCIDRsSet, s.node.ServiceCIDRs, n.ServiceCIDRs)
	was := s.node
	s.node = n
	if was.mark() == n.mark() && slices.Equal(was.Interfaces, n.Interfaces) && was.knowsPods(s.family) == n.knowsPods(s.family) {
		return
	}
	old := s.allChains(&was)
	for i, c := range s.allChains(&n) {
		if !slices.Equal(s.digests(c), s.digests(old[i])) {
			b.fill = append(b.fill, c)
		}
	}
}

// allChains returns the chains of the table as they are for a node, in the same order for each.
func (s *state) allChains(n *Node) []chain {
	cs := s.chains(n)
	for _, v := range slices.Concat(slices.SortedFunc(maps.Keys(s.variants), byName), slices.SortedFunc(maps.Keys(s.left), byName)) {
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
	}
	p := place(f, old)
	s.use(b, p, 1)
	s.use(b, old, -1)
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

// changeAt brings what the kernel has at a place from old to new.
func (s *state) changeAt(b *batch, place frontends.Key, old, new *placed) {
	if old.there() && new.there() && (old.Affinity == 0) != (new.Affinity == 0) { // the backends are in another set
		s.changeAt(b, place, old, absent)
		s.changeAt(b, place, absent, new)
		return
	}
	list := backendsMap
	if old.Affinity != 0 || new.Affinity != 0 {
		list = slotsMap
	}
	fromAll, fromInternal := old.variants()
	toAll, toInternal := new.variants()
	var room [24]byte
	at := appendWhere(room[:0], place.Addr, place)
	changeList(b, list, at, 0, old.slots, new.slots, old.backends, new.backends)
	changeList(b, list, at, internalOffset, old.slots, new.slots, old.internal, new.internal)
	changeMembers(b, at, old.slots, new.slots)
	changeSources(b, at, old.Sources, new.Sources)
	changeElement(b, emptySet, at, old.rejects(), new.rejects(), nil, nil)
	changeElement(b, frontendsMap, at, fromAll != nil, toAll != nil, s.number(b, fromAll), s.number(b, toAll))
	changeElement(b, internalMap, at, fromInternal != nil, toInternal != nil, s.number(b, fromInternal), s.number(b, toInternal))
}

// addrs returns the addresses that a key stands for. A node port has elements for each of the node's, so that one lookup
// finds it as it finds all else; but for those where at finds another frontend.
func (s *state) addrs(k frontends.Key) []netip.Addr {
	if !k.NodePort() {
		return []netip.Addr{k.Addr}
	}
	return slices.DeleteFunc(s.nodeAddrs(&s.node), func(a netip.Addr) bool {
		return s.frontends[frontends.Key{Addr: a, Protocol: k.Protocol, Port: k.Port}] != nil
	})
}

// nodeAddrs returns the addresses of a node that are of the table's family, each once.
func (s *state) nodeAddrs(n *Node) []netip.Addr {
	var as []netip.Addr
	for _, a := range n.Addresses {
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
			n = s.freeNumber()
		}
		s.taken[n] = true
		s.variants[*v] = n
		if _, ok := s.left[*v]; ok {
			delete(s.left, *v)
		} else {
			b.make = append(b.make, chain{name: v.chain(), rules: v.rules(s.family, &s.node)})
		}
		b.add[variantsMap] = putNumber(b.add[variantsMap], n)
	}
	return putNumber(nil, n)
}

func (s *state) freeNumber() uint32 {
	for {
		n := s.next
		if s.next++; s.next == variantEnd {
			s.next = variantBase
		}
		if !s.taken[n] {
			return n
		}
	}
}
