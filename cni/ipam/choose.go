package ipam

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
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

// Range is what addresses are taken from: a subnet, or a part of it.
type Range struct {
	Subnet netip.Prefix
	// First and Last are those of the part; the subnet's if they are not valid.
	First, Last netip.Addr
	// Gateway is no pod's. If it is not valid, it is the subnet's first host address.
	Gateway netip.Addr
}

// Whole is the range that is all of a subnet.
func Whole(subnet netip.Prefix) Range { return Range{Subnet: subnet} }

// String is the subnet, and the part if it is not all of it.
func (r Range) String() string {
	if !r.First.IsValid() && !r.Last.IsValid() {
		return r.Subnet.String()
	}
	return fmt.Sprintf("%v from %v to %v", r.Subnet, r.first(), r.last())
}

func (r Range) first() netip.Addr {
	if r.First.IsValid() {
		return r.First
	}
	return r.Subnet.Addr()
}

func (r Range) last() netip.Addr {
	if r.Last.IsValid() {
		return r.Last
	}
	return lastOf(r.Subnet)
}

// Router returns the gateway of the range's pods.
func (r Range) Router() netip.Addr {
	if r.Gateway.IsValid() {
		return r.Gateway
	}
	return Gateway(r.Subnet)
}

func (r Range) contains(a netip.Addr) bool {
	return a.Zone() == "" && r.Subnet.Contains(a) && !a.Less(r.first()) && !r.last().Less(a)
}

// Validate returns an error for what is no range: with bits beyond the subnet's length, or a part or a gateway outside of it.
func (r Range) Validate() error {
	if !r.Subnet.IsValid() || r.Subnet.Addr().Is4In6() || r.Subnet != r.Subnet.Masked() {
		return fmt.Errorf("not a range: %v", r.Subnet)
	}
	for _, a := range []netip.Addr{r.First, r.Last, r.Gateway} {
		if a.IsValid() && (a.Zone() != "" || !r.Subnet.Contains(a)) {
			return fmt.Errorf("%v is not in %v", a, r.Subnet)
		}
	}
	if r.last().Less(r.first()) {
		return fmt.Errorf("%v is after %v", r.first(), r.last())
	}
	return nil
}

// Pool is what one address is taken from: the first of its ranges that has one.
type Pool []Range

// String lists the ranges.
func (p Pool) String() string {
	var all []string
	for _, r := range p {
		all = append(all, r.String())
	}
	return strings.Join(all, ", ")
}

func (p Pool) contains(a netip.Addr) bool {
	return slices.ContainsFunc(p, func(r Range) bool { return r.contains(a) })
}

// Of returns the range of the pool that an address is of, if there is one.
func (p Pool) Of(a netip.Addr) (Range, bool) {
	i := slices.IndexFunc(p, func(r Range) bool { return r.contains(a) })
	if i < 0 {
		return Range{}, false
	}
	return p[i], true
}

// Full says whether all that the pool has for pods is leased.
func (p Pool) Full(leases []Lease) bool {
	taken := map[netip.Addr]bool{}
	for _, l := range leases {
		for _, a := range l.Addrs {
			taken[a] = true
		}
	}
	for _, r := range p {
		for a := r.first(); r.contains(a); a = a.Next() { // no more than there are leases, and those that are reserved
			if r.usable(a) && !taken[a] {
				return false
			}
		}
	}
	return true
}

// book is what choose has to know of what was given out.
type book interface {
	state(netip.Addr) state
	// last is the address of a subnet that was given out last; invalid if there is none.
	last(netip.Prefix) netip.Addr
	// longest is the address that has rested longest of those that wanted says yes to.
	longest(wanted func(netip.Addr) bool) (netip.Addr, bool)
}

// choose picks an address of each pool, in their order: the static one that lies in it, or else the next that is free
// after the last. A static address may be resting. A lookup in the book for each address in use is the most it takes.
func choose(b book, pools []Pool, static []netip.Addr) ([]netip.Addr, error) {
	if len(pools) == 0 {
		return nil, errors.New("no range to take an address from")
	}
	fixed, err := assign(pools, static)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for i, p := range pools {
		a := fixed[i]
		if a.IsValid() {
			if b.state(a) == leased || slices.Contains(out, a) {
				return nil, fmt.Errorf("%w: %v", ErrTaken, a)
			}
		} else if a = pick(b, p, append(fixed, out...)); !a.IsValid() {
			return nil, &ExhaustedError{Pool: p}
		}
		out = append(out, a)
	}
	return out, nil
}

// CheckStatic returns an error for static addresses that no pod can have: of none of the pools, a second one of a pool, or reserved.
func CheckStatic(pools []Pool, static []netip.Addr) error {
	_, err := assign(pools, static)
	return err
}

// assign tells which pool each static address stands for: it returns one for each pool, or an invalid one.
func assign(pools []Pool, static []netip.Addr) ([]netip.Addr, error) {
	fixed := make([]netip.Addr, len(pools))
	for _, p := range pools {
		for _, r := range p {
			if err := r.Validate(); err != nil {
				return nil, err
			}
		}
	}
	for _, a := range static {
		i := slices.IndexFunc(pools, func(p Pool) bool { return p.contains(a) })
		if i < 0 {
			return nil, fmt.Errorf("%v is in none of the ranges %v", a, pools)
		}
		if fixed[i].IsValid() {
			return nil, fmt.Errorf("%v and %v are both in the range %v, of which a pod has one", fixed[i], a, pools[i])
		}
		if r, _ := pools[i].Of(a); !r.usable(a) {
			return nil, fmt.Errorf("%v is reserved in the range %v: for the network, its gateway or its broadcasts", a, r)
		}
		fixed[i] = a
	}
	return fixed, nil
}

// pick returns the next free address of a pool, or the one that has rested longest; but none of not. It returns an invalid one if
// there is none.
func pick(b book, p Pool, not []netip.Addr) netip.Addr {
	for _, r := range p {
		if a := r.next(b, not); a.IsValid() {
			return a
		}
	}
	a, _ := b.longest(func(a netip.Addr) bool {
		r, ok := p.Of(a)
		return ok && r.usable(a) && !slices.Contains(not, a)
	})
	return a
}

// next returns the range's next free address, or an invalid one.
func (r Range) next(b book, not []netip.Addr) netip.Addr {
	first, end := r.first(), r.last()
	begin := first
	if l := b.last(r.Subnet); r.contains(l) && l != end {
		begin = l.Next()
	}
	for a := begin; ; {
		if r.usable(a) && b.state(a) == free && !slices.Contains(not, a) {
			return a
		}
		if a == end {
			a = first
		} else {
			a = a.Next()
		}
		if a == begin {
			return netip.Addr{}
		}
	}
}

// Gateway is the first host address of a subnet, which no pod gets. A subnet of one address has none.
func Gateway(subnet netip.Prefix) netip.Addr {
	switch subnet = subnet.Masked(); subnet.Addr().BitLen() - subnet.Bits() {
	case 0:
		return netip.Addr{}
	case 1: // RFC 3021, RFC 6164: both are hosts
		return subnet.Addr()
	default:
		return subnet.Addr().Next()
	}
}

// usable says whether a pod may have an address: it is not the gateway, nor the subnet's first (the network; RFC 4291 section 2.6.1:
// the routers of a subnet), nor the last one of IPv4, which is for broadcasts.
func (r Range) usable(a netip.Addr) bool {
	if !r.contains(a) || a == r.Router() {
		return false
	}
	if a.BitLen()-r.Subnet.Bits() < 2 {
		return true
	}
	return a != r.Subnet.Addr() && (a.Is6() || a != lastOf(r.Subnet))
}

// lastOf is the last address of a subnet.
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
		if a.IsValid() && !Whole(r).usable(a) {
			reserved[a] = true
		}
	}
	return n - float64(len(reserved))
}
