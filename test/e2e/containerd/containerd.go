// Package containerd runs containerd and runc for tests, as a node does: with the CRI that a kubelet talks to, and NRI. It is
// in a PID namespace of its own, so that nothing of it is left when the test ends, however it ends.
package containerd

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/program"
)

// Image is the one that there is. Its entry point is /tool; see there for what it can do.
const Image = "ropewalk.test/tool:1"

const patience = 30 * time.Second

// Runtime is a containerd that runs.
type Runtime struct {
	// NRI is the socket for NRI plugins.
	NRI string
	// ConfDir is where CNI configurations are looked for, and BinDir where CNI plugins are.
	ConfDir, BinDir string
	cri.RuntimeServiceClient

	dir    string
	cgroup string
}

// Handler is another runtime than the default one, for pods that ask for it.
type Handler struct {
	Name string
	// Hook is what is called at createRuntime. It is told of annotations that begin with ropewalk.dev/.
	Hook specs.Hook
}

// Start builds containerd, if need be, and starts it within the test's network namespace. It ends with the test.
func Start(t *testing.T, handlers ...Handler) *Runtime {
	t.Helper()
	for _, c := range []string{"runc", "unshare"} {
		netns.NeedCommand(t, c)
	}
	dir, err := os.MkdirTemp("", "ropewalk-ctd") // t.TempDir is too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &Runtime{NRI: filepath.Join(dir, "nri.sock"), ConfDir: filepath.Join(dir, "net.d"), BinDir: filepath.Join(dir, "bin"),
		dir: dir, cgroup: "ropewalk-" + filepath.Base(dir)}
	bin := build(t)
	config := filepath.Join(dir, "config.toml")
	text := r.config()
	for _, h := range handlers {
		text = append(text, r.handler(t, h)...)
	}
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	var log program.Log
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL",
		filepath.Join(bin, "containerd"), "--config", config, "--log-level", "info")
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() // and with it, by --kill-child, all that is in its PID namespace
		cmd.Wait()
		r.removeCgroups(t)
		if t.Failed() {
			t.Logf("containerd's log:\n%s", log.String())
		}
	})
	r.connect(t)
	return r
}

func (r *Runtime) socket() string { return filepath.Join(r.dir, "containerd.sock") }

func (r *Runtime) config() []byte {
	return fmt.Appendf(nil, `version = 3
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.blockfile"]
[grpc]
  address = %[3]q
[ttrpc]
  address = %[4]q
[plugins."io.containerd.nri.v1.nri"]
  disable = false
  socket_path = %[5]q
  plugin_path = %[6]q
  plugin_config_path = %[6]q
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "native"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %[7]q
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = [%[8]q]
  conf_dir = %[9]q
  use_internal_loopback = true
`, filepath.Join(r.dir, "root"), filepath.Join(r.dir, "state"), r.socket(), filepath.Join(r.dir, "ttrpc.sock"), r.NRI,
		filepath.Join(r.dir, "none"), Image, r.BinDir, r.ConfDir)
}

// handler returns the part of the configuration that makes a runtime, as docs/hosts.md has it.
func (r *Runtime) handler(t *testing.T, h Handler) []byte {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	spec, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: "base"}) // what ctr oci spec prints
	if err != nil {
		t.Fatal(err)
	}
	spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{h.Hook}}
	base := filepath.Join(r.dir, h.Name+".json")
	text, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(base, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, `[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.%s]
  runtime_type = "io.containerd.runc.v2"
  base_runtime_spec = %q
  pod_annotations = ["ropewalk.dev/*"]
`, h.Name, base)
}

// connect waits for the runtime, and gives it the image.
func (r *Runtime) connect(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := Import(ctx, r.socket(), Image, image(t)); err != nil {
		t.Fatal(err)
	}
	conn, err := dial(r.socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r.RuntimeServiceClient = cri.NewRuntimeServiceClient(conn)
}

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// Import waits for the containerd at a socket and gives it an image of that name, which Archive has made.
func Import(ctx context.Context, socket, name string, archive []byte) error {
	client, err := containerd.New(socket, containerd.WithTimeout(time.Second))
	for err == nil {
		if _, e := client.Version(ctx); e == nil {
			break
		} else if ctx.Err() != nil {
			err = e
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	defer client.Close()
	ctx = namespaces.WithNamespace(ctx, "k8s.io")
	if _, err := client.Import(ctx, bytes.NewReader(archive), containerd.WithSkipMissing()); err != nil {
		return err
	}
	conn, err := dial(socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	// The CRI hears of an image that has been imported a moment later, and would look for it on the network until then.
	images := cri.NewImageServiceClient(conn)
	for {
		status, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
		if err == nil && status.Image != nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("the image is not there: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Kill has the kernel kill a container's first process with SIGKILL. The ID is the pod status's, as in containerd://0123.
func Kill(ctx context.Context, socket, id string) error {
	client, err := containerd.New(socket)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx = namespaces.WithNamespace(ctx, "k8s.io")
	c, err := client.LoadContainer(ctx, strings.TrimPrefix(id, "containerd://"))
	if err != nil {
		return err
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		return err
	}
	return task.Kill(ctx, syscall.SIGKILL)
}

// Pod is a pod that runs.
type Pod struct {
	r      *Runtime
	id     string
	config *cri.PodSandboxConfig
}

// Pod starts a pod on the test's network. handler is the name of its runtime, empty for the default one.
func (r *Runtime) Pod(t *testing.T, handler, namespace, name, uid string, annotations map[string]string) *Pod {
	t.Helper()
	c := r.sandbox(namespace, name, uid)
	c.Annotations = annotations
	c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	p, err := r.run(t, handler, c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// run starts a pod.
func (r *Runtime) run(t *testing.T, handler string, c *cri.PodSandboxConfig) (*Pod, error) {
	p, err := r.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: c, RuntimeHandler: handler})
	if err != nil {
		return nil, err
	}
	return &Pod{r: r, id: p.PodSandboxId, config: c}, nil
}

// sandbox is a pod with a network of its own.
func (r *Runtime) sandbox(namespace, name, uid string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Namespace: namespace, Name: name, Uid: uid},
		LogDirectory: filepath.Join(r.dir, "logs"),
		// What the kubelet says, too.
		Labels: map[string]string{
			"io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.name": name, "io.kubernetes.pod.uid": uid,
		},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    "/" + r.cgroup,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{}},
		},
	}
}

// Container starts a container with environment variables, mounts (paths on the host by paths in it), and arguments for the tool, and
// returns its ID.
func (p *Pod) Container(t *testing.T, name string, env, mounts map[string]string, args ...string) (id string) {
	t.Helper()
	c := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: Image},
		LogPath:  name + ".log",
		Args:     args,
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
		}},
	}
	for k, v := range env {
		c.Envs = append(c.Envs, &cri.KeyValue{Key: k, Value: []byte(v)})
	}
	for at, path := range mounts {
		c.Mounts = append(c.Mounts, &cri.Mount{ContainerPath: at, HostPath: path})
	}
	made, err := p.r.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.r.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		t.Fatal(err)
	}
	return made.ContainerId
}

// Tool runs the tool in a container, and returns what it prints.
func (r *Runtime) Tool(t *testing.T, container string, args ...string) string {
	t.Helper()
	out, err := r.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: container, Cmd: append([]string{"/tool"}, args...), Timeout: 20})
	if err != nil {
		t.Fatal(err)
	}
	if out.ExitCode != 0 {
		t.Fatalf("tool %q: %d: %s", args, out.ExitCode, out.Stderr)
	}
	return string(out.Stdout)
}

// binaries returns a folder with containerd and its shim. They are built once for all tests of a package.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "ropewalk-test", "containerd")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/",
		"github.com/containerd/containerd/v2/cmd/containerd", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build containerd: %w\n%s", err, out)
	}
	return dir, nil
})

func build(t *testing.T) string {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// image returns the image as docker save(1) writes it.
func image(t *testing.T) []byte {
	t.Helper()
	tool := filepath.Join(t.TempDir(), "tool")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", tool, "github.com/ropewalk-net/ropewalk/test/e2e/containerd/tool")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the tool: %v\n%s", err, out)
	}
	archive, err := Archive(Image, tool)
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// Archive returns an image of that name as docker save(1) writes it. It has a program at /, which is its entry point.
func Archive(name, program string) ([]byte, error) {
	text, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	entry := filepath.Base(program)
	layer := archive(file{entry, 0o755, text}, file{"etc/hosts", 0o644, nil})
	config, _ := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Entrypoint": []string{"/" + entry}, "Env": []string{"PATH=/"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest.FromBytes(layer).String()}},
	})
	manifest, _ := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	return archive(file{"layer.tar", 0o644, layer}, file{"config.json", 0o644, config}, file{"manifest.json", 0o644, manifest}), nil
}

type file struct {
	name    string
	mode    int64
	content []byte
}

func archive(files ...file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b) // into memory, where only a program that is wrong fails
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content))}); err != nil {
			panic(err)
		}
		w.Write(f.content)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// removeCgroups removes what is left of the pods' cgroups, in each hierarchy.
func (r *Runtime) removeCgroups(t *testing.T) {
	var left []string
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "/"+r.cgroup) {
			left = append(left, path)
		}
		return nil
	})
	slices.Reverse(left) // children first
	for _, path := range left {
		for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			err := os.Remove(path)
			if err == nil || os.IsNotExist(err) {
				break
			}
			if time.Now().After(deadline) {
				t.Error(err)
				break
			}
		}
	}
}
