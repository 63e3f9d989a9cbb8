package differential

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"
)

// objects is the cluster that both sides serve: everything that is ordinary, and everything that is odd and that an API
// server takes all the same.
func objects() (objs []runtime.Object) {
	for _, part := range [][]runtime.Object{
		namespaces(), clusterIPServices(), headlessServices(), oddSlices(), aliases(), imports(), pods(),
	} {
		objs = append(objs, part...)
	}
	for i, o := range objs {
		if s, ok := o.(*discoveryv1.EndpointSlice); ok {
			s.Name = fmt.Sprintf("s%d", i)
		}
	}
	return objs
}

func namespaces() (objs []runtime.Object) {
	for _, n := range []string{"default", "kube-system", "shop", "pay", "alias", "svc", "pod", "empty", "x--1"} {
		ns := &corev1.Namespace{ObjectMeta: meta("", n)}
		if n == "shop" || n == "svc" {
			ns.Labels = map[string]string{"team": "a"}
		}
		objs = append(objs, ns)
	}
	return objs
}

func clusterIPServices() []runtime.Object {
	http, dns := tcp("http", 80), []corev1.ServicePort{udp("dns", 53), tcp("dns-tcp", 53), tcp("metrics", 9153)}
	labelled := service("shop", "labelled", ips("10.96.0.20"), http)
	labelled.Labels = map[string]string{"tier": "front"}
	labelledSlice := slice("labelled", discoveryv1.AddressTypeIPv4, http, at("10.244.9.1"))
	labelledSlice.Labels["tier"] = "front"
	many := []corev1.ServicePort{tcp("a", 1), tcp("b", 2), udp("a", 1), tcp("c", 80), tcp("http", 80), udp("http", 8080)}
	sctp := corev1.ServicePort{Name: "sig", Port: 36412, Protocol: corev1.ProtocolSCTP}
	return []runtime.Object{
		service("default", "kubernetes", ips("10.96.0.1"), tcp("https", 443)),
		slice("default/kubernetes", discoveryv1.AddressTypeIPv4, tcp("https", 6443), at("172.18.0.2"), at("172.18.0.3")),
		service("kube-system", "kube-dns", ips("10.96.0.10", "fd00:10:96::a"), dns...),
		slice("kube-system/kube-dns", discoveryv1.AddressTypeIPv4, dns, at("10.244.0.2", pod("coredns-1")), at("10.244.0.3", pod("coredns-2"))),
		service("shop", "web", ips("10.96.0.2"), http),
		slice("web", discoveryv1.AddressTypeIPv4, tcp("http", 8080), at("10.244.1.2", pod("web-1")), at("10.244.1.3", pod("web-2"))),
		service("shop", "web6", ips("fd00:10:96::2"), http),
		service("shop", "both", ips("10.96.0.3", "fd00:10:96::3"), http, tcp("https", 443)),
		service("shop", "six-four", ips("fd00:10:96::4", "10.96.0.4"), http),
		typed(service("shop", "node-port", ips("10.96.0.5"), http), corev1.ServiceTypeNodePort),
		balanced(service("shop", "balanced", ips("10.96.0.6"), http), "203.0.113.7"),
		service("shop", "portless", ips("10.96.0.7")),
		service("shop", "unnamed", ips("10.96.0.8"), tcp("", 80)),
		service("shop", "many", ips("10.96.0.9", "fd00:10:96::9"), many...),
		service("shop", "sctp", ips("10.96.0.11"), sctp),
		service("shop", "pending", nil, http),
		service("shop", "pending-portless", nil),
		service("shop", "http", ips("10.96.0.12"), http),
		service("shop", "svc", ips("10.96.0.13"), http),
		service("shop", "pod", ips("10.96.0.14"), http),
		service("svc", "svc", ips("10.96.0.15"), tcp("svc", 80)),
		service("pod", "pod", ips("10.96.0.16"), http),
		service("pay", "web", ips("10.96.1.2"), http),
		service("pay", "tcp", ips("10.96.1.3"), tcp("tcp", 80)),
		service("x--1", "a--b", ips("10.96.1.4"), http),
		service("shop", strings.Repeat("l", 63), ips("10.96.1.5"), tcp(strings.Repeat("p", 15), 80)),
		service("shop", "canon", ips("FD00:10:96:0:0::C"), http),
		service("gone", "web", ips("10.96.2.2"), http),
		slice("gone/web", discoveryv1.AddressTypeIPv4, http, at("10.244.2.1")),
		service("gone", "set", headless, http),
		slice("gone/set", discoveryv1.AddressTypeIPv4, http, at("10.244.2.2", host("set-0"))),
		labelled, labelledSlice,
	}
}

func headlessServices() []runtime.Object {
	sql := tcp("sql", 5432)
	three := []corev1.ServicePort{tcp("peer", 2380), tcp("client", 2379), udp("gossip", 2380)}
	objs := []runtime.Object{
		service("shop", "db", headless, sql),
		slice("db", discoveryv1.AddressTypeIPv4, sql,
			at("10.244.3.1", host("db-0"), pod("db-0"), zone("Rack.1")), at("10.244.3.2", host("db-1"), pod("db-1"), zone("rack-2"))),
		slice("db", discoveryv1.AddressTypeIPv6, sql,
			at("fd00:10:244:3::1", host("db-0"), pod("db-0"), zone("Rack.1")), at("fd00:10:244:3::2", host("db-1"), pod("db-1"), zone("rack-2"))),
		service("shop", "nohost", headless, sql),
		slice("nohost", discoveryv1.AddressTypeIPv4, sql, at("10.244.4.1", pod("nohost-a")), at("10.244.4.2", pod("Nohost.b")), at("10.244.4.3", pod(strings.Repeat("n", 64))), at("10.244.4.4")),
		service("shop", "six", headless, sql),
		slice("six", discoveryv1.AddressTypeIPv6, sql, at("fd00:10:244:5::"), at("fd00:10:244:5:0:0:0:1"), at("FD00:10:244:5::A"), at("fd00:10:244:5::2"), at("fd00:10:244:0006::")),
		service("shop", "bare", headless),
		slice("bare", discoveryv1.AddressTypeIPv4, nil, at("10.244.6.1", host("bare-0")), at("10.244.6.2")),
		service("shop", "unnamed-set", headless, tcp("", 7000)),
		slice("unnamed-set", discoveryv1.AddressTypeIPv4, tcp("", 7000), at("10.244.6.11", host("u-0"))),
		service("shop", "down", headless, sql),
		slice("down", discoveryv1.AddressTypeIPv4, sql, at("10.244.7.1", host("down-0"), ready(false)), at("10.244.7.2", ready(false))),
		service("shop", "none", headless, sql),
		service("shop", "half", headless, sql),
		slice("half", discoveryv1.AddressTypeIPv4, sql, at("10.244.7.11", host("half-0")), at("10.244.7.12", host("half-1"), ready(false)), at("10.244.7.13", unknownReady)),
		early(service("shop", "early", headless, sql)),
		slice("early", discoveryv1.AddressTypeIPv4, sql, at("10.244.7.21", host("early-0"))),
		service("shop", "ports", headless, three...),
		slice("ports", discoveryv1.AddressTypeIPv4, three, at("10.244.8.1", host("p-0")), at("10.244.8.2", host("p-1"))),
		slice("ports", discoveryv1.AddressTypeIPv4, tcp("peer", 12380), at("10.244.8.3", host("p-2"))),
		service("shop", "twice", headless, sql),
		slice("twice", discoveryv1.AddressTypeIPv4, sql, at("10.244.8.11"), at("10.244.8.12", host("t-0"))),
		slice("twice", discoveryv1.AddressTypeIPv4, sql, at("10.244.8.11"), at("10.244.8.12", host("t-0")), at("10.244.8.13", host("t-0"))),
		service("shop", "one", headless, sql),
		slice("one", discoveryv1.AddressTypeIPv4, sql, at("10.244.8.21", host("Upper-0"))),
		service("shop", "portsplit", headless, tcp("x", 1), udp("x", 2)),
		slice("portsplit", discoveryv1.AddressTypeIPv4, tcp("x", 1), at("10.244.8.31", host("s-0"))),
		slice("portsplit", discoveryv1.AddressTypeIPv4, udp("x", 2), at("10.244.8.31", host("s-0"))),
		// Host-network pods share a node's address over services.
		service("shop", "agent", headless, tcp("metrics", 9100)),
		slice("agent", discoveryv1.AddressTypeIPv4, tcp("metrics", 9100), at("172.18.0.2", pod("agent-a")), at("172.18.0.3", pod("agent-b"))),
		service("pay", "agent", headless, tcp("metrics", 9200)),
		slice("pay/agent", discoveryv1.AddressTypeIPv4, tcp("metrics", 9200), at("172.18.0.2", pod("agent-c"))),
		// A ClusterIP that is an endpoint as well: of the service that has none.
		service("shop", "mirror", headless, sql),
		slice("mirror", discoveryv1.AddressTypeIPv4, sql, at("10.96.0.2", host("m-0"))),
	}
	objs = append(objs, big("big", 200, 200)...)
	return append(objs, big("huge", 1000, 100)...)
}

// big is a headless service of n endpoints, every other one with a hostname, in slices of size.
func big(name string, n, size int) []runtime.Object {
	port := tcp("sql", 5432)
	objs := []runtime.Object{service("shop", name, headless, port)}
	for first := 0; first < n; first += size {
		var eps []discoveryv1.Endpoint
		for i := first; i < first+size; i++ {
			o := []func(*discoveryv1.Endpoint){pod(fmt.Sprintf("%s-%d", name, i))}
			if i%2 == 0 {
				o = append(o, host(fmt.Sprintf("%s-%d", name, i)))
			}
			eps = append(eps, at(fmt.Sprintf("10.%d.%d.%d", 100+n/200, i/250, 1+i%250), o...))
		}
		objs = append(objs, slice(name, discoveryv1.AddressTypeIPv4, port, eps...))
	}
	return objs
}

// oddSlices are those that belong to no service, or not to one that has endpoints.
func oddSlices() []runtime.Object {
	orphan := slice("", discoveryv1.AddressTypeIPv4, tcp("http", 80), at("10.244.20.1", host("orphan-0")))
	delete(orphan.Labels, discoveryv1.LabelServiceName)
	return []runtime.Object{
		orphan,
		slice("nobody", discoveryv1.AddressTypeIPv4, tcp("http", 80), at("10.244.20.2", host("nobody-0")), at("10.244.20.3")),
		slice("alias/out", discoveryv1.AddressTypeIPv4, tcp("http", 80), at("10.244.20.4", host("out-0"))),
		service("shop", "named", headless, tcp("http", 80)),
		slice("named", discoveryv1.AddressTypeFQDN, tcp("http", 80), at("ok.example.com")),
		service("shop", "vip-named", ips("10.96.3.1"), tcp("http", 80)),
		slice("vip-named", discoveryv1.AddressTypeFQDN, tcp("http", 80), at("ok.example.com", host("far"))),
	}
}

func aliases() []runtime.Object {
	objs := []runtime.Object{
		alias("in", "web.shop.svc.cluster.local"),
		alias("in-six", "web6.shop.svc.cluster.local."),
		alias("in-set", "db.shop.svc.cluster.local"),
		alias("in-port", "_sql._tcp.db.shop.svc.cluster.local"),
		alias("in-endpoint", "db-0.db.shop.svc.cluster.local"),
		alias("in-huge", "huge.shop.svc.cluster.local"),
		alias("in-pod", "10-244-1-2.shop.pod.cluster.local"),
		alias("in-version", "dns-version.cluster.local"),
		alias("in-apex", "cluster.local"),
		alias("in-ns", "shop.svc.cluster.local"),
		alias("two", "in.alias.svc.cluster.local"),
		alias("two-out", "out.alias.svc.cluster.local"),
		alias("upper", "WEB.Shop.svc.Cluster.LOCAL"),
		alias("dangling", "nothing.shop.svc.cluster.local"),
		alias("two-dangling", "dangling.alias.svc.cluster.local"),
		alias("two-nx", "nx.alias.svc.cluster.local"),
		alias("down", "down.shop.svc.cluster.local"),
		alias("loop-a", "loop-b.alias.svc.cluster.local"),
		alias("loop-b", "loop-a.alias.svc.cluster.local"),
		alias("self", "self.alias.svc.cluster.local"),
		alias("out", "ok.example.com"),
		alias("out-dot", "ok.example.com."),
		alias("out-cname", "cname.example.com"),
		alias("nodata", "nodata.example.com"),
		alias("nx", "nx.example.com"),
		alias("fail", "fail.example.com"),
		alias("refused", "refused.example.com"),
		alias("elsewhere", "example.net"),
		alias("back", "back.example.com"),
		alias("reverse", "2.0.96.10.in-addr.arpa"),
		alias("imported", "web.shop.svc.clusterset.local"),
		alias("ip4", "192.0.2.44"),
		alias("ip6", "2001:db8::44"),
		alias("under", "_under.example.com"),
	}
	for _, n := range []int{9, 12, 16, 17} {
		for i := range n {
			to := "web.shop"
			if i < n-1 {
				to = fmt.Sprintf("chain%d-%d.alias", n, i+1)
			}
			objs = append(objs, alias(fmt.Sprintf("chain%d-%d", n, i), to+".svc.cluster.local"))
		}
	}
	return objs
}

func imports() []runtime.Object {
	http := tcp("http", 80)
	sql := tcp("sql", 5432)
	return []runtime.Object{
		imported("web", mcs.ClusterSetIP, ips("10.97.0.2"), http),
		importSlice("web", "east", http, at("10.245.0.1"), at("10.245.0.2", host("w-0"))),
		imported("both", mcs.ClusterSetIP, ips("10.97.0.3", "fd00:10:97::3"), http, udp("http", 80)),
		imported("portless", mcs.ClusterSetIP, ips("10.97.0.4")),
		imported("pending", mcs.ClusterSetIP, nil, http),
		imported("db", mcs.Headless, nil, sql),
		importSlice("db", "east", sql, at("10.245.1.1", host("db-0")), at("10.245.1.2", host("db-1"), ready(false)), at("10.245.1.3")),
		importSlice("db", "west", sql, at("10.246.1.1", host("db-0")), at("10.245.1.3")),
		imported("empty", mcs.Headless, nil, sql),
		importSlice("nobody", "east", sql, at("10.245.2.1", host("n-0"))),
	}
}

func pods() []runtime.Object {
	running := func(ns, name string, addrs ...string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: meta(ns, name), Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		for _, a := range addrs {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
		}
		if len(addrs) > 0 {
			p.Status.PodIP = addrs[0]
		}
		return p
	}
	in := func(phase corev1.PodPhase, p *corev1.Pod) *corev1.Pod {
		p.Status.Phase = phase
		return p
	}
	deleting := running("shop", "deleting", "10.244.30.9")
	deleting.DeletionTimestamp = &metav1.Time{Time: metav1.Now().Time}
	deleting.Finalizers = []string{"example.com/hold"}
	node := running("shop", "agent-a", "172.18.0.2")
	node.Spec.HostNetwork = true
	node2 := running("pay", "agent-c", "172.18.0.2")
	node2.Spec.HostNetwork = true
	labelled := running("shop", "labelled", "10.244.30.10")
	labelled.Labels = map[string]string{"tier": "front"}
	return []runtime.Object{
		running("shop", "web-1", "10.244.1.2", "fd00:10:244:1::2"),
		running("shop", "web-2", "10.244.1.3"),
		running("pay", "six", "fd00:10:244:30::1"),
		running("pay", "six-end", "fd00:10:244:31::"),
		running("pay", "six-odd", "FD00:10:244:32:0:0:0:2"),
		running("gone", "lost", "10.244.30.1"),
		in(corev1.PodPending, running("shop", "pending", "10.244.30.2")),
		in(corev1.PodPending, running("shop", "addressless")),
		in(corev1.PodSucceeded, running("shop", "done", "10.244.30.3")),
		in(corev1.PodFailed, running("shop", "failed", "10.244.30.4")),
		in(corev1.PodUnknown, running("shop", "unknown", "10.244.30.5")),
		deleting, node, node2, labelled,
	}
}

func meta(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }

// headless is the ClusterIP of services that want none.
var headless = []string{corev1.ClusterIPNone}

func ips(addrs ...string) []string { return addrs }

func service(ns, name string, addrs []string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{ObjectMeta: meta(ns, name), Spec: corev1.ServiceSpec{ClusterIPs: addrs, Ports: ports}}
}

func typed(s *corev1.Service, t corev1.ServiceType) *corev1.Service {
	s.Spec.Type = t
	return s
}

func balanced(s *corev1.Service, ip string) *corev1.Service {
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ip}}
	return s
}

func early(s *corev1.Service) *corev1.Service {
	s.Spec.PublishNotReadyAddresses = true
	return s
}

func alias(name, to string) *corev1.Service {
	return &corev1.Service{ObjectMeta: meta("alias", name), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: to}}
}

func tcp(name string, n int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: n, Protocol: corev1.ProtocolTCP}
}

func udp(name string, n int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: n, Protocol: corev1.ProtocolUDP}
}

// slice makes a slice of a service, which is NAMESPACE/NAME or a name in shop, without a name of its own. ports is one
// port, several, or none.
func slice(of string, family discoveryv1.AddressType, ports any, eps ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	ns, name, ok := strings.Cut(of, "/")
	if !ok {
		ns, name = "shop", of
	}
	s := &discoveryv1.EndpointSlice{ObjectMeta: meta(ns, ""), AddressType: family, Endpoints: eps}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: name}
	list, _ := ports.([]corev1.ServicePort)
	if p, one := ports.(corev1.ServicePort); one {
		list = []corev1.ServicePort{p}
	}
	for _, p := range list {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol})
	}
	return s
}

func at(addr string, with ...func(*discoveryv1.Endpoint)) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{addr}}
	ready(true)(&e)
	for _, w := range with {
		w(&e)
	}
	return e
}

func ready(r bool) func(*discoveryv1.Endpoint) {
	return func(e *discoveryv1.Endpoint) { e.Conditions.Ready = &r }
}

func unknownReady(e *discoveryv1.Endpoint) { e.Conditions.Ready = nil }

func host(name string) func(*discoveryv1.Endpoint) {
	return func(e *discoveryv1.Endpoint) { e.Hostname = &name }
}

func zone(name string) func(*discoveryv1.Endpoint) {
	return func(e *discoveryv1.Endpoint) { e.Zone = &name }
}

func pod(name string) func(*discoveryv1.Endpoint) {
	return func(e *discoveryv1.Endpoint) { e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: name} }
}

func imported(name string, t mcs.ServiceImportType, addrs []string, ports ...corev1.ServicePort) *mcs.ServiceImport {
	s := &mcs.ServiceImport{ObjectMeta: meta("shop", name), Spec: mcs.ServiceImportSpec{Type: t, IPs: addrs}}
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, mcs.ServicePort{Name: p.Name, Port: p.Port, Protocol: p.Protocol})
	}
	return s
}

func importSlice(of, cluster string, port corev1.ServicePort, eps ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := slice(of, discoveryv1.AddressTypeIPv4, port, eps...)
	s.Labels = map[string]string{mcs.LabelServiceName: of, mcs.LabelSourceCluster: cluster}
	return s
}
