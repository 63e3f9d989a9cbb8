package hostsfile

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/ropewalk-net/ropewalk/cluster"
)

var update = flag.Bool("update", false, "write what the code gives into the golden files")

// unended marks a section whose last newline is the archive's and not its own.
const unended = " (without last newline)"

// TestGolden holds what Render gives to the last section, "want", or "error" where it fails. Before it stand the pod; the node's
// hosts file, if the pod's depends on it; and lines with more aliases, if there are some.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			last := len(ar.Files) - 1
			got := rendered(t, ar.Files[:last])
			if *update {
				ar.Files[last] = got
				if err := os.WriteFile(path, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want := ar.Files[last]
			if d := cmp.Diff(want.Name+"\n"+string(want.Data), got.Name+"\n"+string(got.Data)); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

// rendered returns what becomes of the sections of an archive, as its last one.
func rendered(t *testing.T, files []txtar.File) txtar.File {
	t.Helper()
	var pod *cluster.Pod
	var more []cluster.HostAlias
	node := Node{ClusterDomain: "cluster.local"}
	for _, f := range files {
		switch f.Name {
		case "pod.yaml":
			pod = readPod(t, f.Data)
		case "node":
			node.Hosts = f.Data
		case "node" + unended:
			node.Hosts = bytes.TrimSuffix(f.Data, []byte("\n"))
		case "more":
			var errs []error
			if more, errs = Parse(string(f.Data)); len(errs) > 0 {
				t.Fatal(errs)
			}
		default:
			t.Fatalf("section %q?", f.Name)
		}
	}
	b, err := Render(pod, node, more...)
	switch {
	case err != nil:
		return txtar.File{Name: "error", Data: []byte(err.Error() + "\n")}
	case !bytes.HasSuffix(b, []byte("\n")):
		return txtar.File{Name: "want" + unended, Data: append(b, '\n')}
	default:
		return txtar.File{Name: "want", Data: b}
	}
}

// readPod reads a pod as a user writes it.
func readPod(t *testing.T, data []byte) *cluster.Pod {
	t.Helper()
	var o corev1.Pod
	if err := yaml.UnmarshalStrict(data, &o); err != nil {
		t.Fatal(err)
	}
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
