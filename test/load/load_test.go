// Package load runs bin/coredns under load while the cluster changes, and looks at what it keeps in memory.
package load

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ropewalk-net/ropewalk/test/coredns"
	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

var duration = flag.Duration("duration", 10*time.Second, "how long TestChurn loads the server")

const (
	addr   = "127.0.0.1:1053"
	steady = 900 // services that stay as they are
	churn  = 100 // services that change all the time
)

// TestChurn loads the server with dnsperf while services change a hundred times a second. No query may be lost. A checker
// asks for what changes: each answer must be one of the states that the service has been in.
func TestChurn(t *testing.T) {
	netns.NeedCommand(t, "dnsperf")
	coredns.Binary(t)
	if !netns.Enter(t) {
		return
	}
	api := standin.New(t)
	var queries strings.Builder
	api.Apply(namespace("a"))
	for i := range steady {
		api.Apply(service(i, 0))
		fmt.Fprintf(&queries, "svc-%d.a.svc.cluster.local A\n", i)
	}
	for i := range churn {
		api.Apply(headless(i), slice(i, 0))
		api.Apply(service(steady+i, 0))
		fmt.Fprintf(&queries, "svc-%d.a.svc.cluster.local A\nhead-%d.a.svc.cluster.local A\n", steady+i, i)
	}
	serve(t, api, "ropewalk")
	input := filepath.Join(t.TempDir(), "queries")
	if err := os.WriteFile(input, []byte(queries.String()), 0o644); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), *duration)
	defer cancel()
	var wg sync.WaitGroup
	changes := 0
	wg.Go(func() {
		for tick := time.NewTicker(10 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			i, state := rand.IntN(churn), rand.IntN(states)
			if changes%2 == 0 {
				api.Apply(service(steady+i, state))
			} else {
				api.Apply(slice(i, state))
			}
			changes++
		}
	})
	checked := 0
	wg.Go(func() { checked = check(t, ctx) })
	out, err := exec.Command("dnsperf", "-s", "127.0.0.1", "-p", "1053", "-d", input, "-c", "4",
		"-l", strconv.Itoa(int(duration.Seconds())), "-q", "50").CombinedOutput()
	wg.Wait()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%d changes, %d answers checked\n%s", changes, checked, out)
	figure := func(pattern string) string {
		m := regexp.MustCompile(pattern).FindSubmatch(out)
		if m == nil {
			t.Fatalf("dnsperf does not say %s:\n%s", pattern, out)
		}
		return string(m[1])
	}
	if lost := figure(`Queries lost: +(\d+)`); lost != "0" {
		t.Errorf("%s queries lost", lost)
	}
	if codes := figure(`Response codes: +(.*)`); !strings.HasPrefix(codes, "NOERROR") || strings.Contains(codes, ",") {
		t.Errorf("codes: %s", codes)
	}
	if sent, _ := strconv.Atoi(figure(`Queries sent: +(\d+)`)); sent < 1000 {
		t.Errorf("only %d queries sent", sent)
	}
	if least := int(duration.Seconds() * 50); changes < least || checked < least {
		t.Errorf("%d changes, %d answers checked", changes, checked)
	}
}

// states is how many states a changing service has.
const states = 4

// check asks for changing services until ctx ends and returns how often.
func check(t *testing.T, ctx context.Context) (n int) {
	c := &dns.Client{Timeout: 5 * time.Second}
	for ; ctx.Err() == nil; n++ {
		i := rand.IntN(churn)
		for name, state := range map[string]func(int) []string{
			fmt.Sprintf("svc-%d.a.svc.cluster.local.", steady+i): func(s int) []string { return []string{clusterIP(steady+i, s)} },
			fmt.Sprintf("head-%d.a.svc.cluster.local.", i):       func(s int) []string { return endpoints(i, s) },
		} {
			m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), addr)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return n
			}
			var got []string
			for _, rr := range m.Answer {
				got = append(got, rr.(*dns.A).A.String())
			}
			slices.Sort(got)
			ok := false
			for s := range states {
				want := state(s)
				slices.Sort(want)
				ok = ok || slices.Equal(got, want)
			}
			if !ok {
				t.Errorf("%s: %v was never true", name, got)
				return n
			}
		}
	}
	return n
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func clusterIP(i, state int) string { return fmt.Sprintf("10.9%d.%d.%d", 6+state, i/250, 1+i%250) }

func service(i, state int) *corev1.Service {
	ip := clusterIP(i, state)
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: fmt.Sprintf("svc-%d", i), Annotations: map[string]string{
			"example.com/text": strings.Repeat("objects are larger than what is served of them ", 10)}},
		Spec: corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
}

func headless(i int) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: fmt.Sprintf("head-%d", i)},
		Spec:       corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}},
	}
}

// endpoints are those of a headless service in a state: one to four, none of them in two states.
func endpoints(i, state int) (ips []string) {
	for j := range state + 1 {
		ips = append(ips, fmt.Sprintf("10.1%d.%d.%d", state, i, j+1))
	}
	return ips
}

func slice(i, state int) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: fmt.Sprintf("head-%d-x", i),
			Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("head-%d", i)}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, ip := range endpoints(i, state) {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}})
	}
	return s
}

// serve starts the binary with a plugin that serves what api has.
func serve(t *testing.T, api *standin.Server, plugin string) {
	t.Helper()
	dir := t.TempDir()
	corefile := filepath.Join(dir, "Corefile")
	text := fmt.Sprintf("cluster.local:1053 {\n bind 127.0.0.1\n errors\n pprof 127.0.0.1:1057\n ready 127.0.0.1:1055\n %s cluster.local {\n kubeconfig %s\n }\n}\n",
		plugin, api.Kubeconfig(dir))
	if err := os.WriteFile(corefile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	coredns.Start(t, corefile, "GODEBUG=memprofilerate=4096")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if r, err := http.Get("http://127.0.0.1:1055/ready"); err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("not ready")
		}
	}
}

// TestNoAPIObjects looks at the heap of a server that serves 10,000 services: what decoders of API objects and client-go's
// caches have allocated must be gone. CoreDNS's kubernetes plugin, which keeps copies of the objects' fields, shows that the test
// sees what it looks for.
func TestNoAPIObjects(t *testing.T) {
	coredns.Binary(t)
	if !netns.Enter(t) {
		return
	}
	api := standin.New(t)
	api.Apply(namespace("a"))
	for i := range 10_000 {
		api.Apply(service(i, 0))
		if i < 2_000 {
			api.Apply(headless(i), slice(i, i%states))
		}
	}
	kept := map[string]float64{}
	for _, plugin := range []string{"kubernetes", "ropewalk"} {
		t.Run(plugin, func(t *testing.T) {
			serve(t, api, plugin)
			kept[plugin] = heapOf(t, `\.Unmarshal$|DeepCopy|encoding/json|client-go/tools/cache`)
		})
	}
	t.Logf("MiB in use that decoders and caches of API objects allocated: %v", kept)
	if kept["kubernetes"] < 4 {
		t.Errorf("the test does not see the %.2f MiB of the kubernetes plugin", kept["kubernetes"])
	}
	if kept["ropewalk"] > 0.2 {
		t.Errorf("%.2f MiB that decoders and caches of API objects allocated are still in use", kept["ropewalk"])
	}
}

// heapOf returns how many MiB are in use that functions matching a pattern, or what they called, allocated.
func heapOf(t *testing.T, pattern string) (mib float64) {
	t.Helper()
	cmd := exec.Command("go", "tool", "pprof", "-top", "-cum", "-unit=mb", "-sample_index=inuse_space", "-nodefraction=0", "-focus="+pattern,
		"-ignore=runtime.doInit", "http://127.0.0.1:1057/debug/pprof/heap?gc=2")
	cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", firstLines(string(out), 25))
	m := regexp.MustCompile(`accounting for ([\d.]+)MB`).FindSubmatch(out)
	if m == nil {
		if regexp.MustCompile(`no samples|Focus expression matched no samples`).Match(out) {
			return 0
		}
		t.Fatalf("pprof says:\n%s", out)
	}
	mib, err = strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return mib
}

func firstLines(s string, n int) string {
	lines := strings.SplitN(s, "\n", n+1)
	return strings.Join(lines[:min(n, len(lines))], "\n")
}
