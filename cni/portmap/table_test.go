package portmap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

func owner(i int) Owner { return Owner{Container: fmt.Sprintf("%064d", i), Interface: "eth0"} }

func podAddrs(i int) []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix(clusternet.Pod4(i) + "/32"), netip.MustParsePrefix(clusternet.Pod6(i) + "/128")}
}

func both(host, container uint16) []Mapping {
	return []Mapping{{HostPort: host, ContainerPort: container, Protocol: TCP}, {HostPort: host, ContainerPort: container, Protocol: UDP}}
}

// start makes the network, with servers at port 8080 of n pods.
func start(t *testing.T, n int) {
	t.Helper()
	netns.NeedCommand(t, "nft")
	clusternet.Make(t, n)
	for i := range n {
		clusternet.Serve(t, clusternet.Pod(i), net.JoinHostPort(clusternet.Pod4(i), "8080"))
		clusternet.Serve(t, clusternet.Pod(i), net.JoinHostPort(clusternet.Pod6(i), "8080"))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sysctl(t *testing.T, name, value string) {
	t.Helper()
	must(t, os.WriteFile("/proc/sys/net/ipv4/conf/"+name, []byte(value), 0o644))
}

// expect holds who answers, and whom the server saw; "" for any.
func expect(t *testing.T, from, network, host string, port int, server, client string) {
	t.Helper()
	s, c, err := clusternet.Ask(t, from, network, net.JoinHostPort(host, fmt.Sprint(port)))
	if got := clusternet.Outcome(s, err); got != server || client != "" && c != client {
		t.Errorf("%s from %q to %s port %d: %s, as %q; want %s, %q", network, from, host, port, got, c, server, client)
	}
}

func TestPackets(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	start(t, 2)
	sysctl(t, "veth0/route_localnet", "1")
	all := func(server string) {
		t.Helper()
		client := func(seen string) string {
			if server == "refused" {
				return ""
			}
			return seen
		}
		for _, network := range []string{"tcp", "udp"} {
			expect(t, clusternet.Outside, network, clusternet.Node4, 80, server, client(clusternet.Outside4))
			expect(t, clusternet.Outside, network, clusternet.Node6, 80, server, client(clusternet.Outside6))
			expect(t, clusternet.Outside, network, clusternet.Node4, 81, "refused", "")
			expect(t, clusternet.Pod(1), network, clusternet.Node4, 80, server, client(clusternet.Pod4(1)))
			expect(t, clusternet.Pod(1), network, clusternet.Gateway6, 80, server, client(clusternet.Pod6(1)))
			expect(t, clusternet.Pod(0), network, clusternet.Node4, 80, server, client(clusternet.Gateway4)) // itself
			expect(t, clusternet.Pod(0), network, clusternet.Node6, 80, server, client(clusternet.Gateway6))
			expect(t, "", network, clusternet.Node4, 80, server, "")
			expect(t, "", network, clusternet.Node6, 80, server, "")
			expect(t, "", network, "127.0.0.1", 80, server, client(clusternet.Gateway4))
			expect(t, "", network, "::1", 80, "refused", "")
		}
	}
	must(t, Add(owner(0), both(80, 8080), podAddrs(0), true))
	all("pod0")
	must(t, Check(owner(0), both(80, 8080), podAddrs(0), true))
	must(t, Delete(owner(0)))
	all("refused")
	if err := Check(owner(0), both(80, 8080), podAddrs(0), true); !errors.Is(err, ErrMissing) {
		t.Error(err)
	}
	must(t, Delete(owner(0)))
	must(t, Add(owner(0), both(80, 8080), podAddrs(0), true))
	all("pod0")
	// Again, with less than before: ports of 127.0.0.1 and one protocol go.
	must(t, Add(owner(0), both(80, 8080)[:1], podAddrs(0), false))
	expect(t, "", "tcp", "127.0.0.1", 80, "refused", "")
	expect(t, clusternet.Outside, "udp", clusternet.Node4, 80, "refused", "")
	expect(t, clusternet.Outside, "tcp", clusternet.Node6, 80, "pod0", "")
	// What others removed comes back with the next pod.
	netns.Run(t, "nft", "flush", "chain", "ip", TableName, "prerouting")
	if err := Check(owner(0), both(80, 8080)[:1], podAddrs(0), false); !errors.Is(err, ErrMissing) {
		t.Error(err)
	}
	must(t, Add(owner(1), both(81, 8080), podAddrs(1), false))
	rules := netns.Run(t, "nft", "-a", "list", "chain", "ip", TableName, "postrouting") // with their numbers
	must(t, Delete(owner(1)))
	must(t, Add(owner(1), both(81, 8080), podAddrs(1), false))
	if now := netns.Run(t, "nft", "-a", "list", "chain", "ip", TableName, "postrouting"); now != rules {
		t.Errorf("rules are made anew without need:\n%s%s", rules, now)
	}
	must(t, Check(owner(0), both(80, 8080)[:1], podAddrs(0), false))
	expect(t, clusternet.Outside, "tcp", clusternet.Node4, 80, "pod0", "")
	expect(t, clusternet.Outside, "tcp", clusternet.Node4, 81, "pod1", "")
}

// TestHostIP holds that an address's port is of that address only.
func TestHostIP(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	start(t, 2)
	netns.Run(t, "ip", "addr", "add", "192.0.2.9/24", "dev", "eth0")
	at := func(ip string, port, to uint16) Mapping {
		return Mapping{HostIP: netip.MustParseAddr(ip), HostPort: port, ContainerPort: to, Protocol: TCP}
	}
	must(t, Add(owner(0), []Mapping{at("192.0.2.9", 80, 8080), at(clusternet.Node6, 80, 8080), at("0.0.0.0", 81, 8080)}, podAddrs(0), false))
	must(t, Add(owner(1), []Mapping{at(clusternet.Node4, 80, 8080), at("::", 82, 8080)}, podAddrs(1), false))
	for _, test := range []struct {
		host   string
		port   int
		server string
	}{
		{"192.0.2.9", 80, "pod0"}, {clusternet.Node4, 80, "pod1"}, {clusternet.Node6, 80, "pod0"},
		{"192.0.2.9", 81, "pod0"}, {clusternet.Node4, 81, "pod0"}, {clusternet.Node6, 81, "pod0"}, {clusternet.Node4, 82, "pod1"},
	} {
		for _, from := range []string{clusternet.Outside, "", clusternet.Pod(1)} {
			expect(t, from, "tcp", test.host, test.port, test.server, "")
		}
	}
	// Packets that only pass are none of ours: the pod's own port, and another host's.
	clusternet.Serve(t, clusternet.Outside, net.JoinHostPort(clusternet.Outside4, "81"))
	netns.Batch(t, clusternet.Outside, "route add "+clusternet.PodCIDR4+" via "+clusternet.Node4+"\n")
	expect(t, clusternet.Pod(0), "tcp", clusternet.Outside4, 81, clusternet.Outside, clusternet.Pod4(0))
}

// TestBridge holds that a pod reaches another on its own link through the node's port: the answer has to come back the same way.
func TestBridge(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	start(t, 0)
	clusternet.Serve(t, clusternet.Second, net.JoinHostPort(clusternet.Second4, "8080"))
	must(t, Add(owner(0), both(80, 8080), []netip.Prefix{netip.MustParsePrefix(clusternet.Second4 + "/24")}, false))
	for _, network := range []string{"tcp", "udp"} {
		expect(t, clusternet.Outside, network, clusternet.Node4, 80, clusternet.Second, clusternet.Node4)
	}
}

// TestGuard holds that a pod does not reach what listens at 127.0.0.1 of the node, with route_localnet.
func TestGuard(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	start(t, 1)
	clusternet.Serve(t, "", "127.0.0.1:9999")
	sysctl(t, "veth0/route_localnet", "1")
	netns.In(t, clusternet.Pod(0), func() {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0o644); err != nil {
			t.Error(err)
		}
	})
	netns.Batch(t, clusternet.Pod(0), "addr del 127.0.0.1/8 dev lo\nroute add 127.0.0.1 via "+clusternet.Gateway4+" dev eth0 src "+clusternet.Pod4(0)+"\n")
	expect(t, clusternet.Pod(0), "tcp", "127.0.0.1", 9999, "", "") // the attack works without us
	must(t, Add(owner(0), both(80, 8080), podAddrs(0), true))
	expect(t, clusternet.Pod(0), "tcp", "127.0.0.1", 9999, "timeout", "")
	expect(t, "", "tcp", "127.0.0.1", 9999, "", "")
	expect(t, "", "tcp", "127.0.0.1", 80, "pod0", clusternet.Gateway4)
}

// TestRedirected holds that who connects to 127.0.0.1 is seen as such where somebody else has led him to another port there.
func TestRedirected(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	start(t, 1)
	sysctl(t, "veth0/route_localnet", "1")
	clusternet.Serve(t, "", "127.0.0.1:9999")
	must(t, Add(owner(0), both(80, 8080), podAddrs(0), true))
	netns.Run(t, "nft", "table ip x { chain c { type nat hook output priority -100; ip daddr 127.0.0.1 tcp dport 81 redirect to :9999; }; }")
	expect(t, "", "tcp", "127.0.0.1", 81, "", "127.0.0.1")
	expect(t, "", "tcp", "127.0.0.1", 80, "pod0", clusternet.Gateway4)
}

// TestFlows holds that a UDP client which keeps its port gets to whom the node's port leads at the moment.
func TestFlows(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	start(t, 2)
	for _, host := range []string{clusternet.Node4, clusternet.Node6} {
		i, mappings := 0, both(80, 8080)
		if host == clusternet.Node6 {
			i = 1 // nothing of the one family is in the way of the other
			for p := range uint16(few) {
				mappings = append(mappings, mapping("", 100+p, 8080, UDP))
			}
		}
		stop := clusternet.Serve(t, "", net.JoinHostPort(host, "80"))
		var c net.Conn
		var err error
		netns.In(t, clusternet.Outside, func() { c, err = net.Dial("udp", net.JoinHostPort(host, "80")) })
		must(t, err)
		ask := func(want string) {
			t.Helper()
			must(t, c.SetDeadline(time.Now().Add(3*time.Second)))
			if _, err := c.Write([]byte("?")); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			n, err := c.Read(b)
			if server, _, _ := strings.Cut(string(b[:n]), " "); err != nil || server != want {
				t.Errorf("%s: %q %v, want %q", host, server, err, want)
			}
		}
		ask("")
		must(t, Add(owner(i), mappings, podAddrs(i), false))
		ask(clusternet.Pod(i))
		must(t, Add(owner(1-i), both(85, 8080), podAddrs(1-i), false)) // not its business
		ask(clusternet.Pod(i))
		must(t, Delete(owner(i)))
		ask("")
		stop()
		must(t, c.Close())
		must(t, Delete(owner(1-i)))
	}
}

// TestOthers holds that nothing else of the rules changes, that nft prints ours, and that List says whose they are.
func TestOthers(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	netns.Run(t, "nft", "table ip ropewalk { map m { type ipv4_addr : ipv4_addr; elements = { 10.0.0.1 : 10.0.0.2 }; }; chain c { type nat hook prerouting priority -100; dnat to ip daddr map @m; }; }")
	before := netns.Run(t, "nft", "list", "ruleset")
	if list, err := List(); err != nil || list != nil {
		t.Error(list, err)
	}
	must(t, Delete(owner(0)))
	if after := netns.Run(t, "nft", "list", "ruleset"); after != before {
		t.Errorf("Delete and List have made\n%s", after)
	}
	sctp := Mapping{HostPort: 80, ContainerPort: 8080, Protocol: SCTP}
	for i := range 180 {
		must(t, Add(owner(i), append(both(uint16(1000+i), 8080), sctp)[:2+btoi(i == 7)], podAddrs(i % 120)[i/120:], false))
	}
	list, err := List()
	must(t, err)
	if want := 120*4 + 1; len(list) != want { // the last sixty took over the IPv6 addresses of the first
		t.Errorf("%d entries instead of %d", len(list), want)
	}
	out := netns.Run(t, "nft", "list", "ruleset")
	for _, want := range []string{strings.TrimSpace(before), `tcp . 1007 comment "` + owner(7).String() + `" : 10.244.0.17 . 8080`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%.3000s", want, out)
		}
	}
	owners := map[Owner]bool{}
	for _, e := range list {
		if e.Owner == owner(127) && e.Pod != podAddrs(7)[1].Addr() || e.ContainerPort != 8080 || e.HostIP.IsValid() {
			t.Errorf("%+v", e)
		}
		owners[e.Owner] = true
	}
	for o := range owners {
		must(t, Delete(o))
	}
	if list, err := List(); err != nil || list != nil {
		t.Error(list, err)
	}
	for _, table := range []string{"ip", "ip6"} {
		if out := netns.Run(t, "nft", "list", "set", table, TableName, "hairpin"); strings.Contains(out, "elements") {
			t.Error(out)
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestListed holds that a list has all that is there for all of the time, whatever else comes and goes meanwhile.
func TestListed(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	must(t, Add(owner(0), both(1, 1), podAddrs(0), false)) // so that the table is there
	f := families[0]
	some := func(first, n int) (list []element) {
		for i := first; i < first+n; i++ {
			es, err := wanted(f, owner(i), both(uint16(i), 1), []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)}, false)
			must(t, err)
			list = append(list, slices.DeleteFunc(es, func(e element) bool { return e.set != portsMap })...)
		}
		return list
	}
	const stay = 300
	c, err := open()
	must(t, err)
	must(t, c.commit(&change{family: f, intact: true, add: some(1000, stay)}))
	defer c.close()
	come := change{family: f, intact: true, add: some(5000, 100)}
	leave := change{family: f, intact: true, remove: come.add}
	for range 50 {
		var group sync.WaitGroup
		group.Go(func() { // less often than a list is asked for anew
			for range 4 {
				if err := errors.Join(c.commit(&come), c.commit(&leave)); err != nil {
					t.Error(err)
				}
			}
		})
		list, err := List()
		group.Wait()
		must(t, err)
		list = slices.DeleteFunc(list, func(e Entry) bool { return e.HostPort < 1000 || e.HostPort >= 1000+stay })
		if len(list) != stay*2 {
			t.Fatalf("%d of %d are listed", len(list), stay*2)
		}
	}
}

// TestListedWhileFlushed holds that a table which somebody takes away meanwhile is none, and no error.
func TestListedWhileFlushed(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	c, err := open()
	must(t, err)
	defer c.close()
	f := families[0]
	for range 40 {
		var group sync.WaitGroup
		group.Go(func() {
			for range 3 {
				err := c.commit(&change{family: f, want: []element{{}}})
				c.DelTable(f.table())
				if err := errors.Join(err, c.flush()); err != nil {
					t.Error(err)
				}
			}
		})
		_, err := List()
		group.Wait()
		must(t, err)
	}
}

// TestRaces has many Adds and Deletes at once: one gets a port, and those that want different ones do not come into each other's way.
func TestRaces(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	for round := range 5 {
		var group sync.WaitGroup
		var won atomic.Int64
		const n = 16
		for i := range n {
			group.Go(func() {
				switch err := Add(owner(i), both(80, 8080), podAddrs(i), false); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, ErrTaken):
					t.Error(err)
				}
			})
			group.Go(func() {
				if err := Add(owner(100+i), both(uint16(1000+i), 8080), podAddrs(100+i), true); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		list, err := List()
		must(t, err)
		if won.Load() != 1 || len(list) != 4+n*6 {
			t.Fatalf("round %d: %d have the port, %d entries", round, won.Load(), len(list))
		}
		for i := range n {
			group.Go(func() { _ = errors.Join(Delete(owner(i)), Delete(owner(100+i))) })
			group.Go(func() {
				if err := errors.Join(Delete(owner(i)), Delete(owner(100+i))); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if list, err := List(); err != nil || len(list) != 0 {
			t.Fatal(list, err)
		}
	}
}

// TestMixedRaces has pods want a port of all addresses, and of one, at once: the kernel alone would give it to one of each.
func TestMixedRaces(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	must(t, Add(owner(99), both(99, 99), podAddrs(99), false)) // so that the table is there
	for range 20 {
		var group sync.WaitGroup
		var won atomic.Int64
		for i, m := range []Mapping{mapping("", 80, 80, TCP), mapping("192.0.2.1", 80, 80, TCP), mapping("", 80, 80, TCP), mapping("192.0.2.1", 80, 80, TCP)} {
			group.Go(func() {
				if err := Add(owner(i), []Mapping{m}, podAddrs(i)[:1], false); err == nil {
					won.Add(1)
				} else if !errors.Is(err, ErrTaken) {
					t.Error(err)
				}
			})
		}
		group.Wait()
		list, err := List()
		must(t, err)
		if n := len(list) - 4; won.Load() > 1 || n != int(won.Load()) {
			t.Fatalf("%d have the port, %+v", won.Load(), list)
		}
		for i := range 4 {
			must(t, Delete(owner(i)))
		}
	}
}
