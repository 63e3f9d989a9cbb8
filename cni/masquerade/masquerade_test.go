package masquerade

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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
		for _, e := range families[test.family].elements(test.in) {
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
		err := Apply(Config{Pods: prefixes(clusternet.PodCIDR4, clusternet.PodCIDR6), Inside: prefixes(append(inside, clusternet.ClusterCIDR4, clusternet.ClusterCIDR6)...)})
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
	for range 2 { // the second has the first's to delete
		if err := Apply(c); err != nil {
			t.Fatal(err)
		}
	}
	if !There() {
		t.Error("the rules are not there")
	}
	for family, want := range map[string]string{"ip": "172.16.", "ip6": "fd00:1::"} {
		if n := strings.Count(netns.Run(t, "nft", "list", "set", family, Table, "inside"), want); n != nodes {
			t.Errorf("%s: %d of %d nodes", family, n, nodes)
		}
	}
}

func TestReadInside(t *testing.T) {
	dir := t.TempDir()
	for content, want := range map[string]string{
		"": "[]",
		"nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- fd00::/8\nmasqLinkLocal: false\nresyncInterval: 60s\n": "[10.0.0.0/8 fd00::/8]",
		`{"nonMasqueradeCIDRs": ["10.0.0.0/8"]}`:                                                     "[10.0.0.0/8]",
		"nonMasqueradeCIDRs: [10.0.0.0]":                                                             "wrong",
		"nonMasqueradeCIDRs: [":                                                                      "wrong",
	} {
		path := filepath.Join(dir, "config")
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := ReadInside(path)
		if s := fmt.Sprint(got); err == nil && s != want || err != nil && (want != "wrong" || !strings.Contains(err.Error(), path)) {
			t.Errorf("%q: %s, %v", content, s, err)
		}
	}
	if got, err := ReadInside(filepath.Join(dir, "none")); got != nil || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}
