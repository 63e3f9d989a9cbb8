package frontends

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// Options say what is not in the cluster's objects.
type Options struct {
	// NodeName is this node. Endpoints of others are not local.
	NodeName string
	// MasqueradeAll replaces all clients' addresses where they ask for a ClusterIP.
	MasqueradeAll bool
}

// Builder makes Frontends of what a cluster says, one service at a time: the work for a change is that for the services that it
// touches. It is for one goroutine at a time.
type Builder struct {
	options  Options
	services map[cluster.Key]*service
	slices   map[cluster.Key]*slice
	cidrs    map[cluster.Key]cidr
	node     *cluster.Node // as it was last known; nil before
	listings [cluster.NumKinds]listing

	owners  map[Key]*service          // whose frontend a key has
	rivals  map[Key]map[*service]bool // who else wants it, and whether for a ClusterIP
	hairpin map[netip.Addr]int        // services' uses of endpoints on this node

	endpoints int        // of all slices
	dirty     []*service // a list: going through a map costs what it once held
	diff      Diff
	contended bool // a key has changed hands, and may be in diff twice
	scratch   []candidate
}

// listing is where the delivery of a kind of objects is.
type listing struct {
	number uint32 // counts them
	synced bool   // one is complete
	open   bool
}

type cidr struct {
	*cluster.ServiceCIDR
	listing uint32
}

// service is a service, or the slices of one that is not there.
type service struct {
	cluster.Key
	spec    *cluster.Service // nil if it is not there, or nobody's to proxy
	dirty   bool             // it waits to be worked out
	slices  []*slice         // in the order of their names, so that the outcome does not depend on who came first
	listing uint32
	made    []*Frontend  // what was handed out
	lost    []Key        // what it wants and another service has
	local   []netip.Addr // endpoints on this node
	health  Health
	trigger time.Time // the newest of its slices' changes since the last Take
}

// Diff is what is different since the last Take. Its lists are the caller's.
type Diff struct {
	Put    []*Frontend
	Delete []Key
	// Hairpin says of addresses of endpoints whether they are on this node.
	Hairpin map[netip.Addr]bool
	// UDP says that connections of UDP may be led where nothing is any more, or past a service: an address and port has come or gone, or an
	// endpoint has.
	UDP bool
	// Health has the services whose health check is different.
	Health map[cluster.Key]Health
	// Node says that ServiceCIDRs or Node return something else.
	Node bool
	// Triggers are the times of the changes of slices that led to this (annotation
	// endpoints.kubernetes.io/last-change-trigger-time), one for each service that has one.
	Triggers []time.Time
	// Rivals are keys that a service asked for and did not get, with those who did, each once for as long as the service asks.
	Rivals []Rival
}

// Empty reports whether nothing is different.
func (d *Diff) Empty() bool {
	return len(d.Put) == 0 && len(d.Delete) == 0 && len(d.Hairpin) == 0 && len(d.Health) == 0 && !d.Node
}

// Health is what load balancers can ask a node about a service.
type Health struct {
	// Port is the healthCheckNodePort, 0 if the service has none.
	Port uint16
	// Local is the number of its ready endpoints on this node.
	Local int
}

// Rival is a service that does not get an address and port because another one has it.
type Rival struct {
	Key
	Owner, Loser cluster.Key
}

// New returns a Builder that knows of nothing yet.
func New(o Options) *Builder {
	return &Builder{
		options: o, services: map[cluster.Key]*service{}, slices: map[cluster.Key]*slice{}, cidrs: map[cluster.Key]cidr{},
		owners: map[Key]*service{}, rivals: map[Key]map[*service]bool{}, hairpin: map[netip.Addr]int{},
	}
}

// Interest is what a Builder for a node needs to hear of. It leaves out, as kube-proxy does, services that are labelled as
// another proxy's (KEP-2447) and all of headless ones.
func Interest(node string) cluster.Interest {
	return cluster.Interest{
		Kinds:         cluster.KindsOf(cluster.KindService, cluster.KindSlice, cluster.KindNode, cluster.KindServiceCIDR),
		ServiceLabels: "!service.kubernetes.io/service-proxy-name", SliceLabels: "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless",
		NoHeadless: true, Proxy: true, NodeNet: true, NodeName: node, OneNode: true,
	}
}

// Synced reports whether all has been delivered once.
func (b *Builder) Synced() bool {
	for _, k := range []cluster.Kind{cluster.KindService, cluster.KindSlice, cluster.KindNode, cluster.KindServiceCIDR} {
		if !b.listings[k].synced {
			return false
		}
	}
	return true
}

// Pending returns how many services have changed since the last Take.
func (b *Builder) Pending() int { return len(b.dirty) }

// Counts are how many there are of what a Builder knows.
type Counts struct{ Frontends, Services, Endpoints int }

// Counts returns how many there are: frontends, services (or names of which there are slices only), endpoints that answer.
func (b *Builder) Counts() Counts { return Counts{len(b.owners), len(b.services), b.endpoints} }

// Node returns the node as it was last known, also when its object is gone; nil before. It is not to be written to.
func (b *Builder) Node() *cluster.Node { return b.node }

// ServiceCIDRs returns the ranges that services' addresses are from, each once, in order. That of a ServiceCIDR which is being
// deleted is one of them for as long as the object is there.
func (b *Builder) ServiceCIDRs() []netip.Prefix {
	seen := map[netip.Prefix]bool{}
	for _, c := range b.cidrs {
		for _, p := range c.CIDRs {
			seen[p.Masked()] = true
		}
	}
	return slices.SortedFunc(maps.Keys(seen), netip.Prefix.Compare)
}

// Apply takes a change.
func (b *Builder) Apply(c cluster.Change) {
	switch c.Op {
	case cluster.Replace:
		b.listings[c.Kind].number++
		b.listings[c.Kind].open = true
	case cluster.Synced:
		b.sweep(c.Kind)
		b.listings[c.Kind].open, b.listings[c.Kind].synced = false, true
	case cluster.Delete:
		b.delete(c.Kind, c.Key)
	case cluster.Upsert:
		switch o := c.Object.(type) {
		case *cluster.Service:
			b.putService(o)
		case *cluster.Slice:
			b.putSlice(o)
		case *cluster.Node:
			b.putNode(o)
		case *cluster.ServiceCIDR:
			b.cidrs[o.Key()] = cidr{o, b.listings[c.Kind].number}
			b.diff.Node = true
		}
	}
}

func (b *Builder) delete(kind cluster.Kind, k cluster.Key) {
	switch kind {
	case cluster.KindService:
		if s := b.services[k]; s != nil && s.spec != nil {
			s.spec = nil
			b.touch(s)
		}
	case cluster.KindSlice:
		b.dropSlice(k)
	case cluster.KindNode: // the host is there still: what was known of it stays, as with kube-proxy
	case cluster.KindServiceCIDR:
		delete(b.cidrs, k)
		b.diff.Node = true
	}
}

// sweep ends a listing: what it did not name is gone.
func (b *Builder) sweep(kind cluster.Kind) {
	l := &b.listings[kind]
	if !l.open {
		return
	}
	switch kind {
	case cluster.KindService:
		for k, s := range b.services {
			if s.listing != l.number {
				b.delete(kind, k)
			}
		}
	case cluster.KindSlice:
		for k, s := range b.slices {
			if s.listing != l.number {
				b.delete(kind, k)
			}
		}
	case cluster.KindServiceCIDR:
		for k, c := range b.cidrs {
			if c.listing != l.number {
				b.delete(kind, k)
			}
		}
	}
}

func (b *Builder) touch(s *service) {
	if !s.dirty {
		s.dirty = true
		b.dirty = append(b.dirty, s)
	}
}

// service returns the service of a key, which may be there for the sake of its slices only.
func (b *Builder) service(k cluster.Key) *service {
	s := b.services[k]
	if s == nil {
		s = &service{Key: k}
		b.services[k] = s
	}
	return s
}

func (b *Builder) putService(o *cluster.Service) {
	s := b.service(o.Key())
	s.listing = b.listings[cluster.KindService].number
	s.spec = nil
	if o.Proxy != nil {
		s.spec = o
	}
	b.touch(s)
}

func (b *Builder) putSlice(o *cluster.Slice) {
	k := o.Key()
	if o.Service == "" {
		b.dropSlice(k)
		return
	}
	new := newSlice(o, b.options.NodeName)
	new.name, new.service, new.listing = o.Name, b.service(cluster.Key{Namespace: o.Namespace, Name: o.Service}), b.listings[cluster.KindSlice].number
	old := b.slices[k]
	if old != nil && old.equal(new) { // as in a listing
		old.listing = new.listing
		return
	}
	b.slices[k] = new
	b.endpoints += len(new.endpoints)
	if old != nil {
		b.endpoints -= len(old.endpoints)
		b.diff.UDP = b.diff.UDP || old.udp() && (old.service != new.service || !slices.Equal(old.ports, new.ports) || !old.within(new))
	}
	switch i := indexOf(old); {
	case old != nil && old.service == new.service:
		old.service.slices[i] = new
	case old != nil:
		b.removeSlice(old)
		fallthrough
	default:
		list := new.service.slices
		i, _ := slices.BinarySearchFunc(list, new, func(a, b *slice) int { return strings.Compare(a.name, b.name) })
		new.service.slices = slices.Insert(list, i, new)
	}
	if o.Triggered.After(new.service.trigger) {
		new.service.trigger = o.Triggered
	}
	b.touch(new.service)
}

func indexOf(s *slice) int {
	if s == nil {
		return -1
	}
	return slices.Index(s.service.slices, s)
}

func (b *Builder) dropSlice(k cluster.Key) {
	if s := b.slices[k]; s != nil {
		delete(b.slices, k)
		b.endpoints -= len(s.endpoints)
		b.diff.UDP = b.diff.UDP || s.udp() && len(s.endpoints) > 0
		b.removeSlice(s)
	}
}

func (b *Builder) removeSlice(s *slice) {
	i := indexOf(s)
	s.service.slices = slices.Delete(s.service.slices, i, i+1)
	b.touch(s.service)
}

func (b *Builder) putNode(n *cluster.Node) {
	if n.Name == b.options.NodeName {
		b.setNode(n)
	}
}

// setNode notes the node, and which services its new place means something to: those with hints if its zone changes, those with
// source ranges, or endpoints at its own addresses, if those change. A heartbeat is a change that changes nothing.
func (b *Builder) setNode(n *cluster.Node) {
	old := b.node
	b.node = n
	oldNet, newNet := netOf(old), netOf(n)
	addresses := slices.Equal(oldNet.InternalIPs, newNet.InternalIPs) && slices.Equal(oldNet.ExternalIPs, newNet.ExternalIPs)
	if addresses && oldNet.Zone == newNet.Zone && old != nil && slices.Equal(old.PodCIDRs, n.PodCIDRs) {
		return
	}
	b.diff.Node = true
	for _, s := range b.services {
		hints := slices.ContainsFunc(s.slices, func(x *slice) bool { return x.hints != nil })
		if hints && oldNet.Zone != newNet.Zone || !addresses && (s.hasLocal() || s.spec != nil && len(s.spec.Proxy.SourceRanges) > 0) {
			b.touch(s)
		}
	}
}

// hasLocal reports whether there are endpoints on this node, at addresses of its own or others.
func (s *service) hasLocal() bool {
	return slices.ContainsFunc(s.slices, func(x *slice) bool {
		return slices.ContainsFunc(x.endpoints, func(e endpoint) bool { return e.state&local != 0 })
	})
}

func netOf(n *cluster.Node) *cluster.NodeNet {
	if n == nil || n.Net == nil {
		return &cluster.NodeNet{}
	}
	return n.Net
}

// PrimaryAddresses are those that Kubernetes takes for a node's own: of each family the first internal one, else the first
// external one.
func PrimaryAddresses(n *cluster.Node) []netip.Addr {
	var out []netip.Addr
	for _, is4 := range []bool{true, false} {
		own := func(a netip.Addr) bool { return a.Is4() == is4 }
		for _, list := range [][]netip.Addr{netOf(n).InternalIPs, netOf(n).ExternalIPs} {
			if i := slices.IndexFunc(list, own); i >= 0 {
				out = append(out, list[i])
				break
			}
		}
	}
	return out
}

// Take returns what is different since it was called last, and works it out.
func (b *Builder) Take() Diff {
	for i := 0; i < len(b.dirty); i++ { // those who want a key that becomes free follow
		x := b.dirty[i]
		x.dirty = false
		b.update(x)
	}
	b.dirty = slices.Delete(b.dirty, 0, len(b.dirty))
	if cap(b.dirty) > 1<<12 {
		b.dirty = nil // of the first time
	}
	d := b.diff
	b.diff = Diff{}
	if b.contended || len(d.Put) > 0 && len(d.Delete) > 0 {
		d.settle()
		b.contended = false
	}
	d.Rivals = slices.DeleteFunc(d.Rivals, func(r Rival) bool {
		_, still := b.rivals[r.Key][b.services[r.Loser]]
		return !still
	})
	for i := range d.Rivals {
		d.Rivals[i].Owner = b.owners[d.Rivals[i].Key].Key
	}
	return d
}

// settle leaves the last word on each key.
func (d *Diff) settle() {
	puts := map[Key]*Frontend{}
	for _, f := range d.Put {
		puts[f.Key] = f
	}
	d.Put = slices.Collect(maps.Values(puts))
	d.Delete = slices.DeleteFunc(d.Delete, func(k Key) bool { return puts[k] != nil })
}

// Serving returns the addresses that answer for the service that has a key, also those that get no new connections while others
// are better; nil if no service has the key.
func (b *Builder) Serving(k Key) map[netip.AddrPort]struct{} {
	s := b.owners[k]
	if s == nil || s.spec == nil { // it has gone since the last Take
		return nil
	}
	out := map[netip.AddrPort]struct{}{}
	for i := range s.spec.Ports {
		p := &s.spec.Ports[i]
		port := p.Port
		if k.NodePort() {
			port = p.NodePort
		}
		if protocols[p.Protocol] != k.Protocol || k.Port != port {
			continue
		}
		b.scratch = candidates(b.scratch, s.slices, p.Name, p.Protocol, k.Addr.Is4())
		for _, c := range b.scratch {
			out[c.AddrPort] = struct{}{}
		}
	}
	return out
}

// update works out a service's frontends and what is different in them.
func (b *Builder) update(s *service) {
	var fs []*Frontend
	var health Health
	var local []netip.Addr
	if s.spec != nil {
		fs, health, local = b.make(s), healthOf(s), b.localAddresses(s)
	}
	b.claim(s, fs)
	b.setLocal(s, local)
	if s.health != health {
		if b.diff.Health == nil {
			b.diff.Health = map[cluster.Key]Health{}
		}
		b.diff.Health[s.Key] = health
		s.health = health
	}
	if !s.trigger.IsZero() {
		if s.spec != nil {
			b.diff.Triggers = append(b.diff.Triggers, s.trigger)
		}
		s.trigger = time.Time{}
	}
	if s.spec == nil && len(s.slices) == 0 {
		delete(b.services, s.Key)
	}
}

// setLocal counts a service's endpoints on this node.
func (b *Builder) setLocal(s *service, now []netip.Addr) {
	if slices.Equal(s.local, now) {
		return
	}
	set := func(a netip.Addr, on bool) {
		if b.diff.Hairpin == nil {
			b.diff.Hairpin = map[netip.Addr]bool{}
		}
		b.diff.Hairpin[a] = on
	}
	for _, a := range now {
		if b.hairpin[a]++; b.hairpin[a] == 1 {
			set(a, true)
		}
	}
	for _, a := range s.local {
		if b.hairpin[a]--; b.hairpin[a] == 0 {
			delete(b.hairpin, a)
			set(a, false)
		}
	}
	s.local = now
}

// claim brings what is handed out for a service to fs. Of several services that want the same address and port one gets it: a
// ClusterIP comes before all else, then the order is that of names.
func (b *Builder) claim(s *service, fs []*Frontend) {
	made := make([]*Frontend, 0, len(fs))
	var lost, invites []Key
	wanted := newIndex(fs)
	old := newIndex(s.made)
	for i, f := range fs {
		if wanted.at(f.Key) != i {
			continue // two ports of the service, which the API does not allow
		}
		if owner := b.owners[f.Key]; owner != nil && owner != s {
			was := owner.frontend(f.Key).ClusterIP
			if before(was, owner, f.ClusterIP, s) {
				b.addRival(f.Key, s, f.ClusterIP)
				lost = append(lost, f.Key)
				continue
			}
			b.contended = true
			b.addRival(f.Key, owner, was)
			owner.made = slices.DeleteFunc(owner.made, func(g *Frontend) bool { return g.Key == f.Key })
			owner.lost = append(owner.lost, f.Key)
		}
		b.removeRival(f.Key, s)
		b.owners[f.Key] = s
		was := absent
		if i := old.at(f.Key); i >= 0 {
			was = s.made[i]
		}
		if was.ClusterIP && !f.ClusterIP {
			invites = append(invites, f.Key)
		}
		if was.equal(f) {
			f = was
		} else {
			b.diff.Put = append(b.diff.Put, f)
			b.diff.UDP = b.diff.UDP || f.Protocol == UDP && !was.within(f)
		}
		made = append(made, f)
	}
	for _, f := range s.made {
		if k := f.Key; wanted.at(k) < 0 && b.owners[k] == s {
			delete(b.owners, k)
			b.diff.Delete = append(b.diff.Delete, k)
			b.diff.UDP = b.diff.UDP || k.Protocol == UDP
			invites = append(invites, k)
		}
	}
	for _, k := range s.lost {
		if wanted.at(k) < 0 {
			b.removeRival(k, s)
			invites = append(invites, k)
		}
	}
	s.made, s.lost = slices.Clip(made), lost
	for _, k := range invites {
		b.invite(k)
	}
}

// absent stands for a frontend that there was not.
var absent = &Frontend{}

// within reports whether all that f led to, and f was there, is where g leads to, too.
func (f *Frontend) within(g *Frontend) bool {
	return f.Port != 0 && subset(f.Backends, g.Backends) && subset(f.Internal, g.Internal)
}

// subset reports whether all of a are in b. Both are in order.
func subset(a, b []netip.AddrPort) bool {
	for _, x := range a {
		i, ok := slices.BinarySearchFunc(b, x, netip.AddrPort.Compare)
		if !ok {
			return false
		}
		b = b[i:]
	}
	return true
}

// index finds frontends of a list by their keys.
type index struct {
	list []*Frontend
	many map[Key]int // nil for a few, which it is faster to look through
}

func newIndex(list []*Frontend) index {
	x := index{list: list}
	if len(list) > 8 {
		x.many = make(map[Key]int, len(list))
		for i, f := range list {
			if _, ok := x.many[f.Key]; !ok {
				x.many[f.Key] = i
			}
		}
	}
	return x
}

// at returns the first place of a key, -1 if it is not in the list.
func (x index) at(k Key) int {
	if x.many == nil {
		return slices.IndexFunc(x.list, func(f *Frontend) bool { return f.Key == k })
	}
	if i, ok := x.many[k]; ok {
		return i
	}
	return -1
}

// before reports whether s comes before t, where only one can be. Each says whether its address is a ClusterIP of its own.
func before(clusterIP bool, s *service, other bool, t *service) bool {
	if clusterIP != other {
		return clusterIP
	}
	return s.Compare(t.Key) < 0
}

// frontend returns what was handed out for a key, nil if nothing was.
func (s *service) frontend(k Key) *Frontend {
	if i := slices.IndexFunc(s.made, func(f *Frontend) bool { return f.Key == k }); i >= 0 {
		return s.made[i]
	}
	return nil
}

func (b *Builder) addRival(k Key, s *service, clusterIP bool) {
	list := b.rivals[k]
	if list == nil {
		list = map[*service]bool{}
		b.rivals[k] = list
	}
	if _, ok := list[s]; !ok {
		b.diff.Rivals = append(b.diff.Rivals, Rival{Key: k, Loser: s.Key})
	}
	list[s] = clusterIP
}

func (b *Builder) removeRival(k Key, s *service) {
	list := b.rivals[k]
	if delete(list, s); len(list) == 0 {
		delete(b.rivals, k)
	}
}

// invite has the first of those try again who want a key, if it comes before who has the key. If it does not want the key any more,
// the next one is invited when that comes out.
func (b *Builder) invite(k Key) {
	var first *service
	for r, clusterIP := range b.rivals[k] {
		if first == nil || before(clusterIP, r, b.rivals[k][first], first) {
			first = r
		}
	}
	if first == nil {
		return
	}
	if owner := b.owners[k]; owner == nil || before(b.rivals[k][first], first, owner.frontend(k).ClusterIP, owner) {
		b.touch(first)
	}
}

// equal reports whether f and g mean the same.
func (f *Frontend) equal(g *Frontend) bool {
	return f.Key == g.Key && f.ClusterIP == g.ClusterIP && f.Affinity == g.Affinity && f.Masquerade == g.Masquerade && f.Empty == g.Empty &&
		(f.Sources == nil) == (g.Sources == nil) && slices.Equal(f.Sources, g.Sources) &&
		slices.Equal(f.Backends, g.Backends) && slices.Equal(f.Internal, g.Internal)
}
