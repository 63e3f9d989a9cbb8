package hook

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

const (
	kubelets   = "# Kubernetes-managed hosts file.\n10.244.1.4\tweb\n"
	annotation = `[{"ip": "10.1.2.3", "hostnames": ["foo.remote", "bar.remote"]}]`
	added      = "\n# Entries added by HostAliases.\n10.1.2.3\tfoo.remote\tbar.remote\n"
	uid        = "0f2b6f6a-1c1e-4f4e-9d57-6b1d5f0f7c11"
)

// node is a kubelet's directory with a pod in it, and a bundle of a container of that pod.
type node struct {
	Config
	hosts, bundle string
}

func newNode(t testing.TB, mounts ...specs.Mount) node {
	t.Helper()
	n := node{Config: Config{KubeletDir: t.TempDir()}, bundle: t.TempDir()}
	n.hosts = podfile.Path(n.KubeletDir, uid)
	if err := errors.Join(os.MkdirAll(filepath.Dir(n.hosts), 0o755), os.WriteFile(n.hosts, []byte(kubelets), 0o644)); err != nil {
		t.Fatal(err)
	}
	if mounts == nil {
		mounts = []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/etc/hosts", Type: "bind", Source: n.hosts, Options: []string{"rbind", "rw"}},
		}
	}
	n.write(t, specs.Spec{Version: specs.Version, Mounts: mounts})
	return n
}

func (n node) write(t testing.TB, spec any) {
	t.Helper()
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.bundle, "config.json"), text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// state returns what a runtime writes to the hook.
func (n node) state(t testing.TB, annotations map[string]string) *bytes.Reader {
	t.Helper()
	text, err := json.Marshal(specs.State{
		Version: specs.Version, ID: "c1", Status: specs.StateCreating, Pid: 4242, Bundle: n.bundle, Annotations: annotations,
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(text)
}

func (n node) content(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(n.hosts)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestRun(t *testing.T) {
	inJSON, _ := json.Marshal(map[string]string{hostsfile.AliasesKey: annotation, "other": "x"})
	for _, c := range []struct {
		name        string
		annotations map[string]string
		want        Result
	}{
		{"containerd", map[string]string{hostsfile.AliasesKey: annotation, sandboxUID: uid}, Result{UID: uid, Aliases: 1, Changed: true}},
		{"CRI-O", map[string]string{criOAnnotations: string(inJSON)}, Result{UID: uid, Aliases: 1, Changed: true}},
		{"a pod without aliases", map[string]string{criOAnnotations: "{}", sandboxUID: uid}, Result{}},
		{"an empty list", map[string]string{hostsfile.AliasesKey: "[]"}, Result{}},
		{"no annotations", nil, Result{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			r, err := n.Run(n.state(t, c.annotations))
			if d := cmp.Diff(c.want, r); d != "" || err != nil {
				t.Fatalf("%v (-want +got):\n%s", err, d)
			}
			want := kubelets
			if c.want.Changed {
				want += added
			}
			if got := n.content(t); got != want {
				t.Errorf("the file:\n%s", got)
			}
			c.want.Changed = false
			if again, err := n.Run(n.state(t, c.annotations)); again != c.want || err != nil {
				t.Errorf("again: %+v %v", again, err)
			}
		})
	}
}

// TestMounts has hosts files in a container that are not the kubelet's.
func TestMounts(t *testing.T) {
	other := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(other, []byte(kubelets), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, mounts := range map[string][]specs.Mount{
		"none":            {{Destination: "/etc", Source: "/x"}},
		"somebody else's": {{Destination: "/etc/hosts", Source: other}},
		"a relative path": {{Destination: "/etc/hosts", Source: "etc-hosts"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, mounts...)
			r, err := n.Run(n.state(t, map[string]string{hostsfile.AliasesKey: annotation}))
			if want := (Result{Aliases: 1}); r != want || err != nil {
				t.Errorf("%+v %v", r, err)
			}
			text, err := os.ReadFile(other)
			if n.content(t) != kubelets || string(text) != kubelets || err != nil {
				t.Error("a file has changed", err)
			}
		})
	}
	n := newNode(t)
	n.write(t, specs.Spec{Mounts: []specs.Mount{{Destination: "/etc/hosts", Source: other}, {Destination: "etc//hosts", Source: n.KubeletDir + "/x/../pods/" + uid + "/etc-hosts"}}})
	if r, err := n.Run(n.state(t, map[string]string{hostsfile.AliasesKey: annotation})); !r.Changed || err != nil {
		t.Errorf("the last mount counts: %+v %v", r, err)
	}
}

func TestRunFails(t *testing.T) {
	with := map[string]string{hostsfile.AliasesKey: annotation}
	for _, c := range []struct {
		name, state string
		change      func(t *testing.T, n node)
		want        string
	}{
		{name: "nothing on stdin", state: "", want: "nothing there"},
		{name: "no JSON", state: "pid 1", want: "invalid character"},
		{name: "JSON of another shape", state: `[1]`, want: "cannot unmarshal"},
		{name: "endless", state: `{"bundle": "` + strings.Repeat("x", maxState), want: "over 4194304 bytes"},
		{name: "a relative bundle", state: `{"bundle": "b", "annotations": {"ropewalk.dev/host-aliases": "[{\"ip\":\"::1\",\"hostnames\":[\"x\"]}]"}}`, want: "absolute"},
		{name: "a bad annotation", state: `{"annotations": {"ropewalk.dev/host-aliases": "10.0.0.1 x"}}`, want: "want a list as of spec.hostAliases"},
		{name: "a bad annotation of CRI-O's", state: `{"annotations": {"io.kubernetes.cri-o.Annotations": "["}}`, want: "unexpected end"},
		{name: "no bundle", change: func(t *testing.T, n node) { os.RemoveAll(n.bundle) }, want: "no such file"},
		{name: "config.json is a FIFO", change: func(t *testing.T, n node) {
			os.Remove(n.bundle + "/config.json")
			if err := unix.Mkfifo(n.bundle+"/config.json", 0o644); err != nil {
				t.Fatal(err)
			}
		}, want: "not a regular file"},
		{name: "config.json is endless", change: func(t *testing.T, n node) { os.Truncate(n.bundle+"/config.json", 1<<40) }, want: "over 16777216 bytes"},
		{name: "config.json is a list", change: func(t *testing.T, n node) { n.write(t, []int{1}) }, want: "cannot unmarshal"},
		{name: "the hosts file is a symlink", change: func(t *testing.T, n node) {
			os.Remove(n.hosts)
			os.Symlink("/etc/passwd", n.hosts)
		}, want: "symbolic links"},
		{name: "another pod's file", change: func(t *testing.T, n node) {
			n.write(t, specs.Spec{Mounts: []specs.Mount{{Destination: "/etc/hosts", Source: podfile.Path(n.KubeletDir, "other")}}})
		}, want: "stays as it is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			stdin := strings.NewReader(c.state)
			if c.change != nil {
				c.change(t, n)
				text := n.state(t, map[string]string{hostsfile.AliasesKey: with[hostsfile.AliasesKey], sandboxUID: uid})
				b := make([]byte, text.Len())
				text.Read(b)
				stdin = strings.NewReader(string(b))
			}
			r, err := n.Run(stdin)
			if err == nil || !strings.Contains(err.Error(), c.want) || r.Changed {
				t.Errorf("%+v %v, want %q", r, err, c.want)
			}
			if len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

// FuzzRun holds that whatever comes on stdin and stands in config.json, nothing but the pod's own file changes, and that only by
// what is appended.
func FuzzRun(f *testing.F) {
	n := newNode(f)
	outside := filepath.Join(n.bundle, "outside")
	if err := os.WriteFile(outside, []byte(kubelets), 0o644); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(n.bundle + "/config.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(annotation, uid, good)
	f.Add(`[{"ip":"::1","hostnames":["x"]}]`, "", []byte(`{"mounts":[{"destination":"/etc/hosts","source":"`+outside+`"}]}`))
	f.Add("[]", "..", []byte(`{"mounts":[{"destination":"/etc/hosts","source":"`+n.KubeletDir+`/pods/../../x/etc-hosts"}]}`))
	f.Fuzz(func(t *testing.T, aliases, of string, config []byte) {
		if err := errors.Join(os.WriteFile(n.hosts, []byte(kubelets), 0o644), os.WriteFile(n.bundle+"/config.json", config, 0o644)); err != nil {
			t.Fatal(err)
		}
		r, err := n.Run(n.state(t, map[string]string{hostsfile.AliasesKey: aliases, sandboxUID: of}))
		if got := n.content(t); !strings.HasPrefix(got, kubelets) || (got != kubelets) != r.Changed || r.Changed && err != nil {
			t.Errorf("%+v %v\n%s", r, err, got)
		}
		if text, err := os.ReadFile(outside); string(text) != kubelets || err != nil {
			t.Errorf("outside: %q %v", text, err)
		}
	})
}

// FuzzState has anything at all on stdin.
func FuzzState(f *testing.F) {
	n := newNode(f)
	text, _ := json.Marshal(specs.State{Bundle: n.bundle, Annotations: map[string]string{hostsfile.AliasesKey: annotation}})
	f.Add(text)
	f.Add([]byte(`{"bundle":"/proc/self","annotations":{"io.kubernetes.cri-o.Annotations":"{}"}}`))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		if r, err := n.Run(bytes.NewReader(stdin)); err == nil && r.Changed && r.UID != uid {
			t.Errorf("%+v", r)
		}
	})
}
