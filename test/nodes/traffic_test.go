package nodes

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/program"
)

func TestMain(m *testing.M) { os.Exit(program.Run(m.Run, program.Ropewalk, program.Plugin)) }

// start makes a cluster of so many nodes, the last of which may be far, and waits until all are ready.
func start(t *testing.T, s Spec, nodes int, far bool) (*Cluster, []*Node) {
	t.Helper()
	netns.NeedCommand(t, "nft")
	s.Ropewalk, s.Plugin, s.Dir = os.Getenv(program.Ropewalk), os.Getenv(program.Plugin), t.TempDir()
	c := New(t, s)
	var all []*Node
	for i := range nodes {
		all = append(all, c.Add(i+1, far && i == nodes-1))
	}
	for _, n := range all {
		n.Start()
	}
	for _, n := range all {
		n.Ready()
	}
	return c, all
}

// serving returns a new pod that answers at port 80 with its name and the client's address.
func serving(n *Node, name string, ports ...map[string]any) *Pod {
	n.T.Helper()
	p := n.Pod(name, ports...)
	for _, a := range p.Addrs {
		clusternet.Serve(n.T, p.Name, net.JoinHostPort(a, "80"))
	}
	return p
}

// probe is what a client in a namespace is to see at an address.
type probe struct {
	from, to string
	want     string // the outcome (clusternet.Outcome)
	client   string // the address that the server sees; empty for any
	only     string // network; empty for both
}

func (p probe) String() string { return p.from + " to " + p.to }

// run returns what is wrong.
func (p probe) run(t testing.TB, patience time.Duration) error {
	for _, network := range []string{"tcp", "udp"} {
		if p.only != "" && p.only != network {
			continue
		}
		server, client, err := clusternet.AskFor(t, patience, p.from, network, p.to)
		if got := clusternet.Outcome(server, err); got != p.want || p.client != "" && client != p.client {
			return fmt.Errorf("%v, %s: %s, who sees %q; want %s, %q", p, network, got, client, p.want, p.client)
		}
	}
	return nil
}

// side is how many probes run side by side.
const side = 16

// see waits until all probes come out as they are to.
func see(t testing.TB, probes ...probe) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, len(probes))
	slots := make(chan struct{}, side)
	for i, p := range probes {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			wait := 50 * time.Millisecond // not long, since lost packets are not sent again soon, and longer each time, for busy machines
			for begun := time.Now(); time.Since(begun) < patience; wait = min(2*wait, clusternet.Patience) {
				if errs[i] = p.run(t, wait); errs[i] == nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// pairs are probes of all pods to all others, who see the pod's own address.
func pairs(pods []*Pod) []probe {
	var out []probe
	for _, from := range pods {
		for _, to := range pods {
			if from == to {
				continue
			}
			for _, a := range to.Addrs {
				out = append(out, probe{from: from.Name, to: net.JoinHostPort(a, "80"), want: to.Name, client: from.Addr(a)})
			}
		}
	}
	return out
}

// TestTraffic holds that pods of all nodes reach each other whatever the nodes' addresses and links are, that packets as large as a pod
// may send pass whole, and that no larger ones are lost unseen.
func TestTraffic(t *testing.T) {
	near := []string{"--overlay", "vxlan", "--direct-where-near"}
	vxlan, direct := near[:2], []string{"--overlay", "direct"}
	for _, c := range []struct {
		name  string
		spec  Spec
		nodes int
		far   bool
		mtu   int // of pods
		// tunnel says between which nodes there is one: "all", "far" or none.
		tunnel string
	}{
		{name: "vxlan", spec: Spec{Flags: vxlan}, nodes: 3, far: true, mtu: 1450, tunnel: "all"},
		{name: "near", spec: Spec{Flags: near, Pods: "64"}, nodes: 3, far: true, mtu: 1450, tunnel: "far"},
		{name: "bridge", spec: Spec{Flags: slices.Concat(near, []string{"--cni-mode", "bridge"})}, nodes: 3, far: true, mtu: 1450, tunnel: "far"},
		{name: "direct", spec: Spec{Flags: direct}, nodes: 3, mtu: 1500},
		{name: "direct-jumbo", spec: Spec{Flags: direct, MTU: 9000, Addrs: "64", Pods: "64"}, nodes: 2, mtu: 9000},
		{name: "only4", spec: Spec{Flags: vxlan, Addrs: "4", MTU: 9000}, nodes: 2, mtu: 8950, tunnel: "all"},
		{name: "only6", spec: Spec{Flags: vxlan, Addrs: "6", Pods: "64"}, nodes: 3, far: true, mtu: 1430, tunnel: "all"},
		{name: "near6", spec: Spec{Flags: near, Addrs: "64", MTU: 1400}, nodes: 3, far: true, mtu: 1330, tunnel: "far"},
		{name: "pods4", spec: Spec{Flags: vxlan, Addrs: "64", Pods: "4", MTU: 1400}, nodes: 2, mtu: 1330, tunnel: "all"},
		{name: "pods6", spec: Spec{Flags: near, Addrs: "4", Pods: "6", MTU: 1400}, nodes: 2, mtu: 1350, tunnel: "all"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if !netns.Enter(t) {
				return
			}
			_, nodes := start(t, c.spec, c.nodes, c.far)
			var pods []*Pod
			for _, n := range nodes {
				pods = append(pods, serving(n, "a"))
			}
			pods = append(pods, serving(nodes[0], "b"))
			probes := pairs(pods)
			for _, from := range nodes {
				for _, to := range pods {
					for _, a := range to.Addrs {
						probes = append(probes, probe{from: from.Name, to: net.JoinHostPort(a, "80"), want: to.Name})
					}
				}
			}
			see(t, probes...)
			last := len(nodes) - 1
			for i, to := range nodes {
				for _, a := range pods[i].Addrs {
					if i == 0 {
						a = pods[len(pods)-1].Addr(a) // of the same node
					}
					whole(t, pods[0], a, c.mtu)
					before := tunnelled(nodes[0])
					bulk(t, pods[0].Name, to, a)
					through := tunnelled(nodes[0]) > before
					if want := i > 0 && (c.tunnel == "all" || c.tunnel == "far" && i == last); through != want {
						t.Errorf("%s to %s: through the tunnel: %t", pods[0].Name, a, through)
					}
				}
			}
		})
	}
}

// TestSmaller holds that pods go on to speak when the links between nodes get a smaller MTU than those pods were made for: senders are told,
// and pods that come have the new one.
func TestSmaller(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	_, nodes := start(t, Spec{}, 2, false)
	pods := []*Pod{serving(nodes[0], "a"), serving(nodes[1], "a")}
	see(t, pairs(pods)...)
	for _, n := range nodes {
		netns.Batch(t, n.Name, "link set eth0 mtu 1400\n")
		netns.Batch(t, links, "link set n-"+n.Name+" mtu 1400\n")
	}
	for _, n := range nodes {
		Soon(t, func() error {
			b, err := os.ReadFile(n.Conflist())
			if err == nil && !bytes.Contains(b, []byte(`"mtu": 1350`)) {
				err = fmt.Errorf("%s", b)
			}
			return err
		})
	}
	for _, a := range pods[1].Addrs {
		bulk(t, pods[0].Name, nodes[1], a)
		Soon(t, func() (err error) {
			netns.In(t, pods[0].Name, func() { err = ping(a, 1351, 100*time.Millisecond) })
			if errors.Is(err, unix.EMSGSIZE) {
				return nil
			}
			return fmt.Errorf("a packet that is too large now: %v", err)
		})
		whole(t, pods[0], a, 1350)
	}
	whole(t, serving(nodes[0], "b"), pods[1].Addrs[0], 1350)
}

// tunnelled returns how many packets a node has sent through its tunnel.
func tunnelled(n *Node) (packets uint64) {
	netns.In(n.T, n.Name, func() {
		if link, err := netlink.LinkByName(Device); err == nil {
			packets = link.Attrs().Statistics.TxPackets
		}
	})
	return packets
}

// whole fails unless packets of the MTU pass from a pod to an address and back, unfragmented, and larger ones are refused to the sender.
func whole(t *testing.T, from *Pod, to string, mtu int) {
	t.Helper()
	for name, send := range map[string]func(to string, size int, wait time.Duration) error{"ICMP": ping, "UDP": datagram} {
		var full, over error
		netns.In(t, from.Name, func() {
			for begun := time.Now(); time.Since(begun) < patience; { // a busy machine loses packets
				if full = send(to, mtu, time.Second); full == nil || errors.Is(full, unix.EMSGSIZE) {
					break
				}
			}
			over = send(to, mtu+1, patience)
		})
		if full != nil || !errors.Is(over, unix.EMSGSIZE) {
			t.Errorf("%s, %s to %s: with %d bytes: %v; with one more: %v", name, from.Name, to, mtu, full, over)
		}
	}
}

// unfragmented is for sockets whose packets may not be fragmented on their way, nor before it.
func unfragmented(network, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		if strings.Contains(network, "6") {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		}
	}), err)
}

// datagram sends a packet of size bytes, its IP header included, to port 80 and waits for an answer.
func datagram(to string, size int, wait time.Duration) error {
	d := net.Dialer{Control: unfragmented}
	c, err := d.Dial("udp", net.JoinHostPort(to, "80"))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, size-header(to)-8)); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(wait))
	_, err = c.Read(make([]byte, 100))
	return err
}

func header(of string) int {
	if Is4(of) {
		return 20
	}
	return 40
}

// ping sends an echo request (RFC 792, RFC 4443) of size bytes, its IP header included, and waits for the reply, which is as large.
func ping(to string, size int, wait time.Duration) error {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if !Is4(to) {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	d := net.Dialer{Control: unfragmented}
	c, err := d.Dial(network, to)
	if err != nil {
		return err
	}
	defer c.Close()
	p := make([]byte, size-header(to))
	p[0] = request
	copy(p[4:], "rope")
	if Is4(to) { // of the other family the kernel does it
		binary.BigEndian.PutUint16(p[2:], checksum(p))
	}
	if _, err := c.Write(p); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(wait))
	for {
		b := make([]byte, 1<<16)
		n, _, err := c.(net.PacketConn).ReadFrom(b) // Read returns the IP header, too
		if err != nil {
			return err
		}
		if b = b[:n]; b[0] == reply && bytes.Equal(b[4:], p[4:]) {
			return nil
		}
	}
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// bulk fails unless some megabytes get from a namespace to a pod's address as they are.
func bulk(t *testing.T, from string, to *Node, addr string) {
	t.Helper()
	name := to.Name + "-a"
	if strings.HasPrefix(from, to.Name+"-") {
		name = to.Name + "-b"
	}
	var l net.Listener
	var err error
	netns.In(t, name, func() { l, err = net.Listen("tcp", net.JoinHostPort(addr, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan []byte, 1)
	go func() {
		var sum []byte
		defer func() { got <- sum }()
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		h := sha256.New()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := io.Copy(h, c); err == nil {
			sum = h.Sum(nil)
		}
	}()
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	netns.In(t, from, func() {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", l.Addr().String(), patience); err == nil {
			_ = c.SetDeadline(time.Now().Add(patience))
			_, err = c.Write(data)
			err = errors.Join(err, c.Close())
		}
	})
	if err != nil {
		t.Fatalf("%s to %s: %v", from, addr, err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(<-got, want[:]) {
		t.Errorf("%s to %s: what arrives is not what was sent", from, addr)
	}
}
