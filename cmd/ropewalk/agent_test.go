package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cmd/ropewalk/parts"
)

const agentHead = "apiVersion: ropewalk.dev/v1alpha1\nkind: AgentConfiguration\n"

// TestAgentConfigRefuses holds that what is wrong in a configuration is told with its line, and with what would be right.
func TestAgentConfigRefuses(t *testing.T) {
	for in, says := range map[string]string{
		"":                         "it is empty",
		"hosts: [":                 "line 1",
		"- a":                      ":1: it is no mapping; it begins with apiVersion: ropewalk.dev/v1alpha1",
		"kind: AgentConfiguration": `apiVersion is ""; this program reads ropewalk.dev/v1alpha1`,
		"apiVersion: ropewalk.dev/v2\nkind: AgentConfiguration": `"ropewalk.dev/v2"; this program reads ropewalk.dev/v1alpha1`,
		"apiVersion: ropewalk.dev/v1alpha1\nkind: Agent":        `kind is "Agent", not AgentConfiguration`,
		agentHead + "---\na: b":                                 "second document",
		agentHead + "hots: {}":                                  `:3: there is no "hots"; there are hosts, proxy, routes, cni`,
		agentHead + "hosts: no":                                 ":3: hosts is a mapping, as in enabled: false",
		agentHead + "hosts:\n  enabled: maybe":                  `:4: hosts.enabled: "maybe"; it is true or false`,
		agentHead + "hosts:\n  enabled: \"true\"":               `:4: hosts.enabled: "true"; it is true or false`,
		agentHead + "hosts:\n  sizes: 1":                        `:4: hosts has no "sizes"; it has enabled, cluster-domain, cluster-namespaces`,
		agentHead + "hosts:\n  node-name: x":                    `:4: hosts has no "node-name"`,
		agentHead + "hosts:\n  max-size: many":                  ":4: hosts.max-size: strconv.ParseInt",
		agentHead + "hosts:\n  max-size: [1]":                   ":4: hosts.max-size: it is one value; it is: bytes that no hosts file grows beyond",
		agentHead + "hosts:\n  max-size:":                       ":4: hosts.max-size: it has no value",
		agentHead + "hosts:\n  max-size: 100":                   ": hosts: a limit of 100 bytes is too small",
		agentHead + "hosts:\n  kubelet-dir: kubelet":            `: hosts: "kubelet": want an absolute path`,
		agentHead + "proxy:\n  pod-interface: [a/b]":            ": proxy: ",
		agentHead + "proxy:\n  cluster-cidr: 10.0.0.0/8":        ":4: proxy.cluster-cidr: it is a list, as in [a, b]",
		agentHead + "proxy:\n  cluster-cidr: [[a]]":             ":4: proxy.cluster-cidr: a list has values",
		agentHead + "proxy:\n\n  cluster-cidr: [10.0.0.1/8]":    `:5: proxy: --cluster-cidr: 10.0.0.1/8 has bits behind its length; is 10.0.0.0/8 meant?`,
		agentHead + "routes:\n  mtu: 1400\n  overlay: ipip":     `:5: routes: --overlay: "ipip" is none`,
		agentHead + "routes:\n  vxlan-port: 70000":              ":4: routes: --vxlan-port 70000",
		agentHead + "routes: {}\nroutes: {}":                    ":4: routes is there a second time; the first is in line 3",
		agentHead + "hosts: &a {}\nroutes: *a":                  ":4: aliases are not followed",
		agentHead + "hosts: {enabled: false}\nproxy: {enabled: false}\nroutes: {enabled: false}\ncni: {enabled: false}": "all parts are turned off",
	} {
		c := agentConfig{file: filepath.Join(t.TempDir(), "agent.yaml"), node: "n"}
		if err := os.WriteFile(c.file, []byte(in), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := c.parts(); err == nil || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), c.file) {
			t.Errorf("%q: %v; want %q", in, err, says)
		}
	}
}

// TestAgentConfig holds that what --print-config prints is read as the same, and that a part's configuration is another only if it is.
func TestAgentConfig(t *testing.T) {
	c := agentConfig{node: "n"}
	f, _, err := c.read()
	if err != nil {
		t.Fatal(err)
	}
	defaults := f.text()
	c.file = filepath.Join(t.TempDir(), "agent.yaml")
	put := func(text string) (configs []string) {
		t.Helper()
		if err := os.WriteFile(c.file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		f, _, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		if text == defaults {
			if d := cmp.Diff(text, f.text()); d != "" {
				t.Error(d)
			}
		}
		all, err := c.parts()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range all {
			configs = append(configs, p.Name+"\n"+p.Config)
		}
		return configs
	}
	whole, none := put(defaults), put(agentHead)
	if d := cmp.Diff(whole, none); d != "" || len(whole) != 4 {
		t.Errorf("%d parts: %s", len(whole), d)
	}
	other := put(agentHead + "hosts: {enabled: false}\nproxy:\n  cluster-cidr: [10.0.0.0/8, 'fd00::/8']\n  min-sync-period: 1s\nroutes:\n")
	if len(other) != 3 || other[0] == whole[1] || other[1] != whole[2] || other[2] != whole[3] || !strings.Contains(other[0], "cluster-cidr: [10.0.0.0/8, 'fd00::/8']") {
		t.Errorf("%q", other)
	}
}

// TestAgentDoc holds that the configurations in the document are right.
func TestAgentDoc(t *testing.T) {
	text, err := os.ReadFile("../../docs/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, block := range strings.Split(string(text), "```yaml\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		c := agentConfig{file: filepath.Join(t.TempDir(), "agent.yaml"), node: "n"}
		if err := os.WriteFile(c.file, []byte(block), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := c.parts(); err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
		n++
	}
	if n == 0 {
		t.Error("there is none")
	}
}

// broken is a metric that cannot be had.
type broken struct{}

func (broken) Describe(chan<- *prometheus.Desc) {}

func (broken) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(prometheus.NewDesc("broken", "Nothing.", nil, nil), errors.New("it is broken"))
}

// TestBrokenMetric holds that a part of whose metrics one cannot be had does not hide the others, nor what the agent is doing.
func TestBrokenMetric(t *testing.T) {
	services := prometheus.NewGauge(prometheus.GaugeOpts{Name: "ropewalk_proxy_services", Help: "Services."})
	services.Set(7)
	part := parts.Part{Name: "proxy", Start: func(_ *slog.Logger, r prometheus.Registerer) (parts.Running, error) {
		r.MustRegister(services, broken{})
		return parts.Running{Ready: func() error { return nil }, Run: func(ctx context.Context) error { <-ctx.Done(); return nil }}, nil
	}}
	a := &agent{log: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry()}
	s := &parts.Supervisor{Log: a.log}
	a.gatherers = append(a.gatherers, s)
	a.handle("GET /status", a.status("n", s, noSource{}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	configs := make(chan []parts.Part)
	a.also(func(ctx context.Context) error { return s.Run(ctx, configs) })
	a.also(func(ctx context.Context) error { return a.serve(ctx, l, s.Ready) })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- a.run(ctx, nil) }()
	configs <- []parts.Part{part}
	for begun := time.Now(); s.Ready() != nil && time.Since(begun) < 10*time.Second; {
		time.Sleep(time.Millisecond)
	}
	for path, want := range map[string]string{"/metrics": "ropewalk_proxy_services 7", "/status": `"services":7`} {
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(b), want) {
			t.Errorf("%s: %s %v\n%s", path, resp.Status, err, b)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestHangs holds that neither what runs for a part nor a process waits for good for something that does not end: not when another fails, and not when
// all are to end.
func TestHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		hangs := func(context.Context) error { <-release; return nil }
		fails := func(context.Context) error { return errors.New("the disk is full") }
		if err := together(hangs, fails)(t.Context()); !errors.Is(err, parts.ErrStuck) || !strings.Contains(err.Error(), "the disk is full") {
			t.Error(err)
		}
		var log strings.Builder
		a := &agent{log: slog.New(slog.NewTextHandler(&log, nil))}
		a.also(hangs)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.run(ctx, nil); err == nil || !strings.Contains(log.String(), "TestHangs") {
			t.Errorf("%v, %s", err, &log)
		}
	})
}

// noSource is one of which nothing is read.
type noSource struct{ cluster.Source }

func (noSource) Age() time.Duration { return 0 }

// TestStatusExit holds what "ropewalk status" ends with.
func TestStatusExit(t *testing.T) {
	for says, want := range map[string]int{
		`{"parts":[{"name":"a","ready":true}]}`: exitDone, `{"parts":[{"name":"a","ready":true},{"name":"b"}]}`: exitDifferent,
		`{"parts":null}`: exitDifferent, "nonsense": exitError, // of an agent that has only just begun
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, says) }))
		var out strings.Builder
		if got := run(t.Context(), []string{"status", "--metrics", strings.TrimPrefix(s.URL, "http://")}, nil, &out, &out); got != want {
			t.Errorf("%s: %d, want %d\n%s", says, got, want, &out)
		}
		s.Close()
	}
}

// TestPrintConfigRefuses holds that a file that an agent would not start with is not printed as one that holds.
func TestPrintConfigRefuses(t *testing.T) {
	for _, wrong := range []string{"proxy: {cluster-cidr: [foo]}", "routes: {overlay: vxlam}", "hosts: {max-size: 1}"} {
		f := filepath.Join(t.TempDir(), "agent.yaml")
		if err := os.WriteFile(f, []byte(agentHead+wrong+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		var out, errs strings.Builder
		if code := run(t.Context(), []string{"agent", "--print-config", "--config", f}, nil, &out, &errs); code != exitError || !strings.Contains(errs.String(), "agent.yaml:") || out.Len() > 0 {
			t.Errorf("%s: %d %s", wrong, code, &errs)
		}
	}
}
