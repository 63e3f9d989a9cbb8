package zone

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// many makes a headless service of n endpoints in slices of a hundred.
func many(n int) []cluster.Object {
	objs := []cluster.Object{ns("a"), svc("a/big", "None", "http:TCP:80")}
	for i := 0; i < n; i += 100 {
		var eps []string
		for j := i; j < min(i+100, n); j++ {
			eps = append(eps, fmt.Sprintf("10.1.%d.%d", j/250, j%250))
		}
		objs = append(objs, slc("a/big", fmt.Sprintf("big-%d", i), "http:TCP:80", eps...))
	}
	return objs
}

func TestTruncation(t *testing.T) {
	const big = "big.a.svc.cluster.local"
	for _, n := range []int{28, 29, 64, 65, 1000} {
		z := start(t, Options{}, many(n)...)
		for _, limit := range []int{512, 1232, 4096, 1<<16 - 1} {
			m := z.query(big, dns.TypeA, limit)
			fits := (limit - 12 - len(big) - 2 - 4) / 16
			if want := min(n, fits); len(m.Answer) != want || m.Truncated != (n > fits) {
				t.Errorf("%d records, %d octets: %d in the answer, TC %v; want %d", n, limit, len(m.Answer), m.Truncated, want)
			}
			seen := map[string]bool{}
			for _, rr := range m.Answer {
				seen[rr.String()] = true
			}
			if len(seen) != len(m.Answer) {
				t.Errorf("%d records, %d octets: %d of %d differ", n, limit, len(seen), len(m.Answer))
			}
		}
	}
}

// TestAdditionalDoesNotTruncate: TC says that the answer is not whole; the additional section is a courtesy (RFC 2181
// section 9). A thousand SRV records fit into 64 KiB, their targets' addresses do not all.
func TestAdditionalDoesNotTruncate(t *testing.T) {
	z := start(t, Options{}, many(1000)...)
	m := z.query("_http._tcp.big.a.svc.cluster.local", dns.TypeSRV, 1<<16-1)
	if len(m.Answer) != 1000 || m.Truncated || len(m.Extra) == 0 || len(m.Extra) == 1000 {
		t.Errorf("%d SRV records, TC %v, %d addresses", len(m.Answer), m.Truncated, len(m.Extra))
	}
	m = z.query("_http._tcp.big.a.svc.cluster.local", dns.TypeSRV, 512)
	if len(m.Answer) == 0 || !m.Truncated || len(m.Extra) != 0 {
		t.Errorf("%d SRV records, TC %v, %d addresses", len(m.Answer), m.Truncated, len(m.Extra))
	}
}

func TestRotation(t *testing.T) {
	for _, n := range []int{3, 64, 150} {
		z := start(t, Options{}, many(n)...)
		first := map[string]bool{}
		for i := range uint32(n) {
			q := Query{Type: dns.TypeA, Origins: z.origins, Limit: 1<<16 - 1, Rotate: i}
			msg, _ := z.View().Answer(question(t, "big.a.svc.cluster.local", dns.TypeA), q)
			m := new(dns.Msg)
			if err := m.Unpack(msg); err != nil || len(m.Answer) != n {
				t.Fatal(err, len(m.Answer))
			}
			first[m.Answer[0].String()] = true
		}
		if len(first) != n {
			t.Errorf("of %d addresses, %d come first at times", n, len(first))
		}
	}
}

func TestLongNames(t *testing.T) {
	label := func(n int) string { return string(make63()[:n]) }
	host := label(63)
	z := start(t, Options{}, ns(label(63)), svc(label(63)+"/"+label(63), "None", "http:TCP:80"),
		slc(label(63)+"/"+label(63), "s", "http:TCP:80", "10.1.0.1 host="+host))
	name := host + "." + label(63) + "." + label(63) + ".svc.cluster.local" // 3*64 + 19: the longest there can be here
	z.expect(name, dns.TypeA, "NOERROR\n"+name+". 5 A 10.1.0.1")
	z.expect("1.0.1.10.in-addr.arpa", dns.TypePTR, "NOERROR\n1.0.1.10.in-addr.arpa. 5 PTR "+name+".")
	// Names of 255 octets that lead nowhere.
	z.expect(label(63)+"."+label(63)+"."+label(63)+"."+label(43)+".cluster.local", dns.TypeA, "NXDOMAIN\nSOA cluster.local.")
}

func make63() []byte {
	b := make([]byte, 63)
	for i := range b {
		b[i] = 'a' + byte(i%26)
	}
	return b
}

func TestNameservers(t *testing.T) {
	z := start(t, Options{}, ns("kube-system"), svc("kube-system/kube-dns", "10.96.0.10,fd00::a", "dns:UDP:53"),
		slc("kube-system/kube-dns", "x", "dns:UDP:53", "10.1.0.53", "10.1.0.54"))
	z.local = addrs("10.1.0.53")
	z.expect("cluster.local", dns.TypeNS, `NOERROR
		cluster.local. 5 NS kube-dns.kube-system.svc.cluster.local.
		+ kube-dns.kube-system.svc.cluster.local. 5 A 10.96.0.10
		+ kube-dns.kube-system.svc.cluster.local. 5 AAAA fd00::a`)
	z.expect("in-addr.arpa", dns.TypeNS, `NOERROR
		in-addr.arpa. 5 NS kube-dns.kube-system.svc.cluster.local.
		+ kube-dns.kube-system.svc.cluster.local. 5 A 10.96.0.10
		+ kube-dns.kube-system.svc.cluster.local. 5 AAAA fd00::a`)
	z.expect("ns.dns.cluster.local", dns.TypeA, "NOERROR\nns.dns.cluster.local. 5 A 10.96.0.10")
	z.local = addrs("192.0.2.53")
	z.expect("cluster.local", dns.TypeNS, `NOERROR
		cluster.local. 5 NS ns.dns.cluster.local.
		+ ns.dns.cluster.local. 5 A 192.0.2.53`)
	z.expect("ns.dns.cluster.local", dns.TypeA, "NOERROR\nns.dns.cluster.local. 5 A 192.0.2.53")
	z.expect("ns.dns.cluster.local", dns.TypeAAAA, "NOERROR\nSOA cluster.local.")
	z.local = nil
	z.expect("cluster.local", dns.TypeNS, "NOERROR\nSOA cluster.local.")
	// A headless DNS service is called by its endpoints' names.
	z.upsert(svc("kube-system/kube-dns", "None", "dns:UDP:53"))
	z.local = addrs("10.1.0.53")
	z.expect("cluster.local", dns.TypeNS, `NOERROR
		cluster.local. 5 NS 10-1-0-53.kube-dns.kube-system.svc.cluster.local.
		cluster.local. 5 NS 10-1-0-54.kube-dns.kube-system.svc.cluster.local.
		+ 10-1-0-53.kube-dns.kube-system.svc.cluster.local. 5 A 10.1.0.53
		+ 10-1-0-54.kube-dns.kube-system.svc.cluster.local. 5 A 10.1.0.54`)
}

func TestReverseZonesFollowRanges(t *testing.T) {
	prefixes := func(s ...string) (ps []netip.Prefix) {
		for _, p := range s {
			ps = append(ps, netip.MustParsePrefix(p))
		}
		return ps
	}
	services := &cluster.ServiceCIDR{Name: "kubernetes", CIDRs: prefixes("10.96.0.0/12", "fd00:96::/112")}
	node := &cluster.Node{Name: "n", PodCIDRs: prefixes("10.244.3.0/24")}
	z := start(t, Options{FollowReverse: true}, ns("a"), services, node, svc("a/web", "10.97.0.1,fd00:96::1"), svc("a/h", "None"),
		slc("a/h", "h", "", "10.244.3.7"))
	z.expect("1.0.97.10.in-addr.arpa", dns.TypePTR, "NOERROR\n1.0.97.10.in-addr.arpa. 5 PTR web.a.svc.cluster.local.")
	z.expect("2.0.97.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN\nSOA 97.10.in-addr.arpa.")
	z.expect("0.97.10.in-addr.arpa", dns.TypePTR, "NOERROR\nSOA 97.10.in-addr.arpa.")
	z.expect("7.3.244.10.in-addr.arpa", dns.TypePTR, "NOERROR\n7.3.244.10.in-addr.arpa. 5 PTR 10-244-3-7.h.a.svc.cluster.local.")
	z.expect("3.244.10.in-addr.arpa", dns.TypeSOA, "NOERROR\n3.244.10.in-addr.arpa. 5 SOA ns.dns.3.244.10.in-addr.arpa. hostmaster.3.244.10.in-addr.arpa. "+
		fmt.Sprint(z.View().Serial(false))+" 7200 1800 86400 5")
	z.expect("1.0.112.10.in-addr.arpa", dns.TypePTR, "outside")
	z.expect("7.4.244.10.in-addr.arpa", dns.TypePTR, "outside")
	v6 := "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa"
	z.expect("1.0.0.0."+v6, dns.TypePTR, "NOERROR\n1.0.0.0."+v6+". 5 PTR web.a.svc.cluster.local.")
	// Two objects may have one range; it stays until both are gone.
	twin := &cluster.ServiceCIDR{Name: "twin", CIDRs: prefixes("10.96.0.0/12")}
	z.upsert(twin)
	z.delete(services)
	z.expect("2.0.97.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN\nSOA 97.10.in-addr.arpa.")
	z.expect("1.0.0.0."+v6, dns.TypePTR, "outside")
	z.delete(twin)
	z.expect("2.0.97.10.in-addr.arpa", dns.TypePTR, "outside")
	z.upsert(&cluster.Node{Name: "n", PodCIDRs: prefixes("10.244.4.0/24")})
	z.expect("7.3.244.10.in-addr.arpa", dns.TypePTR, "outside")
	z.expect("7.4.244.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN\nSOA 4.244.10.in-addr.arpa.")
}

func TestAnswerDoesNotAllocate(t *testing.T) {
	z := start(t, Options{Pods: PodsVerified, Zonal: true}, append(shop(), many(300)...)...)
	v := z.View()
	buf := make([]byte, 0, 1<<16)
	for _, c := range []struct {
		name string
		typ  uint16
	}{
		{"web.shop.svc.cluster.local", dns.TypeA},
		{"WEB.shop.svc.cluster.local", dns.TypeAAAA},
		{"web.shop.svc.cluster.local", dns.TypeSRV},
		{"_http._tcp.web.shop.svc.cluster.local", dns.TypeSRV},
		{"gone.shop.svc.cluster.local", dns.TypeA},
		{"www.example.com.shop.svc.cluster.local", dns.TypeA},
		{"alias2.shop.svc.cluster.local", dns.TypeA},
		{"db.shop.svc.cluster.local", dns.TypeA},
		{"_pg._tcp.db.shop.svc.cluster.local", dns.TypeSRV},
		{"db-0.db.shop.svc.cluster.local", dns.TypeAAAA},
		{"a.pin._zone.db.shop.svc.cluster.local", dns.TypeA},
		{"10-1-2-1.anon.shop.svc.cluster.local", dns.TypeA},
		{"big.a.svc.cluster.local", dns.TypeA},
		{"_http._tcp.big.a.svc.cluster.local", dns.TypeSRV},
		{"10-1-0-1.shop.pod.cluster.local", dns.TypeA},
		{"10.0.96.10.in-addr.arpa", dns.TypePTR},
		{"1.1.1.10.in-addr.arpa", dns.TypePTR},
		{"96.10.in-addr.arpa", dns.TypePTR},
		{"0.0.d.f.ip6.arpa", dns.TypePTR},
		{"cluster.local", dns.TypeSOA},
		{"example.com", dns.TypeA},
	} {
		q := question(t, c.name, c.typ)
		query := Query{Type: c.typ, Origins: z.origins, Limit: 1232}
		if n := testing.AllocsPerRun(100, func() { v.Answer(append(buf, q...), query) }); n != 0 {
			t.Errorf("%s %s: %v allocations", c.name, dns.TypeToString[c.typ], n)
		}
	}
}

// FuzzAnswer asks with any bytes for a name: there must be an answer that parses and fits, or none.
func FuzzAnswer(f *testing.F) {
	z := New(Options{TTL: 5, Pods: PodsVerified, Env: true, Zonal: true, MultiCluster: true, Settle: -1})
	origins, err := NewOrigins([]string{"cluster.local.", "clusterset.local.", "in-addr.arpa.", "ip6.arpa."}, []string{"clusterset.local."})
	if err != nil {
		f.Fatal(err)
	}
	w := newWriter(z)
	for _, o := range append(shop(), many(150)...) {
		w.take(cluster.Upserted(o, testTime))
	}
	for k := range cluster.NumKinds {
		w.take(cluster.Change{Op: cluster.Synced, Kind: k})
	}
	w.publish()
	for _, name := range []string{"web.shop.svc.cluster.local.", "_pg._tcp.db.shop.svc.cluster.local.", "1.0.1.10.in-addr.arpa.",
		"a.pin._zone.db.shop.svc.cluster.local.", "_env.shop.svc.cluster.local.", "loop.shop.svc.cluster.local."} {
		buf := make([]byte, 255)
		n, _ := dns.PackDomainName(name, buf, 0, nil, false)
		f.Add(buf[:n], uint16(dns.TypeSRV), uint16(512), uint32(3))
	}
	f.Fuzz(func(t *testing.T, wire []byte, typ, limit uint16, rotate uint32) {
		limit = max(limit, 512)
		msg := append(make([]byte, 12), wire...)
		msg[5] = 1
		msg = binary.BigEndian.AppendUint16(msg, typ)
		msg = binary.BigEndian.AppendUint16(msg, classIN)
		local := addrs("10.1.0.1", "10.1.1.1", "10.0.0.1")
		out, res := z.View().Answer(msg, Query{Type: typ, Origins: origins, Limit: int(limit), Rotate: rotate, Local: local})
		if res.Status == Malformed || res.Status == Outside {
			return
		}
		if len(out) > int(limit) {
			t.Fatalf("%d octets, limit %d", len(out), limit)
		}
		// What follows the name may be rubbish, which is the caller's to refuse: look at well-formed questions only.
		var d name
		if !d.parse(msg[12:]) || 12+len(d.wire)+4 != len(msg) {
			return
		}
		m := new(dns.Msg)
		if err := m.Unpack(out); err != nil {
			t.Fatalf("%v: %x", err, out)
		}
		for _, rr := range append(m.Answer, m.Extra...) {
			if rr.Header().Class != dns.ClassINET {
				t.Fatalf("class of %v", rr)
			}
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	for _, n := range []int{1_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("names=%d", n), func(b *testing.B) {
			z, questions := benchZone(b, n)
			o, err := NewOrigins([]string{"cluster.local."}, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			buf := make([]byte, 0, 1<<16)
			for i := 0; b.Loop(); i++ {
				q := Query{Type: dns.TypeA, Origins: o, Limit: 1232}
				if _, res := z.View().Answer(append(buf, questions[i%n]...), q); res.Rcode != 0 {
					b.Fatal(res)
				}
			}
		})
	}
}

// benchZone makes a zone of n services in a hundred namespaces, and the questions for them in random order.
func benchZone(b *testing.B, n int) (*Zone, [][]byte) {
	z := New(Options{TTL: 5})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); z.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-done })
	for i := range 100 {
		z.Apply(cluster.Upserted(ns(fmt.Sprintf("team-%d", i)), testTime))
	}
	order := rand.Perm(n)
	// The questions lie one after the other, as they come out of a socket's buffer: they are warm.
	questions, buf := make([][]byte, n), make([]byte, 0, 64*n)
	for i := range n {
		s := svc(fmt.Sprintf("team-%d/service-%d", i%100, i), "", "http:TCP:80")
		s.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}
		z.Apply(cluster.Upserted(s, testTime))
		j := order[i]
		wire, _ := wireName(fmt.Sprintf("service-%d.team-%d.svc.cluster.local", j, j%100))
		at := len(buf)
		buf = append(append(buf, make([]byte, headerLen)...), wire...)
		buf = append(buf, 0, typeA, 0, classIN)
		questions[i] = buf[at:]
	}
	for k := range cluster.NumKinds {
		z.Apply(cluster.Change{Op: cluster.Synced, Kind: k})
	}
	<-z.Ready()
	runtime.GC()
	return z, questions
}

// TestNamesTooLong: a name of more than 255 octets is left out, since a message with one is of no use to anyone.
func TestNamesTooLong(t *testing.T) {
	long := strings.Repeat("x", 63)
	zone := strings.Repeat("zone.", 14)
	name := long + "." + long + ".svc." + zone
	z := start(t, Options{}, ns(long), svc(long+"/"+long, "None"),
		slc(long+"/"+long, "s-1", "h:TCP:80", "10.1.0.1 host="+long, "10.1.0.2 host=y"),
		ns("b"), svc("b/s", "None"), slc("b/s", "s-2", "", "10.1.0.1"))
	var err error
	if z.origins, err = NewOrigins([]string{zone, "in-addr.arpa."}, nil); err != nil {
		t.Fatal(err)
	}
	z.expect(name, dns.TypeSRV, fmt.Sprintf("NOERROR\n%[1]s 5 SRV 0 50 80 y.%[1]s\n+ y.%[1]s 5 A 10.1.0.2", name))
	z.expect("1.0.1.10.in-addr.arpa", dns.TypePTR, "NOERROR\n1.0.1.10.in-addr.arpa. 5 PTR 10-1-0-1.s.b.svc."+zone)
	z.local = addrs("10.1.0.1")
	z.expect(zone, dns.TypeNS, "NOERROR\n"+zone+" 5 NS 10-1-0-1.s.b.svc."+zone+"\n"+
		zone+" 5 NS y."+name+"\n+ 10-1-0-1.s.b.svc."+zone+" 5 A 10.1.0.1\n+ y."+name+" 5 A 10.1.0.2")
}

// TestZoneWithinZone: what an alias leads to is looked for in the zone it is in.
func TestZoneWithinZone(t *testing.T) {
	z := start(t, Options{MultiCluster: true}, ns("a"), external("a/x", "web.a.svc.set.cluster.local"))
	var err error
	if z.origins, err = NewOrigins([]string{"cluster.local.", "set.cluster.local."}, []string{"set.cluster.local."}); err != nil {
		t.Fatal(err)
	}
	msg := question(t, "x.a.svc.cluster.local", dns.TypeA)
	if _, res := z.View().Answer(msg, Query{Type: dns.TypeA, Origins: z.origins, Limit: 512}); res.Status != Chase {
		t.Errorf("%+v, want a chase", res)
	}
}

// TestRepetitions: a record is there once, however many ports, slices and services would make it.
func TestRepetitions(t *testing.T) {
	z := start(t, Options{}, ns("a"), svc("a/s", "None"), svc("a/t", "None"), svc("a/v", "10.96.0.1", "a:UDP:2", "b:TCP:1", "c:TCP:2"),
		slc("a/s", "s-1", "b:TCP:2,a:TCP:1,c:UDP:2", "10.1.0.1 host=h", "10.1.0.2 host=h"), slc("a/t", "t-1", "", "10.1.0.1"),
		slc("a/s", "s-2", "c:UDP:2", "10.1.0.1 host=h", "10.1.0.3 host=h"), slc("a/s", "s-3", "", "10.1.0.1 host=other"))
	z.expect("s.a.svc.cluster.local", dns.TypeSRV, `NOERROR
		s.a.svc.cluster.local. 5 SRV 0 11 1 h.s.a.svc.cluster.local.
		s.a.svc.cluster.local. 5 SRV 0 11 2 h.s.a.svc.cluster.local.
		+ h.s.a.svc.cluster.local. 5 A 10.1.0.1
		+ h.s.a.svc.cluster.local. 5 A 10.1.0.2
		+ h.s.a.svc.cluster.local. 5 A 10.1.0.3`)
	z.expect("h.s.a.svc.cluster.local", dns.TypeA, `NOERROR
		h.s.a.svc.cluster.local. 5 A 10.1.0.1
		h.s.a.svc.cluster.local. 5 A 10.1.0.2
		h.s.a.svc.cluster.local. 5 A 10.1.0.3`)
	z.expect("v.a.svc.cluster.local", dns.TypeSRV, `NOERROR
		v.a.svc.cluster.local. 5 SRV 0 33 1 v.a.svc.cluster.local.
		v.a.svc.cluster.local. 5 SRV 0 33 2 v.a.svc.cluster.local.
		+ v.a.svc.cluster.local. 5 A 10.96.0.1`)
	z.expect("1.0.1.10.in-addr.arpa", dns.TypePTR, `NOERROR
		1.0.1.10.in-addr.arpa. 5 PTR 10-1-0-1.t.a.svc.cluster.local.
		1.0.1.10.in-addr.arpa. 5 PTR h.s.a.svc.cluster.local.
		1.0.1.10.in-addr.arpa. 5 PTR other.s.a.svc.cluster.local.`)
}

// TestLettersOfOthers: names are folded as the DNS does, so that none grows over the 63 octets of a label.
func TestLettersOfOthers(t *testing.T) {
	long := strings.Repeat("Ⱥ", 31) // its small letter takes one octet more
	z := start(t, Options{EndpointPodNames: true}, ns("a"), svc("a/s", "None"), slc("a/s", "s-1", "", "10.1.0.1 pod="+long))
	m := z.query("1.0.1.10.in-addr.arpa", dns.TypePTR, 512)
	if len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}
}

// TestCountsEnd: a header counts 65,535 records, and a transfer may ask for a message that has room for more.
func TestCountsEnd(t *testing.T) {
	objs := []cluster.Object{ns("a"), svc("a/s", "None")}
	for k := range 66 {
		s := &cluster.Slice{Namespace: "a", Service: "s", Name: fmt.Sprint("s-", k)}
		for i := range 1000 {
			a := netip.AddrFrom4([4]byte{10, byte(k), byte(i >> 8), byte(i)})
			s.Endpoints = append(s.Endpoints, cluster.Endpoint{Addr: a, Ready: true})
		}
		objs = append(objs, s)
	}
	m := start(t, Options{}, objs...).query("s.a.svc.cluster.local", dns.TypeA, 1<<24)
	if len(m.Answer) != 1<<16-1 || !m.Truncated {
		t.Errorf("%d of 66000 records, TC %v", len(m.Answer), m.Truncated)
	}
}

// TestManyServers: whoever names this server's address in their slices adds servers to the zone, but not without end.
func TestManyServers(t *testing.T) {
	objs := []cluster.Object{ns("a")}
	for i := range 2 * maxServers {
		s := fmt.Sprintf("a/s%d", i)
		objs = append(objs, svc(s, "None"), slc(s, fmt.Sprint("s-", i), "", "10.1.0.1"))
	}
	z := start(t, Options{}, objs...)
	z.local = addrs("10.1.0.1")
	if n := len(z.query("cluster.local", dns.TypeNS, 1<<16-1).Answer); n != maxServers {
		t.Errorf("%d servers", n)
	}
}
