package zone

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"unique"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// slice is the ready endpoints of one EndpointSlice in compact form. It never changes.
type slice struct {
	id    *sliceID
	ports portList
	// fam holds the IPv4 endpoints in fam[v4] and the IPv6 ones in fam[v6]. The API has one family a slice.
	fam [2]table
}

const (
	v4 = 0
	v6 = 1
)

var width = [2]int{v4: 4, v6: 16}

// sliceID is what stays when a slice changes. Its pointer is its identity.
type sliceID struct {
	owner
	// cluster is the source cluster of an imported slice, else empty.
	cluster unique.Handle[string]
	// name is the object's name.
	name string
	// gen, truth and served belong to the writer: the listing the slice was last seen in, its newest state, and the one
	// whose addresses are in the tree.
	gen           uint32
	truth, served *slice
}

// table holds endpoints of one family in the order of their addresses.
type table struct {
	// addrs holds the addresses' octets one after the other.
	addrs string
	// names is nil if no endpoint has a name, zones unless Options.Zonal.
	names *names
	zones *zones
}

// names are those of a table's endpoints that are not called by their address.
type names struct {
	// labels holds them one after the other, each behind its length octet; at says where each endpoint's starts, noLabel
	// if it has none.
	labels string
	at     []uint32
	// by holds the indexes of endpoints with a name, in the order of their names.
	by []uint16
}

const noLabel = ^uint32(0)

// zones are where a table's endpoints are: names of topology zones in lower case, each once, and which is whose.
type zones struct {
	names []string
	of    []uint16
}

func (t *table) len(f int) int { return len(t.addrs) / width[f] }

func (t *table) addr(f, i int) string { return t.addrs[i*width[f] : (i+1)*width[f]] }

// find returns the index of the endpoint with the address whose octets are a.
func (t *table) find(f int, a []byte) (int, bool) {
	lo, hi := 0, t.len(f)
	for lo < hi {
		mid := (lo + hi) / 2
		switch m := t.addr(f, mid); {
		case m == string(a):
			return mid, true
		case m < string(a):
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, false
}

// label returns the explicit name of an endpoint in wire format, length octet first; empty if it has none.
func (t *table) label(i int) string {
	if t.names == nil {
		return ""
	}
	return t.names.label(i)
}

func (n *names) label(i int) string {
	at := n.at[i]
	if at == noLabel {
		return ""
	}
	return n.labels[at : at+1+uint32(n.labels[at])]
}

// byName returns the indexes of endpoints with a name, in the order of their names.
func (t *table) byName() []uint16 {
	if t.names == nil {
		return nil
	}
	return t.names.by
}

// firstNamed returns where in byName the endpoints that are called label stand, if there are any. It is in wire format
// and in lower case. They may be many, so nothing looks for the last one.
func (t *table) firstNamed(label []byte) int {
	by := t.byName()
	lo, hi := 0, len(by)
	for lo < hi {
		mid := (lo + hi) / 2
		if t.label(int(by[mid])) < string(label) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// isNamed says whether the endpoint at a place in byName is there and is called label.
func (t *table) isNamed(at int, label []byte) bool {
	by := t.byName()
	return at < len(by) && t.label(int(by[at])) == string(label)
}

// hasName says whether the slice has an endpoint called label.
func (s *slice) hasName(label []byte) bool {
	for f := range s.fam {
		if t := &s.fam[f]; t.isNamed(t.firstNamed(label), label) {
			return true
		}
	}
	return false
}

// appendLabel appends the label that names endpoint i, length octet first: its own name or, as CoreDNS has it, its
// address with dashes for dots and colons, and a 0 where it would end in a dash.
func (t *table) appendLabel(dst []byte, f, i int) []byte {
	if l := t.label(i); l != "" {
		return append(dst, l...)
	}
	at := len(dst)
	dst = append(dst, 0)
	dst = appendDashed(dst, toAddr(t.addr(f, i)))
	dst[at] = byte(len(dst) - at - 1)
	return dst
}

func appendDashed(dst []byte, a netip.Addr) []byte {
	at := len(dst)
	dst = a.AppendTo(dst)
	dashes(dst[at:])
	if dst[len(dst)-1] == '-' {
		dst = append(dst, '0')
	}
	return dst
}

// dashes puts dashes in the place of dots and colons.
func dashes(text []byte) []byte {
	for i, c := range text {
		if c == '.' || c == ':' {
			text[i] = '-'
		}
	}
	return text
}

// dashedAddr is the inverse of appendDashed; it takes nothing but what that makes.
func dashedAddr(label []byte) (netip.Addr, bool) {
	a, ok := parseDashed(label)
	if !ok {
		return a, false
	}
	var buf [64]byte
	return a, equalFold(appendDashed(buf[:0], a), label)
}

// parseDashed reads an address with dashes for dots or colons, in any form an address can be written.
func parseDashed(label []byte) (netip.Addr, bool) {
	var buf [64]byte
	if len(label) > len(buf) || bytes.IndexByte(label, '%') >= 0 {
		return netip.Addr{}, false
	}
	sep := byte(':')
	if bytes.Count(label, []byte("-")) == 3 && !bytes.Contains(label, []byte("--")) {
		sep = '.'
	}
	s := append(buf[:0], label...)
	for i, c := range s {
		if c == '-' {
			s[i] = sep
		}
	}
	if sep == '.' {
		return parse4(s)
	}
	return parse6(s)
}

// parse4 and parse6 exist because netip.ParseAddr takes a string, and makes its errors, at the price of an allocation.
func parse4(s []byte) (netip.Addr, bool) {
	var a [4]byte
	for i := range a {
		n, digits := 0, 0
		for len(s) > 0 && s[0] != '.' {
			if s[0] < '0' || s[0] > '9' || digits == 3 || (digits == 1 && n == 0) {
				return netip.Addr{}, false
			}
			n, digits, s = n*10+int(s[0]-'0'), digits+1, s[1:]
		}
		if digits == 0 || n > 255 || (i < 3) != (len(s) > 0) {
			return netip.Addr{}, false
		}
		a[i] = byte(n)
		if i < 3 {
			s = s[1:]
		}
	}
	return netip.AddrFrom4(a), true
}

func parse6(s []byte) (netip.Addr, bool) {
	var groups [8]uint16
	n, gap := 0, -1
	if bytes.HasPrefix(s, []byte("::")) {
		gap, s = 0, s[2:]
	}
	for len(s) > 0 {
		if n == 8 {
			return netip.Addr{}, false
		}
		v, digits := uint16(0), 0
		for len(s) > 0 && s[0] != ':' {
			d := hexDigit(s[0])
			if d > 15 || digits == 4 {
				return netip.Addr{}, false
			}
			v, digits, s = v<<4|uint16(d), digits+1, s[1:]
		}
		if digits == 0 {
			return netip.Addr{}, false
		}
		groups[n] = v
		n++
		if len(s) == 0 {
			break
		}
		s = s[1:]
		if len(s) == 0 {
			return netip.Addr{}, false // a lone colon at the end
		}
		if s[0] == ':' {
			if gap >= 0 {
				return netip.Addr{}, false
			}
			gap, s = n, s[1:]
		}
	}
	if (gap < 0) != (n == 8) {
		return netip.Addr{}, false
	}
	var a [16]byte
	for i := range n {
		at := i
		if gap >= 0 && i >= gap {
			at = i + 8 - n
		}
		binary.BigEndian.PutUint16(a[2*at:], groups[i])
	}
	return netip.AddrFrom16(a).Unmap(), true
}

func hexDigit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10
	}
	return 0xff
}

func toAddr(octets string) netip.Addr {
	a, _ := netip.AddrFromSlice([]byte(octets))
	return a
}

// endpoints calls fn with the index of each endpoint of family fam that f takes, until fn returns false. It says
// whether fn went through all. It does not look at ports.
func (s *slice) endpoints(fam int, f *filter, fn func(i int) bool) bool {
	return s.between(0, s.fam[fam].len(fam), fam, f, fn)
}

// between is endpoints for those whose index is lo or more, but less than hi.
func (s *slice) between(lo, hi, fam int, f *filter, fn func(i int) bool) bool {
	t := &s.fam[fam]
	switch {
	case f.hasEndpoint:
		return t.called(fam, f, func(i int) bool { return i < lo || i >= hi || fn(i) })
	case f.zonal && f.zoneIn(t) < 0:
		return true
	}
	for i := lo; i < hi; i++ {
		if t.inZone(i, f) && !fn(i) {
			return false
		}
	}
	return true
}

// called is endpoints for a filter that names one.
func (t *table) called(fam int, f *filter, fn func(i int) bool) bool {
	label := f.endpoint[:1+int(f.endpoint[0])]
	for at := t.firstNamed(label); t.isNamed(at, label); at++ {
		if !fn(int(t.names.by[at])) {
			return false
		}
	}
	a, ok := dashedAddr(label[1:])
	if !ok || a.Is4() != (fam == v4) {
		return true
	}
	var octets [16]byte
	i, ok := t.find(fam, appendOctets(octets[:0], a))
	return !ok || t.label(i) != "" || fn(i)
}

func appendOctets(dst []byte, a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return append(dst, b[:]...)
	}
	b := a.As16()
	return append(dst, b[:]...)
}

// newSlice makes the compact form of o. eps is room for it to work in.
func newSlice(id *sliceID, o *cluster.Slice, opts *Options, eps *[2][]endpoint) *slice {
	s := &slice{id: id, ports: endpointPorts(o.Ports)}
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		if !e.Ready || !e.Addr.IsValid() {
			continue
		}
		a, f := e.Addr.Unmap().WithZone(""), v6
		if a.Is4() {
			f = v4
		}
		eps[f] = append(eps[f], endpoint{a, endpointLabel(e, opts.EndpointPodNames), e.Zone})
	}
	for f := range eps {
		s.fam[f] = newTable(f, eps[f], opts.Zonal)
		clear(eps[f]) // lets go of the strings in it
		eps[f] = eps[f][:0]
	}
	return s
}

// endpoint is an endpoint on its way into a table.
type endpoint struct {
	addr        netip.Addr
	label, zone string
}

// newTable sorts eps and drops repetitions.
func newTable(f int, eps []endpoint, zonal bool) (t table) {
	slices.SortStableFunc(eps, func(a, b endpoint) int {
		return cmp.Or(a.addr.Compare(b.addr), strings.Compare(a.label, b.label))
	})
	// The API forbids two endpoints of a slice with one address, so that an address leads to one endpoint.
	eps = slices.CompactFunc(eps, func(a, b endpoint) bool { return a.addr == b.addr })
	if len(eps) > 1<<16-1 {
		eps = eps[:1<<16-1] // the API allows 1,000
	}
	addrs := make([]byte, 0, len(eps)*width[f])
	for i, e := range eps {
		addrs = appendOctets(addrs, e.addr)
		if e.label != "" && t.names == nil {
			t.names = newNames(eps[i:], i)
		}
	}
	t.addrs = string(addrs)
	if zonal && len(eps) > 0 {
		t.zones = newZones(eps)
	}
	return t
}

// newNames makes the names of eps, in front of which there are before endpoints without.
func newNames(eps []endpoint, before int) *names {
	n := &names{at: slices.Repeat([]uint32{noLabel}, before+len(eps))}
	var labels []byte
	for i, e := range eps {
		if e.label != "" {
			n.at[before+i] = uint32(len(labels))
			labels = append(append(labels, byte(len(e.label))), e.label...)
			n.by = append(n.by, uint16(before+i))
		}
	}
	n.labels = string(labels)
	slices.SortStableFunc(n.by, func(a, b uint16) int { return strings.Compare(n.label(int(a)), n.label(int(b))) })
	n.by = slices.Clip(n.by)
	return n
}

func newZones(eps []endpoint) *zones {
	z, at := &zones{of: make([]uint16, len(eps))}, map[string]uint16{}
	for i, e := range eps {
		name := lowerName(e.zone)
		k, known := at[name]
		if !known {
			k = uint16(len(z.names))
			at[name] = k
			z.names = append(z.names, unique.Make(name).Value())
		}
		z.of[i] = k
	}
	return z
}

// endpointLabel returns the name that sets an endpoint apart from its address, empty if there is none that can be
// asked for: a label of the DNS is 63 octets at most, and a pod's name may have dots in it.
func endpointLabel(e *cluster.Endpoint, podNames bool) string {
	switch {
	case isLabel(e.Hostname):
		return lowerName(e.Hostname)
	case podNames && isLabel(e.PodName):
		return lowerName(e.PodName)
	case e.Written != "":
		l := lowerName(strings.NewReplacer(".", "-", ":", "-").Replace(e.Written))
		if strings.HasSuffix(l, "-") {
			l += "0"
		}
		if isLabel(l) {
			return l
		}
	}
	return ""
}

// isObjectName says whether a namespace or a service can be called s. The API has no capitals in their names; but a label
// of a slice may have, and then it names no service.
func isObjectName(s string) bool { return isLabel(s) && s == strings.ToLower(s) }

func isLabel(s string) bool { return s != "" && len(s) <= 63 && !strings.Contains(s, ".") }

// totals is what slices come to, repetitions included, as in the weight of SRV records in CoreDNS.
type totals struct {
	// ready counts the endpoints of either family, srv the named ports of each.
	ready [2]uint32
	srv   uint32
}

func (s *slice) totals() (t totals) {
	for f := range t.ready {
		t.ready[f] = uint32(s.fam[f].len(f))
	}
	t.srv = (t.ready[v4] + t.ready[v6]) * uint32(namedPorts(s.ports))
	return t
}

func (t *totals) add(o totals) {
	t.ready[v4], t.ready[v6], t.srv = t.ready[v4]+o.ready[v4], t.ready[v6]+o.ready[v6], t.srv+o.srv
}

func (t *totals) sub(o totals) {
	t.ready[v4], t.ready[v6], t.srv = t.ready[v4]-o.ready[v4], t.ready[v6]-o.ready[v6], t.srv-o.srv
}

func (t totals) endpoints() int { return int(t.ready[v4] + t.ready[v6]) }

// same says whether two states of a slice answer alike.
func (s *slice) same(o *slice) bool {
	return s.id.cluster == o.id.cluster && s.ports == o.ports && s.fam[v4].same(&o.fam[v4]) && s.fam[v6].same(&o.fam[v6])
}

func (t *table) same(o *table) bool {
	return t.addrs == o.addrs && t.names.same(o.names) && t.zones.same(o.zones)
}

func (n *names) same(o *names) bool {
	return n == o || n != nil && o != nil && n.labels == o.labels && slices.Equal(n.at, o.at)
}

func (z *zones) same(o *zones) bool {
	return z == o || z != nil && o != nil && slices.Equal(z.names, o.names) && slices.Equal(z.of, o.of)
}

// portList is a list of ports, packed into one string so that equal lists are one: for each, the number in four octets
// (-1: none), then protocol and name, each behind a length octet.
type portList struct{ h unique.Handle[string] }

// noPorts is what a service or slice without ports has. As in CoreDNS it counts as one port that has no number and
// answers to no name, so that the addresses are served.
const noPorts = "\xff\xff\xff\xff\x00\x00"

func servicePorts(ps []cluster.ServicePort) portList {
	b := make([]byte, 0, 64)
	for _, p := range ps {
		b = appendPort(b, int32(p.Port), string(p.Protocol), p.Name)
	}
	return newPortList(b)
}

func endpointPorts(ps []cluster.EndpointPort) portList {
	// In the order of their numbers, ports that make one SRV record follow each other.
	byNumber := func(a, b cluster.EndpointPort) int { return cmp.Compare(a.Port, b.Port) }
	if !slices.IsSortedFunc(ps, byNumber) {
		ps = slices.Clone(ps)
		slices.SortStableFunc(ps, byNumber)
	}
	b := make([]byte, 0, 64)
	for _, p := range ps {
		b = appendPort(b, p.Port, string(p.Protocol), p.Name)
	}
	return newPortList(b)
}

func newPortList(packed []byte) portList {
	if len(packed) == 0 {
		return portList{unique.Make(noPorts)}
	}
	return portList{unique.Make(string(packed))}
}

func appendPort(b []byte, number int32, protocol, name string) []byte {
	if len(protocol) > 255 || len(name) > 255 {
		return b // longer than the API allows, and than anyone could ask for
	}
	b = binary.BigEndian.AppendUint32(b, uint32(number))
	b = append(append(b, byte(len(protocol))), protocol...)
	return append(append(b, byte(len(name))), name...)
}

// port is one port of a portList.
type port struct {
	number         int32
	protocol, name string
}

// all returns the packed list; next takes it apart.
func (l portList) all() string { return l.h.Value() }

func next(packed string) (p port, rest string) {
	p.number = int32(uint32(packed[0])<<24 | uint32(packed[1])<<16 | uint32(packed[2])<<8 | uint32(packed[3]))
	n := 5 + int(packed[4])
	p.protocol = packed[5:n]
	p.name = packed[n+1 : n+1+int(packed[n])]
	return p, packed[n+1+int(packed[n]):]
}

// equalFold compares ASCII letters without regard to case (RFC 4343).
func equalFold[A, B []byte | string](a A, b B) bool {
	if len(a) != len(b) {
		return false
	}
	if string(a) == string(b) { // as a rule
		return true
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// lowerName is strings.ToLower for the DNS, which has no case but that of ASCII letters; other letters would change the
// length as well.
func lowerName(s string) string {
	b := []byte(s)
	for i, c := range b {
		b[i] = lower(c)
	}
	return string(b)
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}
