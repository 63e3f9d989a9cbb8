package docs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cni/collect"
	"github.com/ropewalk-net/ropewalk/cni/mend"
	"github.com/ropewalk-net/ropewalk/cni/routes"
	"github.com/ropewalk-net/ropewalk/hostsmgr"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/links"
	"github.com/ropewalk-net/ropewalk/hostsmgr/nri"
	"github.com/ropewalk-net/ropewalk/proxy"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

const (
	hostsDoc = root + "/docs/hosts.md"
	proxyDoc = root + "/docs/proxy.md"
	cniDoc   = root + "/docs/cni.md"
	agentDoc = root + "/docs/agent.md"

	installDoc    = root + "/docs/install.md"
	migrateDoc    = root + "/docs/migrate.md"
	operationsDoc = root + "/docs/operations.md"
)

// binaryEnv names a bin/ropewalk that is there already, as ROPEWALK_TEST_COREDNS does for coredns.
const binaryEnv = "ROPEWALK_TEST_ROPEWALK"

// binary returns the path of the program, built if need be.
func binary(t *testing.T) string {
	t.Helper()
	if b := os.Getenv(binaryEnv); b != "" {
		if _, err := os.Stat(b); err != nil {
			t.Fatalf("%s: %v", binaryEnv, err)
		}
		return b
	}
	b := filepath.Join(t.TempDir(), "ropewalk")
	cmd := exec.Command("go", "build", "-o", b, "./cmd/ropewalk")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv(binaryEnv, b)
	return b
}

// TestCommands runs each command of the console blocks of docs/hosts.md and docs/proxy.md.
func TestCommands(t *testing.T) {
	b := binary(t)
	netns.Need(t, os.Geteuid() == 0, "network namespaces need root")
	commands := append(console(t, hostsDoc), console(t, proxyDoc)...)
	if len(commands) < 3 {
		t.Fatalf("%d commands", len(commands))
	}
	for _, c := range commands {
		cmd := exec.Command("sh", "-c", strings.ReplaceAll(c.line, "bin/ropewalk", b))
		cmd.Dir = root
		out, err := cmd.Output()
		got := strings.Split(strings.TrimSpace(string(out)), "\n")
		slices.Sort(got)
		if d := cmp.Diff(c.output, got); d != "" || err != nil {
			t.Errorf("$ %s: %v (-document +output)\n%s", c.line, err, d)
		}
	}
}

// commandLine finds commands for nodes in the text of documents, which have them indented.
var commandLine = regexp.MustCompile(`(?m)^    ((?:echo .* \| )?(?:ropewalk|rm -f) .*)$`)

// TestHostsExamples runs each example of each command's --help, and each command in the text of docs/hosts.md, in a world where its
// files, its API server and its node are there.
func TestHostsExamples(t *testing.T) {
	b := binary(t)
	if !netns.Enter(t) {
		return
	}
	n := 0
	world(t, func(text []byte) []byte { // the example's nodes become ours, and its pods ones of a kubelet
		text = regexp.MustCompile(`nodeName: node-\w`).ReplaceAll(text, []byte("nodeName: worker-1"))
		return regexp.MustCompile(`(?m)^kind: Pod\nmetadata:\n`).ReplaceAllFunc(text, func(m []byte) []byte {
			n++
			return fmt.Appendf(bytes.Clone(m), "  uid: uid-%d\n", n)
		})
	})
	for i := range n {
		path := fmt.Sprintf("/var/lib/kubelet/pods/uid-%d/etc-hosts", i+1)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: web, image: web}]}\nstatus: {podIP: 10.244.1.4}\n"
	err := errors.Join(os.WriteFile(dir+"/pod.yaml", []byte(pod), 0o644), os.WriteFile(dir+"/state.json", []byte("{}"), 0o644),
		os.WriteFile("/etc/hosts", []byte("127.0.0.1 localhost\n"), 0o644), os.Symlink(b, dir+"/ropewalk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("NODE_NAME", "worker-1")

	lines := examples(t, dir, "ropewalk")
	if len(lines) < 15 {
		t.Fatalf("%d examples", len(lines))
	}
	text, err := os.ReadFile(hostsDoc)
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range []string{proxyDoc, cniDoc, agentDoc, installDoc, migrateDoc, operationsDoc} {
		more, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, more...)
	}
	inText := commandLine.FindAllStringSubmatch(string(text), -1)
	if len(inText) < 2 {
		t.Fatalf("%d commands in the text", len(inText))
	}
	for _, m := range inText {
		lines = append(lines, m[1])
	}
	for _, line := range lines {
		t.Run(line, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", line)
			cmd.Dir = dir
			if strings.HasPrefix(line, "ropewalk agent") && !strings.Contains(line, "--print-config") {
				serve(t, cmd)
				return
			}
			if strings.HasPrefix(line, "ropewalk status") {
				agent := exec.Command(b, "agent", "--node-name", "worker-1", "--manifests", "/etc/ropewalk/cluster")
				agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
				if err := agent.Start(); err != nil {
					t.Fatal(err)
				}
				defer agent.Wait()
				defer agent.Process.Kill()
				status(t, cmd)
				return
			}
			if strings.Contains(line, "ropewalk proxy") || strings.Contains(line, "ropewalk routes") || strings.Contains(line, "hosts run") || strings.Contains(line, "hosts nri") {
				serve(t, cmd)
				return
			}
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			different := strings.Contains(line, "hosts check") && errors.As(err, &exit) && exit.ExitCode() == 1 && bytes.Contains(out, []byte("\n+++ "))
			if err != nil && !different {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// status asks an agent until it answers. Some of its parts may not be ready: the world has no default route.
func status(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		again := exec.Command(cmd.Args[0], cmd.Args[1:]...)
		again.Dir = cmd.Dir
		out, err := again.CombinedOutput()
		if again.ProcessState.ExitCode() != 2 && bytes.Contains(out, []byte("worker-1")) {
			return
		}
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

// serve runs a command that runs on, until it is at work, and ends it.
func serve(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Args[2] = "exec " + cmd.Args[2]
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	var log bytes.Buffer
	atWork := regexp.MustCompile(`no connection to the runtime|serving /metrics|hosts file|in the kernel|not all is as it should be`)
	var once sync.Once
	for buf := make([]byte, 4096); ; {
		n, err := pipe.Read(buf)
		log.Write(buf[:n])
		if atWork.Match(log.Bytes()) {
			once.Do(func() { cmd.Process.Signal(syscall.SIGTERM) })
		}
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(log.String(), "stopped") {
		t.Errorf("%v\n%s", err, log.String())
	}
}

// examples returns what stands under Examples in the help of a command and those below it.
func examples(t *testing.T, dir, command string) (lines []string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", command+" --help")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	section := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasSuffix(line, ":") && !strings.HasPrefix(line, " "):
			section = line
		case section == "Examples:" && line != "":
			lines = append(lines, strings.TrimSpace(line))
		case section == "Available Commands:" && line != "":
			if name := strings.Fields(line)[0]; name != "help" && name != "completion" {
				lines = append(lines, examples(t, dir, command+" "+name)...)
			}
		}
	}
	return lines
}

// object is one in a document.
type object struct {
	kind string
	text []byte
}

func objectsOf(t *testing.T, doc string) (objects []object) {
	t.Helper()
	for _, block := range blocks(t, doc, "yaml") {
		for doc := range strings.SplitSeq(block, "\n---\n") {
			var o struct{ Kind string }
			if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
				t.Fatal(err)
			}
			objects = append(objects, object{o.Kind, []byte(doc)})
		}
	}
	return objects
}

// TestManifests reads the YAML as strictly as kubectl does, and holds that its rights are those that are needed.
func TestManifests(t *testing.T) {
	b := binary(t)
	of := links.OfNode("n")
	for doc, want := range map[string]map[string]cluster.Kinds{
		hostsDoc: {"ropewalk-hosts": hostsmgr.Interest("n").Kinds, "ropewalk-nri": of[0].Kinds | of[1].Kinds},
		proxyDoc: {"ropewalk-proxy": proxy.Interest("n").Kinds},
		cniDoc:   {"ropewalk-routes": routes.Interest().Kinds},
	} {
		manifests(t, b, doc, want)
	}
}

func manifests(t *testing.T, b, doc string, want map[string]cluster.Kinds) {
	t.Helper()
	kinds := map[string]func() any{
		"ConfigMap": func() any { return &corev1.ConfigMap{} }, "ServiceAccount": func() any { return &corev1.ServiceAccount{} },
		"ClusterRole": func() any { return &rbacv1.ClusterRole{} }, "ClusterRoleBinding": func() any { return &rbacv1.ClusterRoleBinding{} },
		"DaemonSet": func() any { return &appsv1.DaemonSet{} },
	}
	rights := map[string]cluster.Kinds{}
	sets := 0
	for _, o := range objectsOf(t, doc) {
		if kinds[o.kind] == nil {
			t.Fatalf("kind %q", o.kind)
		}
		v := kinds[o.kind]()
		if err := yaml.UnmarshalStrict(o.text, v); err != nil {
			t.Errorf("%v in\n%s", err, o.text)
		}
		switch v := v.(type) {
		case *corev1.ConfigMap:
			for key, text := range v.Data {
				if aliases, errs := hostsfile.Parse(text); len(aliases) == 0 || errs != nil || v.Labels[hostsfile.AliasesKey] != hostsfile.ScopeNamespace {
					t.Errorf("%s: %v %v", key, aliases, errs)
				}
			}
		case *rbacv1.ClusterRole:
			rights[v.Name] = granted(t, v)
		case *appsv1.DaemonSet:
			sets++
			daemonSet(t, b, v)
		}
	}
	if d := cmp.Diff(want, rights); d != "" || sets != 1 {
		t.Errorf("%s: %d DaemonSets, rights (-needed +granted):\n%s", doc, sets, d)
	}
}

// granted returns the kinds that a role may list and watch, and fails if it may do more.
func granted(t *testing.T, role *rbacv1.ClusterRole) (kinds cluster.Kinds) {
	t.Helper()
	names := map[string]cluster.Kind{
		"/pods": cluster.KindPod, "/configmaps": cluster.KindConfigMap, "/services": cluster.KindService, "discovery.k8s.io/endpointslices": cluster.KindSlice,
		"/nodes": cluster.KindNode, "networking.k8s.io/servicecidrs": cluster.KindServiceCIDR,
	}
	for _, r := range role.Rules {
		if !slices.Equal(r.Verbs, []string{"list", "watch"}) || len(r.APIGroups) != 1 {
			t.Errorf("%v", r)
		}
		for _, resource := range r.Resources {
			kind, ok := names[r.APIGroups[0]+"/"+resource]
			if !ok {
				t.Errorf("%s of %q", resource, r.APIGroups)
			}
			kinds |= cluster.KindsOf(kind)
		}
	}
	return kinds
}

// daemonSet holds that the program takes the arguments, that they go with the mounts, and the probes with the port.
func daemonSet(t *testing.T, binary string, d *appsv1.DaemonSet) {
	t.Helper()
	c := d.Spec.Template.Spec.Containers[0]
	if out, err := exec.Command(binary, append(c.Args, "--help")...).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("Usage:\n  ropewalk "+c.Args[0]+" ")) {
		t.Errorf("%q: %v\n%s", c.Args, err, out)
	}
	args := strings.Join(c.Args, " ")
	for _, m := range c.VolumeMounts {
		if m.Name == "etc" && !strings.Contains(args, "--node-hosts="+m.MountPath+"/hosts") {
			t.Errorf("%s: %s", m.MountPath, args)
		}
	}
	for _, p := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe} {
		flag := "--metrics=" + p.HTTPGet.Host
		if p.HTTPGet.Path == "/livez" {
			flag = "--healthz=0.0.0.0"
		}
		if at := fmt.Sprintf("%s:%d", flag, p.HTTPGet.Port.IntValue()); !strings.Contains(args, at) {
			t.Errorf("%s: %s", at, args)
		}
	}
	if privileged := c.SecurityContext.Privileged != nil; !d.Spec.Template.Spec.HostNetwork || privileged != (c.Args[0] == "routes") {
		t.Error("not as the text says")
	}
}

// TestHostsArguments holds that the program takes the arguments of containers that the text gives in one line.
func TestHostsArguments(t *testing.T) {
	b := binary(t)
	text, err := os.ReadFile(hostsDoc)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`args: \[(.*)\]`).FindAllStringSubmatch(string(text), -1)
	for _, m := range found {
		if out, err := exec.Command(b, append(strings.Split(m[1], ", "), "--help")...).CombinedOutput(); err != nil || bytes.Contains(out, []byte("Available Commands")) {
			t.Errorf("%s: %v\n%s", m[0], err, out)
		}
	}
	if len(found) == 0 {
		t.Error("there are none")
	}
}

// TestHostsHookConfiguration holds what the runtime is told of the hook.
func TestHostsHookConfiguration(t *testing.T) {
	b := binary(t)
	found := blocks(t, hostsDoc, "json")
	if len(found) != 1 {
		t.Fatalf("%d blocks of JSON", len(found))
	}
	var c struct {
		Version string
		Hook    struct {
			Path    string
			Args    []string
			Timeout int
		}
		When   struct{ Annotations map[string]string }
		Stages []string
	}
	d := json.NewDecoder(strings.NewReader(found[0]))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(b, append(c.Hook.Args[1:], "--strict")...)
	cmd.Stdin = strings.NewReader("{}")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for pattern, value := range c.When.Annotations {
		if !regexp.MustCompile(pattern).MatchString(hostsfile.AliasesKey) || !regexp.MustCompile(value).MatchString("[]") {
			t.Errorf("%q: %q", pattern, value)
		}
	}
	if len(c.When.Annotations) != 1 || c.Version != "1.0.0" {
		t.Errorf("%+v", c)
	}
}

// TestMetrics holds that the tables name the metrics that there are.
func TestMetrics(t *testing.T) {
	var inDoc []string
	for _, doc := range []string{hostsDoc, proxyDoc, cniDoc} {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("(?m)^\\| `(ropewalk_(?:hosts|nri|proxy|routes|cni)_\\w+)`").FindAllSubmatch(text, -1) {
			inDoc = append(inDoc, string(m[1]))
		}
	}
	registry := &names{}
	if _, err := routes.New(routes.Config{NodeName: "n", Registerer: registry}); err != nil {
		t.Fatal(err)
	}
	if _, err := collect.New(collect.Config{Registerer: registry}); err != nil {
		t.Fatal(err)
	}
	if _, err := mend.New(mend.Config{Registerer: registry}); err != nil {
		t.Fatal(err)
	}
	if _, err := proxy.New(proxy.Config{NodeName: "n", Registerer: registry}); err != nil {
		t.Fatal(err)
	}
	if _, err := hostsmgr.New(hostsmgr.Config{Registerer: registry}); err != nil {
		t.Fatal(err)
	}
	if _, err := nri.New(nri.Config{Registerer: registry}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(inDoc)
	slices.Sort(registry.seen)
	if d := cmp.Diff(registry.seen, inDoc); d != "" {
		t.Errorf("(-registered +documents):\n%s", d)
	}
}

// names is a prometheus.Registerer that notes the names of what it is given.
type names struct {
	prometheus.Registerer
	seen []string
}

func (n *names) Register(c prometheus.Collector) error {
	descriptions := make(chan *prometheus.Desc, 10)
	c.Describe(descriptions)
	close(descriptions)
	for d := range descriptions {
		n.seen = append(n.seen, regexp.MustCompile(`fqName: "(\w+)"`).FindStringSubmatch(d.String())[1])
	}
	return nil
}
