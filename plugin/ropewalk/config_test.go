package ropewalk

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/pkg/fall"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ropewalk-net/ropewalk/cluster/apiserver"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

// stanza returns a Corefile's stanza with the options on lines of their own, from line 2.
func stanza(zones string, options ...string) string {
	return fmt.Sprintf("ropewalk %s {\n%s\n}", zones, strings.Join(options, "\n"))
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, input string
		want        func(c *config) // from the defaults with the zone cluster.local.
	}{
		{"no block", "ropewalk cluster.local", func(*config) {}},
		{"empty block", "ropewalk cluster.local {\n}", func(*config) {}},
		{"zones", "ropewalk Cluster.Local in-addr.arpa 10.0.0.0/8", func(c *config) {
			c.zones = []string{"cluster.local.", "in-addr.arpa.", "10.in-addr.arpa."}
		}},
		{"endpoint", stanza("cluster.local", "endpoint https://10.0.0.1:6443"), func(c *config) {
			c.api.Endpoint, c.apiOption = "https://10.0.0.1:6443", "endpoint"
		}},
		{"several endpoints", stanza("cluster.local", "endpoint http://localhost:9090 http://localhost:9091"), func(c *config) {
			c.api.Endpoint, c.apiOption = "http://localhost:9090", "endpoint"
		}},
		{"tls", stanza("cluster.local", "tls crt key ca"), func(c *config) {
			c.api, c.apiOption = apiserver.Config{CertFile: "crt", KeyFile: "key", CAFile: "ca"}, "tls"
		}},
		{"kubeconfig", stanza("cluster.local", "kubeconfig file"), func(c *config) {
			c.api.Kubeconfig, c.apiOption = "file", "kubeconfig"
		}},
		{"kubeconfig with context", stanza("cluster.local", "kubeconfig file context"), func(c *config) {
			c.api.Kubeconfig, c.api.Context, c.apiOption = "file", "context", "kubeconfig"
		}},
		{"limits", stanza("cluster.local", "apiserver_qps 50.5", "apiserver_burst 100", "apiserver_max_inflight 25"), func(c *config) {
			c.api, c.apiOption = apiserver.Config{QPS: 50.5, Burst: 100, MaxInflight: 25}, "apiserver_qps"
		}},
		{"no limits", stanza("cluster.local", "apiserver_qps 0", "apiserver_burst 0", "apiserver_max_inflight 0"), func(c *config) {
			c.apiOption = "apiserver_qps"
		}},
		{"namespaces", stanza("cluster.local", "namespaces demo test", "namespaces more"), func(c *config) {
			c.namespaces = []string{"demo", "test", "more"}
		}},
		{"namespace_labels", stanza("cluster.local", "namespace_labels istio-injection=enabled"), func(c *config) {
			c.nsLabels = "istio-injection=enabled"
		}},
		{"labels", stanza("cluster.local", "labels environment in (production, staging, qa),application=nginx"), func(c *config) {
			c.labels = "environment in (production, staging, qa),application=nginx"
		}},
		{"pods disabled", stanza("cluster.local", "pods disabled"), func(c *config) { c.pods = zone.PodsDisabled }},
		{"pods insecure", stanza("cluster.local", "pods insecure"), func(c *config) { c.pods = zone.PodsInsecure }},
		{"pods verified", stanza("cluster.local", "pods verified"), func(c *config) { c.pods = zone.PodsVerified }},
		{"endpoint_pod_names", stanza("cluster.local", "endpoint_pod_names"), func(c *config) { c.endpointPodNames = true }},
		{"ttl 0", stanza("cluster.local", "ttl 0"), func(c *config) { c.ttl = 0 }},
		{"ttl 3600", stanza("cluster.local", "ttl 3600"), func(c *config) { c.ttl = 3600 }},
		{"ttl and a word, which stock ignores", stanza("cluster.local", "ttl 30 seconds"), func(c *config) { c.ttl = 30 }},
		{"noendpoints", stanza("cluster.local", "noendpoints"), func(c *config) { c.noEndpoints = true }},
		{"fallthrough", stanza("cluster.local", "fallthrough"), func(c *config) { c.fall = fall.Root }},
		{"fallthrough in zones", stanza("cluster.local", "fallthrough ip6.arpa in-addr.arpa foo.com"), func(c *config) {
			c.fall = fall.F{Zones: []string{"ip6.arpa.", "in-addr.arpa.", "foo.com."}}
		}},
		{"ignore", stanza("cluster.local", "ignore empty_service"), func(c *config) { c.ignoreEmpty = true }},
		{"ignore and words, which stock ignores", stanza("cluster.local", "ignore empty_service ixnay on the rest"), func(c *config) { c.ignoreEmpty = true }},
		{"ignore nothing", stanza("cluster.local", "ignore"), func(*config) {}},
		{"multicluster", stanza("cluster.local clusterset.local", "multicluster clusterset.local"), func(c *config) {
			c.zones, c.multicluster = []string{"cluster.local.", "clusterset.local."}, []string{"clusterset.local."}
		}},
		{"multicluster of nothing", stanza("cluster.local", "multicluster"), func(*config) {}},
		{"zonal", stanza("cluster.local", "zonal"), func(c *config) { c.zonal = true }},
		{"startup_timeout", stanza("cluster.local", "startup_timeout 1m30s"), func(c *config) { c.startupTimeout = 90 * time.Second }},
		{"startup_timeout of nothing", stanza("cluster.local", "startup_timeout 0s"), func(c *config) { c.startupTimeout = 0 }},
		{"manifests", stanza("cluster.local", "manifests /etc/cluster"), func(c *config) { c.manifests = "/etc/cluster" }},
		{"snapshot", stanza("cluster.local", "snapshot /var/lib/dns"), func(c *config) {
			c.snapshot, c.apiOption = "/var/lib/dns", "snapshot"
		}},
		{"autopath", stanza("cluster.local", "autopath"), func(c *config) { c.autopath = true }},
		{"env", stanza("cluster.local", "env"), func(c *config) { c.env = true }},
		{"many", stanza("coredns.local test.local", "endpoint http://localhost:8080", "namespaces demo test",
			"labels environment in (production, staging, qa),application=nginx", "fallthrough"), func(c *config) {
			c.zones, c.namespaces = []string{"coredns.local.", "test.local."}, []string{"demo", "test"}
			c.api.Endpoint, c.apiOption = "http://localhost:8080", "endpoint"
			c.labels, c.fall = "environment in (production, staging, qa),application=nginx", fall.Root
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := parse(caddy.NewTestController("dns", test.input))
			if err != nil {
				t.Fatal(err)
			}
			want := &config{zones: []string{"cluster.local."}, ttl: 5, startupTimeout: 5 * time.Second}
			test.want(want)
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(config{}, fastMode{}), cmpopts.EquateEmpty(),
				cmpopts.IgnoreFields(config{}, "stanzaAt", "sourceAt", "snapshotAt"), cmpopts.IgnoreFields(apiserver.Config{}, "Log", "OnError")); diff != "" {
				t.Errorf("want -, got +\n%s", diff)
			}
		})
	}
}

// TestParseTakesTheServersZones holds that zones default to those of the server block, as in other plugins.
func TestParseTakesTheServersZones(t *testing.T) {
	c := caddy.NewTestController("dns", "ropewalk")
	c.ServerBlockKeys = []string{"cluster.local:53", "in-addr.arpa:53"}
	got, err := parse(c)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"cluster.local.", "in-addr.arpa."}, got.zones); diff != "" {
		t.Error(diff)
	}
}

// TestPathsBelowRoot holds that a relative path is below the directory that the root plugin gives.
func TestPathsBelowRoot(t *testing.T) {
	for _, test := range []struct{ root, dir, want string }{
		{"/srv", "cluster", "/srv/cluster"},
		{"/srv", "/etc/cluster", "/etc/cluster"},
		{"", "cluster", "cluster"},
	} {
		for option, path := range map[string]func(*config) string{
			"manifests": func(c *config) string { return c.manifests },
			"snapshot":  func(c *config) string { return c.snapshot },
		} {
			c := caddy.NewTestController("dns", stanza("cluster.local", option+" "+test.dir))
			dnsserver.GetConfig(c).Root = test.root
			got, err := parse(c)
			if err != nil {
				t.Fatal(err)
			}
			if p := path(got); p != test.want {
				t.Errorf("root %q, %s %q: %q, want %q", test.root, option, test.dir, p, test.want)
			}
		}
	}
}

// TestSetupRefuses holds that what is refused is refused with its place, with what is wrong, and with what would be right.
func TestSetupRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := filepath.Dir(write("good/ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n"))
	badYAML := write("bad/ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: [shop\n")
	badField := write("field/svc.yaml", "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  namespace: shop\nspec:\n  clusterIP: 10.96.0\n")
	kubeconfig := write("kubeconfig", "not: [a kubeconfig\n")
	noContexts := write("nocontexts", "apiVersion: v1\nkind: Config\n")
	missing := filepath.Join(dir, "missing")
	options := "apiserver_burst, apiserver_max_inflight, apiserver_qps, autopath,"

	tests := []struct {
		name, input string
		line        int // of the Corefile
		words       []string
	}{
		{"unknown option", stanza("cluster.local", "pods verified", "tls_verify no"), 3, []string{`"tls_verify"`, "unknown option", options}},
		{"endpoint without argument", stanza("cluster.local", "endpoint"), 2, []string{"endpoint takes at least 1 argument", "endpoint https://10.0.0.1:6443"}},
		{"tls with two", stanza("cluster.local", "tls crt key"), 2, []string{"tls takes 3 arguments", "tls CERT KEY CACERT"}},
		{"tls with four", stanza("cluster.local", "tls crt key ca more"), 2, []string{"tls takes 3 arguments"}},
		{"kubeconfig without argument", stanza("cluster.local", "kubeconfig"), 2, []string{"kubeconfig takes 1 to 2 arguments", "kubeconfig /etc/kubernetes/dns.conf"}},
		{"kubeconfig with three", stanza("cluster.local", "kubeconfig file context extra"), 2, []string{"kubeconfig takes 1 to 2 arguments"}},
		{"apiserver_qps without argument", stanza("cluster.local", "apiserver_qps"), 2, []string{"apiserver_qps takes 1 argument", "apiserver_qps 50"}},
		{"apiserver_qps of less than 0", stanza("cluster.local", "apiserver_qps -10"), 2, []string{`apiserver_qps: "-10" is not`, "such as 50 or 0.5"}},
		{"apiserver_qps of a word", stanza("cluster.local", "apiserver_qps fast"), 2, []string{`apiserver_qps: "fast" is not`}},
		{"apiserver_qps of no number", stanza("cluster.local", "apiserver_qps NaN"), 2, []string{`apiserver_qps: "NaN" is not`}},
		{"apiserver_burst of less than 0", stanza("cluster.local", "apiserver_burst -5"), 2, []string{`apiserver_burst: "-5" is not`, "0 or more"}},
		{"apiserver_burst with two", stanza("cluster.local", "apiserver_burst 5 6"), 2, []string{"apiserver_burst takes 1 argument"}},
		{"apiserver_max_inflight of less than 0", stanza("cluster.local", "apiserver_max_inflight -1"), 2, []string{`apiserver_max_inflight: "-1" is not`, "0 or more"}},
		{"namespaces of nothing", stanza("cluster.local", "namespaces"), 2, []string{"namespaces takes at least 1 argument", "namespaces shop payments"}},
		{"namespace_labels of nothing", stanza("cluster.local", "namespace_labels"), 2, []string{"namespace_labels takes at least 1 argument"}},
		{"namespace_labels malformed", stanza("cluster.local", "namespace_labels a in (b"), 2, []string{`namespace_labels: "a in (b" is not a label selector`, "such as"}},
		{"labels of nothing", stanza("cluster.local", "labels"), 2, []string{"labels takes at least 1 argument"}},
		{"labels malformed", stanza("cluster.local", "", "labels environment in (production, qa"), 3, []string{`labels: "environment in (production, qa" is not a label selector`, "such as"}},
		{"pods of nothing", stanza("cluster.local", "pods"), 2, []string{"pods takes 1 argument", "pods verified"}},
		{"pods of another mode", stanza("cluster.local", "pods giant_seed"), 2, []string{`pods: "giant_seed"`, "disabled, insecure, verified"}},
		{"endpoint_pod_names with argument", stanza("cluster.local", "endpoint_pod_names yes"), 2, []string{"endpoint_pod_names takes no argument"}},
		{"ttl of nothing", stanza("cluster.local", "ttl"), 2, []string{"ttl takes at least 1 argument", "ttl 30"}},
		{"ttl of less than 0", stanza("cluster.local", "ttl -1"), 2, []string{`ttl: "-1"`, "0 to 3600"}},
		{"ttl too large", stanza("cluster.local", "ttl 3601"), 2, []string{`ttl: "3601"`, "0 to 3600"}},
		{"ttl of a word", stanza("cluster.local", "ttl x"), 2, []string{`ttl: "x"`, "0 to 3600"}},
		{"noendpoints with argument", stanza("cluster.local", "noendpoints ixnay"), 2, []string{"noendpoints takes no argument"}},
		{"ignore of something else", stanza("cluster.local", "ignore ixnay on the endpointsay"), 2, []string{`ignore: "ixnay"`, "empty_service"}},
		{"multicluster of a zone that is not listed", stanza("cluster.local clusterset.local", "multicluster clusterset.local test.local"), 2, []string{"multicluster: test.local. is not one of the zones (cluster.local. clusterset.local.)", "add it"}},
		{"zonal with argument", stanza("cluster.local", "zonal us-west-2a"), 2, []string{"zonal takes no argument"}},
		{"zonal without endpoints", stanza("cluster.local", "zonal", "noendpoints"), 3, []string{"zonal and noendpoints cannot both be set"}},
		{"namespaces twice chosen", stanza("cluster.local", "namespaces foo bar", "namespace_labels istio-injection=enabled"), 3, []string{"namespaces and namespace_labels cannot both be set"}},
		{"startup_timeout of nothing", stanza("cluster.local", "startup_timeout"), 2, []string{"startup_timeout takes at least 1 argument", "startup_timeout 10s"}},
		{"startup_timeout without unit", stanza("cluster.local", "startup_timeout 10"), 2, []string{`startup_timeout: "10" is not a duration`, "10s"}},
		{"startup_timeout of less than 0", stanza("cluster.local", "startup_timeout -1s"), 2, []string{`startup_timeout: "-1s" is not a duration`}},
		{"manifests of nothing", stanza("cluster.local", "manifests"), 2, []string{"manifests takes 1 argument", "manifests /etc/coredns/cluster"}},
		{"manifests of two", stanza("cluster.local", "manifests a b"), 2, []string{"manifests takes 1 argument"}},
		{"manifests and kubeconfig", stanza("cluster.local", "manifests "+good, "kubeconfig file"), 3, []string{"manifests and kubeconfig cannot both be set"}},
		{"endpoint and manifests", stanza("cluster.local", "endpoint http://localhost:1", "manifests "+good), 3, []string{"manifests and endpoint cannot both be set"}},
		{"snapshot of nothing", stanza("cluster.local", "snapshot"), 2, []string{"snapshot takes 1 argument", "snapshot /var/lib/coredns/cluster.snapshot"}},
		{"snapshot and manifests", stanza("cluster.local", "snapshot "+dir+"/s", "manifests "+good), 3, []string{"manifests and snapshot cannot both be set"}},
		{"snapshot without a directory", stanza("cluster.local", "endpoint http://localhost:1", "snapshot "+missing+"/s"), 3, []string{"snapshot " + missing + "/s: ", "no such file", "has to be there"}},
		{"snapshot below a file", stanza("cluster.local", "endpoint http://localhost:1", "snapshot "+kubeconfig+"/s"), 3, []string{"snapshot " + kubeconfig + "/s: ", "not a directory"}},
		{"snapshot that cannot be written", stanza("cluster.local", "endpoint http://localhost:1", "snapshot /sys/s"), 3, []string{"snapshot /sys/s: ", "allowed to write"}},
		{"snapshot that is a directory", stanza("cluster.local", "endpoint http://localhost:1", "snapshot "+good), 3, []string{"snapshot " + good + ": ", "not a regular file"}},
		{"autopath with argument", stanza("cluster.local", "autopath @kubernetes"), 2, []string{"autopath takes no argument"}},
		{"env with argument", stanza("cluster.local", "env on"), 2, []string{"env takes no argument"}},
		{"two stanzas", "ropewalk coredns.local\nropewalk cluster.local", 2, []string{"once", "in one stanza"}},
		{"no zones", "ropewalk", 1, []string{"no zones", "ropewalk cluster.local"}},
		{"reverse zones only", stanza("in-addr.arpa ip6.arpa", "manifests "+good), 1, []string{`no zone for services among ["in-addr.arpa." "ip6.arpa."]`, "such as cluster.local"}},
		{"reverse zones of a clusterset", stanza("clusterset.local in-addr.arpa", "multicluster clusterset.local", "manifests "+good), 1, []string{"no zone for services", "such as cluster.local"}},
		{"manifests missing", stanza("cluster.local", "ttl 7", "manifests "+missing), 3, []string{missing, "no such file"}},
		{"manifests malformed", stanza("cluster.local", "manifests "+filepath.Dir(badYAML)), 2, []string{badYAML + ":3", "not YAML"}},
		{"manifests that no API server takes", stanza("cluster.local", "manifests "+filepath.Dir(badField)), 2, []string{badField + ":7", "Service shop/web", "spec.clusterIP"}},
		{"kubeconfig missing", stanza("cluster.local", "kubeconfig "+missing), 2, []string{missing, "no such file"}},
		{"kubeconfig malformed", stanza("cluster.local", "ttl 7", "kubeconfig "+kubeconfig), 3, []string{kubeconfig, "kind: Config"}},
		{"kubeconfig without contexts", stanza("cluster.local", "kubeconfig "+noContexts), 2, []string{noContexts, "no contexts"}},
		{"endpoint that is no URL", stanza("cluster.local", "endpoint ftp://host"), 2, []string{"ftp://host", "such as https://host:6443"}},
		{"tls files missing", stanza("cluster.local", "endpoint https://127.0.0.1:1", "tls "+missing+" "+missing+" "+missing), 2, []string{missing, "no such file"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := setup(caddy.NewTestController("dns", test.input))
			if err == nil {
				t.Fatalf("accepted:\n%s", test.input)
			}
			for _, w := range append(test.words, "plugin/ropewalk: ") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("no %q in\n%v", w, err)
				}
			}
			if place := fmt.Sprintf(`Testfile:%d\b`, test.line); !regexp.MustCompile(place).MatchString(err.Error()) {
				t.Errorf("no %s in\n%v", place, err)
			}
		})
	}
}

// TestFeedKey holds that configurations share a feed if and only if what they serve is the same.
func TestFeedKey(t *testing.T) {
	base := stanza("cluster.local", "manifests /m")
	key := func(t *testing.T, input string) string {
		t.Helper()
		c, err := parse(caddy.NewTestController("dns", input))
		if err != nil {
			t.Fatal(err)
		}
		return c.feedKey()
	}
	for _, same := range []string{
		base,
		stanza("cluster.local other.local", "manifests /m"),
		stanza("cluster.local", "manifests /m", "fallthrough"),
		stanza("cluster.local", "startup_timeout 1s", "manifests /m"),
	} {
		if key(t, same) != key(t, base) {
			t.Errorf("should share the feed of\n%s\n%s", base, same)
		}
	}
	seen := map[string]string{key(t, base): base}
	for _, option := range []string{
		"ttl 7", "pods insecure", "pods verified", "autopath", "endpoint_pod_names", "noendpoints", "ignore empty_service", "zonal", "env",
		"namespaces a", "namespaces a b", `namespaces "a b"`, "labels a=b", "namespace_labels a=b", "manifests /n",
		"multicluster cluster.local",
	} {
		input := stanza("cluster.local", "manifests /m", option)
		k := key(t, input)
		if other, ok := seen[k]; ok {
			t.Errorf("should not share a feed:\n%s\n%s", input, other)
		}
		seen[k] = input
	}
	for _, option := range []string{
		"endpoint http://a:1", "kubeconfig a", "kubeconfig a b", "tls a b c", "apiserver_qps 1", "apiserver_burst 1", "apiserver_max_inflight 1",
		"snapshot /a", "snapshot /b",
	} {
		input := stanza("cluster.local", option)
		k := key(t, input)
		if other, ok := seen[k]; ok {
			t.Errorf("should not share a feed:\n%s\n%s", input, other)
		}
		seen[k] = input
	}
}
