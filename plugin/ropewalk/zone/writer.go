package zone

import (
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/radix"
)

// writer is the state of Zone.Run: the truth as the source told it, and the trees under construction.
type writer struct {
	z    *Zone
	opts *Options

	services, imports *radix.Txn[entry]
	addrs             *radix.Txn[owner]
	pods              *radix.Txn[podList]
	reverse           *radix.Txn[apex]
	serial            [2]uint32
	counts            [2]Counts

	spaces map[string]*space
	podsBy map[cluster.Key]*podState
	ranges map[cluster.Kind]map[string]*rangeState // by the object's name
	apexes map[string]int                          // how many ranges an apex stands for
	// gens counts the listings of each kind; an object that was not seen in the newest one goes when it ends.
	gens   [cluster.NumKinds]uint32
	synced cluster.Kinds

	held []heldUntil
	eps  [2][]endpoint // see newSlice
	// batch is what was taken since the last publish; dirty says that a View would differ, moved which serials go up.
	batch []cluster.Change
	dirty bool
	moved [2]bool
}

// space is a namespace, known by its object or by what is in it.
type space struct {
	name              string
	exists            bool
	gen               uint32
	services, imports map[string]*service
	slices            map[string]*sliceID
	importSlices      map[string]*sliceID
}

// heldUntil is when a service is due. It is void if the service is not held any more, or is held anew.
type heldUntil struct {
	s    *service
	hold *hold
}

type podState struct {
	gen uint32
	pod *Pod
}

type rangeState struct {
	gen   uint32
	cidrs []netip.Prefix
}

// owner is what an address may belong to: a service whose ClusterIP it is (slice is nil), or a slice that has it for an
// endpoint's. It is part of either, so that it costs a tree nothing.
type owner struct {
	of    *service
	slice *sliceID
}

// apex is the apex of a reverse zone that follows the cluster.
type apex struct{ labels int }

func newWriter(z *Zone) *writer {
	return &writer{
		z:        z,
		opts:     &z.opts,
		services: radix.Tree[entry]{}.Txn(),
		imports:  radix.Tree[entry]{}.Txn(),
		addrs:    radix.Tree[owner]{}.Txn(),
		pods:     radix.Tree[podList]{}.Txn(),
		reverse:  radix.Tree[apex]{}.Txn(),
		serial:   z.View().serial,
		spaces:   map[string]*space{},
		podsBy:   map[cluster.Key]*podState{},
		ranges: map[cluster.Kind]map[string]*rangeState{
			cluster.KindNode: {}, cluster.KindServiceCIDR: {},
		},
		apexes: map[string]int{},
	}
}

// drain takes what waits in queue, so that it becomes visible together.
func (w *writer) drain(queue <-chan cluster.Change) {
	for range queueLen {
		select {
		case c := <-queue:
			w.take(c)
		default:
			return
		}
	}
}

// take brings one change into the truth and the trees.
func (w *writer) take(c cluster.Change) {
	if c.Kind >= cluster.NumKinds {
		return
	}
	switch c.Op {
	case cluster.Replace:
		w.gens[c.Kind]++
		return
	case cluster.Synced:
		w.sweep(c.Kind)
		if !w.synced.Has(c.Kind) {
			w.synced |= cluster.KindsOf(c.Kind)
			w.dirty = true
		}
		return
	}
	if c.Op == cluster.Upsert && c.Object == nil {
		return
	}
	if s := w.change(c); s != nil && s.hold != nil {
		s.hold.changes = append(s.hold.changes, c)
		return
	}
	w.batch = append(w.batch, c)
}

// change dispatches an Upsert or Delete. It returns the service of a slice, which may be held.
func (w *writer) change(c cluster.Change) *service {
	switch c.Kind {
	case cluster.KindNamespace:
		w.namespace(c.Key.Name, c.Object != nil)
	case cluster.KindService:
		o, _ := c.Object.(*cluster.Service)
		var sp spec
		if o != nil {
			sp = newSpec(o)
		}
		w.service(c.Key, false, o != nil, sp)
	case cluster.KindServiceImport:
		o, _ := c.Object.(*cluster.ServiceImport)
		var sp spec
		if o != nil {
			sp = newImportSpec(o)
		}
		w.service(c.Key, true, o != nil, sp)
	case cluster.KindSlice:
		o, _ := c.Object.(*cluster.Slice)
		w.slice(c.Key, true, o, true)
		return w.slice(c.Key, false, o, true)
	case cluster.KindPod:
		o, _ := c.Object.(*cluster.Pod)
		w.pod(c.Key, o)
	case cluster.KindNode:
		if o, ok := c.Object.(*cluster.Node); ok {
			w.setRanges(c.Kind, c.Key.Name, o.PodCIDRs, true)
		} else {
			w.setRanges(c.Kind, c.Key.Name, nil, false)
		}
	case cluster.KindServiceCIDR:
		if o, ok := c.Object.(*cluster.ServiceCIDR); ok {
			w.setRanges(c.Kind, c.Key.Name, o.CIDRs, true)
		} else {
			w.setRanges(c.Kind, c.Key.Name, nil, false)
		}
	}
	return nil
}

// space returns the namespace called name, made if need be. It is nil for what cannot be one.
func (w *writer) space(name string) *space {
	if !isObjectName(name) {
		return nil
	}
	sp := w.spaces[name]
	if sp == nil {
		sp = &space{
			name:         strings.Clone(name),
			services:     map[string]*service{},
			imports:      map[string]*service{},
			slices:       map[string]*sliceID{},
			importSlices: map[string]*sliceID{},
		}
		w.spaces[sp.name] = sp
	}
	return sp
}

// tidy forgets a namespace that has nothing in it. A service that is still to be released may come from one that has
// been forgotten, and made anew, since.
func (w *writer) tidy(sp *space) {
	if w.spaces[sp.name] == sp && !sp.exists && len(sp.services)+len(sp.imports)+len(sp.slices)+len(sp.importSlices) == 0 {
		delete(w.spaces, sp.name)
	}
}

func (w *writer) exposed(sp *space) bool {
	return sp.exists && (len(w.opts.Namespaces) == 0 || slices.Contains(w.opts.Namespaces, sp.name))
}

func (w *writer) namespace(name string, exists bool) {
	sp := w.space(name)
	if sp == nil {
		return
	}
	sp.gen = w.gens[cluster.KindNamespace]
	if sp.exists == exists {
		w.tidy(sp)
		return
	}
	sp.exists = exists
	key := labelKey(name)
	if w.exposed(sp) {
		w.services.Set(key, namespaceEntry)
		w.imports.Set(key, namespaceEntry)
	} else {
		w.services.Delete(key)
		w.imports.Delete(key)
	}
	w.mark(false)
	w.mark(true)
	for _, s := range sp.services {
		w.reconcile(s)
	}
	for _, s := range sp.imports {
		w.reconcile(s)
	}
	w.tidy(sp)
}

func labelKey(label string) []byte { return appendLabelKey(nil, label) }

func appendLabelKey(dst []byte, label string) []byte {
	return append(append(dst, byte(len(label))), strings.ToLower(label)...)
}

// serviceNamed returns the service's identity, made if need be; nil for a name that no service can have.
func (sp *space) serviceNamed(name string, imported bool) *service {
	in := sp.services
	if imported {
		in = sp.imports
	}
	s := in[name]
	if s == nil && isObjectName(name) {
		var buf [2 * (1 + 63)]byte
		key := appendLabelKey(appendLabelKey(buf[:0], sp.name), name)
		s = &service{key: string(key), ns: sp, imported: imported}
		s.of = s
		in[s.name()] = s
	}
	return s
}

// forget drops a service that nothing is known of any more. As with tidy, it may have a successor of the same name.
func (sp *space) forget(s *service) {
	if s.spec.exists() || s.ids > 0 || s.served != nil {
		return
	}
	in := sp.services
	if s.imported {
		in = sp.imports
	}
	if in[s.name()] == s {
		delete(in, s.name())
	}
}

func (w *writer) service(key cluster.Key, imported, exists bool, sp spec) {
	ns := w.space(key.Namespace)
	if ns == nil {
		return
	}
	defer w.tidy(ns)
	s := ns.serviceNamed(key.Name, imported)
	if s == nil {
		return
	}
	kind := cluster.KindService
	if imported {
		kind = cluster.KindServiceImport
	}
	if exists {
		s.gen = w.gens[kind]
	}
	if s.spec != sp {
		s.spec = sp
		w.letGo(s)
		w.reconcile(s)
	}
	ns.forget(s)
}

// slice takes in a slice in its role for a Service or for a ServiceImport; o is nil if it is gone. mayHold allows for
// the other half of a move to come.
func (w *writer) slice(key cluster.Key, imported bool, o *cluster.Slice, mayHold bool) *service {
	ns := w.space(key.Namespace)
	if ns == nil {
		return nil
	}
	defer w.tidy(ns)
	in, of, from := ns.slices, "", ""
	if imported {
		in = ns.importSlices
	}
	switch {
	case o == nil:
	case imported:
		of, from = o.Import, o.Cluster
	default:
		of = o.Service // which may stand for the import here: its endpoints' names have no cluster in them
	}
	id := in[key.Name]
	if id != nil && (o == nil || id.of.name() != of || id.cluster.Value() != from) {
		delete(in, key.Name)
		id.of.ids--
		s := w.replaceSlice(id, nil, o, mayHold)
		if o == nil || of == "" {
			return s
		}
		id = nil
	}
	if o == nil || of == "" {
		return nil
	}
	if id == nil {
		if len(key.Name) > maxName {
			return nil // longer than the API allows, and than a key may be
		}
		s := ns.serviceNamed(of, imported)
		if s == nil {
			return nil
		}
		id = &sliceID{cluster: unique.Make(from), name: strings.Clone(key.Name)}
		id.owner = owner{s, id}
		in[id.name] = id
		s.ids++
	}
	id.gen = w.gens[cluster.KindSlice]
	return w.replaceSlice(id, newSlice(id, o, w.opts, &w.eps), o, mayHold)
}

// replaceSlice puts next in the place of id's present state. o is the object behind next, nil if it is gone.
func (w *writer) replaceSlice(id *sliceID, next *slice, o *cluster.Slice, mayHold bool) *service {
	s, prev := id.of, id.truth
	if next != nil && next.totals().endpoints() == 0 {
		next = nil
	}
	if prev == nil && next == nil || prev != nil && next != nil && next.same(prev) {
		s.ns.forget(s)
		return s
	}
	id.truth = next
	size := len(s.slices)
	if prev != nil {
		size--
		s.sum.sub(prev.totals())
	}
	if next != nil {
		size++
		s.sum.add(next.totals())
	}
	list := make([]*slice, 0, size) // a View may have the old one
	for _, x := range s.slices {
		if x != prev {
			list = append(list, x)
		}
	}
	if next != nil {
		list = append(list, next)
	}
	s.slices = list
	if prev != nil && s.served != nil && w.opts.Settle > 0 && (mayHold || s.hold != nil) {
		w.startHold(s, prev, next, o)
	}
	if s.held(next) {
		return s
	}
	w.letGo(s)
	w.reconcile(s)
	s.ns.forget(s)
	return s
}

// startHold holds s, for no longer than it is held already, if the endpoints that o lacks, compared to prev, take a name
// with them. next is what o has ready.
func (w *writer) startHold(s *service, prev, next *slice, o *cluster.Slice) {
	labels, vanished := vanished(prev, next, o)
	labels = s.missing(labels)
	emptied := vanished && s.served.ready() > 0 && s.sum.endpoints() == 0 &&
		(s.served.kind == kindHeadless || w.opts.IgnoreEmpty)
	if !emptied && len(labels) == 0 {
		return
	}
	if s.hold == nil {
		s.hold = &hold{until: time.Now().Add(w.opts.Settle)}
		w.held = append(w.held, heldUntil{s, s.hold})
	}
	for _, l := range labels {
		if s.hold.missing == nil {
			s.hold.missing = map[string]struct{}{}
		}
		s.hold.missing[l] = struct{}{}
	}
}

// maxLooks bounds how many slices are looked into for names that vanished from another. What is not found by then is
// taken for missing: it is held for a moment though it need not be.
const maxLooks = 1 << 10

// missing returns those of labels that no endpoint is called by.
func (s *service) missing(labels []string) []string {
	looks := 0
	return slices.DeleteFunc(labels, func(l string) bool {
		for _, sl := range slices.Backward(s.slices) { // a move mostly goes to the one that changed last
			if looks++; looks > maxLooks {
				return false
			}
			if sl.hasName([]byte(l)) {
				return true
			}
		}
		return false
	})
}

// held says whether s is still to be held, next being what has just come: not all of the names that went have come back.
func (s *service) held(next *slice) bool {
	switch {
	case s.hold == nil:
		return false
	case s.hold.missing == nil:
		return s.sum.endpoints() == 0
	case next != nil:
		for f := range next.fam {
			for _, i := range next.fam[f].byName() {
				delete(s.hold.missing, next.fam[f].label(int(i)))
			}
		}
	}
	return len(s.hold.missing) > 0
}

// letGo ends the hold of s, if there is one.
func (w *writer) letGo(s *service) {
	if s.hold != nil {
		w.batch = append(w.batch, s.hold.changes...)
		s.hold = nil
	}
}

// vanished returns the names of endpoints that prev has and o does not even mention, and whether there is such an
// endpoint at all, with a name or not. An endpoint that is still there, but not ready, has not vanished. next is what o
// has ready.
func vanished(prev, next *slice, o *cluster.Slice) (labels []string, any bool) {
	if next == nil {
		next = &slice{}
	}
	for f := range prev.fam {
		t := &prev.fam[f]
		addrs, names := t.unready(f, o)
		for i := range t.len(f) {
			if _, ok := next.fam[f].find(f, []byte(t.addr(f, i))); ok || addrs[i] {
				continue
			}
			l := t.label(i)
			if l != "" && names[t.firstNamed([]byte(l))] {
				continue
			}
			any = true
			if l != "" {
				labels = append(labels, l)
			}
		}
	}
	return labels, any
}

// unready finds those of o's endpoints that are not ready in t: by the indexes of their addresses, and by where in byName
// their hostnames stand first.
func (t *table) unready(f int, o *cluster.Slice) (addrs, names []bool) {
	addrs, names = make([]bool, t.len(f)), make([]bool, len(t.byName()))
	if o == nil {
		return addrs, names
	}
	var buf [64]byte
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		if e.Ready {
			continue
		}
		if a := e.Addr.Unmap(); a.IsValid() && a.Is4() == (f == v4) {
			if j, ok := t.find(f, appendOctets(buf[:0], a)); ok {
				addrs[j] = true
			}
		}
		if isLabel(e.Hostname) {
			l := appendLower(buf[:0], []byte(e.Hostname))
			if at := t.firstNamed(l); t.isNamed(at, l) {
				names[at] = true
			}
		}
	}
	return addrs, names
}

// nextRelease returns when the next held service is due.
func (w *writer) nextRelease() (at time.Time, ok bool) {
	if len(w.held) == 0 {
		return at, false
	}
	return w.held[0].hold.until, true // all are held for equally long
}

// release lets go of services whose time is up.
func (w *writer) release(now time.Time) {
	due := 0
	for ; due < len(w.held) && !w.held[due].hold.until.After(now); due++ {
		if s := w.held[due].s; s.hold == w.held[due].hold {
			w.letGo(s)
			w.reconcile(s)
			s.ns.forget(s)
			w.tidy(s.ns)
		}
	}
	w.held = slices.Delete(w.held, 0, due)
}

// mark notes that the zones of services (false) or imports (true) have changed.
func (w *writer) mark(imported bool) {
	w.dirty = true
	if imported {
		w.moved[1] = true
	} else {
		w.moved[0] = true
	}
}

// reconcile brings the trees in line with what is known of s.
func (w *writer) reconcile(s *service) {
	var want *entry
	if w.exposed(s.ns) {
		want = newEntry(s, w.opts)
	}
	have := s.served
	if want == have || want != nil && have != nil && want.same(have) {
		return
	}
	tree, counts := w.services, &w.counts[0]
	if s.imported {
		tree, counts = w.imports, &w.counts[1]
	} else {
		w.moveAddrs(have, want)
	}
	if have != nil {
		counts.add(have.counts(), -1)
	}
	if want != nil {
		counts.add(want.counts(), 1)
		tree.Set([]byte(s.key), want)
	} else {
		tree.Delete([]byte(s.key))
	}
	s.served = want
	w.mark(s.imported)
}

// moveAddrs takes the addresses of have out of the tree of addresses and puts those of want in, as far as they differ.
func (w *writer) moveAddrs(have, want *entry) {
	var havePacked, wantPacked string
	var haveSlices, wantSlices []*slice
	if have != nil {
		havePacked, haveSlices = have.clusterIPs(), have.slices
	}
	if want != nil {
		wantPacked, wantSlices = want.clusterIPs(), want.slices
	}
	if havePacked != wantPacked {
		for f, a := range packedAddrs(havePacked) {
			w.disown(f, a, &have.of.owner)
		}
		for f, a := range packedAddrs(wantPacked) {
			w.own(f, a, &want.of.owner)
		}
	}
	gone, come := changedSlices(haveSlices, wantSlices)
	for _, s := range come {
		w.moveSlice(s.id, s)
	}
	for _, s := range gone {
		if s.id.served == s {
			w.moveSlice(s.id, nil)
		}
	}
}

// clusterIPs returns the ready-made records of a service's own addresses, none for services that have none.
func (e *entry) clusterIPs() string {
	if e.kind == kindClusterIP {
		return e.rrs
	}
	return ""
}

// changedSlices returns what want lacks of have, and what it has more. want keeps the order of what it shares with have
// and has the rest behind it.
func changedSlices(have, want []*slice) (gone, come []*slice) {
	j := 0
	for _, s := range have {
		if j < len(want) && want[j] == s {
			j++
		} else {
			gone = append(gone, s)
		}
	}
	return gone, want[j:]
}

var noSlice = &slice{}

// moveSlice takes the addresses of what is served of id out and puts those of new in, which may be nil.
func (w *writer) moveSlice(id *sliceID, new *slice) {
	old := id.served
	id.served = new
	if old == nil {
		old = noSlice
	}
	if new == nil {
		new = noSlice
	}
	for f := range old.fam {
		a, b := &old.fam[f], &new.fam[f]
		i, j := 0, 0
		for i < a.len(f) || j < b.len(f) {
			c := 0
			switch {
			case i == a.len(f):
				c = 1
			case j == b.len(f):
				c = -1
			default:
				c = strings.Compare(a.addr(f, i), b.addr(f, j))
			}
			if c < 0 {
				w.disown(f, a.addr(f, i), &id.owner)
			}
			if c > 0 {
				w.own(f, b.addr(f, j), &id.owner)
			}
			if c <= 0 {
				i++
			}
			if c >= 0 {
				j++
			}
		}
	}
}

var familyOctet = [2]byte{v4: 4, v6: 6}

// own adds o to the owners of an address. The only one of an address has the address for its key, and stands where all
// of them together start: so most keys are short, and several owners are no list that each change would have to copy.
func (w *writer) own(f int, addr string, o *owner) {
	key := append(append(make([]byte, 0, 17), familyOctet[f]), addr...)
	m := w.addrs.Walk(key)
	if m.Len < len(key) && !m.Below {
		w.addrs.Set(key, o)
		return
	}
	if m.Len == len(key) {
		w.addrs.Delete(key)
		w.addrs.Set(m.Value.among(key), m.Value)
	}
	w.addrs.Set(o.among(key), o)
}

// disown is the inverse of own.
func (w *writer) disown(f int, addr string, o *owner) {
	key := append(append(make([]byte, 0, 17), familyOctet[f]), addr...)
	if w.addrs.Get(key) == o {
		w.addrs.Delete(key)
		return
	}
	full := o.among(key)
	if w.addrs.Get(full) != o {
		return
	}
	w.addrs.Delete(full)
	var left *owner
	for x := range w.addrs.Values(key) {
		if left != nil {
			return
		}
		left = x
	}
	if left != nil {
		w.addrs.Delete(left.among(key))
		w.addrs.Set(key, left)
	}
}

// among returns the key of an owner of the address in key where that has several: services that have it for a ClusterIP
// come first, slices of one service stand together, and all are in an order that does not depend on what came first.
func (o *owner) among(key []byte) []byte {
	if o.slice == nil {
		return append(append(slices.Clip(key), 0), o.of.key...)
	}
	return append(append(append(slices.Clip(key), 1), o.of.key...), o.slice.name...)
}

func (w *writer) pod(key cluster.Key, o *cluster.Pod) {
	st := w.podsBy[key]
	if o != nil && len(o.IPs) == 0 {
		o = nil
	}
	if st != nil && o != nil && slices.Equal(st.pod.ips, o.IPs) && sameLabels(st.pod.Labels, o.Labels) {
		st.gen = w.gens[cluster.KindPod]
		return
	}
	if st != nil {
		for _, ip := range st.pod.ips {
			w.unlistPod(ip, st.pod)
		}
		delete(w.podsBy, key)
	}
	if o != nil {
		st = &podState{gen: w.gens[cluster.KindPod],
			pod: &Pod{strings.Clone(o.Namespace), strings.Clone(o.Name), o.Labels, o.IPs}}
		w.podsBy[cluster.Key{Namespace: st.pod.Namespace, Name: st.pod.Name}] = st
		for _, ip := range st.pod.ips {
			w.listPod(ip, st.pod)
		}
	}
	if st != nil {
		w.dirty = true
		if w.opts.Pods == PodsVerified {
			w.mark(false)
		}
	}
}

func sameLabels(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if o, ok := b[k]; !ok || o != v {
			return false
		}
	}
	return true
}

func (w *writer) listPod(ip netip.Addr, p *Pod) {
	key := addrKey(nil, ip.Unmap())
	var l podList
	if cur := w.pods.Get(key); cur != nil {
		l = slices.Clone(*cur)
	}
	i, _ := slices.BinarySearchFunc(l, p, comparePods)
	l = slices.Insert(l, i, p)
	w.pods.Set(key, &l)
}

func (w *writer) unlistPod(ip netip.Addr, p *Pod) {
	key := addrKey(nil, ip.Unmap())
	cur := w.pods.Get(key)
	if cur == nil {
		return
	}
	l := slices.DeleteFunc(slices.Clone(*cur), func(x *Pod) bool { return x == p })
	if len(l) == 0 {
		w.pods.Delete(key)
	} else {
		w.pods.Set(key, &l)
	}
}

func comparePods(a, b *Pod) int {
	return cluster.Key{Namespace: a.Namespace, Name: a.Name}.Compare(cluster.Key{Namespace: b.Namespace, Name: b.Name})
}

// setRanges makes cidrs the ranges of a Node or ServiceCIDR.
func (w *writer) setRanges(kind cluster.Kind, name string, cidrs []netip.Prefix, exists bool) {
	in := w.ranges[kind]
	st := in[name]
	if st == nil {
		if !exists {
			return
		}
		st = &rangeState{}
		in[strings.Clone(name)] = st
	}
	st.gen = w.gens[kind]
	if !slices.Equal(st.cidrs, cidrs) {
		for _, c := range cidrs {
			for _, z := range reverseApexes(c) {
				w.apexes[z]++
				w.reverse.Set(radix.NameKey(nil, []byte(z)), &apex{labels: countLabels(z)})
			}
		}
		for _, c := range st.cidrs {
			for _, z := range reverseApexes(c) {
				if w.apexes[z]--; w.apexes[z] == 0 {
					delete(w.apexes, z)
					w.reverse.Delete(radix.NameKey(nil, []byte(z)))
				}
			}
		}
		st.cidrs = cidrs
		w.mark(false)
	}
	if !exists {
		delete(in, name)
	}
}

// sweep ends a listing: what it did not name is gone.
func (w *writer) sweep(kind cluster.Kind) {
	gen := w.gens[kind]
	switch kind {
	case cluster.KindNamespace:
		for _, sp := range w.spaces {
			if sp.exists && sp.gen != gen {
				w.namespace(sp.name, false)
			}
		}
	case cluster.KindService, cluster.KindServiceImport:
		w.sweepServices(gen, kind == cluster.KindServiceImport)
	case cluster.KindSlice:
		w.sweepSlices(gen)
	case cluster.KindPod:
		for key, p := range w.podsBy {
			if p.gen != gen {
				w.pod(key, nil)
			}
		}
	case cluster.KindNode, cluster.KindServiceCIDR:
		for name, r := range w.ranges[kind] {
			if r.gen != gen {
				w.setRanges(kind, name, nil, false)
			}
		}
	}
}

func (w *writer) sweepServices(gen uint32, imported bool) {
	for _, sp := range w.spaces {
		in := sp.services
		if imported {
			in = sp.imports
		}
		for name, s := range in {
			if s.spec.exists() && s.gen != gen {
				w.service(cluster.Key{Namespace: sp.name, Name: name}, imported, false, spec{})
			}
		}
	}
}

func (w *writer) sweepSlices(gen uint32) {
	for _, sp := range w.spaces {
		for _, imported := range []bool{false, true} {
			in := sp.slices
			if imported {
				in = sp.importSlices
			}
			for name, id := range in {
				if id.gen != gen {
					w.slice(cluster.Key{Namespace: sp.name, Name: name}, imported, nil, false)
				}
			}
		}
	}
}

// publish makes what was taken since the last time visible to readers.
func (w *writer) publish() {
	if w.dirty {
		for i, moved := range w.moved {
			if moved {
				w.serial[i] = nextSerial(w.serial[i])
			}
		}
		synced := w.synced&w.opts.Interest() == w.opts.Interest()
		w.z.view.Store(&View{
			opts:     w.opts,
			services: w.services.Commit(),
			imports:  w.imports.Commit(),
			addrs:    w.addrs.Commit(),
			pods:     w.pods.Commit(),
			reverse:  w.reverse.Commit(),
			serial:   w.serial,
			synced:   synced,
			counts:   w.counts,
			seed:     w.z.View().seed,
		})
		select {
		case <-w.z.ready:
		default:
			if synced {
				close(w.z.ready)
			}
		}
		w.dirty, w.moved = false, [2]bool{}
	}
	if w.opts.Served != nil {
		now := time.Now()
		for _, c := range w.batch {
			w.opts.Served(c, now)
		}
	}
	clear(w.batch)
	w.batch = w.batch[:0]
}
