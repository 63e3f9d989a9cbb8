package ipam

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// paper is a book in memory.
type paper struct {
	states  map[netip.Addr]state
	oldest  []netip.Addr // those that rest, in the order of their release
	lasts   map[netip.Prefix]netip.Addr
	lookups int
}

func (p *paper) state(a netip.Addr) state { p.lookups++; return p.states[a] }

func (p *paper) last(r netip.Prefix) netip.Addr { return p.lasts[r] }

func (p *paper) longest(wanted func(netip.Addr) bool) (netip.Addr, bool) {
	for _, a := range p.oldest {
		if wanted(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// pools returns one of each subnet.
func pools(list ...string) []Pool {
	var out []Pool
	for _, s := range list {
		out = append(out, Pool{Whole(netip.MustParsePrefix(s))})
	}
	return out
}

// TestRanges gives out all that ranges have, in order.
func TestRanges(t *testing.T) {
	for r, want := range map[string][]netip.Addr{
		"10.0.0.0/32":        addrs("10.0.0.0"),
		"10.0.0.0/31":        addrs("10.0.0.1"),
		"10.0.0.4/30":        addrs("10.0.0.6"),
		"10.0.0.8/29":        addrs("10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14"),
		"255.255.255.252/30": addrs("255.255.255.254"),
		"fd00::5/128":        addrs("fd00::5"),
		"fd00::4/127":        addrs("fd00::5"),
		"fd00::4/126":        addrs("fd00::6", "fd00::7"),
		"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126": addrs("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
	} {
		p := &paper{states: map[netip.Addr]state{}, lasts: map[netip.Prefix]netip.Addr{}}
		var got []netip.Addr
		for {
			a, err := choose(p, pools(r), nil)
			if err != nil {
				if e := new(ExhaustedError); !errors.As(err, &e) || e.Pool.String() != r {
					t.Errorf("%s: %v", r, err)
				}
				break
			}
			got = append(got, a...)
			p.states[a[0]], p.lasts[netip.MustParsePrefix(r)] = leased, a[0]
		}
		if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Errorf("%s: %s", r, d)
		}
	}
}

func TestChoose(t *testing.T) {
	v4 := netip.MustParsePrefix("10.0.0.0/29")
	part := Range{Subnet: v4, First: netip.MustParseAddr("10.0.0.3"), Last: netip.MustParseAddr("10.0.0.4")}
	both := pools("fd00::/64", "10.0.0.0/29")
	for _, test := range []struct {
		name   string
		pools  []Pool
		static []netip.Addr
		states map[string]state
		oldest []netip.Addr
		last   string
		want   []netip.Addr // nil: an error
		err    error
	}{
		{name: "families in order", pools: both, want: addrs("fd00::2", "10.0.0.2")},
		{name: "after the last", pools: both, last: "10.0.0.4", want: addrs("fd00::2", "10.0.0.5")},
		{name: "round the end", pools: both[1:], last: "10.0.0.6", want: addrs("10.0.0.2")},
		{name: "a last from elsewhere", pools: both[1:], last: "10.9.0.6", want: addrs("10.0.0.2")},
		{name: "over what is taken or rests", pools: both[1:], last: "10.0.0.5",
			states: map[string]state{"10.0.0.6": leased, "10.0.0.2": resting}, want: addrs("10.0.0.3")},
		{name: "nothing but what rests", pools: both[1:], oldest: addrs("fd00::2", "10.0.0.4", "10.0.0.2"),
			states: map[string]state{"10.0.0.2": resting, "10.0.0.3": leased, "10.0.0.4": resting, "10.0.0.5": leased, "10.0.0.6": leased}, want: addrs("10.0.0.4")},
		{name: "static", pools: both, static: addrs("10.0.0.6"), want: addrs("fd00::2", "10.0.0.6")},
		{name: "static twice", pools: both, static: addrs("10.0.0.6", "fd00::9"), want: addrs("fd00::9", "10.0.0.6")},
		{name: "static and resting", pools: both, static: addrs("10.0.0.6"), states: map[string]state{"10.0.0.6": resting}, want: addrs("fd00::2", "10.0.0.6")},
		{name: "static and taken", pools: both, static: addrs("10.0.0.6"), states: map[string]state{"10.0.0.6": leased}, err: ErrTaken},
		{name: "static, of no range", pools: both, static: addrs("10.0.0.8")},
		{name: "static, in the other's form", pools: both, static: addrs("::ffff:10.0.0.6")},
		{name: "two static of one range", pools: both, static: addrs("10.0.0.5", "10.0.0.6")},
		{name: "static gateway", pools: both, static: addrs("10.0.0.1")},
		{name: "static broadcast", pools: both, static: addrs("10.0.0.7")},
		{name: "static router anycast", pools: both, static: addrs("fd00::")},
		{name: "the same range twice", pools: pools("10.0.0.0/29", "10.0.0.0/29"), want: addrs("10.0.0.2", "10.0.0.3")},
		{name: "and static", pools: pools("10.0.0.0/29", "10.0.0.0/30"), static: addrs("10.0.0.2"), err: &ExhaustedError{}},
		{name: "no range"},
		{name: "an invalid range", pools: []Pool{{{}}}},
		{name: "an address for a range", pools: pools("10.0.0.1/29")},
		{name: "a part", pools: []Pool{{part}}, last: "10.0.0.2", want: addrs("10.0.0.3")},
		{name: "round the end of a part", pools: []Pool{{part}}, last: "10.0.0.4", want: addrs("10.0.0.3")},
		{name: "a part, and then the next", pools: []Pool{{part, Whole(netip.MustParsePrefix("10.1.0.0/24"))}},
			states: map[string]state{"10.0.0.3": leased, "10.0.0.4": resting}, want: addrs("10.1.0.2")},
		{name: "nothing but what rests of all parts", pools: []Pool{{part, {Subnet: v4, First: netip.MustParseAddr("10.0.0.6")}}},
			states: map[string]state{"10.0.0.3": leased, "10.0.0.4": resting, "10.0.0.6": resting}, oldest: addrs("10.0.0.5", "10.0.0.6", "10.0.0.4"), want: addrs("10.0.0.6")},
		{name: "a gateway of one's own", pools: []Pool{{{Subnet: v4, Gateway: netip.MustParseAddr("10.0.0.2")}}}, want: addrs("10.0.0.1")},
		{name: "static, beside the part", pools: []Pool{{part}}, static: addrs("10.0.0.5")},
		{name: "static, of the second range", pools: []Pool{{part, {Subnet: v4, First: netip.MustParseAddr("10.0.0.6")}}}, static: addrs("10.0.0.6"), want: addrs("10.0.0.6")},
		{name: "a part the wrong way round", pools: []Pool{{{Subnet: v4, First: part.Last, Last: part.First}}}},
		{name: "a part of another subnet", pools: []Pool{{{Subnet: v4, Last: netip.MustParseAddr("10.0.0.8")}}}},
		{name: "a gateway of another subnet", pools: []Pool{{{Subnet: v4, Gateway: netip.MustParseAddr("fd00::1")}}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &paper{states: map[netip.Addr]state{}, lasts: map[netip.Prefix]netip.Addr{}, oldest: test.oldest}
			for a, s := range test.states {
				p.states[netip.MustParseAddr(a)] = s
			}
			if test.last != "" {
				p.lasts[v4] = netip.MustParseAddr(test.last)
			}
			got, err := choose(p, test.pools, test.static)
			if !cmp.Equal(test.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) || (err == nil) != (test.want != nil) {
				t.Errorf("%v, %v; want %v", got, err, test.want)
			}
			if errors.Is(test.err, ErrTaken) && !errors.Is(err, ErrTaken) {
				t.Error(err)
			}
			if e := new(ExhaustedError); errors.As(test.err, &e) && !errors.As(err, &e) {
				t.Error(err)
			}
		})
	}
}

// TestLookups holds what the search for a free address costs at most.
func TestLookups(t *testing.T) {
	for _, r := range []string{"10.0.0.0/16", "fd00::/64", "::/0"} {
		r := netip.MustParsePrefix(r)
		p := &paper{states: map[netip.Addr]state{}, lasts: map[netip.Prefix]netip.Addr{}}
		const taken = 1000
		for a := r.Addr(); len(p.states) < taken; a = a.Next() {
			p.states[a] = leased
		}
		if got, err := choose(p, []Pool{{Whole(r)}}, nil); err != nil || p.lookups > taken+1 {
			t.Errorf("%v: %v, %v after %d lookups", r, got, err, p.lookups)
		}
	}
}

func TestFull(t *testing.T) {
	leases := func(list ...string) (out []Lease) {
		for _, a := range addrs(list...) {
			out = append(out, Lease{Addrs: []netip.Addr{a}})
		}
		return out
	}
	for _, c := range []struct {
		of   []Pool
		in   []Lease
		want bool
	}{
		{pools("10.0.0.0/30"), nil, false},
		{pools("10.0.0.0/30"), leases("10.0.1.2"), false},
		{pools("10.0.0.0/30"), leases("10.0.0.2"), true},
		{pools("fd00::/126"), leases("fd00::2"), false},
		{pools("fd00::/126"), leases("fd00::2", "fd00::3"), true},
		{pools("fd00::/64"), leases("fd00::2"), false},
		{[]Pool{append(pools("10.0.0.0/30")[0], pools("10.0.0.4/30")[0]...)}, leases("10.0.0.2"), false},
		{[]Pool{append(pools("10.0.0.0/30")[0], pools("10.0.0.4/30")[0]...)}, leases("10.0.0.2", "10.0.0.6"), true},
		{pools("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126"), leases("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), true},
	} {
		if got := c.of[0].Full(c.in); got != c.want {
			t.Errorf("%s with %v: %v", c.of[0], c.in, got)
		}
	}
}

// TestCapacity holds that so many addresses can be chosen as it says.
func TestCapacity(t *testing.T) {
	for _, s := range []string{"10.0.0.0/28", "10.0.0.0/30", "10.0.0.0/31", "10.0.0.0/32", "fd00::/124", "fd00::/126", "fd00::/127", "fd00::/128"} {
		r, n := netip.MustParsePrefix(s), 0
		for a := r.Addr(); r.Contains(a); a = a.Next() {
			if Whole(r).usable(a) {
				n++
			}
		}
		if got := Capacity(r); got != float64(n) {
			t.Errorf("%s: %v, not %d", s, got, n)
		}
	}
	if got := Capacity(netip.MustParsePrefix("fd00::/64")); got < 1<<63 {
		t.Error(got)
	}
}
