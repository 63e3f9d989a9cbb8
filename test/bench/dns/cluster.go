package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

const (
	domain     = "cluster.local."
	namespaces = 100
	// perHeadless is how many endpoints a headless service has.
	perHeadless = 4
)

// zones are all that the servers serve: the names, and the addresses of services and endpoints.
var zones = []string{domain, "10.in-addr.arpa.", "0.1.0.0.0.0.d.f.ip6.arpa."}

// question is a line of dnsperf's input.
type question struct {
	name  string
	qtype uint16
}

func (q question) String() string { return q.name + " " + dns.TypeToString[q.qtype] }

// kind says what the service with a number is: of ten, six have an IPv4 address, two one of each family, two are headless,
// one of them with hostnames.
type kind int

func kindOf(i int) kind { return kind(i % 10) }

func (k kind) headless() bool  { return k > 7 }
func (k kind) dual() bool      { return k == 6 || k == 7 }
func (k kind) hostnames() bool { return k == 9 }

func namespace(i int) string { return fmt.Sprintf("team-%d", i%namespaces) }
func service(i int) string   { return fmt.Sprintf("svc-%d", i) }
func fqdn(i int) string      { return service(i) + "." + namespace(i) + ".svc." + domain }

func clusterIPs(i int) []string {
	switch k := kindOf(i); {
	case k.headless():
		return []string{corev1.ClusterIPNone}
	case k.dual():
		return []string{address("10.96", i), fmt.Sprintf("fd00:10:96::%x", i+1)}
	}
	return []string{address("10.96", i)}
}

// address is the one with a number in a network of 16 bits.
func address(net string, n int) string { return fmt.Sprintf("%s.%d.%d", net, n/250, 1+n%250) }

// endpoint is the address of one of a headless service's endpoints.
func endpoint(i, n int) string { return address("10.244", i/10*2*perHeadless+i%2*perHeadless+n) }

// objects are the cluster's: namespaces, n services, and endpoint slices of those that are headless.
func objects(n int) (objs []runtime.Object) {
	for i := range namespaces {
		objs = append(objs, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace(i)}})
	}
	for i := range n {
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace(i), Name: service(i)},
			Spec: corev1.ServiceSpec{ClusterIPs: clusterIPs(i), Ports: []corev1.ServicePort{
				{Name: "http", Port: 80}, {Name: "metrics", Port: 9090},
			}},
		}
		objs = append(objs, s)
		if kindOf(i).headless() {
			objs = append(objs, slice(i, s.Spec.Ports))
		}
	}
	return objs
}

func slice(i int, ports []corev1.ServicePort) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace(i), Name: service(i) + "-x",
			Labels: map[string]string{discoveryv1.LabelServiceName: service(i)}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	tcp, ready := corev1.ProtocolTCP, true
	for _, p := range ports {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &tcp})
	}
	for e := range perHeadless {
		ep := discoveryv1.Endpoint{Addresses: []string{endpoint(i, e)}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
		if kindOf(i).hostnames() {
			h := hostname(i, e)
			ep.Hostname = &h
		}
		s.Endpoints = append(s.Endpoints, ep)
	}
	return s
}

// hostname is the first label of an endpoint's own name.
func hostname(i, e int) string {
	if kindOf(i).hostnames() {
		return fmt.Sprintf("pod-%d", e)
	}
	return strings.ReplaceAll(endpoint(i, e), ".", "-")
}

// hits asks for the A record of every service that has a ClusterIP, once, in random order.
func hits(services int) (qs []question) {
	for i := range services {
		if !kindOf(i).headless() {
			qs = append(qs, question{fqdn(i), dns.TypeA})
		}
	}
	shuffle(qs)
	return qs
}

// mix asks what the pods of a cluster ask, in random order, all services alike: of 20 questions
//
//	6 A of a ClusterIP, 2 AAAA of it (most services have none)
//	2 A of a headless service, 1 of one of its endpoints
//	1 SRV of a named port
//	1 PTR
//	7 steps of the search path (resolv.conf's ndots:5) that lead nowhere
func mix(services, n int) (qs []question) {
	r := random()
	pick := func(headless bool) int {
		for {
			if i := r.IntN(services); kindOf(i).headless() == headless {
				return i
			}
		}
	}
	for j := range n {
		switch j % 20 {
		case 0, 1, 2, 3, 4, 5:
			qs = append(qs, question{fqdn(pick(false)), dns.TypeA})
		case 6, 7:
			qs = append(qs, question{fqdn(pick(false)), dns.TypeAAAA})
		case 8, 9:
			qs = append(qs, question{fqdn(pick(true)), dns.TypeA})
		case 10:
			i := pick(true)
			qs = append(qs, question{hostname(i, r.IntN(perHeadless)) + "." + fqdn(i), dns.TypeA})
		case 11:
			qs = append(qs, question{"_http._tcp." + fqdn(r.IntN(services)), dns.TypeSRV})
		case 12:
			qs = append(qs, question{pointer(r, r.IntN(services)), dns.TypePTR})
		default:
			qs = append(qs, question{lost(r, services), []uint16{dns.TypeA, dns.TypeAAAA}[r.IntN(2)]})
		}
	}
	shuffle(qs)
	return qs
}

// pointer is the reverse name of one of a service's addresses.
func pointer(r *rand.Rand, i int) string {
	addrs := clusterIPs(i)
	addr := addrs[r.IntN(len(addrs))]
	if kindOf(i).headless() {
		addr = endpoint(i, r.IntN(perHeadless))
	}
	name, err := dns.ReverseAddr(netip.MustParseAddr(addr).String())
	if err != nil {
		panic(err) // the address is our own
	}
	return name
}

// lost is a name that resolvers make of one that is meant to be absolute, by way of the search path of a namespace.
func lost(r *rand.Rand, services int) string {
	meant := []string{"www.example.com.", "api.example.org.", "storage.example.net."}
	ns := namespace(r.IntN(namespaces))
	steps := []string{ns + ".svc." + domain, "svc." + domain, domain}
	if r.IntN(2) == 0 { // svc.ns.svc.cluster.local has four dots, so that the search path comes first
		return fqdn(r.IntN(services)) + steps[r.IntN(len(steps))]
	}
	return meant[r.IntN(len(meant))] + steps[r.IntN(len(steps))]
}

// random begins every run alike, so that all runs ask the same.
func random() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

func shuffle(qs []question) {
	random().Shuffle(len(qs), func(i, j int) { qs[i], qs[j] = qs[j], qs[i] })
}
