// Package server holds the tests of the plugin in a real CoreDNS: in this process, asked over UDP and TCP, with the
// plugins around it that look at what it does.
package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	_ "github.com/coredns/coredns/plugin/acl"
	_ "github.com/coredns/coredns/plugin/autopath"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/bufsize"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/multisocket"
	_ "github.com/coredns/coredns/plugin/nsid"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/template"
	_ "github.com/coredns/coredns/plugin/transfer"
	_ "github.com/coredns/coredns/plugin/tsig"
	_ "github.com/coredns/coredns/plugin/view"

	_ "github.com/ropewalk-net/ropewalk/plugin/ropewalk"
)

// directives is the order of cmd/coredns, without what no test needs, with two plugins of our own.
var directives = []string{
	"metadata", "multisocket", "nsid", "bufsize", "bind", "ready", "health", "prometheus", "errors", "log", "labels", "loadbalance",
	"tsig", "rewrite", "autopath", "acl", "cache", "template", "transfer", "hosts", "ropewalk", "kubernetes", "forward", "behind",
	"view",
}

func init() {
	caddy.Quiet, dnsserver.Quiet = true, true
	plugin.Register("labels", func(c *caddy.Controller) error {
		dnsserver.GetConfig(c).AddPlugin(func(plugin.Handler) plugin.Handler { return labels{} })
		return nil
	})
	plugin.Register("behind", func(c *caddy.Controller) error {
		dnsserver.GetConfig(c).AddPlugin(func(plugin.Handler) plugin.Handler { return behind{} })
		return nil
	})
}

func TestMain(m *testing.M) {
	if err := dnsserver.SetDirectives(directives); err != nil {
		log.Fatal(err)
	}
	log.SetOutput(&logged)
	goleak.VerifyTestMain(m,
		// CoreDNS cannot stop a server whose goroutines have not begun yet (dnsserver.Server.Stop); nothingLeft looks for ours.
		goleak.IgnoreAnyFunction("github.com/coredns/caddy.startServers.func1.1"),
		goleak.IgnoreAnyFunction("github.com/coredns/caddy.startServers.func1.2"),
		goleak.IgnoreAnyFunction("github.com/coredns/caddy.startServers.func2"),
		goleak.IgnoreAnyFunction("github.com/coredns/caddy.startServers.func3"),
		// CoreDNS's kubernetes plugin leaves its informers, which ropewalk has none of, to end when they notice.
		goleak.IgnoreAnyFunction("k8s.io/client-go/tools/cache.(*controller).RunWithContext"),
		goleak.IgnoreAnyFunction("k8s.io/client-go/tools/cache.(*Reflector).RunWithContext"),
		goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// logged is what CoreDNS has logged.
var logged logBuffer

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// since returns what has been written after mark, a former length.
func (l *logBuffer) since(mark int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()[mark:]
}

func (l *logBuffer) mark() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Len()
}

// labels answers every query with the metadata labels that it has, one a string.
type labels struct{}

func (labels) Name() string { return "labels" }

func (labels) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	m := new(dns.Msg).SetReply(r)
	txt := &dns.TXT{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{"labels"}}
	for _, l := range metadata.Labels(ctx) {
		txt.Txt = append(txt.Txt, l+"="+metadata.ValueFunc(ctx, l)())
	}
	slices.Sort(txt.Txt)
	m.Answer = []dns.RR{txt}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

// behind stands at the end of the chain and tells that a query has come that far.
type behind struct{}

func (behind) Name() string { return "behind" }

func (behind) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	m := new(dns.Msg).SetReply(r)
	m.Answer = []dns.RR{&dns.TXT{
		Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET},
		Txt: []string{"passed on"},
	}}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

func passedOn(m *dns.Msg) bool { return m != nil && strings.Contains(m.String(), `"passed on"`) }

// server is a CoreDNS in this process.
type server struct {
	*caddy.Instance
	udp, tcp string
	stopped  bool
}

func input(corefile string) caddy.Input {
	return caddy.CaddyfileInput{Contents: []byte(corefile), Filepath: "Corefile", ServerTypeName: "dns"}
}

// start runs a CoreDNS until the test ends.
func start(t *testing.T, corefile string) *server {
	t.Helper()
	inst, err := caddy.Start(input(corefile))
	if err != nil {
		t.Fatalf("%v in\n%s", err, corefile)
	}
	l := inst.Servers()[0]
	s := &server{Instance: inst, udp: l.LocalAddr().String(), tcp: l.Addr().String()}
	t.Cleanup(func() { s.stop(t) })
	return s
}

func (s *server) stop(t *testing.T) {
	t.Helper()
	if s.stopped {
		return
	}
	s.stopped = true
	for _, err := range s.ShutdownCallbacks() {
		t.Errorf("shutdown: %v", err)
	}
	if err := s.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// restart reloads the Corefile, as a signal or the reload plugin does.
func (s *server) restart(t *testing.T, corefile string) {
	t.Helper()
	inst, err := s.Restart(input(corefile))
	if err != nil {
		t.Fatalf("reload: %v", err)
	}
	s.Instance = inst
}

// block returns a server block on a free port of 127.0.0.1, for all zones.
func block(lines ...string) string {
	return ".:0 {\nbind 127.0.0.1\n" + strings.Join(lines, "\n") + "\n}\n"
}

// ropewalk returns a stanza for cluster.local from a directory of manifests.
func ropewalk(dir string, options ...string) string {
	return stanza("cluster.local in-addr.arpa", dir, options...)
}

func stanza(zones, dir string, options ...string) string {
	return fmt.Sprintf("ropewalk %s {\nmanifests %s\n%s\n}", zones, dir, strings.Join(options, "\n"))
}

// files writes a directory of manifests. Of each pair the first is the file's name.
func files(t *testing.T, nameAndContent ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(nameAndContent); i += 2 {
		write(t, filepath.Join(dir, nameAndContent[i]), nameAndContent[i+1])
	}
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

const web = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.2
  ports: [{name: http, port: 80}]
`

// headless returns a headless service with n endpoints, 10.244.0.0 and up.
func headless(name string, n int) string {
	const perSlice = 1000 // the most that a slice may have
	var b strings.Builder
	fmt.Fprintf(&b, `
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: shop}
spec:
  clusterIP: None
  ports: [{name: sql, port: 5432}]
`, name)
	for i := range n {
		if i%perSlice == 0 {
			fmt.Fprintf(&b, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: %[1]s-%[2]d
  namespace: shop
  labels: {kubernetes.io/service-name: %[1]s}
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: "2026-01-02T03:04:05Z"}
addressType: IPv4
ports: [{name: sql, port: 5432}]
endpoints:
`, name, 1+i/perSlice)
		}
		fmt.Fprintf(&b, "- {addresses: [10.244.%d.%d]}\n", i/250, 1+i%250)
	}
	return b.String()
}

func alias(name, target string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: shop}
spec: {type: ExternalName, externalName: %s}
---
`, name, target)
}

// query returns a question of class IN.
func query(name string, typ uint16) *dns.Msg { return new(dns.Msg).SetQuestion(dns.Fqdn(name), typ) }

func (s *server) addr(network string) string {
	if network == "tcp" {
		return s.tcp
	}
	return s.udp
}

// exchange asks over "udp" or "tcp". It fails the test if there is no answer to exactly this question.
func (s *server) exchange(t *testing.T, network string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: 10 * time.Second}
	m, _, err := c.Exchange(q, s.addr(network))
	if err != nil {
		t.Fatalf("%s over %s: %v", q.Question[0].String(), network, err)
	}
	if m.Id != q.Id || !m.Response || m.Opcode != q.Opcode || !slices.Equal(m.Question, q.Question) {
		t.Fatalf("not the answer to %s:\n%s", q.Question[0].String(), m)
	}
	return m
}

// ask asks over UDP.
func (s *server) ask(t *testing.T, name string, typ uint16) *dns.Msg {
	t.Helper()
	return s.exchange(t, "udp", query(name, typ))
}

// summary is an answer in few words: the code, and the answer section's data in order.
func summary(m *dns.Msg) string {
	parts := []string{dns.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		data := strings.TrimPrefix(rr.String(), rr.Header().String())
		parts = append(parts, fmt.Sprintf("%s %s", dns.TypeToString[rr.Header().Rrtype], data))
	}
	return strings.Join(parts, ", ")
}

func (s *server) expect(t *testing.T, name string, typ uint16, want string) {
	t.Helper()
	if got := summary(s.ask(t, name, typ)); got != want {
		t.Errorf("%s %s: %s, want %s", name, dns.TypeToString[typ], got, want)
	}
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// freePort returns a TCP address of 127.0.0.1 that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// get fetches a page; the code is 0 if nobody answers.
func get(t *testing.T, url string) (code int, body string) {
	t.Helper()
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// stacks returns the stacks of all goroutines.
func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// nothingLeft checks that no goroutine runs code of ours, other than this test's.
func nothingLeft(t *testing.T) {
	t.Helper()
	for g := range strings.SplitSeq(stacks(), "\n\n") {
		if strings.Contains(g, "ropewalk-net/ropewalk/") && !strings.Contains(g, "ropewalk/test/server.") {
			t.Errorf("left behind: %s", g)
		}
	}
}
