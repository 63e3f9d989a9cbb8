package frontends

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, addr(s))
	}
	return out
}

// web is a service with a port 80 of both families, changed by those given.
func web(change ...func(*cluster.Service)) *cluster.Service {
	s := &cluster.Service{
		Namespace: "shop", Name: "web", ClusterIPs: addrs("10.96.0.1", "fd00:96::1"), Proxy: &cluster.ServiceProxy{},
		Ports: []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80}},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

// sliceOf returns a slice of web with endpoints written as "address[@node][,word…]": unready, leaving, zone=…, for=… (a node).
func sliceOf(name string, endpoints ...string) *cluster.Slice {
	s := &cluster.Slice{
		Namespace: "shop", Name: name, Service: "web", Proxy: &cluster.SliceProxy{},
		Ports: []cluster.EndpointPort{{Name: "http", Protocol: cluster.TCP, Port: 8080}},
	}
	for _, text := range endpoints {
		words := strings.Split(text, ",")
		a, node, _ := strings.Cut(words[0], "@")
		e := cluster.Endpoint{Addr: addr(a), NodeName: node, Ready: true}
		p := cluster.EndpointProxy{Serving: true}
		for _, w := range words[1:] {
			key, value, _ := strings.Cut(w, "=")
			switch key {
			case "unready":
				e.Ready, p.Serving = false, false
			case "leaving":
				e.Ready, p.Terminating = false, true
			case "extra":
				p.Extra = true
			case "zone":
				p.Hints = &cluster.Hints{ForZones: []string{value}}
			case "for":
				p.Hints = &cluster.Hints{ForNodes: []string{value}, ForZones: []string{"z1"}}
			default:
				panic(w)
			}
		}
		s.Endpoints = append(s.Endpoints, e)
		s.Proxy.Endpoints = append(s.Proxy.Endpoints, p)
	}
	return s
}

// builder returns a Builder for node n1 in zone z1 that has heard of objects.
func builder(o Options, objects ...cluster.Object) *Builder {
	o.NodeName = "n1"
	b := New(o)
	kinds := []cluster.Kind{cluster.KindService, cluster.KindSlice, cluster.KindNode, cluster.KindServiceCIDR}
	for _, k := range kinds {
		b.Apply(cluster.Change{Op: cluster.Replace, Kind: k})
	}
	b.Apply(cluster.Upserted(n1(), time.Time{}))
	for _, x := range objects {
		b.Apply(cluster.Upserted(x, time.Time{}))
	}
	for _, k := range kinds {
		b.Apply(cluster.Change{Op: cluster.Synced, Kind: k})
	}
	return b
}

func n1() *cluster.Node {
	return &cluster.Node{Name: "n1", Net: &cluster.NodeNet{InternalIPs: addrs("192.0.2.1", "2001:db8::1"), Zone: "z1"}}
}

// show writes a frontend on one line.
func show(f *Frontend) string {
	list := func(name string, bs []netip.AddrPort) string {
		if len(bs) == 0 {
			return ""
		}
		var out []string
		for _, b := range bs {
			out = append(out, b.String())
		}
		return " " + name + " " + strings.Join(out, ",")
	}
	s := f.Key.String() + map[bool]string{true: " ClusterIP"}[f.ClusterIP] + list("->", f.Backends) + list("inside", f.Internal)
	s += [...]string{"", " keep", " masquerade"}[f.Masquerade] + [...]string{"", " or drop"}[f.Empty]
	if f.Affinity != 0 {
		s += " " + f.Affinity.String()
	}
	for _, p := range f.Sources {
		s += " from " + p.String()
	}
	return s
}

func showAll(d Diff) []string {
	var out []string
	for _, f := range d.Put {
		out = append(out, show(f))
	}
	slices.Sort(out)
	return out
}

func TestFrontends(t *testing.T) {
	external := func(s *cluster.Service) {
		s.Ports[0].NodePort = 30080
		s.Proxy.ExternalIPs, s.Proxy.LoadBalancerIPs = addrs("198.51.100.1"), addrs("203.0.113.1")
	}
	only4 := func(s *cluster.Service) { s.ClusterIPs = s.ClusterIPs[:1] }
	externalLocal := func(s *cluster.Service) { s.Proxy.ExternalLocal = true }
	internalLocal := func(s *cluster.Service) { s.Proxy.InternalLocal = true }
	both := sliceOf("a", "10.0.0.2@n2", "10.0.0.1@n1")
	for name, test := range map[string]struct {
		options Options
		objects []cluster.Object
		want    []string
	}{
		"both families": {Options{}, []cluster.Object{web(), both, sliceOf("b", "fd00::1")}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.1:8080,10.0.0.2:8080", "tcp [fd00:96::1]:80 ClusterIP -> [fd00::1]:8080"}},
		"a family it is not of": {Options{}, []cluster.Object{web(only4, external), both, sliceOf("b", "fd00::1")}, []string{
			"tcp 0.0.0.0:30080 -> 10.0.0.1:8080,10.0.0.2:8080 masquerade",
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.1:8080,10.0.0.2:8080",
			"tcp 198.51.100.1:80 -> 10.0.0.1:8080,10.0.0.2:8080 masquerade",
			"tcp 203.0.113.1:80 -> 10.0.0.1:8080,10.0.0.2:8080 masquerade"}},
		"no endpoints": {Options{}, []cluster.Object{web(only4, external)}, []string{
			"tcp 0.0.0.0:30080 masquerade", "tcp 10.96.0.1:80 ClusterIP", "tcp 198.51.100.1:80 masquerade", "tcp 203.0.113.1:80 masquerade"}},
		"no slice has its port": {Options{}, []cluster.Object{both, web(only4, func(s *cluster.Service) {
			s.Ports = []cluster.ServicePort{{Name: "http", Protocol: cluster.UDP, Port: 80}, {Name: "other", Protocol: cluster.TCP, Port: 81}}
		})}, []string{"tcp 10.96.0.1:81 ClusterIP", "udp 10.96.0.1:80 ClusterIP"}},
		"masquerade all": {Options{MasqueradeAll: true}, []cluster.Object{web(only4), both}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.1:8080,10.0.0.2:8080 masquerade"}},
		"external local": {Options{}, []cluster.Object{web(only4, external, externalLocal), both}, []string{
			"tcp 0.0.0.0:30080 -> 10.0.0.1:8080 inside 10.0.0.1:8080,10.0.0.2:8080 keep or drop",
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.1:8080,10.0.0.2:8080",
			"tcp 198.51.100.1:80 -> 10.0.0.1:8080 inside 10.0.0.1:8080,10.0.0.2:8080 keep or drop",
			"tcp 203.0.113.1:80 -> 10.0.0.1:8080 inside 10.0.0.1:8080,10.0.0.2:8080 keep or drop"}},
		"external local, none local": {Options{}, []cluster.Object{web(only4, externalLocal, func(s *cluster.Service) { s.Ports[0].NodePort = 30080 }), sliceOf("a", "10.0.0.2@n2")}, []string{
			"tcp 0.0.0.0:30080 inside 10.0.0.2:8080 keep or drop", "tcp 10.96.0.1:80 ClusterIP -> 10.0.0.2:8080"}},
		"external local, none at all": {Options{}, []cluster.Object{web(only4, externalLocal, func(s *cluster.Service) { s.Ports[0].NodePort = 30080 })}, []string{
			"tcp 0.0.0.0:30080 keep", "tcp 10.96.0.1:80 ClusterIP"}},
		"internal local": {Options{}, []cluster.Object{web(only4, internalLocal), both}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.1:8080 or drop"}},
		"internal local, none local": {Options{}, []cluster.Object{web(only4, internalLocal), sliceOf("a", "10.0.0.2@n2")}, []string{
			"tcp 10.96.0.1:80 ClusterIP or drop"}},
		"internal local, none at all": {Options{}, []cluster.Object{web(only4, internalLocal)}, []string{"tcp 10.96.0.1:80 ClusterIP"}},
		"leaving endpoints while none is ready": {Options{}, []cluster.Object{web(only4), sliceOf("a", "10.0.0.2@n2,leaving", "10.0.0.3,unready")}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.2:8080"}},
		"leaving endpoints while others are ready": {Options{}, []cluster.Object{web(only4), sliceOf("a", "10.0.0.2,leaving", "10.0.0.3")}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.3:8080"}},
		"leaving ones for local traffic alone": {Options{}, []cluster.Object{web(only4, externalLocal, func(s *cluster.Service) { s.Ports[0].NodePort = 30080 }), sliceOf("a", "10.0.0.2@n1,leaving", "10.0.0.3@n2")}, []string{
			"tcp 0.0.0.0:30080 -> 10.0.0.2:8080 inside 10.0.0.3:8080 keep or drop", "tcp 10.96.0.1:80 ClusterIP -> 10.0.0.3:8080"}},
		"in two slices": {Options{}, []cluster.Object{web(only4), sliceOf("a", "10.0.0.2,leaving", "10.0.0.1"), sliceOf("b", "10.0.0.2", "10.0.0.1")}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.1:8080,10.0.0.2:8080"}},
		"other addresses of an endpoint": {Options{}, []cluster.Object{web(only4), sliceOf("a", "10.0.0.1", "10.0.0.9,extra")}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.1:8080"}},
		"addresses of two families in a slice, which the API refuses": {Options{}, []cluster.Object{web(only4), sliceOf("a", "10.0.0.1", "fd00::1")}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.1:8080"}},
		"hints for the zone": {Options{}, []cluster.Object{web(only4), sliceOf("a", "10.0.0.1,zone=z2", "10.0.0.2,zone=z1", "10.0.0.3,unready")}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.2:8080"}},
		"hints for the node": {Options{}, []cluster.Object{web(only4), sliceOf("a", "10.0.0.1,for=n2", "10.0.0.2,for=n1")}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.2:8080"}},
		"hints for other nodes, then the zone": {Options{}, []cluster.Object{web(only4), sliceOf("a", "10.0.0.1,for=n2", "10.0.0.2,for=n3")}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.1:8080,10.0.0.2:8080"}},
		"one without a hint": {Options{}, []cluster.Object{web(only4), sliceOf("a", "10.0.0.1", "10.0.0.2,zone=z1")}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.1:8080,10.0.0.2:8080"}},
		"hints for other zones": {Options{}, []cluster.Object{web(only4), sliceOf("a", "10.0.0.1,zone=z2", "10.0.0.2,zone=z3")}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.1:8080,10.0.0.2:8080"}},
		"hints mean nothing to local traffic": {Options{}, []cluster.Object{web(only4, internalLocal), sliceOf("a", "10.0.0.1@n1,zone=z2", "10.0.0.2@n2,zone=z1")}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.1:8080 or drop"}},
		"source ranges and affinity": {Options{}, []cluster.Object{both, web(only4, func(s *cluster.Service) {
			s.Proxy.LoadBalancerIPs, s.Proxy.Affinity = addrs("203.0.113.1"), 3*time.Hour
			s.Proxy.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32")}
		})}, []string{
			"tcp 10.96.0.1:80 ClusterIP -> 10.0.0.1:8080,10.0.0.2:8080 3h0m0s",
			"tcp 203.0.113.1:80 -> 10.0.0.1:8080,10.0.0.2:8080 masquerade 3h0m0s from 198.51.100.0/24"}},
		"the node is one of the sources": {Options{}, []cluster.Object{web(only4, func(s *cluster.Service) {
			s.Proxy.LoadBalancerIPs, s.Proxy.SourceRanges = addrs("203.0.113.1"), []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		})}, []string{
			"tcp 10.96.0.1:80 ClusterIP", "tcp 203.0.113.1:80 masquerade from 192.0.2.0/24 from 203.0.113.1/32"}},
		"an external address that is the load balancer's, too": {Options{}, []cluster.Object{web(only4, func(s *cluster.Service) {
			s.Proxy.ExternalIPs, s.Proxy.LoadBalancerIPs = addrs("203.0.113.1"), addrs("203.0.113.1")
			s.Proxy.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
		})}, []string{
			"tcp 10.96.0.1:80 ClusterIP", "tcp 203.0.113.1:80 masquerade from 198.51.100.0/24"}},
		"nobody's to proxy": {Options{}, []cluster.Object{&cluster.Service{Namespace: "shop", Name: "web", Type: cluster.ExternalName}, both}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			d := builder(test.options, test.objects...).Take()
			if diff := cmp.Diff(test.want, showAll(d)); diff != "" {
				t.Error(diff)
			}
			for _, f := range d.Put {
				if err := f.Validate(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestNothingNew holds that objects which say what is known, as a node's heartbeat does, come to nothing.
func TestNothingNew(t *testing.T) {
	s := web(func(s *cluster.Service) { s.Proxy.HealthCheckNodePort, s.Ports[0].NodePort = 32000, 30080 })
	slice := func() *cluster.Slice {
		s := sliceOf("a", "10.0.0.1@n1", "10.0.0.2,zone=z1")
		s.Triggered = time.Unix(1, 0)
		return s
	}
	objects := []cluster.Object{s, slice(), n1()}
	b := builder(Options{}, objects...)
	if d := b.Take(); d.Empty() {
		t.Fatal("nothing at all")
	}
	for _, o := range objects {
		b.Apply(cluster.Upserted(o, time.Time{}))
	}
	if d := b.Take(); !d.Empty() {
		t.Errorf("%+v", d)
	}
	b.Apply(cluster.Upserted(slice(), time.Time{})) // a listing of 100,000 slices is no work, and says nothing of how late changes are
	if d := b.Take(); b.Pending() > 0 || len(d.Triggers) > 0 {
		t.Errorf("a slice that is known: %d pending, %v", b.Pending(), d.Triggers)
	}
}

// TestListing holds that what a listing does not name is gone, of all kinds but the node: that one is where this program runs.
func TestListing(t *testing.T) {
	b := builder(Options{}, web(), sliceOf("a", "10.0.0.1"), &cluster.ServiceCIDR{Name: "a", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	if d := b.Take(); len(d.Put) == 0 || b.Node() == nil || len(b.ServiceCIDRs()) != 1 {
		t.Fatalf("%+v", d)
	}
	for _, k := range []cluster.Kind{cluster.KindService, cluster.KindSlice, cluster.KindNode, cluster.KindServiceCIDR} {
		b.Apply(cluster.Change{Op: cluster.Replace, Kind: k})
		b.Apply(cluster.Change{Op: cluster.Synced, Kind: k})
	}
	b.Apply(cluster.Deleted(cluster.KindNode, n1().Key(), time.Time{}))
	if d := b.Take(); len(d.Delete) != 2 || b.Node() == nil || len(b.ServiceCIDRs()) != 0 || b.Counts() != (Counts{}) {
		t.Errorf("%+v %+v %v %v", d, b.Node(), b.ServiceCIDRs(), b.Counts())
	}
}

// TestRivals holds who gets an address and port that several want, and that it goes to the next when it becomes free.
func TestRivals(t *testing.T) {
	grab := func(name string, ip string) *cluster.Service {
		s := web(func(s *cluster.Service) { s.Name, s.ClusterIPs = name, addrs(ip) })
		s.Proxy.ExternalIPs = addrs("10.96.0.9")
		return s
	}
	b := builder(Options{}, grab("b", "10.96.0.2"), grab("a", "10.96.0.3"))
	owner := func(want string) {
		t.Helper()
		d := b.Take()
		if got := b.owners[Key{addr("10.96.0.9"), TCP, 80}]; got == nil || got.Name != want {
			t.Fatalf("the owner is %v, want %s; %v", got, want, d)
		}
	}
	owner("a")
	b.Apply(cluster.Upserted(grab("real", "10.96.0.9"), time.Time{}))
	owner("real")
	b.Apply(cluster.Deleted(cluster.KindService, cluster.Key{Namespace: "shop", Name: "a"}, time.Time{}))
	owner("real")
	b.Apply(cluster.Deleted(cluster.KindService, cluster.Key{Namespace: "shop", Name: "real"}, time.Time{}))
	owner("b")
	b.Apply(cluster.Deleted(cluster.KindService, cluster.Key{Namespace: "shop", Name: "b"}, time.Time{}))
	b.Take()
	if len(b.owners)+len(b.rivals)+len(b.services) > 0 {
		t.Errorf("left: %v %v %v", b.owners, b.rivals, b.services)
	}
}

// TestManyRivals holds that each of very many services that want one address is told of once, and that a change is no work for all of them.
func TestManyRivals(t *testing.T) {
	const n = 10000
	b := builder(Options{})
	service := func(i int) *cluster.Service {
		return web(func(s *cluster.Service) {
			s.Name, s.ClusterIPs = fmt.Sprintf("s%05d", i), []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}
			s.Proxy.ExternalIPs = addrs("198.51.100.1")
		})
	}
	for i := range n {
		b.Apply(cluster.Upserted(service(i), time.Time{}))
	}
	d := b.Take()
	losers := map[string]bool{}
	for _, r := range d.Rivals {
		if losers[r.Loser.Name] = true; r.Owner.Name != "s00000" {
			t.Fatalf("%v", r)
		}
	}
	if len(losers) != n-1 || len(d.Rivals) != n-1 || len(d.Put) != n+1 {
		t.Errorf("%d rivals of %d services, %d frontends", len(d.Rivals), len(losers), len(d.Put))
	}
	for i := range n {
		x := sliceOf(fmt.Sprint(i), "10.0.0.1")
		x.Service = service(i).Name
		b.Apply(cluster.Upserted(x, time.Time{}))
	}
	if d := b.Take(); len(d.Rivals) > 0 {
		t.Errorf("%d rivals are told again", len(d.Rivals))
	}
	for i := range 3 {
		owner := b.services[service(i).Key()]
		b.Apply(cluster.Deleted(cluster.KindService, owner.Key, time.Time{}))
		b.dirty, owner.dirty = nil, false
		if b.update(owner); len(b.dirty) != 1 {
			t.Errorf("%d services are looked at", len(b.dirty))
		}
		if d := b.Take(); len(d.Put) != 1 || len(d.Rivals) > 0 || b.owners[d.Put[0].Key].Name != service(i+1).Name {
			t.Errorf("%d frontends, %d rivals", len(d.Put), len(d.Rivals))
		}
	}
}

// TestUDP holds when connections of UDP may be stale: not when endpoints come, or leave while they serve on.
func TestUDP(t *testing.T) {
	udp := func(pods ...string) *cluster.Slice {
		s := sliceOf("a", pods...)
		s.Ports[0].Protocol = cluster.UDP
		return s
	}
	service := func(port uint16) *cluster.Service {
		return web(func(s *cluster.Service) { s.Ports[0].Protocol, s.Ports[0].Port = cluster.UDP, port })
	}
	b := builder(Options{})
	for i, step := range []struct {
		object cluster.Object
		want   bool
	}{
		{udp("10.0.0.1"), false}, // of no service
		{service(80), true},
		{service(80), false},
		{udp("10.0.0.1", "10.0.0.2"), false},
		{udp("10.0.0.2,leaving", "10.0.0.1"), true}, // it serves on, but that cannot be told from what frontends say
		{udp("10.0.0.1"), true},
		{udp("10.0.0.1", "10.0.0.2,leaving"), false},
		{udp("10.0.0.1"), true}, // nothing of the frontends has changed
		{service(81), true},
		{udp(), true},
		{udp("10.0.0.1"), false},
		{sliceOf("tcp", "10.0.0.7"), false},
		{sliceOf("tcp"), false},
	} {
		b.Apply(cluster.Upserted(step.object, time.Time{}))
		if d := b.Take(); d.UDP != step.want {
			t.Errorf("step %d: %v", i, d.UDP)
		}
	}
	b.Apply(cluster.Deleted(cluster.KindService, service(81).Key(), time.Time{}))
	if d := b.Take(); !d.UDP {
		t.Error("the service's end")
	}
}

// random returns an object that may be of any kind, and of the same name as others.
func random(r *rand.Rand) cluster.Object {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	service := pick("a", "b", "c", "d")
	switch r.IntN(11) {
	case 10:
		return &cluster.ServiceCIDR{Name: pick("x", "y"), CIDRs: []netip.Prefix{netip.MustParsePrefix(pick("10.96.0.0/16", "10.97.0.0/16"))}}
	case 0:
		n := n1()
		n.Net.Zone = pick("z1", "z2", "")
		if r.IntN(3) == 0 {
			n.Net.InternalIPs = addrs("10.0.0.1")
		}
		return n
	case 1, 2, 3:
		s := web(func(s *cluster.Service) { s.Name = service })
		s.ClusterIPs = addrs(pick("10.96.0.1", "10.96.0.2", "10.96.0.3"), pick("fd00:96::1", "fd00:96::2"))[:1+r.IntN(2)]
		s.Proxy.InternalLocal, s.Proxy.ExternalLocal = r.IntN(2) == 0, r.IntN(2) == 0
		for range r.IntN(3) {
			s.Ports = append(s.Ports, cluster.ServicePort{Name: pick("http", "dns", ""), Protocol: cluster.UDP, Port: uint16(80 + r.IntN(3))})
		}
		s.Ports[0].NodePort = uint16(r.IntN(2) * (30000 + r.IntN(2)))
		s.Proxy.ExternalIPs = addrs("198.51.100.1", "10.96.0.2")[:r.IntN(3)]
		s.Proxy.LoadBalancerIPs = addrs("203.0.113.1", "198.51.100.1")[:r.IntN(3)]
		s.Proxy.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}[:r.IntN(2)]
		s.Proxy.HealthCheckNodePort = uint16(r.IntN(2) * 32000)
		if r.IntN(6) == 0 {
			s.Proxy = nil
		}
		return s
	default:
		var es []string
		for range r.IntN(6) {
			es = append(es, fmt.Sprintf("10.0.0.%d@%s%s", r.IntN(5), pick("n1", "n2"), pick("", "", ",leaving", ",unready", ",zone=z1", ",zone=z2", ",for=n1", ",for=n2", ",extra")))
		}
		s := sliceOf(pick("s1", "s2", "s3", "s4", "s5"), es...)
		s.Service = pick(service, service, service, "")
		for range r.IntN(2) {
			s.Ports = append(s.Ports, cluster.EndpointPort{Name: pick("http", "dns"), Protocol: cluster.UDP, Port: int32(r.IntN(4) - 1)})
		}
		return s
	}
}

// TestIncremental holds that what a long history of changes comes to is what a Builder makes that hears of the outcome alone.
func TestIncremental(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		b := builder(Options{})
		objects := map[cluster.Kind]map[cluster.Key]cluster.Object{}
		note := func(o cluster.Object) {
			if objects[o.Kind()] == nil {
				objects[o.Kind()] = map[cluster.Key]cluster.Object{}
			}
			objects[o.Kind()][o.Key()] = o
		}
		note(n1())
		kinds := []cluster.Kind{cluster.KindService, cluster.KindSlice, cluster.KindServiceCIDR}
		now := map[Key]string{}
		hairpin, health := map[netip.Addr]bool{}, map[cluster.Key]Health{}
		take := func() {
			d := b.Take()
			for _, k := range d.Delete {
				if now[k] == "" || slices.ContainsFunc(d.Put, func(f *Frontend) bool { return f.Key == k }) {
					t.Fatalf("seed %d: %v is deleted and was not there, or is put as well", seed, k)
				}
				delete(now, k)
			}
			for _, f := range d.Put {
				now[f.Key] = show(f)
			}
			maps.Copy(hairpin, d.Hairpin)
			maps.DeleteFunc(hairpin, func(_ netip.Addr, on bool) bool { return !on })
			maps.Copy(health, d.Health)
			maps.DeleteFunc(health, func(_ cluster.Key, h Health) bool { return h == Health{} })
		}
		for range 60 {
			switch r.IntN(8) {
			case 0:
				take()
			case 1:
				k := kinds[r.IntN(len(kinds))]
				for key := range objects[k] {
					delete(objects[k], key)
					b.Apply(cluster.Deleted(k, key, time.Time{}))
					break
				}
			case 2: // a listing, after some have gone unseen
				k := kinds[r.IntN(len(kinds))]
				maps.DeleteFunc(objects[k], func(cluster.Key, cluster.Object) bool { return r.IntN(4) == 0 })
				b.Apply(cluster.Change{Op: cluster.Replace, Kind: k})
				for _, o := range objects[k] {
					b.Apply(cluster.Upserted(o, time.Time{}))
				}
				b.Apply(cluster.Change{Op: cluster.Synced, Kind: k})
			default:
				o := random(r)
				note(o)
				b.Apply(cluster.Upserted(o, time.Time{}))
			}
		}
		take()
		var all []cluster.Object
		for _, m := range objects {
			all = slices.AppendSeq(all, maps.Values(m))
		}
		fresh := builder(Options{}, all...)
		d := fresh.Take()
		want := map[Key]string{}
		for _, f := range d.Put {
			want[f.Key] = show(f)
		}
		if diff := cmp.Diff(slices.Sorted(maps.Values(want)), slices.Sorted(maps.Values(now))); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
		maps.DeleteFunc(d.Health, func(_ cluster.Key, h Health) bool { return h == Health{} })
		if !maps.Equal(d.Hairpin, hairpin) || !maps.Equal(d.Health, health) {
			t.Fatalf("seed %d: %v %v, want %v %v", seed, hairpin, health, d.Hairpin, d.Health)
		}
		if got, want := rivals(b), rivals(fresh); !maps.Equal(got, want) || !slices.Equal(b.ServiceCIDRs(), fresh.ServiceCIDRs()) {
			t.Fatalf("seed %d: rivals %v, want %v; ranges %v, want %v", seed, got, want, b.ServiceCIDRs(), fresh.ServiceCIDRs())
		}
	}
}

// rivals returns who has which key, and who else wants it.
func rivals(b *Builder) map[Rival]bool {
	out := map[Rival]bool{}
	for k, list := range b.rivals {
		for s, clusterIP := range list {
			out[Rival{k, b.owners[k].Key, s.Key}] = clusterIP
		}
	}
	return out
}

func TestHealth(t *testing.T) {
	s := web(func(s *cluster.Service) { s.Proxy.HealthCheckNodePort = 32000 })
	other := sliceOf("c", "10.0.0.5@n1", "10.0.0.6@n1")
	other.Ports = nil
	b := builder(Options{}, s, sliceOf("a", "10.0.0.1@n1", "10.0.0.2@n1", "10.0.0.3@n2", "10.0.0.4@n1,leaving"), sliceOf("b", "fd00::1@n1"), other)
	want := map[cluster.Key]Health{s.Key(): {32000, 2}}
	if diff := cmp.Diff(want, b.Take().Health); diff != "" {
		t.Error(diff)
	}
}

func TestServing(t *testing.T) {
	b := builder(Options{}, web(func(s *cluster.Service) { s.Ports[0].NodePort = 30080 }), sliceOf("a", "10.0.0.1,zone=z2", "10.0.0.2,zone=z1", "10.0.0.3,leaving", "10.0.0.4,unready"))
	b.Take()
	for _, k := range []Key{{addr("10.96.0.1"), TCP, 80}, {addr("0.0.0.0"), TCP, 30080}} {
		var got []string
		for a := range b.Serving(k) {
			got = append(got, a.String())
		}
		slices.Sort(got)
		if diff := cmp.Diff([]string{"10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"}, got); diff != "" {
			t.Error(diff)
		}
	}
	if b.Serving(Key{addr("10.96.0.1"), TCP, 81}) != nil {
		t.Error("a port that is not there serves")
	}
	b.Apply(cluster.Deleted(cluster.KindService, web().Key(), time.Time{}))
	if b.Serving(Key{addr("10.96.0.1"), TCP, 80}) != nil {
		t.Error("a service serves that is about to go")
	}
}

func BenchmarkChange(b *testing.B) {
	x := New(Options{NodeName: "n1"})
	const n = 10000
	for i := range n {
		s := web(func(s *cluster.Service) {
			s.Name, s.ClusterIPs = fmt.Sprint("s", i), []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}
		})
		x.Apply(cluster.Upserted(s, time.Time{}))
	}
	change := func(i, round int) {
		s := sliceOf(fmt.Sprint("s", i), fmt.Sprintf("10.0.%d.1", round%250), fmt.Sprintf("10.0.%d.2", round%250))
		s.Service = fmt.Sprint("s", i)
		x.Apply(cluster.Upserted(s, time.Time{}))
		x.Take()
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		change(i%n, i)
		i++
	}
}
