//go:build e2e

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/ropewalk-net/ropewalk/test/e2e/containerd"
)

// system is the namespace of what deploy/ installs.
const system = "kube-system"

// load gives the nodes an image of that version.
func (c *cluster) load(t *testing.T, version string) {
	t.Helper()
	archive := pack(t, version)
	for _, n := range c.nodes {
		n.load(t, "ropewalk:"+version, archive)
	}
}

// install does what docs/install.md says, with what deploy/ has and the image of that version. It is an upgrade if another one runs.
func (c *cluster) install(t *testing.T, version string) {
	t.Helper()
	to := filepath.Join(dir, "install")
	repository, err := filepath.Abs(root)
	if err == nil {
		repository, err = filepath.Rel(to, repository)
	}
	if err = errors.Join(err, os.MkdirAll(to, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kustomization.yaml", "agent.yaml"} {
		text := testdata(t, name, "ROPEWALK", repository, "OVERLAY", *overlay, "VERSION", version)
		if err := os.WriteFile(filepath.Join(to, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	objects, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), to)
	if err != nil {
		t.Fatal(err)
	}
	text, err := objects.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, string(text))
}

// pack makes the image of the programs that make has built, as `make image` does.
func pack(t *testing.T, version string) []byte {
	t.Helper()
	programs, to := filepath.Join(dir, "programs"), filepath.Join(dir, "image")
	defer os.RemoveAll(to)
	err := os.MkdirAll(filepath.Join(programs, runtime.GOARCH), 0o755)
	for _, name := range shipped {
		path, e := exec.LookPath(name)
		link := filepath.Join(programs, runtime.GOARCH, name)
		err = errors.Join(err, e, os.RemoveAll(link), os.Symlink(path, link))
	}
	if err == nil {
		err = run(nil, "image", "-bin", programs, "-out", to, "-name", "ropewalk:"+version, runtime.GOARCH)
	}
	if err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(filepath.Join(to, "ropewalk-"+runtime.GOARCH+".tar"))
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// installed waits until all that deploy/ has runs on all nodes, in the version that was installed last.
func (c *cluster) installed(t *testing.T) {
	t.Helper()
	c.everywhere(t, system, "ropewalk-agent")
	c.deployed(t, system, "ropewalk-dns")
	for _, p := range c.agents(t) {
		soon(t, "the agent of "+p.Spec.NodeName+" is ready", func() error {
			_, err := c.exec(t.Context(), system, p.Name, "/ropewalk", "status")
			return err
		})
	}
}

// agents returns the pods of the DaemonSet.
func (c *cluster) agents(t *testing.T) []corev1.Pod {
	t.Helper()
	return c.podsOf(t, system, "app.kubernetes.io/name=ropewalk-agent")
}

// inTouch waits until each agent and each DNS server hears of the cluster. After trouble with the API server each is back in its own time: within ten
// seconds, or in a minute with another token.
func (c *cluster) inTouch(t *testing.T) {
	t.Helper()
	client := c.pods(t, "client")[0]
	age := regexp.MustCompile(`(?m)^coredns_ropewalk_sync_age_seconds\{.*\} (\S+)$`)
	for _, p := range c.podsOf(t, system, "app.kubernetes.io/name=ropewalk-dns") {
		soon(t, p.Name+" is in touch with the API server", func() error {
			metrics, err := c.tool(t.Context(), client.Name, "get", "http://"+net.JoinHostPort(podIP(&p, "4"), "9153")+"/metrics")
			if m := age.FindStringSubmatch(metrics); err == nil && (m == nil || m[1] != "0") {
				err = fmt.Errorf("%q", m)
			}
			return err
		})
	}
	for _, p := range c.agents(t) {
		soon(t, p.Name+" is in touch with the API server", func() error {
			text, err := c.exec(t.Context(), system, p.Name, "/ropewalk", "status", "-o", "json")
			status := struct{ SourceAgeSeconds *float64 }{}
			if err == nil {
				err = json.Unmarshal([]byte(text), &status)
			}
			if err == nil && (status.SourceAgeSeconds == nil || *status.SourceAgeSeconds != 0) {
				err = errors.New(text)
			}
			return err
		})
	}
}

// kill has the kernel kill the agents, one after the other, and waits until the kubelets have started them again.
func (c *cluster) kill(t *testing.T) {
	t.Helper()
	for _, p := range c.agents(t) {
		was := p.Status.ContainerStatuses[0]
		for _, n := range c.nodes {
			if n.name == p.Spec.NodeName {
				if err := containerd.Kill(t.Context(), n.socket(), was.ContainerID); err != nil {
					t.Fatal(err)
				}
			}
		}
		soon(t, "the agent of "+p.Spec.NodeName+" runs again", func() error {
			for _, now := range c.agents(t) {
				if s := now.Status.ContainerStatuses[0]; now.Name == p.Name && s.RestartCount == was.RestartCount+1 && s.ContainerID != was.ContainerID {
					return nil
				}
			}
			return fmt.Errorf("%s", c.troubles(system))
		})
	}
}
