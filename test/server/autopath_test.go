package server

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// podAt returns a pod, in a namespace that some other file makes.
func podAt(ip, name, ns string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {app: %[1]s}}
spec: {containers: [{name: c, image: i}]}
status: {phase: Running, podIPs: [{ip: %[3]s}]}
`, name, ns, ip)
}

const pay = `
apiVersion: v1
kind: Namespace
metadata: {name: pay}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: pay}
spec:
  clusterIP: 10.96.0.7
  ports: [{name: http, port: 80}]
`

// upstreams is what the rest of the server knows, of the name example.com and more.
const upstreams = `hosts {
192.0.2.1 example.com
192.0.2.7 www.example.com.
fallthrough
}
template IN ANY chain.example.org {
answer "{{ .Name }} 60 IN CNAME example.com."
}
template IN ANY none.example.org {
rcode NXDOMAIN
}
template IN ANY pay {
rcode NXDOMAIN
}
template IN ANY fails.example.org {
rcode SERVFAIL
}`

type completion struct {
	name string
	typ  uint16
	want string
}

// completions are what a pod of the namespace shop gets for names with its first search domain.
var completions = []completion{
	{"web.shop.svc.cluster.local", dns.TypeA, "NOERROR, A 10.96.0.2"},
	{"web.shop.svc.cluster.local", dns.TypeAAAA, "NOERROR"},
	{"api.pay.shop.svc.cluster.local", dns.TypeA, "NOERROR, CNAME api.pay.svc.cluster.local., A 10.96.0.7"},
	{"api.pay.shop.svc.cluster.local", dns.TypeAAAA, "NOERROR"},
	{"api.pay.svc.shop.svc.cluster.local", dns.TypeA, "NOERROR, CNAME api.pay.svc.cluster.local., A 10.96.0.7"},
	{"api.pay.svc.cluster.local.shop.svc.cluster.local", dns.TypeA, "NOERROR, CNAME api.pay.svc.cluster.local., A 10.96.0.7"},
	{"example.com.shop.svc.cluster.local", dns.TypeA, "NOERROR, CNAME example.com., A 192.0.2.1"},
	{"Www.Example.COM.Shop.svc.cluster.local", dns.TypeA, "NOERROR, CNAME www.example.com., A 192.0.2.7"},
	{"example.com.shop.svc.cluster.local", dns.TypeAAAA, "NOERROR"},
	{"chain.example.org.shop.svc.cluster.local", dns.TypeA, "NOERROR, CNAME chain.example.org., CNAME example.com., A 192.0.2.1"},
	{"none.example.org.shop.svc.cluster.local", dns.TypeA, "NXDOMAIN"},
	{"fails.example.org.shop.svc.cluster.local", dns.TypeA, "NXDOMAIN"}, // the client goes on and gets to see the failure
	{"gone.pay.shop.svc.cluster.local", dns.TypeA, "NXDOMAIN"},
	{"example.com.shop.svc.cluster.local", dns.TypeTXT, "NXDOMAIN"},
	{"example.com.pay.svc.cluster.local", dns.TypeA, "NXDOMAIN"}, // another namespace's
	{"example.com.cart.svc.cluster.local", dns.TypeA, "NXDOMAIN"},
	{"example.com.svc.cluster.local", dns.TypeA, "NXDOMAIN"},
	{"shop.svc.cluster.local", dns.TypeA, "NOERROR"},
}

func TestAutopath(t *testing.T) {
	dir := files(t, "web.yaml", web, "pay.yaml", pay, "pod.yaml", podAt("127.0.0.1", "client", "shop"))
	for _, mode := range []string{"", "pods disabled", "pods insecure", "pods verified"} {
		t.Run(mode, func(t *testing.T) {
			addr := freePort(t)
			s := start(t, block("prometheus "+addr, "errors", upstreams, ropewalk(dir, "autopath", mode)))
			const series = "coredns_ropewalk_autopath_success_total"
			before := scrape(t, addr)[series]
			for _, c := range completions {
				m := s.ask(t, c.name, c.typ)
				if got := summary(m); got != c.want {
					t.Errorf("%s %s: %s, want %s", c.name, dns.TypeToString[c.typ], got, c.want)
				}
				if len(m.Answer) > 0 && m.Answer[0].Header().Name != dns.Fqdn(c.name) {
					t.Errorf("%s: the first record should be of the name asked for: %s", c.name, m.Answer[0])
				}
				if m.Rcode == dns.RcodeNameError && (len(m.Ns) != 1 || m.Ns[0].Header().Name != "cluster.local.") {
					t.Errorf("%s: NXDOMAIN should be the cluster's own: %v", c.name, m.Ns)
				}
			}
			if got := scrape(t, addr)[series] - before; got != 8 {
				t.Errorf("%s rose by %v, want 8", series, got)
			}
		})
	}
}

// TestAutopathOfOthers holds that a client which is no pod gets what it asks for.
func TestAutopathOfOthers(t *testing.T) {
	dir := files(t, "web.yaml", web, "pay.yaml", pay, "pod.yaml", podAt("10.244.0.9", "client", "shop"))
	s := start(t, block(upstreams, ropewalk(dir, "autopath")))
	s.expect(t, "web.shop.svc.cluster.local", dns.TypeA, "NOERROR, A 10.96.0.2")
	s.expect(t, "api.pay.shop.svc.cluster.local", dns.TypeA, "NXDOMAIN")
	s.expect(t, "example.com.shop.svc.cluster.local", dns.TypeA, "NXDOMAIN")
}

// TestAutopathAcrossBlocks holds that names outside of the cluster are looked for in the whole server.
func TestAutopathAcrossBlocks(t *testing.T) {
	dir := files(t, "web.yaml", web, "pod.yaml", podAt("127.0.0.1", "client", "shop"))
	s := start(t, "cluster.local:0 {\nbind 127.0.0.1\n"+ropewalk(dir, "autopath")+"\n}\n"+block(upstreams))
	s.expect(t, "example.com.shop.svc.cluster.local", dns.TypeA, "NOERROR, CNAME example.com., A 192.0.2.1")
	s.expect(t, "none.example.org.shop.svc.cluster.local", dns.TypeA, "NXDOMAIN")
}

// TestAutopathPlugin holds that CoreDNS's own plugin learns the search path here, as it does from kubernetes.
func TestAutopathPlugin(t *testing.T) {
	dir := files(t, "web.yaml", web, "pay.yaml", pay, "pod.yaml", podAt("127.0.0.1", "client", "shop"))
	s := start(t, block("autopath @ropewalk", upstreams, ropewalk(dir, "pods verified")))
	for _, c := range completions {
		// The plugin has its own mind about failures, other types, and the first search domain itself.
		if strings.HasPrefix(c.name, "fails.") || c.typ == dns.TypeTXT || c.name == "shop.svc.cluster.local" {
			continue
		}
		s.expect(t, c.name, c.typ, c.want)
	}
}
