package zone

import (
	"testing"

	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// TestSpecification goes through the normative rows of the Kubernetes DNS-Based Service Discovery specification 1.1.0
// (kubernetes/dns, docs/specification.md), by the numbers of its sections and with names after its examples.
func TestSpecification(t *testing.T) {
	objs := []cluster.Object{
		ns("default"), ns("my-ns"),
		svc("default/kubernetes", "10.3.0.1,fd00:3::1", "https:TCP:443", ":UDP:444"),
		slc("default/kubernetes", "kubernetes-1", "https:TCP:6443", "192.168.0.1"),
		svc("my-ns/headless", "None", "https:TCP:443", "metrics:UDP:9153"),
		slc("my-ns/headless", "headless-4", "https:TCP:443,metrics:UDP:9153",
			"10.3.0.100 host=my-pet", "10.3.0.101 host=my-pet-2", "10.3.0.102 host=not-ready notready", "10.3.0.103"),
		slc("my-ns/headless", "headless-6", "https:TCP:443,metrics:UDP:9153", "2001:db8::1 host=my-pet"),
		svc("my-ns/empty", "None", "https:TCP:443"),
		external("my-ns/foo", "www.example.com"),
	}
	z := start(t, Options{}, objs...)
	for _, c := range []struct {
		section string
		name    string
		typ     uint16
		want    string
	}{
		{"2.2 Record for Schema Version", "dns-version.cluster.local", dns.TypeTXT,
			`NOERROR
			dns-version.cluster.local. 28800 TXT "1.1.0"`},

		{"2.3.1 A record of a ClusterIP service", "kubernetes.default.svc.cluster.local", dns.TypeA,
			`NOERROR
			kubernetes.default.svc.cluster.local. 5 A 10.3.0.1`},
		{"2.3.1 AAAA record of a ClusterIP service", "kubernetes.default.svc.cluster.local", dns.TypeAAAA,
			`NOERROR
			kubernetes.default.svc.cluster.local. 5 AAAA fd00:3::1`},
		{"2.3.2 SRV record of a named port, its target the service", "_https._tcp.kubernetes.default.svc.cluster.local", dns.TypeSRV,
			`NOERROR
			_https._tcp.kubernetes.default.svc.cluster.local. 5 SRV 0 50 443 kubernetes.default.svc.cluster.local.
			+ kubernetes.default.svc.cluster.local. 5 A 10.3.0.1
			+ kubernetes.default.svc.cluster.local. 5 AAAA fd00:3::1`},
		{"2.3.2 no SRV record of an unnamed port: its protocol has no names below it", "_udp.kubernetes.default.svc.cluster.local", dns.TypeSRV,
			`NXDOMAIN
			SOA cluster.local.`},
		{"2.3.3 PTR record of a ClusterIP, IPv4", "1.0.3.10.in-addr.arpa", dns.TypePTR,
			`NOERROR
			1.0.3.10.in-addr.arpa. 5 PTR kubernetes.default.svc.cluster.local.`},
		{"2.3.3 PTR record of a ClusterIP, IPv6", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.0.0.0.d.f.ip6.arpa", dns.TypePTR,
			`NOERROR
			1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.0.0.0.d.f.ip6.arpa. 5 PTR kubernetes.default.svc.cluster.local.`},

		{"2.4.1 A record of each ready endpoint", "headless.my-ns.svc.cluster.local", dns.TypeA,
			`NOERROR
			headless.my-ns.svc.cluster.local. 5 A 10.3.0.100
			headless.my-ns.svc.cluster.local. 5 A 10.3.0.101
			headless.my-ns.svc.cluster.local. 5 A 10.3.0.103`},
		{"2.4.1 AAAA record of each ready endpoint", "headless.my-ns.svc.cluster.local", dns.TypeAAAA,
			`NOERROR
			headless.my-ns.svc.cluster.local. 5 AAAA 2001:db8::1`},
		{"2.4.1 no ready endpoint: NXDOMAIN", "empty.my-ns.svc.cluster.local", dns.TypeA,
			`NXDOMAIN
			SOA cluster.local.`},
		{"2.4.1 an endpoint with a hostname", "my-pet.headless.my-ns.svc.cluster.local", dns.TypeA,
			`NOERROR
			my-pet.headless.my-ns.svc.cluster.local. 5 A 10.3.0.100`},
		{"2.4.1 an endpoint with a hostname, IPv6", "my-pet.headless.my-ns.svc.cluster.local", dns.TypeAAAA,
			`NOERROR
			my-pet.headless.my-ns.svc.cluster.local. 5 AAAA 2001:db8::1`},
		{"2.4.1 an endpoint without a hostname has a name of the system's making", "10-3-0-103.headless.my-ns.svc.cluster.local", dns.TypeA,
			`NOERROR
			10-3-0-103.headless.my-ns.svc.cluster.local. 5 A 10.3.0.103`},
		{"2.4.1 an endpoint that is not ready has none", "not-ready.headless.my-ns.svc.cluster.local", dns.TypeA,
			`NXDOMAIN
			SOA cluster.local.`},
		{"2.4.2 SRV records of the ready endpoints", "_https._tcp.headless.my-ns.svc.cluster.local", dns.TypeSRV,
			`NOERROR
			_https._tcp.headless.my-ns.svc.cluster.local. 5 SRV 0 25 443 10-3-0-103.headless.my-ns.svc.cluster.local.
			_https._tcp.headless.my-ns.svc.cluster.local. 5 SRV 0 25 443 my-pet-2.headless.my-ns.svc.cluster.local.
			_https._tcp.headless.my-ns.svc.cluster.local. 5 SRV 0 25 443 my-pet.headless.my-ns.svc.cluster.local.
			+ 10-3-0-103.headless.my-ns.svc.cluster.local. 5 A 10.3.0.103
			+ my-pet-2.headless.my-ns.svc.cluster.local. 5 A 10.3.0.101
			+ my-pet.headless.my-ns.svc.cluster.local. 5 A 10.3.0.100
			+ my-pet.headless.my-ns.svc.cluster.local. 5 AAAA 2001:db8::1`},
		{"2.4.2 no ready endpoint: NXDOMAIN", "_https._tcp.empty.my-ns.svc.cluster.local", dns.TypeSRV,
			`NXDOMAIN
			SOA cluster.local.`},
		{"2.4.3 PTR record of a ready endpoint with a hostname", "100.0.3.10.in-addr.arpa", dns.TypePTR,
			`NOERROR
			100.0.3.10.in-addr.arpa. 5 PTR my-pet.headless.my-ns.svc.cluster.local.`},
		{"2.4.3 PTR record of a ready endpoint without", "103.0.3.10.in-addr.arpa", dns.TypePTR,
			`NOERROR
			103.0.3.10.in-addr.arpa. 5 PTR 10-3-0-103.headless.my-ns.svc.cluster.local.`},
		{"2.4.3 an endpoint that is not ready has none", "102.0.3.10.in-addr.arpa", dns.TypePTR,
			`NXDOMAIN
			SOA in-addr.arpa.`},

		{"2.5.1 CNAME record of an ExternalName service", "foo.my-ns.svc.cluster.local", dns.TypeCNAME,
			`NOERROR
			foo.my-ns.svc.cluster.local. 5 CNAME www.example.com.`},
		{"2.5.1 CNAME record when an address is asked for", "foo.my-ns.svc.cluster.local", dns.TypeA,
			`NOERROR
			foo.my-ns.svc.cluster.local. 5 CNAME www.example.com.`},
	} {
		t.Run(c.section, func(t *testing.T) {
			z.t = t
			z.expect(c.name, c.typ, c.want)
		})
	}
}
