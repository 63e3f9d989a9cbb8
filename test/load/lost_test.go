package load

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/test/coredns"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// wild is the head of a server block that serves everything on all addresses, as most clusters have it.
const wild = ".:1053"

// corefileFor is one that a reload or a replacement leads to: it serves the same names at the same address.
func corefileFor(manifests string, ports int, fastpath, more string) string {
	return fmt.Sprintf(`%s {
    health 127.0.0.1:%d {
        lameduck 1s
    }
    ready 127.0.0.1:%d
    prometheus 127.0.0.1:%d
    errors
    %s
    ropewalk cluster.local in-addr.arpa ip6.arpa {
        manifests %s
        fastpath %s
    }
    loadbalance
}
`, wild, ports, ports+1, ports+2, more, manifests, fastpath)
}

// names writes a small cluster and queries for it, and returns where.
func names(t *testing.T) (manifests, queries string) {
	t.Helper()
	dir := t.TempDir()
	var objs, qs strings.Builder
	objs.WriteString("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n")
	for i := range 200 {
		fmt.Fprintf(&objs, "---\napiVersion: v1\nkind: Service\nmetadata: {name: svc-%d, namespace: a}\nspec: {clusterIP: 10.97.0.%d}\n", i, i+1)
		fmt.Fprintf(&qs, "svc-%d.a.svc.cluster.local A\nnone-%d.a.svc.cluster.local A\nsvc-%d.a.svc.cluster.local SRV\n", i, i, i)
	}
	manifests, queries = filepath.Join(dir, "cluster"), filepath.Join(dir, "queries")
	for path, content := range map[string]string{filepath.Join(manifests, "a.yaml"): objs.String(), queries: qs.String()} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return manifests, queries
}

// answerTime is after how long dnsperf takes a query for lost.
const answerTime = 5 * time.Second

// outstanding is how many queries dnsperf has on their way at a time. When it is interrupted it gives them up.
const outstanding = 100

// perf is a run of dnsperf.
type perf struct {
	sent, completed, lost int
	perSecond             float64
	codes                 string
}

// dnsperf asks 127.0.0.1 for as long as stop says, at most rate times a second (0: as often as it can).
func dnsperf(t *testing.T, queries string, rate int, seconds int, stop <-chan struct{}) perf {
	t.Helper()
	args := []string{"-s", "127.0.0.1", "-p", "1053", "-d", queries, "-c", "8", "-q", strconv.Itoa(outstanding), "-l", strconv.Itoa(seconds),
		"-t", strconv.Itoa(int(answerTime.Seconds()))}
	if rate > 0 {
		args = append(args, "-Q", strconv.Itoa(rate))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	cmd := exec.CommandContext(ctx, "dnsperf", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) } // it stops asking, waits for what is missing, and reports
	wg.Go(func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	})
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("dnsperf: %v\n%s", err, out)
	}
	figure := func(pattern string) string {
		m := regexp.MustCompile(pattern).FindSubmatch(out)
		if m == nil {
			t.Fatalf("dnsperf does not say %s:\n%s", pattern, out)
		}
		return string(m[1])
	}
	var p perf
	p.sent, _ = strconv.Atoi(figure(`Queries sent: +(\d+)`))
	p.completed, _ = strconv.Atoi(figure(`Queries completed: +(\d+)`))
	p.lost, _ = strconv.Atoi(figure(`Queries lost: +(\d+)`))
	p.perSecond, _ = strconv.ParseFloat(figure(`Queries per second: +([\d.]+)`), 64)
	p.codes = figure(`Response codes: +(.*)`)
	return p
}

// half is half of the rate that the server reaches.
func half(t *testing.T, queries string) int {
	t.Helper()
	return int(dnsperf(t, queries, 0, 2, nil).perSecond / 2)
}

// nothingLost fails the test if a query was lost, or answered wrongly.
func (p perf) nothingLost(t *testing.T) {
	t.Helper()
	t.Logf("%d queries, %.0f a second, %d lost: %s", p.sent, p.perSecond, p.lost, p.codes)
	if p.lost != 0 || p.sent-p.completed > outstanding {
		t.Errorf("%d of %d queries lost, %d completed", p.lost, p.sent, p.completed)
	}
	if strings.Contains(p.codes, "SERVFAIL") || strings.Contains(p.codes, "REFUSED") {
		t.Errorf("codes: %s", p.codes)
	}
	if p.sent < 1000 {
		t.Errorf("only %d queries", p.sent)
	}
}

// load runs dnsperf at half of the top rate while f goes on.
func load(t *testing.T, queries string, f func()) perf {
	t.Helper()
	rate := half(t, queries)
	stop := make(chan struct{})
	var p perf
	var wg sync.WaitGroup
	wg.Go(func() { p = dnsperf(t, queries, rate, 60, stop) })
	f()
	time.Sleep(answerTime + time.Second) // or else the last ones could be lost without being counted
	close(stop)
	wg.Wait()
	return p
}

// TestReload changes the Corefile ten times and reloads it under load: ways to turn the fast path on, off and into another
// number of sockets, and plugins that come and go.
func TestReload(t *testing.T) {
	netns.NeedCommand(t, "dnsperf")
	coredns.Binary(t)
	if !netns.Enter(t) {
		return
	}
	manifests, queries := names(t)
	file := filepath.Join(t.TempDir(), "Corefile")
	write := func(fastpath, more string) {
		if err := os.WriteFile(file, []byte(corefileFor(manifests, 8001, fastpath, more)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("on", "")
	s := coredns.Start(t, file)
	ready(t, 8002)
	p := load(t, queries, func() {
		for i, c := range []struct{ fastpath, more string }{
			{"on", "cache 5"}, {"3", ""}, {"1", ""}, {"off", ""}, {"on", "log . {\n class error\n}"},
			{"on", ""}, {"2", "nsid"}, {"off", "cache 5"}, {"2", ""}, {"2", "bufsize 1232"},
		} {
			write(c.fastpath, c.more)
			if err := s.Cmd.Process.Signal(syscall.SIGUSR1); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the reload is complete", func() bool { return strings.Count(s.Log(), "Reloading complete") == i+1 })
		}
	})
	p.nothingLost(t)
}

// TestReplace puts a new process in the place of the one that serves, twice, under load, with the fast path and without.
func TestReplace(t *testing.T) {
	netns.NeedCommand(t, "dnsperf")
	coredns.Binary(t)
	if !netns.Enter(t) {
		return
	}
	manifests, queries := names(t)
	for _, fastpath := range []string{"on", "off"} {
		t.Run("fastpath "+fastpath, func(t *testing.T) {
			launch := func(ports int) *coredns.Server {
				file := filepath.Join(t.TempDir(), "Corefile")
				if err := os.WriteFile(file, []byte(corefileFor(manifests, ports, fastpath, "")), 0o644); err != nil {
					t.Fatal(err)
				}
				s := coredns.Start(t, file)
				ready(t, ports+1)
				return s
			}
			first := launch(8001)
			p := load(t, queries, func() {
				second := launch(8011)
				end(t, first)
				launch(8001)
				end(t, second)
			})
			p.nothingLost(t)
		})
	}
}

// ready waits for a server's ready plugin.
func ready(t *testing.T, port int) {
	t.Helper()
	eventually(t, "the server is ready", func() bool { return status(fmt.Sprintf("http://127.0.0.1:%d/ready", port)) == 200 })
}

// end sends SIGTERM, as Kubernetes does, and waits for the end of the process.
func end(t *testing.T, s *coredns.Server) {
	t.Helper()
	if err := s.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.Cmd.Wait(); err != nil {
		t.Errorf("the server's end: %v", err)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so after half a minute: %s", what)
		}
	}
}

// status is the code that url is answered with; 0 if it is not.
func status(url string) int {
	r, err := http.Get(url)
	if err != nil {
		return 0
	}
	r.Body.Close()
	return r.StatusCode
}
