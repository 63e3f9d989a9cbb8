package nft

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

// The network of the tests: this namespace is a node, which pods and a host "outside" are attached to.
const (
	podNet4, podNet6           = "10.244.0.0/24", "fd00:244::/64"
	gateway4, gateway6         = "10.244.0.1", "fd00:244::1"
	nodeAddr4, nodeAddr6       = "192.0.2.1", "2001:db8::1"
	outsideAddr4, outsideAddr6 = "192.0.2.2", "2001:db8::2"
)

func pod4(i int) string { return fmt.Sprintf("10.244.0.%d", 10+i) }
func pod6(i int) string { return fmt.Sprintf("fd00:244::%d", 10+i) }

// network makes pods named pod0, pod1, …, and outside.
func network(t *testing.T, pods int) {
	t.Helper()
	netns.NeedCommand(t, "nft")
	noDAD := func() { // else a link has no address to look for neighbours with, for a second or two
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644); err != nil {
			t.Error(err)
		}
	}
	noDAD()
	var own strings.Builder
	// attach makes a host at the other end of a veth, with addresses of its own and this namespace as its gateway.
	attach := func(name, veth, gw4, gw6, a4, a6 string) {
		netns.Add(t, name)
		netns.In(t, name, noDAD)
		fmt.Fprintf(&own, "link add %s type veth peer name eth0 netns %s\nlink set %s up\n"+
			"addr add %s/32 dev %s\naddr add %s/128 dev %s nodad\nroute add %s dev %s src %s\nroute add %s dev %s src %s\n",
			veth, name, veth, gw4, veth, gw6, veth, a4, veth, gw4, a6, veth, gw6)
	}
	host := func(name, gw4, gw6, a4, a6 string) {
		netns.Batch(t, name, fmt.Sprintf("link set eth0 up\naddr add %s/32 dev eth0\naddr add %s/128 dev eth0 nodad\n"+
			"route add %s dev eth0\nroute add %s dev eth0\nroute add default via %s\nroute add default via %s\n",
			a4, a6, gw4, gw6, gw4, gw6))
	}
	for i := range pods {
		attach(fmt.Sprintf("pod%d", i), fmt.Sprintf("veth%d", i), gateway4, gateway6, pod4(i), pod6(i))
	}
	attach("outside", "eth0", nodeAddr4, nodeAddr6, outsideAddr4, outsideAddr6)
	own.WriteString("route add 10.96.0.0/16 dev lo\nroute add fd00:96::/64 dev lo\n") // so that the host itself has a route
	netns.Batch(t, "", own.String())
	for i := range pods {
		host(fmt.Sprintf("pod%d", i), gateway4, gateway6, pod4(i), pod6(i))
	}
	host("outside", nodeAddr4, nodeAddr6, outsideAddr4, outsideAddr6)
	for f, v := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
		"ipv4/icmp_ratelimit": "0", "ipv6/icmp/ratelimit": "0", // each rejection is to be seen
	} {
		if err := os.WriteFile("/proc/sys/net/"+f, []byte(v), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range pods {
		reaches(t, fmt.Sprintf("pod%d", i), gateway4, gateway6)
	}
	reaches(t, "outside", nodeAddr4, nodeAddr6)
}

// reaches waits until a namespace reaches its gateways: the kernel drops packets until it has noticed, at its leisure, that a new link is
// up.
func reaches(t *testing.T, ns string, gateways ...string) {
	t.Helper()
	for _, a := range gateways {
		for range 100 {
			server, _, err := askFor(t, 100*time.Millisecond, ns, "tcp", net.JoinHostPort(a, "1"))
			if outcome(server, err) == "refused" {
				break
			}
		}
	}
}

// serve answers connections and datagrams at an address in a namespace with its name and the client's address.
func serve(t *testing.T, ns, addr string) {
	t.Helper()
	var l net.Listener
	var p net.PacketConn
	var err error
	netns.In(t, ns, func() {
		var e1, e2 error
		l, e1 = net.Listen("tcp", addr)
		p, e2 = net.ListenPacket("udp", addr)
		err = errors.Join(e1, e2)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(l.Close(), p.Close()) })
	answer := func(from net.Addr) []byte {
		ap := netip.MustParseAddrPort(from.String())
		return []byte(ns + " " + ap.Addr().String())
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
}

// ask connects from a namespace and returns the server's name and the client's address as that saw it. Without an answer within a
// second the error is a timeout.
func ask(t *testing.T, ns, network, addr string) (server, client string, err error) {
	t.Helper()
	return askFor(t, time.Second, ns, network, addr)
}

func askFor(t *testing.T, patience time.Duration, ns, network, addr string) (server, client string, err error) {
	t.Helper()
	run := func() {
		var c net.Conn
		c, err = net.DialTimeout(network, addr, patience)
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(patience))
		if network == "udp" {
			if _, err = c.Write([]byte("?")); err != nil {
				return
			}
			b := make([]byte, 100)
			var n int
			n, err = c.Read(b)
			server, client, _ = strings.Cut(string(b[:n]), " ")
			return
		}
		var b []byte
		b, err = io.ReadAll(c)
		server, client, _ = strings.Cut(string(b), " ")
	}
	if ns == "" {
		run()
	} else {
		netns.In(t, ns, run)
	}
	return server, client, err
}

// outcome says in a word how ask went.
func outcome(server string, err error) string {
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
