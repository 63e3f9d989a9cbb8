package nodes

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// knows waits until a node's kernel knows of all words, or of none of them.
func (n *Node) knows(yes bool, words ...string) {
	n.T.Helper()
	Soon(n.T, func() error {
		kernel := n.Kernel()
		for _, w := range words {
			if strings.Contains(kernel, w) != yes {
				return fmt.Errorf("%s: %q: %t\n%s", n.Name, w, !yes, kernel)
			}
		}
		return nil
	})
}

// TestComeAndGo holds that a node that goes leaves nothing behind on others, and that one that comes, or comes back with another address,
// other podCIDRs or another name, is reached at once.
func TestComeAndGo(t *testing.T) {
	for name, flags := range map[string][]string{"vxlan": nil, "near": {"--direct-where-near"}, "direct": {"--overlay", "direct"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if netns.Enter(t) {
				testComeAndGo(t, flags, name == "near")
			}
		})
	}
}

func testComeAndGo(t *testing.T, flags []string, far bool) {
	c, nodes := start(t, Spec{Flags: flags}, 3, false)
	n1, n2, n3 := nodes[0], nodes[1], nodes[2]
	stay := []*Pod{serving(n1, "a"), serving(n2, "a")}
	p3 := serving(n3, "a")
	before := []string{n1.Kernel(), n2.Kernel()}
	see(t, pairs(append(stay, p3))...)
	all := slices.Concat(n3.CIDRs, n3.Addrs)
	n1.knows(true, append(n3.CIDRs, n3.Addrs[0])...)

	n3.Leave()
	for _, n := range nodes[:2] {
		n.knows(false, all...)
	}
	Soon(t, func() error {
		if _, err := os.Stat(n3.Conflist()); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("the runtime of a node that is no more may attach pods: %v", err)
		}
		return nil
	})
	for _, a := range p3.Addrs {
		if err := (probe{from: stay[0].Name, to: net.JoinHostPort(a, "80"), want: p3.Name}).run(t, 100*time.Millisecond); err == nil {
			t.Errorf("%s is reached, and its node is not of the cluster", a)
		}
	}
	see(t, pairs(stay)...)

	n3.Join()
	n3.Ready()
	see(t, pairs(append(stay, p3))...)
	for i, n := range nodes[:2] {
		Soon(t, func() error {
			if now := n.Kernel(); sortedLines(now) != sortedLines(before[i]) {
				return fmt.Errorf("the kernel has\n%snot\n%s", now, before[i])
			}
			return nil
		})
	}

	// It gets another address, of another link if nodes may be behind a router.
	old, net4, net6 := n3.Addrs, "192.0.2.", "2001:db8::"
	if far {
		net4, net6 = "198.51.100.", "2001:db8:0:1::"
		netns.Batch(t, links, "link set n-"+n3.Name+" master far\n")
	}
	n3.Addrs = []string{net4 + "77", net6 + "77"}
	netns.Batch(t, n3.Name, fmt.Sprintf("addr del %s/24 dev eth0\naddr del %s/64 dev eth0\naddr add %s/24 dev eth0\naddr add %s/64 dev eth0 nodad\n"+
		"route replace default via %s254\nroute replace default via %sfe\n", old[0], old[1], n3.Addrs[0], n3.Addrs[1], net4, net6))
	n3.Join()
	see(t, pairs(append(stay, p3))...)
	for _, n := range nodes[:2] {
		n.knows(false, words(old)...)
	}

	// It gets other podCIDRs, while another's agent is dead: pods that are there go, and new ones are reached.
	n2.Stop(syscall.SIGKILL)
	gone := n3.CIDRs
	p3.Del()
	n3.CIDRs = []string{"10.244.33.0/24", "fd00:244:0:33::/64"}
	n3.Join()
	Soon(t, func() error {
		b, err := os.ReadFile(n3.Conflist())
		if err == nil && !strings.Contains(string(b), n3.CIDRs[0]) {
			err = fmt.Errorf("it has %s", b)
		}
		return err
	})
	p3 = serving(n3, "b")
	see(t, pairs([]*Pod{stay[0], p3})...)
	n2.Start()
	if !strings.HasPrefix(p3.Addr("0.0.0.0"), "10.244.33.") {
		t.Errorf("the new pod has %v", p3.Addrs)
	}
	see(t, pairs(append(stay, p3))...)
	for _, n := range nodes[:2] {
		n.knows(false, gone...)
	}

	// The machine gets another name, and has for some time two objects.
	n3.Stop(syscall.SIGTERM)
	was := n3.Name
	n3.Object = "m3"
	n3.Join()
	n3.Start()
	see(t, pairs(append(stay, p3))...)
	c.Put(was, "")
	n3.Ready()
	see(t, pairs(append(stay, p3))...)
}

// words are what to look for so that 192.0.2.3 is not found in 192.0.2.33.
func words(addrs []string) (out []string) {
	for _, a := range addrs {
		out = append(out, " "+a+" ")
	}
	return out
}

func sortedLines(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestDamage holds that what somebody deletes or changes behind the agent's back is mended, so that traffic goes on.
func TestDamage(t *testing.T) {
	for name, spec := range map[string]Spec{"vxlan": {}, "six": {Addrs: "64"}, "direct": {Flags: []string{"--overlay", "direct"}}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if netns.Enter(t) {
				testDamage(t, spec)
			}
		})
	}
}

func testDamage(t *testing.T, spec Spec) {
	_, nodes := start(t, spec, 2, false)
	tunnel := spec.Flags == nil
	node := nodes[0]
	pods := []*Pod{serving(node, "a"), serving(nodes[1], "a")}
	probes := pairs(pods)
	for _, a := range []string{Outside4, Outside6} {
		clusternet.Serve(t, Outside, net.JoinHostPort(a, "80"))
		probes = append(probes, probe{from: pods[0].Name, to: net.JoinHostPort(a, "80"), want: Outside, client: node.Addr(a)})
	}
	for _, a := range pods[1].Addrs {
		probes = append(probes, probe{from: node.Name, to: net.JoinHostPort(a, "80"), want: pods[1].Name})
	}
	for i, n := range nodes {
		for _, a := range n.Addrs {
			clusternet.Serve(t, n.Name, net.JoinHostPort(a, "80"))
			probes = append(probes, probe{from: pods[1-i].Name, to: net.JoinHostPort(a, "80"), want: n.Name})
		}
	}
	see(t, probes...)
	mtu := 1450
	if spec.Addrs == "64" {
		mtu = 1430
	}
	var via6, mac string // of the other end
	if tunnel {
		neigh := strings.Fields(netns.Run(t, "ip", "-n", node.Name, "-6", "neigh", "show", "dev", Device, "nud", "permanent"))
		via6, mac = neigh[0], neigh[2]
	}
	addrs := func(command string) string {
		return "addr " + command + " " + node.Addr("0.0.0.0") + "/24 dev eth0\naddr " + command + " " + node.Addr("::") + "/64 dev eth0 nodad\n" +
			"route replace default via 192.0.2.254\nroute replace default via 2001:db8::fe"
	}
	sh := func(script string) []string {
		return []string{"sh", "-c", strings.ReplaceAll(script, "NODE", node.Name)}
	}
	for _, d := range []struct {
		what   string
		ip     string   // commands of ip(8)
		run    []string // another command
		look   bool     // mended at the next look only
		tunnel bool     // there has to be one
	}{
		{what: "a route", ip: "route del 10.244.2.0/24"},
		{what: "an IPv6 route", ip: "route del fd00:244:0:2::/64"},
		{what: "a route that leads elsewhere", ip: "route replace 10.244.2.0/24 via 192.0.2.254 proto 82\nroute replace fd00:244:0:2::/64 via 2001:db8::fe proto 82"},
		{what: "all routes of ours", run: sh("ip -n NODE route flush proto 82; ip -n NODE -6 route flush proto 82")},
		{what: "the uplink, for a moment", ip: "link set eth0 down\nlink set eth0 up\n" + addrs("replace")},
		{what: "the node's addresses, for a moment", ip: "addr flush dev eth0 scope global\n" + addrs("add")},
		{what: "the device", ip: "link del " + Device, tunnel: true},
		{what: "another's device in its place, unless the agent is faster", run: sh("ip -n NODE link del " + Device + "; ip -n NODE link add " + Device + " type vxlan id 99 dstport 4789 local " + node.Addrs[0] + "; true"), tunnel: true},
		{what: "the device set down", ip: "link set " + Device + " down", tunnel: true},
		{what: "the device's MTU", ip: "link set " + Device + " mtu 1300", tunnel: true},
		{what: "the device's hardware address", ip: "link set " + Device + " address 02:00:00:00:00:01", tunnel: true},
		{what: "the device's addresses", ip: "addr flush dev " + Device, tunnel: true},
		{what: "a neighbour", ip: "neigh del 10.244.2.0 dev " + Device, tunnel: true},
		{what: "an IPv6 neighbour", ip: "neigh del " + via6 + " dev " + Device, tunnel: true},
		{what: "a neighbour that is another", ip: "neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 nud permanent dev " + Device, tunnel: true},
		{what: "a forwarding entry", run: sh("bridge -n NODE fdb del " + mac + " dev " + Device + " dst " + nodes[1].Addrs[0]), tunnel: true},
		{what: "a forwarding entry that leads elsewhere", run: sh("bridge -n NODE fdb replace " + mac + " dev " + Device + " dst " + ofFamily([]string{Outside4, Outside6}, node.Addrs[0])), tunnel: true},
		{what: "the masquerading", run: sh("ip netns exec NODE nft flush ruleset"), look: true},
		{what: "a masquerading rule", run: sh("ip netns exec NODE nft flush chain ip6 ropewalk-masquerade postrouting"), look: true},
		{what: "forwarding", run: sh("ip netns exec NODE sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0"), look: true},
		{what: "how strict the uplink is", run: sh("ip netns exec NODE sysctl -qw net.ipv4.conf.eth0.rp_filter=1"), look: true},
		{what: "how strict the tunnel is", run: sh("ip netns exec NODE sysctl -qw net.ipv4.conf." + Device + ".rp_filter=1"), look: true, tunnel: true},
		{what: "the runtime's configuration", run: sh("rm " + node.Conflist()), look: true},
	} {
		if d.tunnel && !tunnel {
			continue
		}
		t.Log(d.what)
		if d.ip != "" {
			netns.Batch(t, node.Name, d.ip+"\n")
		} else {
			netns.Run(t, d.run[0], d.run[1:]...)
		}
		if d.look {
			node.look()
		}
		see(t, probes...)
		Soon(t, func() error {
			_, err := os.Stat(node.Conflist())
			return err
		})
		node.Ready()
		if d.tunnel {
			Soon(t, func() error {
				if out := netns.Run(t, "ip", "-n", node.Name, "link", "show", Device); !strings.Contains(out, fmt.Sprint("mtu ", mtu)) {
					return errors.New(out)
				}
				return nil
			})
			for _, a := range pods[1].Addrs {
				whole(t, pods[0], a, mtu)
			}
		}
	}
}

// TestKilled holds that nothing is lost while an agent is dead, nor when it comes back: it finds all as it should be, and changes nothing.
func TestKilled(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	_, nodes := start(t, Spec{}, 2, false)
	pods := []*Pod{serving(nodes[0], "a"), serving(nodes[1], "a")}
	see(t, pairs(pods)...)
	var stop atomic.Bool
	var exchanges []*atomic.Int64
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	keep := func(what string, once func() error) {
		n := &atomic.Int64{}
		exchanges = append(exchanges, n)
		wg.Go(func() {
			for !stop.Load() {
				if err := once(); err != nil {
					t.Errorf("%s, after %d times: %v", what, n.Load(), err)
					return
				}
				n.Add(1)
			}
		})
	}
	for _, p := range pairs(pods) {
		for _, network := range []string{"tcp", "udp"} {
			p := p
			p.only = network
			keep(p.String()+", "+network, func() error { return p.run(t, clusternet.Patience) })
		}
		keep(p.String()+", one connection", stream(t, pods, p))
	}
	// all waits until everybody has been heard many times more.
	all := func() {
		t.Helper()
		for _, n := range exchanges {
			from := n.Load()
			Soon(t, func() error {
				if now := n.Load(); now < from+20 {
					return fmt.Errorf("%d exchanges", now-from)
				}
				return nil
			})
		}
	}
	all()
	for _, n := range nodes {
		n.Stop(syscall.SIGKILL)
	}
	all()
	before := []string{nodes[0].Kernel(), nodes[1].Kernel()}
	for i, n := range nodes {
		n.Start()
		n.Ready()
		all()
		if now := n.Kernel(); now != before[i] {
			t.Errorf("the kernel has\n%snot\n%s", now, before[i])
		}
		if changes := n.Metric("ropewalk_routes_changes_total"); changes != 0 {
			t.Errorf("%s: %v changes after a restart", n.Name, changes)
		}
	}
}

// stream returns what sends some bytes over a connection, which is the same each time, and has them back.
func stream(t *testing.T, pods []*Pod, p probe) func() error {
	t.Helper()
	to := pods[0]
	if p.want != to.Name {
		to = pods[1]
	}
	host, _, err := net.SplitHostPort(p.to)
	if err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	var c net.Conn
	netns.In(t, to.Name, func() { l, err = net.Listen("tcp", net.JoinHostPort(host, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(c, c)
		}
	}()
	netns.In(t, p.from, func() { c, err = net.DialTimeout("tcp", l.Addr().String(), patience) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	b := make([]byte, 10000)
	return func() error {
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err := c.Write(b)
		if err == nil {
			_, err = io.ReadFull(c, b)
		}
		return err
	}
}
