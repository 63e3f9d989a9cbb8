package nft

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

func testNode() Node {
	prefix := netip.MustParsePrefix
	return Node{
		Addresses:    []netip.Addr{netip.MustParseAddr(clusternet.Node4), netip.MustParseAddr(clusternet.Node6)},
		ClusterCIDRs: []netip.Prefix{prefix(clusternet.PodCIDR4), prefix(clusternet.PodCIDR6)},
		ServiceCIDRs: []netip.Prefix{prefix("10.96.0.0/16"), prefix("fd00:96::/64")},
	}
}

func key(p frontends.Protocol, addr string, port uint16) frontends.Key {
	return frontends.Key{Addr: netip.MustParseAddr(addr), Protocol: p, Port: port}
}

// pods returns backends at port 8080 of pods, of a family.
func pods(six bool, is ...int) []netip.AddrPort {
	var out []netip.AddrPort
	for _, i := range is {
		a := clusternet.Pod4(i)
		if six {
			a = clusternet.Pod6(i)
		}
		out = append(out, netip.AddrPortFrom(netip.MustParseAddr(a), 8080))
	}
	return out
}

func apply(t *testing.T, x *Tables, c Change) {
	t.Helper()
	for _, f := range c.Put {
		if err := f.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Apply(c); err != nil {
		t.Fatal(err)
	}
}

// started returns tables for the tests' network, with servers in n pods.
func started(t *testing.T, n int) *Tables {
	t.Helper()
	netns.NeedCommand(t, "nft")
	clusternet.Make(t, n)
	clusternet.Route(t, "10.96.0.0/14", "fd00:96::/32", "fd00:99::/32")
	for i := range n {
		clusternet.Serve(t, clusternet.Pod(i), net.JoinHostPort(clusternet.Pod4(i), "8080"))
		clusternet.Serve(t, clusternet.Pod(i), net.JoinHostPort(clusternet.Pod6(i), "8080"))
	}
	x := New(testNode())
	t.Cleanup(x.Close)
	return x
}

// expect asks until the servers have all answered, and fails for another outcome.
func expect(t *testing.T, ns, network, addr string, want ...string) {
	t.Helper()
	left := map[string]bool{}
	for _, w := range want {
		left[w] = true
	}
	patience := clusternet.Patience
	if want[0] == "timeout" { // which another answer would have come long before
		patience = time.Second / 4
	}
	for range 200 {
		server, _, err := clusternet.AskFor(t, patience, ns, network, addr)
		got := clusternet.Outcome(server, err)
		seen := false
		for _, w := range want {
			seen = seen || got == w
		}
		if !seen {
			t.Fatalf("%s %s from %q: %s, want %v", network, addr, ns, got, want)
		}
		if delete(left, got); len(left) == 0 {
			return
		}
	}
	t.Fatalf("%s %s from %q: never %v", network, addr, ns, left)
}

func TestClusterIP(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	x := started(t, 3)
	c := Change{Hairpin: map[netip.Addr]bool{}}
	for i := range 3 {
		c.Hairpin[netip.MustParseAddr(clusternet.Pod4(i))], c.Hairpin[netip.MustParseAddr(clusternet.Pod6(i))] = true, true
	}
	for _, vip := range []string{"10.96.0.10", "fd00:96::10"} {
		for _, p := range []frontends.Protocol{frontends.TCP, frontends.UDP} {
			six := vip[0] == 'f'
			c.Put = append(c.Put,
				&frontends.Frontend{Key: key(p, vip, 80), ClusterIP: true, Backends: pods(six, 0, 1, 2)},
				&frontends.Frontend{Key: key(p, vip, 81), ClusterIP: true},
				&frontends.Frontend{Key: key(p, vip, 82), ClusterIP: true, Empty: frontends.Drop})
		}
	}
	apply(t, x, c)
	for _, vip := range []string{"10.96.0.10", "fd00:96::10"} {
		for _, network := range []string{"tcp", "udp"} {
			for _, from := range []string{"pod0", "", "outside"} {
				expect(t, from, network, net.JoinHostPort(vip, "80"), "pod0", "pod1", "pod2")
				expect(t, from, network, net.JoinHostPort(vip, "81"), "refused")
				expect(t, from, network, net.JoinHostPort(vip, "83"), "refused")
			}
		}
		expect(t, "pod1", "tcp", net.JoinHostPort(vip, "82"), "timeout")
	}
	expect(t, "pod1", "tcp", "10.96.7.7:80", "timeout")
}

func TestClientAddress(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	x := started(t, 2)
	at := func(port uint16, m frontends.Masquerade) *frontends.Frontend {
		return &frontends.Frontend{Key: key(frontends.TCP, "10.96.0.10", port), Backends: pods(false, 1), Masquerade: m}
	}
	apply(t, x, Change{Put: []*frontends.Frontend{at(1, frontends.Outside), at(2, frontends.Never), at(3, frontends.Always)}})
	for _, test := range []struct{ from, port, want string }{
		{"pod0", "1", clusternet.Pod4(0)}, {"outside", "1", clusternet.Gateway4}, {"pod0", "2", clusternet.Pod4(0)}, {"outside", "2", clusternet.Outside4},
		{"pod0", "3", clusternet.Gateway4}, {"outside", "3", clusternet.Gateway4},
	} {
		if _, client, err := clusternet.Ask(t, test.from, "tcp", "10.96.0.10:"+test.port); err != nil || client != test.want {
			t.Errorf("%s to port %s: %q %v, want %s", test.from, test.port, client, err, test.want)
		}
	}
	// A pod that is its own backend.
	apply(t, x, Change{Hairpin: map[netip.Addr]bool{netip.MustParseAddr(clusternet.Pod4(1)): true}})
	if _, client, err := clusternet.Ask(t, "pod1", "tcp", "10.96.0.10:1"); err != nil || client != clusternet.Gateway4 {
		t.Errorf("hairpin: %q %v", client, err)
	}
}

func TestNodePort(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	x := started(t, 2)
	apply(t, x, Change{Put: []*frontends.Frontend{
		{Key: key(frontends.TCP, "0.0.0.0", 30080), Backends: pods(false, 0), Internal: pods(false, 1), Masquerade: frontends.Never, Empty: frontends.Drop},
		{Key: key(frontends.UDP, "::", 30080), Backends: pods(true, 0, 1), Masquerade: frontends.Always},
		{Key: key(frontends.TCP, "0.0.0.0", 30081)},
	}})
	if server, client, err := clusternet.Ask(t, "outside", "tcp", clusternet.Node4+":30080"); server != "pod0" || client != clusternet.Outside4 {
		t.Errorf("outside: %q %q %v", server, client, err)
	}
	expect(t, "pod0", "tcp", clusternet.Node4+":30080", "pod1")
	expect(t, "", "tcp", clusternet.Node4+":30080", "pod1")
	expect(t, "outside", "udp", net.JoinHostPort(clusternet.Node6, "30080"), "pod0", "pod1")
	expect(t, "outside", "tcp", clusternet.Node4+":30081", "refused")
	// A service that has the node's address for an external one, and the node port for its port, comes first.
	external := &frontends.Frontend{Key: key(frontends.TCP, clusternet.Node4, 30081), Backends: pods(false, 1)}
	apply(t, x, Change{Put: []*frontends.Frontend{external}})
	expect(t, "outside", "tcp", clusternet.Node4+":30081", "pod1")
	apply(t, x, Change{Delete: []frontends.Key{external.Key}})
	expect(t, "outside", "tcp", clusternet.Node4+":30081", "refused")
	n := testNode()
	n.Addresses = nil
	apply(t, x, Change{Node: &n})
	expect(t, "pod0", "tcp", clusternet.Node4+":30080", "refused") // by the host itself, where nobody listens
}

func TestSources(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	x := started(t, 2)
	put := func(addr string, sources ...string) {
		f := &frontends.Frontend{Key: key(frontends.TCP, addr, 80), Backends: pods(addr[0] == 'f', 0), Sources: []netip.Prefix{}}
		for _, s := range sources {
			f.Sources = append(f.Sources, netip.MustParsePrefix(s))
		}
		apply(t, x, Change{Put: []*frontends.Frontend{f}})
	}
	for _, test := range []struct {
		addr            string
		outside, inside []string
	}{
		{"10.96.0.10", []string{"192.0.2.0/24", "192.0.2.2/32", "203.0.113.0/24"}, []string{"10.244.0.0/16", "203.0.113.0/24"}},
		{"fd00:96::10", []string{"2001:db8::/64", "2001:db8::2/128"}, []string{"fd00:244::/63", "2001:db8:1::/48"}},
	} {
		addr := net.JoinHostPort(test.addr, "80")
		put(test.addr, test.outside...)
		expect(t, "outside", "tcp", addr, "pod0")
		expect(t, "pod1", "tcp", addr, "timeout")
		put(test.addr, test.inside...)
		expect(t, "pod1", "tcp", addr, "pod0")
		expect(t, "outside", "tcp", addr, "timeout")
	}
}

// TestInterfaces tells pods by the interface that they come in at: their addresses are kept, as all are if there is nothing to tell by.
func TestInterfaces(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	x := started(t, 3)
	for _, test := range []struct {
		names []string
		kept  [2]bool // the addresses of pod0 and pod1
	}{{nil, [2]bool{true, true}}, {[]string{"veth"}, [2]bool{}}, {[]string{"veth0"}, [2]bool{true, false}}, {[]string{"veth*"}, [2]bool{true, true}}} {
		n := testNode()
		n.ClusterCIDRs, n.Interfaces = nil, test.names
		c := Change{Node: &n}
		for _, vip := range []string{"10.96.0.10", "fd00:96::10"} {
			c.Put = append(c.Put, &frontends.Frontend{Key: key(frontends.TCP, vip, 80), ClusterIP: true, Backends: pods(vip[0] == 'f', 2)})
		}
		apply(t, x, c)
		for i, kept := range test.kept {
			for vip, own := range map[string]string{"10.96.0.10": clusternet.Pod4(i), "fd00:96::10": clusternet.Pod6(i)} {
				_, client, err := clusternet.Ask(t, clusternet.Pod(i), "tcp", net.JoinHostPort(vip, "80"))
				if err != nil || (client == own) != kept {
					t.Errorf("interfaces %v: pod%d is seen as %s at %s, %v", test.names, i, client, vip, err)
				}
			}
		}
	}
}

// TestAffinityTimeout holds that a client stays as long as it comes back in time, and no longer.
func TestAffinityTimeout(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	x := started(t, 4)
	apply(t, x, Change{Put: []*frontends.Frontend{{
		Key: key(frontends.TCP, "10.96.0.10", 80), ClusterIP: true, Backends: pods(false, 0, 1, 2, 3), Affinity: time.Second,
	}}})
	next := func() string {
		server, _, err := clusternet.Ask(t, "outside", "tcp", "10.96.0.10:80")
		if err != nil {
			t.Fatal(err)
		}
		return server
	}
	first, since, last := next(), time.Now(), time.Now()
	for time.Since(since) < 1500*time.Millisecond {
		server := next()
		if time.Since(last) > 700*time.Millisecond { // the machine stood still
			first, since = server, time.Now()
		}
		if last = time.Now(); server != first {
			t.Fatalf("%s after %s", server, first)
		}
	}
	for range 12 { // one of four could be the same again by chance
		for strings.Contains(netns.Run(t, "nft", "list", "map", "ip", TableName, "affinity"), "elements") {
		}
		if next() != first {
			return
		}
	}
	t.Errorf("always %s", first)
}

// TestManyClients holds that clients are served which there is no more room for in affinity.
func TestManyClients(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	maxClients = 1
	x := started(t, 2)
	apply(t, x, Change{Put: []*frontends.Frontend{{
		Key: key(frontends.TCP, "10.96.0.10", 80), ClusterIP: true, Backends: pods(false, 0, 1), Affinity: time.Hour,
	}}})
	first, _, err := clusternet.Ask(t, "outside", "tcp", "10.96.0.10:80")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "", "tcp", "10.96.0.10:80", "pod0", "pod1")
	for range 10 {
		expect(t, "outside", "tcp", "10.96.0.10:80", first)
	}
}

func TestAffinity(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	x := started(t, 4)
	for _, vip := range []string{"10.96.0.10", "fd00:96::10"} {
		six := vip[0] == 'f'
		put := func(is ...int) {
			t.Helper()
			apply(t, x, Change{Put: []*frontends.Frontend{{
				Key: key(frontends.TCP, vip, 80), ClusterIP: true, Backends: pods(six, is...), Affinity: 3 * time.Hour,
			}}})
		}
		addr := net.JoinHostPort(vip, "80")
		stays := func(want string) string {
			t.Helper()
			for range 20 {
				server, _, err := clusternet.Ask(t, "outside", "tcp", addr)
				if want == "" {
					want = server
				}
				if err != nil || server != want {
					t.Fatalf("%s: %q %v, want %s", addr, server, err, want)
				}
			}
			return want
		}
		put(0, 1, 2)
		var gone int
		first := stays("")
		if _, err := fmt.Sscanf(first, "pod%d", &gone); err != nil {
			t.Fatal(err)
		}
		// A new one comes, others move to other indices: the client stays.
		put(3, 2, 1, 0)
		stays(first)
		put(3, gone)
		stays(first)
		// Its own goes: it gets another, and stays there when the old one is back.
		put((gone+1)%3, (gone+2)%3)
		second := stays("")
		if first == second {
			t.Fatal("the client is sent to a backend that is gone")
		}
		put(0, 1, 2, 3)
		stays(second)
		// A table that is made anew has the affinity of before.
		y := New(testNode())
		apply(t, y, Change{Put: []*frontends.Frontend{{
			Key: key(frontends.TCP, vip, 80), ClusterIP: true, Backends: pods(six, 3, 2, 1, 0), Affinity: 3 * time.Hour,
		}}})
		y.Close()
		stays(second)
		x.Close()
		x = New(testNode())
		t.Cleanup(x.Close)
	}
}

// TestRecovery holds that tables which somebody else removed, or changed, are made anew with the next change.
func TestRecovery(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	x := started(t, 2)
	put := func(is ...int) {
		apply(t, x, Change{Put: []*frontends.Frontend{{Key: key(frontends.TCP, "10.96.0.10", 80), ClusterIP: true, Backends: pods(false, is...)}}})
	}
	put(0)
	for _, spoil := range [][]string{{"flush", "ruleset"}, {"flush", "map", "ip", TableName, "backends"},
		{"delete table ip ropewalk; add table ip ropewalk; add map ip ropewalk affinity { type ipv4_addr : mark; }"}} {
		netns.Run(t, "nft", spoil...)
		put(1)
		expect(t, "outside", "tcp", "10.96.0.10:80", "pod1")
		put(0)
		expect(t, "outside", "tcp", "10.96.0.10:80", "pod0")
	}
	if err := Remove(); err != nil {
		t.Fatal(err)
	}
	if out := netns.Run(t, "nft", "list", "ruleset"); out != "" {
		t.Errorf("left: %s", out)
	}
}
