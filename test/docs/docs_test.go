// Package docs tests that the documents are true: commands in them print what they say, Corefiles in them start.
package docs

import (
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/test/coredns"
	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

const root = "../.."

// start runs coredns with a Corefile and waits until name is answered at addr.
func start(t *testing.T, corefile, addr, name string) *coredns.Server {
	t.Helper()
	s := coredns.Start(t, corefile)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		m, err := dns.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), addr)
		if err == nil && m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0 {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s at %s: %v %v", name, addr, m, err)
		}
	}
}

// TestReadmeCommands runs each command of the README's console blocks against what `make run` starts.
func TestReadmeCommands(t *testing.T) {
	netns.NeedCommand(t, "dig")
	coredns.Binary(t)
	if !netns.Enter(t) {
		return
	}
	commands := console(t, filepath.Join(root, "README.md"))
	if len(commands) < 5 {
		t.Fatalf("%d commands", len(commands))
	}
	if out := netns.Run(t, "make", "-n", "-C", root, "run"); !strings.Contains(out, "bin/coredns -conf corefile/Corefile.standalone") {
		t.Fatalf("make run does something else than this test: %s", out)
	}
	start(t, "corefile/Corefile.standalone", "127.0.0.1:1053", "web.shop.svc.cluster.local.")
	for _, c := range commands {
		out, err := exec.Command("sh", "-c", c.line).CombinedOutput()
		got := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(out)), "\n"), func(l string) bool { return strings.HasPrefix(l, ";;") })
		slices.Sort(got)
		if d := cmp.Diff(c.output, got); d != "" || err != nil {
			t.Errorf("$ %s: %v (-README +output)\n%s", c.line, err, d)
		}
	}
}

// command is a line of a console block and the lines that follow it, sorted.
type command struct {
	line   string
	output []string
}

func console(t *testing.T, path string) (commands []command) {
	t.Helper()
	for _, block := range blocks(t, path, "console") {
		for l := range strings.Lines(block) {
			l = strings.TrimSuffix(l, "\n")
			if line, ok := strings.CutPrefix(l, "$ "); ok {
				commands = append(commands, command{line: line})
			} else if n := len(commands); n > 0 {
				commands[n-1].output = append(commands[n-1].output, l)
				slices.Sort(commands[n-1].output)
			}
		}
	}
	return commands
}

var fence = regexp.MustCompile("(?ms)^(?:```|~~~) ?([a-z]+)\n(.*?)^(?:```|~~~)$")

// blocks returns the fenced blocks of a document that are of a kind.
func blocks(t *testing.T, path, kind string) (found []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range fence.FindAllStringSubmatch(string(text), -1) {
		if m[1] == kind {
			found = append(found, m[2])
		}
	}
	return found
}

// TestCorefiles starts every Corefile that ships or stands in a document, in a world where its addresses, its API server
// and its files are there, and asks each of its servers.
func TestCorefiles(t *testing.T) {
	coredns.Binary(t)
	if !netns.Enter(t, "169.254.20.10/32", "192.0.2.53/32") {
		return
	}
	world(t)
	files := map[string]string{}
	shipped, _ := filepath.Glob(filepath.Join(root, "corefile", "Corefile.*"))
	for _, f := range shipped {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(f)] = string(text)
	}
	for _, doc := range []string{"README.md", "plugin/ropewalk/README.md", "docs/dns.md", "docs/dns-differences.md"} {
		for i, b := range blocks(t, filepath.Join(root, doc), "corefile") {
			files[fmt.Sprintf("%s, Corefile %d", doc, i+1)] = b
		}
	}
	if len(shipped) < 3 || len(files) < 9 {
		t.Fatalf("%d Corefiles, %d of them shipped", len(files), len(shipped))
	}
	for name, text := range files {
		t.Run(name, func(t *testing.T) {
			// A pause for those who look at the traffic is nothing to wait for.
			text = regexp.MustCompile(`lameduck \S+`).ReplaceAllString(text, "lameduck 10ms")
			path := filepath.Join(t.TempDir(), "Corefile")
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			addrs := addresses(text)
			s := start(t, path, addrs[0], "web.shop.svc.cluster.local.")
			for _, a := range addrs[1:] {
				if _, err := dns.Exchange(new(dns.Msg).SetQuestion("cluster.local.", dns.TypeSOA), a); err != nil {
					t.Errorf("%s: %v", a, err)
				}
			}
			for line := range strings.Lines(s.Log()) {
				// The loop plugin's probe (HINFO) finds nobody to forward it to.
				if strings.Contains(line, "[ERROR]") && !strings.Contains(line, "HINFO") {
					t.Errorf("at start: %s", line)
				}
			}
		})
	}
}

// addresses returns where the servers of a Corefile answer.
func addresses(corefile string) (addrs []string) {
	host := "127.0.0.1"
	if m := regexp.MustCompile(`(?m)^\s+bind (\S+)`).FindStringSubmatch(corefile); m != nil {
		host = m[1]
	}
	for _, m := range regexp.MustCompile(`(?m)^[a-z.-]+:(\d+)`).FindAllStringSubmatch(corefile, -1) {
		addrs = append(addrs, host+":"+m[1])
	}
	// A server that only has the kubernetes plugin comes second, whatever the order: what we wait for is ours.
	if strings.Contains(corefile, "kubernetes cluster.local") {
		slices.Reverse(addrs)
	}
	return addrs
}

// world makes what the Corefiles name: an API server with the example cluster, reached as a pod reaches it and by
// kubeconfig, a directory of manifests, a resolv.conf.
func world(t *testing.T, edit ...func([]byte) []byte) {
	api := standin.New(t)
	examples, _ := filepath.Glob(filepath.Join(root, "corefile/example/*.yaml"))
	manifests := map[string]string{"/etc/resolv.conf": "nameserver 192.0.2.99\n"}
	for _, f := range examples {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range edit {
			text = f(text)
		}
		api.Load(text)
		manifests["/etc/ropewalk/cluster/"+filepath.Base(f)] = string(text)
		manifests["/etc/coredns/cluster/"+filepath.Base(f)] = string(text)
	}
	api.Load([]byte(namespaces))
	kubeconfig, err := os.ReadFile(api.Kubeconfig(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	manifests["/etc/kubernetes/dns.conf"] = string(kubeconfig)
	manifests["/etc/kubernetes/ropewalk.conf"] = string(kubeconfig)
	manifests["/etc/ropewalk/agent.yaml"] = "apiVersion: ropewalk.dev/v1alpha1\nkind: AgentConfiguration\n"
	netns.Tmpfs(t, "/etc", manifests)
	netns.Tmpfs(t, "/opt", map[string]string{"/opt/cni/bin/README": "for CNI plugins"})
	netns.Tmpfs(t, "/var/lib", map[string]string{"/var/lib/coredns/README": "for snapshots"})

	target, _ := url.Parse(api.URL())
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.FlushInterval = -1
	front := httptest.NewTLSServer(proxy)
	t.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
	})
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
	dir := "/run/secrets/kubernetes.io/serviceaccount/"
	netns.Tmpfs(t, "/run", map[string]string{dir + "token": "x", dir + "ca.crt": string(ca), dir + "namespace": "kube-system"})
	u, _ := url.Parse(front.URL)
	t.Setenv("KUBERNETES_SERVICE_HOST", u.Hostname())
	t.Setenv("KUBERNETES_SERVICE_PORT", u.Port())
}

const namespaces = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {dns: public}}
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system, labels: {dns: public}}
`
