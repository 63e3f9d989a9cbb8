package proxy

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

const everywhere = "cluster external lb node"

func internalLocal(s *corev1.Service) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	s.Spec.InternalTrafficPolicy = &local
}

func externalLocal(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 32000
}

// TestServices has clients of all kinds see what becomes of connections, with one agent through all of it: each step is a change
// of what was there before.
func TestServices(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := newRig(t, 3)
	r.start()
	r.ready()
	for _, step := range []struct {
		name   string
		change func()
		probes []probe
	}{
		{"ClusterIPs, node ports, external and load balancers' addresses lead to all endpoints", func() { r.put(service("web"), "pod0", "far") }, []probe{
			{from: "pod1 node outside second", to: everywhere, want: "pod0 far"},
			{from: "pod1", to: "cluster", want: "pod0 far", keep: kept},
			{from: "node", to: "cluster", want: "pod0 far", keep: kept},
			{from: "outside", to: everywhere, want: "pod0 far", keep: lost},
			{from: "pod1", to: "external lb node", want: "pod0 far", keep: lost},
		}},
		{"a port that a ClusterIP has not is rejected, an address that no service has gets no answer", nil, []probe{
			{from: "pod1 node outside", to: "10.96.0.10:81 [fd00:96::10]:81", want: "refused"},
			{from: "pod1 node outside", to: "10.96.7.7:80 [fd00:96::7]:80", want: "timeout"},
		}},
		{"a pod reaches itself", func() { r.put(service("web"), "pod0") }, []probe{
			{from: "pod0", to: everywhere, want: "pod0", keep: lost},
			{from: "pod1", to: "cluster", want: "pod0", keep: kept},
		}},
		{"without endpoints all is rejected", func() { r.put(service("web")) }, []probe{
			{from: "pod1 node outside", to: everywhere, want: "refused"},
		}},
		{"endpoints of two slices, each with its own port", func() {
			for _, e := range append(endpoints("web", 8080, "pod0"), endpoints("web", 9090, "pod1")...) {
				r.api.Apply(e)
			}
			r.settle()
		}, []probe{{from: "pod2 outside", to: everywhere, want: "pod0 pod1"}}},
		{"endpoints that are not ready get nothing, and those that leave only where there are no others", func() {
			for _, e := range endpoints("web", 9090, "pod1") {
				r.api.Delete(e)
			}
			r.put(service("web"), "pod0,unready", "pod1,leaving", "far,leaving")
		}, []probe{{from: "pod2 outside", to: everywhere, want: "pod1 far"}}},
		{"one that is ready takes all from those that leave", func() { r.put(service("web"), "pod0", "pod1,leaving") }, []probe{
			{from: "pod2 outside", to: everywhere, want: "pod0"},
		}},
		{"internalTrafficPolicy Local", func() { r.put(service("web", internalLocal), "pod0", "pod1", "far") }, []probe{
			{from: "pod2 node outside", to: "cluster", want: "pod0 pod1"},
			{from: "pod2 outside", to: "node lb", want: "pod0 pod1 far"},
		}},
		{"internalTrafficPolicy Local, none local", func() { r.put(service("web", internalLocal), "far") }, []probe{
			{from: "pod2 node", to: "cluster", want: "timeout"},
			{from: "pod2 outside", to: "node lb", want: "far"},
		}},
		{"internalTrafficPolicy Local, none at all", func() { r.put(service("web", internalLocal)) }, []probe{
			{from: "pod2 node", to: everywhere, want: "refused"},
		}},
		{"externalTrafficPolicy Local", func() { r.put(service("web", externalLocal), "pod0", "pod1", "far") }, []probe{
			{from: "outside", to: "external lb node", want: "pod0 pod1", keep: kept},
			{from: "outside", to: "cluster", want: "pod0 pod1 far", keep: lost},
			{from: "pod2", to: "external lb node", want: "pod0 pod1 far", keep: kept},
			{from: "node", to: "external lb node", want: "pod0 pod1 far"},
		}},
		{"externalTrafficPolicy Local, those on this node leave", func() { r.put(service("web", externalLocal), "pod0,leaving", "far") }, []probe{
			{from: "outside", to: "external lb node", want: "pod0", keep: kept},
			{from: "pod2 node", to: everywhere, want: "far"},
		}},
		{"externalTrafficPolicy Local, none local", func() { r.put(service("web", externalLocal), "far") }, []probe{
			{from: "outside", to: "external lb node", want: "timeout"},
			{from: "pod2 node", to: everywhere, want: "far"},
		}},
		{"externalTrafficPolicy Local, none at all", func() { r.put(service("web", externalLocal)) }, []probe{
			{from: "outside pod2 node", to: everywhere, want: "refused"},
		}},
		{"source ranges, of one family", func() {
			r.put(service("web", func(s *corev1.Service) {
				s.Spec.LoadBalancerSourceRanges = []string{clusternet.Outside4 + "/32", "2001:db8:ffff::/48"}
			}), "pod0")
		}, []probe{
			{from: "outside", to: "203.0.113.1:80", want: "pod0"}, {from: "outside", to: "[2001:db8:113::1]:80", want: "timeout"},
			{from: "second pod1 node", to: "203.0.113.1:80", want: "timeout"},
			{from: "outside pod1 node", to: "cluster external node", want: "pod0"},
		}},
		{"source ranges hold while there are no endpoints", func() {
			r.put(service("web", func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{clusternet.Outside4 + "/32"} }))
		}, []probe{
			{from: "outside", to: "203.0.113.1:80", want: "refused"}, {from: "pod1", to: "203.0.113.1:80", want: "timeout"},
		}},
		{"addresses that a load balancer keeps to itself (ipMode Proxy) are not the proxy's", func() {
			proxy := corev1.LoadBalancerIPModeProxy
			s := service("web")
			for i := range s.Status.LoadBalancer.Ingress {
				s.Status.LoadBalancer.Ingress[i].IPMode = &proxy
			}
			r.put(s, "pod0")
		}, []probe{{from: "outside", to: "cluster external node", want: "pod0"}, {from: "node", to: "lb", either: true, want: "timeout no-route"}}},
		{"hints for this zone", func() { r.put(service("web"), "pod0,zone=z2", "pod1,zone=z1", "far,zone=z3") }, []probe{
			{from: "pod2 outside", to: everywhere, want: "pod1"},
		}},
		{"the node's zone changes", func() {
			r.api.Apply(node(func(n *corev1.Node) { n.Labels[corev1.LabelTopologyZone] = "z3" }))
		}, []probe{{from: "pod2 outside", to: everywhere, want: "far"}}},
		{"hints for this node", func() { r.put(service("web"), "pod0,node=n1", "far,node=n2,zone=z3") }, []probe{
			{from: "pod2 outside", to: everywhere, want: "pod0"},
		}},
		{"one endpoint without a hint", func() { r.put(service("web"), "pod0,node=n1", "far") }, []probe{
			{from: "pod2 outside", to: everywhere, want: "pod0 far"},
		}},
		{"a service of one family leaves the other alone", func() {
			r.put(service("web", func(s *corev1.Service) {
				s.Spec.ClusterIPs, s.Spec.IPFamilies = s.Spec.ClusterIPs[:1], s.Spec.IPFamilies[:1]
				single := corev1.IPFamilyPolicySingleStack
				s.Spec.IPFamilyPolicy = &single
			}), "pod0")
		}, []probe{
			{from: "outside pod1 node", to: "10.96.0.10:80 198.51.100.1:80 203.0.113.1:80 192.0.2.1:30080", want: "pod0"},
			{from: "outside pod1 node", to: "[fd00:96::10]:80", want: "timeout"},
			{from: "outside pod1 node", to: "[2001:db8::1]:30080", want: "refused"},
		}},
		{"another proxy's service, and one that is headless, are let be", func() {
			r.put(service("web", func(s *corev1.Service) {
				s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
			}), "pod0")
			r.api.Apply(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "headless"},
				Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, ClusterIPs: []string{corev1.ClusterIPNone}, ExternalIPs: externalIPs, Ports: service("").Spec.Ports[:1]}})
		}, []probe{{from: "outside pod1 node", to: "cluster", want: "timeout"}, {from: "outside", to: "node", want: "refused"}}},
		{"it is ours again", func() { r.put(service("web"), "pod0") }, []probe{{from: "outside pod1 node", to: everywhere, want: "pod0"}}},
		{"a further address of the node does not take node ports", func() {
			netns.Batch(t, "", "addr add 192.0.2.9/24 dev eth0\naddr add 2001:db8::9/64 dev eth0 nodad\n")
		}, []probe{{from: "outside", to: "192.0.2.9:30080 [2001:db8::9]:30080", want: "refused"}}},
		{"the node's address changes", func() {
			r.api.Apply(node(func(n *corev1.Node) {
				n.Status.Addresses[0].Address, n.Status.Addresses[1].Address = "192.0.2.9", "2001:db8::9"
			}))
		}, []probe{
			{from: "outside pod1", to: "192.0.2.9:30080 [2001:db8::9]:30080", want: "pod0"},
			{from: "outside pod1", to: "node", want: "refused"}, {from: "pod1", to: "cluster", want: "pod0", keep: kept},
		}},
		{"a range of services' addresses comes, twice", func() {
			r.api.Apply(node(), cidrs("more", "198.51.100.0/25"), cidrs("the-same", "198.51.100.0/25"))
		}, []probe{{from: "outside pod1", to: "198.51.100.77:80", want: "timeout"}, {from: "outside", to: "node external", want: "pod0"}}},
		{"a service goes", func() { r.take("web") }, []probe{
			{from: "outside pod1 node", to: "cluster", want: "timeout"}, {from: "outside", to: "node", want: "refused"},
		}},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			if step.change != nil {
				step.change()
			}
			(&rig{T: t}).see(step.probes...)
		}) {
			break
		}
	}
	if strings.Contains(r.log.String(), "level=ERROR") {
		t.Error("errors in the log")
	}
}

// TestServiceCIDRs holds that connections to an address of a range that no service has are dropped for as long as an object has the
// range.
func TestServiceCIDRs(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := newRig(t, 1)
	r.start()
	r.ready()
	// 198.51.100.200 is the node's own, so that what is not dropped is refused by it.
	netns.Batch(t, "", "addr add 198.51.100.200/32 dev lo\n")
	free := probe{from: "outside pod0", to: "198.51.100.200:80", want: "refused"}
	taken := probe{from: "outside pod0", to: "198.51.100.200:80", want: "timeout"}
	r.see(free)
	a, b := cidrs("a", "198.51.100.128/25"), cidrs("b", "198.51.100.128/25")
	r.api.Apply(a)
	r.see(taken)
	r.api.Apply(b)
	now := metav1.Now()
	a.DeletionTimestamp = &now
	a.Finalizers = []string{"networking.k8s.io/service-cidr-finalizer"}
	r.api.Apply(a)
	r.see(taken)
	r.api.Delete(b)
	r.see(taken)
	r.api.Delete(a)
	r.see(free)
}
