package containerd

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ropewalk-net/ropewalk/test/coredns"
	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/program"
)

const (
	uid     = "5a1f9c2e-0000-4000-8000-000000000001"
	objects = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n" + `---
apiVersion: v1
kind: Namespace
metadata: {name: batch}
---
apiVersion: v1
kind: Service
metadata: {name: queue, namespace: batch}
spec: {clusterIP: 10.96.3.4, ports: [{port: 5672}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, ports: [{port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db, service.kubernetes.io/headless: ""}}
ports: [{port: 5432, protocol: TCP}]
endpoints:
- addresses: [10.244.1.30]
`
	// kubelets is what the kubelet writes for the pod.
	kubelets = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n10.244.1.4\tweb\n"
)

// pod is the pod's manifest, with an annotation.
func pod(aliases string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: %s
  annotations:
    ropewalk.dev/host-aliases: '%s'
    ropewalk.dev/env-from-namespaces: batch
spec: {nodeName: node-1, containers: [{name: main, image: web}]}
status: {phase: Running, podIP: 10.244.1.4, podIPs: [{ip: 10.244.1.4}]}
`, uid, aliases)
}

func with(lines string) string { return kubelets + "\n# Entries added by HostAliases.\n" + lines }

// TestHostsAndEnvironment has a container of containerd find its aliases and variables at its first look (NRI), and a changed alias
// in the same file while it runs, also after the kubelet has written the file anew.
func TestHostsAndEnvironment(t *testing.T) {
	program := ropewalk(t)
	if !netns.Enter(t) {
		return
	}
	netns.Tmpfs(t, "/run", nil)
	dir := t.TempDir()
	manifests, kubelet := filepath.Join(dir, "cluster"), filepath.Join(dir, "kubelet")
	hosts := filepath.Join(kubelet, "pods", uid, "etc-hosts")
	write(t, filepath.Join(manifests, "objects.yaml"), objects)
	write(t, filepath.Join(manifests, "web.yaml"), pod(`[{"ip": "10.1.2.3", "hostnames": ["foo.remote"]}]`))
	write(t, hosts, kubelets)
	r := Start(t)
	common := []string{"--node-name", "node-1", "--manifests", manifests, "--kubelet-dir", kubelet}
	run(t, program, "127.0.0.1:9155", append([]string{"hosts", "nri", "--socket", r.NRI, "--state-dir", filepath.Join(dir, "own")}, common...)...)

	p := r.Pod(t, "", "shop", "web", uid, map[string]string{
		"ropewalk.dev/host-aliases":        `[{"ip": "10.1.2.3", "hostnames": ["foo.remote"]}]`,
		"ropewalk.dev/env-from-namespaces": "batch",
	})
	id := p.Container(t, "main", map[string]string{"OWN": "1"}, map[string]string{"/etc/hosts": hosts})
	const alias = "10.1.2.3\tfoo.remote\n"
	if diff := cmp.Diff(with(alias), r.Tool(t, id, "cat", "/etc/hosts")); diff != "" {
		t.Errorf("as the container starts:\n%s", diff)
	}
	env := "\n" + r.Tool(t, id, "env")
	for _, want := range []string{"OWN=1", "DB_ENDPOINTS=10.244.1.30", "BATCH_QUEUE_SERVICE_HOST=10.96.3.4"} {
		if !strings.Contains(env, "\n"+want+"\n") {
			t.Errorf("no %s in the environment:%s", want, env)
		}
	}

	// A container of a pod that has no file of the kubelet's gets one.
	other := r.Pod(t, "", "shop", "other", "5a1f9c2e-0000-4000-8000-000000000002", map[string]string{
		"ropewalk.dev/host-aliases": `[{"ip": "10.1.2.9", "hostnames": ["nine.remote"]}]`,
	}).Container(t, "main", nil, nil)
	if got := r.Tool(t, other, "cat", "/etc/hosts"); !strings.HasSuffix(got, "\n# Entries added by HostAliases.\n10.1.2.9\tnine.remote\n") {
		t.Errorf("a file of ours: %q", got)
	}

	inode := r.Tool(t, id, "inode", "/etc/hosts")
	run(t, program, "127.0.0.1:9156", append([]string{"hosts", "run"}, common...)...)
	write(t, filepath.Join(manifests, "web.yaml"), pod(`[{"ip": "10.1.2.4", "hostnames": ["bar.remote", "bar"]}]`))
	const changed = "10.1.2.4\tbar.remote\tbar\n"
	sees := func(what, want string) {
		t.Helper()
		got := ""
		for deadline := time.Now().Add(patience); got != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s:\n%s", what, cmp.Diff(want, got))
			}
			got = r.Tool(t, id, "cat", "/etc/hosts")
		}
	}
	sees("after the annotation has changed", with(changed))
	write(t, hosts, kubelets) // os.WriteFile, as the kubelet at each start of a container
	sees("after the kubelet has written the file", with(changed))
	if now := r.Tool(t, id, "inode", "/etc/hosts"); now != inode {
		t.Errorf("inode %s, was %s", now, inode)
	}
}

// TestHook has containerd call "ropewalk hosts hook" for a container, with the configuration that docs/hosts.md names.
func TestHook(t *testing.T) {
	program := ropewalk(t)
	if !netns.Enter(t) {
		return
	}
	netns.Tmpfs(t, "/run", nil)
	kubelet := filepath.Join(t.TempDir(), "kubelet")
	hosts := filepath.Join(kubelet, "pods", uid, "etc-hosts")
	write(t, hosts, kubelets)
	timeout := 5
	r := Start(t, Handler{Name: "hooked", Hook: specs.Hook{
		Path: program, Args: []string{"ropewalk", "hosts", "hook", "--strict", "--kubelet-dir", kubelet}, Timeout: &timeout,
	}})
	id := r.Pod(t, "hooked", "shop", "web", uid, map[string]string{
		"ropewalk.dev/host-aliases": `[{"ip": "10.1.2.3", "hostnames": ["foo.remote"]}]`,
	}).Container(t, "main", nil, map[string]string{"/etc/hosts": hosts})
	if diff := cmp.Diff(with("10.1.2.3\tfoo.remote\n"), r.Tool(t, id, "cat", "/etc/hosts")); diff != "" {
		t.Error(diff)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// ropewalk returns the path of bin/ropewalk, built if need be.
func ropewalk(t *testing.T) string {
	t.Helper()
	const variable = "ROPEWALK_TEST_ROPEWALK"
	path := os.Getenv(variable)
	if path == "" {
		path = filepath.Join(t.TempDir(), "ropewalk")
		cmd := exec.Command("go", "build", "-o", path, "./cmd/ropewalk")
		cmd.Dir = coredns.Root()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Setenv(variable, path) // for the test's second process
	}
	return path
}

// run starts the program, waits until it is ready, and ends it with the test.
func run(t *testing.T, name, metrics string, args ...string) {
	t.Helper()
	var log program.Log
	cmd := exec.Command(name, append(args, "--metrics", metrics)...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%q: %v", args, err)
		}
		if t.Failed() {
			t.Logf("%q:\n%s", args, log.String())
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if resp, err := http.Get("http://" + metrics + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q is not ready:\n%s", args, log.String())
		}
	}
}
