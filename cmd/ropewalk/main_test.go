package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

// asRopewalk makes the test's program the command itself.
const asRopewalk = "ROPEWALK_TEST_AS_ROPEWALK"

func TestMain(m *testing.M) {
	if os.Getenv(asRopewalk) != "" {
		main()
	}
	os.Unsetenv("NODE_NAME")
	os.Unsetenv("KUBERNETES_SERVICE_HOST")
	os.Exit(m.Run())
}

// ropewalk runs the command line in process.
func ropewalk(t *testing.T, stdin string, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(stdin), &o, &e)
	return code, o.String(), e.String()
}

// files writes files by their names into a new directory.
func files(t *testing.T, content map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range content {
		write(t, filepath.Join(dir, name), text)
	}
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const (
	pod = `
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: 0f2b6f6a-1c1e-4f4e-9d57-6b1d5f0f7c11
  annotations: {ropewalk.dev/host-aliases: '[{"ip": "10.1.2.3", "hostnames": ["ANNOTATED"]}]'}
spec:
  nodeName: n1
  subdomain: front
  hostAliases: [{ip: 10.9.9.9, hostnames: [spec.example]}]
status:
  podIPs: [{ip: 10.244.1.4}, {ip: "2001:db8::4"}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.9, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: wide, namespace: kube-system, labels: {ropewalk.dev/host-aliases: cluster}}
data: {hosts: "10.3.3.3 wide.example"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: sly, namespace: other, labels: {ropewalk.dev/host-aliases: cluster}}
data: {hosts: "10.5.5.5 sly.example"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: near, namespace: shop, labels: {ropewalk.dev/host-aliases: namespace}}
data: {b: "10.2.2.2 near-b.example", a: "10.2.2.1 near-a.example # first\nwrong line"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: far, namespace: other, labels: {ropewalk.dev/host-aliases: namespace}}
data: {a: "10.4.4.4 far.example"}
`
	uid      = "0f2b6f6a-1c1e-4f4e-9d57-6b1d5f0f7c11"
	kubelets = "# Kubernetes-managed hosts file.\n" +
		"127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\n" +
		"fe00::0\tip6-mcastprefix\n" +
		"fe00::1\tip6-allnodes\n" +
		"fe00::2\tip6-allrouters\n" +
		"10.244.1.4\tweb.front.shop.svc.cluster.local\tweb\n" +
		"2001:db8::4\tweb.front.shop.svc.cluster.local\tweb\n" +
		"\n# Entries added by HostAliases.\n" +
		"10.9.9.9\tspec.example\n"
	fromMaps = "10.2.2.1\tnear-a.example\n10.2.2.2\tnear-b.example\n10.3.3.3\twide.example\n"
)

// with returns the cluster with a name in the pod's annotation, and want the pod's file then.
func with(name string) (manifest, want string) {
	return strings.ReplaceAll(pod, "ANNOTATED", name), kubelets + "10.1.2.3\t" + name + "\n" + fromMaps
}

func TestRender(t *testing.T) {
	manifest, want := with("annotated.example")
	host := "apiVersion: v1\nkind: Pod\nmetadata: {name: agent, namespace: kube-system}\nspec: {hostNetwork: true}\n"
	bare := "apiVersion: v1\nkind: Pod\nmetadata: {name: bare}\nspec: {containers: [{name: x, image: x}]}\n"
	dir := files(t, map[string]string{"pod.yaml": manifest, "two.yaml": manifest + "---\n" + bare, "bare.yaml": bare, "host.yaml": host,
		"hosts": "127.0.0.1 node\n", "none.yaml": "apiVersion: v1\nkind: Node\nmetadata: {name: node}\n", "bad.yaml": "kind: ["})
	at := func(name string) string { return filepath.Join(dir, name) }
	head := kubelets[:strings.Index(kubelets, "10.244")]
	for _, c := range []struct {
		name, stdin string
		args        []string
		code        int
		want        string // of the output, or of the error's text
	}{
		{"a pod", "", []string{"-f", at("pod.yaml")}, 0, want},
		{"stdin", manifest, []string{"--filename", "-"}, 0, want},
		{"one of two", "", []string{"-f", at("two.yaml"), "shop/web"}, 0, want},
		{"one of two by its name alone", "", []string{"-f", at("two.yaml"), "web"}, 0, want},
		{"another domain", "", []string{"-f", at("pod.yaml"), "--cluster-domain", "k8s.test."}, 0, strings.ReplaceAll(want, "cluster.local", "k8s.test")},
		{"addresses", "", []string{"-f", at("bare.yaml"), "--ip", "10.0.0.7", "--ip", "fd00::7"}, 0, head + "10.0.0.7\tbare\nfd00::7\tbare\n"},
		{"the node's network", "", []string{"-f", at("host.yaml"), "--node-hosts", at("hosts")}, 0, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 node\n"},
		{"two", "", []string{"-f", at("two.yaml")}, 2, "2 pods, name one of them: default/bare, shop/web"},
		{"not there", "", []string{"-f", at("two.yaml"), "db"}, 2, "has no pod db; it has: default/bare, shop/web"},
		{"none", "", []string{"-f", at("none.yaml")}, 2, "has no pod"},
		{"no address", "", []string{"-f", at("bare.yaml")}, 2, "give it one by --ip"},
		{"a wrong address", "", []string{"-f", at("bare.yaml"), "--ip", "10.0.0"}, 2, `--ip "10.0.0": want an address`},
		{"no YAML", "", []string{"-f", at("bad.yaml")}, 2, "bad.yaml:1"},
		{"no file", "", []string{"-f", at("missing")}, 2, "no such file"},
		{"no flag", "", nil, 2, "as in -f pod.yaml"},
		{"the node's file is not there", "", []string{"-f", at("host.yaml"), "--node-hosts", at("missing")}, 2, "--node-hosts names another file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, errOut := ropewalk(t, c.stdin, append([]string{"hosts", "render"}, c.args...)...)
			if code != c.code {
				t.Fatalf("exit code %d, want %d\n%s", code, c.code, errOut)
			}
			if code != 0 && (!strings.Contains(errOut, c.want) || out != "" || strings.Count(errOut, "\n") != 1) {
				t.Errorf("output %q, error %q, want one line with %q", out, errOut, c.want)
			}
			if code == 0 {
				if d := cmp.Diff(c.want, out); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
			}
			for _, left := range []string{"ConfigMap shop/near: a: line 2", "ConfigMap other/sly: label"} {
				if strings.Contains(c.want, "near-a") && !strings.Contains(errOut, left) {
					t.Errorf("%q is not told of: %q", left, errOut)
				}
			}
		})
	}
}

// TestCheck also holds that render and the manager agree.
func TestCheck(t *testing.T) {
	manifest, want := with("annotated.example")
	manifests, kubelet := files(t, map[string]string{"pod.yaml": manifest}), t.TempDir()
	path := podfile.Path(kubelet, uid)
	check := func(more ...string) (int, string, string) {
		return ropewalk(t, "", append([]string{"hosts", "check", "--node-name", "n1", "--manifests", manifests, "--kubelet-dir", kubelet}, more...)...)
	}
	write(t, path, want)
	if code, out, errOut := check(); code != 0 || out != "" {
		t.Errorf("the same: %d %q %q", code, out, errOut)
	}
	for namespaces, want := range map[string]string{
		"shop,kube-system": "", "shop": "\n-10.3.3.3\twide.example", "": "\n-10.3.3.3\twide.example", "*": "\n+10.5.5.5\tsly.example",
	} {
		if code, out, _ := check("--cluster-namespaces", namespaces); (code == 0) != (want == "") || !strings.Contains(out, want) {
			t.Errorf("the cluster's aliases of %q: %d, want %q: %s", namespaces, code, want, out)
		}
	}
	damaged := filepath.Join(t.TempDir(), "hosts")
	write(t, damaged, "# BEGIN ropewalk\n")
	if code, out, errOut := check("--node-block", "--node-hosts", damaged); code != 2 || !strings.Contains(out, damaged) || !strings.Contains(errOut, "cannot be told") {
		t.Errorf("a damaged block: %d %q %q", code, out, errOut)
	}
	write(t, path, strings.Replace(want, "10.1.2.3", "10.1.2.4\x1b[2J\xff", 1))
	code, out, errOut := check()
	if code != 1 || errOut != "" && !strings.Contains(errOut, "line 2") {
		t.Errorf("exit code %d, %q", code, errOut)
	}
	for _, line := range []string{"--- " + path, "-10.1.2.4\\x1b[2J\\xff\tannotated.example", "+10.1.2.3\tannotated.example", "as pod shop/web should have it"} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}
	if strings.ContainsAny(out, "\x1b") {
		t.Error("a terminal would obey")
	}
	if text := content(t, path); !strings.Contains(text, "10.1.2.4") {
		t.Error("check has written")
	}
	if err := errors.Join(os.Remove(path), os.Symlink("/etc/hosts", path)); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := check(); code != 1 || !strings.Contains(out, path) {
		t.Errorf("a symlink: %d %q", code, out)
	}
	for want, args := range map[string][]string{
		"no such file":       {"--kubelet-dir", filepath.Join(kubelet, "none")},
		"absolute path":      {"--kubelet-dir", "kubelet"},
		"4096 or more":       {"--max-size", "1"},
		"unknown flag":       {"--fix"},
		"none of the others": {"--kubeconfig", "x"},
	} {
		if code, _, errOut := check(args...); code != 2 || !strings.Contains(errOut, want) {
			t.Errorf("%q: %d %q, want %q", args, code, errOut, want)
		}
	}
}

// serveCluster starts an API server with a cluster, and returns the kubeconfig for it and the UID that it has given the pod.
func serveCluster(t *testing.T, manifest string) (api *standin.Server, config, uid string) {
	t.Helper()
	api = standin.New(t)
	api.Load([]byte(manifest))
	_, list := get(t, api.URL()+"/api/v1/pods")
	m := regexp.MustCompile(`"uid":\s*"([^"]+)"`).FindStringSubmatch(list)
	if m == nil {
		t.Fatalf("no UID in %s", list)
	}
	return api, api.Kubeconfig(t.TempDir()), m[1]
}

// TestAPIServer has check and env read from an API server, and from one that does not answer.
func TestAPIServer(t *testing.T) {
	manifest, want := with("annotated.example")
	api, config, uid := serveCluster(t, manifest)
	kubelet := t.TempDir()
	for code, text := range []string{want, kubelets} {
		write(t, podfile.Path(kubelet, uid), text)
		if got, out, errOut := ropewalk(t, "", "hosts", "check", "--node-name", "n1", "--kubelet-dir", kubelet, "--kubeconfig", config); got != code {
			t.Errorf("%d, want %d: %q %q", got, code, out, errOut)
		}
	}
	code, out, errOut := ropewalk(t, "", "env", "shop", "--kubeconfig", config, "--format", "dotenv")
	if code != 0 || !strings.Contains(out, "WEB_SERVICE_HOST=10.96.0.9\n") {
		t.Errorf("%d %q %q", code, out, errOut)
	}
	api.Down()
	code, _, errOut = ropewalk(t, "", "env", "shop", "--kubeconfig", config, "--timeout", "500ms")
	if code != 2 || !strings.Contains(errOut, "within 500ms") || !strings.Contains(errOut, "connection refused") {
		t.Errorf("%d %q", code, errOut)
	}
}

func TestEnv(t *testing.T) {
	manifest, _ := with("x.example")
	dir := files(t, map[string]string{"pod.yaml": manifest})
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--format", "dotenv"}, "\nWEB_SERVICE_PORT_HTTP=80\n"},
		{nil, "\nexport WEB_SERVICE_PORT_HTTP='80'\n"},
		{[]string{"--format", "json"}, `"WEB_SERVICE_PORT_HTTP": "80"`},
		{[]string{"--no-service-links", "--format", "dotenv"}, "KUBERNETES_SERVICE_HOST=10.96.0.1\n"},
	} {
		code, out, errOut := ropewalk(t, "", append([]string{"env", "shop", "--manifests", dir}, c.args...)...)
		if code != 0 || !strings.Contains(out, c.want) || errOut != "" {
			t.Errorf("%q: %d %q %q", c.args, code, out, errOut)
		}
		if len(c.args) == 3 && strings.Contains(out, "WEB_") {
			t.Errorf("without service links: %s", out)
		}
	}
}

// TestMistakes has what users get wrong: one line says what would be right, without the usage.
func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ args, want string }{
		{"hots", `unknown command "hots" for "ropewalk" (did you mean hosts?)`},
		{"hosts rnu", "did you mean run?"},
		{"hosts run", "--node-name is missing: which node's pods?"},
		{"hosts run --node-nam n1", "did you mean --node-name?"},
		{"hosts run --node-name n1 extra", "extra"},
		{"hosts run --node-name n1 --log-level loud", "want debug, info, warn or error"},
		{"hosts run --node-name n1 --log-format xml", "want text or json"},
		{"hosts run --node-name n1 --max-size big", "--max-size"},
		{"hosts run --node-name n1 --metrics 127.0.0.1:99999 --manifests " + dir, "--metrics takes another address"},
		{"hosts run --node-name n1", "give --kubeconfig FILE or --manifests DIR"},
		{"hosts run --node-name n1 --manifests " + dir + "/none", "want a directory of Kubernetes YAML"},
		{"hosts nri --index 5", "want two digits"},
		{"hosts nri --manifests " + dir, "--node-name is missing"},
		{"env", "of which namespace?"},
		{"env a b", "of which namespace?"},
		{"env A/b", "no name of a namespace"},
		{"env a --format xml --manifests " + dir, "want shell, dotenv or json"},
		{"env a", "give --kubeconfig FILE or --manifests DIR"},
		{"env a --kubeconfig " + dir + "/none", "no such file"},
		{"routes --node-name n1 --data-dir run", "absolute path"},
		{"version now", "now"},
	} {
		code, out, errOut := ropewalk(t, "", strings.Fields(c.args)...)
		last := errOut[strings.LastIndex(strings.TrimSuffix(errOut, "\n"), "\n")+1:]
		if code != 2 || out != "" || !strings.HasPrefix(last, "ropewalk: ") || !strings.Contains(last, c.want) {
			t.Errorf("%s: %d %q %q, want %q", c.args, code, out, errOut, c.want)
		}
	}
}

// each calls f for cmd and all commands below it.
func each(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		each(c, f)
	}
}

// TestHelp holds that every command has what a manual page has. That the examples work is held by test/docs.
func TestHelp(t *testing.T) {
	each(newRoot(), func(cmd *cobra.Command) {
		code, out, _ := ropewalk(t, "", append(strings.Fields(cmd.CommandPath())[1:], "--help")...)
		if code != 0 || len(cmd.Long) < 40 || !strings.Contains(out, cmd.Example) || cmd.Example == "" {
			t.Errorf("%s: %d, %q", cmd.CommandPath(), code, cmd.Long)
		}
		for line := range strings.Lines(cmd.Long) {
			if len(line) > 125 {
				t.Errorf("%s: a line of %d characters: %s", cmd.CommandPath(), len(line), line)
			}
		}
		for line := range strings.Lines(cmd.Example) {
			if !strings.HasPrefix(line, "  ") || !strings.Contains(line, "ropewalk") {
				t.Errorf("%s: example %q", cmd.CommandPath(), line)
			}
		}
	})
	if code, out, _ := ropewalk(t, "", "version"); code != 0 || !regexp.MustCompile(`^ropewalk \S+\n$`).MatchString(out) {
		t.Errorf("version: %q", out)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		code, out, _ := ropewalk(t, "", "completion", shell)
		if code != 0 || !strings.Contains(out, "ropewalk") {
			t.Errorf("%s: %d", shell, code)
		}
		if path, err := exec.LookPath(shell); err == nil {
			cmd := exec.Command(path, "-n")
			cmd.Stdin = strings.NewReader(out)
			if text, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v %s", shell, err, text)
			}
		}
	}
	for want, args := range map[string][]string{
		"shell\ndotenv\njson\n":    {"env", "shop", "--format", ""},
		"check\t":                  {"hosts", "c"},
		"--node-name\t":            {"hosts", "run", "--node-n"},
		"debug\ninfo\nwarn\nerror": {"hosts", "nri", "--log-level", ""},
	} {
		if _, out, _ := ropewalk(t, "", append([]string{"__complete"}, args...)...); !strings.Contains(out, want) {
			t.Errorf("%q: %q", args, out)
		}
	}
}

// process is a ropewalk that runs on.
type process struct {
	*exec.Cmd
	mu  sync.Mutex
	log bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// start runs ropewalk in a process, and ends it with the test.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0], args...)}
	p.Env = append(os.Environ(), asRopewalk+"=1")
	p.Stdout, p.Stderr = p, p
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ProcessState == nil {
			p.Process.Kill()
			p.Wait()
		}
		if t.Failed() {
			t.Logf("its log:\n%s", p.text())
		}
	})
	return p
}

// address is where the process serves its metrics.
func (p *process) address(t *testing.T) string {
	t.Helper()
	var found []string
	eventually(t, "the address in the log", func() bool {
		found = regexp.MustCompile(`address=(\S+)`).FindStringSubmatch(p.text())
		return found != nil
	})
	return "http://" + found[1]
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// TestRun has the program keep a file: at start, after an edit of the annotation, after somebody else has written; and end.
func TestRun(t *testing.T) {
	manifest, want := with("one.example")
	manifests, kubelet := files(t, map[string]string{"pod.yaml": manifest}), t.TempDir()
	path := podfile.Path(kubelet, uid)
	write(t, path, kubelets)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, "hosts", "run", "--node-name", "n1", "--manifests", manifests, "--kubelet-dir", kubelet, "--metrics", "127.0.0.1:0")
	url := p.address(t)
	eventually(t, "ready", func() bool { status, _ := get(t, url+"/readyz"); return status == http.StatusOK })
	if got := content(t, path); got != want {
		t.Errorf("at start (-want +got):\n%s", cmp.Diff(want, got))
	}
	if status, _ := get(t, url+"/healthz"); status != http.StatusOK {
		t.Errorf("healthz: %d", status)
	}
	manifest, want = with("two.example")
	write(t, filepath.Join(manifests, "pod.yaml"), manifest)
	eventually(t, "the file after an edit of the annotation", func() bool { return content(t, path) == want })
	write(t, path, kubelets)
	eventually(t, "the file after the kubelet has written it", func() bool { return content(t, path) == want })
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("another file: %v", err)
	}
	_, metrics := get(t, url+"/metrics")
	for _, name := range []string{"ropewalk_hosts_", "ropewalk_source_age_seconds 0", "ropewalk_build_info{", "process_resident_memory_bytes"} {
		if !strings.Contains(metrics, "\n"+name) {
			t.Errorf("no %s among the metrics", name)
		}
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil || !strings.Contains(p.text(), "msg=stopped") {
		t.Errorf("after SIGTERM: %v", err)
	}
	if content(t, path) != want {
		t.Error("the file has changed at the end")
	}
}

// TestRunWithoutAPIServer starts the program while the API server is away: it waits, says so, and goes on when it is there.
func TestRunWithoutAPIServer(t *testing.T) {
	manifest, want := with("one.example")
	api, config, uid := serveCluster(t, manifest)
	kubelet := t.TempDir()
	path := podfile.Path(kubelet, uid)
	write(t, path, kubelets)
	api.Down()
	p := start(t, "hosts", "run", "--node-name", "n1", "--kubeconfig", config, "--kubelet-dir", kubelet, "--metrics", "127.0.0.1:0", "--log-format", "json")
	eventually(t, "the failure in the log", func() bool { return strings.Contains(p.text(), "connection refused") })
	var address string
	eventually(t, "the address in the log", func() bool {
		if m := regexp.MustCompile(`"address":"([^"]+)"`).FindStringSubmatch(p.text()); m != nil {
			address = "http://" + m[1]
		}
		return address != ""
	})
	if status, body := get(t, address+"/readyz"); status != http.StatusServiceUnavailable || body == "" {
		t.Errorf("readyz: %d %q", status, body)
	}
	if status, _ := get(t, address+"/healthz"); status != http.StatusOK {
		t.Errorf("healthz: %d: a restart would not help", status)
	}
	api.Up()
	eventually(t, "ready", func() bool { status, _ := get(t, address+"/readyz"); return status == http.StatusOK })
	if got := content(t, path); got != want {
		t.Errorf("(-want +got):\n%s", cmp.Diff(want, got))
	}
	if err := p.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("after SIGINT: %v", err)
	}
}

// TestNRIWithoutRuntime holds that a plugin waits for its runtime, says so, and ends when it is told to.
func TestNRIWithoutRuntime(t *testing.T) {
	manifest, _ := with("one.example")
	manifests := files(t, map[string]string{"pod.yaml": manifest})
	p := start(t, "hosts", "nri", "--node-name", "n1", "--manifests", manifests, "--metrics", "127.0.0.1:0",
		"--socket", filepath.Join(manifests, "nri.sock"), "--state-dir", filepath.Join(manifests, "state"))
	url := p.address(t)
	eventually(t, "the wait in the log", func() bool { return strings.Contains(p.text(), "no connection to the runtime") })
	if status, body := get(t, url+"/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "not connected to the runtime") {
		t.Errorf("readyz: %d %q", status, body)
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}

// TestHook has a bundle as a runtime makes it.
func TestHook(t *testing.T) {
	bundle, kubelet := t.TempDir(), t.TempDir()
	path := podfile.Path(kubelet, uid)
	write(t, path, kubelets)
	write(t, filepath.Join(bundle, "config.json"), `{"ociVersion":"1.2.0","mounts":[{"destination":"/etc/hosts","type":"bind","source":"`+path+`"}]}`)
	state := `{"ociVersion":"1.2.0","id":"c","status":"creating","pid":1,"bundle":"` + bundle + `","annotations":{"ropewalk.dev/host-aliases":"[{\"ip\":\"10.1.2.3\",\"hostnames\":[\"x.example\"]}]"}}`
	if code, _, errOut := ropewalk(t, state, "hosts", "hook", "--strict", "--kubelet-dir", kubelet); code != 0 {
		t.Fatalf("%d %s", code, errOut)
	}
	if got := content(t, path); got != kubelets+"10.1.2.3\tx.example\n" {
		t.Errorf("%s", got)
	}
	for _, c := range []struct {
		args []string
		code int
	}{{nil, 0}, {[]string{"--strict"}, 2}} {
		code, _, errOut := ropewalk(t, "{", append([]string{"hosts", "hook", "--kubelet-dir", kubelet}, c.args...)...)
		if code != c.code || !strings.Contains(errOut, "standard input") {
			t.Errorf("%q: %d %q", c.args, code, errOut)
		}
	}
}
