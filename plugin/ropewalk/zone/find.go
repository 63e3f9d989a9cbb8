package zone

import (
	"net/netip"
	"slices"
)

// found is what a name turned out to be.
type found struct {
	kind foundKind
	// e is the service of a foundService, foundAlias or foundEnv; svc is the index of the label that names it.
	e   *entry
	svc int
	f   filter
	// addr holds the octets of a foundAddr. owner is that of a foundReverse, nil if there are several.
	addr  [16]byte
	fam   int
	owner *owner
	// ns is the label of the namespace of a foundEnv without a service.
	ns []byte
}

type foundKind uint8

const (
	foundNothing foundKind = iota // the name does not exist
	foundEmpty                    // it exists and has no records
	foundApex
	foundVersion // dns-version.<zone>
	foundNS      // ns.dns.<zone>
	foundService // a service, or what f picks of it
	foundAlias
	foundAddr    // a pod's name: one address
	foundReverse // an address's reverse name
	foundEnv
)

// filter picks some of a service's ports and endpoints, as the labels left of the service's name ask for.
type filter struct {
	// portName and protocol are without their underscore; empty takes any, as in CoreDNS.
	portName, protocol []byte
	// endpoint is the label that names an endpoint, in lower case and behind its length octet.
	endpoint    [64]byte
	hasEndpoint bool
	// cluster is the source cluster, where the name gives one (hasCluster).
	cluster    []byte
	hasCluster bool
	// zone is the topology zone, given if zonal: labels in wire format where its own name has dots. prefer takes all
	// endpoints if it has none.
	zone          []byte
	zonal, prefer bool
	// counted is the list that was looked at last: how many of its ports match, and of those how many have a number.
	counted             portList
	count, countNumbers int
	// zoned is the table that was looked at last, zoneAt its index of the topology zone.
	zoned  *table
	zoneAt int
}

func (f *filter) port(p port) bool {
	return (len(f.portName) == 0 || equalFold(f.portName, p.name)) &&
		(len(f.protocol) == 0 || equalFold(f.protocol, p.protocol))
}

// matching returns how many ports of a list f takes. The slices of a service mostly have one list in common, which is
// gone through once.
func (f *filter) matching(l portList) int {
	if f.counted != l {
		f.counted, f.count, f.countNumbers = l, 0, 0
		for rest := l.all(); rest != ""; {
			var p port
			if p, rest = next(rest); f.port(p) {
				f.count++
				if p.number >= 0 {
					f.countNumbers++
				}
			}
		}
	}
	return f.count
}

// numbered says whether a port that f takes has a number.
func (f *filter) numbered(l portList) bool { return f.matching(l) > 0 && f.countNumbers > 0 }

// zoneIn returns the index in t.zones.names of the topology zone that f gives, -1 if t has no endpoint there.
func (f *filter) zoneIn(t *table) int {
	if f.zoned != t {
		f.zoned, f.zoneAt = t, -1
		if t.zones != nil {
			f.zoneAt = slices.IndexFunc(t.zones.names, f.isZone)
		}
	}
	return f.zoneAt
}

// isZone says whether name, in lower case, is the topology zone that f gives.
func (f *filter) isZone(name string) bool {
	rest := f.zone
	for first := true; len(rest) > 0; first = false {
		if !first {
			if name == "" || name[0] != '.' {
				return false
			}
			name = name[1:]
		}
		label := rest[1 : 1+int(rest[0])]
		if len(name) < len(label) || !equalFold(label, name[:len(label)]) {
			return false
		}
		name, rest = name[len(label):], rest[1+len(label):]
	}
	return name == ""
}

func (f *filter) setEndpoint(label []byte) {
	f.hasEndpoint = true
	f.endpoint[0] = byte(len(label))
	for i, c := range label {
		f.endpoint[1+i] = lower(c)
	}
}

// plain says that f takes everything.
func (f *filter) plain() bool {
	return !f.hasEndpoint && !f.zonal && len(f.portName) == 0 && len(f.protocol) == 0
}

// slice says whether f takes endpoints of s, going by what holds for the slice as a whole.
func (f *filter) slice(s *slice) bool {
	return !f.hasCluster || equalFold(f.cluster, s.id.cluster.Value())
}

func stripUnderscore(l []byte) []byte {
	if len(l) > 0 && l[0] == '_' {
		return l[1:]
	}
	return l
}

// find says what d is, rel being how many labels it has in front of its zone.
func (v *View) find(d *name, rel int, multi bool, r *found) {
	*r = found{}
	if rel == 0 {
		r.kind = foundApex
		return
	}
	last := d.label(rel - 1)
	reverse := d.isReverse()
	switch {
	case !reverse && equalFold(last, "svc"):
		v.findService(d, rel, multi, r)
	case !reverse && equalFold(last, "pod"):
		v.findPod(d, rel, r)
	case rel == 1 && equalFold(last, "dns-version"):
		r.kind = foundVersion
	case rel == 1 && equalFold(last, "dns"):
		r.kind = foundEmpty
	case rel == 2 && equalFold(last, "dns") && equalFold(d.label(0), "ns"):
		r.kind = foundNS
	case reverse:
		v.findReverse(d, r)
	}
}

// findService finds names at and below svc.<zone>.
func (v *View) findService(d *name, rel int, multi bool, r *found) {
	if rel == 1 {
		r.kind = foundEmpty
		return
	}
	tree := v.services
	if multi {
		tree = v.imports
	}
	var buf [128]byte
	key := appendLower(buf[:0], d.label(rel-2))
	if rel == 2 {
		if tree.Get(key) != nil {
			r.kind = foundEmpty
		}
		return
	}
	env := v.opts.Env && !multi
	if env && rel == 3 && equalFold(d.label(0), "_env") {
		if tree.Get(key) != nil {
			r.kind, r.ns = foundEnv, d.label(rel-2)
		}
		return
	}
	r.svc = rel - 3
	r.e = tree.Get(appendLower(key, d.label(rel-3)))
	if r.e == nil {
		return
	}
	if env && rel == 4 && r.e.kind == kindClusterIP && len(r.e.rrs) > 0 && equalFold(d.label(0), "_env") {
		r.kind = foundEnv
		return
	}
	v.pick(d, rel-3, multi, r)
}

func appendLower(dst, label []byte) []byte {
	dst = append(dst, byte(len(label)))
	for _, c := range label {
		dst = append(dst, lower(c))
	}
	return dst
}

// pick reads the labels left of a service's name, more of them.
func (v *View) pick(d *name, more int, multi bool, r *found) {
	e := r.e
	if e.kind == kindAlias {
		if more == 0 || more == 2 && string(d.label(0)) == "_" && string(d.label(1)) == "_" {
			r.kind = foundAlias // an alias has no ports; asking for any of them finds it, as in CoreDNS
		}
		return
	}
	switch {
	case more == 0: // without a look at the ports, which would cost more than all the rest
		if e.kind == kindClusterIP || e.ready() > 0 {
			r.kind = foundService
		}
		return
	case more == 1:
		r.f.setEndpoint(d.label(0))
		r.f.hasCluster = multi
	case more == 2 && multi && d.label(0)[0] != '_' && d.label(1)[0] != '_':
		r.f.setEndpoint(d.label(0))
		r.f.cluster, r.f.hasCluster = d.label(1), true
	case more == 2:
		r.f.portName, r.f.protocol = stripUnderscore(d.label(0)), stripUnderscore(d.label(1))
	case v.opts.Zonal && !multi:
		v.pickZone(d, more, r)
		return
	default:
		return
	}
	switch {
	case e.exists(&r.f):
		r.kind = foundService
	case v.isInner(d, more, multi, e):
		r.kind = foundEmpty
	}
}

// pickZone reads <topology zone>.pin|prefer._zone; a zone may have dots.
func (v *View) pickZone(d *name, more int, r *found) {
	if r.e.kind != kindHeadless || !equalFold(d.label(more-1), "_zone") {
		return
	}
	switch {
	case equalFold(d.label(more-2), "pin"):
	case equalFold(d.label(more-2), "prefer"):
		r.f.prefer = true
	default:
		return
	}
	r.f.zonal = true
	r.f.zone = d.wire[:d.at[more-2]]
	r.kind = foundService
}

// exists says whether f picks anything of the service.
func (e *entry) exists(f *filter) bool {
	if e.kind == kindClusterIP && !f.hasEndpoint {
		return f.matching(e.ports) > 0
	}
	for _, s := range e.slices {
		if f.slice(s) && f.matching(s.ports) > 0 && (!f.hasEndpoint || s.has(f)) {
			return true
		}
	}
	return false
}

// has says whether the slice has an endpoint of the name in f.
func (s *slice) has(f *filter) bool {
	found := false
	for fam := range s.fam {
		s.endpoints(fam, f, func(int) bool {
			found = true
			return false
		})
	}
	return found
}

// isInner says whether a name below a service exists for the sake of names below itself (RFC 8020): _tcp.<service>
// where a port of TCP has a name, _zone.<service> and its directives, the cluster in <host>.<cluster>.<service>.
func (v *View) isInner(d *name, more int, multi bool, e *entry) bool {
	if e.kind == kindHeadless && v.opts.Zonal && !multi && equalFold(d.label(more-1), "_zone") {
		return more == 1 || equalFold(d.label(0), "pin") || equalFold(d.label(0), "prefer")
	}
	if more != 1 || e.kind == kindHeadless && e.ready() == 0 {
		return false
	}
	l := d.label(0)
	if multi {
		for _, s := range e.slices {
			if equalFold(l, s.id.cluster.Value()) {
				return true
			}
		}
	}
	if len(l) < 2 || l[0] != '_' {
		return false
	}
	if e.kind == kindClusterIP {
		return e.ports.names(l[1:])
	}
	for k, s := range e.slices {
		if (k == 0 || s.ports != e.slices[k-1].ports) && s.ports.names(l[1:]) {
			return true
		}
	}
	return false
}

// names says whether a port of that protocol has a name.
func (l portList) names(protocol []byte) bool {
	for rest := l.all(); rest != ""; {
		var p port
		if p, rest = next(rest); p.name != "" && equalFold(p.protocol, protocol) {
			return true
		}
	}
	return false
}

// findPod finds names at and below pod.<zone>. As in CoreDNS, up to two labels in front of a pod's name change nothing.
func (v *View) findPod(d *name, rel int, r *found) {
	if v.opts.Pods == PodsDisabled {
		return
	}
	if rel == 1 {
		r.kind = foundEmpty
		return
	}
	var buf [64]byte
	if v.services.Get(appendLower(buf[:0], d.label(rel-2))) == nil || rel > 5 {
		return
	}
	if rel == 2 {
		r.kind = foundEmpty
		return
	}
	label := d.label(rel - 3)
	if v.opts.Pods == PodsInsecure {
		if a, ok := parseDashed(label); ok {
			r.setAddr(a)
		}
		return
	}
	a, ok := parseDashed(label)
	if !ok {
		return
	}
	var text [64]byte
	if !equalFold(dashes(a.AppendTo(text[:0])), label) {
		return
	}
	var key [17]byte
	if l := v.pods.Get(addrKey(key[:0], a)); l != nil {
		for _, p := range *l {
			if equalFold(p.Namespace, d.label(rel-2)) {
				r.setAddr(a)
				return
			}
		}
	}
}

// findReverse finds reverse names of addresses that are served, and what lies above them.
func (v *View) findReverse(d *name, r *found) {
	var buf [18]byte
	key, odd, ok := d.reverseAddr(buf[:0])
	if !ok {
		return
	}
	full := len(key) == 5 && key[0] == 4 || len(key) == 17
	switch {
	case full:
		if r.owner = v.addrs.Get(key); r.owner != nil || v.addrs.Walk(key).Below {
			r.kind = foundReverse
		}
	case odd < 0:
		if v.addrs.Walk(key).Below {
			r.kind = foundEmpty
		}
	default:
		for low := range 16 {
			octet := append(key, byte(odd)<<4|byte(low))
			if m := v.addrs.Walk(octet); m.Below || m.Len == len(octet) {
				r.kind = foundEmpty
				return
			}
		}
	}
}

func (r *found) setAddr(a netip.Addr) {
	r.kind = foundAddr
	if a.Is4() {
		octets := a.As4()
		copy(r.addr[:], octets[:])
		r.fam = v4
		return
	}
	r.addr, r.fam = a.As16(), v6
}
