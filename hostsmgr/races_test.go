package hostsmgr

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/amend"
)

// second returns a rig with another Manager of the same node.
func (r *rig) second() *rig {
	r.Helper()
	other := &rig{TB: r.TB, kubelet: r.kubelet, node: r.node, log: &syncBuffer{}, registry: prometheus.NewPedanticRegistry()}
	var err error
	other.manager, err = New(Config{KubeletDir: r.kubelet, NodeHostsFile: r.node, Registerer: other.registry,
		Log: slog.New(slog.NewTextHandler(other.log, nil))})
	r.must(err)
	return other
}

// TestTwoManagers holds that an old and a new one, as during an upgrade, that hear of changes one before the other, come to the same
// end, and that neither takes the other for a pod that fights for its file.
func TestTwoManagers(t *testing.T) {
	old := newRig(t)
	young := old.second()
	objects := manyPods(20)
	for _, o := range objects {
		old.asKubelet(o.(*cluster.Pod))
	}
	var want []cluster.HostAlias
	for i := range 5 {
		for n, r := range []*rig{old, young} {
			if i == 0 {
				r.start()
				r.list(objects...)
				r.ready()
			}
			r.upsert(newConfigMap("cluster", "infra", "m", manyAliases(i%3*100+n, "x.example")))
		}
		old.upsert(newConfigMap("cluster", "infra", "m", fmt.Sprintf("10.9.0.%d both.example", i)))
		young.upsert(newConfigMap("cluster", "infra", "m", fmt.Sprintf("10.9.0.%d both.example", i)))
		want = []cluster.HostAlias{alias(fmt.Sprintf("10.9.0.%d", i), "both.example")}
		for _, o := range objects {
			p := o.(*cluster.Pod)
			old.becomes(old.file(p), old.rendered(p, want...))
		}
	}
	for _, o := range objects { // and it stays so, whoever writes
		p := o.(*cluster.Pod)
		old.asKubelet(p)
		old.becomes(old.file(p), old.rendered(p, want...))
	}
	t.Logf("writes: %v and %v", old.metric("writes_total"), young.metric("writes_total"))
}

// TestADirectoryMadeAgain holds that pods' directories may go and come while they are looked at, which is no failure, and are watched
// afterwards.
func TestADirectoryMadeAgain(t *testing.T) {
	r := newRig(t)
	var pods []*cluster.Pod
	var objects []cluster.Object
	for i := range 30 {
		p := newPod("shop", fmt.Sprintf("web-%d", i), withAlias("10.9.0.1", "a.example"))
		pods, objects = append(pods, p), append(objects, p)
	}
	want := func(p *cluster.Pod) string { return r.rendered(p, alias("10.9.0.1", "a.example")) }
	r.start()
	r.list(objects...)
	r.ready()
	for i := range 10 { // of a pod that does so more often we would hear less
		for n, p := range pods {
			r.asKubelet(p)
			if (i+n)%3 == 0 {
				r.becomes(r.file(p), want(p))
			}
			r.must(os.RemoveAll(r.dir(p))) // nothing of ours is in the way
		}
	}
	for range 2 {
		for _, p := range pods {
			r.asKubelet(p)
			r.becomes(r.file(p), want(p))
		}
	}
	if n := r.metric("failures_total"); n > 0 {
		t.Errorf("%v failures", n)
	}
}

// TestAtOnce has the kubelet, a hook and the manager write to a file at once, while the pod's annotation changes.
func TestAtOnce(t *testing.T) {
	r := newRig(t)
	p := newPod("shop", "web")
	r.asKubelet(p)
	r.start()
	r.list(p)
	r.ready()
	inode, plain := r.inode(r.file(p)), r.rendered(p)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 1000 {
			_, err := amend.File(r.kubelet, p.Hosts.UID, []cluster.HostAlias{alias("10.9.0.1", fmt.Sprintf("hook-%d.example", i%7))}, 0)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			if err := os.WriteFile(r.file(p), []byte(plain), 0o644); err != nil {
				t.Error(err)
			}
		}
	}()
	for i, on := 0, true; on; i++ {
		select {
		case <-done:
			on = false
		default:
			r.upsert(newPod("shop", "web", withAlias("10.9.0.2", fmt.Sprintf("a%d.example", i))))
		}
	}
	r.upsert(newPod("shop", "web", withAlias("10.9.0.2", "last.example")))
	r.becomes(r.file(p), r.rendered(p, alias("10.9.0.2", "last.example")))
	if r.inode(r.file(p)) != inode {
		t.Error("another inode")
	}
}
