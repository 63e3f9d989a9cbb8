package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/yaml"

	"github.com/ropewalk-net/ropewalk/cmd/ropewalk/parts"
	"github.com/ropewalk-net/ropewalk/cni/collect"
	"github.com/ropewalk-net/ropewalk/cni/mend"
	"github.com/ropewalk-net/ropewalk/cni/routes"
	"github.com/ropewalk-net/ropewalk/hostsmgr"
	"github.com/ropewalk-net/ropewalk/proxy"
)

// rules is what deploy/alerts.yaml is: a PrometheusRule, as far as alerts need it.
type rules struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   map[string]string `json:"metadata"`
	Spec       struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []struct {
				Alert       string            `json:"alert"`
				Expr        string            `json:"expr"`
				For         string            `json:"for"`
				Labels      map[string]string `json:"labels"`
				Annotations map[string]string `json:"annotations"`
			} `json:"rules"`
		} `json:"groups"`
	} `json:"spec"`
}

// TestAlerts holds that alerts are about metrics that there are, with labels that these have, and that docs/operations.md tells what to do
// about each.
func TestAlerts(t *testing.T) {
	text, err := os.ReadFile(root + "/deploy/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var r rules
	if err := yaml.UnmarshalStrict(text, &r); err != nil {
		t.Fatal(err)
	}
	there := registered(t)
	var alerts []string
	for _, g := range r.Spec.Groups {
		for _, rule := range g.Rules {
			alerts = append(alerts, rule.Alert)
			found := regexp.MustCompile(`\b(?:coredns|ropewalk)_\w+`).FindAllString(rule.Expr, -1)
			for _, m := range found {
				labels, ok := there[m]
				if !ok {
					t.Errorf("%s: there is no %s", rule.Alert, m)
				}
				for _, l := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(rule.Annotations["summary"], -1) {
					if l[1] != "instance" && !slices.Contains(labels, l[1]) {
						t.Errorf("%s: %s has no label %s, but %q", rule.Alert, m, l[1], labels)
					}
				}
			}
			if len(found) == 0 || rule.Annotations["summary"] == "" || rule.Labels["severity"] == "" {
				t.Errorf("%+v", rule)
			}
		}
	}
	doc, err := os.ReadFile(operationsDoc)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, row := range regexp.MustCompile("(?m)^\\| `Ropewalk.*$").FindAllString(string(doc), -1) {
		for _, m := range regexp.MustCompile("`(Ropewalk\\w+)`").FindAllStringSubmatch(row, -1) {
			told = append(told, m[1])
		}
	}
	slices.Sort(alerts)
	slices.Sort(told)
	if d := cmp.Diff(alerts, told); d != "" || len(alerts) < 10 {
		t.Errorf("%d alerts, (-rules +documents)\n%s", len(alerts), d)
	}
}

// description is what the client library tells of a metric.
var description = regexp.MustCompile(`fqName: "(\w+)".*variableLabels: \{([\w,]*)\}`)

// labelled is a prometheus.Registerer that notes what it is given.
type labelled map[string][]string

func (l labelled) Register(c prometheus.Collector) error {
	descriptions := make(chan *prometheus.Desc, 100)
	c.Describe(descriptions)
	close(descriptions)
	for d := range descriptions {
		m := description.FindStringSubmatch(d.String())
		l[m[1]] = strings.Split(m[2], ",")
	}
	return nil
}

func (l labelled) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		_ = l.Register(c) // which does not fail
	}
}

func (l labelled) Unregister(prometheus.Collector) bool { return false }

// registered are the metrics that there are, and their labels.
func registered(t *testing.T) map[string][]string {
	t.Helper()
	all := labelled{"coredns_dns_responses_total": {"server", "zone", "view", "rcode", "plugin"}} // CoreDNS's own
	for _, err := range []error{
		second(routes.New(routes.Config{NodeName: "n", Registerer: all})), second(proxy.New(proxy.Config{NodeName: "n", Registerer: all})),
		second(hostsmgr.New(hostsmgr.Config{Registerer: all})), second(collect.New(collect.Config{Registerer: all})), second(mend.New(mend.Config{Registerer: all})),
		all.Register(&parts.Supervisor{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// These belong to no value that a test could ask: the program's own, and the plugin's, as its manual page has them.
	for _, in := range []struct{ glob, metric string }{
		{"/cmd/ropewalk/*.go", `(?s)Name:\s+"(ropewalk_\w+)",.{0,400}?\}(?:, \[\]string\{([^}]*)\})?`},
		{"/plugin/ropewalk/README.md", "(?m)^\\* `(\\w+)(?:\\{(.*?)\\})?`"},
	} {
		files, _ := filepath.Glob(root + in.glob)
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(in.metric).FindAllSubmatch(text, -1) {
				all[string(m[1])] = strings.Split(strings.NewReplacer(`"`, "", " ", "").Replace(string(m[2])), ",")
			}
		}
	}
	return all
}

func second[T any](_ T, err error) error { return err }

// TestMakeImage holds that make packs what it has built for each architecture.
func TestMakeImage(t *testing.T) {
	out, err := exec.Command("make", "-n", "-C", root, "image", "IMAGE=ropewalk:v1").CombinedOutput()
	for _, want := range []string{"-o bin/amd64/ropewalk ", "-o bin/arm64/ropewalk-cni ", "-o bin/arm64/coredns ", "run ./deploy/image -name ropewalk:v1 amd64 arm64"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%v, no %q in\n%s", err, want, out)
		}
	}
}

// TestLinks holds that what documents lead to is there, sections included.
func TestLinks(t *testing.T) {
	docs, _ := filepath.Glob(root + "/docs/*.md")
	docs = append(docs, root+"/README.md", root+"/ARCHITECTURE.md", root+"/plugin/ropewalk/README.md")
	links := 0
	for _, doc := range docs {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			path, section, _ := strings.Cut(m[1], "#")
			to := doc
			if path != "" {
				to = filepath.Join(filepath.Dir(doc), path)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %v", doc, err)
			} else if section != "" && !slices.Contains(sections(t, to), section) {
				t.Errorf("%s: %s has no section #%s", doc, to, section)
			}
		}
	}
	if links < 30 {
		t.Errorf("%d links", links)
	}
}

// sections are the names by which links lead to those of a document.
func sections(t *testing.T, path string) (out []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(text), -1) {
		name := regexp.MustCompile(`[^\w\s-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		out = append(out, strings.ReplaceAll(name, " ", "-"))
	}
	return out
}
