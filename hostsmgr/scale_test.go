package hostsmgr

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func manyAliases(n int, domain string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "10.%d.%d.%d service-%d.%s\n", i/62500, i/250%250, i%250+1, i, domain)
	}
	return b.String()
}

func manyPods(n int) (os []cluster.Object) {
	for i := range n {
		os = append(os, newPod(fmt.Sprintf("ns-%d", i%20), fmt.Sprintf("web-%d", i), withIPs(fmt.Sprintf("10.244.%d.%d", i/250, i%250+1))))
	}
	return os
}

// TestALargeNode brings 5,000 aliases into the files of 500 pods, and says what it costs.
func TestALargeNode(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 500 files of 150 KB")
	}
	r := newRig(t)
	pods := manyPods(500)
	for _, o := range pods {
		r.asKubelet(o.(*cluster.Pod))
	}
	r.start()
	used := usage(t)
	r.list(append(pods, newConfigMap("cluster", "infra", "m", manyAliases(5000, "first.example.com")))...)
	r.ready()
	t.Logf("start: %s", usage(t).since(used))

	written := r.metric("change_to_written_seconds")
	used = usage(t)
	r.upsert(newConfigMap("cluster", "infra", "m", manyAliases(5000, "second.example.com")))
	r.eventually("all are written", func() bool { return r.metric("change_to_written_seconds") >= written+500 })
	t.Logf("another 5,000 for all: %s, %.0f bytes in all", usage(t).since(used), r.metric("written_bytes_total"))
	for _, o := range pods {
		if text := r.read(r.file(o.(*cluster.Pod))); strings.Count(text, "second.example.com") != 5000 || strings.Contains(text, "first.") {
			t.Fatalf("%s: %d of 5,000", o.Key(), strings.Count(text, "second.example.com"))
		}
	}

	// One pod's or namespace's change costs what it touches.
	writes := r.metric("writes_total")
	r.upsert(newConfigMap("namespace", "ns-3", "m", "10.9.0.1 own.example.com"))
	r.eventually("the namespace's are written", func() bool { return r.metric("writes_total") >= writes+25 })
	used = usage(t)
	p := newPod("ns-0", "web-0", withIPs("10.244.9.9"))
	r.upsert(p)
	r.eventually("the pod's is written", func() bool { return r.metric("writes_total") >= writes+26 })
	t.Logf("one pod's address: %s", usage(t).since(used))
	if n := r.metric("writes_total") - writes; n != 26 {
		t.Errorf("%v writes for a namespace of 25 pods and one more", n)
	}
	if n := r.metric("repairs_total"); n != 0 {
		t.Errorf("%v repairs", n)
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("heap in use: %.1f MB", float64(m.HeapInuse)/1e6)
}

// used is what a process has used up.
type used struct {
	at     time.Time
	cpu    time.Duration
	allocs uint64
}

func usage(t testing.TB) used {
	var ru syscall.Rusage
	ok(t, syscall.Getrusage(syscall.RUSAGE_SELF, &ru))
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return used{time.Now(), time.Duration(ru.Utime.Nano() + ru.Stime.Nano()), m.TotalAlloc}
}

func (u used) since(before used) string {
	return fmt.Sprintf("%v, %v of CPU, %.1f MB allocated", u.at.Sub(before.at).Round(time.Millisecond),
		(u.cpu - before.cpu).Round(time.Millisecond), float64(u.allocs-before.allocs)/1e6)
}

// BenchmarkChange is the time from the arrival of a pod's change to its file's new content, with 100 pods on the node, and from
// the kubelet's rewrite to the repair.
func BenchmarkChange(b *testing.B) {
	for _, aliases := range []int{0, 5000} {
		r := newRig(b)
		objects := manyPods(100)
		for _, o := range objects {
			r.asKubelet(o.(*cluster.Pod))
		}
		r.start()
		if aliases > 0 {
			objects = append(objects, newConfigMap("cluster", "infra", "m", manyAliases(aliases, "example.com")))
		}
		r.list(objects...)
		r.ready()
		n := 0
		b.Run(fmt.Sprintf("annotation/aliases=%d", aliases), func(b *testing.B) {
			measure(b, func() time.Duration {
				n++
				return change(r, objects[n%100].(*cluster.Pod), fmt.Sprintf("a%d.example", n))
			})
		})
		b.Run(fmt.Sprintf("rewrite/aliases=%d", aliases), func(b *testing.B) {
			measure(b, func() time.Duration {
				n++
				p := newPod("shop", fmt.Sprintf("new-%d", n), withAlias("10.9.0.1", "a.example")) // else it would be held up
				r.asKubelet(p)
				change(r, p, "b.example")
				d := rewrite(r, p)
				r.apply(cluster.Deleted(cluster.KindPod, p.Key(), time.Now()))
				return d
			})
		})
		r.stop()
	}
}

// change gives a pod an alias by annotation and returns how long it takes until it is in the file.
func change(r *rig, p *cluster.Pod, name string) time.Duration {
	p = newPod(p.Namespace, p.Name, withAlias("10.9.0.1", name), func(c *cluster.Pod) { c.IPs = p.IPs })
	start := time.Now()
	r.upsert(p)
	return r.untilIn(p, name, start)
}

// rewrite is a kubelet's; the file has the alias again at the end of the time that is returned.
func rewrite(r *rig, p *cluster.Pod) time.Duration {
	start := time.Now()
	r.asKubelet(p)
	return r.untilIn(p, "b.example", start)
}

func (r *rig) untilIn(p *cluster.Pod, name string, start time.Time) time.Duration {
	f, err := os.Open(r.file(p))
	r.must(err)
	defer f.Close()
	buf := make([]byte, 1024) // the annotation's come first
	for {
		n, _ := f.ReadAt(buf, 0)
		d := time.Since(start)
		if strings.Contains(string(buf[:n]), "\t"+name+"\n") {
			return d
		}
		if d > 20*time.Second {
			r.Fatalf("%s is not in %s", name, buf[:n])
		}
		time.Sleep(20 * time.Microsecond)
	}
}

func measure(b *testing.B, f func() time.Duration) {
	var ds []time.Duration
	b.ReportAllocs()
	for b.Loop() {
		ds = append(ds, f())
	}
	slices.Sort(ds)
	b.ReportMetric(float64(ds[len(ds)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(ds[len(ds)*99/100].Microseconds()), "p99-us")
}
