package health

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	web, mail = cluster.Key{Namespace: "shop", Name: "web"}, cluster.Key{Namespace: "office", Name: "mail"}
	loopback  = netip.MustParseAddr("127.0.0.1")
)

// lines is a log.
type lines struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(b)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.String(), what)
}

// run starts servers that end with the test.
func run(t *testing.T, healthy func() bool, addrs ...netip.Addr) (*Servers, *lines) {
	t.Helper()
	log := &lines{}
	s := NewServers(slog.New(slog.NewTextHandler(log, nil)), healthy)
	s.SetAddresses(addrs)
	done := make(chan struct{})
	go func() { defer close(done); s.Run(t.Context()) }()
	t.Cleanup(func() { <-done })
	return s, log
}

// get asks with a connection of its own. It returns nil if nobody listens.
func get(t *testing.T, url string) *http.Response {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return nil
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		t.Error(err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp
}

func text(resp *http.Response) string {
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

// await asks until what is answered contains want; "" is for nobody listening.
func await(t *testing.T, url, want string) *http.Response {
	t.Helper()
	var last string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		resp := get(t, url)
		if resp == nil && want == "" {
			return nil
		}
		if resp == nil {
			continue
		}
		if last = text(resp); want != "" && strings.Contains(last, want) {
			return resp
		}
	}
	t.Fatalf("%s: last answer %q, want %q", url, last, want)
	return nil
}

func TestServiceAnswers(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	var healthy atomic.Bool
	s, _ := run(t, healthy.Load)
	for _, tt := range []struct {
		endpoints int
		healthy   bool
		status    int
	}{{0, true, 503}, {1, true, 200}, {12, true, 200}, {12, false, 503}, {0, false, 503}} {
		healthy.Store(tt.healthy)
		s.Update(map[cluster.Key]Check{web: {31000, tt.endpoints}}, nil)
		want := fmt.Sprintf("{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n"+
			"\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}", tt.endpoints, tt.healthy)
		for _, url := range []string{"http://127.0.0.1:31000/", "http://[::1]:31000/any/path"} {
			await(t, url, "shop")
			resp := get(t, url)
			if got := text(resp); resp.StatusCode != tt.status || got != want {
				t.Errorf("%+v: %d %q, want %q", tt, resp.StatusCode, got, want)
			}
			resp.Header.Del("Date")
			if got := fmt.Sprint(resp.Header); got != fmt.Sprintf("map[Content-Length:[%d] Content-Type:[application/json]"+
				" X-Content-Type-Options:[nosniff] X-Load-Balancing-Endpoint-Weight:[%d]]", len(want), tt.endpoints) {
				t.Errorf("%+v: header %s", tt, got)
			}
		}
	}
}

// TestPorts holds that a port belongs to who came first, and that no change disturbs other ports.
func TestPorts(t *testing.T) {
	if !netns.Enter(t, "192.0.2.1/32", "192.0.2.2/32") {
		return
	}
	s, log := run(t, nil, loopback)
	s.Update(map[cluster.Key]Check{web: {31000, 1}}, nil)
	await(t, "http://127.0.0.1:31000", `"web"`)
	kept := keep(t, "127.0.0.1:31000")
	s.Update(map[cluster.Key]Check{mail: {31000, 2}}, nil)
	if log.count("another service has the health check port") != 1 {
		t.Error("nobody is told that two services have one port")
	}
	s.Update(map[cluster.Key]Check{mail: {31000, 3}}, nil)
	await(t, "http://127.0.0.1:31000", `"web"`)
	kept.ask(t, `"web"`)

	s.Update(map[cluster.Key]Check{web: {31001, 1}}, nil) // mail has waited for the port
	await(t, "http://127.0.0.1:31001", `"web"`)
	await(t, "http://127.0.0.1:31000", `"mail"`)
	kept.ask(t, `"mail"`)
	s.SetAddresses([]netip.Addr{loopback, netip.MustParseAddr("192.0.2.1")})
	await(t, "http://192.0.2.1:31000", `"mail"`)
	await(t, "http://192.0.2.1:31001", `"web"`)
	kept.ask(t, `"mail"`)
	await(t, "http://192.0.2.2:31000", "")

	s.SetAddresses([]netip.Addr{loopback})
	await(t, "http://192.0.2.1:31000", "")
	s.Update(nil, []cluster.Key{web})
	await(t, "http://127.0.0.1:31001", "")
	kept.ask(t, `"mail"`)
	s.Update(map[cluster.Key]Check{mail: {}}, nil)
	await(t, "http://127.0.0.1:31000", "")
	if len(s.ports) != 0 || len(s.checks) != 0 || s.Failures() != 0 {
		t.Errorf("left: %v %v, %d failures", s.ports, s.checks, s.Failures())
	}
}

// keepAlive is a connection that a load balancer keeps.
type keepAlive struct {
	net.Conn
	r *bufio.Reader
}

func keep(t *testing.T, addr string) keepAlive {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return keepAlive{c, bufio.NewReader(c)}
}

func (k keepAlive) ask(t *testing.T, want string) {
	t.Helper()
	if _, err := io.WriteString(k, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(k.r, nil)
	if err != nil {
		t.Fatal("a connection was dropped: ", err)
	}
	defer resp.Body.Close()
	if got := text(resp); !strings.Contains(got, want) {
		t.Errorf("answer %q, want %q", got, want)
	}
}

// TestPortTaken holds that a port that somebody else has is tried again, keeps nobody waiting, and is logged once.
func TestPortTaken(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	taken, err := net.Listen("tcp", "127.0.0.1:31000")
	if err != nil {
		t.Fatal(err)
	}
	s, log := run(t, nil, loopback)
	s.Update(map[cluster.Key]Check{web: {31000, 1}, mail: {31001, 1}}, nil)
	await(t, "http://127.0.0.1:31001", `"mail"`)
	for deadline := time.Now().Add(10 * time.Second); s.Failures() < 2 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	if s.Failures() < 2 || log.count("cannot be answered") != 1 || log.count("shop/web") != 1 {
		t.Errorf("%d failures, log:\n%s", s.Failures(), log)
	}
	taken.Close()
	await(t, "http://127.0.0.1:31000", `"web"`)
}

// TestCrowd holds that idle connections cost a bounded number of goroutines, and keep nobody out.
func TestCrowd(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	s, _ := run(t, nil, loopback)
	s.Update(map[cluster.Key]Check{web: {31000, 1}}, nil)
	await(t, "http://127.0.0.1:31000", `"web"`)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	goroutines, most := runtime.NumGoroutine(), 0
	conns := make([]net.Conn, 0, 10000)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range cap(conns) {
		c, err := net.Dial("tcp", "127.0.0.1:31000")
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		if i%2 == 0 { // half a request, on every other
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nX: ")
		} else if i%5 == 0 { // or a bad one
			_, _ = io.WriteString(c, "\r\n\r\n")
		}
		if most = max(most, runtime.NumGoroutine()); i%1000 == 999 {
			if resp := get(t, "http://127.0.0.1:31000"); resp == nil || resp.StatusCode != 200 {
				t.Errorf("no answer with %d idle connections", i+1)
			}
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d goroutines, at most %d; heap %d and %d KiB", goroutines, most, before.HeapAlloc>>10, after.HeapAlloc>>10)
	if most > goroutines+2*(maxConns+maxEnding) { // some are at their very end, some are the test's own
		t.Errorf("%d goroutines, and then up to %d", goroutines, most)
	}
	_ = conns[0].SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := conns[0].Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the oldest connection is still there: %v", err)
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

func TestNode(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name            string
		state           State
		healthz, livez  int
		healthy         bool
		updatedIsRecent bool
	}{
		{"nothing waits", State{Updated: now.Add(-time.Hour)}, 200, 200, true, true},
		{"a change has just come", State{Updated: now.Add(-time.Hour), Pending: now}, 200, 200, true, true},
		{"a change waits for too long", State{Updated: now.Add(-time.Hour), Pending: now.Add(-2 * time.Minute)}, 503, 503, false, false},
		{"before the first", State{}, 200, 200, true, true},
		{"the first waits for too long", State{Pending: now.Add(-2 * time.Minute)}, 503, 503, false, false},
		{"the node is leaving", State{Updated: now.Add(-time.Hour), Leaving: true}, 503, 200, true, false},
	} {
		n := Node{State: func() State { return tt.state }, Late: time.Minute}
		if n.Healthy() != tt.healthy {
			t.Errorf("%s: Healthy is %v", tt.name, !tt.healthy)
		}
		server := httptest.NewServer(n.Handler())
		for path, status := range map[string]int{"/healthz": tt.healthz, "/livez": tt.livez} {
			resp := get(t, server.URL+path)
			if h := resp.Header; resp.StatusCode != status || h.Get("Content-Type") != "application/json" || h.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: %s: %d %v, want %d", tt.name, path, resp.StatusCode, resp.Header, status)
			}
			var body struct {
				LastUpdated, CurrentTime *time.Time
				NodeEligible             *bool
				Healthy                  *bool
			}
			d := json.NewDecoder(resp.Body)
			d.DisallowUnknownFields()
			if err := d.Decode(&body); err != nil || body.LastUpdated == nil || body.CurrentTime == nil || body.Healthy == nil {
				t.Errorf("%s: %s: %+v, %v", tt.name, path, body, err)
				continue
			}
			if *body.Healthy != tt.healthy || (body.NodeEligible != nil) != (path == "/healthz") ||
				body.NodeEligible != nil && *body.NodeEligible == tt.state.Leaving {
				t.Errorf("%s: %s: healthy %v, eligible %v", tt.name, path, *body.Healthy, body.NodeEligible)
			}
			if recent := !body.LastUpdated.Before(now); recent != (status == 200) || !recent && !body.LastUpdated.Equal(tt.state.Updated) {
				t.Errorf("%s: %s: last updated %v", tt.name, path, body.LastUpdated)
			}
			if body.CurrentTime.Before(now) {
				t.Errorf("%s: %s: current time %v", tt.name, path, body.CurrentTime)
			}
		}
		server.Close()
	}
}
