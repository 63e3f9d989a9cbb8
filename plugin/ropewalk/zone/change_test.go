package zone

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func TestChangesFollow(t *testing.T) {
	z := start(t, Options{Settle: -1}, ns("a"), svc("a/web", "10.96.0.1", "http:TCP:80"))
	const web, nothing = "web.a.svc.cluster.local", "NXDOMAIN\nSOA cluster.local."
	reverse := func(ip string) string { return strings.TrimSuffix(must(dns.ReverseAddr(ip)), ".") }
	z.expect(web, dns.TypeA, "NOERROR\nweb.a.svc.cluster.local. 5 A 10.96.0.1")

	// Its address changes: PTR records and the serial go along.
	serial := z.View().Serial(false)
	z.upsert(svc("a/web", "10.96.0.2", "http:TCP:80"))
	z.expect(web, dns.TypeA, "NOERROR\nweb.a.svc.cluster.local. 5 A 10.96.0.2")
	z.expect(reverse("10.96.0.1"), dns.TypePTR, "NXDOMAIN\nSOA in-addr.arpa.")
	z.expect(reverse("10.96.0.2"), dns.TypePTR, "NOERROR\n2.0.96.10.in-addr.arpa. 5 PTR web.a.svc.cluster.local.")
	if got := z.View().Serial(false); int32(got-serial) <= 0 {
		t.Errorf("serial %d after %d", got, serial)
	}

	// The same object again changes nothing, not even the serial.
	serial = z.View().Serial(false)
	z.upsert(svc("a/web", "10.96.0.2", "http:TCP:80"))
	if got := z.View().Serial(false); got != serial {
		t.Errorf("serial %d after %d, though nothing changed", got, serial)
	}

	// It becomes headless, and an alias, and a service again.
	z.upsert(svc("a/web", "None", "http:TCP:80"))
	z.expect(web, dns.TypeA, nothing)
	z.expect(reverse("10.96.0.2"), dns.TypePTR, "NXDOMAIN\nSOA in-addr.arpa.")
	z.upsert(slc("a/web", "web-1", "http:TCP:80", "10.1.0.1 host=x"))
	z.expect(web, dns.TypeA, "NOERROR\nweb.a.svc.cluster.local. 5 A 10.1.0.1")
	z.expect("x."+web, dns.TypeA, "NOERROR\nx.web.a.svc.cluster.local. 5 A 10.1.0.1")
	z.expect(reverse("10.1.0.1"), dns.TypePTR, "NOERROR\n1.0.1.10.in-addr.arpa. 5 PTR x.web.a.svc.cluster.local.")
	z.upsert(external("a/web", "example.com"))
	z.expect(web, dns.TypeA, "NOERROR\nweb.a.svc.cluster.local. 5 CNAME example.com.")
	z.expect(reverse("10.1.0.1"), dns.TypePTR, "NXDOMAIN\nSOA in-addr.arpa.")
	z.upsert(svc("a/web", "None", "http:TCP:80"))
	z.expect(web, dns.TypeA, "NOERROR\nweb.a.svc.cluster.local. 5 A 10.1.0.1")

	// A slice changes hands.
	z.upsert(svc("a/other", "None"), slc("a/other", "web-1", "http:TCP:80", "10.1.0.1 host=x"))
	z.expect(web, dns.TypeA, nothing)
	z.expect("other.a.svc.cluster.local", dns.TypeA, "NOERROR\nother.a.svc.cluster.local. 5 A 10.1.0.1")
	z.expect(reverse("10.1.0.1"), dns.TypePTR, "NOERROR\n1.0.1.10.in-addr.arpa. 5 PTR x.other.a.svc.cluster.local.")

	// The namespace goes and comes back.
	z.delete(ns("a"))
	z.expect("other.a.svc.cluster.local", dns.TypeA, nothing)
	z.expect("a.svc.cluster.local", dns.TypeA, nothing)
	z.expect(reverse("10.1.0.1"), dns.TypePTR, "NXDOMAIN\nSOA in-addr.arpa.")
	z.upsert(ns("a"))
	z.expect("other.a.svc.cluster.local", dns.TypeA, "NOERROR\nother.a.svc.cluster.local. 5 A 10.1.0.1")

	// Everything goes, and nothing is left behind.
	z.delete(ns("a"), svc("a/web", ""), svc("a/other", ""), slc("a/web", "web-1", ""))
	v := z.View()
	if n := v.services.Len() + v.imports.Len() + v.addrs.Len(); n != 0 || v.Counts(false) != (Counts{}) {
		t.Errorf("%d entries left, counts %+v", n, v.Counts(false))
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestListingReplaces(t *testing.T) {
	z := start(t, Options{}, ns("a"), ns("b"), svc("a/keep", "10.96.0.1"), svc("a/drop", "10.96.0.2"), svc("b/x", "10.96.0.3"),
		svc("a/h", "None"), slc("a/h", "h-1", "", "10.1.0.1"), slc("a/h", "h-2", "", "10.1.0.2"), pod("a/p", "10.1.0.1"))
	// While a listing runs, what is known stays.
	z.Apply(cluster.Change{Op: cluster.Replace, Kind: cluster.KindService})
	z.upsert(svc("a/keep", "10.96.0.1"))
	z.expect("drop.a.svc.cluster.local", dns.TypeA, "NOERROR\ndrop.a.svc.cluster.local. 5 A 10.96.0.2")
	// It breaks off, starts over, and ends.
	z.list(ns("a"), svc("a/keep", "10.96.0.1"), svc("a/h", "None"), slc("a/h", "h-2", "", "10.1.0.2"))
	z.settle()
	z.expect("keep.a.svc.cluster.local", dns.TypeA, "NOERROR\nkeep.a.svc.cluster.local. 5 A 10.96.0.1")
	z.expect("h.a.svc.cluster.local", dns.TypeA, "NOERROR\nh.a.svc.cluster.local. 5 A 10.1.0.2")
	for _, gone := range []string{"drop.a", "x.b", "b"} {
		z.expect(gone+".svc.cluster.local", dns.TypeA, "NXDOMAIN\nSOA cluster.local.")
	}
	if z.View().PodAt(netip.MustParseAddr("10.1.0.1")) != nil {
		t.Error("a pod outlives the listing that lacks it")
	}
}

func TestBeforeSync(t *testing.T) {
	z := New(Options{TTL: 5})
	o, _ := NewOrigins([]string{"cluster.local."}, nil)
	if m := query(t, z.View(), o, nil, "web.a.svc.cluster.local", dns.TypeA, 512); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("a name that may exist: %v", m)
	}
	if m := query(t, z.View(), o, nil, "cluster.local", dns.TypeSOA, 512); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
		t.Errorf("SOA: %v", m)
	}
}

// TestMoveBetweenSlices has readers watch while endpoints move from one slice to another, in both orders of events.
func TestMoveBetweenSlices(t *testing.T) {
	for _, order := range []string{"added first", "removed first"} {
		t.Run(order, func(t *testing.T) {
			// The hold must outlast the pause between the two halves of a move by far, whatever the machine does.
			z := start(t, Options{Settle: time.Minute}, ns("a"), svc("a/db", "None", "pg:TCP:5432"),
				slc("a/db", "db-1", "pg:TCP:5432", "10.1.0.1 host=db-0"))
			var stop atomic.Bool
			var wg sync.WaitGroup
			for _, name := range []string{"db.a.svc.cluster.local", "db-0.db.a.svc.cluster.local", "_pg._tcp.db.a.svc.cluster.local"} {
				wg.Go(func() {
					for !stop.Load() {
						if m := z.query(name, dns.TypeA, 512); len(m.Answer) != 1 {
							t.Errorf("%s: in between, the answer was %s", name, show(m))
							return
						}
					}
				})
			}
			for i := range 50 {
				from, to := fmt.Sprintf("db-%d", i+1), fmt.Sprintf("db-%d", i+2)
				gone := cluster.Deleted(cluster.KindSlice, cluster.Key{Namespace: "a", Name: from}, time.Now())
				if i%2 == 0 {
					gone = cluster.Upserted(slc("a/db", from, "pg:TCP:5432"), time.Now())
				}
				come := cluster.Upserted(slc("a/db", to, "pg:TCP:5432", "10.1.0.1 host=db-0"), time.Now())
				if order == "removed first" {
					z.Apply(gone)
					z.settle()
					z.Apply(come)
				} else {
					z.Apply(come)
					z.settle()
					z.Apply(gone)
				}
				z.settle()
			}
			stop.Store(true)
			wg.Wait()
		})
	}
}

func TestHoldEnds(t *testing.T) {
	z := start(t, Options{Settle: 20 * time.Millisecond}, ns("a"), svc("a/db", "None"),
		slc("a/db", "db-1", "", "10.1.0.1 host=db-0"), slc("a/db", "db-2", "", "10.1.0.2"))
	eventually := func(name, reply string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); show(z.query(name, dns.TypeA, 512)) != want(reply); {
			if time.Now().After(deadline) {
				z.expect(name, dns.TypeA, reply)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	// Vanished endpoints go when nothing comes in their place.
	z.delete(slc("a/db", "db-1", ""))
	eventually("db-0.db.a.svc.cluster.local", "NXDOMAIN\nSOA cluster.local.")
	z.delete(slc("a/db", "db-2", ""))
	eventually("db.a.svc.cluster.local", "NXDOMAIN\nSOA cluster.local.")
}

// TestNotReadyIsNotHeld: an endpoint that is marked not ready leaves at once, and so does the service that is deleted.
func TestNotReadyIsNotHeld(t *testing.T) {
	z := start(t, Options{Settle: time.Hour}, ns("a"), svc("a/db", "None"), slc("a/db", "db-1", "", "10.1.0.1 host=db-0"))
	z.upsert(slc("a/db", "db-1", "", "10.1.0.1 host=db-0 notready"))
	z.expect("db.a.svc.cluster.local", dns.TypeA, "NXDOMAIN\nSOA cluster.local.")
	z.upsert(slc("a/db", "db-1", "", "10.1.0.1 host=db-0"))
	z.delete(slc("a/db", "db-1", ""))
	z.expect("db.a.svc.cluster.local", dns.TypeA, "NOERROR\ndb.a.svc.cluster.local. 5 A 10.1.0.1")
	z.delete(svc("a/db", ""))
	z.expect("db.a.svc.cluster.local", dns.TypeA, "NXDOMAIN\nSOA cluster.local.")
}

// TestAnyOrderSameAnswers makes random changes to a zone and compares it with one that is given the result at once:
// what is answered must depend on what is, not on how it came about.
func TestAnyOrderSameAnswers(t *testing.T) {
	for seed := range uint64(60) {
		opts := Options{
			TTL: 5, Settle: -1, Pods: PodsVerified, Zonal: true, Env: true, FollowReverse: seed%2 == 0, MultiCluster: true,
			IgnoreEmpty: seed%3 == 0, EndpointPodNames: seed%4 == 0,
		}
		r := rand.New(rand.NewPCG(seed, 7))
		z := start(t, opts)
		truth := map[string]cluster.Object{}
		for range 10 {
			for range 1 + r.IntN(20) {
				o := randomObject(r)
				key := fmt.Sprint(o.Kind(), o.Key())
				if r.IntN(3) == 0 {
					delete(truth, key)
					z.Apply(cluster.Deleted(o.Kind(), o.Key(), time.Now()))
				} else {
					truth[key] = o
					z.Apply(cluster.Upserted(o, time.Now()))
				}
			}
			if r.IntN(5) == 0 {
				z.list(slices.Collect(maps.Values(truth))...)
			}
			z.settle()
			fresh := start(t, opts, slices.Collect(maps.Values(truth))...)
			compareZones(t, z, fresh)
			if t.Failed() {
				t.Fatalf("seed %d, with %d objects", seed, len(truth))
			}
		}
	}
}

// TestNothingIsLeftBehind makes random changes to a writer that holds on to what vanishes. Once it has let go, it must
// know no more than one that is given the result at once, and nothing when everything is gone.
func TestNothingIsLeftBehind(t *testing.T) {
	opts := Options{TTL: 5, Settle: time.Hour, Pods: PodsVerified, MultiCluster: true, FollowReverse: true}
	later := time.Now().Add(2 * time.Hour)
	origins, err := NewOrigins([]string{"cluster.local.", "clusterset.local."}, []string{"clusterset.local."})
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(60) {
		opts.IgnoreEmpty = seed%2 == 0
		r := rand.New(rand.NewPCG(seed, 8))
		w := newWriter(New(opts))
		truth := map[string]cluster.Object{}
		for range 300 {
			o := randomObject(r)
			key := fmt.Sprint(o.Kind(), o.Key())
			if r.IntN(3) == 0 {
				delete(truth, key)
				w.take(cluster.Deleted(o.Kind(), o.Key(), time.Time{}))
			} else {
				truth[key] = o
				w.take(cluster.Upserted(o, time.Time{}))
			}
			if r.IntN(10) == 0 {
				w.release(time.Now())
				w.publish()
			}
		}
		w.release(later)
		w.publish()
		fresh := newWriter(New(opts))
		for _, o := range truth {
			fresh.take(cluster.Upserted(o, time.Time{}))
		}
		fresh.publish()
		compareZones(t, &testZone{Zone: w.z, t: t, origins: origins}, &testZone{Zone: fresh.z, t: t, origins: origins})
		for _, o := range truth {
			w.take(cluster.Deleted(o.Kind(), o.Key(), time.Time{}))
		}
		w.release(later)
		w.publish()
		v := w.z.View()
		n := v.services.Len() + v.imports.Len() + v.addrs.Len() + v.pods.Len() + v.reverse.Len()
		n += len(w.spaces) + len(w.podsBy) + len(w.apexes) + len(w.held)
		if n != 0 || v.counts != [2]Counts{} {
			t.Errorf("%d things left behind, counts %+v", n, v.counts)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestMadeAnewWhileHeld has a service and its namespace go and come back while the service is held, all in one batch.
func TestMadeAnewWhileHeld(t *testing.T) {
	w := newWriter(New(Options{Settle: time.Hour}))
	slice := slc("a/db", "db-1", "", "10.1.0.1")
	for _, o := range []cluster.Object{ns("a"), svc("a/db", "None"), slice} {
		w.take(cluster.Upserted(o, time.Time{}))
	}
	w.publish()
	for _, o := range []cluster.Object{slice, svc("a/db", ""), ns("a")} {
		w.take(cluster.Deleted(o.Kind(), o.Key(), time.Time{}))
	}
	w.take(cluster.Upserted(ns("a"), time.Time{}))
	w.take(cluster.Upserted(svc("a/db", "10.96.0.1"), time.Time{}))
	w.release(time.Now())
	w.publish()
	if n := w.z.View().services.Len(); n != 2 {
		t.Errorf("%d entries, want those of the namespace and of the service", n)
	}
	w.take(cluster.Deleted(cluster.KindService, cluster.Key{Namespace: "a", Name: "db"}, time.Time{}))
	w.take(cluster.Deleted(cluster.KindNamespace, cluster.Key{Name: "a"}, time.Time{}))
	w.publish()
	if n := w.z.View().services.Len(); n != 0 {
		t.Errorf("%d entries are left of what was deleted", n)
	}
}

// TestSliceOfNoService: labels tell capitals apart, and the names of services have none.
func TestSliceOfNoService(t *testing.T) {
	z := start(t, Options{}, ns("a"), svc("a/db", "None"), slc("a/db", "db-1", "", "10.1.0.1"), slc("a/DB", "db-2", "", "10.1.0.2"))
	const db = "db.a.svc.cluster.local"
	z.expect(db, dns.TypeA, "NOERROR\n"+db+". 5 A 10.1.0.1")
	z.upsert(slc("a/db", "db-2", "", "10.1.0.2"))
	z.expect(db, dns.TypeA, "NOERROR\n"+db+". 5 A 10.1.0.1\n"+db+". 5 A 10.1.0.2")
	z.upsert(slc("a/DB", "db-2", "", "10.1.0.2"))
	z.delete(slc("a/DB", "db-2", ""))
	z.expect(db, dns.TypeA, "NOERROR\n"+db+". 5 A 10.1.0.1")
	z.delete(svc("a/db", ""))
	z.expect(db, dns.TypeA, "NXDOMAIN\nSOA cluster.local.")
}

// TestSliceOfBoth: an imported slice may carry the label of a Service, too, below which its cluster is no name.
func TestSliceOfBoth(t *testing.T) {
	s := slc("a/db", "db-1", "pg:TCP:5432", "10.1.0.1 host=h")
	s.Import, s.Cluster = "db", "c1"
	z := start(t, Options{MultiCluster: true}, ns("a"), svc("a/db", "None"), &cluster.ServiceImport{Namespace: "a", Name: "db", Headless: true}, s)
	for zone, target := range map[string]string{"cluster.local": "h.db", "clusterset.local": "h.c1.db"} {
		z.expect("db.a.svc."+zone, dns.TypeSRV, fmt.Sprintf("NOERROR\ndb.a.svc.%[1]s. 5 SRV 0 100 5432 %[2]s.a.svc.%[1]s.\n+ %[2]s.a.svc.%[1]s. 5 A 10.1.0.1", zone, target))
		z.expect(target+".a.svc."+zone, dns.TypeA, fmt.Sprintf("NOERROR\n%[2]s.a.svc.%[1]s. 5 A 10.1.0.1", zone, target))
	}
}

func compareZones(t *testing.T, a, b *testZone) {
	t.Helper()
	va, vb := a.View(), b.View()
	if va.Counts(false) != vb.Counts(false) || va.Counts(true) != vb.Counts(true) {
		t.Errorf("counts %+v and %+v", va.counts, vb.counts)
	}
	names := map[string]bool{"cluster.local.": true, "_tcp.s0.n0.svc.cluster.local.": true, "a.pin._zone.s1.n0.svc.cluster.local.": true}
	for _, v := range []*View{va, vb} {
		for _, zone := range []string{"cluster.local.", "clusterset.local.", "in-addr.arpa.", "ip6.arpa."} {
			for wire, types := range v.Names(zone, a.origins) {
				name, _, _ := dns.UnpackDomainName(wire, 0)
				names[name] = true
				for _, typ := range types {
					if m := query(t, v, a.origins, nil, name, typ, 1<<16-1); m.Rcode != dns.RcodeSuccess && len(m.Answer) == 0 {
						t.Errorf("%s is listed but does not exist: %s", name, show(m))
					}
				}
			}
		}
	}
	for name := range names {
		for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeTXT} {
			ma := query(t, va, a.origins, nil, name, typ, 1<<16-1)
			mb := query(t, vb, b.origins, nil, name, typ, 1<<16-1)
			if d := cmp.Diff(show(mb), show(ma)); d != "" {
				t.Errorf("%s %s (-from scratch +after changes):\n%s", name, dns.TypeToString[typ], d)
				return
			}
		}
	}
}

// randomObject makes one of a few dozen objects, in one of many states.
func randomObject(r *rand.Rand) cluster.Object {
	n := fmt.Sprintf("n%d", r.IntN(3))
	name := fmt.Sprintf("s%d", r.IntN(4))
	key := n + "/" + name
	ports := [][]string{nil, {":TCP:80"}, {"http:TCP:80", "dns:UDP:53"}, {"dns:UDP:53", "dns-tcp:TCP:53"}}[r.IntN(4)]
	switch r.IntN(12) {
	case 0:
		return ns(n)
	case 1:
		return pod(n+"/p"+fmt.Sprint(r.IntN(5)), fmt.Sprintf("10.1.0.%d", r.IntN(9)), fmt.Sprintf("fd00::%d", r.IntN(9)))
	case 2:
		return external(key, []string{"example.com", "s1.n1.svc.cluster.local", "s0.n0.svc.cluster.local", "10.0.0.1"}[r.IntN(4)])
	case 3, 4:
		ip := 1 + int(n[1]-'0')*16 + int(name[1]-'0')
		return svc(key, []string{"None", "", fmt.Sprintf("10.96.0.%d", ip), fmt.Sprintf("10.96.0.%d,fd00:96::%d", ip, ip)}[r.IntN(4)], ports...)
	case 5:
		return &cluster.Node{Name: name, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/%d", r.IntN(3), 14+r.IntN(4)))}}
	case 6:
		return &cluster.ServiceImport{Namespace: n, Name: name, Headless: r.IntN(2) == 0, IPs: addrs("10.200.0.1"),
			Ports: []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80}}}
	}
	var eps []string
	for range r.IntN(5) {
		ip := fmt.Sprintf("10.1.0.%d", r.IntN(12))
		if r.IntN(3) == 0 {
			ip = fmt.Sprintf("fd00::%d", r.IntN(12))
		}
		ep := ip + []string{"", " host=h" + fmt.Sprint(r.IntN(3)), " pod=p" + fmt.Sprint(r.IntN(3)), " notready"}[r.IntN(4)] +
			[]string{"", " zone=a", " zone=B"}[r.IntN(3)]
		// As in the API, no two endpoints of a slice share an address.
		if !slices.ContainsFunc(eps, func(e string) bool { return strings.Fields(e)[0] == ip }) {
			eps = append(eps, ep)
		}
	}
	s := slc(key, fmt.Sprintf("%s-%d", name, r.IntN(3)), strings.Join(ports, ","), eps...)
	switch r.IntN(8) {
	case 0:
		s.Service = fmt.Sprintf("s%d", r.IntN(4))
	case 1:
		s.Service, s.Import, s.Cluster = "", name, fmt.Sprintf("c%d", r.IntN(2))
	case 2:
		s.Import, s.Cluster = name, fmt.Sprintf("c%d", r.IntN(2))
	case 3:
		s.Service = strings.ToUpper(name) // which no service is called
	}
	return s
}
