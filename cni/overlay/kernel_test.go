package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

const (
	linkMTU = 1500
	nodes   = 3
)

func nodeName(i int) string { return fmt.Sprint("n", i) }
func podName(i int) string  { return fmt.Sprint("p", i) }
func pod4(i int) string     { return fmt.Sprintf("10.244.%d.10", i) }
func pod6(i int) string     { return netip.MustParseAddr(fmt.Sprintf("fd00:244:0:%d::10", i)).String() }

func testNode(i int) Node {
	return node(nodeName(i), fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:244:0:%d::/64", i), fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("2001:db8::%d", i+1))
}

// world makes nodes that are neighbours on one link, each with a pod that answers at port 80.
func world(t *testing.T, mtu int) {
	t.Helper()
	noDAD := func() {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644); err != nil {
			t.Error(err)
		}
	}
	netns.Batch(t, "", "link add br0 type bridge\nlink set br0 up\n")
	for i := range nodes {
		n, p, addr := nodeName(i), podName(i), testNode(i).Addrs
		for _, ns := range []string{n, p} {
			netns.Add(t, ns)
			netns.In(t, ns, noDAD)
		}
		netns.Batch(t, "", fmt.Sprintf("link add u%[1]d type veth peer name eth0 netns %[2]s\nlink set u%[1]d master br0\nlink set u%[1]d up\n", i, n))
		netns.Batch(t, n, fmt.Sprintf("link set eth0 up\naddr add %s/24 dev eth0\naddr add %s/64 dev eth0 nodad\n"+
			"link add veth0 type veth peer name eth0 netns %s\nlink set veth0 up\naddr add 169.254.1.1/32 dev veth0\naddr add fe80::1/64 dev veth0 nodad\nroute add %s dev veth0\nroute add %s dev veth0\n",
			addr[0], addr[1], p, pod4(i), pod6(i)))
		netns.Batch(t, p, fmt.Sprintf("link set eth0 mtu %d up\naddr add %s/32 dev eth0\naddr add %s/128 dev eth0 nodad\nroute add 169.254.1.1 dev eth0\nroute add default via 169.254.1.1\nroute add default via fe80::1 dev eth0\n", mtu, pod4(i), pod6(i)))
		netns.In(t, n, func() {
			for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
				if err := sysctl(f, "1"); err != nil {
					t.Error(err)
				}
			}
		})
		for _, a := range []string{pod4(i), pod6(i)} {
			clusternet.Serve(t, p, net.JoinHostPort(a, "80"))
		}
	}
}

// talk has each pod ask the others, which see its own address, and nodes ask pods of others.
func talk(t *testing.T, among ...int) {
	t.Helper()
	for _, i := range among {
		for _, j := range among {
			if i == j {
				continue
			}
			for a, own := range map[string]string{pod4(j): pod4(i), pod6(j): pod6(i)} {
				for _, protocol := range []string{"tcp", "udp"} {
					server, client, err := clusternet.Ask(t, podName(i), protocol, net.JoinHostPort(a, "80"))
					if err != nil || server != podName(j) || client != own {
						t.Fatalf("%s %s from %s: %q sees %q, %v", protocol, a, podName(i), server, client, err)
					}
				}
				if server, _, err := clusternet.Ask(t, nodeName(i), "tcp", net.JoinHostPort(a, "80")); err != nil || server != podName(j) {
					t.Fatalf("%s from %s itself: %q, %v", a, nodeName(i), server, err)
				}
			}
		}
	}
}

// rig syncs nodes.
type rig struct {
	*testing.T
	mode   Mode
	near   bool // no tunnel where there is a link
	kernel Kernel
	nodes  [nodes]Keeper
	step   bool // changes are sent without a look
}

func (r *rig) sync(i int, others ...int) (int, error) {
	r.Helper()
	var list []Node
	for _, j := range others {
		list = append(list, testNode(j))
	}
	return r.syncNodes(testNode(i), i, list)
}

func (r *rig) syncNodes(self Node, i int, others []Node) (int, error) {
	r.Helper()
	var n int
	var err error
	netns.In(r, nodeName(i), func() {
		var direct func(netip.Addr) bool
		if r.near {
			direct = OnLink
		}
		var p Plan
		if p, err = Make(r.mode, self, others, direct); err == nil {
			n, err = r.nodes[i].Put(r.kernel, p, !r.step)
		}
	})
	return n, err
}

func (r *rig) syncAll(among ...int) (changes int) {
	r.Helper()
	for _, i := range among {
		n, err := r.sync(i, among...)
		if err != nil {
			r.Fatal(err)
		}
		changes += n
	}
	return changes
}

func TestSync(t *testing.T) {
	for name, mode := range map[string]struct {
		mode Mode
		near bool
	}{"direct": {Direct, false}, "vxlan": {VXLAN, false}, "vxlan where needed": {VXLAN, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !netns.Enter(t) {
				return
			}
			mtu := linkMTU
			if mode.mode == VXLAN {
				mtu -= Overhead(testNode(0).Addrs[0])
			}
			world(t, mtu)
			r := &rig{T: t, mode: mode.mode, near: mode.near, kernel: Kernel{Device: "rw-vxlan", VNI: 4242, Port: 8472, MTU: mtu}}
			r.syncAll(0, 1, 2)
			talk(t, 0, 1, 2)
			if n := r.syncAll(0, 1, 2); n != 0 {
				t.Errorf("%d changes when all is right", n)
			}
			large(t, mtu)

			// What somebody has deleted comes back; what is somebody else's stays.
			own := "route add 10.9.0.0/24 via 192.0.2.2\nroute add 2001:db8:9::/64 via 2001:db8::2\nroute add 10.244.77.0/24 via 192.0.2.2 proto 17\n"
			netns.Batch(t, nodeName(0), own)
			var fdbs []string
			spoils := []string{"route del 10.244.1.0/24", "route del fd00:244:0:2::/64", "route add 10.245.0.0/16 via 192.0.2.3 proto 82", "route replace 10.244.2.0/24 via 192.0.2.2 proto 82"}
			if mode.mode == VXLAN && !mode.near {
				spoils = append(spoils, "link del rw-vxlan", "link set rw-vxlan down", "link set rw-vxlan mtu 1000 address 02:00:00:00:00:77", "addr flush dev rw-vxlan", "neigh flush dev rw-vxlan nud permanent",
					"link del rw-vxlan\nlink add rw-vxlan type vxlan id 7 dstport 4789 local 192.0.2.1", "neigh replace 10.244.1.0 lladdr 02:00:00:00:00:78 dev rw-vxlan")
				for _, fdb := range []string{"replace %s dev rw-vxlan dst 192.0.2.66", "del %s dev rw-vxlan", "add 02:00:00:00:00:79 dev rw-vxlan dst 192.0.2.66"} {
					fdbs = append(fdbs, strings.Replace(fdb, "%s", macOf(nodeName(1)).String(), 1))
				}
			}
			for i, spoil := range append(spoils, fdbs...) {
				if i < len(spoils) {
					netns.Batch(t, nodeName(0), spoil+"\n")
				} else {
					netns.Run(t, "bridge", append([]string{"-n", nodeName(0), "fdb"}, strings.Fields(spoil)...)...)
				}
				if n := r.syncAll(0, 1, 2); n == 0 {
					t.Errorf("after %q nothing was changed", spoil)
				}
				talk(t, 0, 1, 2)
				if n := r.syncAll(0, 1, 2); n != 0 {
					t.Errorf("after %q %d changes when all is right again", spoil, n)
				}
			}
			// A node goes.
			r.syncAll(0, 1)
			talk(t, 0, 1)
			for _, family := range []string{"-4", "-6"} {
				if out := netns.Run(t, "ip", family, "-n", nodeName(0), "route"); strings.Contains(out, "10.244.2.") || strings.Contains(out, "fd00:244:0:2:") {
					t.Errorf("a node that is gone: %s", out)
				}
			}
			netns.In(t, nodeName(0), func() {
				if err := r.kernel.Remove(); err != nil {
					t.Error(err)
				}
			})
			out := netns.Run(t, "ip", "-n", nodeName(0), "route") + netns.Run(t, "ip", "-6", "-n", nodeName(0), "route") + netns.Run(t, "ip", "-n", nodeName(0), "link")
			for _, kept := range []string{"10.9.0.0/24", "2001:db8:9::/64", "10.244.77.0/24"} {
				if !strings.Contains(out, kept) {
					t.Errorf("%s is gone", kept)
				}
			}
			if strings.Contains(out, "proto 82") || strings.Contains(out, "rw-vxlan") {
				t.Errorf("left: %s", out)
			}
		})
	}
}

// large sends packets of the full size, which nobody may take apart, from a pod to another.
func large(t *testing.T, mtu int) {
	t.Helper()
	for _, a := range []string{pod4(1), pod6(1)} {
		headers, level, option := 28, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
		if strings.Contains(a, ":") {
			headers, level, option = 48, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
		}
		var server net.PacketConn
		var client net.Conn
		var err, err2 error
		netns.In(t, podName(1), func() { server, err = net.ListenPacket("udp", net.JoinHostPort(a, "81")) })
		netns.In(t, podName(0), func() { client, err2 = net.Dial("udp", net.JoinHostPort(a, "81")) })
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		defer client.Close()
		raw, err := client.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, unix.IP_PMTUDISC_DO) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
		if _, err := client.Write(make([]byte, mtu-headers+1)); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("%s: a packet that is too large: %v", a, err)
		}
		_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := client.Write(make([]byte, mtu-headers)); err != nil {
			t.Errorf("%s: %v", a, err)
		}
		if n, _, err := server.ReadFrom(make([]byte, 2000)); err != nil || n != mtu-headers {
			t.Errorf("%s: %d bytes, %v", a, n, err)
		}
	}
}

// TestForeign holds that what is in the way and not ours stays, and is told, and that all else is done.
func TestForeign(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	world(t, linkMTU)
	r := &rig{T: t, mode: VXLAN, near: false, kernel: Kernel{Device: "rw-vxlan", VNI: 4242, Port: 8472, MTU: 1400}}
	netns.Batch(t, nodeName(0), "link add rw-vxlan type bridge\nroute add 10.244.1.0/24 via 192.0.2.3\n")
	if _, err := r.sync(0, 1, 2); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "rw-vxlan: somebody else's: it is of the type bridge") {
		t.Errorf("%v", err)
	}
	r.mode = Direct
	if n, err := r.sync(0, 1, 2); !errors.Is(err, ErrForeign) || n != 4 {
		t.Errorf("%d changes, %v", n, err)
	}
	out := netns.Run(t, "ip", "-n", nodeName(0), "route") + netns.Run(t, "ip", "-n", nodeName(0), "link")
	for _, want := range []string{"10.244.1.0/24 via 192.0.2.3 dev eth0 \n", "10.244.2.0/24 via 192.0.2.3 dev eth0 proto 82", "rw-vxlan"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// TestChange holds that nodes that change are followed from any plan to any other: addresses, ranges, modes; and that nothing is lost of
// what a pod sends while a route changes its kind.
func TestChange(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	world(t, linkMTU-100)
	r := &rig{T: t, mode: VXLAN, near: false, kernel: Kernel{Device: "rw-vxlan", VNI: 4242, Port: 8472, MTU: linkMTU - 100}}
	r.syncAll(0, 1, 2)
	state := func() string {
		var out []string
		for _, args := range [][]string{{"ip", "-4", "-n", nodeName(0), "route", "show", "proto", "82"}, {"ip", "-6", "-n", nodeName(0), "route", "show", "proto", "82"},
			{"ip", "-4", "-n", nodeName(0), "neigh", "show", "nud", "permanent"}, {"ip", "-6", "-n", nodeName(0), "neigh", "show", "nud", "permanent"}, {"bridge", "-n", nodeName(0), "fdb", "show"}} {
			for line := range strings.Lines(netns.Run(t, args[0], args[1:]...)) {
				if !strings.Contains(line, "33:33:") && !strings.Contains(line, "01:00:5e:") {
					out = append(out, line)
				}
			}
		}
		slices.Sort(out)
		return strings.Join(out, "")
	}
	changed := func(f func(nodes []Node)) []Node {
		list := []Node{testNode(1), testNode(2)}
		f(list)
		return list
	}
	six := func(n *Node) { slices.Reverse(n.Addrs) }
	plans := []struct {
		mode   Mode
		near   bool
		self   Node
		others []Node
	}{
		{VXLAN, false, testNode(0), changed(func([]Node) {})},
		{VXLAN, false, testNode(0), changed(func(n []Node) { n[0].PodCIDRs, n[1].PodCIDRs = n[1].PodCIDRs, n[0].PodCIDRs })},
		{VXLAN, false, testNode(0), changed(func(n []Node) { n[0].Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.77")} })},
		{VXLAN, false, testNode(0), changed(func(n []Node) { n[0].PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")} })},
		{VXLAN, true, testNode(0), changed(func([]Node) {})},
		{Direct, false, testNode(0), changed(func(n []Node) { n[0].PodCIDRs, n[1].PodCIDRs = n[1].PodCIDRs, n[0].PodCIDRs })},
		{VXLAN, false, func() Node { n := testNode(0); six(&n); return n }(), changed(func(n []Node) { six(&n[0]) })},
		{Direct, false, testNode(0), changed(func([]Node) {})},
		{Cloud, false, testNode(0), changed(func([]Node) {})},
	}
	put := func(i int) {
		t.Helper()
		r.mode, r.near = plans[i].mode, plans[i].near
		if _, err := r.syncNodes(plans[i].self, 0, plans[i].others); err != nil {
			t.Fatalf("plan %d: %v", i, err)
		}
	}
	var want []string
	for i := range plans {
		netns.In(t, nodeName(0), func() {
			if err := r.kernel.Remove(); err != nil {
				t.Fatal(err)
			}
		})
		put(i)
		want = append(want, state())
	}
	put(0)
	for _, r.step = range []bool{false, true} {
		for i, from := range plans {
			for j, to := range plans {
				same := (from.mode == VXLAN) == (to.mode == VXLAN) && from.self.Equal(to.self) // the tunnel is
				if r.step && !same {
					continue
				}
				put(i)
				looks := r.nodes[0].Looks()
				put(j)
				if d := cmp.Diff(want[j], state()); d != "" {
					t.Errorf("plan %d after %d, step %t: %s", j, i, r.step, d)
				}
				if looked := r.nodes[0].Looks() != looks; looked == r.step {
					t.Errorf("plan %d after %d, step %t: looked %t", j, i, r.step, looked)
				}
			}
		}
	}

	// While the kind changes again and again, datagrams arrive.
	var server net.PacketConn
	var client net.Conn
	var err, err2 error
	netns.In(t, podName(1), func() { server, err = net.ListenPacket("udp", net.JoinHostPort(pod4(1), "81")) })
	netns.In(t, podName(0), func() { client, err2 = net.Dial("udp", net.JoinHostPort(pod4(1), "81")) })
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	defer client.Close()
	put(0)
	talk(t, 0, 1)
	var order bytes.Buffer
	monitor := exec.Command("ip", "-n", nodeName(0), "monitor", "route", "neigh")
	monitor.Stdout = &order
	if err := monitor.Start(); err != nil {
		t.Fatal(err)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	sent, lost := 0, 0
	go func() {
		defer close(ended)
		for ; ; sent++ {
			select {
			case <-stop:
				return
			default:
			}
			_ = server.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			_, err := client.Write([]byte("?"))
			if _, _, err2 := server.ReadFrom(make([]byte, 1)); err != nil || err2 != nil {
				lost++
			}
		}
	}()
	for range 100 {
		put(4)
		put(0)
	}
	close(stop)
	<-ended
	// One that has been led to the tunnel already when the forwarding entry goes is lost: that is a matter of microseconds.
	if lost > 3 || sent == 0 {
		t.Errorf("%d of %d datagrams are lost", lost, sent)
	}
	_ = monitor.Process.Kill()
	_ = monitor.Wait()
	// What leads into the tunnel goes after the route that led there.
	tunnel, seen := false, 0
	for line := range strings.Lines(order.String()) {
		switch gone := strings.HasPrefix(line, "Deleted"); {
		case !gone && strings.HasPrefix(line, "10.244.1.0/24 "):
			tunnel = strings.Contains(line, "rw-vxlan")
		case gone && strings.Contains(line, "rw-vxlan") && strings.Contains(line, "lladdr"):
			if seen++; tunnel {
				t.Fatalf("a neighbour went while a route led to it:\n%s", order.String())
			}
		}
	}
	if seen == 0 {
		t.Errorf("no neighbour went:\n%s", order.String())
	}
}

// TestUnderlay6 holds that nodes which have addresses of IPv6 only lead both families in the tunnel, at the full size.
func TestUnderlay6(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	six := func(i int) Node {
		n := testNode(i)
		n.Addrs = n.Addrs[1:]
		return n
	}
	mtu := linkMTU - Overhead(six(0).Addrs[0])
	world(t, mtu)
	r := &rig{T: t, mode: VXLAN, near: false, kernel: Kernel{Device: "rw-vxlan", VNI: 4242, Port: 8472, MTU: mtu}}
	for i := range 2 {
		netns.Batch(t, nodeName(i), "addr del "+testNode(i).Addrs[0].String()+"/24 dev eth0\n")
	}
	for range 2 {
		for i := range 2 {
			if _, err := r.syncNodes(six(i), i, []Node{six(1 - i)}); err != nil {
				t.Fatal(err)
			}
		}
		talk(t, 0, 1)
	}
	large(t, mtu)
}

// TestForward holds that forwarding is on for the families of pods, and that a link goes on to listen to routers from which it has its
// addresses, and no other.
func TestForward(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	netns.Batch(t, "", "link add ra0 type veth peer name far\nlink add pod type veth peer name pod2\nlink add off type veth peer name off2\n"+
		"link set ra0 up\nlink set far up\nlink set off up\nlink set off2 up\n"+
		"addr add 2001:db8::1/64 dev ra0 nodad valid_lft 1000 preferred_lft 1000\nroute add default via fe80::7 dev off proto ra\n")
	read := func(name string) string {
		b, err := os.ReadFile("/proc/sys/net/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	for _, link := range []string{"ra0", "far", "pod", "off"} {
		if err := sysctl("ipv6/conf/"+link+"/accept_ra", "1"); err != nil {
			t.Fatal(err)
		}
	}
	is := func(want string) {
		t.Helper()
		got := "v4 " + read("ipv4/ip_forward") + " v6 " + read("ipv6/conf/all/forwarding")
		for _, link := range []string{"ra0", "off", "far", "pod"} {
			got += " " + link + " " + read("ipv6/conf/"+link+"/accept_ra")
		}
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	forward := func(changes int, pods ...netip.Prefix) {
		t.Helper()
		if n, err := Forward(pods); err != nil || n != changes {
			t.Errorf("%d changes, want %d, %v", n, changes, err)
		}
	}
	if err := errors.Join(sysctl("ipv4/ip_forward", "0"), sysctl("ipv6/conf/all/forwarding", "0")); err != nil {
		t.Fatal(err)
	}
	four, six := netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:244::/64")
	forward(0)
	is("v4 0 v6 0 ra0 1 off 1 far 1 pod 1")
	forward(1, four)
	is("v4 1 v6 0 ra0 1 off 1 far 1 pod 1")
	forward(3, four, six)
	is("v4 1 v6 1 ra0 2 off 2 far 1 pod 1")
	if out := netns.Run(t, "ip", "-6", "route"); !strings.Contains(out, "default via fe80::7 dev off proto ra") {
		t.Errorf("the default route is forgotten: %s", out)
	}
	forward(0, four, six)
	if err := sysctl("ipv4/ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
	forward(1, four, six)
}
