package overlay

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

// listener hears what the kernel tells in a node's namespace.
type listener struct {
	*testing.T
	x      *Keeper
	node   string
	links  chan netlink.LinkUpdate
	routes chan netlink.RouteUpdate
	addrs  chan netlink.AddrUpdate
	neighs chan netlink.NeighUpdate
	mark   int
}

func listen(t *testing.T, x *Keeper, node string) *listener {
	t.Helper()
	l := &listener{T: t, x: x, node: node, links: make(chan netlink.LinkUpdate, 1000), routes: make(chan netlink.RouteUpdate, 1000),
		addrs: make(chan netlink.AddrUpdate, 1000), neighs: make(chan netlink.NeighUpdate, 1000)}
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	netns.In(t, node, func() {
		for _, err := range []error{netlink.LinkSubscribe(l.links, done), netlink.RouteSubscribe(l.routes, done), netlink.AddrSubscribe(l.addrs, done), netlink.NeighSubscribe(l.neighs, done)} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	return l
}

// news returns what of all that the kernel has told since the last call is a reason to look.
func (l *listener) news() (out []string) {
	l.Helper()
	l.mark++
	mark := fmt.Sprintf("198.18.0.%d", l.mark)
	netns.Batch(l, l.node, strings.ReplaceAll("link set lo alias M\nroute add M/32 dev lo\naddr add M/32 dev lo\nneigh add M lladdr 02:00:00:00:00:01 dev eth0 nud permanent\n", "M", mark))
	w, late := &l.x.want, time.After(10*time.Second)
	for left := 4; left > 0; {
		what, news, marked := "", false, false
		select {
		case u := <-l.links:
			what, news, marked = "link "+u.Attrs().Name, w.linkNews(u), u.Attrs().Alias == mark
		case u := <-l.routes:
			what, news, marked = fmt.Sprint("route ", u), w.routeNews(u), prefixOf(u.Dst).String() == mark+"/32" && u.Protocol == 3
		case u := <-l.addrs:
			what, news, marked = fmt.Sprint("address ", u), w.addrNews(u), u.LinkAddress.IP.String() == mark
		case u := <-l.neighs:
			what, news, marked = fmt.Sprint("neighbour ", u), w.neighNews(u), u.IP.String() == mark
		case <-late:
			l.Fatal("the kernel does not tell all")
		}
		if marked {
			left--
		} else if news {
			out = append(out, what)
		}
	}
	return out
}

// TestNews holds that no change of ours is a reason to look at the kernel, whatever plan follows on whatever, that all of somebody else's are
// by which it has not what it is to have, and that what comes and goes with pods and others is none.
func TestNews(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	world(t, linkMTU-100)
	var x Keeper
	kernel := Kernel{Device: "rw-vxlan", VNI: 4242, Port: 8472, MTU: linkMTU - 100}
	put := func(mode Mode, look bool, direct func(netip.Addr) bool, others ...Node) {
		t.Helper()
		plan, err := Make(mode, testNode(0), others, direct)
		netns.In(t, nodeName(0), func() {
			if err == nil {
				_, err = x.Put(kernel, plan, look)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	moved, swapped := testNode(2), [2]Node{testNode(1), testNode(2)}
	moved.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8::77")}
	swapped[0].PodCIDRs, swapped[1].PodCIDRs = swapped[1].PodCIDRs, swapped[0].PodCIDRs
	near := func(netip.Addr) bool { return true }
	l := listen(t, &x, nodeName(0))
	for mode, spoils := range map[Mode][]string{
		Direct: nil,
		VXLAN: {"link del rw-vxlan", "link set rw-vxlan down", "link set rw-vxlan mtu 1300", "link set rw-vxlan address 02:00:00:00:00:77", "addr flush dev rw-vxlan",
			"addr add 10.99.0.1/32 dev rw-vxlan", "addr del fd00:244::/128 dev rw-vxlan", "neigh flush dev rw-vxlan nud permanent",
			"neigh replace 10.244.1.0 lladdr 02:00:00:00:00:78 dev rw-vxlan", "neigh del 10.244.2.0 dev rw-vxlan", "neigh add 10.244.77.0 lladdr 02:00:00:00:00:78 dev rw-vxlan nud permanent",
			"fdb replace M dev rw-vxlan dst 192.0.2.66", "fdb del M dev rw-vxlan", "fdb add 02:00:00:00:00:79 dev rw-vxlan dst 192.0.2.66", "fdb append 00:00:00:00:00:00 dev rw-vxlan dst 192.0.2.66"},
	} {
		put(mode, true, nil, testNode(1))
		l.news()
		for i, own := range []func(){
			func() { put(mode, false, nil, testNode(1), testNode(2)) },
			func() { put(mode, true, nil, testNode(1), testNode(2)) },
			func() { put(mode, false, nil, testNode(1), moved) },
			func() { put(mode, false, nil, testNode(1)) },
			func() { put(mode, false, nil) },
			func() { put(mode, true, nil, testNode(1), testNode(2)) },
			func() { put(mode, false, nil, swapped[:]...) },
			func() { put(mode, false, near, testNode(1), testNode(2)) },
			func() { put(mode, false, nil, testNode(1), testNode(2)) },
		} {
			own()
			if news := l.news(); len(news) > 0 {
				t.Errorf("mode %d, own change %d: %q", mode, i, news)
			}
		}
		others := []string{
			"link add rw01234567 type veth peer name far netns p0\nlink set rw01234567 up\naddr add 169.254.1.1/32 dev rw01234567\naddr add fe80::1/64 dev rw01234567 nodad\n" +
				"route add 10.244.0.7/32 dev rw01234567\nroute add fd00:244::7/128 dev rw01234567\nneigh add 10.244.0.7 lladdr 02:00:00:00:00:07 dev rw01234567 nud permanent",
			"route add 10.9.0.0/24 via 192.0.2.2", "route add 10.9.1.0/24 via 192.0.2.2 proto 17", "route add 10.244.1.0/24 via 192.0.2.2 table 77 proto 82",
			"addr add 198.51.100.9/24 dev eth0", "neigh replace 192.0.2.50 lladdr 02:00:00:00:00:50 dev eth0 nud permanent", "route flush table 77", "route del 10.9.0.0/24\nroute del 10.9.1.0/24",
		}
		for _, other := range others {
			netns.Batch(t, nodeName(0), other+"\n")
			if news := l.news(); len(news) > 0 {
				t.Errorf("mode %d, %s: %q", mode, other, news)
			}
		}
		spoils = append(spoils, "route del 10.244.1.0/24", "route del fd00:244:0:2::/64", "route add 10.245.0.0/16 via 192.0.2.3 proto 82", "route replace 10.244.2.0/24 via 192.0.2.2 proto 82",
			"route replace 10.244.2.0/24 via 192.0.2.2", "route del 10.244.2.0/24", "route add 10.244.1.0/24 via 192.0.2.2 proto 82 metric 7", "-6 route replace fd00:244:0:1::/64 via 2001:db8::3 proto 82",
			"-6 route append fd00:244:0:1::/64 via 2001:db8::3 proto 82", "route add default via 192.0.2.2", "route del default", "link set eth0 mtu 1490", "link set eth0 mtu 1500", "addr del 198.51.100.9/24 dev eth0", "link del rw01234567\nlink add v type veth peer name w", "link del v")
		for _, spoil := range spoils {
			spoil = strings.Replace(spoil, "M", macOf(nodeName(1)).String(), 1)
			switch {
			case strings.HasPrefix(spoil, "fdb"):
				netns.Run(t, "bridge", append([]string{"-n", nodeName(0)}, strings.Fields(spoil)...)...)
			case strings.HasPrefix(spoil, "-6"):
				netns.Run(t, "ip", append([]string{"-n", nodeName(0)}, strings.Fields(spoil)...)...)
			default:
				netns.Batch(t, nodeName(0), spoil+"\n")
			}
			if news := l.news(); len(news) == 0 {
				t.Errorf("mode %d, %s: nothing", mode, spoil)
			}
			if spoil == "route replace 10.244.2.0/24 via 192.0.2.2" {
				continue // it is somebody else's, and goes with the next
			}
			put(mode, true, nil, testNode(1), testNode(2))
			l.news()
		}
		// Where links decide whether there is a tunnel, what leads to them is news.
		put(mode, false, near, testNode(1), testNode(2))
		l.news()
		for _, change := range []string{"route add 10.9.0.0/24 via 192.0.2.2", "route del 10.9.0.0/24", "addr add 198.51.100.9/24 dev eth0", "addr del 198.51.100.9/24 dev eth0"} {
			netns.Batch(t, nodeName(0), change+"\n")
			if news := l.news(); len(news) == 0 {
				t.Errorf("mode %d, %s: nothing", mode, change)
			}
		}
	}
}

// TestWatch holds that changes by others are told, and the beginning.
func TestWatch(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	world(t, linkMTU)
	r := &rig{T: t, mode: VXLAN, kernel: Kernel{Device: "rw-vxlan", VNI: 4242, Port: 8472, MTU: 1400}}
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(t.Context())
	told, ended := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		netns.In(t, nodeName(0), func() {
			r.nodes[0].Watch(ctx, func() {
				select {
				case told <- struct{}{}:
				default:
				}
			})
		})
	}()
	wait := func(what string) {
		t.Helper()
		select {
		case <-told:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s is not told", what)
		}
	}
	wait("the beginning")
	for _, change := range []string{"route del 10.244.1.0/24", "link set eth0 mtu 1400", "addr del 10.244.0.0/32 dev rw-vxlan", "neigh del 10.244.1.0 dev rw-vxlan"} {
		if _, err := r.sync(0, 1, 2); err != nil {
			t.Fatal(err)
		}
		for quiet := false; !quiet; {
			select {
			case <-told:
			case <-time.After(50 * time.Millisecond):
				quiet = true
			}
		}
		netns.Batch(t, nodeName(0), change+"\n")
		wait(change)
	}
	cancel()
	<-ended
	goleak.VerifyNone(t, before)
}

// TestLost holds that where the kernel could not tell all, since nobody read it, that is told.
func TestLost(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	var x Keeper
	ctx, cancel := context.WithCancel(t.Context())
	told, ended := make(chan struct{}, 100), make(chan struct{})
	go func() {
		defer close(ended)
		x.Watch(ctx, func() { told <- struct{}{} })
	}()
	wait := func(what string) {
		t.Helper()
		select {
		case <-told:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s is not told", what)
		}
	}
	wait("the beginning")
	var batch strings.Builder
	for i := range 20000 { // none of which is news
		fmt.Fprintf(&batch, "route add 10.%d.%d.0/24 dev lo\n", i>>8, i&255)
	}
	x.mu.Lock()
	netns.Batch(t, "", batch.String())
	x.mu.Unlock()
	wait("what was lost")
	wait("the new beginning")
	cancel()
	<-ended
}
