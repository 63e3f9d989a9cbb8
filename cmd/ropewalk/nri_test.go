package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"

	"github.com/ropewalk-net/ropewalk/cluster/env"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

const database = `
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 5432, name: sql}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db}}
spec: {nodeName: n2}
status: {podIPs: [{ip: 10.244.2.7}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: other}
spec: {clusterIP: 10.96.0.77, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: secret, namespace: closed}
spec: {clusterIP: 10.96.0.78, ports: [{port: 80}]}
`

// TestNRI has a runtime's side of NRI ask the program about a container.
func TestNRI(t *testing.T) {
	manifest, _ := with("one.example")
	manifests, kubelet := files(t, map[string]string{"pod.yaml": manifest + database}), t.TempDir()
	path := podfile.Path(kubelet, uid)
	write(t, path, kubelets)
	dir, err := os.MkdirTemp("", "nri") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "nri.sock")
	runtime, err := adaptation.New("test", "v2.2.0",
		func(ctx context.Context, tell adaptation.SyncCB) error { _, err := tell(ctx, nil, nil); return err },
		func(context.Context, []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) { return nil, nil },
		adaptation.WithSocketPath(socket), adaptation.WithPluginPath(dir+"/plugins"), adaptation.WithPluginConfigPath(dir+"/conf"))
	if err != nil {
		t.Fatal(err)
	}
	if err := runtime.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(runtime.Stop)

	p := start(t, "hosts", "nri", "--node-name", "n1", "--manifests", manifests, "--kubelet-dir", kubelet, "--socket", socket,
		"--state-dir", dir+"/state", "--metrics", "127.0.0.1:0", "--env-namespaces", "other")
	url := p.address(t)
	eventually(t, "ready", func() bool { status, _ := get(t, url+"/readyz"); return status == http.StatusOK })
	runtime.BlockPluginSync().Unblock() // it is among the runtime's plugins once this returns
	response, err := runtime.CreateContainer(t.Context(), &api.CreateContainerRequest{
		Pod: &api.PodSandbox{Id: "5ad1", Namespace: "shop", Name: "web", Uid: uid, Annotations: map[string]string{
			hostsfile.AliasesKey: `[{"ip": "10.1.2.3", "hostnames": ["one.example"]}]`, env.NamespacesKey: "other, closed",
		}},
		Container: &api.Container{Id: "c1", Name: "app", Mounts: []*api.Mount{{Destination: "/etc/hosts", Source: path}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != kubelets+"10.1.2.3\tone.example\n" {
		t.Errorf("the file:\n%s", got)
	}
	var vars []string
	for _, kv := range response.GetAdjust().GetEnv() {
		vars = append(vars, kv.ToOCI())
	}
	for _, want := range []string{"DB_ENDPOINTS=10.244.2.7", "DB_ENDPOINTS_SQL=10.244.2.7:5432", "OTHER_FAR_SERVICE_HOST=10.96.0.77"} {
		if !slices.Contains(vars, want) {
			t.Errorf("no %s in %q", want, vars)
		}
	}
	if strings.Contains(strings.Join(vars, " "), "CLOSED") {
		t.Errorf("of a namespace that is not allowed: %q", vars)
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}
