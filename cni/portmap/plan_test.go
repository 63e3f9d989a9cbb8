package portmap

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func mapping(host string, hostPort, port uint16, p Protocol) Mapping {
	m := Mapping{HostPort: hostPort, ContainerPort: port, Protocol: p}
	if host != "" {
		m.HostIP = netip.MustParseAddr(host)
	}
	return m
}

var (
	podOf1 = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("fd00::1/128")}
	podOf2 = []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("fd00::2/128")}
)

// TestClash holds which ports of two pods are in each other's way, in both orders.
func TestClash(t *testing.T) {
	for _, test := range []struct {
		name  string
		a, b  Mapping
		taken bool
	}{
		{"the same", mapping("", 80, 1, TCP), mapping("", 80, 2, TCP), true},
		{"in other words", mapping("0.0.0.0", 80, 1, TCP), mapping("::", 80, 2, TCP), true},
		{"another port", mapping("", 80, 1, TCP), mapping("", 81, 1, TCP), false},
		{"another protocol", mapping("", 80, 1, TCP), mapping("", 80, 1, UDP), false},
		{"all and one", mapping("", 80, 1, TCP), mapping("192.0.2.1", 80, 2, TCP), true},
		{"all and one of IPv6", mapping("", 80, 1, SCTP), mapping("2001:db8::1", 80, 2, SCTP), true},
		{"all and one, another port", mapping("", 80, 1, TCP), mapping("192.0.2.1", 81, 2, TCP), false},
		{"the same address", mapping("192.0.2.1", 80, 1, TCP), mapping("192.0.2.1", 80, 2, TCP), true},
		{"two addresses", mapping("192.0.2.1", 80, 1, TCP), mapping("192.0.2.2", 80, 2, TCP), false},
		{"two families", mapping("192.0.2.1", 80, 1, TCP), mapping("2001:db8::1", 80, 2, TCP), false},
	} {
		for _, m := range [][2]Mapping{{test.a, test.b}, {test.b, test.a}} {
			taken := false
			for _, f := range families {
				held, err1 := wanted(f, Owner{"a", "eth0"}, m[:1], podOf1, true)
				want, err2 := wanted(f, Owner{"b", "eth0"}, m[1:], podOf2, true)
				if err1 != nil || err2 != nil {
					t.Fatal(err1, err2)
				}
				add, remove, err := plan(f, Owner{"b", "eth0"}, held, want, podOf2)
				if errors.Is(err, ErrTaken) && strings.Contains(err.Error(), "a/eth0") {
					taken = true
				} else if err != nil || len(add) != len(want) || remove != nil {
					t.Errorf("%s: %v %v %v", test.name, add, remove, err)
				}
			}
			if taken != test.taken {
				t.Errorf("%s, %v before %v: taken %v", test.name, m[0], m[1], taken)
			}
		}
	}
}

// TestPlan holds what becomes of what is there: an owner's own, and of a pod that had one of the addresses before.
func TestPlan(t *testing.T) {
	for _, f := range families {
		a, b := Owner{"a", "eth0"}, Owner{"b", "eth0"}
		make := func(o Owner, pods []netip.Prefix, ms ...Mapping) []element {
			list, err := wanted(f, o, ms, pods, false)
			if err != nil {
				t.Fatal(err)
			}
			return list
		}
		old := make(a, podOf1, mapping("", 80, 1, TCP), mapping("", 81, 1, TCP))
		for _, test := range []struct {
			name        string
			o           Owner
			pods        []netip.Prefix
			want        []element
			add, remove int
		}{
			{"the same again", a, podOf1, old, 0, 0},
			{"one less, one more", a, podOf1, make(a, podOf1, mapping("", 80, 1, TCP), mapping("", 82, 1, TCP)), 1, 1},
			{"another address", a, podOf2, make(a, podOf2, mapping("", 80, 1, TCP)), 2, 3},
			{"the address is another's by now", b, podOf1, make(b, podOf1, mapping("", 80, 1, TCP)), 2, 3},
			{"which maps nothing", b, podOf1, nil, 0, 3},
			{"another's business", b, podOf2, make(b, podOf2, mapping("", 90, 1, TCP)), 2, 0},
		} {
			add, remove, err := plan(f, test.o, old, test.want, test.pods)
			if err != nil || len(add) != test.add || len(remove) != test.remove {
				t.Errorf("%s: %d to add, %d to remove, %v", test.name, len(add), len(remove), err)
			}
		}
	}
}

func TestInvalid(t *testing.T) {
	ok := mapping("", 80, 1, TCP)
	for _, test := range []struct {
		name string
		o    Owner
		ms   []Mapping
		pods []netip.Prefix
	}{
		{"no owner", Owner{}, []Mapping{ok}, podOf1},
		{"a slash", Owner{"a/b", "eth0"}, []Mapping{ok}, podOf1},
		{"too long", Owner{strings.Repeat("a", 123), "eth0"}, []Mapping{ok}, podOf1},
		{"no port", Owner{"a", "eth0"}, []Mapping{mapping("", 0, 1, TCP)}, podOf1},
		{"no port of the pod", Owner{"a", "eth0"}, []Mapping{mapping("", 1, 0, TCP)}, podOf1},
		{"protocol", Owner{"a", "eth0"}, []Mapping{mapping("", 1, 1, 1)}, podOf1},
		{"family", Owner{"a", "eth0"}, []Mapping{mapping("2001:db8::1", 80, 1, TCP)}, podOf1[:1]},
		{"two of a family", Owner{"a", "eth0"}, []Mapping{ok}, []netip.Prefix{podOf1[0], podOf2[0]}},
		{"invalid address", Owner{"a", "eth0"}, []Mapping{ok}, []netip.Prefix{{}}},
	} {
		if err := validate(test.o, test.ms, test.pods); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if err := validate(Owner{strings.Repeat("a", 122), "eth0"}, []Mapping{ok}, podOf1); err != nil {
		t.Error(err)
	}
	two := []Mapping{mapping("", 80, 1, TCP), mapping("::", 80, 2, TCP)}
	if _, err := wanted(families[0], Owner{"a", "eth0"}, two, podOf1, false); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if p, err := ParseProtocol("SCTP"); p != SCTP || err != nil {
		t.Error(p, err)
	}
	if _, err := ParseProtocol("icmp"); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}
