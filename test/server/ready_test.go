package server

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestReadyAndHealth(t *testing.T) {
	ready, health := freePort(t), freePort(t)
	s := start(t, block("ready "+ready, "health "+health, ropewalk(files(t, "web.yaml", web))))
	s.expect(t, "web.shop.svc.cluster.local", dns.TypeA, "NOERROR, A 10.96.0.2")
	eventually(t, "ready", func() bool { code, _ := get(t, "http://"+ready+"/ready"); return code == http.StatusOK })
	eventually(t, "healthy", func() bool { code, _ := get(t, "http://"+health+"/health"); return code == http.StatusOK })
}

// away writes a kubeconfig of an API server that is not there.
func away(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	write(t, path, fmt.Sprintf(`
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "http://%s"}}]
users: [{name: u, user: {}}]
`, freePort(t)))
	return path
}

// TestBeforeSync holds that what is not known yet is neither denied nor left to others.
func TestBeforeSync(t *testing.T) {
	ready := freePort(t)
	mark := logged.mark()
	metrics := freePort(t)
	s := start(t, block("ready "+ready, "prometheus "+metrics, "behind", fmt.Sprintf(
		"ropewalk cluster.local in-addr.arpa {\nkubeconfig %s\nstartup_timeout 100ms\npods verified\nfallthrough\n}", away(t))))
	for _, test := range []struct {
		name string
		typ  uint16
	}{
		{"web.shop.svc.cluster.local", dns.TypeA},
		{"web.shop.svc.cluster.local", dns.TypeAAAA},
		{"_http._tcp.web.shop.svc.cluster.local", dns.TypeSRV},
		{"10-0-0-1.shop.pod.cluster.local", dns.TypeA},
		{"nonsense.cluster.local", dns.TypeA},
		{"2.0.96.10.in-addr.arpa", dns.TypePTR},
	} {
		s.expect(t, test.name, test.typ, "SERVFAIL")
		if got := summary(s.exchange(t, "tcp", query(test.name, test.typ))); got != "SERVFAIL" {
			t.Errorf("%s over TCP: %s", test.name, got)
		}
	}
	s.expect(t, "dns-version.cluster.local", dns.TypeTXT, `NOERROR, TXT "1.1.0"`)
	if m := s.ask(t, "example.com", dns.TypeA); !passedOn(m) {
		t.Errorf("what is not the cluster's should be left to others:\n%s", m)
	}
	if code, body := get(t, "http://"+ready+"/ready"); code != http.StatusServiceUnavailable || body != "ropewalk" {
		t.Errorf("ready says %d %q, want 503 and who is not", code, body)
	}
	eventually(t, "the metrics tell of the failures", func() bool {
		m := scrape(t, metrics)
		return m[`coredns_ropewalk_api_errors_total{kind="Service"}`] > 0 && m[`coredns_ropewalk_sync_age_seconds{zone="cluster.local."}`] > 0
	})
	if l := logged.since(mark); !strings.Contains(l, "startup_timeout") || !strings.Contains(l, "100ms") {
		t.Errorf("the log should say why this serves nothing yet:\n%s", l)
	}
}

func TestFallthrough(t *testing.T) {
	dir := files(t, "web.yaml", web, "alias.yaml", alias("dangling", "gone.shop.svc.cluster.local"))
	const existing, nodata, nothing, above = "web.shop.svc.cluster.local", "shop.svc.cluster.local", "none.shop.svc.cluster.local", "x.cluster.local"
	const ptr, noPtr, innerPtr = "2.0.96.10.in-addr.arpa", "9.0.96.10.in-addr.arpa", "96.10.in-addr.arpa"
	for _, test := range []struct {
		option string
		passed []string
	}{
		{"", nil},
		{"fallthrough", []string{nothing, above, noPtr}},
		{"fallthrough in-addr.arpa", []string{noPtr}},
		{"fallthrough shop.svc.cluster.local other.local", []string{nothing}},
	} {
		t.Run(test.option, func(t *testing.T) {
			s := start(t, block("behind", ropewalk(dir, test.option)))
			passed := map[string]bool{"example.com": true, "local": true}
			for _, n := range test.passed {
				passed[n] = true
			}
			for _, n := range []string{existing, nodata, nothing, above, ptr, noPtr, innerPtr, "dangling.shop.svc.cluster.local", "cluster.local", "example.com", "local"} {
				for _, typ := range []uint16{dns.TypeA, dns.TypePTR, dns.TypeTXT} {
					if m := s.ask(t, n, typ); passedOn(m) != passed[n] {
						t.Errorf("%s %s passed on: %v\n%s", n, dns.TypeToString[typ], passedOn(m), m)
					}
				}
			}
			if !passed[nothing] {
				s.expect(t, nothing, dns.TypeA, "NXDOMAIN")
			}
			s.expect(t, existing, dns.TypeA, "NOERROR, A 10.96.0.2")
			s.expect(t, "dangling.shop.svc.cluster.local", dns.TypeA, "NXDOMAIN, CNAME gone.shop.svc.cluster.local.")
		})
	}
}

// TestClustersetAlone holds that a clusterset's zone may have a server block of its own, as stock allows.
func TestClustersetAlone(t *testing.T) {
	dir := files(t, "web.yaml", web, "import.yaml", `
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceImport
metadata: {name: api, namespace: shop}
spec:
  type: ClusterSetIP
  ips: [10.96.0.77]
  ports: [{name: http, port: 80}]
`)
	s := start(t, block("behind", stanza("clusterset.local", dir, "multicluster clusterset.local")))
	s.expect(t, "api.shop.svc.clusterset.local", dns.TypeA, "NOERROR, A 10.96.0.77")
	s.expect(t, "web.shop.svc.clusterset.local", dns.TypeA, "NXDOMAIN")
	for _, name := range []string{"2.0.96.10.in-addr.arpa", "77.0.96.10.in-addr.arpa", "web.shop.svc.cluster.local"} {
		if m := s.ask(t, name, dns.TypePTR); !passedOn(m) {
			t.Errorf("%s is not of this zone:\n%s", name, m)
		}
	}
}
