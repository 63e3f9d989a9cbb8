package routes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cni"
	"github.com/ropewalk-net/ropewalk/cni/antispoof"
	"github.com/ropewalk-net/ropewalk/cni/masquerade"
	"github.com/ropewalk-net/ropewalk/cni/overlay"
	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

func node(name string, cidrs, addrs []string) *cluster.Node {
	n := &cluster.Node{Name: name, Net: &cluster.NodeNet{}}
	for _, c := range cidrs {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	for _, a := range addrs {
		n.Net.InternalIPs = append(n.Net.InternalIPs, netip.MustParseAddr(a))
	}
	return n
}

var (
	self   = node("n1", []string{clusternet.PodCIDR4, clusternet.PodCIDR6}, []string{clusternet.Node4, clusternet.Node6})
	second = node("n2", []string{clusternet.FarCIDR4, clusternet.FarCIDR6}, []string{clusternet.Second4, clusternet.Second6})
)

// rig is a node with Routes that run, and a second one, whose routes are there already.
type rig struct {
	*testing.T
	routes *Routes
	conf   string
}

func start(t *testing.T, c Config, nodes ...*cluster.Node) *rig {
	t.Helper()
	netns.NeedCommand(t, "nft")
	clusternet.Make(t, 1)
	// The network has these of its own.
	netns.Batch(t, "", "route del "+clusternet.FarCIDR4+"\nroute del "+clusternet.FarCIDR6+"\nroute add default via "+clusternet.Outside4+"\n")
	if c.ConfDir == "" {
		c.ConfDir = filepath.Join(t.TempDir(), "net.d")
	}
	if c.DataDir == "" {
		c.DataDir = "/run/ropewalk"
	}
	c.NodeName, c.Log = "n1", slog.New(slog.NewTextHandler(t.Output(), nil))
	routes, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t, routes, filepath.Join(c.ConfDir, ConfName)}
	for _, k := range []cluster.Kind{cluster.KindNode, cluster.KindServiceCIDR} {
		routes.Apply(cluster.Change{Op: cluster.Replace, Kind: k})
		for _, n := range nodes {
			if k == cluster.KindNode {
				r.put(n)
			}
		}
		routes.Apply(cluster.Change{Op: cluster.Synced, Kind: k})
	}
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- routes.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t, before)
	})
	return r
}

func (r *rig) put(o cluster.Object) { r.routes.Apply(cluster.Upserted(o, time.Time{})) }

// soon waits until is returns an empty string.
func (r *rig) soon(is func() string) {
	r.Helper()
	var wrong string
	for begun := time.Now(); time.Since(begun) < 10*time.Second; time.Sleep(5 * time.Millisecond) {
		if wrong = is(); wrong == "" {
			return
		}
	}
	r.Fatal(wrong)
}

// reaches waits until a pod reaches the far one, which sees its own address.
func (r *rig) reaches() {
	r.Helper()
	for a, own := range map[string]string{clusternet.Far4: clusternet.Pod4(0), clusternet.Far6: clusternet.Pod6(0)} {
		r.soon(func() string {
			if _, client, err := clusternet.AskFor(r, time.Second, clusternet.Pod(0), "tcp", net.JoinHostPort(a, "80")); err != nil || client != own {
				return fmt.Sprintf("%s: %q %v", a, client, err)
			}
			return ""
		})
	}
}

// TestRun holds that routes, the masquerading and the runtime's configuration follow the cluster, and come back when they are deleted.
func TestRun(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	without := node("n1", nil, []string{clusternet.Node4, clusternet.Node6})
	inside := filepath.Join(t.TempDir(), "config")
	r := start(t, Config{Mode: overlay.Direct, Masquerade: true, InsideFile: inside, LocalhostPorts: true, Antispoof: true}, without, second)
	for _, a := range []string{clusternet.Far4, clusternet.Far6} {
		clusternet.Serve(t, clusternet.Far, net.JoinHostPort(a, "80"))
	}
	clusternet.Serve(t, clusternet.Outside, clusternet.Outside4+":80")
	r.soon(func() string {
		if err := r.routes.Ready(); err == nil || !strings.Contains(err.Error(), "n1 has no podCIDRs yet") {
			return fmt.Sprint(err)
		}
		return ""
	})
	if _, err := os.Stat(r.conf); err == nil {
		t.Error("the runtime is told before the node has podCIDRs")
	}
	r.put(self)
	r.soon(func() string {
		if err := r.routes.Ready(); err != nil {
			return err.Error()
		}
		return ""
	})
	r.reaches()
	outside := func(want string) {
		t.Helper()
		r.soon(func() string {
			if _, client, err := clusternet.AskFor(t, time.Second, clusternet.Pod(0), "tcp", clusternet.Outside4+":80"); err != nil || client != want {
				return fmt.Sprintf("outside sees %q, %v", client, err)
			}
			return ""
		})
	}
	outside(clusternet.Node4)
	if out := netns.Run(t, "nft", "list", "table", "ip6", antispoof.Table); !strings.Contains(out, "fib saddr . iif") {
		t.Error(out)
	}
	var conf struct {
		CNIVersion string
		Plugins    []struct {
			Type, Mode, DataDir string
			MTU                 int
			Ranges              []string
		}
	}
	b, err := os.ReadFile(r.conf)
	if err == nil {
		err = json.Unmarshal(b, &conf)
	}
	if err != nil || len(conf.Plugins) != 1 || conf.CNIVersion != "1.1.0" {
		t.Fatalf("%v %s", err, b)
	}
	p := conf.Plugins[0]
	if d := cmp.Diff([]string{clusternet.PodCIDR4, clusternet.PodCIDR6}, p.Ranges); d != "" || p.Type != "ropewalk-cni" || p.MTU != 1500 || p.Mode != "routed" {
		t.Errorf("%+v %s", p, d)
	}
	if d := cmp.Diff(self.PodCIDRs, r.routes.Ranges(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	given := map[string]any{} // as the runtime gives it to the plugin
	var list struct{ Plugins []map[string]any }
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	maps.Copy(given, list.Plugins[0])
	given["cniVersion"], given["name"] = conf.CNIVersion, "ropewalk"
	if stdin, err := json.Marshal(given); err != nil {
		t.Error(err)
	} else if c, err := cni.ParseConfig(stdin, ""); err != nil || c.MTU != p.MTU || len(c.Pools) != 2 || !c.LocalhostPorts || !c.TakesPorts {
		t.Errorf("the plugin makes %+v of it, %v", c, err)
	}
	netns.Batch(t, "", "route del "+clusternet.FarCIDR4+"\nroute del "+clusternet.FarCIDR6+"\n")
	r.reaches()
	// The outside becomes a node, and is a stranger again.
	netns.Batch(t, clusternet.Outside, "route add "+clusternet.PodCIDR4+" via "+clusternet.Node4+"\n")
	r.put(node("n3", nil, []string{clusternet.Outside4}))
	outside(clusternet.Pod4(0))
	r.routes.Apply(cluster.Deleted(cluster.KindNode, cluster.Key{Name: "n3"}, time.Time{}))
	outside(clusternet.Node4)
	netns.Run(t, "nft", "flush", "ruleset")
	r.put(node("n4", []string{"10.250.0.0/24"}, []string{clusternet.Outside4})) // any change has a look taken at the rules
	r.soon(func() string {
		if out := netns.Run(t, "ip", "route"); !strings.Contains(out, "10.250.0.0/24 via "+clusternet.Outside4) {
			return "a node that has come: " + out
		}
		return ""
	})
	r.routes.Apply(cluster.Deleted(cluster.KindNode, cluster.Key{Name: "n4"}, time.Time{}))
	outside(clusternet.Node4)
	// The operator names what is inside; a file that is wrong changes nothing, and is told.
	name := func(content string) {
		if err := os.WriteFile(inside, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		r.routes.wake() // else a minute
	}
	name("nonMasqueradeCIDRs: [" + clusternet.Outside4 + "/32]")
	outside(clusternet.Pod4(0))
	name("nonMasqueradeCIDRs: [x]")
	r.soon(func() string {
		if err := r.routes.Ready(); err == nil || !strings.Contains(err.Error(), inside) {
			return fmt.Sprint(err)
		}
		return ""
	})
	outside(clusternet.Pod4(0))
	const metadata = "169.254.169.254"
	netns.Batch(t, clusternet.Outside, "addr add "+metadata+"/32 dev lo\n")
	netns.Batch(t, "", "route add "+metadata+" via "+clusternet.Outside4+"\n")
	clusternet.Serve(t, clusternet.Outside, metadata+":80")
	sees := func(address, want string) {
		t.Helper()
		r.soon(func() string {
			if _, client, err := clusternet.AskFor(t, time.Second, clusternet.Pod(0), "tcp", address+":80"); err != nil || client != want {
				return fmt.Sprintf("%s sees %q, %v; want %s", address, client, err, want)
			}
			return ""
		})
	}
	name("masqLinkLocal: true")
	sees(metadata, clusternet.Node4)
	name("")
	sees(metadata, clusternet.Pod4(0))
	outside(clusternet.Node4)
	// A node that is wrong harms nobody else.
	evil := node("evil", []string{"0.0.0.0/0", clusternet.FarCIDR4}, []string{"192.0.2.66"})
	evil.Net.Created = time.Now()
	r.put(evil)
	r.put(node("liar", []string{"10.251.0.0/24"}, []string{clusternet.Far4, clusternet.Far6}))
	r.put(node("n4", []string{"10.250.0.0/24"}, []string{clusternet.Outside4}))
	r.soon(func() string {
		if out := netns.Run(t, "ip", "route"); !strings.Contains(out, "10.250.0.0/24") || !strings.Contains(out, clusternet.FarCIDR4) || strings.Contains(out, "10.251.0.0/24") {
			return "with a node that says it is where pods are: " + out
		}
		return ""
	})
	r.reaches()
	r.put(without)
	r.soon(func() string {
		if _, err := os.Stat(r.conf); err == nil {
			return "the runtime goes on to attach pods"
		}
		return ""
	})
	files, err := os.ReadDir(filepath.Dir(r.conf))
	if err != nil || len(files) != 0 {
		t.Errorf("left: %v %v", files, err)
	}
}

// TestApply holds which changes have the kernel looked at: a heartbeat is none, and costs nothing in a cluster of any size.
func TestApply(t *testing.T) {
	r, err := New(Config{NodeName: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	step := func(what string, want bool, c cluster.Change) {
		t.Helper()
		r.Apply(c)
		kicked := false
		select {
		case <-r.kick:
			kicked = true
		default:
		}
		if kicked != want {
			t.Errorf("%s: %t", what, kicked)
		}
	}
	up := func(o cluster.Object) cluster.Change { return cluster.Upserted(o, time.Time{}) }
	list := func(op cluster.Op) cluster.Change { return cluster.Change{Op: op, Kind: cluster.KindNode} }
	again := func() *cluster.Node {
		n := node("n2", []string{clusternet.FarCIDR4, clusternet.FarCIDR6}, []string{clusternet.Second4, clusternet.Second6})
		n.Net.Zone = "elsewhere"
		return n
	}
	step("a listing begins", false, list(cluster.Replace))
	step("a node", true, up(self))
	step("another", true, up(second))
	step("the listing ends", true, list(cluster.Synced))
	beat := up(again())
	step("a heartbeat", false, beat)
	if n := testing.AllocsPerRun(100, func() { r.Apply(beat) }); n > 2 { // the race detector has one
		t.Errorf("%v allocations for a heartbeat", n)
	}
	step("a listing begins again", false, list(cluster.Replace))
	step("a node that is known", false, up(self))
	step("another that is known", false, up(again()))
	step("the listing ends with what is known", false, list(cluster.Synced))
	step("another listing begins", false, list(cluster.Replace))
	step("it has one node only", false, up(self))
	step("it ends", true, list(cluster.Synced))
	step("the node's address changes", true, up(node("n1", []string{clusternet.PodCIDR4, clusternet.PodCIDR6}, []string{clusternet.Node4})))
	step("a stranger goes", false, cluster.Deleted(cluster.KindNode, cluster.Key{Name: "n2"}, time.Time{}))
	step("a range of services", true, up(&cluster.ServiceCIDR{Name: "a", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}))
	step("the same", false, up(&cluster.ServiceCIDR{Name: "a", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}))
}

// TestFollow holds that whatever changes, a node or many, this one, a listing of all, with something wrong or without, the kernel has in the end what it
// would have if all had been there from the beginning: a look at it finds nothing to change.
func TestFollow(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	netns.Batch(t, "", "link add eth0 type veth peer name far\nlink set eth0 up\nlink set far up\naddr add 172.16.0.1/16 dev eth0\naddr add fd00:1::1/64 dev eth0 nodad\nroute add default via 172.16.0.99\n")
	rnd := rand.New(rand.NewPCG(5, 6))
	random := func(i int) *cluster.Node {
		addrs := []string{fmt.Sprintf("172.16.%d.%d", rnd.IntN(2), 1+i), fmt.Sprintf("fd00:1::%x", 1+i)}
		cidrs := []string{fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:244:0:%x::/64", i)}
		if rnd.IntN(3) == 0 {
			addrs[0] = fmt.Sprintf("198.51.100.%d", 1+i) // far away
		}
		switch rnd.IntN(20) {
		case 0:
			cidrs = append(cidrs, []string{"10.244.0.0/16", "172.16.1.0/24", "10.244.3.0/25"}[rnd.IntN(3)])
		case 1:
			cidrs = cidrs[:1]
		}
		return node(fmt.Sprint("n", i), cidrs, addrs)
	}
	for _, near := range []bool{false, true} {
		r, err := New(Config{NodeName: "n0", Mode: overlay.VXLAN, NearDirect: near, Masquerade: true, Kernel: overlay.Kernel{Device: "rw-vxlan", VNI: 1, Port: 8472, MTU: 1400}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		all := map[int]*cluster.Node{}
		put := func(i int) {
			all[i] = random(i)
			r.Apply(cluster.Upserted(all[i], time.Time{}))
		}
		list := func() {
			r.Apply(cluster.Change{Op: cluster.Replace, Kind: cluster.KindNode})
			for _, n := range all {
				r.Apply(cluster.Upserted(n, time.Time{}))
			}
			r.Apply(cluster.Change{Op: cluster.Synced, Kind: cluster.KindNode})
		}
		r.Apply(cluster.Change{Op: cluster.Replace, Kind: cluster.KindServiceCIDR})
		r.Apply(cluster.Change{Op: cluster.Synced, Kind: cluster.KindServiceCIDR})
		put(0)
		list()
		for step := range 150 {
			for range rnd.IntN(4) {
				switch i := 1 + rnd.IntN(12); rnd.IntN(12) {
				case 0:
					delete(all, i)
					list()
				case 1:
					put(0)
				case 2:
					r.doubt()
				case 3, 4, 5:
					delete(all, i)
					r.Apply(cluster.Deleted(cluster.KindNode, cluster.Key{Name: fmt.Sprint("n", i)}, time.Time{}))
				default:
					put(i)
				}
			}
			if err := r.sync(); err != nil {
				t.Fatal(err)
			}
			var others []overlay.Node
			c := masquerade.Config{Pods: all[0].PodCIDRs}
			for i, n := range all {
				c.Inside = append(c.Inside, prefixesOf(nodeOf(n))...)
				if i != 0 {
					others = append(others, nodeOf(n))
				}
			}
			var direct func(netip.Addr) bool
			if near {
				direct = overlay.OnLink
			}
			plan, _ := overlay.Make(overlay.VXLAN, nodeOf(all[0]), others, direct)
			if n, err := new(overlay.Keeper).Put(r.config.Kernel, plan, true); n != 0 || err != nil {
				t.Fatalf("near %t, step %d: %d changes, %v", near, step, n, err)
			}
			if changed, err := new(masquerade.Tables).Apply(c, true); changed || err != nil {
				t.Fatalf("near %t, step %d: the masquerading was wrong, %v", near, step, err)
			}
		}
		if n := r.keeper.Looks(); n > 75 {
			t.Errorf("near %t: %d looks", near, n)
		}
	}
}

// TestTakeover holds that a node is put right on which another configuration has run, and a process was killed as it wrote.
func TestTakeover(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	conf := t.TempDir()
	for _, name := range []string{"." + ConfName + ".123", "10-other.conflist"} {
		if err := os.WriteFile(filepath.Join(conf, name), []byte("{"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := new(masquerade.Tables).Apply(masquerade.Config{Pods: self.PodCIDRs}, false); err != nil {
		t.Fatal(err)
	}
	r := start(t, Config{ConfDir: conf, Mode: overlay.Direct}, self, second)
	clusternet.Serve(t, clusternet.Far, net.JoinHostPort(clusternet.Far4, "80"))
	clusternet.Serve(t, clusternet.Far, net.JoinHostPort(clusternet.Far6, "80"))
	r.soon(func() string {
		if err := r.routes.Ready(); err != nil {
			return err.Error()
		}
		return ""
	})
	if strings.Contains(netns.Run(t, "nft", "list", "tables"), masquerade.Table) {
		t.Error("the masquerading of before is there")
	}
	files, err := filepath.Glob(filepath.Join(conf, ".*"))
	all, err2 := os.ReadDir(conf)
	if err != nil || err2 != nil || len(files) != 0 || len(all) != 2 {
		t.Error(files, all, err, err2)
	}
	// Somebody resets the sysctls.
	err = errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644), os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("0"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	r.put(node("n3", nil, []string{clusternet.Outside4}))
	r.reaches()
}

// TestBadFile holds that pods reach what is outside though the file of what is inside is wrong from the beginning, that the node is not ready then, and
// that what is inside follows the nodes meanwhile.
func TestBadFile(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte("nonMasqueradeCIDRs:\n- "+clusternet.Outside4+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := start(t, Config{Mode: overlay.Direct, Masquerade: true, InsideFile: file}, self, second)
	clusternet.Serve(t, clusternet.Outside, clusternet.Outside4+":80")
	netns.Batch(t, clusternet.Outside, "route add "+clusternet.PodCIDR4+" via "+clusternet.Node4+"\n")
	sees := func(want string) {
		t.Helper()
		r.soon(func() string {
			_, client, err := clusternet.AskFor(t, time.Second, clusternet.Pod(0), "tcp", clusternet.Outside4+":80")
			if ready := r.routes.Ready(); err != nil || client != want || ready == nil || !strings.Contains(ready.Error(), file+":2: ") {
				return fmt.Sprintf("outside sees %q, %v; want %s; %v", client, err, want, ready)
			}
			return ""
		})
	}
	sees(clusternet.Node4)
	r.put(node("n3", nil, []string{clusternet.Outside4}))
	sees(clusternet.Pod4(0))
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r.soon(func() string {
		if err := r.routes.Ready(); err != nil {
			return err.Error()
		}
		return ""
	})
}

// TestFar holds that without a tunnel a node that is on no link is told of, and counted, and no reason for this one to be not ready, until it is on a
// link; and that this one is not ready while all others are on none.
func TestFar(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	far := node("far", []string{"10.252.0.0/24"}, []string{"203.0.113.9"})
	r := start(t, Config{Mode: overlay.Direct}, self, far)
	r.soon(func() string {
		if err := r.routes.Ready(); err == nil || !strings.Contains(err.Error(), "no other node can be reached") || !strings.Contains(err.Error(), "203.0.113.9 is on no link") {
			return fmt.Sprint("none is on a link: ", err)
		}
		return ""
	})
	left := func(want int) {
		t.Helper()
		r.soon(func() string {
			r.routes.mu.Lock()
			have := r.routes.desired.left
			r.routes.mu.Unlock()
			if err, degraded := r.routes.Ready(), r.routes.Degraded(); err != nil || have != want || (degraded != nil) != (want > 0) {
				return fmt.Sprintf("%d left out, %v, %v; want %d", have, err, degraded, want)
			}
			return ""
		})
	}
	r.put(second)
	left(1)
	if out := netns.Run(t, "ip", "route"); strings.Contains(out, "10.252.0.0/24") || !strings.Contains(out, clusternet.FarCIDR4) {
		t.Error(out)
	}
	netns.Batch(t, "", "link add far0 type veth peer name far1\nlink set far0 up\nlink set far1 up\naddr add 203.0.113.1/24 dev far0\n")
	left(0)
	if out := netns.Run(t, "ip", "route"); !strings.Contains(out, "10.252.0.0/24 via 203.0.113.9") {
		t.Error(out)
	}
	netns.Batch(t, "", "link del far0\n")
	left(1)
}

// TestLinkMTU holds that a default route of several hops counts, too, and that the smallest link does.
func TestLinkMTU(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	if n, err := linkMTU(); err == nil {
		t.Errorf("%d without a default route", n)
	}
	netns.Batch(t, "", "link add l1 type veth peer name l2\nlink add l3 mtu 1400 type veth peer name l4\nlink set l1 up\nlink set l2 up\nlink set l3 up\nlink set l4 up\n"+
		"addr add 192.0.2.1/24 dev l1\naddr add 198.51.100.1/24 dev l3\nroute add default nexthop via 192.0.2.9 nexthop via 198.51.100.9\n")
	if n, err := linkMTU(); err != nil || n != 1400 {
		t.Errorf("%d, %v", n, err)
	}
}

// TestTunnelMTU holds that pods' packets have room in the tunnel.
func TestTunnelMTU(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := start(t, Config{Mode: overlay.VXLAN, Kernel: overlay.Kernel{Device: "rw-vxlan", VNI: 1, Port: 8472}}, self, second)
	r.soon(func() string {
		b, err := os.ReadFile(r.conf)
		if err != nil || !strings.Contains(string(b), `"mtu": 1450`) {
			return fmt.Sprint(err, string(b))
		}
		return ""
	})
	if out := netns.Run(t, "ip", "link", "show", "rw-vxlan"); !strings.Contains(out, "mtu 1450") {
		t.Error(out)
	}
}

// TestPlugin holds that the plugin's configuration is known where somebody else writes the runtime's, and before the cluster is.
func TestPlugin(t *testing.T) {
	r, err := New(Config{NodeName: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Plugin(); got != nil {
		t.Errorf("before podCIDRs are known: %s", got)
	}
	v := view{self: overlay.Node{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}}
	if err := r.announce(v, 1400); err != nil {
		t.Fatal(err)
	}
	if c, err := cni.ParseConfig(r.Plugin(), ""); err != nil || c.MTU != 1400 || c.Pools[0].String() != "10.244.1.0/24" {
		t.Errorf("%+v, %v", c, err)
	}
	// It is that of the file while the API server is away.
	c := Config{NodeName: "n1", ConfDir: t.TempDir(), CNIMode: "bridge", Bridge: "br7", SpoofCheck: true}
	first, err := New(c)
	if err == nil {
		err = first.announce(v, 1400)
	}
	if err != nil {
		t.Fatal(err)
	}
	second, err := New(Config{NodeName: "n1", ConfDir: c.ConfDir})
	if err == nil {
		err = second.recall()
	}
	if diff := cmp.Diff(string(first.Plugin()), string(second.Plugin())); diff != "" || err != nil {
		t.Error(err, diff)
	}
	for _, content := range []string{"", "[]", "{}", `{"plugins":[{},{}]}`} {
		if err := os.WriteFile(filepath.Join(c.ConfDir, ConfName), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := r.recall(); err != nil { // it writes none
			t.Error(err)
		}
		if err := second.recall(); err == nil {
			t.Errorf("%q is taken", content)
		}
	}
}
