// Package outage runs bin/coredns while its API server goes away and comes back, and while it starts without one.
package outage

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ropewalk-net/ropewalk/test/coredns"
	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

var away = flag.Duration("away", time.Second, "how long the API server is away in TestOutages, where it is away")

const (
	addr    = "127.0.0.1:1053"
	metrics = "http://127.0.0.1:9153/metrics"
	ready   = "http://127.0.0.1:8181/ready"
)

// kinds are those that the servers here watch.
var kinds = []string{"Namespace", "Service", "EndpointSlice"}

// serve starts coredns against an API server, with options of ropewalk.
func serve(t *testing.T, api *standin.Server, options ...string) *coredns.Server {
	t.Helper()
	dir := t.TempDir()
	corefile := filepath.Join(dir, "Corefile")
	text := fmt.Sprintf(".:1053 {\nbind 127.0.0.1\nready 127.0.0.1:8181\nprometheus 127.0.0.1:9153\n"+
		"ropewalk cluster.local in-addr.arpa {\nkubeconfig %s\n%s\n}\n}\n", api.Kubeconfig(dir), strings.Join(options, "\n"))
	if err := os.WriteFile(corefile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return coredns.Start(t, corefile)
}

// stop ends coredns with a signal.
func stop(t *testing.T, s *coredns.Server, signal os.Signal) {
	t.Helper()
	if err := s.Cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	s.Cmd.Wait()
}

// ask returns what a service's address is: "10.96.0.1", a code such as "NXDOMAIN", or "nothing" if nobody answers.
func ask(name string) string {
	c := &dns.Client{Timeout: 5 * time.Second}
	m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name+".shop.svc.cluster.local.", dns.TypeA), addr)
	if err != nil {
		return "nothing"
	}
	var ips []string
	for _, rr := range m.Answer {
		ips = append(ips, rr.(*dns.A).A.String())
	}
	if len(ips) == 0 {
		return dns.RcodeToString[m.Rcode]
	}
	slices.Sort(ips)
	return strings.Join(ips, " ")
}

func expect(t *testing.T, name, want string) {
	t.Helper()
	if got := ask(name); got != want {
		t.Errorf("%s: %s, want %s", name, got, want)
	}
}

// eventually waits until cond holds, and returns for how long.
func eventually(t *testing.T, what string, cond func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !cond() {
		if time.Since(start) > time.Minute {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(start)
}

// get fetches a page; the code is 0 if nobody answers.
func get(url string) (code int, body string) {
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return 0, err.Error()
	}
	return r.StatusCode, string(b)
}

// metric returns the value of a series of coredns's, -1 if there is none.
func metric(series string) float64 {
	_, body := get(metrics)
	for l := range strings.Lines(body) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(l), series+" "); ok {
			f, _ := strconv.ParseFloat(v, 64)
			return f
		}
	}
	return -1
}

func age() float64 { return metric(`coredns_ropewalk_sync_age_seconds{zone="cluster.local."}`) }

func namespace(name string) runtime.Object {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func service(name, ip string) runtime.Object {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
}

// endpoints are those of the headless service name.
func endpoints(name string, ips ...string) runtime.Object {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}})
	}
	return s
}

// TestOutages has the API server fail in every way that the stand-in knows. While it fails answers stay what they were,
// and the metric tells; when it is back, what has changed meanwhile is served, and soon. How soon is printed.
func TestOutages(t *testing.T) {
	coredns.Binary(t)
	if !netns.Enter(t) {
		return
	}
	pause := func() {
		// That the server is away for a while is what is tested; nothing waits for this.
		time.Sleep(*away)
	}
	refuse := func(code int) func(*standin.Server) {
		return func(api *standin.Server) {
			for _, k := range kinds {
				api.Refuse(k, code)
			}
			api.DropWatches()
		}
	}
	for _, c := range []struct {
		name string
		fail func(api *standin.Server)
		// change, if set, is what happens instead of the usual change.
		change func(api *standin.Server)
		mend   func(api *standin.Server)
		short  bool // over before anybody can tell
	}{
		{name: "restart", fail: func(api *standin.Server) { api.Down() }, mend: func(api *standin.Server) { api.Up() }, short: true},
		{name: "watches cut", fail: func(api *standin.Server) { api.DropWatches() }, mend: func(*standin.Server) {}, short: true},
		{name: "away", fail: func(api *standin.Server) { api.Down() }, mend: func(api *standin.Server) { api.Up() }},
		{name: "away, and history forgotten", fail: func(api *standin.Server) { api.Down() },
			mend: func(api *standin.Server) { api.ForgetHistory(); api.Up() }},
		{name: "away, and back with another history", fail: func(api *standin.Server) { api.Down() },
			change: func(api *standin.Server) {
				api.Reset(namespace("shop"), service("web", "10.96.0.2"), service("db", "None"), endpoints("db", "10.244.0.3"))
			},
			mend: func(api *standin.Server) { api.Up() }},
		{name: "away, and back without streamed listings", fail: func(api *standin.Server) { api.Down() },
			mend: func(api *standin.Server) { api.WatchList(false); api.ForgetHistory(); api.Up() }},
		{name: "503 of a gateway", fail: refuse(503), mend: refuse(0)},
		{name: "429", fail: refuse(429), mend: refuse(0)},
		{name: "500", fail: refuse(500), mend: refuse(0)},
		{name: "403", fail: refuse(403), mend: refuse(0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			api := standin.New(t)
			api.Apply(namespace("shop"), service("web", "10.96.0.1"), service("gone", "10.96.0.9"), service("db", "None"),
				endpoints("db", "10.244.0.1", "10.244.0.2"))
			s := serve(t, api)
			eventually(t, "in touch", func() bool { return ask("web") == "10.96.0.1" && age() == 0 })
			expect(t, "gone", "10.96.0.9")
			expect(t, "db", "10.244.0.1 10.244.0.2")

			var back atomic.Bool // whether new answers are in order
			halt := watchAnswers(t, &back)
			defer halt()
			before := len(api.Requests())
			if c.short {
				back.Store(true)
			}
			c.fail(api)
			if c.change == nil {
				c.change = func(api *standin.Server) {
					api.Apply(service("web", "10.96.0.2"), endpoints("db", "10.244.0.3"))
					api.Delete(service("gone", ""))
				}
			}
			c.change(api)
			if !c.short {
				eventually(t, "sync_age_seconds tells", func() bool { return age() > 0 })
				first := age()
				pause()
				if a := age(); a <= first {
					t.Errorf("sync_age_seconds went from %v to %v", first, a)
				}
				expect(t, "web", "10.96.0.1")
				back.Store(true)
			}
			during := len(api.Requests()) - before
			c.mend(api)
			took := eventually(t, "the changes are served", func() bool {
				return ask("web") == "10.96.0.2" && ask("gone") == "NXDOMAIN" && ask("db") == "10.244.0.3"
			})
			eventually(t, "in touch again", func() bool { return age() == 0 })
			t.Logf("served %v after the return; %d requests refused meanwhile", took.Round(time.Millisecond), during)
			if code, _ := get(ready); code != http.StatusOK {
				t.Errorf("ready says %d", code)
			}
			if c.short {
				return
			}
			// One line for what went wrong with each kind, and one that it is over.
			for _, k := range kinds {
				if n := lines(s.Log(), k, "cannot be read from the API server"); n < 1 || n > 4 {
					t.Errorf("%s: %d lines tell of the outage", k, n)
				}
				if n := lines(s.Log(), k, "in touch with the API server again"); n != 1 {
					t.Errorf("%s: %d lines tell of its end", k, n)
				}
			}
		})
	}
}

// lines counts those with both words in them.
func lines(log, a, b string) (n int) {
	for l := range strings.Lines(log) {
		if strings.Contains(l, a) && strings.Contains(l, b) {
			n++
		}
	}
	return n
}

// watchAnswers asks all the time until the function it returns is called. Every answer must be the old state, or, once
// back is set, the new one.
func watchAnswers(t *testing.T, back *atomic.Bool) (halt func()) {
	end := make(chan struct{})
	var wg sync.WaitGroup
	states := map[string][2]string{
		"web": {"10.96.0.1", "10.96.0.2"}, "gone": {"10.96.0.9", "NXDOMAIN"}, "db": {"10.244.0.1 10.244.0.2", "10.244.0.3"}, "none": {"NXDOMAIN", "NXDOMAIN"},
	}
	wg.Go(func() {
		for {
			for name, state := range states {
				select {
				case <-end:
					return
				default:
				}
				may := back.Load()
				if got := ask(name); got != state[0] && (!may && !back.Load() || got != state[1]) {
					t.Errorf("%s: %s, while the API server was away", name, got)
					return
				}
				time.Sleep(time.Millisecond) // leaves the processor to what is measured
			}
		}
	})
	return sync.OnceFunc(func() {
		close(end)
		wg.Wait()
	})
}
