package overlay

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

func node(name string, fields ...string) Node {
	n := Node{Name: name}
	for _, f := range fields {
		if strings.Contains(f, "/") {
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(f))
		} else {
			n.Addrs = append(n.Addrs, netip.MustParseAddr(f))
		}
	}
	return n
}

// aged returns a node that was made on that day.
func aged(day int, n Node) Node {
	n.Created = time.Date(2026, 1, day, 0, 0, 0, 0, time.UTC)
	return n
}

func (p Plan) lines() []string {
	var out []string
	for _, r := range p.Routes {
		s := fmt.Sprintf("%s via %s", r.Dst, r.Via)
		if r.Tunnel {
			mac := p.Tunnel.Neighbors[r.Via]
			s += fmt.Sprintf(" in the tunnel to %s", p.Tunnel.Forward[mac])
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

func TestMake(t *testing.T) {
	self := node("a", "10.244.0.0/24", "fd00:244::/64", "192.0.2.1", "2001:db8::1")
	b := node("b", "10.244.1.0/24", "fd00:244:0:1::/64", "192.0.2.2", "2001:db8::2")
	c := node("c", "10.244.2.7/24", "198.51.100.3")
	near := func(a netip.Addr) bool { return netip.MustParsePrefix("192.0.2.0/24").Contains(a) }
	for name, test := range map[string]struct {
		mode   Mode
		others []Node
		direct func(netip.Addr) bool
		want   []string
		wrong  []string
	}{
		"nobody": {mode: Direct},
		"direct": {mode: Direct, others: []Node{c, b, self}, want: []string{"10.244.1.0/24 via 192.0.2.2", "10.244.2.0/24 via 198.51.100.3", "fd00:244:0:1::/64 via 2001:db8::2"}},
		"direct, far away": {mode: Direct, direct: near, others: []Node{b, c}, want: []string{"10.244.1.0/24 via 192.0.2.2"}, wrong: []string{
			"node b, pods fd00:244:0:1::/64: its address 2001:db8::2 is on no link of this node's", "node c, pods 10.244.2.0/24: its address 198.51.100.3 is on no link of this node's"}},
		"a tunnel": {mode: VXLAN, others: []Node{b, c}, want: []string{
			"10.244.1.0/24 via 10.244.1.0 in the tunnel to 192.0.2.2", "10.244.2.0/24 via 10.244.2.0 in the tunnel to 198.51.100.3",
			"fd00:244:0:1::/64 via fe80::ac63:dfff:fe4c:8601 in the tunnel to 192.0.2.2"}},
		"a tunnel where there is no link": {mode: VXLAN, direct: near, others: []Node{b, c}, want: []string{
			"10.244.1.0/24 via 192.0.2.2", "10.244.2.0/24 via 10.244.2.0 in the tunnel to 198.51.100.3",
			"fd00:244:0:1::/64 via fe80::ac63:dfff:fe4c:8601 in the tunnel to 192.0.2.2"}},
		"cloud": {mode: Cloud, others: []Node{b, c}},
		"all there is": {mode: Direct, others: []Node{b, node("evil", "0.0.0.0/0", "::/0", "192.0.2.66", "2001:db8::66")},
			want:  []string{"10.244.1.0/24 via 192.0.2.2", "fd00:244:0:1::/64 via 2001:db8::2"},
			wrong: []string{"node evil, pods 0.0.0.0/0: it overlaps with 10.244.0.0/24", "node evil, pods ::/0: it overlaps with fd00:244::/64"}},
		"another's": {mode: Direct, others: []Node{node("z", "10.244.1.128/25", "192.0.2.66"), b, node("y", "10.244.0.0/16", "192.0.2.67")},
			want:  []string{"10.244.1.0/24 via 192.0.2.2", "fd00:244:0:1::/64 via 2001:db8::2"},
			wrong: []string{"node y, pods 10.244.0.0/16: it overlaps with 10.244.0.0/24", "node z, pods 10.244.1.128/25: it overlaps with 10.244.1.0/24"}},
		"nodes' addresses": {mode: Direct, others: []Node{node("evil", "192.0.2.0/24", "192.0.2.66"), node("d", "10.9.0.0/24", "192.0.2.4")},
			want: []string{"10.9.0.0/24 via 192.0.2.4"}, wrong: []string{"node evil, pods 192.0.2.0/24: this node's address 192.0.2.1 is in it"}},
		// A kubelet says of its node that it is where others' pods are: it harms itself alone. Only addresses that count do.
		"pods' addresses": {mode: Direct, others: []Node{b, node("d", "10.9.0.0/24", "192.0.2.4", "10.244.1.9"), node("evil", "10.10.0.0/24", "10.244.1.7"), node("own", "10.11.0.0/24", "10.11.0.1"), node("us", "10.12.0.0/24", "10.244.0.9")},
			want: []string{"10.244.1.0/24 via 192.0.2.2", "10.9.0.0/24 via 192.0.2.4", "fd00:244:0:1::/64 via 2001:db8::2"},
			wrong: []string{"node evil, pods 10.10.0.0/24: its address 10.244.1.7 is a pod's, of 10.244.1.0/24", "node own, pods 10.11.0.0/24: its address 10.11.0.1 is a pod's, of 10.11.0.0/24",
				"node us, pods 10.12.0.0/24: its address 10.244.0.9 is a pod's, of 10.244.0.0/24"}},
		"pods' addresses, a tunnel": {mode: VXLAN, others: []Node{node("a-evil", "10.10.0.0/24", "10.244.2.7"), c},
			want: []string{"10.244.2.0/24 via 10.244.2.0 in the tunnel to 198.51.100.3"}, wrong: []string{"node a-evil, pods 10.10.0.0/24: its address 10.244.2.7 is a pod's, of 10.244.2.0/24"}},
		// What is new takes nothing from what was there, whatever it is called.
		"the older one's": {mode: Direct, others: []Node{aged(9, node("a-evil", "10.9.0.128/25", "192.0.2.66")), aged(3, node("d", "10.9.0.0/24", "192.0.2.4")), aged(3, node("e", "10.9.0.0/16", "192.0.2.5"))},
			want:  []string{"10.9.0.0/24 via 192.0.2.4"},
			wrong: []string{"node e, pods 10.9.0.0/16: it overlaps with 10.9.0.0/24", "node a-evil, pods 10.9.0.128/25: it overlaps with 10.9.0.0/24"}},
		"this node's former name": {mode: Direct, others: []Node{node("old", "10.8.0.0/24", "192.0.2.1"), node("d", "10.9.0.0/24", "192.0.2.4")},
			want: []string{"10.9.0.0/24 via 192.0.2.4"}, wrong: []string{"node old, pods 10.8.0.0/24: its address 192.0.2.1 is this node's"}},
		"this node's former name, a tunnel": {mode: VXLAN, others: []Node{node("old", "fd00:8::/64", "192.0.2.1")},
			wrong: []string{"node old, pods fd00:8::/64: its address 192.0.2.1 is this node's"}},
		"no node's address": {mode: Direct, others: []Node{node("d", "10.9.0.0/24", "127.0.0.1"), node("e", "10.10.0.0/24", "0.0.0.0"), node("f", "fd00:9::/64", "ff02::1"), node("g", "fd00:10::/64", "fe80::1")},
			wrong: []string{"node d, pods 10.9.0.0/24: its address 127.0.0.1 is none that leads to a node", "node e, pods 10.10.0.0/24: its address 0.0.0.0 is none that leads to a node",
				"node f, pods fd00:9::/64: its address ff02::1 is none that leads to a node", "node g, pods fd00:10::/64: its address fe80::1 is none that leads to a node"}},
		"no node's address, a tunnel": {mode: VXLAN, others: []Node{node("d", "10.9.0.0/24", "255.255.255.255")},
			wrong: []string{"node d, pods 10.9.0.0/24: its address 255.255.255.255 is none that leads to a node"}},
		"no address": {mode: VXLAN, others: []Node{node("d", "10.9.0.0/24", "2001:db8::4")},
			wrong: []string{"node d, pods 10.9.0.0/24: it has no address of the family that the tunnel is of"}},
		"no address, direct": {mode: Direct, others: []Node{node("d", "10.9.0.0/24", "fd00:9::/64", "2001:db8::4")}, want: []string{"fd00:9::/64 via 2001:db8::4"},
			wrong: []string{"node d, pods 10.9.0.0/24: it has no address of that family"}},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := Make(test.mode, self, test.others, test.direct)
			if d := cmp.Diff(test.want, plan.lines()); d != "" {
				t.Error(d)
			}
			var wrong []string
			if err != nil {
				wrong = strings.Split(err.Error(), "\n")
			}
			if d := cmp.Diff(test.wrong, wrong); d != "" || err != nil && !errors.Is(err, ErrNode) {
				t.Error(d)
			}
			if (plan.Tunnel != nil) != (test.mode == VXLAN) {
				t.Errorf("tunnel: %v", plan.Tunnel)
			}
		})
	}
}

// TestMany holds that the ends of 5,000 nodes' tunnels are told apart.
func TestMany(t *testing.T) {
	var others []Node
	for i := range 5000 {
		others = append(others, node(fmt.Sprint("node-", i), fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255), fmt.Sprintf("192.168.%d.%d", i>>8, i&255)))
	}
	plan, err := Make(VXLAN, node("self", "10.200.0.0/24", "192.0.2.1"), others, nil)
	if err != nil || len(plan.Routes) != 5000 || len(plan.Tunnel.Forward) != 5000 {
		t.Errorf("%d routes, %d ends, %v", len(plan.Routes), len(plan.Tunnel.Forward), err)
	}
	for m := range maps.Keys(plan.Tunnel.Forward) {
		if m[0]&3 != 2 {
			t.Fatalf("%s is no local address of one host", m)
		}
	}
}

// TestAllWrong holds that what is wrong with thousands of nodes at once can be read, and is told in the same words again.
func TestAllWrong(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.Batch(t, "", "link add eth0 type veth peer name far\nlink set eth0 up\nlink set far up\naddr add 192.0.2.1/24 dev eth0\n")
	var others []Node
	for i := range 5000 {
		others = append(others, node(fmt.Sprint("node-", i), fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255), fmt.Sprintf("198.51.%d.%d", i>>8, i&255)))
	}
	readable := func(err, again error, reason error, more string) {
		t.Helper()
		if !errors.Is(err, reason) || len(err.Error()) > 2000 || !strings.HasSuffix(err.Error(), more) || again.Error() != err.Error() {
			t.Errorf("%.3000s\n%.3000s", err, again)
		}
	}
	self := node("self", "10.200.0.0/24", "192.0.2.1")
	plan, err := Make(Direct, self, others, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = new(Keeper).Put(Kernel{Device: "rw-vxlan"}, plan, true)
	_, again := new(Keeper).Put(Kernel{Device: "rw-vxlan"}, plan, true)
	readable(err, again, unix.ENETUNREACH, "and 4990 more like these")
	self.PodCIDRs[0] = netip.MustParsePrefix("10.0.0.0/8")
	_, err = Make(Direct, self, others, nil)
	_, again = Make(Direct, self, others, nil)
	readable(err, again, ErrNode, "and 4990 more like these")
}

// TestPlanner holds that a plan which follows changes is the one that is made of all nodes, whatever is wrong with some, and that what goes and
// comes is the difference; and that where nothing is wrong a change is followed without making all anew.
func TestPlanner(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, mode := range []Mode{Direct, VXLAN, Cloud} {
		for _, wrong := range []int{0, 3, 20} { // of 100
			var x Planner
			self := node("self", "10.0.0.0/24", "fd00::/64", "192.0.2.1", "2001:db8::1")
			near := func(a netip.Addr) bool { return a.AsSlice()[a.BitLen()/8-1]&1 == 0 }
			nodes, direct := map[string]Node{}, near
			switch {
			case mode == Direct && wrong == 0:
				direct = nil
			case mode == Direct:
				direct = func(a netip.Addr) bool { return a.AsSlice()[a.BitLen()/8-1] != 7 }
			}
			plan, _ := x.Make(mode, self, nil, direct)
			followed := 0
			for step := range 500 {
				changed := map[string]Node{}
				for range 1 + r.IntN(3) {
					i := 1 + r.IntN(30)
					n := node(fmt.Sprint("n", i), fmt.Sprintf("192.0.2.%d", 1+i))
					for _, p := range []string{fmt.Sprintf("10.0.%d.0/24", i), fmt.Sprintf("fd00:0:0:%x::/64", i)}[:r.IntN(3)] {
						n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(p))
					}
					if r.IntN(2) == 0 {
						n.Addrs = append(n.Addrs, netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", 1+i+r.IntN(2)*100)))
					} else {
						n.PodCIDRs = n.PodCIDRs[:min(1, len(n.PodCIDRs))]
					}
					if r.IntN(100) < wrong {
						odd := []string{"10.0.1.0/25", "10.0.0.0/16", "192.0.2.0/24", "fd00::/60", "10.0.2.0/24", "::/0"}
						if r.IntN(2) == 0 {
							n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(odd[r.IntN(len(odd))]))
						}
						n.Addrs[0] = netip.MustParseAddr([]string{"192.0.2.1", "10.0.3.7", "10.0.5.7", "192.0.2.9"}[r.IntN(4)])
						n = aged(1+r.IntN(3), n)
					}
					if r.IntN(3) == 0 {
						n = Node{}
					}
					changed[fmt.Sprint("n", i)] = n
				}
				for name, n := range changed {
					if nodes[name] = n; n.Name == "" {
						delete(nodes, name)
					}
				}
				all := slices.Collect(maps.Values(nodes))
				want, wantErr := Make(mode, self, all, direct)
				before := plan.clone()
				var err error
				gone, come, ok := x.Change(changed)
				if ok {
					followed++
					before.remove(gone)
					before.add(come)
					if d := cmp.Diff(want, before, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}), cmp.AllowUnexported(Plan{})); d != "" {
						t.Fatalf("mode %d, step %d: %s", mode, step, d)
					}
				} else {
					plan, err = x.Make(mode, self, all, direct)
				}
				if d := cmp.Diff(want, plan, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}), cmp.AllowUnexported(Plan{})); d != "" || fmt.Sprint(err) != fmt.Sprint(wantErr) {
					t.Fatalf("mode %d, step %d, followed %t: %s, %v, want %v", mode, step, ok, d, err, wantErr)
				}
			}
			if all := wrong == 0 || mode == Cloud; all && followed < 490 || followed == 0 {
				t.Errorf("mode %d, %d of 100 wrong: %d of 500 changes followed", mode, wrong, followed)
			}
		}
	}
}

// TestForgotten holds that a node that is gone is in nobody's way.
func TestForgotten(t *testing.T) {
	var x Planner
	if _, err := x.Make(Direct, node("self", "10.0.0.0/24", "192.0.2.1"), nil, nil); err != nil {
		t.Fatal(err)
	}
	for i, n := range []Node{node("a", "10.0.8.0/24", "10.0.9.7"), {}, node("a", "10.0.9.0/24", "192.0.2.2"), {}, node("a", "10.0.8.0/24", "10.0.9.7")} {
		if _, _, ok := x.Change(map[string]Node{"a": n}); !ok {
			t.Errorf("step %d is not followed", i)
		}
	}
}

// BenchmarkMake is what the plan of 5,000 nodes costs, whose names, ranges and addresses have nothing to do with each other, and to find out in what
// it differs from the one before.
func BenchmarkMake(b *testing.B) {
	var others []Node
	for i := range 5000 {
		others = append(others, node(fmt.Sprint("node-", i*7919%5000), fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255), fmt.Sprintf("fd00:%x::/64", i), fmt.Sprintf("192.168.%d.%d", i>>8, i&255), fmt.Sprintf("fd01::%x", i)))
	}
	self := node("self", "10.200.0.0/24", "192.168.99.1")
	before, _ := Make(VXLAN, self, others[1:], nil)
	b.Run("plan", func(b *testing.B) {
		for b.Loop() {
			if _, err := Make(VXLAN, self, others, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	after, _ := Make(VXLAN, self, others, nil)
	b.Run("difference", func(b *testing.B) {
		for b.Loop() {
			if w := differ(before, after, 1); len(w.routes) != 2 || len(w.neighbors) != 2 || len(w.forward) != 1 {
				b.Fatal(w)
			}
		}
	})
}
