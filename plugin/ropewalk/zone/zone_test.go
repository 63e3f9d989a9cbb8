package zone

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testZone is a Zone under test: start it, feed it, ask it.
type testZone struct {
	*Zone
	t       testing.TB
	origins *Origins
	local   []netip.Addr
}

// start runs a zone and takes in objs as its first full listing.
func start(t testing.TB, opts Options, objs ...cluster.Object) *testZone {
	t.Helper()
	if opts.TTL == 0 {
		opts.TTL = 5
	}
	zones, multi := []string{"cluster.local.", "in-addr.arpa.", "ip6.arpa."}, []string(nil)
	if opts.FollowReverse {
		zones = zones[:1]
	}
	if opts.MultiCluster {
		multi = []string{"clusterset.local."}
		zones = append(zones, multi...)
	}
	origins, err := NewOrigins(zones, multi)
	if err != nil {
		t.Fatal(err)
	}
	z := &testZone{Zone: New(opts), t: t, origins: origins}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		z.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	z.list(objs...)
	select {
	case <-z.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("not synced")
	}
	return z
}

// list delivers objs as the whole of every kind.
func (z *testZone) list(objs ...cluster.Object) { list(z, objs...) }

func list(to cluster.Sink, objs ...cluster.Object) {
	for k := range cluster.NumKinds {
		to.Apply(cluster.Change{Op: cluster.Replace, Kind: k})
		for _, o := range objs {
			if o.Kind() == k {
				to.Apply(cluster.Upserted(o, time.Now()))
			}
		}
		to.Apply(cluster.Change{Op: cluster.Synced, Kind: k})
	}
}

func (z *testZone) upsert(objs ...cluster.Object) {
	for _, o := range objs {
		z.Apply(cluster.Upserted(o, time.Now()))
	}
	z.settle()
}

func (z *testZone) delete(objs ...cluster.Object) {
	for _, o := range objs {
		z.Apply(cluster.Deleted(o.Kind(), o.Key(), time.Now()))
	}
	z.settle()
}

// settle waits until the writer has served what was applied: a marker, a pod that differs each time, shows that.
func (z *testZone) settle() {
	z.t.Helper()
	at := z.View()
	z.Apply(cluster.Upserted(&cluster.Pod{Namespace: "marker", Name: "m", IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Labels: map[string]string{"at": fmt.Sprintf("%p", at), "now": time.Now().String()}}, time.Now()))
	for deadline := time.Now().Add(10 * time.Second); z.View() == at; {
		if time.Now().After(deadline) {
			z.t.Fatal("the writer does not publish")
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// query asks with room for limit octets and returns the message as a client would read it.
func (z *testZone) query(name string, typ uint16, limit int) *dns.Msg {
	z.t.Helper()
	return query(z.t, z.View(), z.origins, z.local, name, typ, limit)
}

func query(t testing.TB, v *View, o *Origins, local []netip.Addr, name string, typ uint16, limit int) *dns.Msg {
	t.Helper()
	msg, res := v.Answer(question(t, name, typ), Query{Type: typ, Origins: o, Limit: limit, Local: local})
	if res.Status == Outside {
		return nil
	}
	if len(msg) > limit {
		t.Fatalf("%s %s: %d octets, limit %d", name, dns.TypeToString[typ], len(msg), limit)
	}
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil {
		t.Fatalf("%s %s: %v\n%x", name, dns.TypeToString[typ], err, msg)
	}
	if m.Rcode != res.Rcode || !m.Response || !m.Authoritative {
		t.Fatalf("%s %s: header %+v, result %+v", name, dns.TypeToString[typ], m.MsgHdr, res)
	}
	return m
}

func question(t testing.TB, name string, typ uint16) []byte {
	t.Helper()
	buf := make([]byte, 512, 1<<16)
	n, err := dns.PackDomainName(dns.Fqdn(name), buf, 12, nil, false)
	if err != nil {
		t.Fatalf("%q: %v", name, err)
	}
	buf[5] = 1
	buf = binary.BigEndian.AppendUint16(buf[:n], typ)
	return binary.BigEndian.AppendUint16(buf, classIN)
}

// show renders a reply in one line a record: code and flags first, then the answer, the authority and the additional
// section, each in order of its text, since the order on the wire means nothing.
func show(m *dns.Msg) string {
	if m == nil {
		return "outside"
	}
	lines := []string{dns.RcodeToString[m.Rcode]}
	if m.Truncated {
		lines[0] += " tc"
	}
	for i, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		var rrs []string
		for _, rr := range section {
			if soa, ok := rr.(*dns.SOA); ok && i == 1 {
				rrs = append(rrs, "SOA "+soa.Hdr.Name)
				continue
			}
			s := strings.Join(strings.Fields(rr.String()), " ")
			s = strings.Replace(s, " IN ", " ", 1)
			if i == 2 {
				s = "+ " + s
			}
			rrs = append(rrs, s)
		}
		slices.Sort(rrs)
		lines = append(lines, rrs...)
	}
	return strings.Join(lines, "\n")
}

// want is the other side of show: lines with any indentation.
func want(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "\n")
}

func (z *testZone) expect(name string, typ uint16, reply string) {
	z.t.Helper()
	if d := cmp.Diff(want(reply), show(z.query(name, typ, 1<<16-1))); d != "" {
		z.t.Errorf("%s %s (-want +got):\n%s", name, dns.TypeToString[typ], d)
	}
}

func ns(name string) *cluster.Namespace { return &cluster.Namespace{Name: name} }

func addrs(ips ...string) (as []netip.Addr) {
	for _, ip := range ips {
		as = append(as, netip.MustParseAddr(ip))
	}
	return as
}

// svc makes a service from "namespace/name", ClusterIPs ("None" makes it headless) and ports as in "http:TCP:80".
func svc(key, ips string, ports ...string) *cluster.Service {
	s := &cluster.Service{}
	s.Namespace, s.Name, _ = strings.Cut(key, "/")
	if ips == "None" {
		s.Headless = true
	} else if ips != "" {
		s.ClusterIPs = addrs(strings.Split(ips, ",")...)
	}
	for _, p := range ports {
		f := strings.Split(p, ":")
		var n uint16
		fmt.Sscan(f[2], &n)
		s.Ports = append(s.Ports, cluster.ServicePort{Name: f[0], Protocol: cluster.Protocol(f[1]), Port: n})
	}
	return s
}

func external(key, to string) *cluster.Service {
	s := svc(key, "")
	s.Type, s.ExternalName = cluster.ExternalName, to
	return s
}

// slc makes a slice of "namespace/service" from ports as in "http:TCP:80", joined by commas, and endpoints as in
// "10.1.0.1 host=db-0 pod=db-0 zone=a notready".
func slc(key, name, ports string, eps ...string) *cluster.Slice {
	s := &cluster.Slice{Name: name}
	s.Namespace, s.Service, _ = strings.Cut(key, "/")
	for p := range strings.SplitSeq(ports, ",") {
		if p == "" {
			continue
		}
		f := strings.Split(p, ":")
		port := cluster.EndpointPort{Name: f[0], Protocol: cluster.Protocol(f[1])}
		fmt.Sscan(f[2], &port.Port)
		s.Ports = append(s.Ports, port)
	}
	for _, e := range eps {
		f := strings.Fields(e)
		ep := cluster.Endpoint{Addr: netip.MustParseAddr(f[0]), Ready: true}
		if c := ep.Addr.String(); c != f[0] {
			ep.Written = f[0]
		}
		for _, w := range f[1:] {
			k, v, _ := strings.Cut(w, "=")
			switch k {
			case "host":
				ep.Hostname = v
			case "pod":
				ep.PodName = v
			case "zone":
				ep.Zone = v
			case "notready":
				ep.Ready = false
			default:
				panic(w)
			}
		}
		s.Endpoints = append(s.Endpoints, ep)
	}
	return s
}

func pod(key string, ips ...string) *cluster.Pod {
	p := &cluster.Pod{IPs: addrs(ips...)}
	p.Namespace, p.Name, _ = strings.Cut(key, "/")
	return p
}

// shop is the cluster that most tests ask about.
func shop() []cluster.Object {
	return []cluster.Object{
		ns("shop"), ns("empty"), ns("default"),
		svc("default/kubernetes", "10.96.0.1", "https:TCP:443"),
		svc("shop/web", "10.96.0.10", "http:TCP:80", "https:TCP:443"),
		slc("shop/web", "web-1", "http:TCP:8080,https:TCP:8443", "10.1.0.1 pod=web-a", "10.1.0.2 pod=web-b"),
		svc("shop/dual", "10.96.0.11,fd00::11", "dns:UDP:53", "dns-tcp:TCP:53"),
		svc("shop/noport", "10.96.0.12", ":TCP:9000"),
		svc("shop/db", "None", "pg:TCP:5432"),
		slc("shop/db", "db-4", "pg:TCP:5432", "10.1.1.1 host=db-0 zone=a", "10.1.1.2 host=db-1 zone=B", "10.1.1.3 host=db-2 notready"),
		slc("shop/db", "db-6", "pg:TCP:5432", "fd00:1::1 host=db-0 zone=a", "fd00:1::2 host=db-1 zone=B"),
		svc("shop/anon", "None"),
		slc("shop/anon", "anon-4", "", "10.1.2.1", "10.1.2.2"),
		slc("shop/anon", "anon-6", "", "fd00:2::", "fd00:2::5"),
		svc("shop/down", "None", "x:TCP:1"),
		slc("shop/down", "down-1", "x:TCP:1", "10.1.3.1 notready"),
		svc("shop/pending", "", "x:TCP:1"),
		external("shop/ext", "www.example.com"),
		external("shop/alias", "web.shop.svc.cluster.local"),
		external("shop/alias2", "alias.shop.svc.cluster.local."),
		external("shop/dangling", "gone.shop.svc.cluster.local"),
		external("shop/ip", "192.0.2.7"),
		external("shop/loop", "pool.shop.svc.cluster.local"),
		external("shop/pool", "loop.shop.svc.cluster.local"),
		svc("hidden/web", "10.96.0.66", "http:TCP:80"), // its namespace does not exist
		slc("shop/orphan", "orphan-1", "x:TCP:1", "10.1.9.1"),
		pod("shop/web-a", "10.1.0.1", "fd00:9::1"),
	}
}

func TestRecords(t *testing.T) {
	z := start(t, Options{Pods: PodsVerified, Env: true, Zonal: true}, shop()...)
	const (
		nodata   = "NOERROR\nSOA cluster.local."
		nxdomain = "NXDOMAIN\nSOA cluster.local."
	)
	for _, c := range []struct {
		name  string
		types string
		want  string
	}{
		{"web.shop.svc.cluster.local", "A", "NOERROR\nweb.shop.svc.cluster.local. 5 A 10.96.0.10"},
		{"web.shop.svc.cluster.local", "AAAA TXT MX CNAME NS SOA PTR ANY HTTPS DS", nodata},
		{"dual.shop.svc.cluster.local", "A", "NOERROR\ndual.shop.svc.cluster.local. 5 A 10.96.0.11"},
		{"dual.shop.svc.cluster.local", "AAAA", "NOERROR\ndual.shop.svc.cluster.local. 5 AAAA fd00::11"},
		{"WEB.Shop.sVc.cluster.LOCAL", "A", "NOERROR\nWEB.Shop.sVc.cluster.LOCAL. 5 A 10.96.0.10"},
		{"gone.shop.svc.cluster.local", "A AAAA SRV TXT SOA NS", nxdomain},
		{"web.gone.svc.cluster.local", "A", nxdomain},
		{"web.hidden.svc.cluster.local", "A", nxdomain},
		{"orphan.shop.svc.cluster.local", "A", nxdomain},
		{"pending.shop.svc.cluster.local", "A AAAA SRV", nodata},

		// Headless.
		{"db.shop.svc.cluster.local", "A", "NOERROR\ndb.shop.svc.cluster.local. 5 A 10.1.1.1\ndb.shop.svc.cluster.local. 5 A 10.1.1.2"},
		{"db.shop.svc.cluster.local", "AAAA", "NOERROR\ndb.shop.svc.cluster.local. 5 AAAA fd00:1::1\ndb.shop.svc.cluster.local. 5 AAAA fd00:1::2"},
		{"down.shop.svc.cluster.local", "A SRV", nxdomain},
		{"db-0.db.shop.svc.cluster.local", "A", "NOERROR\ndb-0.db.shop.svc.cluster.local. 5 A 10.1.1.1"},
		{"db-0.db.shop.svc.cluster.local", "AAAA", "NOERROR\ndb-0.db.shop.svc.cluster.local. 5 AAAA fd00:1::1"},
		{"db-2.db.shop.svc.cluster.local", "A AAAA", nxdomain},
		{"10-1-1-1.db.shop.svc.cluster.local", "A", nxdomain},
		{"10-1-2-1.anon.shop.svc.cluster.local", "A", "NOERROR\n10-1-2-1.anon.shop.svc.cluster.local. 5 A 10.1.2.1"},
		{"10-1-2-1.anon.shop.svc.cluster.local", "AAAA SRV", nodata},
		{"fd00-2--0.anon.shop.svc.cluster.local", "AAAA", "NOERROR\nfd00-2--0.anon.shop.svc.cluster.local. 5 AAAA fd00:2::"},
		{"fd00-2--5.anon.shop.svc.cluster.local", "AAAA", "NOERROR\nfd00-2--5.anon.shop.svc.cluster.local. 5 AAAA fd00:2::5"},
		{"fd00-2--.anon.shop.svc.cluster.local", "AAAA", nxdomain},
		{"fd00-2-0-0-0-0-0-5.anon.shop.svc.cluster.local", "AAAA", nxdomain},
		{"anon.shop.svc.cluster.local", "A", "NOERROR\nanon.shop.svc.cluster.local. 5 A 10.1.2.1\nanon.shop.svc.cluster.local. 5 A 10.1.2.2"},
		{"anon.shop.svc.cluster.local", "SRV", nodata},
		{"10-1-0-1.web.shop.svc.cluster.local", "A", "NOERROR\n10-1-0-1.web.shop.svc.cluster.local. 5 A 10.1.0.1"},

		// SRV.
		{"_http._tcp.web.shop.svc.cluster.local", "SRV", `NOERROR
			_http._tcp.web.shop.svc.cluster.local. 5 SRV 0 100 80 web.shop.svc.cluster.local.
			+ web.shop.svc.cluster.local. 5 A 10.96.0.10`},
		{"_HTTP._Tcp.web.shop.svc.cluster.local", "SRV", `NOERROR
			_HTTP._Tcp.web.shop.svc.cluster.local. 5 SRV 0 100 80 web.shop.svc.cluster.local.
			+ web.shop.svc.cluster.local. 5 A 10.96.0.10`},
		{"web.shop.svc.cluster.local", "SRV", `NOERROR
			web.shop.svc.cluster.local. 5 SRV 0 50 443 web.shop.svc.cluster.local.
			web.shop.svc.cluster.local. 5 SRV 0 50 80 web.shop.svc.cluster.local.
			+ web.shop.svc.cluster.local. 5 A 10.96.0.10`},
		{"dual.shop.svc.cluster.local", "SRV", `NOERROR
			dual.shop.svc.cluster.local. 5 SRV 0 25 53 dual.shop.svc.cluster.local.
			+ dual.shop.svc.cluster.local. 5 A 10.96.0.11
			+ dual.shop.svc.cluster.local. 5 AAAA fd00::11`},
		{"_http._udp.web.shop.svc.cluster.local", "SRV A", nxdomain},
		{"_gone._tcp.web.shop.svc.cluster.local", "SRV", nxdomain},
		{"_http._tcp.web.shop.svc.cluster.local", "A", "NOERROR\n_http._tcp.web.shop.svc.cluster.local. 5 A 10.96.0.10"},
		{"_._tcp.web.shop.svc.cluster.local", "A", "NOERROR\n_._tcp.web.shop.svc.cluster.local. 5 A 10.96.0.10"},
		{"http.tcp.web.shop.svc.cluster.local", "A", "NOERROR\nhttp.tcp.web.shop.svc.cluster.local. 5 A 10.96.0.10"},
		{"_tcp.web.shop.svc.cluster.local", "A SRV", nodata},
		{"_udp.web.shop.svc.cluster.local", "SRV", nxdomain},
		{"_udp.dual.shop.svc.cluster.local", "SRV", nodata},
		{"_tcp.noport.shop.svc.cluster.local", "SRV", nxdomain},
		{"_tcp.db.shop.svc.cluster.local", "SRV", nodata},
		{"_tcp.down.shop.svc.cluster.local", "SRV", nxdomain},
		{"_pg._tcp.db.shop.svc.cluster.local", "SRV", `NOERROR
			_pg._tcp.db.shop.svc.cluster.local. 5 SRV 0 25 5432 db-0.db.shop.svc.cluster.local.
			_pg._tcp.db.shop.svc.cluster.local. 5 SRV 0 25 5432 db-1.db.shop.svc.cluster.local.
			+ db-0.db.shop.svc.cluster.local. 5 A 10.1.1.1
			+ db-0.db.shop.svc.cluster.local. 5 AAAA fd00:1::1
			+ db-1.db.shop.svc.cluster.local. 5 A 10.1.1.2
			+ db-1.db.shop.svc.cluster.local. 5 AAAA fd00:1::2`},
		{"db-1.db.shop.svc.cluster.local", "SRV", `NOERROR
			db-1.db.shop.svc.cluster.local. 5 SRV 0 50 5432 db-1.db.shop.svc.cluster.local.
			+ db-1.db.shop.svc.cluster.local. 5 A 10.1.1.2
			+ db-1.db.shop.svc.cluster.local. 5 AAAA fd00:1::2`},

		// Aliases. The chase of names outside of the zone is the handler's.
		{"ext.shop.svc.cluster.local", "A AAAA CNAME TXT SRV HTTPS ANY", "NOERROR\next.shop.svc.cluster.local. 5 CNAME www.example.com."},
		{"alias.shop.svc.cluster.local", "A", `NOERROR
			alias.shop.svc.cluster.local. 5 CNAME web.shop.svc.cluster.local.
			web.shop.svc.cluster.local. 5 A 10.96.0.10`},
		{"alias2.shop.svc.cluster.local", "A", `NOERROR
			alias.shop.svc.cluster.local. 5 CNAME web.shop.svc.cluster.local.
			alias2.shop.svc.cluster.local. 5 CNAME alias.shop.svc.cluster.local.
			web.shop.svc.cluster.local. 5 A 10.96.0.10`},
		{"alias2.shop.svc.cluster.local", "CNAME", "NOERROR\nalias2.shop.svc.cluster.local. 5 CNAME alias.shop.svc.cluster.local."},
		{"alias.shop.svc.cluster.local", "AAAA", `NOERROR
			alias.shop.svc.cluster.local. 5 CNAME web.shop.svc.cluster.local.
			SOA cluster.local.`},
		{"dangling.shop.svc.cluster.local", "A", `NXDOMAIN
			dangling.shop.svc.cluster.local. 5 CNAME gone.shop.svc.cluster.local.
			SOA cluster.local.`},
		{"loop.shop.svc.cluster.local", "A", "SERVFAIL"},
		{"ip.shop.svc.cluster.local", "A CNAME TXT", nxdomain},
		{"x.ext.shop.svc.cluster.local", "A", nxdomain},
		{"_._.ext.shop.svc.cluster.local", "A", "NOERROR\n_._.ext.shop.svc.cluster.local. 5 CNAME www.example.com."},
		{"_http._tcp.ext.shop.svc.cluster.local", "A", nxdomain},

		// Reverse names.
		{"10.0.96.10.in-addr.arpa", "PTR", "NOERROR\n10.0.96.10.in-addr.arpa. 5 PTR web.shop.svc.cluster.local."},
		{"10.0.96.10.in-addr.arpa", "A TXT", "NOERROR\nSOA in-addr.arpa."},
		{"1.1.1.10.in-addr.arpa", "PTR", "NOERROR\n1.1.1.10.in-addr.arpa. 5 PTR db-0.db.shop.svc.cluster.local."},
		{"2.0.1.10.in-addr.arpa", "PTR", "NOERROR\n2.0.1.10.in-addr.arpa. 5 PTR 10-1-0-2.web.shop.svc.cluster.local."},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa", "PTR",
			"NOERROR\n1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa. 5 PTR db-0.db.shop.svc.cluster.local."},
		{"96.10.in-addr.arpa", "PTR A", "NOERROR\nSOA in-addr.arpa."},
		{"10.in-addr.arpa", "PTR", "NOERROR\nSOA in-addr.arpa."},
		{"97.10.in-addr.arpa", "PTR", "NXDOMAIN\nSOA in-addr.arpa."},
		{"1.0.d.f.ip6.arpa", "PTR", "NXDOMAIN\nSOA ip6.arpa."},
		{"0.0.d.f.ip6.arpa", "PTR", "NOERROR\nSOA ip6.arpa."},
		{"0.0.0.d.f.ip6.arpa", "PTR", "NOERROR\nSOA ip6.arpa."},
		{"7.0.0.0.0.0.d.f.ip6.arpa", "PTR", "NXDOMAIN\nSOA ip6.arpa."},
		{"66.0.96.10.in-addr.arpa", "PTR", "NXDOMAIN\nSOA in-addr.arpa."},
		{"1.9.1.10.in-addr.arpa", "PTR", "NXDOMAIN\nSOA in-addr.arpa."},
		{"3.1.1.10.in-addr.arpa", "PTR", "NXDOMAIN\nSOA in-addr.arpa."},
		{"010.0.96.10.in-addr.arpa", "PTR", "NXDOMAIN\nSOA in-addr.arpa."},
		{"1.10.0.96.10.in-addr.arpa", "PTR", "NXDOMAIN\nSOA in-addr.arpa."},
		{"web.shop.svc.in-addr.arpa", "A", "NXDOMAIN\nSOA in-addr.arpa."},

		// Pods.
		{"10-1-0-1.shop.pod.cluster.local", "A", "NOERROR\n10-1-0-1.shop.pod.cluster.local. 5 A 10.1.0.1"},
		{"10-1-0-1.shop.pod.cluster.local", "AAAA TXT", nodata},
		{"fd00-9--1.shop.pod.cluster.local", "AAAA", "NOERROR\nfd00-9--1.shop.pod.cluster.local. 5 AAAA fd00:9::1"},
		{"fd00-9-0--1.shop.pod.cluster.local", "AAAA", nxdomain},
		{"10-1-0-1.default.pod.cluster.local", "A", nxdomain},
		{"10-1-0-9.shop.pod.cluster.local", "A", nxdomain},
		{"x.10-1-0-1.shop.pod.cluster.local", "A", "NOERROR\nx.10-1-0-1.shop.pod.cluster.local. 5 A 10.1.0.1"},
		{"shop.pod.cluster.local", "A", nodata},
		{"gone.pod.cluster.local", "A", nxdomain},
		{"pod.cluster.local", "A", nodata},

		// What exists for the sake of what is below.
		{"cluster.local", "A AAAA TXT", nodata},
		{"svc.cluster.local", "A", nodata},
		{"shop.svc.cluster.local", "A", nodata},
		{"empty.svc.cluster.local", "A", nodata},
		{"hidden.svc.cluster.local", "A", nxdomain},
		{"gone.cluster.local", "A", nxdomain},
		{"web.cluster.local", "A", nxdomain},
		{"dns.cluster.local", "A", nodata},

		{"dns-version.cluster.local", "TXT", "NOERROR\ndns-version.cluster.local. 28800 TXT \"1.1.0\""},
		{"dns-version.cluster.local", "A", nodata},

		// Topology zones.
		{"a.pin._zone.db.shop.svc.cluster.local", "A", "NOERROR\na.pin._zone.db.shop.svc.cluster.local. 5 A 10.1.1.1"},
		{"b.pin._zone.db.shop.svc.cluster.local", "A", "NOERROR\nb.pin._zone.db.shop.svc.cluster.local. 5 A 10.1.1.2"},
		{"c.pin._zone.db.shop.svc.cluster.local", "A", nodata},
		{"c.prefer._zone.db.shop.svc.cluster.local", "A", "NOERROR\nc.prefer._zone.db.shop.svc.cluster.local. 5 A 10.1.1.1\nc.prefer._zone.db.shop.svc.cluster.local. 5 A 10.1.1.2"},
		{"a.prefer._zone.db.shop.svc.cluster.local", "A", "NOERROR\na.prefer._zone.db.shop.svc.cluster.local. 5 A 10.1.1.1"},
		{"a.pin._zone.db.shop.svc.cluster.local", "SRV", `NOERROR
			a.pin._zone.db.shop.svc.cluster.local. 5 SRV 0 50 5432 db-0.db.shop.svc.cluster.local.
			+ db-0.db.shop.svc.cluster.local. 5 A 10.1.1.1
			+ db-0.db.shop.svc.cluster.local. 5 AAAA fd00:1::1`},
		{"a.pin._zone.web.shop.svc.cluster.local", "A", nxdomain},
		{"a.pin._zone.down.shop.svc.cluster.local", "A TXT", nodata},
		{"a.other._zone.db.shop.svc.cluster.local", "A", nxdomain},
		{"pin._zone.db.shop.svc.cluster.local", "A", nodata},
		{"_zone.db.shop.svc.cluster.local", "A", nodata},

		// The environment.
		{"_env.noport.shop.svc.cluster.local", "TXT", `NOERROR
			_env.noport.shop.svc.cluster.local. 5 TXT "NOPORT_SERVICE_HOST=10.96.0.12" "NOPORT_SERVICE_PORT=9000" "NOPORT_PORT=tcp://10.96.0.12:9000" "NOPORT_PORT_9000_TCP=tcp://10.96.0.12:9000" "NOPORT_PORT_9000_TCP_PROTO=tcp" "NOPORT_PORT_9000_TCP_PORT=9000" "NOPORT_PORT_9000_TCP_ADDR=10.96.0.12"`},
		{"_env.noport.shop.svc.cluster.local", "A", nodata},
		{"_env.db.shop.svc.cluster.local", "TXT", nxdomain},
		{"_env.gone.svc.cluster.local", "TXT", nxdomain},
		{"_env.empty.svc.cluster.local", "TXT", `NOERROR
			_env.empty.svc.cluster.local. 5 TXT "KUBERNETES_SERVICE_HOST=10.96.0.1" "KUBERNETES_SERVICE_PORT=443" "KUBERNETES_SERVICE_PORT_HTTPS=443" "KUBERNETES_PORT=tcp://10.96.0.1:443" "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443" "KUBERNETES_PORT_443_TCP_PROTO=tcp" "KUBERNETES_PORT_443_TCP_PORT=443" "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1"`},

		{"example.com", "A", "outside"},
		{"local", "A", "outside"},
	} {
		for _, typ := range strings.Fields(c.types) {
			z.expect(c.name, dns.StringToType[typ], c.want)
		}
	}
}

// testTime is when things happen where it does not matter.
var testTime = time.Unix(1_800_000_000, 0)
