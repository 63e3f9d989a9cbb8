package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestHookInContainer has runc call the hook, at both stages that it is for, and looks at /etc/hosts with the container's first
// instruction: "hosts render" of a pod on the node's network prints the file as the program finds it.
func TestHookInContainer(t *testing.T) {
	netns.Need(t, os.Geteuid() == 0, "containers need root")
	netns.NeedCommand(t, "runc")
	rootfs := filepath.Join(t.TempDir(), "rootfs")
	program := filepath.Join(rootfs, "ropewalk")
	cmd := exec.Command("go", "build", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // There is no C library in there.
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	write(t, filepath.Join(rootfs, "pod.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {name: probe}\nspec: {hostNetwork: true}\n")
	write(t, filepath.Join(rootfs, "etc/hosts"), "")
	for _, dir := range []string{"proc", "dev"} {
		if err := os.Mkdir(filepath.Join(rootfs, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, stage := range []string{"createRuntime", "createContainer"} {
		t.Run(stage, func(t *testing.T) {
			bundle, kubelet := t.TempDir(), t.TempDir()
			path := podfile.Path(kubelet, uid)
			write(t, path, kubelets)
			id := fmt.Sprintf("ropewalk-hook-%d-%s", os.Getpid(), stage)
			hook := []specs.Hook{{Path: program, Args: []string{"ropewalk", "hosts", "hook", "--strict", "--kubelet-dir", kubelet}}}
			spec := specs.Spec{
				Version: "1.0.2", Root: &specs.Root{Path: rootfs, Readonly: true}, Hooks: &specs.Hooks{},
				Process: &specs.Process{Args: []string{"/ropewalk", "hosts", "render", "-f", "/pod.yaml"}, Cwd: "/", NoNewPrivileges: true},
				Mounts: []specs.Mount{
					{Destination: "/proc", Type: "proc", Source: "proc"},
					{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=64k"}},
					{Destination: "/etc/hosts", Type: "bind", Source: path, Options: []string{"rbind", "rprivate", "rw"}},
				},
				Annotations: map[string]string{hostsfile.AliasesKey: `[{"ip": "10.1.2.3", "hostnames": ["first.example"]}]`},
				Linux: &specs.Linux{CgroupsPath: "/" + id, RootfsPropagation: "rprivate", Namespaces: []specs.LinuxNamespace{
					{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace}, {Type: specs.IPCNamespace}, {Type: specs.NetworkNamespace},
				}},
			}
			if stage == "createRuntime" {
				spec.Hooks.CreateRuntime = hook
			} else {
				spec.Hooks.CreateContainer = hook
			}
			config, err := json.Marshal(spec)
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(bundle, "config.json"), string(config))
			out, err := exec.Command("runc", "--root", filepath.Join(bundle, "state"), "run", "--bundle", bundle, id).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if want := kubelets + "10.1.2.3\tfirst.example\n"; !strings.HasSuffix(string(out), want) || content(t, path) != want {
				t.Errorf("inside:\n%s\noutside:\n%s", out, content(t, path))
			}
		})
	}
}
