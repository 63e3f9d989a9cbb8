package zone

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func TestTTL(t *testing.T) {
	z := start(t, Options{TTL: 3600}, shop()...)
	z.expect("web.shop.svc.cluster.local", dns.TypeA, "NOERROR\nweb.shop.svc.cluster.local. 3600 A 10.96.0.10")
	// An SOA record's own TTL is 300 seconds at most, as in CoreDNS; what it says of negative answers is the option's.
	soa := z.query("cluster.local", dns.TypeSOA, 512).Answer[0].(*dns.SOA)
	if soa.Hdr.Ttl != 300 || soa.Minttl != 3600 {
		t.Errorf("SOA record: TTL %d, minimum %d", soa.Hdr.Ttl, soa.Minttl)
	}
}

func TestIgnoreEmptyService(t *testing.T) {
	z := start(t, Options{IgnoreEmpty: true}, ns("a"), svc("a/full", "10.96.0.1"), slc("a/full", "s", "", "10.1.0.1"),
		svc("a/empty", "10.96.0.2"), slc("a/empty", "t", "", "10.1.0.2 notready"))
	z.expect("full.a.svc.cluster.local", dns.TypeA, "NOERROR\nfull.a.svc.cluster.local. 5 A 10.96.0.1")
	z.expect("empty.a.svc.cluster.local", dns.TypeA, "NXDOMAIN\nSOA cluster.local.")
	z.expect("2.0.96.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN\nSOA in-addr.arpa.")
	z.upsert(slc("a/empty", "t", "", "10.1.0.2"))
	z.expect("empty.a.svc.cluster.local", dns.TypeA, "NOERROR\nempty.a.svc.cluster.local. 5 A 10.96.0.2")
}

func TestNamespaces(t *testing.T) {
	z := start(t, Options{Namespaces: []string{"shop"}, Pods: PodsInsecure}, append(shop(), ns("other"), svc("other/web", "10.96.0.99"))...)
	z.expect("web.shop.svc.cluster.local", dns.TypeA, "NOERROR\nweb.shop.svc.cluster.local. 5 A 10.96.0.10")
	for _, name := range []string{"web.other.svc.cluster.local", "other.svc.cluster.local", "10-0-0-1.other.pod.cluster.local"} {
		z.expect(name, dns.TypeA, "NXDOMAIN\nSOA cluster.local.")
	}
	z.expect("99.0.96.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN\nSOA in-addr.arpa.")
}

func TestPodModes(t *testing.T) {
	const name, nothing = "192-0-2-7.shop.pod.cluster.local", "NXDOMAIN\nSOA cluster.local."
	disabled := start(t, Options{}, shop()...)
	disabled.expect(name, dns.TypeA, nothing)
	disabled.expect("shop.pod.cluster.local", dns.TypeA, nothing)
	disabled.expect("pod.cluster.local", dns.TypeA, nothing)
	insecure := start(t, Options{Pods: PodsInsecure}, shop()...)
	insecure.expect(name, dns.TypeA, "NOERROR\n"+name+". 5 A 192.0.2.7")
	insecure.expect("2001-db8--7.shop.pod.cluster.local", dns.TypeAAAA, "NOERROR\n2001-db8--7.shop.pod.cluster.local. 5 AAAA 2001:db8::7")
	insecure.expect("192-0-2-256.shop.pod.cluster.local", dns.TypeA, nothing)
	insecure.expect("192-0-2-7.gone.pod.cluster.local", dns.TypeA, nothing)
}

func TestEndpointPodNames(t *testing.T) {
	z := start(t, Options{EndpointPodNames: true}, ns("a"), svc("a/h", "None"),
		slc("a/h", "s", "", "10.1.0.1 pod=web-x", "10.1.0.2 pod=web.y", "10.1.0.3 host=named pod=web-z", "10.1.0.4 pod="+strings.Repeat("p", 64)))
	for name, ip := range map[string]string{"web-x": "10.1.0.1", "10-1-0-2": "10.1.0.2", "named": "10.1.0.3", "10-1-0-4": "10.1.0.4"} {
		z.expect(name+".h.a.svc.cluster.local", dns.TypeA, "NOERROR\n"+name+".h.a.svc.cluster.local. 5 A "+ip)
	}
	z.expect("10-1-0-1.h.a.svc.cluster.local", dns.TypeA, "NXDOMAIN\nSOA cluster.local.")
}

func TestNoEndpoints(t *testing.T) {
	opts := Options{NoEndpoints: true}
	if opts.Interest().Has(cluster.KindSlice) {
		t.Error("slices are asked for")
	}
}

// TestChainsOfAliases: up to 16 aliases are followed, more are a loop as far as a client can tell.
func TestChainsOfAliases(t *testing.T) {
	objs := []cluster.Object{ns("a"), svc("a/a0", "10.96.0.1")}
	for i := 1; i <= 17; i++ {
		objs = append(objs, external(fmt.Sprintf("a/a%d", i), fmt.Sprintf("a%d.a.svc.cluster.local", i-1)))
	}
	z := start(t, Options{}, objs...)
	if m := z.query("a16.a.svc.cluster.local", dns.TypeA, 4096); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 17 {
		t.Errorf("16 aliases: %s", show(m))
	}
	z.expect("a17.a.svc.cluster.local", dns.TypeA, "SERVFAIL")
}

// TestEnvironmentOfANamespace: a service called kubernetes goes before the default namespace's, and names come in order.
func TestEnvironmentOfANamespace(t *testing.T) {
	z := start(t, Options{Env: true}, ns("default"), ns("a"), svc("default/kubernetes", "10.96.0.1", "https:TCP:443"),
		svc("a/kubernetes", "10.96.0.7", "x:TCP:1"), svc("a/zz", "10.96.0.8"), svc("a/b-long-name", "10.96.0.9"), svc("a/h", "None"))
	m := z.query("_env.a.svc.cluster.local", dns.TypeTXT, 4096)
	var hosts []string
	for _, s := range m.Answer[0].(*dns.TXT).Txt {
		if strings.Contains(s, "_SERVICE_HOST=") {
			hosts = append(hosts, s)
		}
	}
	const order = "B_LONG_NAME_SERVICE_HOST=10.96.0.9 KUBERNETES_SERVICE_HOST=10.96.0.7 ZZ_SERVICE_HOST=10.96.0.8"
	if got := strings.Join(hosts, " "); got != order {
		t.Errorf("hosts %s, want %s", got, order)
	}
	// One record does not come in parts: too large for UDP means TC and nothing.
	if m := z.query("_env.a.svc.cluster.local", dns.TypeTXT, 200); !m.Truncated || len(m.Answer) != 0 {
		t.Errorf("in 200 octets: %s", show(m))
	}
}

func TestMultiCluster(t *testing.T) {
	imported := func(name string, headless bool, ips ...string) *cluster.ServiceImport {
		return &cluster.ServiceImport{Namespace: "a", Name: name, Headless: headless, IPs: addrs(ips...),
			Ports: []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80}}}
	}
	from := func(source, name string, eps ...string) *cluster.Slice {
		s := slc("a/", name, "http:TCP:80", eps...)
		s.Import, s.Cluster = "db", source
		return s
	}
	z := start(t, Options{MultiCluster: true}, ns("a"), imported("web", false, "10.200.0.1"), imported("db", true),
		from("east", "db-east", "10.1.0.1 host=db-0"), from("west", "db-west", "10.2.0.1 host=db-0"))
	z.expect("web.a.svc.clusterset.local", dns.TypeA, "NOERROR\nweb.a.svc.clusterset.local. 5 A 10.200.0.1")
	z.expect("web.a.svc.cluster.local", dns.TypeA, "NXDOMAIN\nSOA cluster.local.")
	z.expect("db.a.svc.clusterset.local", dns.TypeA, "NOERROR\ndb.a.svc.clusterset.local. 5 A 10.1.0.1\ndb.a.svc.clusterset.local. 5 A 10.2.0.1")
	z.expect("db-0.west.db.a.svc.clusterset.local", dns.TypeA, "NOERROR\ndb-0.west.db.a.svc.clusterset.local. 5 A 10.2.0.1")
	z.expect("db-0.north.db.a.svc.clusterset.local", dns.TypeA, "NXDOMAIN\nSOA clusterset.local.")
	z.expect("west.db.a.svc.clusterset.local", dns.TypeA, "NOERROR\nSOA clusterset.local.")
	z.expect("_http._tcp.db.a.svc.clusterset.local", dns.TypeSRV, `NOERROR
		_http._tcp.db.a.svc.clusterset.local. 5 SRV 0 50 80 db-0.east.db.a.svc.clusterset.local.
		_http._tcp.db.a.svc.clusterset.local. 5 SRV 0 50 80 db-0.west.db.a.svc.clusterset.local.
		+ db-0.east.db.a.svc.clusterset.local. 5 A 10.1.0.1
		+ db-0.west.db.a.svc.clusterset.local. 5 A 10.2.0.1`)
	z.expect("1.0.1.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN\nSOA in-addr.arpa.")
}
