// Package layout holds the tests of how the packages may depend on each other.
package layout

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/ropewalk-net/ropewalk"

// rule says what the packages under one folder may not import, directly or through others.
type rule struct {
	under string // folder, with all below it
	but   []string
	// deny are import paths, or folders of ours that begin with "./"; all below them are meant, too.
	deny []string
	why  string
}

var rules = []rule{
	{
		under: "./cluster", but: []string{"./cluster/apiserver", "./cluster/manifests", "./cluster/snapshot"},
		deny: []string{"std-only"},
		why:  "everybody imports the vocabulary, the CNI plugin included, which starts once a pod: it must cost nothing",
	},
	{
		under: "./plugin/ropewalk/radix",
		deny:  []string{"std-only"},
		why:   "a data structure that knows nothing of the DNS can be read, tested and reused by itself",
	},
	{
		under: "./plugin/ropewalk/zone",
		deny:  []string{"github.com/", "k8s.io/", "./cluster/apiserver", "./cluster/manifests"},
		why:   "what is answered must not depend on who asks (CoreDNS) or who tells (Kubernetes)",
	},
	{
		under: "./cluster",
		deny:  []string{"./plugin", "./hostsmgr", "./proxy", "./cni", "./cmd"},
		why:   "sources do not know consumers",
	},
	{
		under: "./plugin",
		deny:  []string{"./hostsmgr", "./proxy", "./cni", "./cmd"},
		why:   "the modules can be taken one at a time",
	},
	{
		under: "./hostsmgr",
		deny:  []string{"./plugin", "./proxy", "./cni", "./cmd", "github.com/coredns/"},
		why:   "the modules can be taken one at a time",
	},
	{
		under: "./hostsmgr",
		deny:  []string{"./cluster/apiserver", "./cluster/manifests", "k8s.io/client-go/"},
		why:   "what belongs in a file must not depend on who tells (Kubernetes)",
	},
	{
		under: "./cmd/ropewalk",
		deny:  []string{"./plugin", "github.com/coredns/", "github.com/miekg/dns", "github.com/containerd/nri/pkg/adaptation"},
		why:   "it is on every node, and serves no DNS",
	},
	{
		under: "./proxy",
		deny:  []string{"./plugin", "./hostsmgr", "./cni", "./cmd", "github.com/coredns/"},
		why:   "the modules can be taken one at a time",
	},
	{
		under: "./cni",
		deny:  []string{"./plugin", "./hostsmgr", "./proxy", "./cmd", "github.com/coredns/", "k8s.io/client-go/"},
		why:   "the modules can be taken one at a time, and this one starts once a pod",
	},
	{
		under: "./cmd/ropewalk-cni",
		deny: []string{"./cluster", "./plugin", "./hostsmgr", "./proxy", "k8s.io/", "sigs.k8s.io/", "github.com/spf13/", "github.com/prometheus/",
			"github.com/coredns/", "github.com/miekg/dns"},
		why: "a runtime starts it twice a pod, and waits for it",
	},
	{
		under: "./cluster", but: []string{"./cluster/apiserver"},
		deny: []string{"k8s.io/client-go/"},
		why:  "there is one place that talks to API servers",
	},
}

type goPackage struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string
}

func TestLayers(t *testing.T) {
	packages := list(t)
	for _, r := range rules {
		for path, p := range packages {
			if !p.ours() || !under(path, r.under) || slices.ContainsFunc(r.but, func(b string) bool { return under(path, b) }) {
				continue
			}
			for _, dep := range p.Deps {
				if d := packages[dep]; r.denies(dep, d) {
					t.Errorf("%s must not depend on %s: %s", path, dep, r.why)
				}
			}
		}
	}
}

// TestOnlyTheTopChoosesASource holds that cmd and the plugin's own package alone import the sources directly.
func TestOnlyTheTopChoosesASource(t *testing.T) {
	for path, p := range list(t) {
		if !p.ours() || path == module+"/plugin/ropewalk" || under(path, "./cmd") || under(path, "./test") {
			continue
		}
		for _, s := range []string{module + "/cluster/apiserver", module + "/cluster/manifests"} {
			if slices.Contains(p.Imports, s) {
				t.Errorf("%s must not import %s: who puts a program together chooses where its objects come from", path, s)
			}
		}
	}
}

func (p *goPackage) ours() bool { return under(p.ImportPath, "./") }

func (r rule) denies(dep string, d *goPackage) bool {
	for _, deny := range r.deny {
		switch {
		case deny == "std-only":
			if d != nil && !d.Standard && !under(dep, "./cluster") {
				return true
			}
		case strings.HasPrefix(deny, "./"):
			if under(dep, deny) {
				return true
			}
		case strings.HasPrefix(dep, deny):
			if !under(dep, "./") {
				return true
			}
		}
	}
	return false
}

// under says whether a package lies in a folder of ours or below it.
func under(path, folder string) bool {
	root := strings.TrimSuffix(module+strings.TrimPrefix(folder, "."), "/")
	return path == root || strings.HasPrefix(path, root+"/")
}

func list(t *testing.T) map[string]*goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard,Imports,Deps", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	packages := map[string]*goPackage{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		packages[p.ImportPath] = &p
	}
	if len(packages) < 100 {
		t.Fatalf("go list knows of %d packages only", len(packages))
	}
	return packages
}
