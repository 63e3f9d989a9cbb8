package apiserver

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func TestConvertServiceProxy(t *testing.T) {
	in := func(f func(*corev1.Service)) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.0.0.1"}}}
		f(s)
		return s
	}
	of := func(typ corev1.ServiceType, f func(*corev1.Service)) *corev1.Service {
		return in(func(s *corev1.Service) {
			s.Spec.Type = typ
			f(s)
		})
	}
	want := func(typ cluster.ServiceType, p cluster.ServiceProxy) *cluster.Service {
		return &cluster.Service{Namespace: "ns", Name: "s", Type: typ, ClusterIPs: ips("10.0.0.1"), Proxy: &p}
	}
	ingress := func(s *corev1.Service, list ...corev1.LoadBalancerIngress) { s.Status.LoadBalancer.Ingress = list }
	type proxy = cluster.ServiceProxy
	testConversions(t, converter{asks: asks{proxy: true}}, []conversion{
		{"plain", in(func(*corev1.Service) {}), want(cluster.ClusterIP, proxy{}), nil},
		{"headless", in(func(s *corev1.Service) { s.Spec.ClusterIPs, s.Spec.ExternalIPs = []string{"None"}, []string{"x"} }),
			&cluster.Service{Namespace: "ns", Name: "s", Headless: true}, nil},
		{"no address yet", in(func(s *corev1.Service) { s.Spec.ClusterIPs = nil }), &cluster.Service{Namespace: "ns", Name: "s"}, nil},
		{"external name", of("ExternalName", func(s *corev1.Service) { s.Spec.ExternalName, s.Spec.ExternalIPs = "a.org", []string{"192.0.2.1"} }),
			&cluster.Service{Namespace: "ns", Name: "s", Type: cluster.ExternalName, ExternalName: "a.org"}, nil},
		{"node ports", of("NodePort", func(s *corev1.Service) {
			s.Spec.Ports = []corev1.ServicePort{{Name: "bad", Port: 0, NodePort: 30000}, {Name: "a", Port: 80, NodePort: 30080}, {Name: "b", Port: 81},
				{Name: "c", Port: 82, NodePort: 65536}, {Name: "d", Port: 83, NodePort: -1}}
		}), func() *cluster.Service {
			s := want(cluster.NodePort, proxy{})
			s.Ports = []cluster.ServicePort{{Name: "a", Protocol: "TCP", Port: 80, NodePort: 30080}, {Name: "b", Protocol: "TCP", Port: 81}, {Name: "c", Protocol: "TCP", Port: 82}, {Name: "d", Protocol: "TCP", Port: 83}}
			return s
		}(), []string{`"bad"`, "node port 65536", "node port -1"}},

		{"external IPs", in(func(s *corev1.Service) {
			s.Spec.ExternalIPs = []string{"192.0.2.1", "2001:DB8::1", "192.0.2.001", "", " "}
		}),
			want(cluster.ClusterIP, proxy{ExternalIPs: ips("192.0.2.1", "2001:db8::1")}), nil},
		{"bad external IPs", in(func(s *corev1.Service) {
			s.Spec.ExternalIPs = []string{"x", "127.0.0.1", "::", "169.254.1.1", "fe80::1", "224.0.0.1", "::ffff:127.0.0.1", "192.0.2.1"}
		}), want(cluster.ClusterIP, proxy{ExternalIPs: ips("192.0.2.1")}), []string{`"x"`, "127.0.0.1", "::", "169.254", "fe80::1", "224.0.0.1", "127.0.0.1"}},

		{"load balancer", of("LoadBalancer", func(s *corev1.Service) {
			ingress(s, corev1.LoadBalancerIngress{IP: "192.0.2.1"}, corev1.LoadBalancerIngress{IP: "192.0.2.2", IPMode: new(corev1.LoadBalancerIPModeProxy)},
				corev1.LoadBalancerIngress{IP: "2001:db8::1", IPMode: new(corev1.LoadBalancerIPModeVIP)}, corev1.LoadBalancerIngress{Hostname: "a.org"}, corev1.LoadBalancerIngress{IP: "192.0.2.1"})
		}), want(cluster.LoadBalancer, proxy{LoadBalancerIPs: ips("192.0.2.1", "2001:db8::1")}), nil},
		{"bad load balancer", of("LoadBalancer", func(s *corev1.Service) {
			ingress(s, corev1.LoadBalancerIngress{IP: "x"}, corev1.LoadBalancerIngress{IP: "192.0.2.2", IPMode: new(corev1.LoadBalancerIPMode("Vip"))},
				corev1.LoadBalancerIngress{IP: "127.0.0.1"}, corev1.LoadBalancerIngress{IP: "0.0.0.0"}, corev1.LoadBalancerIngress{IP: "169.254.7.7"})
		}), want(cluster.LoadBalancer, proxy{LoadBalancerIPs: ips("169.254.7.7")}), []string{`"x"`, `"Vip"`, "127.0.0.1", "0.0.0.0"}},
		// A type that has changed may leave its status for a while.
		{"status of another type", in(func(s *corev1.Service) { ingress(s, corev1.LoadBalancerIngress{IP: "192.0.2.1"}) }),
			want(cluster.ClusterIP, proxy{LoadBalancerIPs: ips("192.0.2.1")}), nil},

		{"source ranges", of("LoadBalancer", func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{" 10.1.2.3/8", "fd00::/8\t", "", " ", "010.0.0.0/16", "::ffff:192.0.2.0/120"}
		}), want(cluster.LoadBalancer, proxy{SourceRanges: ranges("10.0.0.0/8", "fd00::/8", "10.0.0.0/16", "192.0.2.0/24")}), nil},
		{"all of a family", of("LoadBalancer", func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/8", "0.0.0.0/0", "fd00::/8"}
		}), want(cluster.LoadBalancer, proxy{SourceRanges: ranges("fd00::/8")}), nil},
		{"all", of("LoadBalancer", func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"::/0", "0.0.0.0/0"}
			ingress(s, corev1.LoadBalancerIngress{IP: "192.0.2.1"})
		}), want(cluster.LoadBalancer, proxy{LoadBalancerIPs: ips("192.0.2.1"), SourceRanges: []netip.Prefix{}}), nil},
		{"a bad range beside a good one", of("LoadBalancer", func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/33", "10.0.0.0/8"}
			ingress(s, corev1.LoadBalancerIngress{IP: "192.0.2.1"}, corev1.LoadBalancerIngress{IP: "2001:db8::1"})
		}), want(cluster.LoadBalancer, proxy{LoadBalancerIPs: ips("192.0.2.1"), SourceRanges: ranges("10.0.0.0/8")}), []string{"/33"}},
		{"a bad range beside all", of("LoadBalancer", func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"::ffff:0:0/90", "::/0"}
			ingress(s, corev1.LoadBalancerIngress{IP: "192.0.2.1"}, corev1.LoadBalancerIngress{IP: "2001:db8::1"})
		}), want(cluster.LoadBalancer, proxy{LoadBalancerIPs: ips("2001:db8::1"), SourceRanges: []netip.Prefix{}}), []string{"/90"}},

		{"affinity", in(func(s *corev1.Service) {
			s.Spec.SessionAffinity = "ClientIP"
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(int32(86400))}}
		}), want(cluster.ClusterIP, proxy{Affinity: 24 * time.Hour}), nil},
		{"affinity without a time", in(func(s *corev1.Service) { s.Spec.SessionAffinity = "ClientIP" }), want(cluster.ClusterIP, proxy{Affinity: 3 * time.Hour}), nil},
		{"affinity with an empty time", in(func(s *corev1.Service) {
			s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = "ClientIP", &corev1.SessionAffinityConfig{}
		}), want(cluster.ClusterIP, proxy{Affinity: 3 * time.Hour}), nil},
		{"affinity of a bad time", in(func(s *corev1.Service) {
			s.Spec.SessionAffinity = "ClientIP"
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(int32(0))}}
		}), want(cluster.ClusterIP, proxy{Affinity: 3 * time.Hour}), []string{"0 seconds"}},
		{"no affinity", in(func(s *corev1.Service) { s.Spec.SessionAffinity = "None" }), want(cluster.ClusterIP, proxy{}), nil},
		{"unknown affinity", in(func(s *corev1.Service) { s.Spec.SessionAffinity = "Cookie" }), want(cluster.ClusterIP, proxy{}), []string{`"Cookie"`}},

		{"local", of("LoadBalancer", func(s *corev1.Service) {
			s.Spec.InternalTrafficPolicy, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = new(corev1.ServiceInternalTrafficPolicyLocal), "Local", 32000
		}), want(cluster.LoadBalancer, proxy{InternalLocal: true, ExternalLocal: true, HealthCheckNodePort: 32000}), nil},
		{"cluster", of("LoadBalancer", func(s *corev1.Service) {
			s.Spec.InternalTrafficPolicy, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = new(corev1.ServiceInternalTrafficPolicyCluster), "Cluster", 32000
		}), want(cluster.LoadBalancer, proxy{}), nil},
		{"local on node ports", of("NodePort", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = "Local", 32000 }),
			want(cluster.NodePort, proxy{ExternalLocal: true}), nil},
		{"local for external IPs", in(func(s *corev1.Service) {
			s.Spec.ExternalTrafficPolicy, s.Spec.ExternalIPs = "Local", []string{"192.0.2.1"}
		}),
			want(cluster.ClusterIP, proxy{ExternalIPs: ips("192.0.2.1"), ExternalLocal: true}), nil},
		{"local, and not reachable", in(func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = "Local" }), want(cluster.ClusterIP, proxy{}), nil},
		{"no health check port", of("LoadBalancer", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = "Local" }),
			want(cluster.LoadBalancer, proxy{ExternalLocal: true}), []string{"no health check"}},
		{"unknown policies", of("LoadBalancer", func(s *corev1.Service) {
			s.Spec.InternalTrafficPolicy, s.Spec.ExternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicy("Near")), "local"
		}), want(cluster.LoadBalancer, proxy{}), []string{`internal traffic policy "Near"`, `external traffic policy "local"`}},
	})
}

func TestConvertSliceProxy(t *testing.T) {
	zones := func(names ...string) *discoveryv1.EndpointHints {
		h := &discoveryv1.EndpointHints{}
		for _, n := range names {
			h.ForZones = append(h.ForZones, discoveryv1.ForZone{Name: n})
		}
		return h
	}
	nodes := zones("a")
	nodes.ForNodes = []discoveryv1.ForNode{{Name: "n1"}, {Name: "n2"}}
	in := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, AddressType: "IPv4", Endpoints: []discoveryv1.Endpoint{
		{Addresses: []string{"10.1.0.1"}},
		{Addresses: []string{"10.1.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)}, Hints: zones("a")},
		{Addresses: []string{"10.1.0.3"}, Conditions: discoveryv1.EndpointConditions{Serving: new(false), Terminating: new(false)}, Hints: zones()},
		{Addresses: []string{"10.1.0.4", "10.1.0.5"}, Hints: nodes},
		{Addresses: []string{"x", "10.1.0.6"}, Hints: zones("a")},
		{Addresses: []string{"10.1.0.7"}, Hints: zones("", "b")},
		{Addresses: []string{"10.1.0.8"}, Hints: zones("")},
	}}
	a := &cluster.Hints{ForZones: []string{"a"}}
	want := []cluster.EndpointProxy{
		{Serving: true}, {Serving: true, Terminating: true, Hints: a}, {},
		{Serving: true, Hints: &cluster.Hints{ForZones: []string{"a"}, ForNodes: []string{"n1", "n2"}}},
		{Serving: true, Extra: true, Hints: &cluster.Hints{ForZones: []string{"a"}, ForNodes: []string{"n1", "n2"}}},
		{Serving: true, Extra: true, Hints: a}, {Serving: true, Hints: &cluster.Hints{ForZones: []string{"b"}}}, {Serving: true},
	}
	c := &converter{names: newInterner(), asks: asks{proxy: true}}
	v, why := c.object(in)
	s := v.(*cluster.Slice)
	if d := cmp.Diff(want, s.Proxy.Endpoints); d != "" || len(s.Endpoints) != len(want) {
		t.Errorf("%d endpoints (-want +got):\n%s", len(s.Endpoints), d)
	}
	if len(why) != 3 || !strings.Contains(why[0], `"x"`) || !strings.Contains(why[1], "names no zone") {
		t.Errorf("faults: %q", why)
	}
	if v, _ := c.object(in); v.(*cluster.Slice).Proxy.Endpoints[1].Hints != s.Proxy.Endpoints[5].Hints {
		t.Error("two endpoints have the same hints twice")
	}
	empty, _ := c.object(&discoveryv1.EndpointSlice{ObjectMeta: in.ObjectMeta, AddressType: "IPv4"})
	if p := empty.(*cluster.Slice).Proxy; p == nil || len(p.Endpoints) != 0 {
		t.Errorf("an empty slice has %v", p)
	}
	for i := range 2 * maxInterned {
		if h := c.sharedHints(zones(fmt.Sprint(i)), new(faults)); h.ForZones[0] != fmt.Sprint(i) || len(c.hints) > maxInterned {
			t.Fatalf("hints %v for %d, %d are kept", h, i, len(c.hints))
		}
	}
}

func TestConvertNodeNet(t *testing.T) {
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("east", 3600))
	meta := metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "zone-a", "failure-domain.beta.kubernetes.io/zone": "old"}}
	addr := func(typ corev1.NodeAddressType, text string) corev1.NodeAddress {
		return corev1.NodeAddress{Type: typ, Address: text}
	}
	testConversions(t, converter{names: newInterner(), asks: asks{nodeNet: true}}, []conversion{
		{"nothing", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, &cluster.Node{Name: "n1", Net: &cluster.NodeNet{}}, nil},
		{"all", &corev1.Node{ObjectMeta: meta, Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			addr("Hostname", "n1"), addr("ExternalIP", "192.0.2.1"), addr("InternalIP", "10.0.0.1"), addr("InternalDNS", "n1.local"), addr("InternalIP", "fd00::1"), addr("InternalIP", "10.0.0.2")}}},
			&cluster.Node{Name: "n1", PodCIDRs: ranges("10.1.0.0/24"), Net: &cluster.NodeNet{Zone: "zone-a", InternalIPs: ips("10.0.0.1", "fd00::1", "10.0.0.2"), ExternalIPs: ips("192.0.2.1")}}, nil},
		{"its age", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", CreationTimestamp: metav1.Time{Time: created}}}, &cluster.Node{Name: "n1", Net: &cluster.NodeNet{Created: created.UTC()}}, nil},
		{"on its way out", &corev1.Node{ObjectMeta: meta, Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "other"}, {Key: "ToBeDeletedByClusterAutoscaler", Effect: "NoSchedule"}}}},
			&cluster.Node{Name: "n1", Net: &cluster.NodeNet{Zone: "zone-a", Leaving: true}}, nil},
		{"being deleted", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", DeletionTimestamp: &metav1.Time{Time: time.Now()}}}, &cluster.Node{Name: "n1", Net: &cluster.NodeNet{Leaving: true}}, nil},
		{"bad addresses", &corev1.Node{ObjectMeta: meta, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{addr("InternalIP", "n1"), addr("ExternalIP", ""), addr("ExternalIP", "192.0.2.2")}}},
			&cluster.Node{Name: "n1", Net: &cluster.NodeNet{Zone: "zone-a", ExternalIPs: ips("192.0.2.2")}}, []string{`internal IP "n1"`, `external IP ""`}},
	})
}

// TestFormsAreEqual holds that an object is the same value in protobuf and in JSON, whatever is asked for.
func TestFormsAreEqual(t *testing.T) {
	c := mustCodec(t)
	for kind, objs := range fullObjects() {
		res := resourceOf(kind)
		gvk := res.objectKind(res.versions[0])
		for _, o := range objs {
			text, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			for bits := range uint8(16) {
				conv := &converter{names: newInterner(), asks: asksIn(bits)}
				d := newDecoder(c, kind, gvk, conv)
				plain, err := d.one(text)
				if err != nil {
					t.Fatal(err)
				}
				fromJSON := knownOf(plain, conv)
				item, err := d.item(marshal(t, o))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(fromJSON, knownOf(item, conv), sameKnown); diff != "" {
					t.Errorf("%s, asked for %+v (-JSON +protobuf):\n%s", kind, asksIn(bits), diff)
				}
			}
		}
	}
}

// checkProxy holds that a proxy may make rules of v.
func checkProxy(t *testing.T, v cluster.Object) {
	t.Helper()
	bad := func(a netip.Addr) bool { return !a.IsValid() || a.Zone() != "" || a.Is4In6() }
	switch v := v.(type) {
	case *cluster.Service:
		if (v.Proxy != nil) != (len(v.ClusterIPs) > 0) {
			t.Errorf("proxy %v for a service with %v", v.Proxy, v.ClusterIPs)
		}
		if p := v.Proxy; p != nil {
			if slices.ContainsFunc(slices.Concat(p.ExternalIPs, p.LoadBalancerIPs), bad) || p.Affinity < 0 || p.Affinity > 24*time.Hour ||
				slices.ContainsFunc(p.SourceRanges, func(p netip.Prefix) bool { return !p.IsValid() || bad(p.Addr()) || p.Bits() == 0 || p != p.Masked() }) {
				t.Errorf("service %+v", p)
			}
		}
	case *cluster.Slice:
		if len(v.Proxy.Endpoints) != len(v.Endpoints) {
			t.Errorf("%d endpoints, of which a proxy is told %d", len(v.Endpoints), len(v.Proxy.Endpoints))
		}
		for _, e := range v.Proxy.Endpoints {
			if h := e.Hints; h != nil && (len(h.ForZones)+len(h.ForNodes) == 0 || slices.Contains(slices.Concat(h.ForZones, h.ForNodes), "")) {
				t.Errorf("hints %+v", h)
			}
		}
	case *cluster.Node:
		if slices.ContainsFunc(slices.Concat(v.Net.InternalIPs, v.Net.ExternalIPs), bad) {
			t.Errorf("node %+v", v.Net)
		}
	}
}

// What is asked for comes with changes, and what is not selected does not.
func TestProxyInterest(t *testing.T) {
	service := func(rv, spec, status string) string {
		return `{"metadata":{"namespace":"ns","name":"a","resourceVersion":"` + rv + `"},"spec":{"clusterIP":"10.0.0.1",` + spec + `},"status":{` + status + `}}`
	}
	node := func(rv, zone, ip string) string {
		return `{"metadata":{"name":"n1","resourceVersion":"` + rv + `","labels":{"topology.kubernetes.io/zone":"` + zone + `"}},"status":{"addresses":[{"type":"InternalIP","address":"` + ip + `"}]}}`
	}
	slice := func(rv, endpoint string) string {
		return `{"metadata":{"namespace":"ns","name":"a-1","resourceVersion":"` + rv + `"},"addressType":"IPv4","endpoints":[{"addresses":["10.1.0.1"],` + endpoint + `}]}`
	}
	const slicesPath = "/apis/discovery.k8s.io/v1/endpointslices"
	f := newFakeServer(t, servicesPath, holding(event1("ADDED", service("1", `"type":"LoadBalancer","externalIPs":["nonsense"]`, ``)), endBookmark("2"),
		event1("MODIFIED", service("3", `"type":"LoadBalancer","externalIPs":["nonsense"]`, `"loadBalancer":{"ingress":[{"ip":"192.0.2.1"}]}`))))
	f.scripts[slicesPath] = []answer{holding(event1("ADDED", slice("1", `"conditions":{"ready":true}`)), endBookmark("2"),
		event1("MODIFIED", slice("3", `"conditions":{"ready":false,"serving":true,"terminating":true},"hints":{"forZones":[{"name":"z"}]}`)))}
	f.scripts[nodesPath] = []answer{holding(event1("ADDED", node("1", "z", "10.9.0.1")), endBookmark("2"), event1("MODIFIED", node("3", "y", "10.9.0.2")))}
	r := start(t, f, cluster.Interest{
		Kinds: cluster.KindsOf(cluster.KindService, cluster.KindSlice, cluster.KindNode), Proxy: true, NodeNet: true, NoHeadless: true, OneNode: true, NodeName: "n1",
		Labels: "app", ServiceLabels: "!service.kubernetes.io/service-proxy-name", SliceLabels: "!service.kubernetes.io/headless",
	})
	want := map[string]cluster.Object{
		"ns/a": &cluster.Service{Namespace: "ns", Name: "a", Type: cluster.LoadBalancer, ClusterIPs: ips("10.0.0.1"), Proxy: &cluster.ServiceProxy{LoadBalancerIPs: ips("192.0.2.1")}},
		"ns/a-1": &cluster.Slice{Namespace: "ns", Name: "a-1", Endpoints: []cluster.Endpoint{{Addr: netip.MustParseAddr("10.1.0.1")}},
			Proxy: &cluster.SliceProxy{Endpoints: []cluster.EndpointProxy{{Serving: true, Terminating: true, Hints: &cluster.Hints{ForZones: []string{"z"}}}}}},
		"n1": &cluster.Node{Name: "n1", Net: &cluster.NodeNet{InternalIPs: ips("10.9.0.2"), Zone: "y"}},
	}
	for key, o := range want {
		eventually(t, key, func() bool { return cmp.Equal(o, r.get(o.Kind(), key), sameAddrs) })
	}
	if n := r.logs.count("in part unusable", "object=ns/a", "external IP", "nonsense"); n != 1 {
		t.Errorf("the bad address is logged %d times", n)
	}
	for path, selectors := range map[string][2]string{
		servicesPath: {"app,!service.kubernetes.io/service-proxy-name", "spec.clusterIP!=None"},
		slicesPath:   {"app,!service.kubernetes.io/headless", ""},
		nodesPath:    {"", "metadata.name=n1"},
	} {
		if q := f.asked(path)[0]; q.Get("labelSelector") != selectors[0] || q.Get("fieldSelector") != selectors[1] {
			t.Errorf("%s: %v, want the selectors %q", path, q, selectors)
		}
	}
}
