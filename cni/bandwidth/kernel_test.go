package bandwidth

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cni/link"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

var podAddrs = []netip.Addr{netip.MustParseAddr("10.244.0.5"), netip.MustParseAddr("fd00:244::5")}

// enter is netns.Enter with what makes the test's own namespace a node.
func enter(t *testing.T) bool {
	return netns.Enter(t, "192.0.2.1/32", "2001:db8::1/128")
}

// attach makes a pod of the name and what connects it.
func attach(t *testing.T, name string, addrs ...netip.Addr) link.Spec {
	t.Helper()
	netns.Add(t, name)
	pod, err := ns.GetNS("/run/netns/" + name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pod.Close() })
	s := link.New(name, "eth0", "default/"+name, 1500, addrs)
	must(t, link.Add(pod, s))
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// qdisc is what tc(8) tells of a filter.
type qdisc struct {
	Kind    string
	Root    bool
	Options struct{ Rate, Burst uint64 }
	Bytes   uint64
}

func rootOf(t *testing.T, device string) qdisc {
	t.Helper()
	var all []qdisc
	if err := json.Unmarshal([]byte(netns.Run(t, "tc", "-s", "-j", "qdisc", "show", "dev", device)), &all); err != nil {
		t.Fatal(err)
	}
	for _, q := range all {
		if q.Root {
			return q
		}
	}
	t.Fatalf("%s has no root: %v", device, all)
	return qdisc{}
}

// serve has the pod take connections and say what it is asked: so many bytes, or that it has received all.
func serve(t *testing.T, name string) (port uint16) {
	t.Helper()
	var l net.Listener
	var err error
	netns.In(t, name, func() { l, err = net.Listen("tcp", "[::]:0") })
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var n int64
				if _, err := fmt.Fscanf(c, "%d\n", &n); err == nil && n > 0 {
					_, _ = io.CopyN(c, zeros{}, n)
				} else if err == nil {
					n, _ = io.Copy(io.Discard, c)
					_, _ = fmt.Fprintln(c, n)
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// download has the pod send n bytes and upload has it receive them; both return when all are there.
func download(t *testing.T, pod netip.AddrPort, n int64) {
	t.Helper()
	c, err := net.Dial("tcp", pod.String())
	must(t, err)
	defer c.Close()
	_, err = fmt.Fprintln(c, n)
	must(t, err)
	if got, err := io.Copy(io.Discard, c); got != n || err != nil {
		t.Fatalf("%d bytes, %v", got, err)
	}
}

func upload(t *testing.T, pod netip.AddrPort, n int64) {
	t.Helper()
	c, err := net.Dial("tcp", pod.String())
	must(t, err)
	defer c.Close()
	_, err = fmt.Fprintln(c, 0)
	must(t, err)
	_, err = io.CopyN(c, zeros{}, n)
	must(t, err)
	must(t, c.(*net.TCPConn).CloseWrite())
	var got int64
	if _, err := fmt.Fscanln(c, &got); got != n || err != nil {
		t.Fatalf("%d bytes, %v", got, err)
	}
}

// TestTraffic holds that both directions and both families go through their filters, at no more than the rate.
func TestTraffic(t *testing.T) {
	if !enter(t) {
		return
	}
	for i, test := range []struct {
		name   string
		limits string
		rate   uint64 // that of both, in bytes per second, and the burst in bytes, as tc has them
		burst  uint64
		bytes  int64
	}{
		{"1M", `{"ingressRate": 1000000, "egressRate": 1000000}`, 125_000, 15_220, 60_000},
		{"of containerd", `{"IngressRate": 40000000, "IngressBurst": 4294967295, "EgressRate": 40000000, "EgressBurst": 4294967295}`,
			5_000_000, 50_000, 1_000_000},
		// A burst smaller than a packet would let none pass.
		{"burst of a byte", `{"ingressRate": 8000000, "ingressBurst": 8, "egressRate": 8000000, "egressBurst": 8}`, 1_000_000, 1522, 100_000},
		{"chosen burst", `{"ingressRate": 80000000, "ingressBurst": 8000000, "egressRate": 80000000, "egressBurst": 8000000}`,
			10_000_000, 1_000_000, 3_000_000},
		{"1G", `{"ingressRate": 1000000000, "egressRate": 1000000000}`, 125_000_000, 1_250_000, 20_000_000},
		// More than 32 bits of bytes per second. There is no telling that from no limit.
		{"40G", `{"ingressRate": 40000000000, "egressRate": 40000000000}`, 5_000_000_000, 50_000_000, 0},
	} {
		pod := fmt.Sprintf("pod%d", i)
		s := attach(t, pod, podAddrs...)
		l, err := Parse([]byte(test.limits))
		must(t, err)
		must(t, Add(s, l))
		must(t, Check(s, l))
		for _, device := range []string{s.Host, Device(s)} {
			q := rootOf(t, device)
			// tc works in microseconds.
			if o := q.Options; q.Kind != "tbf" || o.Rate != test.rate || o.Burst > test.burst+test.rate/100_000 || o.Burst+test.rate/100_000+1 < test.burst {
				t.Errorf("%s: %s: %+v", test.name, device, q)
			}
		}
		port := serve(t, pod)
		for _, a := range podAddrs {
			for direction, d := range map[string]struct {
				device string
				do     func(*testing.T, netip.AddrPort, int64)
			}{"receives": {s.Host, upload}, "sends": {Device(s), download}} {
				if test.bytes == 0 {
					continue
				}
				before, start := rootOf(t, d.device), time.Now()
				d.do(t, netip.AddrPortFrom(a, port), test.bytes)
				took, after := time.Since(start), rootOf(t, d.device)
				// The bucket may be full at the start, and what the kernel has rounded up is less than a packet.
				least := time.Duration(float64(uint64(test.bytes)-test.burst-1500) / float64(test.rate) * float64(time.Second))
				if after.Bytes-before.Bytes < uint64(test.bytes) || took < least {
					t.Errorf("%s: the pod %s by %s: %v of at least %v, before %+v, after %+v", test.name, direction, a, took, least, before, after)
				}
			}
		}
		must(t, Delete(s))
		must(t, link.Delete(s))
	}
}

var both = Limits{IngressRate: 1_000_000, EgressRate: 2_000_000}

// named puts names into a text: HOST is the host end, IFB the ifb.
func named(s link.Spec, text string) string {
	return strings.NewReplacer("HOST", s.Host, "IFB", Device(s)).Replace(text)
}

// sh runs commands, one a line.
func sh(t *testing.T, s link.Spec, commands string) {
	t.Helper()
	for line := range strings.Lines(named(s, commands)) {
		args := strings.Fields(line)
		netns.Run(t, args[0], args[1:]...)
	}
}

func TestCheck(t *testing.T) {
	if !enter(t) {
		return
	}
	for i, test := range []struct {
		commands string
		limits   Limits
		want     string // empty for nothing to be found
	}{
		{"", both, ""},
		{"tc qdisc del dev HOST root", both, "limit of HOST is missing"},
		{"tc qdisc change dev HOST root handle 1: tbf rate 3mbit burst 15220 limit 18345", both, "limit of HOST: rate 375000"},
		{"tc qdisc change dev HOST root handle 1: tbf rate 1mbit burst 3000 limit 18345", both, "limit of HOST: rate 125000, buffer 375000,"},
		{"tc qdisc change dev IFB root handle 1: tbf rate 3mbit burst 15220 limit 18345", both, "limit of IFB: rate 375000"},
		{"tc qdisc del dev IFB root", both, "limit of IFB is missing"},
		{"ip link del IFB", both, "ifb IFB is missing"},
		{"ip link set IFB down", both, "ifb IFB is down"},
		{"ip link del IFB\nip link add IFB type ifb", both, "ifb IFB is missing"},
		{"tc qdisc del dev HOST clsact", both, "redirection from HOST to IFB is missing"},
		{"tc filter del dev HOST ingress", both, "redirection from HOST to IFB is missing"},
		{"tc filter del dev HOST ingress\ntc filter add dev HOST ingress protocol ip u32 match u32 0 0 action mirred egress redirect dev IFB", both,
			"redirection from HOST to IFB is missing"},
		{"tc filter del dev HOST ingress\ntc filter add dev HOST ingress protocol all u32 match u32 0 0 action mirred egress redirect dev lo", both,
			"redirection from HOST to IFB is missing"},
		{"ip link del HOST", both, "host end HOST"},
		{"", Limits{IngressRate: 2_000_000, EgressRate: 2_000_000}, "limit of HOST: rate 125000"},
		{"", Limits{IngressRate: 1_000_000, EgressRate: 1_000_000}, "limit of IFB: rate 250000"},
		// What is not asked for is not looked at.
		{"tc qdisc del dev HOST root", Limits{EgressRate: both.EgressRate}, ""},
		{"ip link del IFB", Limits{IngressRate: both.IngressRate}, ""},
		{"ip link del HOST", Limits{}, ""},
	} {
		s := attach(t, fmt.Sprintf("pod%d", i))
		must(t, Add(s, both))
		sh(t, s, test.commands)
		err := Check(s, test.limits)
		if want := named(s, test.want); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q, %+v: %v, not %q", test.commands, test.limits, err, want)
		}
		must(t, Delete(s))
		must(t, link.Delete(s))
	}
}

// state is all that Add could leave behind: names of interfaces, and what tc(8) knows of them. Whether a link has come up yet is not of it.
func state(t *testing.T) string {
	t.Helper()
	var names []string
	for line := range strings.Lines(netns.Run(t, "ip", "-brief", "link")) {
		names = append(names, strings.Fields(line)[0])
	}
	return strings.Join(names, " ") + "\n" + netns.Run(t, "tc", "qdisc")
}

// TestAllOrNothing has each step fail, and holds that the node is then as it was, with what was others' there.
func TestAllOrNothing(t *testing.T) {
	if !enter(t) {
		return
	}
	for i, test := range []struct {
		name, commands string
		limits         Limits
		want           error
	}{
		{"no link", "ip link del HOST", both, nil},
		{"somebody's ifb", "ip link add IFB type ifb", both, unix.EEXIST},
		{"somebody's limit", "tc qdisc add dev HOST root handle 1: tbf rate 9mbit burst 64k limit 64k", both, unix.EEXIST},
		{"somebody's classifier in this place", "tc qdisc add dev HOST clsact\ntc filter add dev HOST ingress prio 1 protocol ip u32 match u32 0 0 flowid 1:1",
			both, unix.EINVAL},
		{"an impossible egress", "", Limits{IngressRate: 1_000_000, EgressRate: 1}, ErrInvalid},
		{"an impossible ingress", "", Limits{IngressRate: 1, EgressRate: 1_000_000}, ErrInvalid},
	} {
		s := attach(t, fmt.Sprintf("pod%d", i))
		sh(t, s, test.commands)
		before := state(t)
		if err := Add(s, test.limits); err == nil || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s: %v, not %v", test.name, err, test.want)
		}
		if after := state(t); after != before {
			t.Errorf("%s: before:\n%s\nafter:\n%s", test.name, before, after)
		}
		must(t, Delete(s))
		if after := state(t); after != before {
			t.Errorf("%s: deleted:\n%s\nafter:\n%s", test.name, before, after)
		}
		must(t, link.Delete(s))
	}
}

// TestKilled ends Add after each of its steps, and holds that Delete and the link's own end take all away.
func TestKilled(t *testing.T) {
	if !enter(t) {
		return
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	must(t, err)
	defer h.Close()
	before := state(t)
	for made, all := 0, 1; made <= all; made++ {
		s := attach(t, fmt.Sprintf("pod%d", made))
		host, err := h.LinkByName(s.Host)
		must(t, err)
		steps, err := plan(h, s, host.Attrs().Index, both)
		must(t, err)
		all = len(steps)
		must(t, run(steps[:made]))
		if err := Check(s, both); (err == nil) != (made == all) {
			t.Errorf("after %d of %d steps: %v", made, all, err)
		}
		must(t, Delete(s))
		must(t, link.Delete(s))
		if after := state(t); after != before {
			t.Errorf("after %d of %d steps, before:\n%s\nafter:\n%s", made, all, before, after)
		}
	}
}

// TestShared holds that a clsact that is there already is used, and stays.
func TestShared(t *testing.T) {
	if !enter(t) {
		return
	}
	s := attach(t, "pod")
	netns.Run(t, "tc", "qdisc", "add", "dev", s.Host, "clsact")
	must(t, Add(s, both))
	must(t, Check(s, both))
}

func TestDelete(t *testing.T) {
	if !enter(t) {
		return
	}
	before := state(t)
	a, b := attach(t, "a"), attach(t, "b")
	must(t, Add(a, both))
	must(t, Add(b, Limits{IngressRate: 1_000_000}))
	if got := netns.Run(t, "ip", "-o", "link", "show", "type", "ifb"); strings.Count(got, "\n") != 1 || !strings.Contains(got, Device(a)) {
		t.Errorf("a limit of what is received needs no ifb: %s", got)
	}
	if got := netns.Run(t, "ip", "-o", "addr", "show", "dev", Device(a)); got != "" {
		t.Errorf("an ifb is nobody's address: %s", got)
	}
	// Its link is there: nobody else is to take it away, nor who has the name by chance.
	netns.Run(t, "ip", "link", "add", "ri-admin", "type", "ifb")
	other := a
	other.HostMAC = b.HostMAC
	must(t, Delete(other))
	if n, err := Collect(); n != 0 || err != nil {
		t.Errorf("collected %d: %v", n, err)
	}
	must(t, Check(a, both))

	must(t, Delete(a))
	must(t, Delete(a))
	must(t, Delete(b))
	must(t, link.Delete(a))
	must(t, Delete(a))
	must(t, link.Delete(b))

	// The kernel takes a link away with its pod's namespace.
	c := attach(t, "c")
	must(t, Add(c, both))
	must(t, link.Delete(c))
	if n, err := Collect(); n != 1 || err != nil {
		t.Errorf("collected %d: %v", n, err)
	}
	netns.Run(t, "ip", "link", "del", "ri-admin")
	if after := state(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestMissing holds that a kernel that has not all is told by its errors, with kinds that no kernel has.
func TestMissing(t *testing.T) {
	if !enter(t) {
		return
	}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "nosuch"
	index := lo.Attrs().Index
	must(t, netlink.QdiscAdd(clsact(index)))
	for what, err := range map[string]error{
		"ifb":     netlink.LinkAdd(&netlink.GenericLink{LinkAttrs: attrs, LinkType: "nosuch"}),
		"sch_tbf": netlink.QdiscAdd(&netlink.GenericQdisc{QdiscAttrs: at(netlink.Tbf{}, index).QdiscAttrs, QdiscType: "nosuch"}),
		"cls_u32": netlink.FilterAdd(&netlink.GenericFilter{FilterAttrs: redirect(index, index).FilterAttrs, FilterType: "nosuch"}),
	} {
		if got := missing(err, what); err == nil || !errors.Is(got, err) || !strings.HasPrefix(got.Error(), "the kernel has no "+what) {
			t.Errorf("%s: %v", what, got)
		}
	}
	if got := missing(netlink.QdiscAdd(clsact(index)), "sch_ingress"); got != unix.EEXIST {
		t.Error(got)
	}
}
