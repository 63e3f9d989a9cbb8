package zone

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// TestObjectsMakeTheSameZone makes zones of random objects and zones of what their Views yield, which must answer alike
// and yield the same again; and a listing of the original objects must leave nothing else behind.
func TestObjectsMakeTheSameZone(t *testing.T) {
	for seed := range uint64(60) {
		opts := Options{
			TTL: 5, Settle: -1, Pods: PodsVerified, Zonal: seed%5 != 0, Env: true, FollowReverse: seed%2 == 0, MultiCluster: true,
			IgnoreEmpty: seed%3 == 0, EndpointPodNames: seed%4 == 0,
		}
		r := rand.New(rand.NewPCG(seed, 9))
		truth := map[cluster.Kind]map[cluster.Key]cluster.Object{}
		for range 150 {
			o := randomObject(r)
			if truth[o.Kind()] == nil {
				truth[o.Kind()] = map[cluster.Key]cluster.Object{}
			}
			truth[o.Kind()][o.Key()] = o
		}
		var objs []cluster.Object
		for _, m := range truth {
			objs = slices.AppendSeq(objs, maps.Values(m))
		}
		z := start(t, opts, objs...)
		saved := slices.Collect(z.View().Objects())
		again := start(t, opts, saved...)
		compareZones(t, z, again)
		filled, err := Fill(opts, func(sink cluster.Sink) error {
			list(sink, saved...)
			return nil
		})
		if err != nil || !filled.Synced() {
			t.Fatalf("%v, synced: %v", err, filled.Synced())
		}
		still := New(opts)
		still.view.Store(filled)
		compareZones(t, z, &testZone{Zone: still, t: t, origins: z.origins})
		compareRest(t, z.View(), filled)
		compareRest(t, z.View(), again.View())
		if d := cmp.Diff(saved, slices.Collect(again.View().Objects()), byKindAndKey, sameAddr, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("-once +twice:\n%s", d)
		}
		again.list(objs...)
		again.settle()
		again.delete(&cluster.Pod{Namespace: "marker", Name: "m"})
		compareZones(t, z, again)
		compareRest(t, z.View(), again.View())
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

var (
	sameAddr     = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})
	byKindAndKey = cmpopts.SortSlices(func(a, b cluster.Object) bool {
		return a.Kind() < b.Kind() || a.Kind() == b.Kind() && a.Key().Compare(b.Key()) < 0
	})
)

// compareRest compares what compareZones does not ask for.
func compareRest(t *testing.T, a, b *View) {
	t.Helper()
	type pods = map[string][]Pod
	podsOf := func(v *View) pods {
		m := pods{}
		for key, l := range v.pods.Prefixed(nil) {
			for _, p := range *l {
				if p.Namespace != "marker" {
					m[string(key)] = append(m[string(key)], *p)
				}
			}
		}
		return m
	}
	if d := cmp.Diff(podsOf(a), podsOf(b), cmp.AllowUnexported(Pod{}), sameAddr); d != "" {
		t.Errorf("pods: %s", d)
	}
	apexesOf := func(v *View) map[string]int {
		m := map[string]int{}
		for key, x := range v.reverse.Prefixed(nil) {
			m[string(key)] = x.labels
		}
		return m
	}
	if d := cmp.Diff(apexesOf(a), apexesOf(b)); d != "" {
		t.Errorf("reverse zones: %s", d)
	}
}

// TestObjects holds what the random objects above do not have in them.
func TestObjects(t *testing.T) {
	opts := Options{Pods: PodsVerified, Env: true, FollowReverse: true, Settle: -1}
	labelled := pod("shop/web-b", "10.1.0.2")
	labelled.Labels = map[string]string{"app": "web"}
	many := slc("shop/many", "many-1", "")
	for i := range 2 * maxPacked {
		many.Endpoints = append(many.Endpoints, cluster.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}), Ready: true})
	}
	z := start(t, opts, append(shop(), labelled, svc("shop/many", "None"), many,
		svc("shop/six", "fd00::12,10.96.0.13", "dns:UDP:53"),
		slc("shop/anon", "anon-7", "", "fd00:0:0::7"),
		external("shop/dotted", "192.0.2.9."),
		&cluster.ServiceCIDR{Name: "kubernetes", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00::/108")}},
		&cluster.Node{Name: "n", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/23"), netip.MustParsePrefix("0.0.0.0/0")}})...)
	again := start(t, opts, slices.Collect(z.View().Objects())...)
	compareZones(t, z, again)
	compareRest(t, z.View(), again.View())
	for _, name := range []string{"_env.six.shop.svc.cluster.local", "_env.shop.svc.cluster.local"} {
		if d := cmp.Diff(show(z.query(name, dns.TypeTXT, 1<<16-1)), show(again.query(name, dns.TypeTXT, 1<<16-1))); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	again.expect("dotted.shop.svc.cluster.local", dns.TypeA, "NOERROR\ndotted.shop.svc.cluster.local. 5 CNAME 192.0.2.9.")
	if p := again.View().PodAt(netip.MustParseAddr("10.1.0.2")); p == nil || p.Labels["app"] != "web" {
		t.Errorf("the pod at 10.1.0.2 is %+v", p)
	}
	// Whoever has had enough gets no more.
	all := len(slices.Collect(z.View().Objects()))
	for enough := range all {
		n := 0
		for range z.View().Objects() {
			if n++; n > enough {
				break
			}
		}
		if n != enough+1 {
			t.Fatalf("%d objects, want %d", n, enough+1)
		}
	}
}

// TestObjectsWhileItChanges: a View yields the same again, whatever the writer does meanwhile.
func TestObjectsWhileItChanges(t *testing.T) {
	z := start(t, Options{Pods: PodsVerified, FollowReverse: true, MultiCluster: true, Zonal: true}, shop()...)
	r := rand.New(rand.NewPCG(1, 10))
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-end:
				return
			default:
			}
			v := z.View()
			once, twice := slices.Collect(v.Objects()), slices.Collect(v.Objects())
			if d := cmp.Diff(once, twice, sameAddr); d != "" {
				t.Error(d)
				return
			}
		}
	})
	for range 3000 {
		o := randomObject(r)
		if r.IntN(3) == 0 {
			z.Apply(cluster.Deleted(o.Kind(), o.Key(), time.Now()))
		} else {
			z.Apply(cluster.Upserted(o, time.Now()))
		}
	}
	z.settle()
	close(end)
	wg.Wait()
}

// TestObjectsOfRanges: the live listing of one of the two kinds that reverse zones come from drops none of the other's.
func TestObjectsOfRanges(t *testing.T) {
	opts := Options{FollowReverse: true}
	node := &cluster.Node{Name: "n", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	z := start(t, opts, node, &cluster.ServiceCIDR{Name: "c", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	again := start(t, opts, slices.Collect(z.View().Objects())...)
	again.Apply(cluster.Change{Op: cluster.Replace, Kind: cluster.KindServiceCIDR})
	again.Apply(cluster.Change{Op: cluster.Synced, Kind: cluster.KindServiceCIDR})
	again.settle()
	again.expect("9.0.1.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN\nSOA 1.10.in-addr.arpa.")
	again.Apply(cluster.Change{Op: cluster.Replace, Kind: cluster.KindNode})
	again.upsert(node)
	again.Apply(cluster.Change{Op: cluster.Synced, Kind: cluster.KindNode})
	again.settle()
	again.expect("9.0.1.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN\nSOA 1.10.in-addr.arpa.")
	again.expect("9.0.96.10.in-addr.arpa", dns.TypePTR, "outside")
}
