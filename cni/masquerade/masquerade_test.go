package masquerade

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestElements(t *testing.T) {
	for _, test := range []struct {
		family int
		in     []netip.Prefix
		want   string
	}{
		{0, prefixes("10.0.1.0/24", "10.0.0.0/24", "10.0.0.128/25", "192.0.2.1/32"), "10.0.0.0-10.0.2.0 192.0.2.1-192.0.2.2"},
		{0, prefixes("0.0.0.0/0", "10.0.0.0/8"), "0.0.0.0-"},
		{0, prefixes("255.255.255.0/24", "255.255.255.255/32", "254.0.0.0/8"), "254.0.0.0-255.0.0.0 255.255.255.0-"},
		{1, prefixes("10.0.0.0/8", "fd00::/64", "fd00:0:0:1::/64"), "fd00::-fd00:0:0:2::"},
		{1, nil, ""},
	} {
		var b strings.Builder
		list := spans(int(families[test.family].addr.Bytes)*8, test.in[:len(test.in)/2], test.in[len(test.in)/2:])
		if again, ok := spansOf(elements(list)); !ok || !slices.Equal(again, list) {
			t.Errorf("%v read back is %v", list, again)
		}
		for _, e := range elements(list) {
			a, _ := netip.AddrFromSlice(e.Key)
			if e.IntervalEnd {
				fmt.Fprint(&b, a)
			} else {
				fmt.Fprintf(&b, " %s-", a)
			}
		}
		if d := cmp.Diff(test.want, strings.TrimSpace(b.String())); d != "" {
			t.Error(d)
		}
	}
}

// TestApply holds who sees whose address, and that a change of the configuration acts on new connections at once.
func TestApply(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	clusternet.Make(t, 2)
	clusternet.Route(t, "198.51.100.0/24")
	netns.Batch(t, clusternet.Outside, "route add "+clusternet.PodCIDR4+" via "+clusternet.Node4+"\nroute add "+clusternet.PodCIDR6+" via "+clusternet.Node6+"\n")
	serve := func(ns, a string) { clusternet.Serve(t, ns, net.JoinHostPort(a, "80")) }
	for _, a := range []string{clusternet.Outside4, clusternet.Outside6} {
		serve(clusternet.Outside, a)
	}
	for _, a := range []string{clusternet.Far4, clusternet.Far6} {
		serve(clusternet.Far, a)
	}
	for _, a := range []string{clusternet.Pod4(1), clusternet.Pod6(1)} {
		serve(clusternet.Pod(1), a)
	}
	seen := func(to, want string) {
		t.Helper()
		for _, protocol := range []string{"tcp", "udp"} {
			_, client, err := clusternet.Ask(t, clusternet.Pod(0), protocol, net.JoinHostPort(to, "80"))
			if err != nil || client != want {
				t.Errorf("%s %s sees %s, want %s, %v", protocol, to, client, want, err)
			}
		}
	}
	apply := func(inside ...string) {
		t.Helper()
		_, err := new(Tables).Apply(Config{Pods: prefixes(clusternet.PodCIDR4, clusternet.PodCIDR6), Inside: prefixes(append(inside, clusternet.ClusterCIDR4, clusternet.ClusterCIDR6)...)}, false)
		if err != nil {
			t.Fatal(err)
		}
	}
	seen(clusternet.Outside4, clusternet.Pod4(0))
	netns.Run(t, "nft", "add table ip other; add chain ip other c { type nat hook postrouting priority 90; }; add table inet ropewalk")
	before := netns.Run(t, "nft", "list", "ruleset")
	for range 2 {
		apply()
		seen(clusternet.Outside4, clusternet.Node4)
		seen(clusternet.Outside6, clusternet.Node6)
		seen(clusternet.Far4, clusternet.Pod4(0))
		seen(clusternet.Far6, clusternet.Pod6(0))
		seen(clusternet.Pod4(1), clusternet.Pod4(0))
		apply(clusternet.Outside4+"/32", "2001:db8::/64")
		seen(clusternet.Outside4, clusternet.Pod4(0))
		seen(clusternet.Outside6, clusternet.Pod6(0))
	}
	if err := Remove(); err != nil {
		t.Fatal(err)
	}
	seen(clusternet.Outside4, clusternet.Pod4(0))
	if d := cmp.Diff(before, netns.Run(t, "nft", "list", "ruleset")); d != "" {
		t.Error(d)
	}
	if err := Remove(); err != nil {
		t.Error(err)
	}
}

// TestMany holds that the kernel takes what 5,000 nodes of both families make, whose addresses are no ranges.
func TestMany(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	const nodes = 5000
	c := Config{Pods: prefixes("10.244.0.0/24", "fd00:244::/64")}
	for i := range nodes {
		c.Inside = append(c.Inside, prefixes(fmt.Sprintf("172.16.%d.%d/32", i>>7, i<<1&255), fmt.Sprintf("fd00:1::%x/128", i<<1))...)
	}
	for _, want := range []bool{true, false} { // the second finds all as it should be
		if changed, err := new(Tables).Apply(c, false); changed != want || err != nil {
			t.Fatal(changed, err)
		}
	}
	for family, want := range map[string]string{"ip": "172.16.", "ip6": "fd00:1::"} {
		if n := strings.Count(netns.Run(t, "nft", "list", "set", family, Table, "inside"), want); n != nodes {
			t.Errorf("%s: %d of %d nodes", family, n, nodes)
		}
	}
}

// TestDiffer holds that any sets become any others by their differences, whatever overlaps, and that the kernel then lists what it does of
// tables that were made at once.
func TestDiffer(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	list := func() string { return netns.Run(t, "nft", "list", "ruleset") }
	r := rand.New(rand.NewPCG(1, 2))
	random := func() (c Config) {
		for range r.IntN(20) {
			for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{byte(254 + r.IntN(2)), byte(r.IntN(2) * 255), 0, byte(r.IntN(256))}), netip.AddrFrom16([16]byte{0xff, 0xff, 15: byte(r.IntN(256))})} {
				p := netip.PrefixFrom(a, a.BitLen()-r.IntN(1+r.IntN(a.BitLen())))
				c.Pods, c.Inside = append(c.Pods, p), append(c.Inside, p)
			}
		}
		return c
	}
	var tables Tables
	for i := range 50 {
		c := random()
		before := tables.generation
		if _, err := tables.Apply(c, false); err != nil {
			t.Fatal(err)
		}
		if i > 0 && tables.generation > before+1 {
			t.Fatalf("%d: the difference was refused", i)
		}
		got := list()
		if err := Remove(); err != nil {
			t.Fatal(err)
		}
		if _, err := new(Tables).Apply(c, false); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(list(), got); d != "" {
			t.Fatalf("%d: %s", i, d)
		}
		var err error
		if tables.generation, err = generation(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLook holds that whatever somebody does to the tables is found by a look and mended, that what is none of ours is left alone, and that a
// change finds out by itself if what it changes is gone.
func TestLook(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	c := Config{Pods: prefixes("10.244.0.0/24", "fd00:244::/64"), Inside: prefixes("10.0.0.0/8", "192.0.2.1/32", "255.255.255.0/24", "fd00::/8")}
	var tables Tables
	apply := func(what string, look, want bool) {
		t.Helper()
		if changed, err := tables.Apply(c, look); changed != want || err != nil {
			t.Errorf("%s: changed %t, %v", what, changed, err)
		}
	}
	apply("the first", false, true)
	right := netns.Run(t, "nft", "list", "ruleset")
	for _, spoil := range []string{
		"delete element ip T inside { 192.0.2.1 }", "add element ip6 T pods { fd00:245::/64 }", "flush chain ip T postrouting", "flush ruleset", "delete table ip6 T",
		"add rule ip T postrouting accept", "flush chain ip T postrouting; add rule ip T postrouting ip saddr @pods ip daddr != @inside masquerade", "flush set ip6 T inside",
		"add table ip T { flags dormant; }", "add chain ip T postrouting { policy drop; }",
		"flush chain ip T postrouting; delete chain ip T postrouting; add chain ip T postrouting { type nat hook postrouting priority 101; }; add rule ip T postrouting ip saddr @pods ip daddr != @inside masquerade fully-random",
	} {
		netns.Run(t, "nft", strings.ReplaceAll(spoil, " T", " "+Table))
		apply("no look", false, false)
		apply(spoil, true, true)
		if d := cmp.Diff(right, netns.Run(t, "nft", "list", "ruleset")); d != "" {
			t.Errorf("%s: %s", spoil, d)
		}
		before, err := generation()
		apply("a second look", true, false)
		if after, err2 := generation(); err != nil || err2 != nil || before != after {
			t.Errorf("a look has written")
		}
	}
	netns.Run(t, "nft", "add table ip other")
	apply("somebody else's table", true, false)
	tables = Tables{}
	apply("another process", false, false)
	netns.Run(t, "nft", "flush ruleset")
	c.Inside = c.Inside[1:]
	apply("a change of what is gone", false, true)
	tables = Tables{}
	apply("after it", false, false)
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	for content, want := range map[string]string{
		"":   "{[] false false}",
		"{}": "{[] false false}",
		"nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- fd00::/8\nmasqLinkLocal: true\nresyncInterval: 60s\ncidrLimit: 9\n": "{[10.0.0.0/8 fd00::/8] true false}",
		`{"nonMasqueradeCIDRs": ["10.0.0.0/8"], "masqLinkLocalIPv6": true}`:                                       "{[10.0.0.0/8] false true}",
		"nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 10.0.0.0\n":                                                         `:3: nonMasqueradeCIDRs: "10.0.0.0" is no range`,
		"nonMasqueradeCIDRs: 10.0.0.0/8":                                                                          ":1: nonMasqueradeCIDRs: it is a list",
		"\nmasqLinkLocal: maybe":                                                                                  ":2: masqLinkLocal: ",
		"nonMasqueradeCIDR: [10.0.0.0/8]":                                                                         ":1: nonMasqueradeCIDR: there is no such key",
		"nonMasqueradeCIDRs: [":                                                                                   "line 1",
		"- 10.0.0.0/8":                                                                                            ":1: it is no mapping",
		"nonMasqueradeCIDRs: []\nmasqLinkLocal: 1":                                                                ":2: masqLinkLocal: ",
	} {
		path := filepath.Join(dir, "config")
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := ReadFile(path)
		says := fmt.Sprint(got)
		if err != nil {
			says = err.Error()
		}
		if !strings.Contains(says, want) || err != nil && !strings.HasPrefix(says, path) {
			t.Errorf("%q: %s; want %s", content, says, want)
		}
	}
	if got, err := ReadFile(filepath.Join(dir, "none")); got.Inside != nil || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}
