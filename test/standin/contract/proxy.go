package contract

import (
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/manifests"
)

// mine is the label that the objects of a test bear, with the test's namespace.
const mine = "contract"

var sameValues = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}

// sameInFiles holds that objects which the server lists in JSON are in files what they are from the server.
func (s *suite) sameInFiles(t *testing.T, path string, query url.Values, interest cluster.Interest, want map[string]cluster.Object) {
	t.Helper()
	_, body := s.get(t, path, query, acceptJSON)
	objects, err := manifests.Parse("list.json", body)
	if err != nil {
		t.Fatal(err)
	}
	c, err := manifests.Fill(objects, nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := manifests.Values(c, interest)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range want {
		if d := cmp.Diff(o, v[o.Kind()][o.Key()], sameValues); d != "" {
			t.Errorf("(-server +files):\n%s", d)
		}
	}
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

// proxyServices are services that differ in what a proxy of services does with them.
func proxyServices(labels map[string]string) []*corev1.Service {
	service := func(name string, spec corev1.ServiceSpec) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: spec}
	}
	others := service("others", corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}})
	others.Labels = map[string]string{mine: labels[mine], "service.kubernetes.io/service-proxy-name": "other"}
	return []*corev1.Service{
		others,
		service("headless", corev1.ServiceSpec{ClusterIP: "None", Ports: []corev1.ServicePort{{Port: 80}}}),
		service("plain", corev1.ServiceSpec{ClusterIP: "10.96.0.11", ClusterIPs: []string{"10.96.0.11"}, Ports: []corev1.ServicePort{{Port: 80}}}),
		service("affine", corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ClusterIP: "10.96.0.12", ClusterIPs: []string{"10.96.0.12"}, SessionAffinity: corev1.ServiceAffinityClientIP,
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, Ports: []corev1.ServicePort{{Port: 80, NodePort: 30911}},
		}),
		service("full", corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.13", ClusterIPs: []string{"10.96.0.13", "fd00:10:96::13"},
			IPFamilyPolicy: new(corev1.IPFamilyPolicyRequireDualStack), IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			SessionAffinity: corev1.ServiceAffinityClientIP, SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(int32(60))}},
			ExternalIPs: []string{"192.0.2.1", "2001:db8::1"}, LoadBalancerSourceRanges: []string{" 10.0.0.0/8 ", "::/0"},
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, HealthCheckNodePort: 30913, InternalTrafficPolicy: new(corev1.ServiceInternalTrafficPolicyLocal),
			TrafficDistribution: new(corev1.ServiceTrafficDistributionPreferClose), AllocateLoadBalancerNodePorts: new(false),
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, NodePort: 30912}, {Name: "quic", Port: 80, Protocol: corev1.ProtocolUDP, NodePort: 30912}, {Name: "plain", Port: 81}},
		}),
	}
}

// Services become values with all that a proxy needs of them, those of other proxies and headless ones stay away, and what the
// load balancer says comes as an upsert.
func testSourceServices(t *testing.T, s *suite) {
	ns := s.namespace(t)
	labels := map[string]string{mine: ns}
	services := s.client.CoreV1().Services(ns)
	made := map[string]corev1.ServiceSpec{}
	for _, svc := range proxyServices(labels) {
		svc, err := services.Create(t.Context(), svc, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made[svc.Name] = svc.Spec
	}
	if p, a := made["plain"], made["affine"]; p.ExternalTrafficPolicy != "" || *p.InternalTrafficPolicy != "Cluster" || p.SessionAffinityConfig != nil ||
		*a.SessionAffinityConfig.ClientIP.TimeoutSeconds != 10800 {
		t.Errorf("not the defaults: %+v, %+v", p, a)
	}
	interest := cluster.Interest{
		Kinds: cluster.KindsOf(cluster.KindService), Labels: mine + "=" + ns, ServiceLabels: "!service.kubernetes.io/service-proxy-name", NoHeadless: true, Proxy: true,
	}
	to := s.source(t, interest)
	got := to.listed(t)
	full := &cluster.ServiceProxy{
		ExternalIPs: addrs("192.0.2.1", "2001:db8::1"), SourceRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Affinity: time.Minute,
		InternalLocal: true, ExternalLocal: true, HealthCheckNodePort: 30913,
	}
	want := map[string]cluster.Object{
		"plain": &cluster.Service{Namespace: ns, Name: "plain", ClusterIPs: addrs("10.96.0.11"), Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}}, Proxy: &cluster.ServiceProxy{}},
		"affine": &cluster.Service{Namespace: ns, Name: "affine", Type: cluster.NodePort, ClusterIPs: addrs("10.96.0.12"), Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80, NodePort: 30911}},
			Proxy: &cluster.ServiceProxy{Affinity: cluster.DefaultAffinity, ExternalLocal: true}},
		"full": &cluster.Service{Namespace: ns, Name: "full", Type: cluster.LoadBalancer, ClusterIPs: addrs("10.96.0.13", "fd00:10:96::13"), Proxy: full, Ports: []cluster.ServicePort{
			{Name: "http", Protocol: cluster.TCP, Port: 80, NodePort: 30912}, {Name: "quic", Protocol: cluster.UDP, Port: 80, NodePort: 30912}, {Name: "plain", Protocol: cluster.TCP, Port: 81}}},
	}
	if d := cmp.Diff(want, got, sameValues); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	svc, err := services.Get(t.Context(), "full", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
		{IP: "192.0.2.3"}, {IP: "192.0.2.4", IPMode: new(corev1.LoadBalancerIPModeProxy)}, {Hostname: "lb.example.org"}, {IP: "2001:db8::3", IPMode: new(corev1.LoadBalancerIPModeVIP)},
	}
	if svc, err = services.UpdateStatus(t.Context(), svc, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if m := svc.Status.LoadBalancer.Ingress[0].IPMode; m == nil || *m != corev1.LoadBalancerIPModeVIP {
		t.Errorf("the mode of an address without one is %v, want VIP", m)
	}
	full.LoadBalancerIPs = addrs("192.0.2.3", "2001:db8::3")
	if d := cmp.Diff(want["full"], to.expect(t, "upsert full"), sameValues); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	path := "/api/v1/namespaces/" + ns + "/services"
	s.sameInFiles(t, path, nil, interest, want)
	s.sameEncodings(t, ns)

	svc.Labels = map[string]string{mine: ns, "service.kubernetes.io/service-proxy-name": "other"}
	if _, err = services.Update(t.Context(), svc, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	to.expect(t, "delete full")
}

// sameEncodings holds that services are the same in protobuf and JSON.
func (s *suite) sameEncodings(t *testing.T, ns string) {
	t.Helper()
	plain, err := s.plain.CoreV1().Services(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s.listServices(t, ns, metav1.ListOptions{}).Items, plain.Items); d != "" {
		t.Errorf("protobuf and JSON differ:\n%s", d)
	}
}

// Endpoints come with their conditions and hints, and those of headless services stay away.
func testSourceSlices(t *testing.T, s *suite) {
	ns := s.namespace(t)
	slices := s.client.DiscoveryV1().EndpointSlices(ns)
	zones := []discoveryv1.ForZone{{Name: "zone-a"}, {Name: "zone-b"}}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "web-1", Labels: map[string]string{mine: ns, discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv6,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080))}, {Name: new("all")}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"fd00:10:244::1", "fd00:10:244::2"}, NodeName: new("n1"), Zone: new("zone-a"),
				Hints: &discoveryv1.EndpointHints{ForZones: zones, ForNodes: []discoveryv1.ForNode{{Name: "n1"}}}},
			{Addresses: []string{"fd00:10:244::3"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)},
				Hints: &discoveryv1.EndpointHints{ForZones: zones[:1]}},
			{Addresses: []string{"fd00:10:244::4"}, Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)}},
		},
	}
	headless := slice.DeepCopy()
	headless.Name, headless.Labels[corev1.IsHeadlessService] = "db-1", ""
	for _, o := range []*discoveryv1.EndpointSlice{headless, slice} {
		if _, err := slices.Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	interest := cluster.Interest{Kinds: cluster.KindsOf(cluster.KindSlice), Labels: mine + "=" + ns, SliceLabels: "!" + corev1.IsHeadlessService, Proxy: true}
	to := s.source(t, interest)
	near := &cluster.Hints{ForZones: []string{"zone-a", "zone-b"}, ForNodes: []string{"n1"}}
	value := &cluster.Slice{
		Namespace: ns, Name: "web-1", Service: "web",
		Ports: []cluster.EndpointPort{{Name: "http", Protocol: cluster.TCP, Port: 8080}, {Name: "all", Protocol: cluster.TCP, Port: -1}},
		Endpoints: []cluster.Endpoint{
			{Addr: addrs("fd00:10:244::1")[0], NodeName: "n1", Zone: "zone-a", Ready: true}, {Addr: addrs("fd00:10:244::2")[0], NodeName: "n1", Zone: "zone-a", Ready: true},
			{Addr: addrs("fd00:10:244::3")[0]}, {Addr: addrs("fd00:10:244::4")[0], Ready: true},
		},
		Proxy: &cluster.SliceProxy{Endpoints: []cluster.EndpointProxy{
			{Serving: true, Hints: near}, {Serving: true, Extra: true, Hints: near},
			{Serving: true, Terminating: true, Hints: &cluster.Hints{ForZones: []string{"zone-a"}}}, {Serving: true},
		}},
	}
	want := map[string]cluster.Object{"web-1": value}
	if d := cmp.Diff(want, to.listed(t), sameValues); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	s.sameInFiles(t, "/apis/discovery.k8s.io/v1/namespaces/"+ns+"/endpointslices", nil, interest, want)

	slice, err := slices.Get(t.Context(), "web-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	slice.Endpoints[0].Hints = nil
	slice.Endpoints[2].Conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(false), Terminating: new(true)}
	if _, err := slices.Update(t.Context(), slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	value.Proxy.Endpoints[0].Hints, value.Proxy.Endpoints[1].Hints = nil, nil
	value.Proxy.Endpoints[3] = cluster.EndpointProxy{Terminating: true}
	value.Endpoints[3].Ready = false
	if d := cmp.Diff(cluster.Object(value), to.expect(t, "upsert web-1"), sameValues); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// The node that is asked for comes alone, and again when its label or an address of it changes.
func testSourceNodes(t *testing.T, s *suite) {
	name := s.namespace(t)
	nodes := s.client.CoreV1().Nodes()
	var node *corev1.Node
	for _, n := range []string{name + "-b", name} {
		var err error
		if node, err = nodes.Create(t.Context(), &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: n, Labels: map[string]string{corev1.LabelTopologyZone: "zone-a", corev1.LabelTopologyRegion: "region"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeHostName, Address: n}, {Type: corev1.NodeExternalIP, Address: "192.0.2.10"},
				{Type: corev1.NodeInternalIP, Address: "10.0.0.10"}, {Type: corev1.NodeInternalIP, Address: "fd00::10"},
			}},
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	interest := cluster.Interest{Kinds: cluster.KindsOf(cluster.KindNode), NodeName: name, OneNode: true, NodeNet: true}
	to := s.source(t, interest)
	net := &cluster.NodeNet{InternalIPs: addrs("10.0.0.10", "fd00::10"), ExternalIPs: addrs("192.0.2.10"), Zone: "zone-a", Created: node.CreationTimestamp.UTC()}
	want := map[string]cluster.Object{name: &cluster.Node{Name: name, Net: net}}
	if d := cmp.Diff(want, to.listed(t), sameValues); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	s.sameInFiles(t, "/api/v1/nodes", nil, interest, want)

	node.Labels[corev1.LabelTopologyZone] = "zone-b"
	node, err := nodes.Update(t.Context(), node, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	net.Zone = "zone-b"
	if d := cmp.Diff(want[name], to.expect(t, "upsert "+name), sameValues); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	node.Status.Addresses[2].Address = "10.0.0.11"
	if _, err := nodes.UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	net.InternalIPs = addrs("10.0.0.11", "fd00::10")
	if d := cmp.Diff(want[name], to.expect(t, "upsert "+name), sameValues); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for _, n := range []string{name + "-b", name} {
		if err := nodes.Delete(t.Context(), n, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	to.expect(t, "delete "+name)
}
