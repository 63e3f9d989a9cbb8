package abuse

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/test/coredns"
)

const (
	addr    = "127.0.0.1:1053"
	metrics = "http://127.0.0.1:1056/metrics"

	services  = 200
	endpoints = 5000 // of the headless service big
)

func clusterIP(i int) string { return fmt.Sprintf("10.97.0.%d", i+1) }

// cluster writes a cluster with a very large headless service in it, and returns where.
func cluster(t *testing.T) (manifests string) {
	t.Helper()
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n")
	for i := range services {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: svc-%d, namespace: a}\nspec: {clusterIP: %s}\n", i, clusterIP(i))
	}
	b.WriteString("---\napiVersion: v1\nkind: Service\nmetadata: {name: big, namespace: a}\n" +
		"spec: {clusterIP: None, ports: [{name: http, port: 80}]}\n")
	const perSlice = 1000 // the most that a slice may have
	for i := range endpoints {
		if i%perSlice == 0 {
			fmt.Fprintf(&b, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n"+
				"metadata: {name: big-%d, namespace: a, labels: {kubernetes.io/service-name: big}}\n"+
				"ports: [{name: http, port: 80, protocol: TCP}]\nendpoints:\n", i/perSlice)
		}
		fmt.Fprintf(&b, "- addresses: [10.200.%d.%d]\n", i/250, 1+i%250)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// server is a coredns that is abused.
type server struct {
	*coredns.Server
	pid    int
	client *http.Client
	idle   state // before
}

// state is what a server takes.
type state struct {
	rss        float64 // MiB
	goroutines int
}

// start runs a server with more lines in its Corefile, and waits until it is ready.
func start(t *testing.T, manifests, fastpath, more string, env ...string) *server {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Corefile")
	text := fmt.Sprintf(`.:1053 {
    errors
    ready 127.0.0.1:1055
    prometheus 127.0.0.1:1056
    ropewalk cluster.local in-addr.arpa ip6.arpa {
        manifests %s
        fastpath %s
    }
    loadbalance
    %s
}
`, manifests, fastpath, more)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s := &server{Server: coredns.Start(t, file, env...), client: &http.Client{Timeout: 10 * time.Second}}
	s.pid = s.Cmd.Process.Pid
	eventually(t, "the server is ready", func() bool {
		r, err := s.client.Get("http://127.0.0.1:1055/ready")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	eventually(t, "the metrics are there", func() bool { _, err := s.metric("go_goroutines"); return err == nil })
	s.idle.goroutines = s.goroutines(t)
	// Forget the peak of the start (proc_pid_clear_refs(5)).
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.pid), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	s.idle.rss = s.peak(t)
	return s
}

// peak is the largest RSS since the start, in MiB.
func (s *server) peak(t *testing.T) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib / 1024
		}
	}
	t.Fatal("the server is gone")
	return 0
}

// metric sums the series of a metric up. The connection to the server is kept, so that it works when there are no
// descriptors left.
func (s *server) metric(name string) (float64, error) {
	r, err := s.client.Get(metrics)
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	sum, found := 0.0, false
	in := bufio.NewScanner(r.Body)
	for in.Scan() {
		line := in.Text()
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
			v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
			if err != nil {
				return 0, err
			}
			sum, found = sum+v, true
		}
	}
	if err := in.Err(); err != nil || !found {
		return 0, fmt.Errorf("no metric %s: %w", name, err)
	}
	return sum, nil
}

func (s *server) goroutines(t *testing.T) int {
	n, err := s.metric("go_goroutines")
	if err != nil {
		t.Error(err)
		return math.MaxInt
	}
	return int(n)
}

// watch returns the most goroutines that there were until ctx ends.
func (s *server) watch(ctx context.Context, wg *sync.WaitGroup, most *int) {
	wg.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			if n, err := s.metric("go_goroutines"); err == nil {
				*most = max(*most, int(n))
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so after half a minute: %s", what)
		}
	}
}
