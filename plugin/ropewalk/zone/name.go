package zone

import (
	"fmt"
	"net/netip"
	"strings"
)

// name is a domain name in wire format within a message: where it starts, and where each of its labels does.
type name struct {
	wire []byte // from its first length octet on, root label included
	at   [128]uint8
	n    int // labels, the root not counted
}

// parse reads the uncompressed name that b starts with.
func (d *name) parse(b []byte) bool {
	off := 0
	for d.n = 0; ; d.n++ {
		if off >= len(b) || off > 254 {
			return false
		}
		l := int(b[off])
		d.at[d.n] = uint8(off)
		if l == 0 {
			d.wire = b[:off+1]
			return true
		}
		if l > 63 {
			return false
		}
		off += 1 + l
	}
}

// label returns the i-th label from the left, without its length octet.
func (d *name) label(i int) []byte {
	at := int(d.at[i])
	return d.wire[at+1 : at+1+int(d.wire[at])]
}

// from returns the name less its first i labels, in wire format.
func (d *name) from(i int) []byte { return d.wire[d.at[i]:] }

// Origins are the zones that queries are answered for. Make them with NewOrigins.
type Origins struct {
	list []origin
	// primary is the zone that PTR records point into, in wire format; nil if all are clusterset zones.
	primary []byte
	// reverse says that one of the zones is a reverse zone.
	reverse bool
}

type origin struct {
	wire   []byte
	labels int
	// multi makes it a zone of ServiceImports.
	multi bool
}

// NewOrigins compiles a list of zones, of which those in multi (which must be in the list) are clusterset zones. The
// first that is neither a reverse zone nor a clusterset zone becomes the primary one. It is an error if there is none,
// but for clusterset zones alone: reverse zones have names to point to in the primary zone only.
func NewOrigins(zones, multi []string) (*Origins, error) {
	o := &Origins{}
	isMulti := map[string]bool{}
	for _, z := range multi {
		isMulti[strings.ToLower(z)] = true
	}
	for _, z := range zones {
		z = strings.ToLower(z)
		wire := "\x00"
		if z != "." {
			var ok bool
			if wire, ok = wireName(z); !ok {
				return nil, fmt.Errorf("%q is not a domain name", z)
			}
		}
		g := origin{wire: []byte(wire), labels: countLabels(wire), multi: isMulti[z]}
		o.list = append(o.list, g)
		switch {
		case IsReverse(z):
			o.reverse = true
		case o.primary == nil && !g.multi:
			o.primary = g.wire
		}
	}
	if o.primary == nil && (o.reverse || len(multi) == 0) {
		return nil, fmt.Errorf("no zone for services among %q: name the cluster's domain, such as cluster.local", zones)
	}
	return o, nil
}

// HasPrimary says whether there is a primary zone; else all are clusterset zones.
func (o *Origins) HasPrimary() bool { return o.primary != nil }

// HasReverse says whether one of the zones is a reverse zone.
func (o *Origins) HasReverse() bool { return o.reverse }

// IsReverse says whether a zone, in lower case, is in-addr.arpa, ip6.arpa or below one of them.
func IsReverse(zone string) bool {
	zone = "." + strings.TrimSuffix(zone, ".")
	return strings.HasSuffix(zone, ".in-addr.arpa") || strings.HasSuffix(zone, ".ip6.arpa")
}

// countLabels returns how many labels a name in wire format has.
func countLabels(wire string) (n int) {
	for off := 0; off < len(wire) && wire[off] != 0; off += 1 + int(wire[off]) {
		n++
	}
	return n
}

// match returns the longest of the zones that d is in.
func (o *Origins) match(d *name) *origin {
	var best *origin
	for i := range o.list {
		g := &o.list[i]
		if g.labels <= d.n && (best == nil || g.labels > best.labels) && equalFold(d.from(d.n-g.labels), g.wire) {
			best = g
		}
	}
	return best
}

// isReverse says whether d is below in-addr.arpa or ip6.arpa, or one of them.
func (d *name) isReverse() bool {
	return d.n >= 2 && equalFold(d.label(d.n-1), "arpa") &&
		(equalFold(d.label(d.n-2), "in-addr") || equalFold(d.label(d.n-2), "ip6"))
}

// reverseAddr reads what d says of an address: key is the addrKey of it, or of the octets it has. odd is the nibble
// that is left where d stops within an octet, else -1. ok is false if d is not the name of an address or of a part of
// one (RFC 1035 section 3.5, RFC 3596 section 2.5).
func (d *name) reverseAddr(buf []byte) (key []byte, odd int, ok bool) {
	if d.n < 2 || !equalFold(d.label(d.n-1), "arpa") {
		return nil, -1, false
	}
	last := d.n - 3
	switch {
	case equalFold(d.label(d.n-2), "in-addr"):
		key = append(buf, 4)
		for i := last; i >= 0; i-- {
			octet, valid := parseOctet(d.label(i))
			if !valid || len(key) == 5 {
				return nil, -1, false
			}
			key = append(key, octet)
		}
		return key, -1, true
	case equalFold(d.label(d.n-2), "ip6"):
		key, odd = append(buf, 6), -1
		for i := last; i >= 0; i-- {
			l := d.label(i)
			if len(l) != 1 || hexDigit(l[0]) > 15 || len(key) == 17 {
				return nil, -1, false
			}
			if odd < 0 {
				odd = int(hexDigit(l[0]))
			} else {
				key, odd = append(key, byte(odd)<<4|hexDigit(l[0])), -1
			}
		}
		return key, odd, true
	}
	return nil, -1, false
}

func parseOctet(l []byte) (byte, bool) {
	if len(l) == 0 || len(l) > 3 || (len(l) > 1 && l[0] == '0') {
		return 0, false
	}
	n := 0
	for _, c := range l {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return byte(n), n < 256
}

// reverseName returns the reverse name of the first bits of a, which must be whole octets or nibbles, in wire format.
func reverseName(a netip.Addr, bits int) string {
	var b strings.Builder
	if a.Is4() {
		octets := a.As4()
		for i := bits/8 - 1; i >= 0; i-- {
			s := fmt.Sprint(octets[i])
			b.WriteByte(byte(len(s)))
			b.WriteString(s)
		}
		return b.String() + "\x07in-addr\x04arpa\x00"
	}
	octets := a.As16()
	for i := bits/4 - 1; i >= 0; i-- {
		b.WriteByte(1)
		b.WriteByte("0123456789abcdef"[octets[i/2]>>(4*(1-i%2))&15])
	}
	return b.String() + "\x03ip6\x04arpa\x00"
}

// reverseApexes returns the apexes, in wire format, of the reverse zones that make up a range: one if the range ends
// where a label does, else one for each value of the label that it cuts, as CoreDNS reads ranges in a Corefile.
func reverseApexes(p netip.Prefix) (zones []string) {
	if !p.IsValid() {
		return nil
	}
	p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()).Masked()
	if !p.IsValid() {
		return nil
	}
	unit := 8
	if p.Addr().Is6() {
		unit = 4
	}
	bits := (p.Bits() + unit - 1) / unit * unit
	for i := range 1 << (bits - p.Bits()) {
		octets := p.Addr().AsSlice()
		if bits > 0 {
			octets[(bits-1)/8] |= byte(i << (8 - 1 - (bits-1)%8))
		}
		a, _ := netip.AddrFromSlice(octets)
		zones = append(zones, reverseName(a, bits))
	}
	return zones
}
