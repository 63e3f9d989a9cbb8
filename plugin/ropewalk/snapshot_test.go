package ropewalk

import (
	"bytes"
	"context"
	"fmt"
	stdlog "log"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/snapshot"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

// fakeSource delivers what it is given.
type fakeSource struct {
	changes chan cluster.Change
	age     atomic.Int64
}

func (s *fakeSource) Run(ctx context.Context, _ cluster.Interest, sink cluster.Sink) error {
	for {
		select {
		case c := <-s.changes:
			sink.Apply(c)
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *fakeSource) Age() time.Duration { return time.Duration(s.age.Load()) }

// deliver gives objs as a listing of everything.
func (s *fakeSource) deliver(f *feed, objs ...cluster.Object) {
	for k := range cluster.NumKinds {
		if !f.interest.Kinds.Has(k) {
			continue
		}
		s.changes <- cluster.Change{Op: cluster.Replace, Kind: k, Received: time.Now()}
		for _, o := range objs {
			if o.Kind() == k {
				s.changes <- cluster.Upserted(o, time.Now())
			}
		}
		s.changes <- cluster.Change{Op: cluster.Synced, Kind: k, Received: time.Now()}
	}
}

// keep makes a feed with a snapshot in path that is written as often as it can be, or once if that is 0, and runs it until
// stop is called or the test ends.
func keep(t *testing.T, path string, every time.Duration, options ...string) (f *feed, s *fakeSource, stop func()) {
	t.Helper()
	cfg, err := parse(caddy.NewTestController("dns", stanza("cluster.local", append(options, "endpoint http://localhost:1", "snapshot "+path)...)))
	if err != nil {
		t.Fatal(err)
	}
	s = &fakeSource{changes: make(chan cluster.Change)}
	f = newFeed(path, s, cfg)
	f.keeper.every = every
	if every == 0 {
		f.keeper.every = time.Hour
	}
	f.start()
	stop = sync.OnceFunc(func() {
		f.stop()
		f.done.Wait()
	})
	t.Cleanup(stop)
	return f, s, stop
}

func service(name, ip string) []cluster.Object {
	return []cluster.Object{&cluster.Namespace{Name: "shop"}, &cluster.Service{Namespace: "shop", Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr(ip)}}}
}

// answers says what a feed answers for a service's address: "10.96.0.1", "NXDOMAIN" or "SERVFAIL".
func answers(t *testing.T, f *feed, name string) string {
	t.Helper()
	origins, err := zone.NewOrigins([]string{"cluster.local."}, nil)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 512)
	n, err := dns.PackDomainName(name+".shop.svc.cluster.local.", buf, 12, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	buf[5] = 1
	out, _ := newest(f.zone, f.keeper).Answer(append(buf[:n], 0, 1, 0, 1), zone.Query{Type: dns.TypeA, Origins: origins, Limit: 512})
	m := new(dns.Msg)
	if err := m.Unpack(out); err != nil {
		t.Fatal(err)
	}
	if len(m.Answer) == 0 {
		return dns.RcodeToString[m.Rcode]
	}
	return m.Answer[0].(*dns.A).A.String()
}

func expectAnswer(t *testing.T, f *feed, name, want string) {
	t.Helper()
	if got := answers(t, f, name); got != want {
		t.Errorf("%s: %s, want %s", name, got, want)
	}
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// logged returns what CoreDNS logs from now on.
func logged(t *testing.T) func() string {
	var mu sync.Mutex
	var buf bytes.Buffer
	was := stdlog.Writer()
	stdlog.SetOutput(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return buf.Write(p)
	}))
	t.Cleanup(func() { stdlog.SetOutput(was) })
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return buf.String()
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// taken returns the time of the snapshot in path, which the key of f must fit.
func taken(t *testing.T, f *feed) time.Time {
	t.Helper()
	var h snapshot.Header
	_, err := zone.Fill(f.keeper.opts, func(sink cluster.Sink) (err error) {
		h, _, err = snapshot.Load(t.Context(), f.keeper.path, f.keeper.header.Key, sink)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return h.Taken
}

// failuresOf returns what coredns_ropewalk_snapshot_errors_total says of a file.
func failuresOf(t *testing.T, path string) float64 {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "coredns_ropewalk_snapshot_errors_total" && m.GetLabel()[0].GetValue() == path {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no counter for %s", path)
	return 0
}

// TestWarmStart goes through the life of a server: with an API, without one, with another one.
func TestWarmStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	log := logged(t)
	f, source, stop := keep(t, path, 0)
	if f.ready() {
		t.Error("ready before anything is there")
	}
	expectAnswer(t, f, "web", "SERVFAIL")
	source.deliver(f, service("web", "10.96.0.1")...)
	<-f.zone.Ready()
	expectAnswer(t, f, "web", "10.96.0.1")
	if !f.ready() || f.age() != 0 {
		t.Errorf("ready: %v, age %v", f.ready(), f.age())
	}
	eventually(t, "the snapshot is written", func() bool { return f.keeper.last.Load() != nil })
	// The API goes away; the last snapshot says since when.
	source.age.Store(int64(time.Hour))
	if f.age() != time.Hour {
		t.Errorf("age %v", f.age())
	}
	stop()
	if age := time.Since(taken(t, f)); age < time.Hour {
		t.Errorf("the snapshot's age is %v, that of what is in it an hour", age)
	}

	f, source, _ = keep(t, path, 0)
	expectAnswer(t, f, "web", "SERVFAIL")
	if f.ready() || f.age() != 0 {
		t.Errorf("ready: %v, age %v, though the API may yet come", f.ready(), f.age())
	}
	source.age.Store(int64(time.Second))
	f.await(time.Hour)
	if !f.ready() || isClosed(f.zone.Ready()) {
		t.Errorf("ready: %v, the zone too: %v", f.ready(), isClosed(f.zone.Ready()))
	}
	expectAnswer(t, f, "web", "10.96.0.1")
	expectAnswer(t, f, "none", "NXDOMAIN")
	if f.age() < time.Hour {
		t.Errorf("age %v, want that of the snapshot", f.age())
	}
	if l := log(); !strings.Contains(l, "[WARNING]") || !strings.Contains(l, "serving what is in the snapshot "+path+", which is 1h0m") {
		t.Errorf("the log does not tell that the snapshot is served, and its age:\n%s", l)
	}
	// Until the API has delivered everything, the snapshot is served, and then nothing of it; never neither of the two.
	end := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for !isClosed(end) {
			if !newest(f.zone, f.keeper).Synced() {
				t.Error("neither the snapshot nor what took its place is served")
				return
			}
		}
	})
	source.age.Store(0)
	for k := range cluster.KindSlice {
		source.changes <- cluster.Change{Op: cluster.Replace, Kind: k, Received: time.Now()}
		source.changes <- cluster.Change{Op: cluster.Synced, Kind: k, Received: time.Now()}
	}
	expectAnswer(t, f, "web", "10.96.0.1")
	source.deliver(f, service("api", "10.96.0.2")...)
	<-f.zone.Ready()
	expectAnswer(t, f, "web", "NXDOMAIN")
	expectAnswer(t, f, "api", "10.96.0.2")
	eventually(t, "the snapshot is let go of", func() bool { return f.keeper.view.Load() == nil })
	close(end)
	readers.Wait()
	if f.age() != 0 {
		t.Errorf("age %v", f.age())
	}
	eventually(t, "the snapshot is the new one", func() bool { return time.Since(taken(t, f)) < time.Minute })
}

// TestAwait: who does not want to wait gets the snapshot, and whoever has none is told what that means.
func TestAwait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	f, source, stop := keep(t, path, 0)
	log := logged(t)
	f.await(0)
	if f.ready() || !strings.Contains(log(), "startup_timeout") {
		t.Errorf("ready: %v; logged: %s", f.ready(), log())
	}
	source.deliver(f, service("web", "10.96.0.1")...)
	<-f.zone.Ready()
	f.await(time.Hour)
	stop()

	f, _, _ = keep(t, path, 0)
	f.await(0)
	if !f.ready() {
		t.Error("not ready, with a snapshot")
	}
	expectAnswer(t, f, "web", "10.96.0.1")
}

// TestRefusedSnapshot: of a file that cannot be used, the log says why, and it stays until there is something better.
func TestRefusedSnapshot(t *testing.T) {
	for what, c := range map[string]struct {
		spoil   func(raw []byte) []byte
		options []string
		says    string
	}{
		"damage":        {spoil: func(raw []byte) []byte { raw[len(raw)/2] ^= 1; return raw }, says: "damaged"},
		"truncation":    {spoil: func(raw []byte) []byte { return raw[:len(raw)-1] }, says: "damaged"},
		"version":       {spoil: func(raw []byte) []byte { return bytes.Replace(raw, []byte(" 2\n"), []byte(" 3\n"), 1) }, says: "version: 3, this program reads 2"},
		"other options": {options: []string{"namespaces shop"}, says: `namespaces ["shop"])`},
	} {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			f, source, stop := keep(t, path, 0)
			source.deliver(f, service("web", "10.96.0.1")...)
			<-f.zone.Ready()
			stop()
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if c.spoil != nil {
				raw = c.spoil(raw)
				if err := os.WriteFile(path, raw, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			log := logged(t)
			errors := failuresOf(t, path)
			f, source, stop = keep(t, path, 0, c.options...)
			source.age.Store(int64(time.Second))
			f.await(0)
			<-f.keeper.loaded
			expectAnswer(t, f, "web", "SERVFAIL")
			if f.ready() {
				t.Error("ready")
			}
			if l := log(); !strings.Contains(l, "starting without the snapshot: "+path) || !strings.Contains(l, c.says) {
				t.Errorf("the log does not say %s:\n%s", c.says, l)
			}
			if n := failuresOf(t, path); n != errors+1 {
				t.Errorf("%v errors more", n-errors)
			}
			stop()
			if now, _ := os.ReadFile(path); !bytes.Equal(now, raw) {
				t.Error("the file has been touched")
			}
			f, source, stop = keep(t, path, 0, c.options...)
			source.deliver(f, service("web", "10.96.0.1")...)
			<-f.zone.Ready()
			stop()
			taken(t, f)
		})
	}
}

// TestSaves: what changes is written, what does not is not, and no more often than is said.
func TestSaves(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	f, source, stop := keep(t, path, time.Millisecond)
	log := logged(t)
	source.deliver(f, service("web", "10.96.0.1")...)
	<-f.zone.Ready()
	upsert := func(name string) {
		for _, o := range service(name, "10.96.0.9") {
			source.changes <- cluster.Upserted(o, time.Now())
		}
	}
	eventually(t, "a snapshot", func() bool { return f.keeper.last.Load() != nil })
	first := f.keeper.last.Load()
	upsert("another")
	eventually(t, "a snapshot with more in it", func() bool { return f.keeper.last.Load().size > first.size+20 })
	settled := taken(t, f)

	// The directory goes: that is logged once, and counted each time; answers go on; and it is written when it can be.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	last := f.keeper.last.Load()
	if !last.taken.Equal(settled) {
		t.Error("written, though nothing had changed")
	}
	upsert("third")
	failures := func() float64 { return failuresOf(t, path) }
	eventually(t, "three failures", func() bool { return failures() >= 3 })
	if n := strings.Count(log(), "the snapshot cannot be written"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, log())
	}
	expectAnswer(t, f, "third", "10.96.0.9")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "written again", func() bool { return f.keeper.last.Load() != last })
	if !strings.Contains(log(), "can be written again") {
		t.Errorf("not logged:\n%s", log())
	}
	stop()
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}

	// An hour apart means that one is written at once, and one at the end.
	f, source, stop = keep(t, path, 0)
	source.deliver(f, service("web", "10.96.0.1")...)
	<-f.zone.Ready()
	eventually(t, "a snapshot", func() bool { return f.keeper.last.Load() != f.keeper.filled.Load() })
	first = f.keeper.last.Load()
	upsert("another")
	upsert("third")
	eventually(t, "the change is served", func() bool { return answers(t, f, "third") == "10.96.0.9" })
	if f.keeper.last.Load() != first {
		t.Error("written before it is time")
	}
	stop()
	if f.keeper.last.Load().size <= first.size+20 {
		t.Error("the changes are not written at the end")
	}
}

// TestOneWriter: of two feeds with one file the younger one writes, as at a reload; the elder one goes on if that fails.
func TestOneWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, source, stopOld := keep(t, path, 0)
	source.deliver(old, service("web", "10.96.0.1")...)
	<-old.zone.Ready()
	eventually(t, "a snapshot", func() bool { return old.keeper.last.Load() != nil })
	_, _, stopYoung := keep(t, path, 0, "zonal")
	stopYoung()
	was := taken(t, old)
	old.keeper.save()
	if !taken(t, old).After(was) {
		t.Error("the elder one should go on where the younger one did not come up")
	}
	young, source, _ := keep(t, path, 0, "zonal")
	source.deliver(young, service("web", "10.96.0.1")...)
	<-young.zone.Ready()
	eventually(t, "the young feed's snapshot", func() bool { return young.keeper.last.Load() != nil })
	stopOld()
	taken(t, young)
}

// TestSnapshotKey holds that options that change what is in a snapshot change its key, and others do not.
func TestSnapshotKey(t *testing.T) {
	key := func(zones string, options ...string) string {
		t.Helper()
		cfg, err := parse(caddy.NewTestController("dns", stanza(zones, append(options, "snapshot /s")...)))
		if err != nil {
			t.Fatal(err)
		}
		source, err := cfg.newSource()
		if err != nil {
			t.Fatal(err)
		}
		return cfg.snapshotKey(source)
	}
	base := key("cluster.local", "endpoint http://a:1")
	for _, same := range []string{"ttl 7", "fallthrough", "pods insecure", "env", "startup_timeout 1s", "apiserver_qps 1"} {
		if k := key("cluster.local", "endpoint http://a:1", same); k != base {
			t.Errorf("%s: %s, want %s", same, k, base)
		}
	}
	seen := map[string]bool{base: true, key("other.local", "endpoint http://a:1"): true, key("cluster.local", "endpoint http://b:1"): true}
	n := 3
	for _, other := range []string{
		"pods verified", "endpoint_pod_names", "noendpoints", "ignore empty_service", "zonal", "namespaces a", "namespaces a b",
		"labels a=b", "namespace_labels a=b", "multicluster cluster.local",
	} {
		seen[key("cluster.local", "endpoint http://a:1", other)] = true
		if n++; len(seen) != n {
			t.Errorf("%s: the key is that of other options", other)
		}
	}
	if key("cluster.local", "endpoint http://a:1", "autopath") != key("cluster.local", "endpoint http://a:1", "pods verified") {
		t.Error("pods are pods")
	}
}

// TestTwoStanzas: one file is one stanza's, or that of several with one feed.
func TestTwoStanzas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c := caddy.NewTestController("dns", "")
	first, err := parse(caddy.NewTestController("dns", stanza("cluster.local", "endpoint http://localhost:1", "snapshot "+path)))
	if err != nil {
		t.Fatal(err)
	}
	again, other := *first, *first
	other.zonal = true
	if err := first.ownSnapshot(c); err != nil {
		t.Error(err)
	}
	if err := again.ownSnapshot(c); err != nil {
		t.Error(err)
	}
	err = other.ownSnapshot(c)
	for _, w := range []string{"Testfile:3: ", path, "name another file"} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("no %q in %v", w, err)
		}
	}
}

// BenchmarkSnapshot saves and loads the snapshot of 50,000 services with five endpoints each.
func BenchmarkSnapshot(b *testing.B) {
	opts := zone.Options{TTL: 5}
	view, err := zone.Fill(opts, func(sink cluster.Sink) error {
		sink.Apply(cluster.Upserted(&cluster.Namespace{Name: "shop"}, time.Time{}))
		for i := range 50_000 {
			name, a := fmt.Sprintf("service-%d", i), [4]byte{10, 0, byte(i >> 8), byte(i)}
			s := &cluster.Slice{Namespace: "shop", Name: name + "-x7gqz", Service: name,
				Ports: []cluster.EndpointPort{{Name: "http", Protocol: cluster.TCP, Port: 8080}}}
			for n := range byte(5) {
				a[1] = 100 + n
				s.Endpoints = append(s.Endpoints, cluster.Endpoint{Addr: netip.AddrFrom4(a), Ready: true})
			}
			a[1] = 0
			sink.Apply(cluster.Upserted(s, time.Time{}))
			sink.Apply(cluster.Upserted(&cluster.Service{Namespace: "shop", Name: name, ClusterIPs: []netip.Addr{netip.AddrFrom4(a)},
				Ports: []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80}}}, time.Time{}))
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	path, h := filepath.Join(b.TempDir(), "s"), snapshot.Header{Kinds: opts.Interest()}
	b.Run("save", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			size, err := snapshot.Save(path, h, view.Objects())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(size)/1e6, "MB")
		}
	})
	b.Run("load", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			loaded, err := zone.Fill(opts, func(sink cluster.Sink) error {
				_, _, err := snapshot.Load(b.Context(), path, "", sink)
				return err
			})
			if err != nil || loaded.Counts(false) != view.Counts(false) {
				b.Fatal(err)
			}
		}
	})
}
