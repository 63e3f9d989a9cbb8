package kubelet

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/kubelet/envvars"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/env"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
)

// Every case is made from its own number and the seed, so that one that fails can be run alone.
var (
	seed  = flag.Uint64("seed", 1, "what to make cases from")
	first = flag.Uint64("first", 0, "the number of the first case")
	cases = flag.Uint64("cases", 10_000, "how many cases of each kind to try")
)

// each runs do for every case, until one fails. do returns what kind of case it was; every one of kinds must come about.
func each(t *testing.T, kinds []string, do func(*generator) (kind, wrong string)) {
	t.Helper()
	seen := map[string]int{}
	for n := *first; n < *first+*cases; n++ {
		kind, wrong := do(&generator{rand.New(rand.NewPCG(*seed, n))})
		if wrong != "" {
			t.Fatalf("-seed %d -first %d: %s", *seed, n, wrong)
		}
		seen[kind]++
	}
	t.Log(seen)
	for _, k := range kinds {
		if *cases >= 10_000 && seen[k] < 100 {
			t.Errorf("%d cases of the kind %q: that shows nothing", seen[k], k)
		}
	}
}

func TestHostsFile(t *testing.T) {
	dir := t.TempDir()
	machine, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	each(t, []string{"written", "host network", "no file", "refused"}, func(g *generator) (kind, wrong string) {
		pod, domain := g.pod(), g.pick("cluster.local", "cluster.local", "example.org", "")
		node := hostsfile.Node{ClusterDomain: domain, Hosts: machine}
		want, path, wantErr := HostsFile(pod, dir, domain)
		got, err := hostsfile.Render(value(pod), node)
		switch {
		case wantErr == ErrNoFile:
			if err != hostsfile.ErrNoAddress {
				wrong = fmt.Sprintf("we say %v", err)
			}
			return "no file", wrong + about(pod, wrong)
		case wantErr != nil:
			if err == nil || err == hostsfile.ErrNoAddress {
				wrong = fmt.Sprintf("the kubelet says %v, we say %v", wantErr, err)
			}
			return "refused", wrong + about(pod, wrong)
		}
		if kind = "written"; pod.Spec.HostNetwork {
			kind = "host network"
		}
		if wrong = differ(want, got, err); wrong == "" && pod.Spec.HostNetwork {
			node.Hosts = []byte(g.nodeFile())
			if want, err = HostNetworkFile(pod, dir, node.Hosts); err == nil {
				got, err = hostsfile.Render(value(pod), node)
				wrong = differ(want, got, err)
			}
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 || path != dir+"/etc-hosts" {
			wrong += fmt.Sprintf(" the kubelet's file is %s %v %v", path, info.Mode(), err)
		}
		return kind, wrong + about(pod, wrong)
	})
}

func differ(want, got []byte, err error) string {
	if err == nil && bytes.Equal(want, got) {
		return ""
	}
	return fmt.Sprintf("error %v (-kubelet +ours)\n%s", err, cmp.Diff(string(want), string(got)))
}

// about shows an object if something is wrong with it.
func about(o any, wrong string) string {
	if wrong == "" {
		return ""
	}
	b, err := json.Marshal(o)
	return fmt.Sprintf("\n%s %v", b, err)
}

// TestEnvironment compares single services in order, and what a pod gets as a whole.
func TestEnvironment(t *testing.T) {
	each(t, []string{"nothing", "variables", "names meet"}, func(g *generator) (kind, wrong string) {
		services, namespace, links := g.services(), g.pick(namespaces...), g.IntN(3) > 0
		possible := map[string][]string{} // the values that services that the pod may be told of give to a name
		var values []*cluster.Service
		for _, s := range services {
			v := serviceValue(s)
			values = append(values, v)
			want := texts(envvars.FromServices([]*v1.Service{s}))
			var got []string
			if len(v.ClusterIPs) > 0 {
				got = env.AppendService(nil, v.Name, v.ClusterIPs[0], v.Ports)
			}
			if d := cmp.Diff(want, got); d != "" {
				return "", "(-kubelet +ours)\n" + d + about(s, d)
			}
			if s.Namespace == namespace && links || s.Namespace == "default" && s.Name == "kubernetes" {
				for name, value := range asMap(want) {
					possible[name] = append(possible[name], value)
				}
			}
		}
		want, err := Environment(services, namespace, links)
		if err != nil {
			return "", err.Error()
		}
		vars := env.Variables(slices.Values(values), namespace, links)
		got := asMap(vars)
		if len(got) != len(vars) {
			return "", fmt.Sprintf("a name twice in %q", vars)
		}
		if kind = "variables"; len(want) == 0 {
			kind = "nothing"
		}
		for name := range want {
			// Where names of services meet, the kubelet takes either value, by chance.
			if want[name] != got[name] && len(possible[name]) > 1 && slices.Contains(possible[name], got[name]) {
				kind, got[name] = "names meet", want[name]
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			wrong = fmt.Sprintf("namespace %s, links %v (-kubelet +ours)\n%s%s", namespace, links, d, about(services, d))
		}
		return kind, wrong
	})
}

// TestAliases holds which aliases we take to which the API takes for spec.hostAliases.
func TestAliases(t *testing.T) {
	each(t, []string{"taken", "refused"}, func(g *generator) (kind, wrong string) {
		a := v1.HostAlias{IP: g.address(), Hostnames: g.some(1, 3, g.name)}
		faults := validation.ValidateHostAliases([]core.HostAlias{{IP: a.IP, Hostnames: a.Hostnames}}, field.NewPath("hostAliases"))
		if kind = "refused"; len(faults) == 0 {
			kind = "taken"
		}
		b, err := json.Marshal([]v1.HostAlias{a})
		if err != nil {
			return kind, err.Error()
		}
		got, err := hostsfile.ParseAnnotation(string(b))
		if (err == nil) != (len(faults) == 0) {
			return kind, fmt.Sprintf("the API says %v, the annotation %v for %s", faults, err, b)
		}
		lines, errs := hostsfile.Parse(a.IP + " " + strings.Join(a.Hostnames, " "))
		switch {
		case err != nil && (strings.ContainsAny(string(b), `# \`) || slices.Contains(a.Hostnames, "")): // Then it is another line, or several.
		case (err == nil) != (len(errs) == 0 && len(lines) == 1):
			return kind, fmt.Sprintf("the API says %v, a line %v, %v for %s", faults, lines, errs, b)
		case err == nil:
			wrong = cmp.Diff(got, lines)
		}
		return kind, wrong
	})
}

func texts(vars []v1.EnvVar) (out []string) {
	for _, v := range vars {
		out = append(out, v.Name+"="+v.Value)
	}
	return out
}

// asMap is what counts of variables: the last of a name.
func asMap(vars []string) map[string]string {
	m := map[string]string{}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		m[name] = value
	}
	return m
}

// value is the pod as our sources would have it.
func value(o *v1.Pod) *cluster.Pod {
	h := &cluster.PodHosts{Hostname: o.Spec.Hostname, Subdomain: o.Spec.Subdomain, HostNetwork: o.Spec.HostNetwork}
	if o.Spec.HostnameOverride != nil {
		h.HostnameOverride = *o.Spec.HostnameOverride
	}
	for _, a := range o.Spec.HostAliases {
		h.Aliases = append(h.Aliases, cluster.HostAlias{IP: a.IP, Hostnames: a.Hostnames})
	}
	p := &cluster.Pod{Namespace: o.Namespace, Name: o.Name, Hosts: h}
	for _, ip := range o.Status.PodIPs {
		p.IPs = append(p.IPs, netip.MustParseAddr(ip.IP))
	}
	return p
}

func serviceValue(o *v1.Service) *cluster.Service {
	s := &cluster.Service{Namespace: o.Namespace, Name: o.Name, Headless: o.Spec.ClusterIP == v1.ClusterIPNone}
	if o.Spec.ClusterIP != "" && !s.Headless {
		s.ClusterIPs = []netip.Addr{netip.MustParseAddr(o.Spec.ClusterIP)}
	}
	for _, p := range o.Spec.Ports {
		s.Ports = append(s.Ports, cluster.ServicePort{Name: p.Name, Protocol: cluster.Protocol(p.Protocol), Port: uint16(p.Port)})
	}
	return s
}

// generator makes objects, some as the API takes them, some as it never would. It makes nothing that a cluster value cannot hold
// (an address in a spelling that is not canonical, a hostnameOverride that is there and empty), and no service without ports
// but headless ones, at which the kubelet panics.
type generator struct{ *rand.Rand }

var namespaces = []string{"default", "shop", "batch"}

func (g *generator) pick(of ...string) string { return of[g.IntN(len(of))] }

func (g *generator) some(least, most int, make func() string) (out []string) {
	for range least + g.IntN(most-least+1) {
		out = append(out, make())
	}
	return out
}

func (g *generator) of(alphabet string, n int) string {
	runes := []rune(alphabet)
	var b strings.Builder
	for range n {
		b.WriteRune(runes[g.IntN(len(runes))])
	}
	return b.String()
}

// label, name and text are a label, one or more of them, and anything, in most cases; else they are something close to it.
func (g *generator) label() string {
	const valid = "abcxyz019"
	switch g.IntN(12) {
	case 0:
		return g.of(valid+"-", 60+g.IntN(6))
	case 1:
		return g.of(valid+"-", 1+g.IntN(4))
	case 2:
		return g.of(valid+"-.A_é", 1+g.IntN(6))
	case 3:
		return g.text()
	default:
		return g.of(valid, 1+g.IntN(10))
	}
}

func (g *generator) name() string {
	if g.IntN(20) == 0 {
		return g.of("ab", 50+g.IntN(12)) + g.of("-.", 1+g.IntN(12)) + g.of("ab", g.IntN(200))
	}
	return strings.Join(g.some(1, 3, g.label), ".")
}

func (g *generator) text() string {
	return g.pick("", " ", "\n", "a\nb", "\t", "a\rb", "\x00", "f\xffo", "#", "10.1.2.3", "é", "\u2028", "%s%n", "a..b", ".a", "a.", "-",
		strings.Repeat("-", 70), strings.Repeat(".", 64), strings.Repeat("a.", 126)+"a", strings.Repeat("a.", 127)+"a")
}

func (g *generator) addr() netip.Addr {
	if g.IntN(2) == 0 {
		var a [16]byte
		for i := range a {
			if g.IntN(2) == 0 {
				a[i] = byte(g.Uint32())
			}
		}
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte{10, byte(g.IntN(3)), byte(g.Uint32()), byte(g.Uint32())})
}

// address is one as users write it, or try to.
func (g *generator) address() string {
	a := g.addr()
	switch g.IntN(8) {
	case 0:
		return a.StringExpanded()
	case 1:
		return strings.ToUpper(a.String())
	case 2:
		return g.pick("010.1.2.3", "10.1.2.03", "::ffff:10.1.2.3", "::FFFF:a01:203", "fe80::1%eth0", "10.1.2", "10.1.2.256", "1:2", "::1::",
			"10.0.0.0/8", "[::1]", "0x0a.1.2.3", "167772161", "00::1", "0::0:1.2.3.4", "::1.2.3.04", "2001:0db8::00004", " 10.1.2.3", "10.1.2.3\n")
	case 3:
		return g.text()
	default:
		return a.String()
	}
}

func (g *generator) pod() *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: g.pick(namespaces...), Name: g.name()}}
	if g.IntN(3) == 0 {
		p.Spec.Hostname = g.label()
	}
	if g.IntN(3) == 0 {
		p.Spec.Subdomain = g.label()
	}
	if g.IntN(5) == 0 {
		if o := g.name(); o != "" {
			p.Spec.HostnameOverride = &o
		}
	}
	fqdn := g.IntN(2) == 0
	p.Spec.SetHostnameAsFQDN = &fqdn
	p.Spec.HostNetwork = g.IntN(4) == 0
	for range g.IntN(4) {
		p.Status.PodIPs = append(p.Status.PodIPs, v1.PodIP{IP: g.addr().String()})
	}
	for range max(0, g.IntN(8)-3) {
		p.Spec.HostAliases = append(p.Spec.HostAliases, v1.HostAlias{IP: g.address(), Hostnames: g.some(0, 3, g.name)})
	}
	return p
}

func (g *generator) nodeFile() string {
	return strings.Join(g.some(0, 4, func() string {
		return g.pick("127.0.0.1 localhost", "# node", "", "\t", "10.0.0.7\tnode-1\r", "\x00\xff", g.text())
	}), "\n") + g.pick("", "\n", "\n\n")
}

// services have few names, so that their variables meet.
func (g *generator) services() []*v1.Service {
	made := map[string]*v1.Service{}
	for range g.IntN(16) {
		s := &v1.Service{ObjectMeta: metav1.ObjectMeta{
			Namespace: g.pick(namespaces...),
			Name:      g.pick("kubernetes", "a", "a", "a-port-80-tcp", "a-port-80-tcp", "a-service", "1c", g.label()),
		}}
		switch g.IntN(6) {
		case 0:
			s.Spec.ClusterIP = v1.ClusterIPNone
		case 1:
			s.Spec.Type = v1.ServiceTypeExternalName
		default:
			s.Spec.ClusterIP = g.addr().String()
		}
		for range 1 + g.IntN(4) {
			s.Spec.Ports = append(s.Spec.Ports, v1.ServicePort{
				Name: g.pick("", "http", "a-b", "a", g.label()), Port: [...]int32{80, 80, 80, 0, 443, 65_535}[g.IntN(6)],
				Protocol: v1.Protocol(g.pick("", "TCP", "UDP", "SCTP", "tcp", "Gre")),
			})
		}
		made[s.Namespace+"/"+s.Name] = s
	}
	out := slices.Collect(maps.Values(made))
	slices.SortFunc(out, func(a, b *v1.Service) int { // A case is the same in every run.
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	g.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}
