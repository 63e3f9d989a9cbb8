package zone

import (
	"net/netip"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// service is a Service or ServiceImport as such: what stays when its state changes. Its pointer is its identity. All but
// key belongs to the writer.
type service struct {
	owner
	// key is its key in View.services or View.imports.
	key      string
	ns       *space
	gen      uint32
	imported bool
	// ids is how many slices name the service as theirs, with ready endpoints or without.
	ids int
	// spec is the object, empty while there is none (slices may come first). slices are those with ready endpoints, in the
	// order of their last change, sum what they come to; the list is not written to. served is what the newest View has.
	spec   spec
	slices []*slice
	sum    totals
	served *entry
	hold   *hold
}

// name returns the service's name without its namespace.
func (s *service) name() string { return s.key[2+s.key[0]:] }

// namespace returns the name of the service's namespace.
func (s *service) namespace() string { return s.key[1 : 1+s.key[0]] }

// appendName appends the service's name up to the zone in wire format, as in "\x03web\x04shop\x03svc".
func (s *service) appendName(dst []byte) []byte {
	n := 1 + s.key[0]
	return append(append(append(dst, s.key[n:]...), s.key[:n]...), "\x03svc"...)
}

func (s *service) nameLen() int { return len(s.key) + len("\x03svc") }

func (s *service) wire() string { return string(s.appendName(nil)) }

// hold keeps served as it is for a moment, though slices has changed: see Options.Settle.
type hold struct {
	until time.Time
	// missing are the endpoint names that would vanish; if it is nil, the service's last endpoint would.
	missing map[string]struct{}
	changes []cluster.Change
}

// spec is what records are made of in a Service or ServiceImport. Two that are equal answer alike; the zero spec is that
// of one that is not served.
type spec struct {
	kind  entryKind
	ports portList
	// data holds the target of an alias in wire format, or the ClusterIPs' keys (addrKey) one after the other.
	data string
}

func (s spec) exists() bool { return s != spec{} }

type entryKind uint8

const (
	kindNamespace entryKind = iota
	kindClusterIP
	kindHeadless
	kindAlias
)

// entry is a service as a View serves it, or a namespace. It never changes. Its fields are in an order that has what
// most queries need, address records of a service with one ClusterIP, within one cache line.
type entry struct {
	// rrs holds ready-made A and AAAA records of the service's own name: first n[v4] A records, then n[v6] AAAA ones, each
	// with 0xC00C for an owner, which is where a message has its question. Empty for headless services with more than
	// maxPacked endpoints, whose records are made from slices. Of an alias it is the target's name in wire format.
	rrs string
	n   [2]uint16
	// sum is of slices.
	sum  totals
	kind entryKind
	// firstIs6 says that the primary ClusterIP is an IPv6 address.
	firstIs6 bool
	// inline is where rrs points if there is room: for one A and one AAAA record.
	inline [16 + 28]byte
	of     *service
	ports  portList
	slices []*slice
}

// maxPacked bounds the work that a changed endpoint makes in its service: beyond it the records no longer fit into a UDP
// message anyway.
const maxPacked = 64

var namespaceEntry = &entry{kind: kindNamespace}

// newEntry makes what is served of a service; nil if it is not served at all.
func newEntry(s *service, opts *Options) *entry {
	if !s.spec.exists() {
		return nil
	}
	e := &entry{of: s, kind: s.spec.kind, ports: s.spec.ports}
	if e.kind == kindAlias {
		e.rrs = s.spec.data
		return e
	}
	if e.kind == kindClusterIP && s.sum.endpoints() == 0 && opts.IgnoreEmpty {
		return nil
	}
	e.sum, e.slices = s.sum, s.slices
	e.firstIs6 = s.spec.data != "" && s.spec.data[0] == familyOctet[v6]
	rrs := e.inline[:0]
	for f := range e.n {
		rrs, e.n[f] = e.pack(rrs, f, s.spec.data, opts.TTL)
	}
	// The octets are not written to again, wherever they are.
	e.rrs = unsafe.String(unsafe.SliceData(rrs), len(rrs))
	return e
}

// primary returns the first ClusterIP; the zero Addr if there is none.
func (e *entry) primary() (ip netip.Addr) {
	for f, octets := range packedAddrs(e.clusterIPs()) {
		if !ip.IsValid() || f == v6 && e.firstIs6 && ip.Is4() {
			ip = toAddr(octets)
		}
	}
	return ip
}

// pack appends the ready-made records of family f.
func (e *entry) pack(rrs []byte, f int, ips string, ttl uint32) ([]byte, uint16) {
	n, at := uint16(0), len(rrs)
	add := func(addr string) {
		if !hasAddr(rrs[at:], addr) {
			rrs = appendAddr(rrs, questionPtr, ttl, addr)
			n++
		}
	}
	if e.kind == kindClusterIP {
		for ips != "" {
			size := 1 + width[v4]
			if ips[0] == familyOctet[v6] {
				size = 1 + width[v6]
			}
			if ips[0] == familyOctet[f] {
				add(ips[1:size])
			}
			ips = ips[size:]
		}
		return rrs, n
	}
	if !e.isPacked() {
		return rrs, 0
	}
	for _, sl := range e.slices {
		for i := range sl.fam[f].len(f) {
			add(sl.fam[f].addr(f, i))
		}
	}
	return rrs, n
}

// hasAddr says whether one of a few ready-made records, all of one family, is of that address.
func hasAddr(rrs []byte, addr string) bool {
	for size := 12 + len(addr); len(rrs) > 0; rrs = rrs[size:] {
		if string(rrs[12:size]) == addr {
			return true
		}
	}
	return false
}

func (e *entry) ready() int { return e.sum.endpoints() }

func (e *entry) isPacked() bool { return e.kind == kindClusterIP || e.ready() <= maxPacked }

// same says whether two entries of one service answer alike.
func (e *entry) same(o *entry) bool {
	return e.kind == o.kind && e.ports == o.ports && e.rrs == o.rrs && e.n == o.n && e.firstIs6 == o.firstIs6 &&
		slices.Equal(e.slices, o.slices)
}

// counts returns how many records there are at and below the service's name.
func (e *entry) counts() (c Counts) {
	switch e.kind {
	case kindAlias:
		c.CNAME = 1
	case kindClusterIP:
		c.A, c.AAAA = int(e.n[v4]), int(e.n[v6])
		if c.A+c.AAAA > 0 {
			c.SRV = namedPorts(e.ports)
		}
		c.PTR4, c.PTR6 = c.A, c.AAAA
	}
	a4, a6 := int(e.sum.ready[v4]), int(e.sum.ready[v6])
	c.PTR4, c.PTR6 = c.PTR4+a4, c.PTR6+a6
	c.A, c.AAAA = c.A+a4, c.AAAA+a6
	if e.kind == kindHeadless {
		c.A, c.AAAA = c.A+a4, c.AAAA+a6
		c.SRV += int(e.sum.srv)
	}
	if e.of.imported {
		c.PTR4, c.PTR6 = 0, 0
	}
	return c
}

func (c *Counts) add(o Counts, sign int) {
	c.A += sign * o.A
	c.AAAA += sign * o.AAAA
	c.SRV += sign * o.SRV
	c.CNAME += sign * o.CNAME
	c.PTR4 += sign * o.PTR4
	c.PTR6 += sign * o.PTR6
}

func namedPorts(l portList) (n int) {
	for rest := l.all(); rest != ""; {
		var p port
		if p, rest = next(rest); p.name != "" {
			n++
		}
	}
	return n
}

// newSpec takes from a Service what is served of it.
func newSpec(o *cluster.Service) spec {
	if o.Type == cluster.ExternalName {
		alias, ok := wireName(o.ExternalName)
		if _, err := netip.ParseAddr(o.ExternalName); err == nil || !ok {
			return spec{}
		}
		return spec{kind: kindAlias, data: alias, ports: servicePorts(nil)}
	}
	return addressSpec(o.Headless, o.ClusterIPs, o.Ports)
}

func newImportSpec(o *cluster.ServiceImport) spec { return addressSpec(o.Headless, o.IPs, o.Ports) }

func addressSpec(headless bool, ips []netip.Addr, ports []cluster.ServicePort) spec {
	s := spec{kind: kindClusterIP, ports: servicePorts(ports)}
	if headless {
		s.kind = kindHeadless
		return s
	}
	var keys []byte
	for _, ip := range ips[:min(len(ips), maxPacked)] { // the API allows two
		if ip.IsValid() {
			keys = addrKey(keys, ip.Unmap())
		}
	}
	s.data = string(keys)
	return s
}

// wireName returns the wire format of a name without escapes, such as Kubernetes objects hold, with its root label.
func wireName(name string) (string, bool) {
	var b strings.Builder
	for l := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if l == "" || len(l) > 63 {
			return "", false
		}
		b.WriteByte(byte(len(l)))
		b.WriteString(l)
	}
	b.WriteByte(0)
	return b.String(), b.Len() <= 255
}
