// Package clusternet makes the network of a small cluster out of namespaces, for tests that send packets: the test's own namespace
// is a node, with pods; there is a second node with a pod, and a host that is neither. Programs that answer, and clients that ask,
// are goroutines with sockets in these namespaces.
package clusternet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

// Addresses. Nodes and the outside are neighbours on one link.
const (
	PodCIDR4, PodCIDR6         = "10.244.0.0/24", "fd00:244::/64"     // of the node
	FarCIDR4, FarCIDR6         = "10.244.1.0/24", "fd00:244:0:1::/64" // of the second node
	ClusterCIDR4, ClusterCIDR6 = "10.244.0.0/16", "fd00:244::/56"
	Gateway4, Gateway6         = "10.244.0.1", "fd00:244::1" // the node's, in its pods' eyes
	Node4, Node6               = "192.0.2.1", "2001:db8::1"
	Outside4, Outside6         = "192.0.2.2", "2001:db8::2"
	Second4, Second6           = "192.0.2.3", "2001:db8::3"
)

// Names of namespaces. Pods of the node are pod0, pod1, ….
const (
	Outside = "outside"
	Second  = "second" // the second node
	Far     = "far"    // its pod
)

// Pod4 and Pod6 are the addresses of the node's pods; those of Far are Far4 and Far6.
func Pod4(i int) string { return fmt.Sprintf("10.244.0.%d", 10+i) }
func Pod6(i int) string { return fmt.Sprintf("fd00:244::%d", 10+i) }

const Far4, Far6 = "10.244.1.10", "fd00:244:0:1::10"

// Pod is the name of a pod's namespace.
func Pod(i int) string { return fmt.Sprintf("pod%d", i) }

// Make makes the network. Routes to services' addresses, for the node itself and for the outside, are the caller's matter:
// Route makes them. It is for tests that netns.Enter has put into namespaces of their own.
func Make(t testing.TB, pods int) {
	t.Helper()
	noDAD := func() { // else a link has no address to look for neighbours with, for a second or two
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644); err != nil {
			t.Error(err)
		}
	}
	add := func(name string) {
		netns.Add(t, name)
		netns.In(t, name, noDAD)
	}
	noDAD()
	add("link")
	add(Outside)
	add(Second)
	add(Far)
	netns.Batch(t, "link", "link add br0 type bridge\nlink set br0 up\n")
	plug := func(name, a4, a6 string) {
		netns.Batch(t, "link", fmt.Sprintf("link add p-%[1]s type veth peer name eth0 netns %[1]s\nlink set p-%[1]s master br0\nlink set p-%[1]s up\n", name))
		netns.Batch(t, name, fmt.Sprintf("link set eth0 up\naddr add %s/24 dev eth0\naddr add %s/64 dev eth0 nodad\n", a4, a6))
	}
	plug(Outside, Outside4, Outside6)
	plug(Second, Second4, Second6)
	var own strings.Builder
	own.WriteString("link add eth0 type veth peer name p-node netns link\nlink set eth0 up\n" +
		"addr add " + Node4 + "/24 dev eth0\naddr add " + Node6 + "/64 dev eth0 nodad\n" +
		"route add " + FarCIDR4 + " via " + Second4 + "\nroute add " + FarCIDR6 + " via " + Second6 + "\n")
	for i := range pods {
		add(Pod(i))
		fmt.Fprintf(&own, "link add veth%[1]d type veth peer name eth0 netns pod%[1]d\nlink set veth%[1]d up\n"+
			"addr add %[2]s/32 dev veth%[1]d\naddr add %[3]s/128 dev veth%[1]d nodad\nroute add %[4]s dev veth%[1]d src %[2]s\nroute add %[5]s dev veth%[1]d src %[3]s\n",
			i, Gateway4, Gateway6, Pod4(i), Pod6(i))
	}
	netns.Batch(t, "", own.String())
	netns.Batch(t, "link", "link set p-node master br0\nlink set p-node up\n")
	for i := range pods {
		host(t, Pod(i), Gateway4, Gateway6, Pod4(i), Pod6(i))
	}
	netns.Batch(t, Second, fmt.Sprintf("link add veth0 type veth peer name eth0 netns far\nlink set veth0 up\naddr add 10.244.1.1/32 dev veth0\naddr add fd00:244:0:1::1/128 dev veth0 nodad\n"+
		"route add %s dev veth0\nroute add %s dev veth0\nroute add %s via %s\nroute add %s via %s\n", Far4, Far6, PodCIDR4, Node4, PodCIDR6, Node6))
	host(t, Far, "10.244.1.1", "fd00:244:0:1::1", Far4, Far6)
	forward(t)
	netns.In(t, Second, func() { forward(t) })
	for i := range pods {
		reaches(t, Pod(i), Gateway4, Gateway6)
	}
	reaches(t, Outside, Node4, Node6)
}

// reaches waits until a namespace reaches addresses: the kernel drops packets until it has noticed, at its leisure, that a new link is up.
func reaches(t testing.TB, ns string, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		for range 100 {
			server, _, err := AskFor(t, 100*time.Millisecond, ns, "tcp", net.JoinHostPort(a, "1"))
			if Outcome(server, err) == "refused" {
				break
			}
		}
	}
}

// host gives the other end of a veth addresses of its own and a gateway.
func host(t testing.TB, name, gw4, gw6, a4, a6 string) {
	netns.Batch(t, name, fmt.Sprintf("link set eth0 up\naddr add %s/32 dev eth0\naddr add %s/128 dev eth0 nodad\n"+
		"route add %[3]s dev eth0\nroute add %[4]s dev eth0\nroute add default via %[3]s\nroute add default via %[4]s\n", a4, a6, gw4, gw6))
}

func forward(t testing.TB) {
	for f, v := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
		"ipv4/icmp_ratelimit": "0", "ipv6/icmp/ratelimit": "0", // each rejection is to be seen
	} {
		if err := os.WriteFile("/proc/sys/net/"+f, []byte(v), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// Route leads addresses to the node, from the outside and the second node; the node itself gets a route to them, too, as it would have by its default
// route.
func Route(t testing.TB, prefixes ...string) {
	t.Helper()
	var own, outside strings.Builder
	for _, p := range prefixes {
		via := Node4
		if strings.Contains(p, ":") {
			via = Node6
		}
		fmt.Fprintf(&outside, "route add %s via %s\n", p, via)
		fmt.Fprintf(&own, "route add %s dev eth0\n", p)
	}
	netns.Batch(t, "", own.String())
	netns.Batch(t, Outside, outside.String())
	netns.Batch(t, Second, outside.String())
}

// Serve answers connections and datagrams at an address and port in a namespace ("" is the node) with its name and the client's
// address, until stop is called or the test ends.
func Serve(t testing.TB, ns, addr string) (stop func()) {
	t.Helper()
	var l net.Listener
	var p net.PacketConn
	var err error
	in(t, ns, func() {
		var e1, e2 error
		l, e1 = net.Listen("tcp", addr)
		p, e2 = net.ListenPacket("udp", addr)
		err = errors.Join(e1, e2)
	})
	if err != nil {
		t.Fatal(err)
	}
	stop = func() { _ = errors.Join(l.Close(), p.Close()) }
	t.Cleanup(stop)
	answer := func(from net.Addr) []byte {
		return []byte(ns + " " + netip.MustParseAddrPort(from.String()).Addr().Unmap().String())
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(answer(c.RemoteAddr()))
			_ = c.Close()
		}
	}()
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := p.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = p.WriteTo(answer(from), from)
			}
		}
	}()
	return stop
}

func in(t testing.TB, ns string, f func()) {
	if ns == "" {
		f()
		return
	}
	netns.In(t, ns, f)
}

// Patience is how long Ask waits for an answer: long, since machines that run tests are busy.
const Patience = 5 * time.Second

// Slow is from when on an answer over TCP has needed a packet twice, if the machine is not at fault: the kernel sends a connection's first
// packet again after a second.
const Slow = 900 * time.Millisecond

// Ask connects from a namespace, or sends a datagram, and returns the server's name and the client's address as that saw it.
// Without an answer the error is a timeout.
func Ask(t testing.TB, ns, network, addr string) (server, client string, err error) {
	t.Helper()
	return AskFor(t, Patience, ns, network, addr)
}

// AskFor is Ask with another patience.
func AskFor(t testing.TB, patience time.Duration, ns, network, addr string) (server, client string, err error) {
	t.Helper()
	in(t, ns, func() { server, client, err = ask(patience, network, addr) })
	return server, client, err
}

func ask(patience time.Duration, network, addr string) (server, client string, err error) {
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	var b []byte
	if network == "udp" {
		if _, err = c.Write([]byte("?")); err != nil {
			return "", "", err
		}
		b = make([]byte, 100)
		var n int
		n, err = c.Read(b)
		b = b[:n]
	} else {
		b, err = io.ReadAll(c)
	}
	server, client, _ = strings.Cut(string(b), " ")
	return server, client, err
}

// Outcome says in a word how Ask went: the server's name, refused, or timeout.
func Outcome(server string, err error) string {
	var timeout net.Error
	switch {
	case err == nil:
		return server
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPERM): // the latter on a write of the rejecting host itself
		return "refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return err.Error()
}
