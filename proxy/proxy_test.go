package proxy

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/proxy/frontends"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func service(name, ip string, change ...func(*cluster.Service)) *cluster.Service {
	s := &cluster.Service{
		Namespace: "shop", Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr(ip)}, Proxy: &cluster.ServiceProxy{},
		Ports: []cluster.ServicePort{{Name: "dns", Protocol: cluster.UDP, Port: 53}},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func slice(service string, addrs ...string) *cluster.Slice {
	s := &cluster.Slice{Namespace: "shop", Name: service, Service: service, Ports: []cluster.EndpointPort{{Name: "dns", Protocol: cluster.UDP, Port: 5353}}}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, cluster.Endpoint{Addr: netip.MustParseAddr(a), NodeName: "n1", Ready: true})
	}
	return s
}

var kinds = []cluster.Kind{cluster.KindService, cluster.KindSlice, cluster.KindNode, cluster.KindServiceCIDR}

// newProxy returns a Proxy for the node n1, which is at 127.0.0.1, that has heard of objects, and of all others that there are none.
func newProxy(t *testing.T, c Config, objects ...cluster.Object) *Proxy {
	t.Helper()
	c.NodeName = "n1"
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.tables.Close)
	put(p, &cluster.Node{Name: "n1", Net: &cluster.NodeNet{InternalIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}})
	put(p, objects...)
	for _, k := range kinds {
		p.Apply(cluster.Change{Op: cluster.Synced, Kind: k})
	}
	return p
}

func put(p *Proxy, objects ...cluster.Object) {
	for _, o := range objects {
		p.Apply(cluster.Upserted(o, time.Time{}))
	}
}

func sync1(t *testing.T, p *Proxy) {
	t.Helper()
	if known, err := p.sync(); !known || err != nil {
		t.Fatal(known, err)
	}
}

// occupy has somebody else own a table of our name, so that the kernel refuses whatever we do with it, until the function that it returns is
// called.
func occupy(t *testing.T) func() {
	t.Helper()
	cmd := exec.Command("nft", "-i")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	leave := sync.OnceFunc(func() {
		in.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(leave)
	fmt.Fprintln(in, "add table ip ropewalk { flags owner; }")
	eventually(t, "the table is not there", func() bool { return strings.Contains(netns.Run(t, "nft", "list", "tables", "ip"), "ropewalk") })
	return leave
}

func eventually(t *testing.T, failure string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(failure)
		}
	}
}

// pending returns how many services the metrics say are pending, and of how many changes they have the latency.
func pending(t *testing.T, r *prometheus.Registry) (services float64, changes uint64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		switch m := f.GetMetric(); f.GetName() {
		case "ropewalk_proxy_pending_services":
			services = m[0].GetGauge().GetValue()
		case "ropewalk_proxy_network_programming_seconds":
			changes = m[0].GetHistogram().GetSampleCount()
		}
	}
	return services, changes
}

// TestRefused holds what is told while the kernel refuses all: since when it is behind, and nothing to load balancers or of connections
// that it does not do; and that all is made good when it does.
func TestRefused(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	registry := prometheus.NewRegistry()
	web := service("web", "10.96.0.1", func(s *cluster.Service) { s.Proxy.HealthCheckNodePort = 32000 })
	begun := time.Now()
	p := newProxy(t, Config{Registerer: registry}, web, slice("web", "10.0.0.1"), service("old", "10.96.0.2"))
	sync1(t, p)
	<-p.cleaner.wake
	netns.Run(t, "nft", "delete", "table", "ip", "ropewalk")
	leave := occupy(t)

	p.check() // with nothing new
	var since time.Time
	behind := func(atLeast float64) {
		t.Helper()
		if _, err := p.sync(); err == nil {
			t.Fatal("the kernel takes it")
		}
		waiting, synced := p.Lag()
		if waiting.Before(begun) || !since.IsZero() && !waiting.Equal(since) || synced.IsZero() {
			t.Errorf("behind since %v, and before since %v", waiting, since)
		}
		since = waiting
		if s := p.healthNode().State(); !s.Pending.Equal(since) {
			t.Errorf("healthz knows of %v", s.Pending)
		}
		if got, changes := pending(t, registry); got < atLeast || changes > 0 {
			t.Errorf("%v services are pending, %d changes are done", got, changes)
		}
	}
	behind(0)
	p.Apply(cluster.Deleted(cluster.KindService, cluster.Key{Namespace: "shop", Name: "old"}, time.Time{}))
	changed := slice("web", "10.0.0.1", "10.0.0.2")
	changed.Triggered = time.Now()
	put(p, changed)
	behind(2)
	behind(2)
	if len(p.cleaner.wake) > 0 || len(p.cleaner.gone) > 0 {
		t.Error("connections are deleted that the rules make again")
	}
	if len(p.checks) != 1 {
		t.Error("load balancers are told of what is not so")
	}

	leave()
	sync1(t, p)
	waiting, _ := p.Lag()
	if got, changes := pending(t, registry); !waiting.IsZero() || got != 0 || changes != 1 {
		t.Errorf("behind since %v, %v services are pending, %d changes are done", waiting, got, changes)
	}
	if _, ok := p.cleaner.gone[frontends.Key{Addr: netip.MustParseAddr("10.96.0.2"), Protocol: frontends.UDP, Port: 53}]; !ok || len(p.cleaner.wake) != 1 {
		t.Errorf("connections to what has gone stay: %v", p.cleaner.gone)
	}
	if len(p.checks) != 0 {
		t.Error("load balancers are not told")
	}
	if !strings.Contains(netns.Run(t, "nft", "list", "map", "ip", "ropewalk", "frontends"), "10.96.0.1") {
		t.Error("the rules are not there")
	}
}

// TestFirst holds that nothing is written, and no time counts, before all is known: services, and the host's addresses where these take
// node ports.
func TestFirst(t *testing.T) {
	if !netns.Enter(t, "192.0.2.1/32") {
		return
	}
	netns.NeedCommand(t, "nft")
	p := newProxy(t, Config{NodePortCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	fresh, err := New(Config{NodeName: "n1", Log: p.config.Log})
	if err != nil {
		t.Fatal(err)
	}
	put(fresh, service("web", "10.96.0.1"))
	for _, k := range kinds[1:] {
		fresh.Apply(cluster.Change{Op: cluster.Synced, Kind: k})
	}
	before := time.Now()
	fresh.Apply(cluster.Change{Op: cluster.Synced, Kind: cluster.KindService})
	if waiting, _ := fresh.Lag(); waiting.Before(before) {
		t.Error("what the API server takes counts as the kernel's")
	}

	put(p, service("web", "10.96.0.1", func(s *cluster.Service) { s.Ports[0].NodePort = 30053 }), slice("web", "10.0.0.1"))
	if known, err := p.sync(); known || err != nil || p.Ready() == nil || netns.Run(t, "nft", "list", "ruleset") != "" {
		t.Fatalf("written without the host's addresses: %v %v", known, err)
	}
	if err := p.addresses.update(); err != nil || len(p.kick) != 1 {
		t.Fatal(err)
	}
	sync1(t, p)
	if rules := netns.Run(t, "nft", "list", "map", "ip", "ropewalk", "frontends"); !strings.Contains(rules, "192.0.2.1 . udp . 30053") {
		t.Error(rules)
	}
}

// TestRun has a Proxy run with a long pause between transactions: what comes before all is known begins none.
func TestRun(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	p, err := New(Config{NodeName: "n1", MinSync: time.Hour, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	put(p, service("web", "10.96.0.1", func(s *cluster.Service) { s.Proxy.HealthCheckNodePort = 32000 }), slice("web", "10.0.0.1"))
	eventually(t, "Run takes nothing", func() bool { return len(p.kick) == 0 })
	for _, k := range kinds {
		p.Apply(cluster.Change{Op: cluster.Synced, Kind: k})
	}
	eventually(t, "the first transaction waits", func() bool { return p.Ready() == nil })
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	eventually(t, "health checks are not answered", func() bool {
		resp, err := client.Get("http://" + net.JoinHostPort("127.0.0.1", "32000"))
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestWalkFails holds that what was to be deleted is not forgotten when the kernel says no.
func TestWalkFails(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	p := newProxy(t, Config{}, service("web", "10.96.0.1"))
	sync1(t, p)
	p.Apply(cluster.Deleted(cluster.KindService, cluster.Key{Namespace: "shop", Name: "web"}, time.Time{}))
	sync1(t, p)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: this thread gets no capability back
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Error(err)
		}
		done <- p.cleaner.walk(false)
	}()
	if err := <-done; err == nil || len(p.cleaner.gone) != 1 {
		t.Fatalf("%v, %v", err, p.cleaner.gone)
	}
	if err := p.cleaner.walk(false); err != nil || len(p.cleaner.gone) != 0 {
		t.Errorf("%v, %v", err, p.cleaner.gone)
	}
}

// TestRivalsTold holds that services which want an address in great numbers do not fill the log.
func TestRivalsTold(t *testing.T) {
	var log bytes.Buffer
	p := newProxy(t, Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	p.tellRivals(make([]frontends.Rival, 1000))
	if n := strings.Count(log.String(), "\n"); n != rivalsTold+1 || !strings.Contains(log.String(), "count=990") {
		t.Errorf("%d lines:\n%s", n, &log)
	}
}

// TestTooManySources holds that a service whose source ranges are more than the rules take is not served where they were to hold, and is
// served elsewhere; what was there before goes.
func TestTooManySources(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	with := func(n int) *cluster.Service {
		return service("dns", "10.96.0.10", func(s *cluster.Service) {
			s.Proxy.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
			for i := range n {
				s.Proxy.SourceRanges = append(s.Proxy.SourceRanges, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 32))
			}
		})
	}
	registry := prometheus.NewRegistry()
	p := newProxy(t, Config{Registerer: registry}, with(1), slice("dns", "10.0.0.1"))
	sync1(t, p)
	frontends := func() int { return p.tables.Stats().Elements["frontends"] }
	if n := frontends(); n != 2 {
		t.Fatalf("%d frontends", n)
	}
	put(p, with(5000))
	sync1(t, p)
	if n := frontends(); n != 1 {
		t.Errorf("%d frontends of a service with too many sources", n)
	}
	put(p, with(2))
	sync1(t, p)
	if n := frontends(); n != 2 {
		t.Errorf("%d frontends later", n)
	}
}
