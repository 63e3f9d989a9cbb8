package zone

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// bigSlice makes the k-th slice of a headless service, with a hundred endpoints.
func bigSlice(k int) *cluster.Slice {
	s := slc("a/big", fmt.Sprint("big-", k), "http:TCP:80,https:TCP:443")
	for i := range 100 {
		n := k*100 + i
		s.Endpoints = append(s.Endpoints, cluster.Endpoint{
			Addr: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), Hostname: fmt.Sprint("db-", n), Ready: true,
		})
	}
	return s
}

// TestSlicesRepeatEachOther: a record is answered once however many slices have it, and there is an end to looking.
func TestSlicesRepeatEachOther(t *testing.T) {
	for _, c := range []struct {
		slices, want int
	}{{2, 101}, {100, 101}, {maxRepeats/100 + 2, 100}} {
		objs := []cluster.Object{ns("a"), svc("a/big", "None")}
		for k := range c.slices {
			s := bigSlice(0)
			s.Name = fmt.Sprint("big-", k)
			objs = append(objs, s)
		}
		objs = append(objs, slc("a/big", "one-more", "http:TCP:80", "10.1.0.1"))
		z := start(t, Options{}, objs...)
		for _, typ := range []uint16{dns.TypeA, dns.TypeSRV} {
			m := z.query("_http._tcp.big.a.svc.cluster.local", typ, 1<<16-1)
			if len(m.Answer) != c.want || m.Truncated != (c.want == 100) {
				t.Errorf("%d slices: %d %s records, TC %v", c.slices, len(m.Answer), dns.TypeToString[typ], m.Truncated)
			}
		}
		z.expect("7.0.0.10.in-addr.arpa", dns.TypePTR, "NOERROR\n7.0.0.10.in-addr.arpa. 5 PTR db-7.big.a.svc.cluster.local.")
	}
}

// TestManyOwners has one address in many services, which come and go in any order.
func TestManyOwners(t *testing.T) {
	const reverse = "1.0.1.10.in-addr.arpa"
	var objs []cluster.Object
	for i := range 300 {
		key := fmt.Sprint("a/s", i)
		objs = append(objs, svc(key, "None"), slc(key, fmt.Sprintf("s%d-1", i), "", "10.1.0.1 host=h"), slc(key, fmt.Sprintf("s%d-2", i), "", "10.1.0.1"))
	}
	z := start(t, Options{Settle: -1}, append(objs, ns("a"))...)
	if m := z.query(reverse, dns.TypePTR, 1<<16-1); len(m.Answer) != 600 || m.Truncated {
		t.Errorf("%d names of an address, TC %v", len(m.Answer), m.Truncated)
	}
	names := 0
	for range z.View().Names("in-addr.arpa.", z.origins) {
		names++
	}
	if names != 1 {
		t.Errorf("%d reverse names of one address", names)
	}
	z.upsert(svc("a/ip", "10.1.0.1"))
	z.expect(reverse, dns.TypePTR, "NOERROR\n"+reverse+". 5 PTR ip.a.svc.cluster.local.")
	z.delete(svc("a/ip", ""))
	rand.Shuffle(len(objs), func(i, j int) { objs[i], objs[j] = objs[j], objs[i] })
	keep := slices.IndexFunc(objs, func(o cluster.Object) bool { return strings.HasSuffix(o.Key().Name, "-1") })
	of := objs[keep].(*cluster.Slice).Service
	z.delete(slices.DeleteFunc(objs, func(o cluster.Object) bool { return o.Key().Name == of || o.Key().Name == of+"-1" })...)
	z.expect(reverse, dns.TypePTR, fmt.Sprintf("NOERROR\n%s. 5 PTR h.%s.a.svc.cluster.local.", reverse, of))
	if v := z.View(); v.addrs.Len() != 1 || v.addrs.Get([]byte{4, 10, 1, 0, 1}) == nil {
		t.Errorf("the only owner left of an address is not where it is looked for: %d keys", v.addrs.Len())
	}
}

// TestHoldOfManyNames: a move of more names than are looked for is held like any other, until the last one has come back.
func TestHoldOfManyNames(t *testing.T) {
	z := start(t, Options{Settle: time.Hour}, ns("a"), svc("a/big", "None"))
	for k := range 2 + maxLooks/50 {
		z.upsert(bigSlice(k))
	}
	z.delete(bigSlice(0))
	back := bigSlice(0)
	back.Name, back.Endpoints = "back", back.Endpoints[:99]
	z.upsert(back)
	for i := range 100 {
		if m := z.query(fmt.Sprintf("db-%d.big.a.svc.cluster.local", i), dns.TypeA, 512); len(m.Answer) != 1 {
			t.Errorf("db-%d: %s", i, show(m))
		}
	}
	last := bigSlice(0)
	last.Name, last.Endpoints = "last", last.Endpoints[99:]
	z.upsert(last, bigSlice(9999)) // which shows, since nothing is held any more
	for _, name := range []string{"db-7", "db-99", "db-999907"} {
		if m := z.query(name+".big.a.svc.cluster.local", dns.TypeA, 512); len(m.Answer) != 1 {
			t.Errorf("%s: %s", name, show(m))
		}
	}
}

// TestVanished: what is not ready is still there, by its address or by its name.
func TestVanished(t *testing.T) {
	for after, want := range map[string]string{
		"":                            "h i true",
		"10.1.0.1 host=h":             "i true",
		"10.1.0.1 host=x notready":    "i true",
		"10.1.0.9 host=H notready":    "i true",
		"10.1.0.9 host=x notready":    "h i true",
		"fd00::1 host=i notready":     "h true",
		"10.1.0.1,10.1.0.2 notready":  " false",
		"10.1.0.2 notready,10.1.0.3 ": "h true",
	} {
		id := &sliceID{}
		prev := newSlice(id, slc("a/s", "s-1", "", "10.1.0.1 host=h", "10.1.0.2 host=i"), &Options{}, &[2][]endpoint{})
		o := slc("a/s", "s-1", "", slices.DeleteFunc(strings.Split(after, ","), func(s string) bool { return s == "" })...)
		labels, any := vanished(prev, newSlice(id, o, &Options{}, &[2][]endpoint{}), o)
		for i, l := range labels {
			labels[i] = l[1:]
		}
		if got := fmt.Sprint(strings.Join(labels, " "), " ", any); got != want {
			t.Errorf("%q: %q, want %q", after, got, want)
		}
	}
}

// BenchmarkChange has one endpoint of a slice of a hundred come and go, in services of more and more such slices.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWriter(New(Options{TTL: 5}))
			for _, o := range []cluster.Object{ns("a"), svc("a/big", "None")} {
				w.take(cluster.Upserted(o, testTime))
			}
			var states [2]cluster.Change
			for k := range n / 100 {
				s := bigSlice(k)
				w.take(cluster.Upserted(s, testTime))
				if k == n/200 {
					less := *s
					less.Endpoints = append([]cluster.Endpoint(nil), s.Endpoints...)
					less.Endpoints[50].Ready = false
					states = [2]cluster.Change{cluster.Upserted(&less, testTime), cluster.Upserted(s, testTime)}
				}
			}
			w.publish()
			runtime.GC()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				w.take(states[i%2])
				w.publish()
			}
		})
	}
}

// BenchmarkMemory tells what a zone of many services with five endpoints each costs while nothing happens: the live
// heap, how many objects it is made of, and the CPU time that the collector takes to go through them.
func BenchmarkMemory(b *testing.B) {
	const services, endpoints = 50_000, 5
	for _, kind := range []string{"single", "dual", "headless"} {
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				w := newWriter(New(Options{TTL: 5}))
				for i := range 100 {
					w.take(cluster.Upserted(ns(fmt.Sprint("team-", i)), testTime))
				}
				for i := range services {
					for _, o := range costObjects(i, endpoints, kind) {
						w.take(cluster.Upserted(o, testTime))
					}
				}
				w.publish()
				w.batch = nil
				runtime.GC()
				runtime.ReadMemStats(&after)
				mark := gcCPU()
				runtime.GC()
				mark = gcCPU() - mark
				live := float64(after.HeapAlloc - before.HeapAlloc)
				b.ReportMetric(live/1e6, "MB")
				b.ReportMetric(live/services, "B/service")
				b.ReportMetric(float64(after.HeapObjects-before.HeapObjects)/services, "objects/service")
				b.ReportMetric(mark*1e3, "gc-ms")
				b.ReportMetric(0, "ns/op")
				runtime.KeepAlive(w)
			}
		})
	}
}

// costObjects makes the i-th service and its slices.
func costObjects(i, endpoints int, kind string) []cluster.Object {
	key := fmt.Sprintf("team-%d/service-number-%d", i%100, i)
	s := svc(key, "None", "http:TCP:80")
	if kind != "headless" {
		s.Headless, s.ClusterIPs = false, []netip.Addr{netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)})}
	}
	objs := []cluster.Object{s, slc(key, fmt.Sprintf("service-number-%d-x7k2p", i), "http:TCP:8080")}
	if kind == "dual" {
		s.ClusterIPs = append(s.ClusterIPs, addr6(1, i))
		objs = append(objs, slc(key, fmt.Sprintf("service-number-%d-9bqwz", i), "http:TCP:8080"))
	}
	for f, o := range objs[1:] {
		sl := o.(*cluster.Slice)
		for j := range endpoints {
			n := i*endpoints + j
			e := cluster.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 128 + byte(n>>16), byte(n >> 8), byte(n)}), Ready: true}
			if f == 1 {
				e.Addr = addr6(2, n)
			}
			e.PodName = fmt.Sprintf("service-number-%d-7d9f6c5b4-%05d", i, j)
			sl.Endpoints = append(sl.Endpoints, e)
		}
	}
	return objs
}

func addr6(net byte, n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, net, 12: byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func gcCPU() float64 {
	s := []metrics.Sample{{Name: "/cpu/classes/gc/mark/dedicated:cpu-seconds"}, {Name: "/cpu/classes/gc/mark/assist:cpu-seconds"},
		{Name: "/cpu/classes/gc/mark/idle:cpu-seconds"}}
	metrics.Read(s)
	return s[0].Value.Float64() + s[1].Value.Float64() + s[2].Value.Float64()
}
