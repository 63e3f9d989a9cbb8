package zone

import (
	"iter"
	"net/netip"
	"strings"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// Fill returns the View of a Zone that deliver has filled, without running one. It calls deliver once; if that returns an
// error there is no View.
func Fill(opts Options, deliver func(cluster.Sink) error) (*View, error) {
	opts.Served = nil
	w := newWriter(New(opts))
	if err := deliver((*filler)(w)); err != nil {
		return nil, err
	}
	w.publish()
	return w.z.View(), nil
}

// filler is a writer that takes changes in at once and remembers none of them.
type filler writer

func (f *filler) Apply(c cluster.Change) {
	w := (*writer)(f)
	w.take(c)
	clear(w.batch)
	w.batch = w.batch[:0]
}

// Objects yields values that make a Zone with the same options answer what v answers, whatever was behind v: an endpoint
// comes with its name for a hostname, and only if it is ready; what is not exposed does not come. A service comes after
// its slices, so that its entry is made once. The values are made while they are yielded; readers and the writer of the
// Zone are not in the way, nor kept waiting.
func (v *View) Objects() iter.Seq[cluster.Object] {
	return func(yield func(cluster.Object) bool) {
		imports := v.importedSlices()
		_ = v.serviceObjects(imports, yield) && v.importObjects(imports, yield) && v.podObjects(yield) && v.rangeObjects(yield)
	}
}

// importedSlices returns the slices that ServiceImports are served from. A slice may belong to a Service as well, and is
// one object.
func (v *View) importedSlices() map[cluster.Key]*slice {
	found := map[cluster.Key]*slice{}
	for _, e := range v.imports.Prefixed(nil) {
		for _, s := range e.slices {
			found[s.key()] = s
		}
	}
	return found
}

func (s *slice) key() cluster.Key {
	return cluster.Key{Namespace: s.id.of.namespace(), Name: s.id.name}
}

// serviceObjects yields namespaces, and services with their slices, which it takes out of imports. As with the functions
// below, false says that the consumer has had enough.
func (v *View) serviceObjects(imports map[cluster.Key]*slice, yield func(cluster.Object) bool) bool {
	for key, e := range v.services.Prefixed(nil) {
		if e.kind == kindNamespace {
			if !yield(&cluster.Namespace{Name: string(key[1:])}) {
				return false
			}
			continue
		}
		for _, s := range e.slices {
			o := s.object()
			o.Service = e.of.name()
			if i := imports[s.key()]; i != nil {
				o.Import, o.Cluster = i.id.of.name(), i.id.cluster.Value()
				delete(imports, s.key())
			}
			if !yield(o) {
				return false
			}
		}
		o := &cluster.Service{Namespace: e.of.namespace(), Name: e.of.name()}
		if e.kind == kindAlias {
			o.Type, o.ExternalName = cluster.ExternalName, textName(e.rrs)
		} else {
			o.Headless, o.ClusterIPs, o.Ports = e.kind == kindHeadless, e.ips(), e.ports.service()
		}
		if !yield(o) {
			return false
		}
	}
	return true
}

// importObjects yields ServiceImports, and their slices as far as they are in slices.
func (v *View) importObjects(slices map[cluster.Key]*slice, yield func(cluster.Object) bool) bool {
	for _, e := range v.imports.Prefixed(nil) {
		if e.kind == kindNamespace {
			continue
		}
		for _, s := range e.slices {
			if slices[s.key()] == nil {
				continue
			}
			o := s.object()
			o.Import, o.Cluster = e.of.name(), s.id.cluster.Value()
			if !yield(o) {
				return false
			}
		}
		o := &cluster.ServiceImport{
			Namespace: e.of.namespace(), Name: e.of.name(),
			Headless: e.kind == kindHeadless, IPs: e.ips(), Ports: e.ports.service(),
		}
		if !yield(o) {
			return false
		}
	}
	return true
}

func (v *View) podObjects(yield func(cluster.Object) bool) bool {
	for key, pods := range v.pods.Prefixed(nil) {
		for _, p := range *pods {
			// A pod is listed under each of its addresses.
			if string(addrKey(nil, p.ips[0].Unmap())) != string(key) {
				continue
			}
			if !yield(&cluster.Pod{Namespace: p.Namespace, Name: p.Name, IPs: p.ips, Labels: p.Labels}) {
				return false
			}
		}
	}
	return true
}

// rangesName is what the Node and the ServiceCIDR of Objects are called: no object of the API can be.
const rangesName = "reverse zones"

// rangeObjects yields the ranges of the reverse zones twice, since which of them are the nodes' is not known: so a
// listing of either kind drops none that the other kind still has to tell of.
func (v *View) rangeObjects(yield func(cluster.Object) bool) bool {
	var ranges []netip.Prefix
	for key := range v.reverse.Prefixed(nil) {
		ranges = append(ranges, apexRange(key))
	}
	return len(ranges) == 0 || yield(&cluster.Node{Name: rangesName, PodCIDRs: ranges}) &&
		yield(&cluster.ServiceCIDR{Name: rangesName, CIDRs: ranges})
}

// apexRange is the inverse of reverseApexes: the range of one apex, whose key begins with "\x04arpa\x07in-addr" or
// "\x04arpa\x03ip6".
func apexRange(key []byte) netip.Prefix {
	labels := key[5:]
	is6 := labels[0] == 3
	var octets [16]byte
	bits := 0
	for labels = labels[1+labels[0]:]; len(labels) > 0; labels = labels[1+labels[0]:] {
		l := labels[1 : 1+labels[0]]
		if is6 {
			octets[bits/8] |= hexDigit(l[0]) << (4 - bits%8)
			bits += 4
		} else {
			octets[bits/8], _ = parseOctet(l)
			bits += 8
		}
	}
	if is6 {
		return netip.PrefixFrom(netip.AddrFrom16(octets), bits)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(octets[:4])), bits)
}

// ips returns a service's own addresses, the primary one first.
func (e *entry) ips() (ips []netip.Addr) {
	first := e.primary()
	for _, octets := range packedAddrs(e.clusterIPs()) {
		if a := toAddr(octets); a != first {
			ips = append(ips, a)
		} else {
			ips = append([]netip.Addr{a}, ips...)
		}
	}
	return ips
}

// object returns the slice as an EndpointSlice that belongs to nobody.
func (s *slice) object() *cluster.Slice {
	o := &cluster.Slice{Namespace: s.id.of.namespace(), Name: s.id.name, Ports: s.ports.endpoint()}
	o.Endpoints = make([]cluster.Endpoint, 0, s.fam[v4].len(v4)+s.fam[v6].len(v6))
	for f := range s.fam {
		t := &s.fam[f]
		for i := range t.len(f) {
			e := cluster.Endpoint{Addr: toAddr(t.addr(f, i)), Ready: true}
			if l := t.label(i); l != "" {
				e.Hostname = l[1:]
			}
			if t.zones != nil {
				e.Zone = t.zones.names[t.zones.of[i]]
			}
			o.Endpoints = append(o.Endpoints, e)
		}
	}
	return o
}

func (l portList) service() (ports []cluster.ServicePort) {
	for _, p := range l.endpoint() {
		ports = append(ports, cluster.ServicePort{Name: p.Name, Protocol: p.Protocol, Port: uint16(p.Port)})
	}
	return ports
}

func (l portList) endpoint() (ports []cluster.EndpointPort) {
	rest := l.all()
	if rest == noPorts {
		return nil
	}
	for rest != "" {
		var p port
		p, rest = next(rest)
		ports = append(ports, cluster.EndpointPort{Name: p.name, Protocol: cluster.Protocol(p.protocol), Port: p.number})
	}
	return ports
}

// textName is the inverse of wireName. The dot at the end keeps what looks like an address a name.
func textName(wire string) string {
	var b strings.Builder
	for wire != "\x00" {
		n := 1 + int(wire[0])
		b.WriteString(wire[1:n])
		b.WriteByte('.')
		wire = wire[n:]
	}
	return b.String()
}
