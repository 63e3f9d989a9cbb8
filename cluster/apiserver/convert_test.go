package apiserver

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	networkingv1beta1 "k8s.io/api/networking/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"

	"github.com/ropewalk-net/ropewalk/cluster"
)

var sameAddrs = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func ips(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func ranges(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// conversion is a row of a table: says are words of the faults, one for each.
type conversion struct {
	name string
	in   runtime.Object
	want cluster.Object
	says []string
}

func testConversions(t *testing.T, c converter, tests []conversion) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, why := c.object(tt.in)
			if d := cmp.Diff(tt.want, got, sameAddrs); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if len(why) != len(tt.says) {
				t.Fatalf("faults: %q, want %q", why, tt.says)
			}
			for i, s := range tt.says {
				if !strings.Contains(why[i], s) {
					t.Errorf("fault %q does not say %q", why[i], s)
				}
			}
		})
	}
}

func TestConvertService(t *testing.T) {
	meta := metav1.ObjectMeta{Namespace: "ns", Name: "s"}
	in := func(spec corev1.ServiceSpec) *corev1.Service { return &corev1.Service{ObjectMeta: meta, Spec: spec} }
	base := func(f func(*cluster.Service)) *cluster.Service {
		s := &cluster.Service{Namespace: "ns", Name: "s"}
		f(s)
		return s
	}
	testConversions(t, converter{}, []conversion{
		{"empty", in(corev1.ServiceSpec{}), base(func(*cluster.Service) {}), nil},
		{"dual-stack", in(corev1.ServiceSpec{ClusterIP: "10.0.0.1", ClusterIPs: []string{"10.0.0.1", "fd00::1"}}),
			base(func(s *cluster.Service) { s.ClusterIPs = ips("10.0.0.1", "fd00::1") }), nil},
		{"clusterIP alone", in(corev1.ServiceSpec{ClusterIP: "10.0.0.1"}),
			base(func(s *cluster.Service) { s.ClusterIPs = ips("10.0.0.1") }), nil},
		{"headless", in(corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}, PublishNotReadyAddresses: true}),
			base(func(s *cluster.Service) { s.Headless, s.PublishNotReady = true, true }), nil},
		{"headless by clusterIP alone", in(corev1.ServiceSpec{ClusterIP: "None"}),
			base(func(s *cluster.Service) { s.Headless = true }), nil},
		{"node port", in(corev1.ServiceSpec{Type: "NodePort"}), base(func(s *cluster.Service) { s.Type = cluster.NodePort }), nil},
		{"load balancer", in(corev1.ServiceSpec{Type: "LoadBalancer"}), base(func(s *cluster.Service) { s.Type = cluster.LoadBalancer }), nil},
		{"external name", in(corev1.ServiceSpec{Type: "ExternalName", ExternalName: "Example.ORG.", ClusterIP: "None"}),
			base(func(s *cluster.Service) { s.Type, s.ExternalName = cluster.ExternalName, "Example.ORG." }), nil},
		{"external name of another type", in(corev1.ServiceSpec{ExternalName: "example.org"}), base(func(*cluster.Service) {}), nil},
		{"unknown type", in(corev1.ServiceSpec{Type: "Magic", ClusterIP: "10.0.0.1"}),
			base(func(s *cluster.Service) { s.ClusterIPs = ips("10.0.0.1") }), []string{`"Magic"`}},
		{"bad addresses", in(corev1.ServiceSpec{ClusterIPs: []string{"10.0.0.256", "fe80::1%eth0", "", "fd00::1"}}),
			base(func(s *cluster.Service) { s.ClusterIPs = ips("fd00::1") }), []string{"10.0.0.256", "%eth0", `""`}},
		{"addresses of old", in(corev1.ServiceSpec{ClusterIPs: []string{"010.0.0.08", "::ffff:10.0.0.9"}}),
			base(func(s *cluster.Service) { s.ClusterIPs = ips("10.0.0.8", "10.0.0.9") }), nil},
		{"ports", in(corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}, {Name: "dns", Protocol: "UDP", Port: 53},
			{Name: "s", Protocol: "SCTP", Port: 65535}, {Name: "t", Protocol: "TCP", Port: 1}}}),
			base(func(s *cluster.Service) {
				s.Ports = []cluster.ServicePort{{Name: "", Protocol: "TCP", Port: 80}, {Name: "dns", Protocol: "UDP", Port: 53}, {Name: "s", Protocol: "SCTP", Port: 65535}, {Name: "t", Protocol: "TCP", Port: 1}}
			}), nil},
		{"bad ports", in(corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "a", Port: 0}, {Name: "b", Port: 65536},
			{Name: "c", Port: -1}, {Name: "d", Protocol: "tcp", Port: 1}, {Name: "e", Port: 5}}}),
			base(func(s *cluster.Service) { s.Ports = []cluster.ServicePort{{Name: "e", Protocol: "TCP", Port: 5}} }),
			[]string{`"a" has the number 0`, "65536", "-1", `"tcp"`}},
	})
}

func TestConvertSlice(t *testing.T) {
	in := func(f func(*discoveryv1.EndpointSlice)) *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s-1"}, AddressType: discoveryv1.AddressTypeIPv4}
		f(s)
		return s
	}
	want := func(f func(*cluster.Slice)) *cluster.Slice {
		s := &cluster.Slice{Namespace: "ns", Name: "s-1"}
		f(s)
		return s
	}
	addr := netip.MustParseAddr
	long := strings.Repeat("p", 100)
	testConversions(t, converter{names: newInterner()}, []conversion{
		{"empty", in(func(*discoveryv1.EndpointSlice) {}), want(func(*cluster.Slice) {}), nil},
		{"labels and trigger", in(func(s *discoveryv1.EndpointSlice) {
			s.Labels = map[string]string{"kubernetes.io/service-name": "s", "multicluster.kubernetes.io/service-name": "i",
				"multicluster.kubernetes.io/source-cluster": "c"}
			s.Annotations = map[string]string{"endpoints.kubernetes.io/last-change-trigger-time": "2024-05-06T07:08:09.123456789Z"}
		}), want(func(s *cluster.Slice) {
			s.Service, s.Import, s.Cluster = "s", "i", "c"
			s.Triggered = time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)
		}), nil},
		{"bad trigger", in(func(s *discoveryv1.EndpointSlice) {
			s.Annotations = map[string]string{"endpoints.kubernetes.io/last-change-trigger-time": "noon"}
		}), want(func(*cluster.Slice) {}), []string{`"noon"`}},
		{"names", in(func(s *discoveryv1.EndpointSlice) {
			s.AddressType = discoveryv1.AddressTypeFQDN
			s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"example.org"}}}
		}), nil, nil},
		{"endpoints", in(func(s *discoveryv1.EndpointSlice) {
			s.Endpoints = []discoveryv1.Endpoint{
				{Addresses: []string{"10.1.0.1", "10.1.0.2"}},
				{Addresses: []string{"10.1.0.3"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false)}, Hostname: new("h"),
					NodeName: new("n1"), Zone: new("Zone-A"), TargetRef: &corev1.ObjectReference{Kind: "Other", Name: long}},
				{Addresses: []string{"10.1.0.4"}, Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(false)}},
				{},
			}
		}), want(func(s *cluster.Slice) {
			s.Endpoints = []cluster.Endpoint{
				{Addr: addr("10.1.0.1"), Ready: true}, {Addr: addr("10.1.0.2"), Ready: true},
				{Addr: addr("10.1.0.3"), Hostname: "h", NodeName: "n1", Zone: "Zone-A", PodName: long},
				{Addr: addr("10.1.0.4"), Ready: true},
			}
		}), nil},
		{"addresses not in canonical form", in(func(s *discoveryv1.EndpointSlice) {
			s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"fd00::0:1", "FD00::2", "fd00::3", "::ffff:10.1.0.5", "010.1.0.6"}}}
		}), want(func(s *cluster.Slice) {
			s.Endpoints = []cluster.Endpoint{
				{Addr: addr("fd00::1"), Written: "fd00::0:1", Ready: true}, {Addr: addr("fd00::2"), Written: "FD00::2", Ready: true},
				{Addr: addr("fd00::3"), Ready: true}, {Addr: addr("10.1.0.5"), Written: "::ffff:10.1.0.5", Ready: true},
				{Addr: addr("10.1.0.6"), Written: "010.1.0.6", Ready: true},
			}
		}), nil},
		{"bad endpoints leave the others", in(func(s *discoveryv1.EndpointSlice) {
			s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"example.org", "10.1.0.1", "fe80::1%lo"}}, {Addresses: []string{""}}}
		}), want(func(s *cluster.Slice) {
			s.Endpoints = []cluster.Endpoint{{Addr: addr("10.1.0.1"), Ready: true}}
		}), []string{"example.org", "fe80::1%lo", `""`}},
		{"ports", in(func(s *discoveryv1.EndpointSlice) {
			s.Ports = []discoveryv1.EndpointPort{{}, {Name: new("dns"), Protocol: new(corev1.ProtocolUDP), Port: new(int32(53))},
				{Name: new("max"), Port: new(int32(65535))}, {Name: new("zero"), Port: new(int32(0))},
				{Name: new("big"), Port: new(int32(65536))}, {Name: new("x"), Protocol: new(corev1.Protocol("ICMP"))}}
		}), want(func(s *cluster.Slice) {
			s.Ports = []cluster.EndpointPort{{Name: "", Protocol: "TCP", Port: -1}, {Name: "dns", Protocol: "UDP", Port: 53}, {Name: "max", Protocol: "TCP", Port: 65535}}
		}), []string{`"zero"`, `"big"`, `"ICMP"`}},
		{"endless faults are bounded", in(func(s *discoveryv1.EndpointSlice) {
			s.Endpoints = []discoveryv1.Endpoint{{Addresses: make([]string, 100)}}
		}), want(func(s *cluster.Slice) { s.Endpoints = []cluster.Endpoint{} }), []string{"", "", "", "", "", "", "", "", "and more"}},
	})
}

func TestConvertPod(t *testing.T) {
	in := func(f func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", Labels: map[string]string{"app": "a"}}}
		p.Status.PodIPs = []corev1.PodIP{{IP: "10.1.0.1"}, {IP: "fd00::1"}}
		f(p)
		return p
	}
	want := &cluster.Pod{Namespace: "ns", Name: "p", IPs: ips("10.1.0.1", "fd00::1")}
	labelled := &cluster.Pod{Namespace: "ns", Name: "p", IPs: want.IPs, Labels: map[string]string{"app": "a"}}
	phase := func(p corev1.PodPhase) *corev1.Pod { return in(func(o *corev1.Pod) { o.Status.Phase = p }) }
	tests := []conversion{
		{"running", phase(corev1.PodRunning), want, nil},
		{"pending", phase(corev1.PodPending), want, nil},
		{"no phase", phase(""), want, nil},
		{"succeeded", phase(corev1.PodSucceeded), nil, nil},
		{"failed", phase(corev1.PodFailed), nil, nil},
		{"unknown", phase(corev1.PodUnknown), nil, nil},
		{"being deleted", in(func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }), nil, nil},
		{"zero deletion time", in(func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }), want, nil},
		{"no addresses", in(func(p *corev1.Pod) { p.Status.PodIPs, p.Status.PodIP = nil, "10.1.0.1" }), &cluster.Pod{Namespace: "ns", Name: "p"}, nil},
		{"bad address", in(func(p *corev1.Pod) { p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: "pending"}) }), want, []string{`"pending"`}},
	}
	testConversions(t, converter{}, tests)
	testConversions(t, converter{names: newInterner(), asks: asks{podLabels: true}}, []conversion{{"labels", tests[0].in, labelled, nil}})
}

func TestConvertPodHosts(t *testing.T) {
	in := func(f func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "8cf1b3e2"}}
		f(p)
		return p
	}
	want := func(f func(*cluster.PodHosts)) *cluster.Pod {
		p := &cluster.Pod{Namespace: "ns", Name: "p", Hosts: &cluster.PodHosts{UID: "8cf1b3e2"}}
		f(p.Hosts)
		return p
	}
	long := strings.Repeat("a", 64)
	testConversions(t, converter{names: newInterner(), asks: asks{podHosts: true}}, []conversion{
		{"plain", in(func(*corev1.Pod) {}), want(func(*cluster.PodHosts) {}), nil},
		{"names", in(func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain, p.Spec.HostnameOverride = "h", "s", new("o.x") }),
			want(func(h *cluster.PodHosts) { h.Hostname, h.Subdomain, h.HostnameOverride = "h", "s", "o.x" }), nil},
		// The kubelet's word counts on names: it does not start a pod that has a bad one, and nobody should tidy up behind it.
		{"bad names", in(func(p *corev1.Pod) { p.Spec.Hostname = "H_" }), want(func(h *cluster.PodHosts) { h.Hostname = "H_" }), nil},
		{"host network, no address", in(func(p *corev1.Pod) { p.Spec.HostNetwork = true }), want(func(h *cluster.PodHosts) { h.HostNetwork = true }), nil},
		{"service links", in(func(p *corev1.Pod) { p.Spec.EnableServiceLinks = new(true) }), want(func(*cluster.PodHosts) {}), nil},
		{"no service links", in(func(p *corev1.Pod) { p.Spec.EnableServiceLinks = new(false) }), want(func(h *cluster.PodHosts) { h.NoServiceLinks = true }), nil},
		{"annotations", in(func(p *corev1.Pod) {
			p.Annotations = map[string]string{"ropewalk.dev/a": "b", "ropewalk.dev/": "", "x.ropewalk.dev/c": "d", "e": "f"}
		}), want(func(h *cluster.PodHosts) {
			h.Annotations = map[string]string{"ropewalk.dev/a": "b", "ropewalk.dev/": ""}
		}), nil},
		{"others' annotations", in(func(p *corev1.Pod) { p.Annotations = map[string]string{"a": "b"} }), want(func(*cluster.PodHosts) {}), nil},
		{"aliases", in(func(p *corev1.Pod) {
			p.Spec.HostAliases = []corev1.HostAlias{{IP: "10.1.2.3", Hostnames: []string{"foo.remote", "bar"}}, {IP: "10.1.2.3"}, {IP: "010.1.2.3", Hostnames: []string{"old"}}, {IP: "FD00::1", Hostnames: []string{"six"}}}
		}), want(func(h *cluster.PodHosts) {
			h.Aliases = []cluster.HostAlias{{IP: "10.1.2.3", Hostnames: []string{"foo.remote", "bar"}}, {IP: "10.1.2.3"}, {IP: "010.1.2.3", Hostnames: []string{"old"}}, {IP: "FD00::1", Hostnames: []string{"six"}}}
		}), nil},
		{"bad aliases leave the others", in(func(p *corev1.Pod) {
			p.Spec.HostAliases = []corev1.HostAlias{{IP: "10.1.2.3 evil", Hostnames: []string{"a"}}, {}, {IP: "fe80::1%eth0", Hostnames: []string{"b"}}, {IP: "10.1.2.4", Hostnames: []string{"ok", "no\n10.6.6.6\tbank"}},
				{IP: "10.1.2.5", Hostnames: []string{long}}, {IP: "10.1.2.6", Hostnames: []string{""}}}
		}), want(func(h *cluster.PodHosts) {
			h.Aliases = []cluster.HostAlias{{IP: "10.1.2.5", Hostnames: []string{long}}}
		}),
			[]string{`"10.1.2.3 evil"`, `""`, "%eth0", `10.6.6.6`, `10.1.2.6 has the name ""`}},
		{"no UID", in(func(p *corev1.Pod) { p.UID = "" }), nil, []string{`uid ""`}},
		{"a UID that leads elsewhere", in(func(p *corev1.Pod) { p.UID = "../other" }), nil, []string{`uid "../other"`}},
		{"a UID that leads up", in(func(p *corev1.Pod) { p.UID = ".." }), nil, []string{`uid ".."`}},
	})
}

func TestConvertConfigMap(t *testing.T) {
	meta := metav1.ObjectMeta{Namespace: "ns", Name: "m", Labels: map[string]string{"app": "a", "ropewalk.dev/host-aliases": "namespace"}}
	data := map[string]string{"hosts": "10.1.2.3 foo.remote\n", "empty": ""}
	gone := meta
	gone.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	want := &cluster.ConfigMap{Namespace: "ns", Name: "m", Labels: map[string]string{"ropewalk.dev/host-aliases": "namespace"}, Data: data}
	testConversions(t, converter{names: newInterner()}, []conversion{
		{"data", &corev1.ConfigMap{ObjectMeta: meta, Data: data, BinaryData: map[string][]byte{"b": {1}}}, want, nil},
		{"being deleted", &corev1.ConfigMap{ObjectMeta: gone, Data: data}, want, nil},
		{"nothing", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m"}, Data: map[string]string{}}, &cluster.ConfigMap{Namespace: "ns", Name: "m"}, nil},
	})
	v, _ := new(converter).object(&corev1.ConfigMap{ObjectMeta: meta, Data: data})
	data["hosts"] = "another object's"
	if v.(*cluster.ConfigMap).Data["hosts"] == data["hosts"] {
		t.Error("the value shares the object's map")
	}
}

func TestConvertOthers(t *testing.T) {
	meta := metav1.ObjectMeta{Namespace: "ns", Name: "o"}
	testConversions(t, converter{names: newInterner()}, []conversion{
		{"namespace", &corev1.Namespace{ObjectMeta: meta}, &cluster.Namespace{Name: "o"}, nil},
		{"terminating namespace", &corev1.Namespace{ObjectMeta: meta, Status: corev1.NamespaceStatus{Phase: "Terminating"}}, &cluster.Namespace{Name: "o"}, nil},
		{"node", &corev1.Node{ObjectMeta: meta, Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24", PodCIDRs: []string{"10.1.0.0/24", "fd00::/64"}}},
			&cluster.Node{Name: "o", PodCIDRs: ranges("10.1.0.0/24", "fd00::/64")}, nil},
		{"node of old", &corev1.Node{ObjectMeta: meta, Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24"}}, &cluster.Node{Name: "o", PodCIDRs: ranges("10.1.0.0/24")}, nil},
		{"node without a range", &corev1.Node{ObjectMeta: meta}, &cluster.Node{Name: "o"}, nil},
		{"bad ranges", &corev1.Node{ObjectMeta: meta, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.1.0.0", "10.1.0.0/33", "10.1.0.7/24", "010.2.0.0/16"}}},
			&cluster.Node{Name: "o", PodCIDRs: ranges("10.1.0.0/24", "10.2.0.0/16")}, []string{`"10.1.0.0"`, "/33"}},
		{"service CIDR", &networkingv1.ServiceCIDR{ObjectMeta: meta, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12", "fd96::/108"}}},
			&cluster.ServiceCIDR{Name: "o", CIDRs: ranges("10.96.0.0/12", "fd96::/108")}, nil},
		{"service CIDR being deleted", &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "o", DeletionTimestamp: &metav1.Time{Time: time.Unix(1, 0)}},
			Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12"}}}, &cluster.ServiceCIDR{Name: "o", CIDRs: ranges("10.96.0.0/12")}, nil},
		{"service CIDR, beta", &networkingv1beta1.ServiceCIDR{ObjectMeta: meta, Spec: networkingv1beta1.ServiceCIDRSpec{CIDRs: []string{"x", "10.96.0.0/12"}}},
			&cluster.ServiceCIDR{Name: "o", CIDRs: ranges("10.96.0.0/12")}, []string{`"x"`}},
		{"import", &mcsv1alpha1.ServiceImport{ObjectMeta: meta, Spec: mcsv1alpha1.ServiceImportSpec{Type: "ClusterSetIP", IPs: []string{"10.5.0.1", "?"},
			Ports: []mcsv1alpha1.ServicePort{{Name: "http", Port: 80}, {Name: "bad", Port: 70000}}}},
			&cluster.ServiceImport{Namespace: "ns", Name: "o", IPs: ips("10.5.0.1"), Ports: []cluster.ServicePort{{Name: "http", Protocol: "TCP", Port: 80}}}, []string{`"?"`, "70000"}},
		{"headless import", &mcsv1alpha1.ServiceImport{ObjectMeta: meta, Spec: mcsv1alpha1.ServiceImportSpec{Type: "Headless", IPs: []string{"10.5.0.1"}}},
			&cluster.ServiceImport{Namespace: "ns", Name: "o", Headless: true}, nil},
		{"something else", &corev1.Secret{ObjectMeta: meta}, nil, []string{"Secret"}},
	})
}

func TestInternerIsBounded(t *testing.T) {
	n := newInterner()
	for i := range 3 * maxInterned {
		s := fmt.Sprint("node-", i)
		if n.get(s) != s {
			t.Fatalf("%s became another string", s)
		}
	}
	if len(n.strings) > maxInterned {
		t.Errorf("%d strings are kept, want %d at most", len(n.strings), maxInterned)
	}
}

func TestComplaintsAreBounded(t *testing.T) {
	var c complaints
	key := func(i int) cluster.Key { return cluster.Key{Namespace: "ns", Name: fmt.Sprint(i)} }
	spoken := 0
	for range 3 {
		for i := range 2 * maxComplaints {
			switch c.add(key(i), faults{"bad"}) {
			case speak, speakLast:
				spoken++
			}
		}
	}
	if spoken != maxComplaints || len(c.about) != maxComplaints {
		t.Errorf("%d spoken, %d kept, want %d", spoken, len(c.about), maxComplaints)
	}
	if v := c.add(key(0), faults{"worse"}); v != speak {
		t.Errorf("another reason: %v", v)
	}
	c.forget(key(0))
	if v := c.add(key(0), faults{"worse"}); v == silent {
		t.Error("bad again after it was good, and nothing said")
	}
}

// FuzzConvert holds that no bytes a server may send make decoding or conversion panic, and that what comes out is fit
// to be served.
func FuzzConvert(f *testing.F) {
	for k := range cluster.NumKinds {
		f.Add(uint8(k), []byte(`{"metadata":{"namespace":"ns","name":"a","uid":"u","labels":{"a":"b"},"annotations":{"ropewalk.dev/a":"b"}},`+
			`"data":{"hosts":"1.2.3.4 a"},"binaryData":{"b":"AA=="},"spec":{"hostAliases":[{"ip":"1.2.3.4","hostnames":["a"]},{"ip":"a b"}],`+
			`"hostname":"h","hostNetwork":true,"enableServiceLinks":false,"hostnameOverride":null,"clusterIP":"None","clusterIPs":["10.0.0.1","x"],`+
			`"ports":[{"port":80,"nodePort":30000},{"port":99999,"protocol":"X"}],"externalIPs":["::","1.2.3.4"],"loadBalancerSourceRanges":[" 0.0.0.0/0","x"],`+
			`"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":0}},"externalTrafficPolicy":"Local","internalTrafficPolicy":"Local",`+
			`"healthCheckNodePort":99999,"podCIDRs":["10.0.0.0/33"],"cidrs":["::/0"],"ips":["1"],"type":"ExternalName"},`+
			`"endpoints":[{"addresses":["::1%a","1.2.3.4"],"conditions":{"ready":null,"serving":false},"targetRef":null,"hints":{"forZones":[{"name":""},{"name":"z"}],"forNodes":[{}]}}],"addressType":"IPv4",`+
			`"ports":[{"port":null}],"status":{"podIPs":[{"ip":"::ffff:1.2.3.4"}],"loadBalancer":{"ingress":[{"ip":"1.2.3.4","ipMode":"VIP"},{"ip":"x"}]},"addresses":[{"type":"InternalIP","address":"::1%a"}]}}`))
	}
	f.Add(uint8(1), []byte("k8s\x00\x0a\x0d\x0a\x02v1\x12\x07Service\x12\x02\x0a\x00"))
	codec, err := newCodec()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, kind uint8, raw []byte) {
		conv := &converter{names: newInterner(), asks: asks{podLabels: true, podHosts: true, proxy: true, nodeNet: true}}
		res := resourceOf(cluster.Kind(kind) % cluster.NumKinds)
		d := newDecoder(codec, res.kind, res.objectKind(res.versions[0]), conv)
		_, _ = d.list(bytes.NewReader(raw), func(runtime.Object, *undecoded) {})
		o, err := d.one(raw)
		if err != nil {
			newUndecoded(raw, err)
			return
		}
		v, _ := conv.object(o)
		checkProxy(t, v)
		switch v := v.(type) {
		case *cluster.Slice:
			for _, e := range v.Endpoints {
				if !e.Addr.IsValid() || e.Addr.Zone() != "" || e.Addr.Is4In6() || e.Written == e.Addr.String() {
					t.Errorf("endpoint %+v", e)
				}
			}
		case *cluster.Pod:
			if u := v.Hosts.UID; u == "" || u == "." || u == ".." || strings.Contains(u, "/") {
				t.Errorf("UID %q", u)
			}
			for _, a := range v.Hosts.Aliases {
				if strings.ContainsAny(a.IP+strings.Join(a.Hostnames, ""), " \t\r\n#") {
					t.Errorf("alias %q", a)
				}
			}
		}
	})
}
