package nri

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/env"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

// runtime is a container runtime's side of NRI, the real one.
type runtime struct {
	*adaptation.Adaptation
	synced chan int // how many pods a plugin was told of
}

func init() { nrilog.Set(logger{slog.New(slog.DiscardHandler)}) }

// startRuntime runs one at socket until stop is called.
func startRuntime(t *testing.T, socket string, pods ...*api.PodSandbox) (r *runtime, stop func()) {
	t.Helper()
	r = &runtime{synced: make(chan int, 10)}
	synchronize := func(ctx context.Context, tell adaptation.SyncCB) error {
		_, err := tell(ctx, pods, nil)
		r.synced <- len(pods)
		return err
	}
	update := func(context.Context, []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) { return nil, nil }
	var err error
	own := filepath.Join(t.TempDir(), "s")
	r.Adaptation, err = adaptation.New("test", "v2.2.0", synchronize, update, adaptation.WithSocketPath(own),
		adaptation.WithPluginPath(filepath.Join(filepath.Dir(socket), "plugins")), adaptation.WithPluginConfigPath(filepath.Join(filepath.Dir(socket), "conf")))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	<-r.synced // it begins with the plugins that it starts itself, of which there are none
	hangUp := forward(t, socket, own)
	var once sync.Once
	stop = func() {
		once.Do(func() {
			r.Stop()
			hangUp()
		})
	}
	t.Cleanup(stop)
	return r, stop
}

// forward connects whoever comes to socket with what listens at target, until hangUp is called, which ends all connections as the
// end of a process would. (A runtime that is stopped in process lets them be.)
func forward(t *testing.T, socket, target string) (hangUp func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var copies sync.WaitGroup
	var conns []net.Conn
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", target)
			if err != nil {
				near.Close()
				continue
			}
			conns = append(conns, near, far)
			copies.Go(func() { io.Copy(near, far); near.Close() })
			copies.Go(func() { io.Copy(far, near); far.Close() })
		}
	}()
	return func() {
		l.Close()
		<-accepted
		for _, c := range conns {
			c.Close()
		}
		copies.Wait()
	}
}

// connected waits until the runtime has taken in the plugin.
func (r *runtime) connected(t *testing.T) {
	t.Helper()
	select {
	case <-r.synced:
	case <-time.After(30 * time.Second):
		t.Fatal("no plugin registers")
	}
	r.BlockPluginSync().Unblock() // it is among the plugins once this returns
}

// create asks for a container as the runtime does.
func (r *runtime) create(t *testing.T, pod *api.PodSandbox, container *api.Container) *api.ContainerAdjustment {
	t.Helper()
	defer r.BlockPluginSync().Unblock()
	response, err := r.CreateContainer(t.Context(), &api.CreateContainerRequest{Pod: pod, Container: container})
	if err != nil {
		t.Fatal(err)
	}
	return response.GetAdjust()
}

// shortDir is a directory whose paths are short enough for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// start runs a plugin with c until the test ends. No goroutine of it is left then.
func start(t *testing.T, c Config) *Plugin {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if !errors.Is(p.Ready(), ErrNotConnected) {
			t.Error("ready after the end")
		}
	})
	return p
}

// config has a kubelet's directory with the pod "uid-web" in it.
func config(t *testing.T) Config {
	t.Helper()
	dir := shortDir(t)
	c := Config{
		Socket: filepath.Join(dir, "nri.sock"), KubeletDir: filepath.Join(dir, "kubelet"), StateDir: filepath.Join(dir, "state"),
		ClusterDomain: "cluster.local", NodeHostsFile: filepath.Join(dir, "hosts"), Log: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(),
	}
	path := podfile.Path(c.KubeletDir, "uid-web")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(kubelets1), 0o644),
		os.WriteFile(c.NodeHostsFile, []byte("127.0.0.1 node\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	return c
}

const (
	kubelets1 = "# Kubernetes-managed hosts file.\n10.244.1.4\tweb\n"
	aliases   = `[{"ip": "10.1.2.3", "hostnames": ["foo.remote"]}]`
	added     = "\n# Entries added by HostAliases.\n10.1.2.3\tfoo.remote\n"
)

func web(annotations map[string]string) *api.PodSandbox {
	return &api.PodSandbox{
		Id: "5ad1", Name: "web", Namespace: "shop", Uid: "uid-web", Annotations: annotations, Ips: []string{"10.244.1.4", "2001:db8::4"},
		Linux: &api.LinuxPodSandbox{Namespaces: []*api.LinuxNamespace{{Type: "network", Path: "/run/netns/1"}, {Type: "pid"}}},
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestPlugin has a runtime create containers.
func TestPlugin(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("", func(t *testing.T) { // its Cleanups come before the look for goroutines
		c := config(t)
		c.Variables = func(pod cluster.Key, namespaces []string) ([]string, int) {
			if d := cmp.Diff(cluster.Key{Namespace: "shop", Name: "web"}, pod); d != "" {
				t.Error(d)
			}
			vars := []string{"DB_HOSTS=10.244.2.7,10.244.2.8", "PATH=/evil", "no variable"}
			vars = append(vars, "FROM="+strings.Join(namespaces, "+"))
			return vars, 0
		}
		r, _ := startRuntime(t, c.Socket)
		p := start(t, c)
		r.connected(t)
		if err := p.Ready(); err != nil {
			t.Error(err)
		}
		theirs := podfile.Path(c.KubeletDir, "uid-web")
		a := r.create(t, web(map[string]string{hostsfile.AliasesKey: aliases, env.NamespacesKey: "a, b"}), &api.Container{
			Id: "c1", Name: "app", Env: []string{"PATH=/bin", "EMPTY"},
			Mounts: []*api.Mount{{Destination: "/etc/hosts", Type: "bind", Source: theirs}},
		})
		if got := read(t, theirs); got != kubelets1+added {
			t.Errorf("the kubelet's file:\n%s", got)
		}
		var env []string
		for _, kv := range a.GetEnv() {
			env = append(env, kv.ToOCI())
		}
		if d := cmp.Diff([]string{"DB_HOSTS=10.244.2.7,10.244.2.8", "FROM=a+b"}, env); d != "" || len(a.GetMounts()) > 0 {
			t.Errorf("mounts %v, variables (-want +got):\n%s", a.GetMounts(), d)
		}
		const want = `
# HELP ropewalk_nri_connected 1 while the container runtime asks the plugin.
# TYPE ropewalk_nri_connected gauge
ropewalk_nri_connected 1
# HELP ropewalk_nri_containers_total Containers that were given something: aliases in the kubelet's file, a file of the plugin's own, variables.
# TYPE ropewalk_nri_containers_total counter
ropewalk_nri_containers_total{given="aliases"} 1
ropewalk_nri_containers_total{given="file"} 0
ropewalk_nri_containers_total{given="variables"} 1
# HELP ropewalk_nri_errors_total Containers that were created without some of what they should have been given.
# TYPE ropewalk_nri_errors_total counter
ropewalk_nri_errors_total 0
`
		if err := testutil.GatherAndCompare(c.Registerer.(*prometheus.Registry), strings.NewReader(want)); err != nil {
			t.Error(err)
		}
	})
}

// TestOwnFile has pods that the kubelet knows nothing of.
func TestOwnFile(t *testing.T) {
	c := config(t)
	pod := web(map[string]string{hostsfile.AliasesKey: aliases})
	gone := filepath.Join(c.StateDir, "90ne")
	if err := os.MkdirAll(gone, 0o700); err != nil {
		t.Fatal(err)
	}
	r, _ := startRuntime(t, c.Socket, pod)
	start(t, c)
	r.connected(t)
	if _, err := os.Stat(gone); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of a pod that is gone: %v", err)
	}
	own := filepath.Join(c.StateDir, "5ad1", "hosts")
	want, err := hostsfile.Render(podValue(pod), hostsfile.Node{}, cluster.HostAlias{IP: "10.1.2.3", Hostnames: []string{"foo.remote"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, mounts := range map[string][]*api.Mount{
		"no mount":          {{Destination: "/proc", Type: "proc", Source: "proc"}},
		"the runtime's own": {{Destination: "/etc/hosts", Source: "/var/lib/containerd/sandboxes/5ad1/hosts"}},
	} {
		a := r.create(t, pod, &api.Container{Id: name, Mounts: mounts})
		var got []*api.Mount
		for _, m := range a.GetMounts() {
			if _, marked := m.IsMarkedForRemoval(); !marked {
				got = append(got, m)
			}
		}
		if len(got) != 1 || got[0].Destination != "/etc/hosts" || got[0].Source != own || read(t, own) != string(want) {
			t.Errorf("%s: %v, file:\n%s", name, a, read(t, own))
		}
		if info, err := os.Stat(own); err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("%v %v", err, info)
		}
	}
	for name, mounts := range map[string][]*api.Mount{
		"a file of the author's": {{Destination: "/etc/hosts", Source: "/srv/hosts"}},
		"another pod's":          {{Destination: "/etc/hosts", Source: podfile.Path(c.KubeletDir, "other")}},
		"hidden by another one":  {{Destination: "/etc/hosts", Source: podfile.Path(c.KubeletDir, "uid-web")}, {Destination: "/etc//hosts", Source: "/srv/hosts"}},
	} {
		if a := r.create(t, pod, &api.Container{Id: name, Mounts: mounts}); len(a.GetMounts()) > 0 {
			t.Errorf("%s: %v", name, a)
		}
	}
	if read(t, podfile.Path(c.KubeletDir, "uid-web")) != kubelets1 {
		t.Error("the kubelet's file of a pod that does not see it has changed")
	}
	if a := r.create(t, web(nil), &api.Container{Id: "x", Mounts: []*api.Mount{{Destination: "/etc/hosts", Source: "/x/5ad1/hosts"}}}); len(a.GetMounts()) > 0 {
		t.Errorf("without aliases the runtime's file is good: %v", a)
	}
	host := web(map[string]string{hostsfile.AliasesKey: aliases})
	host.Linux.Namespaces, host.Ips = []*api.LinuxNamespace{{Type: "pid"}}, nil
	r.create(t, host, &api.Container{Id: "host"})
	if got, want := read(t, own), "# Kubernetes-managed hosts file (host network).\n127.0.0.1 node\n"+added; got != want {
		t.Errorf("on the node's network:\n%s", got)
	}
	if err := r.RemovePodSandbox(t.Context(), &api.RemovePodSandboxRequest{Pod: pod}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(own); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the pod: %v", err)
	}
}

// TestReconnect has the runtime away at first, and then restarted.
func TestReconnect(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("", func(t *testing.T) {
		c := config(t)
		p := start(t, c)
		if !errors.Is(p.Ready(), ErrNotConnected) {
			t.Error("ready without a runtime")
		}
		for range 3 {
			r, stop := startRuntime(t, c.Socket)
			r.connected(t)
			if a := r.create(t, web(nil), &api.Container{Id: "x"}); len(a.GetMounts()) != 1 {
				t.Errorf("%v", a)
			}
			stop()
		}
	})
}

// TestRuntimeDies has a runtime that takes the connection and says nothing, or nonsense, and hangs up.
func TestRuntimeDies(t *testing.T) {
	defer goleak.VerifyNone(t)
	for name, say := range map[string]string{"nothing": "", "nonsense": strings.Repeat("\xff", 1<<16)} {
		t.Run(name, func(t *testing.T) {
			c := config(t)
			l, err := net.Listen("unix", c.Socket)
			if err != nil {
				t.Fatal(err)
			}
			start(t, c)
			for range 3 {
				conn, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				conn.SetDeadline(time.Now().Add(30 * time.Second))
				io.WriteString(conn, say)
				io.ReadFull(conn, make([]byte, 10)) // it registers
				conn.Close()
			}
			l.Close()
		})
	}
}

// TestSilentRuntime ends a plugin that waits for a runtime to answer.
func TestSilentRuntime(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("", func(t *testing.T) {
		c := config(t)
		l, err := net.Listen("unix", c.Socket)
		if err != nil {
			t.Fatal(err)
		}
		start(t, c)
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(); l.Close() })
		io.ReadFull(conn, make([]byte, 10))
	})
}

// TestHeldUp has files that do not answer: a container starts all the same, and so do those after it.
func TestHeldUp(t *testing.T) {
	c := config(t)
	release := make(chan struct{})
	c.Variables = func(cluster.Key, []string) ([]string, int) { <-release; return []string{"LATE=1"}, 0 }
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // the time is over
	for range atOnce + 5 {
		if a := p.create(ctx, web(nil), &api.Container{}); a != nil {
			t.Errorf("%v", a)
		}
	}
	if got := testutil.ToFloat64(p.metrics.errors); got != atOnce+5 {
		t.Errorf("%v errors", got)
	}
	close(release)
	for range atOnce { // all of them end, and let others in
		p.working <- struct{}{}
	}
}

// TestVariablesAreLeft has an annotation that is wrong, and variables that are too large: the rest is there.
func TestVariablesAreLeft(t *testing.T) {
	c := config(t)
	c.Variables = func(_ cluster.Key, namespaces []string) ([]string, int) { return []string{"A=1"}, 2 }
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	a, err := p.adjust(web(map[string]string{env.NamespacesKey: "../x"}), &api.Container{})
	for _, want := range []string{"../x", "2 variables"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if len(a.GetEnv()) != 1 || len(a.GetMounts()) != 1 {
		t.Errorf("%v", a)
	}
}

func TestNewRefuses(t *testing.T) {
	for want, c := range map[string]Config{
		"two digits":    {Index: "5"},
		"absolute path": {StateDir: "run"},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// FuzzAdjust has a runtime that says anything: nothing is written to but the pod's own file, and there is no panic.
func FuzzAdjust(f *testing.F) {
	dir := f.TempDir()
	c := Config{KubeletDir: filepath.Join(dir, "kubelet"), StateDir: filepath.Join(dir, "state"), Log: slog.New(slog.DiscardHandler)}
	theirs, outside := podfile.Path(c.KubeletDir, "uid-web"), filepath.Join(dir, "outside")
	if err := errors.Join(os.MkdirAll(filepath.Dir(theirs), 0o755), os.WriteFile(outside, []byte(kubelets1), 0o644)); err != nil {
		f.Fatal(err)
	}
	p, err := New(c)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("5ad1", "uid-web", aliases, "10.244.1.4", "/etc/hosts", theirs)
	f.Add("../x", "..", aliases, "::1", "/etc/hosts", outside)
	f.Add("", "", "[", "", "", "")
	f.Fuzz(func(t *testing.T, id, uid, value, ip, destination, source string) {
		if err := os.WriteFile(theirs, []byte(kubelets1), 0o644); err != nil {
			t.Fatal(err)
		}
		pod := web(map[string]string{hostsfile.AliasesKey: value})
		pod.Id, pod.Uid, pod.Ips = id, uid, []string{ip}
		a, _ := p.adjust(pod, &api.Container{Mounts: []*api.Mount{{Destination: destination, Source: source}, nil}, Env: []string{value, "=" + value}})
		for _, m := range a.GetMounts() {
			if _, marked := m.IsMarkedForRemoval(); !marked && m.Source != filepath.Join(c.StateDir, id, "hosts") {
				t.Errorf("%v", m)
			}
		}
		if got := read(t, theirs); got != kubelets1 && (uid != "uid-web" || !strings.HasPrefix(got, kubelets1)) {
			t.Errorf("pod %q: %q", uid, got)
		}
		if read(t, outside) != kubelets1 {
			t.Error("another file has changed")
		}
		if err := p.forget(id); err != nil {
			t.Error(err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) > 3 {
			t.Errorf("%v %v", entries, err)
		}
	})
}

// TestReplaceSameFile holds that a file that is mounted stays the same.
func TestReplaceSameFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	var before unix.Stat_t
	for i, content := range []string{"long content\n", "short\n", "longer content again\n", ""} {
		if err := replace(path, []byte(content), 1<<20); err != nil || read(t, path) != content {
			t.Fatalf("%v %q", err, read(t, path))
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || i > 0 && st.Ino != before.Ino {
			t.Errorf("%v, another file", err)
		}
		before = st
	}
	// What a container may do to it.
	if err := errors.Join(os.Truncate(path, 1<<30), os.Chmod(path, 0o600), replace(path, []byte("again\n"), 1<<20)); err != nil || read(t, path) != "again\n" {
		t.Errorf("%v, %.100q", err, read(t, path))
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("%v, mode %v", err, info.Mode())
	}
	if err := errors.Join(os.Remove(path), os.Symlink("/nowhere", path)); err != nil {
		t.Fatal(err)
	}
	if err := replace(path, nil, 1<<20); !errors.Is(err, unix.ELOOP) {
		t.Errorf("symlink: %v", err)
	}
}

// BenchmarkCreate is what the plugin does while a container waits: aliases are appended to the file that the kubelet has made.
func BenchmarkCreate(b *testing.B) {
	dir := b.TempDir()
	c := Config{KubeletDir: dir, Log: slog.New(slog.DiscardHandler)}
	path := podfile.Path(dir, "uid-web")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.Fatal(err)
	}
	p, err := New(c)
	if err != nil {
		b.Fatal(err)
	}
	pod, container := web(map[string]string{hostsfile.AliasesKey: aliases}), &api.Container{Mounts: []*api.Mount{{Destination: "/etc/hosts", Source: path}}}
	for b.Loop() {
		b.StopTimer()
		if err := os.WriteFile(path, []byte(kubelets1), 0o644); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		p.create(context.Background(), pod, container)
	}
}
