package hostsmgr

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victim); dir != "" {
		beVictim(dir)
	}
	goleak.VerifyTestMain(m)
}

// rig is a node: the kubelet's directory, its hosts file, and a Manager.
type rig struct {
	testing.TB
	kubelet, node string
	manager       *Manager
	registry      *prometheus.Registry
	log           *syncBuffer
	stop          func()
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

const nodeHosts = "127.0.0.1\tlocalhost\n10.0.0.1\tnode\n"

func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	return newRigIn(t, t.TempDir(), change...)
}

func newRigIn(t testing.TB, dir string, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{TB: t, kubelet: filepath.Join(dir, "kubelet"), node: filepath.Join(dir, "etc", "hosts")}
	r.must(os.MkdirAll(filepath.Join(r.kubelet, "pods"), 0o755))
	r.must(os.MkdirAll(filepath.Dir(r.node), 0o755))
	r.write(r.node, nodeHosts)
	r.again(change...)
	t.Cleanup(func() {
		if log := r.log.String(); t.Failed() {
			t.Logf("log, the last of it:\n%s", log[max(0, len(log)-3000):])
		}
	})
	return r
}

// again gives the rig a new Manager, as after a restart.
func (r *rig) again(change ...func(*Config)) {
	r.Helper()
	if r.stop != nil {
		r.stop()
	}
	r.registry, r.log = prometheus.NewPedanticRegistry(), &syncBuffer{}
	c := Config{
		KubeletDir: r.kubelet, NodeHostsFile: r.node, Registerer: r.registry,
		Log: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&c)
	}
	var err error
	r.manager, err = New(c)
	r.must(err)
}

// start runs the Manager until the end of the test.
func (r *rig) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.manager.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.Errorf("Run: %v", err)
		}
	})
	r.Cleanup(r.stop)
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) write(path, text string) {
	r.Helper()
	r.must(os.WriteFile(path, []byte(text), 0o644))
}

func (r *rig) apply(cs ...cluster.Change) {
	for _, c := range cs {
		r.manager.Apply(c)
	}
}

func (r *rig) upsert(os ...cluster.Object) {
	for _, o := range os {
		r.apply(cluster.Upserted(o, time.Now()))
	}
}

// list delivers all there is.
func (r *rig) list(os ...cluster.Object) {
	for _, k := range []cluster.Kind{cluster.KindPod, cluster.KindConfigMap} {
		r.apply(cluster.Change{Op: cluster.Replace, Kind: k})
		for _, o := range os {
			if o.Kind() == k {
				r.upsert(o)
			}
		}
		r.apply(cluster.Change{Op: cluster.Synced, Kind: k})
	}
}

// dir is a pod's directory.
func (r *rig) dir(p *cluster.Pod) string  { return filepath.Join(r.kubelet, "pods", p.Hosts.UID) }
func (r *rig) file(p *cluster.Pod) string { return filepath.Join(r.dir(p), "etc-hosts") }

// asKubelet writes a pod's file as the kubelet does when it starts a container.
func (r *rig) asKubelet(p *cluster.Pod) {
	r.Helper()
	r.must(os.MkdirAll(r.dir(p), 0o750))
	r.write(r.file(p), r.rendered(p))
}

func (r *rig) rendered(p *cluster.Pod, more ...cluster.HostAlias) string {
	r.Helper()
	b, err := hostsfile.Render(p, hostsfile.Node{ClusterDomain: "cluster.local", Hosts: []byte(nodeHosts)}, more...)
	r.must(err)
	return string(b)
}

func (r *rig) read(path string) string {
	r.Helper()
	b, err := os.ReadFile(path)
	r.must(err)
	return string(b)
}

// eventually waits until f holds.
func (r *rig) eventually(what string, f func() bool) {
	r.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("not after 20 seconds: %s", what)
		}
	}
}

func (r *rig) becomes(path, want string) {
	r.Helper()
	got := ""
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		b, _ := os.ReadFile(path)
		if got = string(b); got == want {
			return
		}
		if time.Now().After(end) {
			r.Fatalf("after 20 seconds, %s holds %.2000q\nwant %.2000q", path, got, want)
		}
	}
}

func (r *rig) ready() {
	r.Helper()
	r.eventually("ready", func() bool { return r.manager.Ready() == nil })
}

// metric returns the sum of a metric's series with the labels, as in reason=full.
func (r *rig) metric(name string, labels ...string) float64 {
	r.Helper()
	families, err := r.registry.Gather()
	r.must(err)
	sum := 0.0
	for _, f := range families {
		if f.GetName() != "ropewalk_hosts_"+name {
			continue
		}
	series:
		for _, m := range f.Metric {
			for _, l := range labels {
				k, v, _ := strings.Cut(l, "=")
				for _, p := range m.Label {
					if p.GetName() == k && p.GetValue() != v {
						continue series
					}
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

func (r *rig) inode(path string) uint64 {
	r.Helper()
	var st syscall.Stat_t
	r.must(syscall.Lstat(path, &st))
	return st.Ino
}

func newPod(namespace, name string, change ...func(*cluster.Pod)) *cluster.Pod {
	p := &cluster.Pod{
		Namespace: namespace, Name: name,
		IPs:   []netip.Addr{netip.MustParseAddr("10.244.1.4")},
		Hosts: &cluster.PodHosts{UID: "uid-" + namespace + "-" + name},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

func annotated(value string) func(*cluster.Pod) {
	return func(p *cluster.Pod) { p.Hosts.Annotations = map[string]string{hostsfile.AliasesKey: value} }
}

func withAlias(ip string, names ...string) func(*cluster.Pod) {
	return annotated(fmt.Sprintf(`[{"ip": %q, "hostnames": [%q]}]`, ip, strings.Join(names, `", "`)))
}

func withIPs(ips ...string) func(*cluster.Pod) {
	return func(p *cluster.Pod) {
		p.IPs = nil
		for _, ip := range ips {
			p.IPs = append(p.IPs, netip.MustParseAddr(ip))
		}
	}
}

func onHostNetwork(p *cluster.Pod) { p.Hosts.HostNetwork = true }

func newConfigMap(scope, namespace, name string, data ...string) *cluster.ConfigMap {
	m := &cluster.ConfigMap{
		Namespace: namespace, Name: name, Labels: map[string]string{hostsfile.AliasesKey: scope}, Data: map[string]string{},
	}
	for i, text := range data {
		m.Data[fmt.Sprintf("hosts%d", i)] = text
	}
	return m
}

func alias(ip string, names ...string) cluster.HostAlias {
	return cluster.HostAlias{IP: ip, Hostnames: names}
}
