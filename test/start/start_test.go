// Package start tests how the program starts, above all when it cannot.
package start

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/test/coredns"
)

// TestRefusals: what is wrong with a configuration ends the program at once, with a message that says where it stands
// and what would be right.
func TestRefusals(t *testing.T) {
	bin := coredns.Binary(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	broken := filepath.Dir(write("broken/web.yaml", "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  ports:\n  - port: eighty\n"))
	full := filepath.Dir(write("full/all.yaml", `
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.0.0.0/30]}
---
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b}
spec: {ports: [{port: 80}]}
`))
	kubeconfig := write("kubeconfig", "apiVersion: v1\nkind: Config\nclusters: [\n")
	for _, c := range []struct {
		name, stanza string
		want         []string
	}{
		{"unknown option", "cachesize 5", []string{"Corefile:3", "cachesize", "the options are"}},
		{"bad value", "ttl 4000", []string{"Corefile:3", "4000", "0 to 3600"}},
		{"contradiction", "namespaces a\n namespace_labels b", []string{"Corefile:", "cannot both be set"}},
		{"missing directory", "manifests " + dir + "/nowhere", []string{"Corefile:3", "nowhere"}},
		{"malformed YAML", "manifests " + broken, []string{"Corefile:3", "web.yaml:7", "port"}},
		{"full range", "manifests " + full, []string{"Corefile:3", "10.0.0.0/30", "all.yaml:"}},
		{"no kubeconfig", "kubeconfig " + dir + "/nowhere", []string{"Corefile:3", "nowhere"}},
		{"malformed kubeconfig", "kubeconfig " + kubeconfig, []string{"Corefile:3", kubeconfig}},
		{"unknown context", "kubeconfig " + write("good", "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: http://127.0.0.1:1}}]\ncontexts: [{name: dev, context: {cluster: c}}]\n") + " prod", []string{"Corefile:3", "prod", "dev"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			corefile := write("Corefile", fmt.Sprintf(".:0 {\n ropewalk cluster.local {\n %s\n }\n}\n", c.stanza))
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			out, err := exec.CommandContext(ctx, bin, "-conf", corefile).CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() <= 0 {
				t.Errorf("it did not end with an exit code: %v", err)
			}
			for _, w := range c.want {
				if !strings.Contains(string(out), w) {
					t.Errorf("the message does not say %q:\n%s", w, out)
				}
			}
		})
	}
}
