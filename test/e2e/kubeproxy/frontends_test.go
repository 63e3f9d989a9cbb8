package kubeproxy

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	kubeproxy "k8s.io/kubernetes/pkg/proxy"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/apiserver"
	"github.com/ropewalk-net/ropewalk/proxy/frontends"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

const (
	generated = 3000
	namespace = "shop"
)

// places are nodes, some of which endpoints and hints name.
var places = []struct{ node, zone string }{{"n1", "z1"}, {"n2", "z1"}, {"n3", "z2"}, {"n4", "z9"}, {"n5", ""}}

// outcomes are words of lines.
var outcomes = []string{"to ", "inside ", "reject ", "drop ", "ranges ", "affinity "}

// TestFrontends compares what is made of services and slices with what kube-proxy's own code chooses, from the API's objects on: for
// each address and port where the connections of clients outside and inside go, what becomes of them if nowhere, whom a load
// balancer's address lets in, affinity, and what health checks are told.
func TestFrontends(t *testing.T) {
	klog.SetLogger(logr.Discard()) // it tells of each port that is left open
	t.Cleanup(klog.ClearLogger)
	r := rand.New(rand.NewPCG(1, 2))
	api := standin.New(t)
	var services []*v1.Service
	var list []*discovery.EndpointSlice
	for i := range generated {
		s := randomService(r, i)
		services = append(services, s)
		list = append(list, randomSlices(r, s.Name, i)...)
	}
	for _, s := range services {
		api.Apply(s)
	}
	for _, s := range list {
		api.Apply(s)
	}
	changes := read(t, api)
	chosen := map[string]int{}
	for _, p := range places {
		b := frontends.New(frontends.Options{NodeName: p.node})
		for _, c := range changes {
			b.Apply(c)
		}
		node := &cluster.Node{Name: p.node, Net: &cluster.NodeNet{InternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Zone: p.zone}}
		b.Apply(cluster.Upserted(node, time.Time{}))
		d := b.Take()
		got := map[frontends.Key]string{}
		for _, f := range d.Put {
			got[f.Key] = show(f)
		}
		want, health := ofKubeProxy(services, list, p.node, p.zone)
		for _, w := range want {
			for _, o := range outcomes {
				if strings.Contains(w, o) {
					chosen[o]++
				}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v: -kube-proxy +ropewalk:\n%.8000s", p, diff)
		}
		if diff := cmp.Diff(health, d.Health); diff != "" {
			t.Errorf("%v: health: -kube-proxy +ropewalk:\n%.4000s", p, diff)
		}
		if len(d.Rivals) > 0 {
			t.Errorf("%d rivals", len(d.Rivals))
		}
	}
	for _, o := range outcomes { // the objects are such that there is something to compare
		if chosen[o] < 1000 {
			t.Errorf("%q is the outcome of %d only", o, chosen[o])
		}
	}
	t.Log(chosen)
}

// read returns what the source makes of all objects of an API server.
func read(t *testing.T, api *standin.Server) []cluster.Change {
	t.Helper()
	source, err := apiserver.New(apiserver.Config{Kubeconfig: api.Kubeconfig(t.TempDir()), Log: slog.New(slog.DiscardHandler), OnError: func(k cluster.Kind, err error) {
		t.Errorf("%v: %v", k, err)
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	interest := frontends.Interest(places[0].node)
	in := make(chan cluster.Change)
	go func() {
		defer close(in)
		if err := source.Run(ctx, interest, sink(in)); err != nil {
			t.Error(err)
		}
	}()
	var out []cluster.Change
	synced := map[cluster.Kind]bool{}
	for c := range in {
		out = append(out, c)
		if c.Op == cluster.Synced {
			synced[c.Kind] = true
		}
		if len(synced) == 4 {
			cancel()
		}
	}
	if len(synced) != 4 {
		t.Fatalf("synced: %v", synced)
	}
	return out
}

type sink chan<- cluster.Change

func (s sink) Apply(c cluster.Change) { s <- c }

// show writes what is compared of a frontend.
func show(f *frontends.Frontend) string {
	empty := "reject"
	if f.Empty == frontends.Drop {
		empty = "drop"
	}
	return line(texts(f.Backends), texts(f.Internal), empty, texts(f.Sources), f.Affinity)
}

func line(backends, internal []string, empty string, sources []string, affinity time.Duration) string {
	out := ""
	for _, l := range []struct {
		name string
		list []string
	}{{"to", backends}, {"inside", internal}, {"ranges", sources}} {
		if len(l.list) > 0 {
			slices.Sort(l.list)
			out += l.name + " " + strings.Join(l.list, ",") + " "
		}
	}
	if len(backends) == 0 {
		out += empty + " "
	}
	if affinity > 0 {
		out += "affinity " + affinity.String()
	}
	return out
}

func texts[T fmt.Stringer](list []T) []string {
	var out []string
	for _, x := range list {
		out = append(out, x.String())
	}
	return out
}

// ofKubeProxy returns what kube-proxy's code chooses. The few lines that are ours put together what its nftables mode does with
// it (pkg/proxy/nftables/proxier.go, syncProxyRules).
func ofKubeProxy(services []*v1.Service, list []*discovery.EndpointSlice, node, zone string) (map[frontends.Key]string, map[cluster.Key]frontends.Health) {
	out, health := map[frontends.Key]string{}, map[cluster.Key]frontends.Health{}
	for _, family := range []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol} {
		st := kubeproxy.NewServiceChangeTracker(family, nil, nil)
		for _, s := range services {
			st.Update(nil, s)
		}
		ports := kubeproxy.ServicePortMap{}
		ports.Update(st)
		et := kubeproxy.NewEndpointsChangeTracker(family, node, nil, nil)
		for _, s := range list {
			et.EndpointSliceUpdate(s, false)
		}
		endpoints := kubeproxy.EndpointsMap{}
		endpoints.Update(et)
		for name, p := range ports {
			choose(out, family, p, endpoints[name], node, zone)
		}
		local := endpoints.LocalReadyEndpoints()
		for name, port := range ports.HealthCheckNodePorts() {
			k := cluster.Key{Namespace: name.Namespace, Name: name.Name}
			health[k] = frontends.Health{Port: port, Local: max(health[k].Local, local[name])}
		}
	}
	return out, health
}

func choose(out map[frontends.Key]string, family v1.IPFamily, p kubeproxy.ServicePort, endpoints []kubeproxy.Endpoint, node, zone string) {
	everywhere, local, _, any := kubeproxy.CategorizeEndpoints(endpoints, p, node, map[string]string{v1.LabelTopologyZone: zone})
	affinity := time.Duration(p.StickyMaxAgeSeconds()) * time.Second
	protocol := map[v1.Protocol]frontends.Protocol{v1.ProtocolTCP: frontends.TCP, v1.ProtocolUDP: frontends.UDP, v1.ProtocolSCTP: frontends.SCTP}[p.Protocol()]
	put := func(addr fmt.Stringer, port int, line string) {
		out[frontends.Key{Addr: netip.MustParseAddr(addr.String()), Protocol: protocol, Port: uint16(port)}] = line
	}
	empty := func(localOnly bool) string {
		if localOnly && any {
			return "drop"
		}
		return "reject"
	}
	to := everywhere
	if p.InternalPolicyLocal() {
		to = local
	}
	put(p.ClusterIP(), p.Port(), line(texts(to), nil, empty(p.InternalPolicyLocal()), nil, affinity))
	to = everywhere
	var inside []kubeproxy.Endpoint // the short circuit
	if p.ExternalPolicyLocal() {
		to, inside = local, everywhere
	}
	outside := func(sources []string) string {
		return line(texts(to), texts(inside), empty(p.ExternalPolicyLocal()), sources, affinity)
	}
	for _, a := range p.ExternalIPs() {
		put(a, p.Port(), outside(nil))
	}
	for _, a := range p.LoadBalancerVIPs() { // its firewall holds for an external IP at the same address, too
		put(a, p.Port(), outside(texts(p.LoadBalancerSourceRanges())))
	}
	if p.NodePort() != 0 {
		any := netip.IPv4Unspecified()
		if family == v1.IPv6Protocol {
			any = netip.IPv6Unspecified()
		}
		put(any, p.NodePort(), outside(nil))
	}
}

// randomService returns one of which no address is another's.
func randomService(r *rand.Rand, i int) *v1.Service {
	one := func(n int) bool { return r.IntN(n) == 0 }
	in := func(prefix4, prefix6 string) []string {
		return []string{fmt.Sprintf("%s.%d.%d", prefix4, i>>8, i&255), fmt.Sprintf("%s::%x", prefix6, i+1)}
	}
	families := [][]v1.IPFamily{{v1.IPv4Protocol, v1.IPv6Protocol}, {v1.IPv4Protocol}, {v1.IPv6Protocol}}[r.IntN(3)]
	s := &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprint("s", i)},
		Spec:       v1.ServiceSpec{Type: v1.ServiceTypeClusterIP, IPFamilies: families},
	}
	for _, f := range families {
		ips := in("10.96", "fd00:96")
		if f == v1.IPv4Protocol {
			s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, ips[0])
		} else {
			s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, ips[1])
		}
	}
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	switch r.IntN(3) {
	case 0:
		s.Spec.Type = v1.ServiceTypeNodePort
	case 1:
		s.Spec.Type = v1.ServiceTypeLoadBalancer
		s.Spec.HealthCheckNodePort = int32(20000 + i)
		for _, ip := range in("198.18", "fd00:18") {
			mode := []v1.LoadBalancerIPMode{v1.LoadBalancerIPModeVIP, v1.LoadBalancerIPModeProxy}[r.IntN(2)]
			ing := v1.LoadBalancerIngress{IP: ip, IPMode: &mode}
			if one(2) {
				ing.IPMode = nil
			}
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, ing)
		}
		s.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24", " 203.0.113.0/24", "2001:db8::/32", "::/0"}[r.IntN(4):][:r.IntN(2)]
	}
	if one(3) {
		s.Spec.ExternalIPs = in("198.19", "fd00:19")
	}
	if one(10) { // those that the load balancer may have
		s.Spec.ExternalIPs = in("198.18", "fd00:18")
	}
	external, internal := v1.ServiceExternalTrafficPolicyCluster, v1.ServiceInternalTrafficPolicyCluster
	if one(2) {
		external = v1.ServiceExternalTrafficPolicyLocal
	}
	if one(3) {
		internal = v1.ServiceInternalTrafficPolicyLocal
	}
	s.Spec.ExternalTrafficPolicy, s.Spec.InternalTrafficPolicy = external, &internal
	if one(4) {
		seconds := int32(1 + r.IntN(86400))
		s.Spec.SessionAffinity = v1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	for j, name := range []string{"http", "dns", "dns-tcp"}[:1+r.IntN(3)] {
		p := v1.ServicePort{Name: name, Protocol: []v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP, v1.ProtocolSCTP}[r.IntN(3)], Port: int32(80 + j)}
		if s.Spec.Type != v1.ServiceTypeClusterIP && !one(4) {
			p.NodePort = int32(30000 + 3*i + j)
		}
		s.Spec.Ports = append(s.Spec.Ports, p)
	}
	return s
}

// randomSlices returns a service's slices. An endpoint may be in several, with the same state, or ready in one and terminating in another: of
// others at the same address kube-proxy takes one by chance.
func randomSlices(r *rand.Rand, service string, i int) []*discovery.EndpointSlice {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	yes, no := true, false
	conditions := []discovery.EndpointConditions{
		{}, {Ready: &yes, Serving: &yes, Terminating: &no}, {Ready: &yes},
		{Ready: &no}, {Ready: &no, Serving: &no}, {Ready: &no, Serving: &no, Terminating: &yes}, {Ready: &no, Serving: &yes},
		{Ready: &no, Serving: &yes, Terminating: &yes}, {Ready: &no, Terminating: &yes}, {Ready: &yes, Serving: &yes, Terminating: &yes},
	}
	if r.IntN(3) == 0 { // so that there are services none of whose endpoints is ready
		conditions = conditions[3:9]
	}
	hinted := pick("none", "zones", "nodes", "both", "mixed")
	hints := func() *discovery.EndpointHints {
		how := hinted
		if how == "mixed" {
			how = pick("none", "zones", "nodes", "both", "both")
		}
		h := &discovery.EndpointHints{}
		if how == "zones" || how == "both" {
			for _, z := range []string{"z1", "z2", "z3"}[r.IntN(2):][:1+r.IntN(2)] {
				h.ForZones = append(h.ForZones, discovery.ForZone{Name: z})
			}
		}
		if how == "nodes" || how == "both" {
			h.ForNodes = append(h.ForNodes, discovery.ForNode{Name: pick("n1", "n2", "n3")})
		}
		if len(h.ForZones)+len(h.ForNodes) == 0 && r.IntN(2) == 0 {
			return nil
		}
		return h
	}
	pool := map[string]discovery.Endpoint{}
	var out []*discovery.EndpointSlice
	for n := range r.IntN(6) {
		is4 := r.IntN(2) == 0
		s := &discovery.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprint(service, "-", n), Labels: map[string]string{discovery.LabelServiceName: service}},
			AddressType: discovery.AddressTypeIPv6,
		}
		if is4 {
			s.AddressType = discovery.AddressTypeIPv4
		}
		for _, name := range []string{"http", "dns", "dns-tcp", "other"} {
			if r.IntN(4) == 0 {
				continue
			}
			for _, protocol := range []v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP, v1.ProtocolSCTP} {
				p := discovery.EndpointPort{Name: &name, Protocol: &protocol}
				if number := int32(8080 + r.IntN(2)); r.IntN(8) > 0 {
					p.Port = &number
				}
				s.Ports = append(s.Ports, p)
			}
		}
		for range r.IntN(8) {
			a := fmt.Sprintf("10.%d.%d.%d", i>>8, i&255, r.IntN(12))
			if !is4 {
				a = fmt.Sprintf("fd00:%x::%x", i, r.IntN(12))
			}
			e, again := pool[a]
			if !again {
				e = discovery.Endpoint{Addresses: []string{a}, Conditions: conditions[r.IntN(len(conditions))], Hints: hints()}
				if r.IntN(5) > 0 {
					node := pick("n1", "n2", "n3")
					e.NodeName = &node
				}
				pool[a] = e
			}
			e = *e.DeepCopy()
			if c := e.Conditions; again && (c.Ready == nil || *c.Ready) && (c.Terminating == nil || !*c.Terminating) && r.IntN(2) == 0 {
				e.Conditions = discovery.EndpointConditions{Ready: &no, Terminating: &yes}
			}
			if r.IntN(8) == 0 { // of no meaning
				e.Addresses = append(e.Addresses, map[bool]string{true: "10.255.255.255", false: "fd00:ffff::1"}[is4])
			}
			s.Endpoints = append(s.Endpoints, e)
		}
		out = append(out, s)
	}
	return out
}
