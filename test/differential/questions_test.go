package differential

import (
	"fmt"
	"hash/fnv"
	"iter"
	"net/netip"
	"regexp"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"
)

// question is one that both sides are asked.
type question struct {
	name  string
	typ   uint16
	class uint16
	via   via
}

// via is how a question is sent: over which transport, and with what in its OPT record.
type via struct {
	tcp bool
	// size is the size of EDNS; there is no OPT record if it is 0.
	size uint16
	do   bool
}

func (v via) String() string {
	s := "udp"
	if v.tcp {
		s = "tcp"
	}
	if v.size > 0 {
		s += fmt.Sprint(v.size)
	}
	if v.do {
		s += "do"
	}
	return s
}

var vias = []via{{}, {size: 1232}, {tcp: true}, {size: 512}, {size: 4096, do: true}, {tcp: true, size: 1232, do: true}}

// types are those that every name is asked for. The first three are the ones that clients ask for.
var types = []uint16{
	dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeCNAME, dns.TypeTXT, dns.TypeMX, dns.TypeNS, dns.TypeSOA, dns.TypePTR,
	dns.TypeANY, dns.TypeHTTPS, dns.TypeDS,
}

func (q question) String() string {
	return fmt.Sprintf("%s %s %s over %s", q.name, dns.Class(q.class), dns.Type(q.typ), q.via)
}

// draw returns a number that is always the same for the same text, to pick some out of many.
func draw(parts ...any) uint32 {
	h := fnv.New32a()
	_, _ = fmt.Fprint(h, parts...) // A hash takes everything.
	return h.Sum32()
}

// questions yields every name with every type, once, in one of the ways to send it. every thins them out: one of so many
// is asked for, but all about names near the apex, and about reverse names. Where every is 1, names of many records are asked for in all ways.
func questions(names []string, every uint32) iter.Seq[question] {
	return func(yield func(question) bool) {
		for _, n := range names {
			for i, t := range types {
				if !picked(n, i, t, every) {
					continue
				}
				ways := vias
				if every > 1 || !isLarge(n) || i > 2 {
					ways = vias[draw(n, t)%uint32(len(vias)):][:1]
				}
				for _, v := range ways {
					if !yield(question{n, t, dns.ClassINET, v}) {
						return
					}
				}
			}
			if draw(n)%(8*every) == 0 && !yield(question{n, dns.TypeA, dns.ClassCHAOS, via{}}) {
				return
			}
			if draw(n)%(8*every) == 1 && !yield(question{n, dns.TypeAXFR, dns.ClassINET, via{}}) {
				return
			}
		}
	}
}

// picked says whether a name is to be asked for with the i-th type.
func picked(name string, i int, typ uint16, every uint32) bool {
	if dns.CountLabel(name) <= 3 || typ == dns.TypePTR && reverseName.MatchString(name) {
		return true
	}
	if i > 2 {
		every *= rareEvery
	}
	return draw(name, typ)>>8%every == 0
}

// rareEvery thins out the types that few clients ask for: what is there to find out about them does not depend on the
// name as much.
const rareEvery = 4

// reverseName is that of an address, but for those of the large services.
var reverseName = regexp.MustCompile(`^\d+\.\d+\.(\d|[1-9]\d|2\d\d)\.\d+\.in-addr\.arpa\.$|^([0-9a-f]\.){32}ip6\.arpa\.$`)

// isLarge tells names that have more records than some ways to send them hold.
func isLarge(name string) bool {
	for _, l := range []string{"big.shop.svc.", "huge.shop.svc.", "in-huge.", "many.shop.svc."} {
		if strings.Contains(strings.ToLower(name), l) {
			return len(name) < 60
		}
	}
	return false
}

// namer collects names without repetitions, in the order in which they come.
type namer struct {
	zones []string // that have services
	seen  map[string]bool
	names []string
}

// namesOf returns every name that either side could know for objs in zones, and what is like it.
func namesOf(objs []runtime.Object, zones []string) []string {
	n := &namer{seen: map[string]bool{}}
	for _, z := range zones {
		if !strings.HasSuffix(z, "arpa.") {
			n.zones = append(n.zones, z)
		}
	}
	n.fixed(zones)
	for _, o := range objs {
		switch o := o.(type) {
		case *corev1.Namespace:
			n.namespace(o.Name)
		case *corev1.Service:
			n.service(o.Name, o.Namespace, o.Spec.Ports)
			n.addresses(o.Spec.ClusterIPs...)
			n.addresses(o.Spec.ClusterIP)
		case *mcs.ServiceImport:
			n.service(o.Name, o.Namespace, nil)
			n.addresses(o.Spec.IPs...)
		case *discoveryv1.EndpointSlice:
			n.slice(o)
		case *corev1.Pod:
			for _, ip := range o.Status.PodIPs {
				n.pod(ip.IP, o.Namespace)
				n.addresses(ip.IP)
			}
		}
	}
	return n.names
}

func (n *namer) add(names ...string) {
	for _, name := range names {
		if _, ok := dns.IsDomainName(name); !ok || n.seen[name] {
			continue
		}
		n.seen[name] = true
		n.names = append(n.names, name)
		// One of some names is asked for in another case, and asking for it must not change what is found.
		if odd := mixCase(name); draw(name)%5 == 0 && !n.seen[odd] {
			n.seen[odd] = true
			n.names = append(n.names, odd)
		}
	}
}

// in adds a name in every zone that has services.
func (n *namer) in(relative string) {
	for _, z := range n.zones {
		n.add(strings.TrimSuffix(relative+"."+z, ".") + ".")
	}
}

// mixCase changes the case of some letters of a name (0x20).
func mixCase(name string) string {
	b := []byte(name)
	for i, c := range b {
		if ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z') && draw(name, i)&1 == 0 {
			b[i] = c ^ 0x20
		}
	}
	return string(b)
}

// fixed adds names that follow from no object.
func (n *namer) fixed(zones []string) {
	for _, z := range append([]string{"cluster.local.", "in-addr.arpa.", "ip6.arpa."}, zones...) {
		n.add(z)
		for _, l := range []string{"svc", "pod", "dns-version", "dns", "ns.dns", "apex.dns", "x.dns", "x.ns.dns", "x.dns-version",
			"hostmaster", "x", "x.y", "web", "*", "_tcp", "kubernetes", "_zone", "_env", "any.any.any", "a.b.c.d.e.f"} {
			n.add(strings.TrimSuffix(l+"."+z, ".") + ".")
		}
	}
	n.add(".", "local.", "com.", "arpa.", "example.com.", "ok.example.com.", "xcluster.local.", "cluster.locale.", "other.",
		"web.shop.svc.", "web.shop.", "web.shop.svc.other.local.", "web.shop.svc.cluster.local.example.net.", "10.in-addr.arpa.example.")
	n.in("*.svc")
	n.in("*.*.svc")
	n.in("web.*.svc")
	n.in("*.shop.svc")
	n.in("*.pod")
	n.in("web.shop.Svc")
	n.in(`web\.shop.svc`)
	n.in(`web.shop\.svc`)
	n.in(`w\195\182b.shop.svc`)
	n.in(`\000.web.shop.svc`)
	n.in(`web\ .shop.svc`)
	n.in(`a\.b.web.shop.svc`)
	n.in(strings.Repeat("a.", 90) + "web.shop.svc")
	n.in(strings.Repeat("a", 63) + ".web.shop.svc")
	n.in(strings.Repeat("a", 63) + ".shop.svc")
	n.in(strings.Repeat("a", 63) + ".svc")
}

func (n *namer) namespace(ns string) {
	for _, kind := range []string{"svc", "pod", "dns", "xsvc", "services"} {
		n.in(ns + "." + kind)
		n.in("x." + ns + "." + kind)
		n.in("_tcp." + ns + "." + kind)
	}
	n.in(ns)
	n.in("x" + ns + ".svc")
	for _, ip := range []string{"10-244-1-2", "192-0-2-1", "fd00-10-244-1--2", "2001-db8--", "--", "--1", "1-2-3", "1-2-3-256",
		"01-2-3-4", "a-b", "1-2-3-4-5", "a-b-c-d", "FD00-10-244-1--2", "fd00-10-244-1-0-0-0-2", "fd00-10-244-31--0", "1--2--3",
		"--ffff-192-0-2-1", "ffff--192-0-2-1", "-", "1-2-3-", "0-0-0-0", "172-18-0-2", "10_244_1_2", "--ffff-c000-201", "fe80--1%25eth0"} {
		n.in(ip + "." + ns + ".pod")
	}
}

// thorough are the services whose names are tried with everything in front of them. They stand for the others.
var thorough = map[string]bool{
	"web.shop": true, "both.shop": true, "many.shop": true, "unnamed.shop": true, "portless.shop": true, "pending.shop": true,
	"db.shop": true, "ports.shop": true, "bare.shop": true, "unnamed-set.shop": true, "down.shop": true, "none.shop": true,
	"named.shop": true, "svc.svc": true, "tcp.pay": true, "web.gone": true, "set.gone": true, "nobody.shop": true,
	"in.alias": true, "out.alias": true, "nx.alias": true, "empty.shop": true,
}

// service adds a service's names, and those of its ports, of other services' ports and of none.
func (n *namer) service(name, ns string, ports []corev1.ServicePort) {
	base := name + "." + ns + ".svc"
	n.in(base)
	if strings.HasPrefix(name, "chain") {
		return
	}
	for _, other := range []string{
		name + "." + ns, name + ".svc", ns + "." + name + ".svc", name + ".x." + ns + ".svc", name + "." + ns + ".x.svc",
		name + "." + ns + ".pod", name + "." + ns + ".foo", name + "x." + ns + ".svc", "x" + name + "." + ns + ".svc",
		name + "." + ns + ".svc.svc", name + ".gone.svc", name + ".pay.svc", name + ".svc.svc", base + "x",
	} {
		n.in(other)
	}
	prefixes := []string{
		"_tcp", "_udp", "_sctp", "_tls", "tcp", "_TCP", "x", "_", "*", "_http._tcp", "http.tcp", "_http.tcp", "http._tcp",
		"_http._udp", "_HTTP._Tcp", "_nope._tcp", "_._", "_._tcp", "_http._", "__http.__tcp", "_http.x", "x._tcp", "*.*", "_*._tcp", "*._tcp",
		"_tcp._http", "a.b", "a.b.c", "x._http._tcp", "_http._tcp.x", "_http.x._tcp", "a.b.c.d.e.f", "_sql._tcp", "_zone", "pin._zone",
		"prefer._zone", "other._zone", "rack-2.pin._zone", "rack-2.prefer._zone", "rack.1.pin._zone", "RACK.1.PIN._ZONE",
		"nowhere.pin._zone", "nowhere.prefer._zone", "a.b.c.pin._zone", "rack-2.other._zone", "x.rack-2.pin._zone",
		"_sql._tcp.rack-2.pin._zone", "rack-2.pin.zone", "_tcp.pin._zone", "east", "db-0.east", "db-0.west", "10-245-1-3.east", "db-0.nowhere",
		"x.db-0.east", "_x.east", "db-0._east", "_sql._tcp.east", "w-0.east", "10-245-0-1.east", "_env", "x._env",
	}
	for _, p := range ports {
		proto := strings.ToLower(string(p.Protocol))
		prefixes = append(prefixes, "_"+p.Name+"._"+proto, "_"+p.Name+"._tcp", "_"+p.Name+"._udp", p.Name+"."+proto, "_"+p.Name,
			fmt.Sprintf("_%d._%s", p.Port, proto))
	}
	for _, p := range prefixes {
		if !strings.Contains(p, "..") && (thorough[name+"."+ns] || draw(p, base)%6 == 0) {
			n.in(p + "." + base)
		}
	}
}

// slice adds the names of a slice's endpoints, all of them in small slices.
func (n *namer) slice(s *discoveryv1.EndpointSlice) {
	of := s.Labels[discoveryv1.LabelServiceName]
	if of == "" {
		of = s.Labels[mcs.LabelServiceName]
	}
	base := of + "." + s.Namespace + ".svc"
	if of == "nobody" {
		n.service(of, s.Namespace, nil)
	}
	for i, e := range s.Endpoints {
		if len(s.Endpoints) > 20 && i%37 > 1 {
			continue
		}
		labels := []string{dashed(e.Addresses[0]), strings.ToUpper(dashed(e.Addresses[0])), dashed(e.Addresses[0]) + "0"}
		if a, err := netip.ParseAddr(e.Addresses[0]); err == nil {
			labels = append(labels, dashed(a.String()), dashed(a.StringExpanded()), strings.TrimRight(dashed(a.String()), "-"))
		}
		if e.Hostname != nil {
			labels = append(labels, *e.Hostname)
		}
		if e.TargetRef != nil {
			labels = append(labels, e.TargetRef.Name, strings.ReplaceAll(e.TargetRef.Name, ".", "-"))
		}
		for _, l := range labels {
			n.in(l + "." + base)
			n.in("x" + l + "." + base)
		}
		l := labels[len(labels)-1]
		for _, with := range []string{"x." + l, l + ".x", "_sql._tcp." + l, "_tcp." + l, l + "._tcp", "_" + l, l + ".east", l + ".rack-2.pin._zone"} {
			n.in(with + "." + base)
		}
		n.in(l + "." + s.Namespace + ".svc")
		n.in(l + "." + of + ".pay.svc")
		n.addresses(e.Addresses...)
	}
}

func (n *namer) pod(ip, ns string) {
	label := dashed(ip)
	for _, in := range []string{ns, "shop", "pay", "gone", "nowhere", "SHOP"} {
		n.in(label + "." + in + ".pod")
	}
	n.in("x." + label + "." + ns + ".pod")
	n.in("x.y." + label + "." + ns + ".pod")
	n.in("x.y.z." + label + "." + ns + ".pod")
	n.in("_x._y." + label + "." + ns + ".pod")
	n.in(strings.ToUpper(label) + "." + ns + ".pod")
	n.in(label + "0." + ns + ".pod")
	n.in(label + "." + ns + ".svc")
	n.in(label + ".pod")
	if a, err := netip.ParseAddr(ip); err == nil {
		n.in(dashed(a.StringExpanded()) + "." + ns + ".pod")
		n.in(dashed(a.String()) + "." + ns + ".pod")
	}
}

func dashed(ip string) string { return strings.NewReplacer(".", "-", ":", "-").Replace(ip) }

// addresses adds reverse names: of the addresses, of their neighbours, of what is above them, and wrong ones.
func (n *namer) addresses(addrs ...string) {
	for _, text := range addrs {
		a, err := netip.ParseAddr(text)
		if err != nil {
			continue
		}
		full := reverse(a)
		n.add(full, "x."+full, "1."+full, "svc."+full, reverse(a.Next()), reverse(a.Prev()))
		labels := dns.SplitDomainName(full)
		for i := 1; i < len(labels)-2; i++ {
			up := dns.Fqdn(strings.Join(labels[i:], "."))
			n.add(up)
			if draw(up)%3 == 0 {
				n.add("svc."+up, "pod."+up, "x."+up, "dns-version."+up, "ns.dns."+up, "web.shop.svc."+up)
			}
		}
		if a.Is4() {
			n.add("0"+full, "00"+full, "256."+strings.Join(labels[1:], ".")+".", "a."+strings.Join(labels[1:], ".")+".",
				strings.Join(labels[:4], ".")+".ip6.arpa.", strings.Join(labels[1:4], ".")+"."+labels[0]+".in-addr.arpa.", "0/25."+strings.Join(labels[1:], ".")+".")
		} else {
			n.add(strings.ToUpper(full), "g."+strings.Join(labels[1:], ".")+".", "0"+full, strings.Join(labels[:4], ".")+".in-addr.arpa.")
		}
	}
}

func reverse(a netip.Addr) string {
	name, err := dns.ReverseAddr(a.String())
	if err != nil {
		return "invalid."
	}
	return name
}
