package collect

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

const grace = time.Minute

func lease(container string, addrs ...string) ipam.Lease {
	l := ipam.Lease{Owner: ipam.Owner{Container: container, Interface: "eth0"}, Since: time.Unix(1, 0)}
	for _, a := range addrs {
		l.Addrs = append(l.Addrs, netip.MustParseAddr(a))
	}
	return l
}

func port(container, pod string) portmap.Entry {
	return portmap.Entry{Owner: owner(container), Pod: netip.MustParseAddr(pod)}
}

func owner(container string) portmap.Owner {
	return portmap.Owner{Container: container, Interface: "eth0"}
}

func TestOrphans(t *testing.T) {
	ends := func(containers ...string) map[string]bool {
		m := map[string]bool{}
		for _, c := range containers {
			m[hostOf(c, "eth0")] = true
		}
		return m
	}
	for _, c := range []struct {
		what string
		in   node
		want string
	}{
		{"nothing", node{}, ""},
		{"an attachment", node{[]ipam.Lease{lease("a", "10.0.0.2", "fd00::2")}, ends("a"), []portmap.Entry{port("a", "10.0.0.2"), port("a", "fd00::2")}}, ""},
		{"its namespace gone", node{[]ipam.Lease{lease("a", "10.0.0.2")}, ends("b"), nil}, "lease a, interface " + hostOf("b", "eth0")},
		{"its ports go with it", node{[]ipam.Lease{lease("a", "10.0.0.2")}, nil, []portmap.Entry{port("a", "10.0.0.2")}}, "lease a"},
		{"ports alone", node{nil, nil, []portmap.Entry{port("a", "10.0.0.2"), port("a", "10.0.0.2"), port("a", "fd00::2")}}, "ports a 10.0.0.2, ports a fd00::2"},
		{"ports of another's address", node{[]ipam.Lease{lease("a", "10.0.0.2"), lease("b", "10.0.0.3")}, ends("a", "b"), []portmap.Entry{port("a", "10.0.0.3")}}, "ports a 10.0.0.3"},
		{"ports that somebody has added by hand", node{nil, nil, []portmap.Entry{{Owner: portmap.Owner{Container: "x"}, Pod: netip.MustParseAddr("10.0.0.2")}}}, ""},
		{"leases are lost, and the pod runs", node{nil, ends("a"), []portmap.Entry{port("a", "10.0.0.2")}}, "interface " + hostOf("a", "eth0")},
	} {
		var got []string
		for _, o := range orphans(c.in) {
			s := fmt.Sprintf("%s %s%s", o.kind, o.container, o.host)
			if o.pod.IsValid() {
				s += " " + o.pod.String()
			}
			got = append(got, s)
		}
		if diff := cmp.Diff(c.want, strings.Join(got, ", ")); diff != "" {
			t.Errorf("%s: %s", c.what, diff)
		}
	}
}

// TestRipe holds that only what was alone at each look, for the time of grace, is taken away.
func TestRipe(t *testing.T) {
	begin := time.Now()
	a := orphan{kind: aLease, container: "a", since: begin.UnixNano()}
	b, later, aged := a, a, a
	b.container, later.since, aged.since = "b", a.since+1, begin.Add(-old).UnixNano()
	ripe, known := memory(nil).ripe([]orphan{aged, a}, begin, grace)
	if !slices.Equal(ripe, []orphan{aged}) { // as an earlier process may have seen it, too
		t.Errorf("at the first look %v are ripe", ripe)
	}
	for i, step := range []struct {
		at    time.Duration
		found []orphan
		ripe  []orphan
		due   time.Duration // 0 is never
	}{
		{0, []orphan{a}, nil, grace},
		{grace / 2, []orphan{a, b}, nil, grace},
		{grace, []orphan{a, b}, []orphan{a}, grace * 3 / 2},
		{grace * 3 / 2, []orphan{later}, nil, grace * 5 / 2}, // b came back
		{grace * 2, []orphan{b}, nil, grace * 3},
		{grace * 3, []orphan{b}, []orphan{b}, 0},
	} {
		now := begin.Add(step.at)
		var ripe []orphan
		ripe, known = known.ripe(step.found, now, grace)
		at, any := known.due(now, grace)
		if !slices.Equal(ripe, step.ripe) || any != (step.due != 0) || any && at.Sub(begin) != step.due {
			t.Errorf("step %d: %v are ripe, the next at %v", i, ripe, at.Sub(begin))
		}
	}
}

// TestFree holds that what has become another's, or is needed again, since it was found, stays.
func TestFree(t *testing.T) {
	if !netns.Enter(t, "192.0.2.1/32") {
		return
	}
	dir := t.TempDir()
	s, err := ipam.Open(dir)
	must(t, err)
	ranges := []ipam.Pool{{ipam.Whole(netip.MustParsePrefix("10.0.0.0/24"))}}
	leases := map[string]ipam.Lease{}
	for _, c := range []string{"anew", "back", "gone", "kept"} {
		leases[c], err = s.Allocate(ipam.Owner{Container: c, Interface: "eth0"}, ranges, nil)
		must(t, err)
	}
	must(t, s.Close())
	pods := map[string]netip.Addr{"lost": netip.MustParseAddr("10.0.0.201"), "dead": netip.MustParseAddr("10.0.0.200")}
	for c, l := range leases {
		pods[c] = l.Addrs[0]
	}
	for i, c := range slices.Sorted(maps.Keys(pods)) {
		mapping := portmap.Mapping{HostPort: uint16(80 + i), ContainerPort: 80, Protocol: portmap.TCP}
		at := []netip.Prefix{netip.PrefixFrom(pods[c], 32)}
		if c == "dead" {
			at = append(at, netip.MustParsePrefix("fd00::9/128"))
		}
		must(t, portmap.Add(owner(c), []portmap.Mapping{mapping}, at, false))
	}
	for _, c := range []string{"back", "kept", "lost"} {
		spec := link.New(c, "eth0", "", 0, nil)
		netns.Run(t, "ip", "link", "add", spec.Host, "address", spec.HostMAC.String(), "type", "veth", "peer", "name", c)
	}
	found := func(c string, since int64) orphan {
		return orphan{kind: aLease, container: c, ifname: "eth0", since: since}
	}
	ports := func(c, pod string) orphan {
		return orphan{kind: somePorts, container: c, ifname: "eth0", pod: netip.MustParseAddr(pod)}
	}
	since := func(c string) int64 { return leases[c].Since.UnixNano() }
	for _, c := range []struct {
		what string
		o    orphan
		want bool
	}{
		{"a later ADD's", found("anew", since("anew")-1), false},
		{"whose interface is there by now", found("back", since("back")), false},
		{"that a DEL has freed", found("never", 1), false},
		{"of a pod that is gone", found("gone", since("gone")), true},
		{"again", found("gone", since("gone")), false},
		{"ports of the address that is leased by now", ports("kept", leases["kept"].Addrs[0].String()), false},
		{"ports of a pod whose lease was lost", ports("lost", "10.0.0.201"), false},
		{"ports of nobody", ports("dead", "10.0.0.200"), true}, // of this address alone
	} {
		if got, err := free(dir, c.o); err != nil || got != c.want {
			t.Errorf("%s: %v, %v", c.what, got, err)
		}
	}
	left, err := list(dir)
	must(t, err)
	var names []string
	for _, l := range left {
		names = append(names, l.Container)
	}
	if diff := cmp.Diff([]string{"anew", "back", "kept"}, names); diff != "" {
		t.Error(diff)
	}
	entries, err := portmap.List()
	must(t, err)
	var led []string
	for _, e := range entries {
		led = append(led, e.Owner.Container+" "+e.Pod.String())
	}
	var want []string
	for c, pod := range pods {
		if c != "gone" && c != "dead" {
			want = append(want, c+" "+pod.String())
		}
	}
	slices.Sort(led)
	want = append(want, "dead fd00::9")
	slices.Sort(want)
	if diff := cmp.Diff(want, led); diff != "" {
		t.Error(diff)
	}
}

// TestLook holds what is counted and logged, and that leases which others have are no failure.
func TestLook(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	var log strings.Builder
	reg := prometheus.NewRegistry()
	c, err := New(Config{
		DataDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&log, nil)), Registerer: reg,
		Ranges: func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.0.0.0/29")} },
	})
	must(t, err)
	s, err := ipam.Open(c.config.DataDir)
	must(t, err)
	_, err = s.Allocate(ipam.Owner{Container: "a", Interface: "eth0"}, []ipam.Pool{{ipam.Whole(c.config.Ranges()[0])}}, nil)
	must(t, err)
	must(t, s.Close())
	host := hostOf("b", "eth0")
	netns.Run(t, "ip", "link", "add", host, "type", "veth", "peer", "name", "x")
	netns.Run(t, "ip", "link", "add", "ri01234567", "type", "ifb")
	count := func(want string) {
		t.Helper()
		must(t, testutil.GatherAndCompare(reg, strings.NewReader(want), "ropewalk_cni_collected_total", "ropewalk_cni_interfaces_without_lease", "ropewalk_cni_leases", "ropewalk_cni_addresses"))
	}
	text := func(lease, leased, alone int) string {
		return fmt.Sprintf(`
# HELP ropewalk_cni_addresses Addresses of a range that pods may have.
# TYPE ropewalk_cni_addresses gauge
ropewalk_cni_addresses{range="10.0.0.0/29"} 5
# HELP ropewalk_cni_collected_total What was freed that pods had left which were gone, by kind.
# TYPE ropewalk_cni_collected_total counter
ropewalk_cni_collected_total{kind="ifb"} 1
ropewalk_cni_collected_total{kind="lease"} %d
ropewalk_cni_collected_total{kind="ports"} 0
# HELP ropewalk_cni_interfaces_without_lease Interfaces of pods whose addresses are not leased.
# TYPE ropewalk_cni_interfaces_without_lease gauge
ropewalk_cni_interfaces_without_lease %d
# HELP ropewalk_cni_leases Addresses of a range that pods have.
# TYPE ropewalk_cni_leases gauge
ropewalk_cni_leases{range="10.0.0.0/29"} %d
`, lease, alone, leased)
	}
	begin := time.Now()
	if !c.look(begin) {
		t.Error(log.String())
	}
	count(text(0, 1, 0))
	for range 2 {
		if !c.look(begin.Add(grace)) {
			t.Error(log.String())
		}
	}
	count(text(1, 1, 1)) // what was read of leases a moment ago is good enough
	if n := strings.Count(log.String(), host); n != 1 || strings.Count(log.String(), "container=a") != 1 {
		t.Errorf("logged was\n%s", log.String())
	}
	c.tell(nil, fmt.Errorf("leases: %w", ipam.ErrBusy))
	if n := testutil.ToFloat64(c.metrics.failures); n != 0 {
		t.Errorf("%v failures", n)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
