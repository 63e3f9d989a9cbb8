package zone

import (
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
)

// Types and codes of the DNS that answers are made of (RFC 1035, 2782, 3596).
const (
	typeA     = 1
	typeNS    = 2
	typeCNAME = 5
	typeSOA   = 6
	typePTR   = 12
	typeTXT   = 16
	typeAAAA  = 28
	typeSRV   = 33

	classIN = 1

	// RcodeSuccess, RcodeServerFailure and RcodeNameError are the codes that Answer gives.
	RcodeSuccess       = 0
	RcodeServerFailure = 2
	RcodeNameError     = 3

	headerLen   = 12
	questionPtr = 0xC000 | headerLen

	flagQR, flagAA, flagTC = 0x80, 0x04, 0x02 // in the third octet of a header
)

// maxName is how many octets a name has at most (RFC 1035 section 2.3.4).
const maxName = 255

// maxAliases is how many CNAME records an answer follows inside the zone. Loops end there, too.
const maxAliases = 16

// versionTTL and the version itself are as in CoreDNS.
const (
	versionTTL = 28800
	version    = "1.1.0"
)

// Query is a question and what there is to know of who asks.
type Query struct {
	Type    uint16
	Origins *Origins
	// Limit is how many octets the message may have. Records that do not fit are left out: of the answer section with
	// TC, of the additional section without (RFC 2181 section 9).
	Limit int
	// Rotate turns the order of address records: give each query another number.
	Rotate uint32
	// Local are the addresses this server answers on, which tell the service that it is behind (NS records).
	Local []netip.Addr
}

// Status is what became of a query.
type Status uint8

const (
	// Answered: the message is complete.
	Answered Status = iota
	// Outside: the name is in none of the zones; the message is as it was.
	Outside
	// Chase: the message has CNAME records, and the last one's target (Result.Target) is outside of the zone. Whoever can
	// resolve it should add what it finds.
	Chase
	// Malformed: there is no name where the question should be.
	Malformed
)

// Result tells what Answer did.
type Result struct {
	Status Status
	Rcode  int
	// ZoneLabels is how many of the name's labels are its zone's.
	ZoneLabels int
	// Aliased says that the answer begins with a CNAME record.
	Aliased bool
	// Target is the name to chase in wire format, within the message.
	Target []byte
}

// answer is an answer in the making.
type answer struct {
	v   *View
	q   Query
	msg []byte
	// owner is the name that records are for: where it starts in msg, its labels, and how many are in front of the zone.
	ownerAt int
	name    name
	rel     int
	multi   bool
	// question is the name that was asked for, whose last labels are the zone's.
	zoneAt     int
	counts     [3]uint16 // answer, authority, additional
	tc         bool
	found      found
	rcode      int
	zoneLabels int
}

const (
	sectionAnswer = iota
	sectionAuthority
	sectionAdditional
)

// Answer appends the answer to msg, which must hold a header and one question of class IN whose name is not compressed,
// and completes the header: QR, AA, TC, the code and the counts; it leaves ID, opcode and the other flags alone. It
// does not allocate while msg has room for Limit octets, but for names of servers, environments, and large answers that are
// not ready-made.
func (v *View) Answer(msg []byte, q Query) ([]byte, Result) {
	a := answer{v: v, q: q, msg: msg, ownerAt: headerLen}
	if len(msg) < headerLen+5 || !a.name.parse(msg[headerLen:]) {
		return msg, Result{Status: Malformed}
	}
	if !a.zone() {
		return msg, Result{Status: Outside}
	}
	res := Result{ZoneLabels: a.zoneLabels}
	var aliased [maxAliases]*entry
	for hops := 0; ; hops++ {
		v.find(&a.name, a.rel, a.multi, &a.found)
		if a.found.kind != foundAlias {
			break
		}
		// A loop is told apart from a chain that does not fit, which would make the client come back over TCP for it.
		if hops == maxAliases || slices.Contains(aliased[:hops], a.found.e) {
			a.msg, a.counts = a.msg[:len(msg)], [3]uint16{}
			a.rcode = RcodeServerFailure
			res.Rcode = a.rcode
			return a.finish(), res
		}
		aliased[hops] = a.found.e
		res.Aliased = true
		if !a.alias() || q.Type == typeCNAME {
			return a.finish(), res
		}
		if !a.follow() {
			res.Status, res.Target = Chase, a.name.wire
			return a.finish(), res
		}
	}
	aliases := a.counts[sectionAnswer]
	a.records()
	if a.counts[sectionAnswer] == aliases && !a.tc {
		a.soa(sectionAuthority) // RFC 2308
	}
	res.Rcode = a.rcode
	return a.finish(), res
}

// zone finds the zone of the question.
func (a *answer) zone() bool {
	if o := a.q.Origins.match(&a.name); o != nil {
		a.zoneLabels, a.multi = o.labels, o.multi
	} else if !a.followedZone() {
		return false
	}
	a.rel = a.name.n - a.zoneLabels
	a.zoneAt = headerLen + int(a.name.at[a.rel])
	return true
}

// followedZone finds the reverse zone that follows the cluster's ranges.
func (a *answer) followedZone() bool {
	if a.q.Origins.reverse || !a.name.isReverse() {
		return false
	}
	var buf [256]byte
	m := a.v.reverse.Walk(nameKey(buf[:0], &a.name))
	if m.Value == nil {
		return false
	}
	a.zoneLabels = m.Value.labels
	return true
}

// nameKey is radix.NameKey for a parsed name.
func nameKey(dst []byte, d *name) []byte {
	for i := d.n - 1; i >= 0; i-- {
		dst = appendLower(dst, d.label(i))
	}
	return dst
}

// alias writes the CNAME record of the service found. It returns false if that was the last thing to do.
func (a *answer) alias() bool {
	target := a.found.e.rrs
	if !a.begin(sectionAnswer, a.ownerPtr(), typeCNAME, a.v.opts.TTL, len(target)) {
		return false
	}
	a.msg = append(a.msg, target...)
	return true
}

// follow makes the target of the CNAME record just written the name to find, and says whether that is in the zone.
func (a *answer) follow() bool {
	a.ownerAt = len(a.msg) - len(a.found.e.rrs)
	a.name.parse(a.msg[a.ownerAt:])
	a.rel = a.name.n - a.zoneLabels
	o := a.q.Origins.match(&a.name) // rather than the suffix alone: there may be a zone within the zone
	return o != nil && equalFold(o.wire, a.zoneName())
}

func (a *answer) zoneName() []byte {
	var d name
	d.parse(a.msg[a.zoneAt:])
	return d.wire
}

// records writes what the name found has of the type asked for, and sets the code.
func (a *answer) records() {
	t := a.q.Type
	switch a.found.kind {
	case foundNothing:
		a.rcode = RcodeNameError
		if !a.v.synced {
			a.rcode = RcodeServerFailure
		}
	case foundApex:
		switch t {
		case typeSOA:
			a.soa(sectionAnswer)
		case typeNS:
			a.ns()
		}
	case foundVersion:
		if t == typeTXT && a.begin(sectionAnswer, a.ownerPtr(), typeTXT, versionTTL, 1+len(version)) {
			a.msg = append(append(a.msg, byte(len(version))), version...)
		}
	case foundNS:
		if t == typeA || t == typeAAAA {
			a.defaultNS(t)
		}
	case foundService:
		a.service(t)
	case foundAddr:
		if t == typeA && a.found.fam == v4 || t == typeAAAA && a.found.fam == v6 {
			a.address(sectionAnswer, a.ownerPtr(), string(a.found.addr[:width[a.found.fam]]))
		}
	case foundReverse:
		if t == typePTR {
			a.ptr()
		}
	case foundEnv:
		if t == typeTXT {
			a.env()
		}
	}
}

// service writes the records of a service.
func (a *answer) service(t uint16) {
	e, f := a.found.e, &a.found.f
	if f.zonal && f.prefer && !e.inZone(f) {
		f.zonal = false
	}
	switch {
	case t == typeA:
		a.addresses(v4)
	case t == typeAAAA:
		a.addresses(v6)
	case t == typeSRV && e.kind == kindClusterIP && !f.hasEndpoint:
		a.serviceSRV()
	case t == typeSRV:
		a.endpointSRV()
	}
}

// inZone says whether the service has an endpoint in the zone of f.
func (e *entry) inZone(f *filter) bool {
	for _, s := range e.slices {
		if s.has(f) {
			return true
		}
	}
	return false
}

// addresses writes A or AAAA records.
func (a *answer) addresses(fam int) {
	e, f := a.found.e, &a.found.f
	if e.kind == kindClusterIP && !f.hasEndpoint || f.plain() && e.isPacked() {
		a.packed(fam)
		return
	}
	var few fewSeen
	seen, rec := seen{slots: few[:]}, [rrMax]byte{}
	e.each(fam, f, a.q.Rotate, func(s *slice, i int) bool {
		return a.once(sectionAnswer, appendAddr(rec[:0], a.ownerPtr(), a.v.opts.TTL, s.fam[fam].addr(fam, i)), &seen)
	})
}

// rrMax is how many octets a record has at most whose owner is a pointer and whose data is a name, with what an SRV
// record has in front of it.
const rrMax = 2 + 10 + 6 + maxName

// rrLen is the length of an address record whose owner is a pointer.
var rrLen = [2]int{v4: 2 + 10 + 4, v6: 2 + 10 + 16}

// packed copies ready-made records, starting somewhere and going round.
func (a *answer) packed(fam int) {
	e := a.found.e
	n := int(e.n[fam])
	if n == 0 {
		return
	}
	rrs := e.rrs[:int(e.n[v4])*rrLen[v4]]
	if fam == v6 {
		rrs = e.rrs[len(rrs):]
	}
	fits := n
	if room := a.q.Limit - len(a.msg); n*rrLen[fam] > room {
		fits = max(room, 0) / rrLen[fam]
		a.tc = true
	}
	at := len(a.msg)
	first := int(a.q.Rotate%uint32(n)) * rrLen[fam]
	if tail := rrs[first:]; len(tail) >= fits*rrLen[fam] {
		a.msg = append(a.msg, tail[:fits*rrLen[fam]]...)
	} else {
		a.msg = append(append(a.msg, tail...), rrs[:fits*rrLen[fam]-len(tail)]...)
	}
	a.counts[sectionAnswer] += uint16(fits)
	if ptr := a.ownerPtr(); ptr != questionPtr {
		for ; at < len(a.msg); at += rrLen[fam] {
			binary.BigEndian.PutUint16(a.msg[at:], ptr)
		}
	}
}

// each calls fn with the endpoints of family fam that f takes, until fn returns false. It starts with the endpoint that
// from counts to and goes round. An address that several slices have comes as often.
func (e *entry) each(fam int, f *filter, from uint32, fn func(s *slice, i int) bool) {
	total := e.sum.ready[fam]
	if total == 0 {
		return
	}
	first, at := 0, int(from%total)
	for ; at >= e.slices[first].fam[fam].len(fam); first++ {
		at -= e.slices[first].fam[fam].len(fam)
	}
	for k := range len(e.slices) + 1 {
		s := e.slices[(first+k)%len(e.slices)]
		lo, hi := 0, s.fam[fam].len(fam)
		switch k {
		case 0:
			lo = at
		case len(e.slices):
			hi = at
		}
		if f.slice(s) && f.matching(s.ports) > 0 && !s.between(lo, hi, fam, f, func(i int) bool { return fn(s, i) }) {
			return
		}
	}
}

// serviceSRV writes the SRV records of a service with a ClusterIP: the target is the service itself.
func (a *answer) serviceSRV() {
	e, f := a.found.e, &a.found.f
	ips := int(e.n[v4] + e.n[v6])
	weight := srvWeight(f.matching(e.ports) * ips)
	if ips == 0 {
		return
	}
	var few fewSeen
	before, seen := a.counts[sectionAnswer], seen{slots: few[:]}
	for rest := e.ports.all(); rest != ""; {
		var p port
		p, rest = next(rest)
		if f.port(p) && p.number >= 0 && !a.srv(weight, p.number, nil, "", &seen) {
			return
		}
	}
	if a.counts[sectionAnswer] == before {
		return
	}
	for _, addr := range packedAddrs(e.rrs) {
		if !a.address(sectionAdditional, a.servicePtr(), addr) {
			return
		}
	}
}

// endpointSRV writes the SRV records of endpoints: the targets are the endpoints' own names.
func (a *answer) endpointSRV() {
	e, f := a.found.e, &a.found.f
	total := 0
	for _, s := range e.slices {
		if m := f.matching(s.ports); m > 0 && f.slice(s) {
			total += m * s.countEndpoints(f)
		}
	}
	weight := srvWeight(total)
	var few fewSeen
	before, seen := a.counts[sectionAnswer], seen{slots: few[:]}
	var label [64]byte
	for _, s := range e.slices {
		if !f.slice(s) || !f.numbered(s.ports) {
			continue
		}
		for fam := range s.fam {
			if !s.endpoints(fam, f, func(i int) bool {
				target := s.fam[fam].appendLabel(label[:0], fam, i)
				last := int32(-1) // the ports are in the order of their numbers
				for rest := s.ports.all(); rest != ""; {
					var p port
					if p, rest = next(rest); p.number == last || p.number < 0 || !f.port(p) {
						continue
					}
					if last = p.number; !a.srv(weight, p.number, target, s.id.cluster.Value(), &seen) {
						return false
					}
				}
				return true
			}) {
				return
			}
		}
	}
	if a.counts[sectionAnswer] > before {
		a.endpointGlue()
	}
}

func (s *slice) countEndpoints(f *filter) (n int) {
	if !f.hasEndpoint && !f.zonal {
		return s.fam[v4].len(v4) + s.fam[v6].len(v6)
	}
	for fam := range s.fam {
		s.endpoints(fam, f, func(int) bool {
			n++
			return true
		})
	}
	return n
}

// endpointGlue writes the addresses of the targets of endpointSRV into the additional section.
func (a *answer) endpointGlue() {
	e, f := a.found.e, &a.found.f
	var few fewSeen
	seen := seen{slots: few[:]}
	var label [64]byte
	for fam := range 2 {
		for _, s := range e.slices {
			if f.slice(s) && f.numbered(s.ports) && !s.endpoints(fam, f, func(i int) bool {
				return a.glue(s.fam[fam].appendLabel(label[:0], fam, i), s.id.cluster.Value(), s.fam[fam].addr(fam, i), &seen)
			}) {
				return
			}
		}
	}
}

func (t *table) inZone(i int, f *filter) bool {
	return !f.zonal || int(t.zones.of[i]) == f.zoneIn(t)
}

// srvWeight is CoreDNS's: a hundred shared among n, at least 1.
func srvWeight(n int) uint16 {
	if n == 0 {
		return 1
	}
	w := math.Floor(100.0 / float64(100*n) * 100)
	return uint16(max(w, 1))
}

// ownerPtr returns a compression pointer to the owner name.
func (a *answer) ownerPtr() uint16 { return 0xC000 | uint16(a.ownerAt) }

// servicePtr returns a compression pointer to the name of the service found.
func (a *answer) servicePtr() uint16 {
	return 0xC000 | uint16(a.ownerAt+int(a.name.at[a.found.svc]))
}

// begin writes the fixed part of a record with dataLen octets of data to come, if all of it fits.
func (a *answer) begin(section int, owner uint16, t uint16, ttl uint32, dataLen int) bool {
	if !a.room(section, 2+10+dataLen) {
		return false
	}
	a.msg = binary.BigEndian.AppendUint16(a.msg, owner)
	a.fixed(section, t, ttl, dataLen)
	return true
}

// room says whether n more octets fit. If not, and what has no room is not merely additional, the message is truncated:
// a negative answer without its SOA record cannot be cached (RFC 2308 section 5).
func (a *answer) room(section, n int) bool {
	if len(a.msg)+n <= a.q.Limit && a.counts[section] < math.MaxUint16 {
		return true
	}
	if section != sectionAdditional {
		a.tc = true
	}
	return false
}

// fixed writes what follows the owner's name in a record, up to the data.
func (a *answer) fixed(section int, t uint16, ttl uint32, dataLen int) {
	a.msg = appendFixed(a.msg, t, ttl, dataLen)
	a.counts[section]++
}

func appendFixed(b []byte, t uint16, ttl uint32, dataLen int) []byte {
	b = append(b, byte(t>>8), byte(t), 0, classIN, byte(ttl>>24), byte(ttl>>16), byte(ttl>>8), byte(ttl))
	return append(b, byte(dataLen>>8), byte(dataLen))
}

// appendAddr appends an A or AAAA record, whichever octets are for.
func appendAddr(b []byte, owner uint16, ttl uint32, octets string) []byte {
	b = append(b, byte(owner>>8), byte(owner))
	b = appendFixed(b, addrType(octets), ttl, len(octets))
	return append(b, octets...)
}

func addrType(octets string) uint16 {
	if len(octets) == 4 {
		return typeA
	}
	return typeAAAA
}

func (a *answer) address(section int, owner uint16, octets string) bool {
	if !a.room(section, 12+len(octets)) {
		return false
	}
	a.msg = appendAddr(a.msg, owner, a.v.opts.TTL, octets)
	a.counts[section]++
	return true
}

// glue writes the address of an endpoint, whose label is in wire format. It leaves names out that are too long, as do
// srv and ptrRecord, and returns true: nobody could ask for them, and one would spoil the message for all.
func (a *answer) glue(label []byte, cluster, octets string, s *seen) bool {
	if len(label)+labelLen(cluster)+len(a.name.from(a.found.svc)) > maxName {
		return true
	}
	var buf [rrMax]byte
	rec := appendString(append(buf[:0], label...), cluster)
	return a.once(sectionAdditional, appendAddr(rec, a.servicePtr(), a.v.opts.TTL, octets), s)
}

// labelLen is the length of a label in wire format, 0 if there is none.
func labelLen(s string) int {
	if s == "" {
		return 0
	}
	return 1 + len(s)
}

// appendString appends a label in wire format, nothing if it is empty.
func appendString(b []byte, label string) []byte {
	if label == "" {
		return b
	}
	return append(append(b, byte(len(label))), label...)
}

// srv writes an SRV record. The target is the service's name with label (in wire format) and the cluster in front of
// it, each if it is not empty. It is not compressed (RFC 2782).
func (a *answer) srv(weight uint16, number int32, label []byte, cluster string, s *seen) bool {
	service := a.name.from(a.found.svc)
	n := len(label) + labelLen(cluster) + len(service)
	if n > maxName {
		return true
	}
	var buf [rrMax]byte
	rec := binary.BigEndian.AppendUint16(buf[:0], a.ownerPtr())
	rec = appendFixed(rec, typeSRV, a.v.opts.TTL, 6+n)
	rec = append(rec, 0, 0, byte(weight>>8), byte(weight), byte(number>>8), byte(number))
	rec = appendString(append(rec, label...), cluster)
	return a.once(sectionAnswer, append(rec, service...), s)
}

// ptr writes the names behind an address. A service that has the address for its own comes before endpoints that have it.
// Owners are served, or they would not be in the tree.
func (a *answer) ptr() {
	var keyBuf [18]byte
	key, _, _ := a.name.reverseAddr(keyBuf[:0])
	var few fewSeen
	seen := seen{slots: few[:]}
	if o := a.found.owner; o != nil {
		a.ownerPTR(o, key, o.slice, &seen)
		return
	}
	var last *service
	for o := range a.v.addrs.Values(key) {
		// The owners of a service stand together: all of its slices are looked at once.
		if o.of != last && !a.ownerPTR(o, key, nil, &seen) || o.slice == nil {
			return
		}
		last = o.of
	}
}

// ownerPTR writes the name of o, a service, or those that the address in key has in the slices of o's service. If only
// is given, no other slice has the address.
func (a *answer) ownerPTR(o *owner, key []byte, only *sliceID, seen *seen) bool {
	if o.slice == nil {
		return a.ptrRecord(nil, o.of, seen)
	}
	var buf [2 * 64]byte
	e := a.v.services.Get(append(buf[:0], o.of.key...))
	if e == nil {
		return true
	}
	fam := v4
	if key[0] == familyOctet[v6] {
		fam = v6
	}
	for _, s := range e.slices {
		if only != nil && s.id != only {
			continue
		}
		t := &s.fam[fam]
		var label [64]byte
		if i, ok := t.find(fam, key[1:]); ok && !a.ptrRecord(t.appendLabel(label[:0], fam, i), o.of, seen) {
			return false
		}
	}
	return true
}

func (a *answer) ptrRecord(label []byte, of *service, s *seen) bool {
	primary := a.q.Origins.primary
	n := len(label) + of.nameLen() + len(primary)
	if n > maxName {
		return true
	}
	var buf [rrMax]byte
	rec := binary.BigEndian.AppendUint16(buf[:0], a.ownerPtr())
	rec = append(appendFixed(rec, typePTR, a.v.opts.TTL, n), label...)
	return a.once(sectionAnswer, append(of.appendName(rec), primary...), s)
}

// soa writes the zone's SOA record.
func (a *answer) soa(section int) {
	const mname, rname = "\x02ns\x03dns", "\x0ahostmaster"
	ttl := a.v.opts.TTL
	zone := 0xC000 | uint16(a.zoneAt)
	if !a.begin(section, zone, typeSOA, min(ttl, 300), len(mname)+2+len(rname)+2+20) {
		return
	}
	serial := a.v.Serial(a.multi)
	a.msg = binary.BigEndian.AppendUint16(append(a.msg, mname...), zone)
	a.msg = binary.BigEndian.AppendUint16(append(a.msg, rname...), zone)
	for _, n := range [...]uint32{serial, soaRefresh, soaRetry, soaExpire, ttl} {
		a.msg = binary.BigEndian.AppendUint32(a.msg, n)
	}
}

// The timers of SOA records, in seconds, as in CoreDNS.
const (
	soaRefresh = 7200
	soaRetry   = 1800
	soaExpire  = 86400
)

// Serial returns the SOA serial of the cluster's zones, or of the clusterset's.
func (v *View) Serial(multi bool) uint32 {
	if multi {
		return v.serial[1]
	}
	return v.serial[0]
}

// finish completes the header.
func (a *answer) finish() []byte {
	a.msg[2] |= flagQR | flagAA
	if a.tc {
		a.msg[2] |= flagTC
	}
	a.msg[3] = a.msg[3]&0xf0 | byte(a.rcode)
	for i, n := range a.counts {
		binary.BigEndian.PutUint16(a.msg[6+2*i:], n)
	}
	return a.msg
}

// packedAddrs yields the addresses of ready-made records with their family.
func packedAddrs(rrs string) func(func(int, string) bool) {
	return func(yield func(int, string) bool) {
		for rrs != "" {
			n := int(rrs[11])
			fam := v4
			if n == 16 {
				fam = v6
			}
			if !yield(fam, rrs[12:12+n]) {
				return
			}
			rrs = rrs[12+n:]
		}
	}
}
