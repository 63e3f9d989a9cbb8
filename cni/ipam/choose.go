package ipam

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"
)

// rest is how long an address that was released is left alone, so that what was meant for the old pod does not reach a new one:
// peers need that long to notice, and conntrack entries of UDP live that long. Where a range has no other address left, the one
// that has rested longest is given out before its time, since a pod that does not start is worse.
const rest = 30 * time.Second

// rested says whether an address that was released at a time may be given out. Both times are since the boot; a release in the future is
// of an earlier boot.
func rested(released, now time.Duration) bool { return released > now || now-released >= rest }

// state is what is known of an address.
type state int

const (
	free state = iota
	resting
	leased
)

// book is what choose has to know of what was given out.
type book interface {
	state(netip.Addr) state
	// last is the address of a range that was given out last; invalid if there is none.
	last(netip.Prefix) netip.Addr
	// longest is the address that has rested longest of those that wanted says yes to.
	longest(wanted func(netip.Addr) bool) (netip.Addr, bool)
}

// choose picks an address of each range, in the order of the ranges: the static one that lies in it, or else the next that is free
// after the last. A static address may be resting. A lookup in the book for each address in use is the most it takes.
func choose(b book, ranges []netip.Prefix, static []netip.Addr) ([]netip.Addr, error) {
	if len(ranges) == 0 {
		return nil, errors.New("no range to take an address from")
	}
	fixed, err := assign(ranges, static)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for i, r := range ranges {
		a := fixed[i]
		if a.IsValid() {
			if b.state(a) == leased || slices.Contains(out, a) {
				return nil, fmt.Errorf("%w: %v", ErrTaken, a)
			}
		} else if a = pick(b, r, append(fixed, out...)); !a.IsValid() {
			return nil, &ExhaustedError{Range: r}
		}
		out = append(out, a)
	}
	return out, nil
}

// assign tells which range each static address stands for: it returns one for each range, or an invalid one.
func assign(ranges []netip.Prefix, static []netip.Addr) ([]netip.Addr, error) {
	fixed := make([]netip.Addr, len(ranges))
	for _, r := range ranges {
		if !r.IsValid() || r.Addr().Is4In6() || r != r.Masked() {
			return nil, fmt.Errorf("not a range: %v", r)
		}
	}
	for _, a := range static {
		i := slices.IndexFunc(ranges, func(r netip.Prefix) bool { return a.Zone() == "" && r.Contains(a) })
		switch {
		case i < 0:
			return nil, fmt.Errorf("static address %v is in none of the ranges %v", a, ranges)
		case fixed[i].IsValid():
			return nil, fmt.Errorf("static addresses %v and %v are both in the range %v", fixed[i], a, ranges[i])
		case !usable(ranges[i], a):
			return nil, fmt.Errorf("static address %v is reserved in the range %v", a, ranges[i])
		}
		fixed[i] = a
	}
	return fixed, nil
}

// pick returns the next free address of a range, or the one that has rested longest; but none of not. It returns an invalid one if
// there is none.
func pick(b book, r netip.Prefix, not []netip.Addr) netip.Addr {
	first, end := r.Addr(), lastOf(r)
	begin := first
	if l := b.last(r); r.Contains(l) && l != end {
		begin = l.Next()
	}
	for a := begin; ; {
		if usable(r, a) && b.state(a) == free && !slices.Contains(not, a) {
			return a
		}
		if a == end {
			a = first
		} else {
			a = a.Next()
		}
		if a == begin {
			break
		}
	}
	a, _ := b.longest(func(a netip.Addr) bool { return usable(r, a) && !slices.Contains(not, a) })
	return a
}

// Gateway is the first host address of a range, which no pod gets. A range of one address has none.
func Gateway(r netip.Prefix) netip.Addr {
	switch r = r.Masked(); r.Addr().BitLen() - r.Bits() {
	case 0:
		return netip.Addr{}
	case 1: // RFC 3021, RFC 6164: both are hosts
		return r.Addr()
	default:
		return r.Addr().Next()
	}
}

// usable says whether a pod may have an address: it is not the gateway, nor the range's first (the network; RFC 4291 section 2.6.1:
// the routers of a subnet), nor the last one of IPv4, which is for broadcasts.
func usable(r netip.Prefix, a netip.Addr) bool {
	if !r.Contains(a) || a == Gateway(r) {
		return false
	}
	if a.BitLen()-r.Bits() < 2 {
		return true
	}
	return a != r.Addr() && (a.Is6() || a != lastOf(r))
}

// lastOf is the last address of a range.
func lastOf(r netip.Prefix) netip.Addr {
	b := r.Addr().AsSlice()
	for i := r.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Capacity is how many addresses of a range pods may have.
func Capacity(r netip.Prefix) float64 {
	n := math.Ldexp(1, r.Addr().BitLen()-r.Bits())
	reserved := map[netip.Addr]bool{}
	for _, a := range []netip.Addr{r.Addr(), Gateway(r), lastOf(r)} {
		if a.IsValid() && !usable(r, a) {
			reserved[a] = true
		}
	}
	return n - float64(len(reserved))
}
