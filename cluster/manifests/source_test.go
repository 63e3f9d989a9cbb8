package manifests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a Sink that keeps what it is told, and fails the test on what the contract does not allow.
type recorder struct {
	t  *testing.T
	mu sync.Mutex
	// view is what there is, changes what was said, without the first listing.
	view    View
	listing [cluster.NumKinds]map[cluster.Key]bool
	synced  cluster.Kinds
	changes []string
	all     cluster.Kinds
}

func (r *recorder) Apply(c cluster.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.Received.IsZero() {
		r.t.Errorf("%v %v %v without time", c.Op, c.Kind, c.Key)
	}
	if r.synced == r.all {
		r.changes = append(r.changes, fmt.Sprintf("%v %v %v", c.Op, c.Kind, c.Key))
	}
	switch c.Op {
	case cluster.Replace:
		r.listing[c.Kind] = map[cluster.Key]bool{}
	case cluster.Synced:
		if r.listing[c.Kind] == nil {
			r.t.Errorf("Synced of %v without Replace", c.Kind)
		}
		r.synced |= cluster.KindsOf(c.Kind)
	case cluster.Upsert:
		if c.Object == nil || c.Object.Kind() != c.Kind || c.Object.Key() != c.Key {
			r.t.Errorf("upsert of %v %v has object %v", c.Kind, c.Key, c.Object)
		}
		if was := r.view[c.Kind][c.Key]; was != nil && reflect.DeepEqual(was, c.Object) {
			r.t.Errorf("upsert of %v %v, which has not changed", c.Kind, c.Key)
		}
		r.view.add(c.Object)
	case cluster.Delete:
		delete(r.view[c.Kind], c.Key)
	}
}

func (r *recorder) get(k cluster.Kind, namespace, name string) cluster.Object {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.view[k][cluster.Key{Namespace: namespace, Name: name}]
}

// said returns the changes since the last call.
func (r *recorder) said() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.changes
	r.changes = nil
	return c
}

// syncBuffer is a log that can be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// live is a running Source and the directory it follows.
type live struct {
	*recorder
	dir    string
	source *Source
	log    *syncBuffer
}

func follow(t *testing.T, dir string, interest cluster.Interest) *live {
	t.Helper()
	l := &live{recorder: &recorder{t: t, all: interest.Kinds}, dir: dir, log: &syncBuffer{}}
	var err error
	if l.source, err = New(dir, slog.New(slog.NewTextHandler(l.log, nil))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.source.Run(ctx, interest, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if t.Failed() {
			t.Log(l.log.String())
		}
	})
	eventually(t, "listed", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.synced == interest.Kinds })
	return l
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not %s", what)
		}
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func serviceYAML(name, spec string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop}\nspec: {%s}\n---\n", name, spec)
}

func (l *live) service(name string) *cluster.Service {
	s, _ := l.get(cluster.KindService, "shop", name).(*cluster.Service)
	return s
}

func TestFollow(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")
	write(t, a, serviceYAML("web", "ports: [{port: 80}]"))
	l := follow(t, dir, allKinds)
	if l.service("web") == nil || l.source.Age() != 0 {
		t.Fatalf("service %v, age %v", l.service("web"), l.source.Age())
	}
	steps := []struct {
		name string
		do   func()
		done func() bool
		want []string
	}{
		{
			"a new file", func() { write(t, b, serviceYAML("api", "clusterIP: None")) },
			func() bool { return l.service("api") != nil },
			[]string{"upsert Service shop/api"},
		}, {
			"an edit", func() { write(t, b, serviceYAML("api", "clusterIP: None, ports: [{port: 9}]")) },
			func() bool { return l.service("api").Ports != nil },
			[]string{"upsert Service shop/api"},
		}, {
			"an edit of the same size", func() { write(t, b, serviceYAML("api", "clusterIP: None, ports: [{port: 8}]")) },
			func() bool { return l.service("api").Ports[0].Port == 8 },
			[]string{"upsert Service shop/api"},
		}, {
			"the way editors save", func() {
				write(t, filepath.Join(dir, ".b.yaml.swp"), "rubbish: [")
				write(t, filepath.Join(dir, "b.yaml~"), "rubbish: [")
				write(t, filepath.Join(dir, ".new.yaml"), serviceYAML("api", "clusterIP: None, ports: [{port: 7}]"))
				must(t, os.Rename(filepath.Join(dir, ".new.yaml"), b))
			},
			func() bool { return l.service("api").Ports[0].Port == 7 },
			[]string{"upsert Service shop/api"},
		}, {
			"a rename, which changes nothing, and an edit beside it", func() {
				must(t, os.Rename(b, filepath.Join(dir, "c.yaml")))
				write(t, a, serviceYAML("web", "ports: [{port: 81}]"))
			},
			func() bool { return l.service("web").Ports[0].Port == 81 },
			[]string{"upsert Service shop/web"},
		}, {
			"an object that moves, and one that is new in another namespace", func() {
				write(t, a, "")
				write(t, b, serviceYAML("web", "ports: [{port: 81}]")+
					"apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: new}\nspec: {clusterIP: None}\n")
			},
			func() bool { return l.get(cluster.KindService, "new", "x") != nil },
			[]string{"upsert Namespace new", "upsert Service new/x"},
		}, {
			"a file that goes", func() { must(t, os.Remove(filepath.Join(dir, "c.yaml"))) },
			func() bool { return l.service("api") == nil },
			[]string{"delete Service shop/api"},
		},
	}
	for _, step := range steps {
		step.do()
		eventually(t, step.name, step.done)
		if diff := cmp.Diff(step.want, l.said()); diff != "" {
			t.Errorf("%s (-want +got)\n%s", step.name, diff)
		}
	}
}

func TestBrokenFile(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")
	write(t, a, serviceYAML("web", "ports: [{port: 80}]"))
	write(t, b, serviceYAML("api", "ports: [{port: 80}]"))
	l := follow(t, dir, allKinds)

	write(t, a, serviceYAML("web", "ports: [{port: many}]"))
	write(t, b, serviceYAML("api", "ports: [{port: 81}]"))
	eventually(t, "the good file's change applied", func() bool { return l.service("api").Ports[0].Port == 81 })
	if l.service("web") == nil || l.service("web").Ports[0].Port != 80 {
		t.Errorf("the bad file's last good content went: %v", l.service("web"))
	}
	if l.source.Age() == 0 {
		t.Error("age 0 while a file is bad")
	}
	write(t, b, serviceYAML("api", "ports: [{port: 82}]"))
	eventually(t, "the good file's change applied", func() bool { return l.service("api").Ports[0].Port == 82 })
	if n := strings.Count(l.log.String(), a+":4: Service shop/web: spec.ports[0].port: many is a string"); n != 1 {
		t.Errorf("told %d times:\n%s", n, l.log)
	}
	write(t, a, serviceYAML("web", "ports: [{port: 83}]"))
	eventually(t, "the file good again", func() bool { return l.service("web").Ports[0].Port == 83 && l.source.Age() == 0 })
}

// Files that do not go together: the newcomer is refused, until the other one gives way.
func TestConflict(t *testing.T) {
	dir := t.TempDir()
	a, b, c := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml"), filepath.Join(dir, "c.yaml")
	write(t, b, serviceYAML("web", "clusterIP: 10.96.7.7"))
	l := follow(t, dir, allKinds)

	write(t, a, serviceYAML("web", "clusterIP: None")) // earlier by name, later in time
	write(t, c, serviceYAML("api", "clusterIP: None"))
	eventually(t, "the other new file applied", func() bool { return l.service("api") != nil })
	if l.service("web").Headless {
		t.Error("a second object took the place of the first")
	}
	eventually(t, "old", func() bool { return l.source.Age() > 0 })
	if !strings.Contains(l.log.String(), b+":3: Service shop/web: metadata.name: also in "+a+":3") {
		t.Errorf("log:\n%s", l.log)
	}
	must(t, os.Remove(b))
	eventually(t, "the newcomer let in", func() bool { return l.service("web").Headless && l.source.Age() == 0 })
}

// A ConfigMap volume: files are links to ..data/FILE, and ..data is a link that is renamed over.
func TestConfigMap(t *testing.T) {
	dir := t.TempDir()
	turn := func(version, content string) {
		t.Helper()
		must(t, os.Mkdir(filepath.Join(dir, version), 0o755))
		write(t, filepath.Join(dir, version, "a.yaml"), content)
		must(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	turn("..v1", serviceYAML("web", "ports: [{port: 80}]"))
	must(t, os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")))
	l := follow(t, dir, allKinds)
	turn("..v2", serviceYAML("web", "ports: [{port: 81}]"))
	eventually(t, "turned", func() bool { return l.service("web").Ports[0].Port == 81 })
	if diff := cmp.Diff([]string{"upsert Service shop/web"}, l.said()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// What a link leads to may be in a directory that is not watched.
func TestLinkedFile(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	file := filepath.Join(elsewhere, "real.yaml")
	write(t, file, serviceYAML("web", "ports: [{port: 80}]"))
	must(t, os.Symlink(file, filepath.Join(dir, "a.yaml")))
	l := follow(t, dir, allKinds)
	write(t, file, serviceYAML("web", "ports: [{port: 8080}]"))
	eventually(t, "followed", func() bool { return l.service("web").Ports[0].Port == 8080 })
}

func TestDirectoryReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	must(t, os.Mkdir(dir, 0o755))
	write(t, filepath.Join(dir, "a.yaml"), serviceYAML("web", "ports: [{port: 80}]"))
	l := follow(t, dir, allKinds)

	must(t, os.Rename(dir, dir+".old"))
	eventually(t, "aware of it", func() bool { return l.source.Age() > 0 })
	if l.service("web") == nil {
		t.Error("what is known went with the directory")
	}
	must(t, os.Mkdir(dir, 0o755))
	write(t, filepath.Join(dir, "b.yaml"), serviceYAML("api", "ports: [{port: 80}]"))
	eventually(t, "following the new directory", func() bool {
		return l.service("web") == nil && l.service("api") != nil && l.source.Age() == 0
	})
	must(t, os.RemoveAll(dir))
	eventually(t, "aware of it", func() bool { return l.source.Age() > 0 })
	must(t, os.Mkdir(dir, 0o755))
	write(t, filepath.Join(dir, "c.yaml"), serviceYAML("last", "ports: [{port: 80}]"))
	eventually(t, "following the newest directory", func() bool { return l.service("last") != nil && l.source.Age() == 0 })
}

// Adding, editing and removing services renumbers none of the others, even in a range that is nearly full.
func TestAddressesStay(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "cidr.yaml"),
		"apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\nspec: {cidrs: [10.96.0.0/26]}\n")
	old := ""
	for i := range 30 {
		old += serviceYAML(fmt.Sprintf("s%02d", i), "ports: [{port: 80}]")
	}
	write(t, filepath.Join(dir, "a.yaml"), old)
	l := follow(t, dir, allKinds)
	addrs := func() map[string]netip.Addr {
		l.mu.Lock()
		defer l.mu.Unlock()
		m := map[string]netip.Addr{}
		for key, o := range l.view[cluster.KindService] {
			if strings.HasPrefix(key.Name, "s") {
				m[key.Name] = o.(*cluster.Service).ClusterIPs[0]
			}
		}
		return m
	}
	before := addrs()
	more := ""
	for i := range 30 { // before all others in order
		more += serviceYAML(fmt.Sprintf("a%02d", i), "ports: [{port: 80}]")
	}
	write(t, filepath.Join(dir, "b.yaml"), more)
	eventually(t, "added", func() bool { return l.service("a29") != nil })
	if diff := cmp.Diff(before, addrs(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("renumbered (-before +after)\n%s", diff)
	}
	for _, s := range l.said() {
		if !strings.HasPrefix(s, "upsert Service shop/a") {
			t.Errorf("adding services led to %q", s)
		}
	}
	if n := len(slices.Compact(slices.Sorted(func(yield func(string) bool) {
		for _, o := range l.view[cluster.KindService] {
			if !yield(o.(*cluster.Service).ClusterIPs[0].String()) {
				return
			}
		}
	}))); n != 61 {
		t.Errorf("61 services have %d addresses", n)
	}

	// One address is left of 62, so the second service has none; the file is refused as a whole.
	write(t, filepath.Join(dir, "c.yaml"), serviceYAML("t1", "ports: [{port: 80}]")+serviceYAML("t2", "ports: [{port: 80}]"))
	eventually(t, "told", func() bool { return l.source.Age() > 0 })
	if want := "c.yaml:9: Service shop/t2: spec.clusterIP: no address left for it: the IPv4 range 10.96.0.0/26 (62 addresses) is full"; !strings.Contains(l.log.String(), want) {
		t.Errorf("log has no %q:\n%s", want, l.log)
	}
	write(t, filepath.Join(dir, "c.yaml"), serviceYAML("t1", "ports: [{port: 80}]"))
	eventually(t, "added", func() bool { return l.service("t1") != nil && l.source.Age() == 0 })

	// Somebody asks for an address that another has: the one who asks gets it, as after a restart.
	taken := before["s00"]
	must(t, os.Remove(filepath.Join(dir, "b.yaml")))
	write(t, filepath.Join(dir, "c.yaml"), serviceYAML("t1", "clusterIP: "+taken.String()))
	eventually(t, "given", func() bool { return l.service("t1").ClusterIPs[0] == taken && l.service("s00").ClusterIPs[0] != taken })
	if !strings.Contains(l.log.String(), "now belongs to Service shop/t1") {
		t.Errorf("not told:\n%s", l.log)
	}
}

func TestInterest(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: shop}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {selector: {run: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {selector: {run: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop, labels: {run: web, app: web}}
status: {podIPs: [{ip: 192.0.2.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: q, namespace: shop}
spec: {nodeName: node-a}
status: {podIPs: [{ip: 192.0.2.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: waiting, namespace: shop}
spec: {nodeName: node-a, hostNetwork: true}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: all, namespace: shop, labels: {ropewalk.dev/host-aliases: cluster}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: other, namespace: shop, labels: {app: web}}
`)
	tests := []struct {
		name     string
		interest cluster.Interest
		want     []string
	}{
		{
			"labels select services, their slices, and pods",
			cluster.Interest{Kinds: cluster.KindsOf(cluster.KindService, cluster.KindSlice, cluster.KindPod), Labels: "app in (web)"},
			[]string{"Service shop/web", "EndpointSlice shop/web-ipv4", "Pod shop/p"},
		}, {
			"and nothing else", cluster.Interest{Kinds: cluster.KindsOf(cluster.KindServiceCIDR, cluster.KindSlice), Labels: "app=none"},
			[]string{"ServiceCIDR kubernetes"},
		}, {
			"namespace labels", cluster.Interest{Kinds: cluster.KindsOf(cluster.KindNamespace), NamespaceLabels: "team=shop"},
			[]string{"Namespace shop"},
		}, {
			"the label of every namespace",
			cluster.Interest{Kinds: cluster.KindsOf(cluster.KindNamespace), NamespaceLabels: "kubernetes.io/metadata.name in (shop,default)"},
			[]string{"Namespace default", "Namespace shop"},
		}, {
			"the pods of a node", cluster.Interest{Kinds: cluster.KindsOf(cluster.KindPod), NodeName: "node-a"},
			[]string{"Pod shop/q"},
		}, {
			"with those that have no address yet", cluster.Interest{Kinds: cluster.KindsOf(cluster.KindPod), NodeName: "node-a", PodHosts: true},
			[]string{"Pod shop/q", "Pod shop/waiting"},
		}, {
			"ConfigMaps by labels of their own", cluster.Interest{Kinds: cluster.KindsOf(cluster.KindConfigMap, cluster.KindPod), Labels: "app", ConfigMapLabels: "ropewalk.dev/host-aliases in (cluster,namespace)"},
			[]string{"Pod shop/p", "ConfigMap shop/all"},
		}, {
			"all ConfigMaps", cluster.Interest{Kinds: cluster.KindsOf(cluster.KindConfigMap)},
			[]string{"ConfigMap shop/all", "ConfigMap shop/other"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := follow(t, dir, tt.interest)
			var got []string
			for k := range cluster.NumKinds {
				for _, o := range l.view.sorted(k) {
					got = append(got, fmt.Sprint(o.Kind(), " ", o.Key()))
					if p, ok := o.(*cluster.Pod); ok && p.Labels != nil {
						t.Errorf("labels that nobody asked for: %v", p.Labels)
					} else if ok && (p.Hosts != nil) != tt.interest.PodHosts {
						t.Errorf("Pod %s has the hosts %v, asked for %t", o.Key(), p.Hosts, tt.interest.PodHosts)
					}
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	s, err := New(dir, nil)
	must(t, err)
	for says, interest := range map[string]cluster.Interest{
		`labels "a in b"`: {Labels: "a in b"}, `namespace labels "=="`: {NamespaceLabels: "=="},
		`ConfigMap labels "a b"`: {ConfigMapLabels: "a b"}, `node name "Node_A"`: {NodeName: "Node_A"},
		`service labels "a b"`: {ServiceLabels: "a b"}, `slice labels "a b"`: {SliceLabels: "a b"}, `node name ""`: {OneNode: true},
	} {
		if err := s.Run(context.Background(), interest, nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("Run(%+v): %v, want an error that says %s", interest, err, says)
		}
	}
}

// What makes a pod's hosts file changes while the pod stays the same one.
func TestPodHosts(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")
	pod := func(notes string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, annotations: {" + notes + "}}\nspec: {nodeName: node-a}\n"
	}
	configMap := func(data string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, namespace: shop, labels: {ropewalk.dev/host-aliases: cluster}}\ndata: {" + data + "}\n"
	}
	write(t, a, pod("other: note"))
	write(t, b, configMap("a: 10.1.2.3 foo"))
	l := follow(t, dir, cluster.Interest{
		Kinds: cluster.KindsOf(cluster.KindPod, cluster.KindConfigMap), PodHosts: true, NodeName: "node-a", ConfigMapLabels: "ropewalk.dev/host-aliases",
	})
	hosts := func() cluster.PodHosts { return *l.get(cluster.KindPod, "shop", "p").(*cluster.Pod).Hosts }
	data := func() string { return l.get(cluster.KindConfigMap, "shop", "m").(*cluster.ConfigMap).Data["a"] }
	first := hosts()
	if len(first.UID) != 36 || first.Annotations != nil {
		t.Errorf("hosts %+v, want a UID and nothing else", first)
	}
	write(t, a, pod("ropewalk.dev/host-aliases: '[]', other: news"))
	eventually(t, "annotated", func() bool { return hosts().Annotations["ropewalk.dev/host-aliases"] == "[]" })
	write(t, b, configMap("a: 10.1.2.4 foo"))
	eventually(t, "changed", func() bool { return data() == "10.1.2.4 foo" })
	if diff := cmp.Diff([]string{"upsert Pod shop/p", "upsert ConfigMap shop/m"}, l.said()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if now := hosts(); now.UID != first.UID || len(now.Annotations) != 1 {
		t.Errorf("hosts %+v, want the UID %s and one annotation", now, first.UID)
	}
	write(t, b, strings.Replace(configMap("a: 10.1.2.4 foo"), "ropewalk.dev/host-aliases", "other", 1))
	eventually(t, "not selected any more", func() bool { return l.get(cluster.KindConfigMap, "shop", "m") == nil })

	other, err := New(dir, slog.New(slog.DiscardHandler))
	must(t, err)
	v, err := Values(other.cluster, cluster.Interest{Kinds: cluster.KindsOf(cluster.KindPod), PodHosts: true})
	must(t, err)
	if uid := v[cluster.KindPod][cluster.Key{Namespace: "shop", Name: "p"}].(*cluster.Pod).Hosts.UID; uid != first.UID {
		t.Errorf("UID %s in another reading, %s in the first", uid, first.UID)
	}
}

// A ConfigMap may be as large as the API takes it, and no larger.
func TestConfigMapSize(t *testing.T) {
	for size, good := range map[int]bool{corev1.MaxSecretSize: true, corev1.MaxSecretSize + 1: false} {
		_, err := Parse("a.yaml", []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata:\n  a: "+strings.Repeat("x", size)+"\n"))
		if (err == nil) != good || !good && !strings.Contains(err.Error(), "a.yaml:5: ConfigMap m: data: 1048577 bytes; want at most 1048576") {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestSlicesAreSplit(t *testing.T) {
	yaml := serviceYAML("web", "selector: {app: web}, ports: [{port: 80}]")
	for i := range 250 {
		yaml += fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: p%03d, namespace: shop, labels: {app: web}}\nstatus: {podIPs: [{ip: 10.244.0.%d}]}\n---\n", i, i)
	}
	objects, err := Parse("a.yaml", []byte(yaml))
	must(t, err)
	c, err := Fill(objects, nil)
	must(t, err)
	got := map[string]int{}
	for _, s := range c.Slices {
		got[s.Name] = len(s.Endpoints)
	}
	if diff := cmp.Diff(map[string]int{"web-ipv4": 100, "web-ipv4-2": 100, "web-ipv4-3": 50}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestNewErrors(t *testing.T) {
	dir := t.TempDir()
	check := func(name, dir string, wants ...string) {
		t.Helper()
		_, err := New(dir, nil)
		if err == nil {
			t.Errorf("%s: no error", name)
			return
		}
		for _, want := range wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q is not in %q", name, want, err)
			}
		}
	}
	check("missing", filepath.Join(dir, "missing"), "no such file or directory; want a directory of Kubernetes YAML")
	write(t, filepath.Join(dir, "a.yaml"), serviceYAML("web", "ports: 1"))
	check("a file", filepath.Join(dir, "a.yaml"), "not a directory; want a directory")
	must(t, os.Symlink("nowhere", filepath.Join(dir, "b.yaml")))
	must(t, os.Mkdir(filepath.Join(dir, "dir.yaml"), 0o755))
	check("bad files", dir, "a.yaml:4: Service shop/web: spec.ports: ", "b.yaml: no such file")

	big := t.TempDir()
	f, err := os.Create(filepath.Join(big, "a.yaml"))
	must(t, err)
	must(t, f.Truncate(maxFile+1))
	must(t, f.Close())
	check("huge", big, "over the limit of")
}

// TestExample reads the example cluster that ships.
func TestExample(t *testing.T) {
	s, err := New("../../corefile/example", nil)
	must(t, err)
	v, err := Values(s.cluster, allKinds)
	must(t, err)
	web := v[cluster.KindService][cluster.Key{Namespace: "shop", Name: "web"}].(*cluster.Service)
	if diff := cmp.Diff("[10.96.12.34]", fmt.Sprint(web.ClusterIPs)); diff != "" {
		t.Errorf("the docs show another address of web: %s", diff)
	}
	if len(s.cluster.Notes) > 0 {
		t.Errorf("notes on the example: %v", s.cluster.Notes)
	}
	var b strings.Builder
	for k := range cluster.NumKinds {
		for _, o := range v.sorted(k) {
			b.WriteString(render(o))
		}
	}
	const path = "testdata/example.txt"
	if *update {
		write(t, path, b.String())
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// An error can stand in a file that has not changed; then files are refused that have nothing to do with it, and must be
// let in after all.
func TestInnocentFiles(t *testing.T) {
	dir := t.TempDir()
	cidr := func(ranges string) string {
		return "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\nspec: {cidrs: [" + ranges + "]}\n"
	}
	write(t, filepath.Join(dir, "a.yaml"), cidr("10.96.0.0/16, 'fd00:10:96::/112'"))
	write(t, filepath.Join(dir, "b.yaml"), serviceYAML("both", "ipFamilyPolicy: RequireDualStack"))
	s, err := New(dir, slog.New(slog.DiscardHandler))
	must(t, err)
	write(t, filepath.Join(dir, "a.yaml"), cidr("10.96.0.0/16"))
	write(t, filepath.Join(dir, "x.yaml"), serviceYAML("x1", "clusterIP: None"))
	write(t, filepath.Join(dir, "y.yaml"), serviceYAML("y1", "clusterIP: None"))
	s.refresh(nil)
	var names []string
	for _, svc := range s.cluster.Services {
		names = append(names, svc.Name)
	}
	if diff := cmp.Diff([]string{"kubernetes", "both", "x1", "y1"}, names); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for name, f := range s.files {
		if bad := name == "a.yaml"; (f.err != nil) != bad {
			t.Errorf("%s: %v", name, f.err)
		}
	}
	if s.Age() == 0 {
		t.Error("age 0 while a file is refused")
	}
}

// What changes between New and Run is in the first listing.
func TestChangedBeforeRun(t *testing.T) {
	dir := t.TempDir()
	s, err := New(dir, slog.New(slog.DiscardHandler))
	must(t, err)
	write(t, filepath.Join(dir, "a.yaml"), serviceYAML("web", "clusterIP: None"))
	ctx, cancel := context.WithCancel(context.Background())
	r := &recorder{t: t, all: cluster.KindsOf(cluster.KindService)}
	done := make(chan error)
	go func() { done <- s.Run(ctx, cluster.Interest{Kinds: r.all}, r) }()
	eventually(t, "there", func() bool { return r.get(cluster.KindService, "shop", "web") != nil })
	eventually(t, "refused", func() bool { return s.Run(ctx, cluster.Interest{}, r) != nil })
	cancel()
	must(t, <-done)
	for _, c := range r.said() {
		t.Errorf("after the listing: %s", c)
	}

	// The source can run again, and knows what it knew.
	must(t, os.RemoveAll(dir))
	ctx, cancel = context.WithCancel(context.Background())
	r = &recorder{t: t, all: cluster.KindsOf(cluster.KindService)}
	go func() { done <- s.Run(ctx, cluster.Interest{Kinds: r.all}, r) }()
	eventually(t, "there", func() bool { return r.get(cluster.KindService, "shop", "web") != nil && s.Age() > 0 })
	cancel()
	must(t, <-done)
	if s.stale() {
		t.Error("a directory that is gone looks changed, though that is known")
	}
	must(t, os.Mkdir(dir, 0o755))
	write(t, filepath.Join(dir, "a.yaml"), serviceYAML("web", "clusterIP: None"))
	if !s.stale() {
		t.Error("a directory that is back looks the same")
	}
}

// The families of headless services are not in the values, but in the objects (KEP-563).
func TestHeadlessFamilies(t *testing.T) {
	objects, err := Parse("a.yaml", []byte(serviceYAML("with", "clusterIP: None, selector: {a: b}")+serviceYAML("without", "clusterIP: None")))
	must(t, err)
	c, err := Fill(objects, nil)
	must(t, err)
	got := map[string]string{}
	for _, s := range c.Services {
		got[s.Name] = fmt.Sprint(*s.Spec.IPFamilyPolicy, s.Spec.IPFamilies, s.Spec.ClusterIP, s.Spec.ClusterIPs)
	}
	want := map[string]string{
		"kubernetes": "SingleStack[IPv4]10.96.0.1[10.96.0.1]",
		"with":       "SingleStack[IPv4]None[None]",
		"without":    "RequireDualStack[IPv4 IPv6]None[None]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestNotFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	must(t, os.Mkdir(dir, 0o755))
	for _, name := range []string{".hidden.yaml", "a.yaml~", "#a.yaml#", "README.md", "..data"} {
		write(t, filepath.Join(dir, name), "rubbish: [")
	}
	s, err := New(dir, slog.New(slog.DiscardHandler))
	must(t, err)

	// An empty directory that goes and comes back.
	must(t, os.RemoveAll(dir))
	if s.refresh(nil); s.Age() == 0 {
		t.Error("age 0 without directory")
	}
	must(t, os.Mkdir(dir, 0o755))
	if !s.stale() {
		t.Error("the directory's return goes unnoticed")
	}
	if s.refresh(nil); s.Age() != 0 {
		t.Errorf("age %v, want 0", s.Age())
	}
}

// TestReadGone holds that a file which goes after it was listed is no error of the directory's, and that a link that leads nowhere is.
func TestReadGone(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link.yaml")
	if err := os.Symlink("nowhere", link); err != nil {
		t.Fatal(err)
	}
	if _, _, err := read(filepath.Join(dir, "gone.yaml")); !errors.Is(err, errBusy) {
		t.Errorf("gone: %v", err)
	}
	if _, _, err := read(link); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link that leads nowhere: %v", err)
	}
}
