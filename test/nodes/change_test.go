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

// knows waits until a node's kernel knows of all words, or of none of them, and returns all that it knows.
func (n *Node) knows(yes bool, words ...string) (kernel string) {
	n.T.Helper()
	Soon(n.T, func() error {
		kernel = n.Kernel()
		for _, w := range words {
			if strings.Contains(kernel, w) != yes {
				return fmt.Errorf("%s: %q: %t\n%s", n.Name, w, !yes, kernel)
			}
		}
		return nil
	})
	return kernel
}

// TestComeAndGo holds that a node that goes leaves nothing behind on others, and that one that comes, or comes back with another address,
// other podCIDRs or another name, is reached at once.
func TestComeAndGo(t *testing.T) {
	for name, flags := range map[string][]string{"vxlan": nil, "direct": {"--overlay", "direct"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if netns.Enter(t) {
				testComeAndGo(t, flags)
			}
		})
	}
}

func testComeAndGo(t *testing.T, flags []string) {
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

	// It gets another address.
	old := n3.Addrs
	n3.Addrs = []string{"192.0.2.77", "2001:db8::77"}
	netns.Batch(t, n3.Name, fmt.Sprintf("addr del %s/24 dev eth0\naddr del %s/64 dev eth0\naddr add %s/24 dev eth0\naddr add %s/64 dev eth0 nodad\n"+
		"route replace default via 192.0.2.254\nroute replace default via 2001:db8::fe\n", old[0], old[1], n3.Addrs[0], n3.Addrs[1]))
	n3.Join()
	see(t, pairs(append(stay, p3))...)
	for _, n := range nodes[:2] {
		n.knows(false, words(old)...)
	}

	// It gets other podCIDRs: pods that are there go, and new ones are reached.
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
	if !strings.HasPrefix(p3.Addr("4"), "10.244.33.") {
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
	for name, flags := range map[string][]string{"vxlan": nil, "direct": {"--overlay", "direct"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if netns.Enter(t) {
				testDamage(t, name == "vxlan", flags)
			}
		})
	}
}

func testDamage(t *testing.T, tunnel bool, flags []string) {
	_, nodes := start(t, Spec{Flags: flags}, 2, false)
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
	see(t, probes...)
	mtu, via4, via6 := 1500, nodes[1].Addrs[0], nodes[1].Addrs[1]
	var far string // hardware address
	if tunnel {
		mtu, via4 = 1450, "10.244.2.0"
		neigh := strings.Fields(netns.Run(t, "ip", "-n", node.Name, "-6", "neigh", "show", "dev", Device, "nud", "permanent"))
		via6, far = neigh[0], neigh[2]
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
		{what: "the uplink, for a moment", ip: "link set eth0 down\nlink set eth0 up\naddr replace " + node.Addrs[0] + "/24 dev eth0\naddr replace " + node.Addrs[1] + "/64 dev eth0 nodad\n" +
			"route replace default via 192.0.2.254\nroute replace default via 2001:db8::fe"},
		{what: "the node's addresses, for a moment", ip: "addr flush dev eth0 scope global\naddr add " + node.Addrs[0] + "/24 dev eth0\naddr add " + node.Addrs[1] + "/64 dev eth0 nodad\n" +
			"route replace default via 192.0.2.254\nroute replace default via 2001:db8::fe"},
		{what: "the device", ip: "link del " + Device, tunnel: true},
		{what: "another's device in its place, unless the agent is faster", run: sh("ip -n NODE link del " + Device + "; ip -n NODE link add " + Device + " type vxlan id 99 dstport 4789 local " + node.Addrs[0] + "; true"), tunnel: true},
		{what: "the device set down", ip: "link set " + Device + " down", tunnel: true},
		{what: "the device's MTU", ip: "link set " + Device + " mtu 1300", tunnel: true},
		{what: "the device's hardware address", ip: "link set " + Device + " address 02:00:00:00:00:01", tunnel: true},
		{what: "the device's addresses", ip: "addr flush dev " + Device, tunnel: true},
		{what: "a neighbour", ip: "neigh del " + via4 + " dev " + Device, tunnel: true},
		{what: "an IPv6 neighbour", ip: "neigh del " + via6 + " dev " + Device, tunnel: true},
		{what: "a neighbour that is another", ip: "neigh replace " + via4 + " lladdr 02:00:00:00:00:02 nud permanent dev " + Device, tunnel: true},
		{what: "a forwarding entry", run: sh("bridge -n NODE fdb del " + far + " dev " + Device + " dst " + nodes[1].Addrs[0]), tunnel: true},
		{what: "a forwarding entry that leads elsewhere", run: sh("bridge -n NODE fdb replace " + far + " dev " + Device + " dst " + Outside4), tunnel: true},
		{what: "the masquerading", run: sh("ip netns exec NODE nft flush ruleset"), look: true},
		{what: "a masquerading rule", run: sh("ip netns exec NODE nft flush chain ip6 ropewalk-masquerade postrouting"), look: true},
		{what: "forwarding", run: sh("ip netns exec NODE sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0"), look: true},
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
				if out := netns.Run(t, "ip", "-n", node.Name, "link", "show", Device); !strings.Contains(out, "mtu 1450") {
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
	go_ := func(what string, once func() error) {
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
			p.only = network
			go_(p.String()+", "+network, func() error { return p.run(t, clusternet.Patience) })
		}
		go_(p.String()+", one connection", stream(t, pods, p))
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
	nodes[1].Flags = []string{"--masquerade=false"}
	for i, n := range nodes {
		n.Start()
		n.Ready()
		all()
		n.look()
		if now := n.Kernel(); now != before[i] {
			t.Errorf("the kernel has\n%snot\n%s", now, before[i])
		}
	}
	if n := nodes[1].Metric("ropewalk_routes_changes_total"); n != 0 {
		t.Errorf("%v changes after a restart", n)
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
