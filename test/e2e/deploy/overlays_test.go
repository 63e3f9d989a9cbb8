package deploy

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestAgentFiles holds that the agent takes the configuration of each overlay, and that the paths in it are where something is mounted,
// to be written where it writes. That needs no cluster.
func TestAgentFiles(t *testing.T) {
	withKubectl(t, "")
	for _, overlay := range all(t) {
		o := render(t, overlay)
		if overlay == "dns-only" {
			if o.agent != nil || o.dns == nil {
				t.Error("there is more than DNS, or less")
			}
			continue
		}
		pod := o.agent.Spec.Template.Spec
		c := pod.Containers[0]
		file := filepath.Join(t.TempDir(), "agent.yaml")
		if err := os.WriteFile(file, []byte(o.config(t, pod.Volumes, "agent.yaml")), 0o644); err != nil {
			t.Fatal(err)
		}
		printed := sh(t, nil, os.Getenv(programs["ropewalk"]), "agent", "--print-config", "--config", file)
		var said map[string]any
		if err := yaml.UnmarshalStrict(printed, &said); err != nil {
			t.Fatal(err)
		}
		on := map[string]bool{}
		for part, v := range said {
			if section, ok := v.(map[string]any); ok {
				on[part] = section["enabled"].(bool)
			}
		}
		pods := overlay != "replace-kube-proxy"
		if want := map[string]bool{"hosts": true, "proxy": true, "routes": pods, "cni": pods}; !maps.Equal(on, want) {
			t.Errorf("%s: parts are %v", overlay, on)
		}
		if privileged := c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged; privileged != pods {
			t.Errorf("%s: privileged is %v", overlay, privileged)
		}
		for _, path := range []struct {
			part, key, below string
			writes           bool
		}{
			{"hosts", "kubelet-dir", "/pods", true}, {"hosts", "node-hosts", "", false},
			{"routes", "conf-dir", "", true}, {"routes", "data-dir", "", true}, {"cni", "bin-dir", "", true},
		} {
			if on[path.part] {
				mounted(t, overlay, pod, said[path.part].(map[string]any)[path.key].(string)+path.below, path.writes)
			}
		}
		if pods {
			if got, want := said["routes"].(map[string]any)["overlay"], overlay; got != want {
				t.Errorf("%s: overlay is %v", overlay, got)
			}
		}
		addresses(t, overlay, c)
		follows(t, overlay, pod)
	}
}

// follows holds that what is unmounted on the node is unmounted in the agent, where there may be mounts: the kubelet mounts pods' volumes below
// its directory, and a device whose file system is mounted somewhere still is in use. The kernel takes such mounts away where their directory is
// removed, which is after drivers without a stage have detached the device.
func follows(t *testing.T, overlay string, pod corev1.PodSpec) {
	t.Helper()
	followed := 0
	for _, m := range pod.Containers[0].VolumeMounts {
		if !slices.Contains([]string{"/var/lib/kubelet/pods", "/host/etc"}, m.MountPath) {
			continue
		}
		followed++
		if m.MountPropagation == nil || *m.MountPropagation != corev1.MountPropagationHostToContainer {
			t.Errorf("%s: %s keeps what was mounted below it when the agent started", overlay, m.MountPath)
		}
	}
	if followed != 2 {
		t.Errorf("%s: %+v", overlay, pod.Containers[0].VolumeMounts)
	}
}

// mounted holds that a path of the agent's is on a volume of the node's.
func mounted(t *testing.T, overlay string, pod corev1.PodSpec, path string, writes bool) {
	t.Helper()
	for _, m := range pod.Containers[0].VolumeMounts {
		if path != m.MountPath && !strings.HasPrefix(path, m.MountPath+"/") {
			continue
		}
		if writes && m.ReadOnly {
			t.Errorf("%s: %s is mounted read-only", overlay, path)
		}
		i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 || pod.Volumes[i].HostPath == nil {
			t.Errorf("%s: %s is not the node's", overlay, path)
		}
		return
	}
	t.Errorf("%s: nothing is mounted at %s", overlay, path)
}

// addresses holds that the kubelet asks where the agent answers.
func addresses(t *testing.T, overlay string, c corev1.Container) {
	t.Helper()
	for _, p := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe} {
		if at := fmt.Sprintf("--metrics=%s:%d", p.HTTPGet.Host, p.HTTPGet.Port.IntValue()); !slices.Contains(c.Args, at) {
			t.Errorf("%s: a probe asks at %s, arguments are %q", overlay, at, c.Args)
		}
	}
}

// TestComponentMetrics holds that the component moves the agent's address, and leaves probes what they are.
func TestComponentMetrics(t *testing.T) {
	withKubectl(t, "")
	dir := filepath.Join(t.TempDir(), "mine")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	up, err := filepath.Rel(dir, root())
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [%[1]s/%[2]s/vxlan]\ncomponents: [%[1]s/deploy/components/metrics]\n", up, overlays)
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c := decode(t, sh(t, nil, "kubectl", "kustomize", dir)).agent.Spec.Template.Spec.Containers[0]
	if !slices.Contains(c.Args, "--metrics=:9150") || len(c.Ports) != 1 || c.Ports[0].ContainerPort != 9150 || c.ReadinessProbe.HTTPGet.Host != "127.0.0.1" {
		t.Errorf("%+v", c)
	}
}

// TestNoRegistry holds that manifests name no registry: whose image it is, is the operator's to say.
func TestNoRegistry(t *testing.T) {
	withKubectl(t, "")
	images := regexp.MustCompile(`(?m)^\s*(?:- )?image: (.*)$`)
	for _, overlay := range all(t) {
		found := images.FindAllSubmatch(sh(t, nil, "kubectl", "kustomize", filepath.Join(overlays, overlay)), -1)
		for _, m := range found {
			if string(m[1]) != "ropewalk" {
				t.Errorf("%s: image %s", overlay, m[1])
			}
		}
		if len(found) == 0 {
			t.Errorf("%s has no image", overlay)
		}
	}
}
