package conntrack

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

const (
	node4, node6       = "192.0.2.1", "2001:db8::1"
	service4, service6 = "10.96.0.10", "fd00:96::10"
)

// track makes this namespace one where flows are tracked, and where packets to the services' port 53 go to port 5353 of the
// node, by DNAT.
func track(t *testing.T) {
	t.Helper()
	netns.NeedCommand(t, "nft")
	// The kernel makes an IPv6 address's route some time after the address.
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(netns.Run(t, "ip", "-6", "route", "show", "table", "local"), node6); {
		if time.Sleep(time.Millisecond); time.Now().After(deadline) {
			t.Fatal("no route to ", node6)
		}
	}
	netns.Batch(t, "", "route add 10.96.0.0/16 dev lo src "+node4+"\nroute add fd00:96::/64 dev lo src "+node6+"\n")
	nft(t, `
		table inet services {
			chain out {
				type nat hook output priority -100
				ip daddr `+service4+` meta l4proto { tcp, udp } th dport 53 dnat ip to `+node4+`:5353
				ip6 daddr `+service6+` meta l4proto { tcp, udp } th dport 53 dnat ip6 to [`+node6+`]:5353
			}
			chain zones {
				type filter hook output priority -300
				meta mark 7 ct zone set 7
				meta mark 8 ct original zone set 8
			}
		}`)
}

func nft(t *testing.T, rules string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
}

// listen binds UDP sockets that swallow what comes, so that nobody is told that it did not.
func listen(t *testing.T, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		c, err := net.ListenPacket("udp", a)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

// send sends a datagram from a port of the node, with a mark, and returns its source.
func send(t *testing.T, port int, dest string, mark int) netip.AddrPort {
	t.Helper()
	to := netip.MustParseAddrPort(dest)
	from := netip.AddrPortFrom(netip.MustParseAddr(node4), uint16(port))
	if to.Addr().Is6() {
		from = netip.AddrPortFrom(netip.MustParseAddr(node6), uint16(port))
	}
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(from), Control: func(_, _ string, raw syscall.RawConn) (err error) {
		return errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) }), err)
	}}
	c, err := d.Dial("udp", dest)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	return from
}

func remove(t *testing.T, stale func(Flow) bool) int {
	t.Helper()
	n, err := Delete(stale)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// flows returns what is in the table, sorted.
func flows(t *testing.T) []Flow {
	t.Helper()
	var out []Flow
	if n := remove(t, func(f Flow) bool { out = append(out, f); return false }); n != 0 {
		t.Fatalf("deleted %d", n)
	}
	slices.SortFunc(out, func(a, b Flow) int { return a.Client.Compare(b.Client) })
	return out
}

func TestDelete(t *testing.T) {
	if !netns.Enter(t, node4+"/32", node6+"/128") {
		return
	}
	track(t)
	listen(t, node4+":5353", "["+node6+"]:5353", node4+":9", "["+node6+"]:9")
	addr := netip.MustParseAddrPort
	send(t, 4001, service4+":53", 0)
	send(t, 4002, node4+":9", 0)
	send(t, 4003, "["+service6+"]:53", 0)
	send(t, 4004, "["+node6+"]:9", 0)
	want := []Flow{
		{addr(node4 + ":4001"), addr(service4 + ":53"), addr(node4 + ":5353"), true},
		{addr(node4 + ":4002"), addr(node4 + ":9"), addr(node4 + ":9"), false},
		{addr("[" + node6 + "]:4003"), addr("[" + service6 + "]:53"), addr("[" + node6 + "]:5353"), true},
		{addr("[" + node6 + "]:4004"), addr("[" + node6 + "]:9"), addr("[" + node6 + "]:9"), false},
	}
	same := func(want ...Flow) {
		t.Helper()
		if d := cmp.Diff(want, flows(t), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
			t.Error("flows, -want +got:\n" + d)
		}
	}
	same(want...)

	connections := connect(t, service4+":53", "["+service6+"]:53")
	if n := remove(t, func(f Flow) bool { return f.DNAT }); n != 2 {
		t.Errorf("deleted %d flows, want the 2 that are translated", n)
	}
	same(want[1], want[3])
	if n := remove(t, func(Flow) bool { return true }); n != 2 {
		t.Errorf("deleted %d flows, want 2", n)
	}
	same()
	for _, c := range connections { // whose translation is nowhere but in their entries
		for _, end := range c {
			if _, err := end.Write([]byte("y")); err != nil {
				t.Error(err)
			}
		}
		for _, end := range c {
			if _, err := end.Read(make([]byte, 1)); err != nil {
				t.Error(err)
			}
		}
	}
}

// connect makes TCP connections by way of services, and returns both ends of each.
func connect(t *testing.T, services ...string) (out [][2]net.Conn) {
	t.Helper()
	for _, s := range services {
		backend := node4 + ":5353"
		if s[0] == '[' {
			backend = "[" + node6 + "]:5353"
		}
		l, err := net.Listen("tcp", backend)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client, err := net.Dial("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close(); server.Close() })
		out = append(out, [2]net.Conn{client, server})
	}
	return out
}

func TestZones(t *testing.T) {
	if !netns.Enter(t, node4+"/32", node6+"/128") {
		return
	}
	track(t)
	listen(t, node4+":9", "["+node6+"]:9")
	for _, dest := range []string{node4 + ":9", "[" + node6 + "]:9"} {
		for _, mark := range []int{0, 7, 8} { // the same flow in no zone, in one, and in one by its original direction
			send(t, 4000, dest, mark)
		}
	}
	if got := len(flows(t)); got != 6 {
		t.Fatalf("%d flows, want 6", got)
	}
	n := 0
	if got := remove(t, func(Flow) bool { n++; return n == 2 || n == 5 }); got != 2 {
		t.Errorf("deleted %d of 2", got)
	}
	if got := len(flows(t)); got != 4 {
		t.Errorf("%d flows are left, want 4", got)
	}
	if got := remove(t, func(Flow) bool { return true }); got != 4 {
		t.Errorf("deleted %d of 4", got)
	}
}

// TestMadeAnew holds that an entry is not deleted for what its predecessor was.
func TestMadeAnew(t *testing.T) {
	if !netns.Enter(t, node4+"/32") {
		return
	}
	netns.NeedCommand(t, "nft")
	nft(t, "table inet x { chain y { type filter hook output priority 0; ct state new accept; }; }")
	listen(t, node4+":9")
	from := send(t, 4000, node4+":9", 0)
	seen := 0
	n := remove(t, func(f Flow) bool {
		if f.Client != from {
			return false
		}
		if seen++; seen > 1 {
			return false // the new one
		}
		if n := remove(t, func(f Flow) bool { return f.Client == from }); n != 1 {
			t.Errorf("deleted %d, want the old one", n)
		}
		for i := range 64 { // which the kernel may give the old one's memory, and with that its number
			send(t, 5000+i, node4+":9", 0)
		}
		send(t, 4000, node4+":9", 0)
		return true
	})
	if n != 0 || !slices.ContainsFunc(flows(t), func(f Flow) bool { return f.Client == from }) {
		t.Errorf("deleted %d; the new entry must stay", n)
	}
}

// TestLargeTable holds that a walk takes no memory for the entries, and deletes many.
func TestLargeTable(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	nft(t, "table inet x { chain y { type filter hook output priority 0; ct state new accept; }; }")
	const entries = 50000
	listen(t, "0.0.0.0:9")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for i := range entries {
		to := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 1, byte(i >> 8), byte(i)}}
		if err := unix.Sendto(fd, []byte("x"), 0, to); err != nil {
			t.Fatal(err)
		}
	}
	count := func(also bool) (seen, deleted int, bytes, objects uint64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		deleted = remove(t, func(Flow) bool { seen++; return also })
		runtime.ReadMemStats(&after)
		return seen, deleted, after.TotalAlloc - before.TotalAlloc, after.Mallocs - before.Mallocs
	}
	seen, deleted, bytes, objects := count(false)
	t.Logf("looking at %d: %d bytes in %d objects", seen, bytes, objects)
	if seen < entries || deleted != 0 {
		t.Fatalf("saw %d flows of %d, deleted %d", seen, entries, deleted)
	}
	if bytes > 256<<10 || objects > 200 {
		t.Errorf("it took %d bytes in %d objects", bytes, objects)
	}
	seen, deleted, bytes, objects = count(true)
	t.Logf("deleting %d: %d bytes in %d objects", deleted, bytes, objects)
	if seen < entries || deleted < entries {
		t.Errorf("saw %d flows of %d, deleted %d", seen, entries, deleted)
	}
	if bytes > 512<<10 || objects > 500 {
		t.Errorf("deleting took %d bytes in %d objects", bytes, objects)
	}
	if left := flows(t); len(left) != 0 {
		t.Errorf("%d flows are left", len(left))
	}
}

// TestWithoutPermission holds that the error says what it takes.
func TestWithoutPermission(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread has lost its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			failed <- err
		}
		_, err := Delete(func(Flow) bool { return true })
		failed <- err
	}()
	if err := <-failed; !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("error %v", err)
	}
}

// FuzzParse holds that no bytes make the parser panic, and that what it takes for an entry can be named to the kernel.
func FuzzParse(f *testing.F) {
	f.Add(appendDelete(nil, 1, unix.AF_INET, &entry{original: []byte{8, 0, 1, 0, 1, 2, 3, 4}, id: []byte{1, 2, 3, 4}, zone: []byte{0, 7}}))
	f.Add(appendDump(nil, 1, unix.AF_INET6, true))
	f.Add(sample())
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			m, rest, err := nextMessage(b)
			if err != nil {
				return
			}
			_ = m.errno()
			var e entry
			if e.parse(m.body) {
				out, _, err := nextMessage(appendDelete(nil, 1, unix.AF_INET, &e))
				if err != nil || !bytes.Contains(out.body, e.original) || !e.flow.Dest.IsValid() || !e.flow.Backend.IsValid() {
					t.Errorf("entry %+v as a deletion: %x, %v", e, out.body, err)
				}
			}
			if len(rest) >= len(b) {
				t.Fatal("no way ahead")
			}
			b = rest
		}
	})
}

func TestParse(t *testing.T) {
	m, _, err := nextMessage(sample())
	var e entry
	if err != nil || !e.parse(m.body) {
		t.Fatal("the sample is no entry", err)
	}
	addr := netip.MustParseAddrPort
	want := Flow{addr("10.0.0.1:4000"), addr("10.96.0.10:53"), addr("10.0.0.2:5353"), true}
	if e.flow != want {
		t.Errorf("flow %+v, want %+v", e.flow, want)
	}
	for i := range m.body { // none of what it is made of can go
		cut := e
		if cut.parse(m.body[:i]) && cut.flow != want {
			t.Errorf("of %d bytes: %+v", i, cut.flow)
		}
	}
}

// sample is an entry as the kernel writes it.
func sample() []byte {
	tuple := func(b []byte, typ uint16, src, dst string) []byte {
		s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
		port := func(p uint16) []byte { return []byte{byte(p >> 8), byte(p)} }
		at := len(b)
		b = appendAttr(b, typ|unix.NLA_F_NESTED, nil)
		ip := len(b)
		b = appendAttr(b, ctaTupleIP|unix.NLA_F_NESTED, nil)
		b = appendAttr(b, ctaIPv4Src, s.Addr().AsSlice())
		b = appendAttr(b, ctaIPv4Dst, d.Addr().AsSlice())
		closeAttr(b, ip)
		proto := len(b)
		b = appendAttr(b, ctaTupleProto|unix.NLA_F_NESTED, nil)
		b = appendAttr(b, ctaProtoNum, []byte{unix.IPPROTO_UDP})
		b = appendAttr(b, ctaProtoSrcPort, port(s.Port()))
		b = appendAttr(b, ctaProtoDstPort, port(d.Port()))
		closeAttr(b, proto)
		closeAttr(b, at)
		return b
	}
	b := appendHeader(nil, ctNew, unix.NLM_F_MULTI, 1, unix.AF_INET)
	b = tuple(b, ctaTupleOrig, "10.0.0.1:4000", "10.96.0.10:53")
	b = tuple(b, ctaTupleReply, "10.0.0.2:5353", "10.0.0.1:4000")
	b = appendAttr(b, ctaStatus, []byte{0, 0, 0, ipsDstNAT | 8})
	b = appendAttr(b, ctaID, []byte{1, 2, 3, 4})
	b[0] = byte(len(b))
	return b
}
