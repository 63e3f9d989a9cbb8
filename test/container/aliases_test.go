package container

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/apiserver"
	"github.com/ropewalk-net/ropewalk/hostsmgr"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

const nodeName = "node-1"

// node is one with an API server, the manager of its hosts files, and pods.
type node struct {
	testing.TB
	dir string
	api *standin.Server
}

func newNode(t testing.TB, pods ...*corev1.Pod) *node {
	t.Helper()
	n := &node{t, t.TempDir(), standin.New(t)}
	nodeHosts := filepath.Join(n.dir, "etc", "hosts")
	must(t, os.Mkdir(filepath.Dir(nodeHosts), 0o755))
	must(t, os.WriteFile(nodeHosts, nil, 0o644))
	for _, p := range pods {
		n.api.Apply(p)
	}
	n.identify(pods)
	for _, p := range pods {
		n.restart(p)
	}
	manager, err := hostsmgr.New(hostsmgr.Config{KubeletDir: n.dir, NodeHostsFile: nodeHosts, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	source, err := apiserver.New(apiserver.Config{Endpoint: n.api.URL(), Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func() error{
		func() error { return manager.Run(ctx) },
		func() error { return source.Run(ctx, hostsmgr.Interest(nodeName), manager) },
	} {
		wg.Go(func() {
			if err := run(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(wg.Wait)
	t.Cleanup(cancel)
	for end := time.Now().Add(patience); manager.Ready() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(manager.Ready())
		}
	}
	return n
}

func newPod(i int) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("web-", i)},
		Spec:       corev1.PodSpec{NodeName: nodeName, Containers: []corev1.Container{{Name: "web"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.244.%d.%d", i/250, i%250+1)}}},
	}
}

// identify gives pods the UIDs that the API server has given them.
func (n *node) identify(pods []*corev1.Pod) {
	n.Helper()
	r, err := http.Get(n.api.URL() + "/api/v1/pods")
	must(n, err)
	defer r.Body.Close()
	var list corev1.PodList
	must(n, json.NewDecoder(r.Body).Decode(&list))
	uids := map[string]types.UID{}
	for _, p := range list.Items {
		uids[p.Name] = p.UID
	}
	for _, p := range pods {
		p.UID = uids[p.Name]
	}
}

func (n *node) file(p *corev1.Pod) string { return HostsFile(n, n.dir, string(p.UID)) }

// restart does to a pod's file what the kubelet does when it starts a container: all aliases but those of the spec are gone.
func (n *node) restart(p *corev1.Pod) {
	n.Helper()
	must(n, os.WriteFile(n.file(p), []byte(rendered(n, p)), 0o644))
}

// annotate gives a pod one alias more, and returns what has to be in its file then.
func (n *node) annotate(p *corev1.Pod, ip, name string) {
	n.Helper()
	p.Annotations = map[string]string{hostsfile.AliasesKey: fmt.Sprintf(`[{"ip": %q, "hostnames": [%q]}]`, ip, name)}
	n.api.Apply(p)
}

func rendered(t testing.TB, p *corev1.Pod, more ...cluster.HostAlias) string {
	t.Helper()
	v := &cluster.Pod{Namespace: p.Namespace, Name: p.Name, Hosts: &cluster.PodHosts{}}
	for _, ip := range p.Status.PodIPs {
		v.IPs = append(v.IPs, netip.MustParseAddr(ip.IP))
	}
	b, err := hostsfile.Render(v, hostsfile.Node{ClusterDomain: "cluster.local"}, more...)
	must(t, err)
	return string(b)
}

// TestAliases: what the API says of a running pod is in its containers' /etc/hosts, under the inode that they have mounted, and
// still is when the kubelet has written to the file.
func TestAliases(t *testing.T) {
	b := Build(t)
	pod := newPod(0)
	n := newNode(t, pod)
	c := b.Start(t, n.file(pod))
	content, inode := c.Hosts()
	if want := rendered(t, pod); content != want {
		t.Fatalf("at first:\n%s\nwant\n%s", content, want)
	}
	seen := func(what, want string) {
		t.Helper()
		if now := c.Expect(want)(); now != inode || now != inodeOf(t, n.file(pod)) {
			t.Errorf("%s: inode %d, was %d; outside %d", what, now, inode, inodeOf(t, n.file(pod)))
		}
	}
	foo := cluster.HostAlias{IP: "10.1.2.3", Hostnames: []string{"foo.remote"}}
	n.annotate(pod, foo.IP, foo.Hostnames[0])
	seen("an alias by annotation", rendered(t, pod, foo))

	n.restart(pod)
	seen("the kubelet has rewritten the file", rendered(t, pod, foo))
	other := b.Start(t, n.file(pod))
	if content, now := other.Hosts(); now != inode || content != rendered(t, pod, foo) {
		t.Errorf("a container that starts then: inode %d, want %d\n%s", now, inode, content)
	}

	pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: "2001:db8::4"})
	n.api.Apply(pod)
	seen("another address", rendered(t, pod, foo))
	n.api.Apply(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "names", Labels: map[string]string{hostsfile.AliasesKey: hostsfile.ScopeNamespace}},
		Data:       map[string]string{"hosts": "10.7.7.7 bar.remote\n"},
	})
	seen("an alias by ConfigMap", rendered(t, pod, foo, cluster.HostAlias{IP: "10.7.7.7", Hostnames: []string{"bar.remote"}}))
	pod.Annotations = nil
	n.api.Apply(pod)
	seen("no annotation", rendered(t, pod, cluster.HostAlias{IP: "10.7.7.7", Hostnames: []string{"bar.remote"}}))
}

// BenchmarkAlias measures how long it takes from when the API server has a pod's annotation until a process in the pod's container
// reads the alias in /etc/hosts, on a node of 500 pods.
func BenchmarkAlias(b *testing.B) {
	bundle := Build(b)
	var pods []*corev1.Pod
	for i := range 500 {
		pods = append(pods, newPod(i))
	}
	n := newNode(b, pods...)
	pod := pods[0]
	c := bundle.Start(b, n.file(pod))
	_, inode := c.Hosts()
	var took []time.Duration
	for b.Loop() {
		foo := cluster.HostAlias{IP: "10.1.2.3", Hostnames: []string{fmt.Sprintf("foo-%d.remote", len(took))}}
		wait := c.Expect(rendered(b, pod, foo))
		began := time.Now()
		n.annotate(pod, foo.IP, foo.Hostnames[0])
		now := wait()
		took = append(took, time.Since(began))
		if now != inode {
			b.Fatalf("inode %d, was %d", now, inode)
		}
	}
	slices.Sort(took)
	for _, q := range []int{50, 99} {
		b.ReportMetric(float64(took[(len(took)-1)*q/100])/1e6, fmt.Sprintf("p%d-ms", q))
	}
	b.ReportMetric(float64(took[len(took)-1])/1e6, "max-ms")
	b.ReportMetric(0, "ns/op")
}
