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

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
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
			a, err := choose(p, prefixes(r), nil)
			if err != nil {
				if e := new(ExhaustedError); !errors.As(err, &e) || e.Range.String() != r {
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
	v4, v6 := netip.MustParsePrefix("10.0.0.0/29"), netip.MustParsePrefix("fd00::/64")
	both := []netip.Prefix{v6, v4}
	for _, test := range []struct {
		name   string
		ranges []netip.Prefix
		static []netip.Addr
		states map[string]state
		oldest []netip.Addr
		last   string
		want   []netip.Addr // nil: an error
		err    error
	}{
		{name: "families in order", ranges: both, want: addrs("fd00::2", "10.0.0.2")},
		{name: "after the last", ranges: both, last: "10.0.0.4", want: addrs("fd00::2", "10.0.0.5")},
		{name: "round the end", ranges: both[1:], last: "10.0.0.6", want: addrs("10.0.0.2")},
		{name: "a last from elsewhere", ranges: both[1:], last: "10.9.0.6", want: addrs("10.0.0.2")},
		{name: "over what is taken or rests", ranges: both[1:], last: "10.0.0.5",
			states: map[string]state{"10.0.0.6": leased, "10.0.0.2": resting}, want: addrs("10.0.0.3")},
		{name: "nothing but what rests", ranges: both[1:], oldest: addrs("fd00::2", "10.0.0.4", "10.0.0.2"),
			states: map[string]state{"10.0.0.2": resting, "10.0.0.3": leased, "10.0.0.4": resting, "10.0.0.5": leased, "10.0.0.6": leased}, want: addrs("10.0.0.4")},
		{name: "static", ranges: both, static: addrs("10.0.0.6"), want: addrs("fd00::2", "10.0.0.6")},
		{name: "static twice", ranges: both, static: addrs("10.0.0.6", "fd00::9"), want: addrs("fd00::9", "10.0.0.6")},
		{name: "static and resting", ranges: both, static: addrs("10.0.0.6"), states: map[string]state{"10.0.0.6": resting}, want: addrs("fd00::2", "10.0.0.6")},
		{name: "static and taken", ranges: both, static: addrs("10.0.0.6"), states: map[string]state{"10.0.0.6": leased}, err: ErrTaken},
		{name: "static, of no range", ranges: both, static: addrs("10.0.0.8")},
		{name: "static, in the other's form", ranges: both, static: addrs("::ffff:10.0.0.6")},
		{name: "two static of one range", ranges: both, static: addrs("10.0.0.5", "10.0.0.6")},
		{name: "static gateway", ranges: both, static: addrs("10.0.0.1")},
		{name: "static broadcast", ranges: both, static: addrs("10.0.0.7")},
		{name: "static router anycast", ranges: both, static: addrs("fd00::")},
		{name: "the same range twice", ranges: []netip.Prefix{v4, v4}, want: addrs("10.0.0.2", "10.0.0.3")},
		{name: "and static", ranges: []netip.Prefix{v4, netip.MustParsePrefix("10.0.0.0/30")}, static: addrs("10.0.0.2"), err: &ExhaustedError{}},
		{name: "no range"},
		{name: "an invalid range", ranges: []netip.Prefix{{}}},
		{name: "an address for a range", ranges: prefixes("10.0.0.1/29")},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &paper{states: map[netip.Addr]state{}, lasts: map[netip.Prefix]netip.Addr{}, oldest: test.oldest}
			for a, s := range test.states {
				p.states[netip.MustParseAddr(a)] = s
			}
			if test.last != "" {
				p.lasts[v4] = netip.MustParseAddr(test.last)
			}
			got, err := choose(p, test.ranges, test.static)
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
		if got, err := choose(p, []netip.Prefix{r}, nil); err != nil || p.lookups > taken+1 {
			t.Errorf("%v: %v, %v after %d lookups", r, got, err, p.lookups)
		}
	}
}

// TestCapacity holds that so many addresses can be chosen as it says.
func TestCapacity(t *testing.T) {
	for _, s := range []string{"10.0.0.0/28", "10.0.0.0/30", "10.0.0.0/31", "10.0.0.0/32", "fd00::/124", "fd00::/126", "fd00::/127", "fd00::/128"} {
		r, n := netip.MustParsePrefix(s), 0
		for a := r.Addr(); r.Contains(a); a = a.Next() {
			if usable(r, a) {
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
