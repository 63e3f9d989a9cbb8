package hostsmgr

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestNothingIsWrittenBeforeAllIsKnown holds that a file never has fewer aliases at the start than it had.
func TestNothingIsWrittenBeforeAllIsKnown(t *testing.T) {
	r := newRig(t)
	p, node := newPod("shop", "web"), newPod("shop", "agent", onHostNetwork)
	r.asKubelet(p)
	r.asKubelet(node)
	full := r.rendered(p, alias("10.9.0.1", "db.example.com"))
	r.write(r.file(p), full)
	r.start()
	r.apply(cluster.Change{Op: cluster.Replace, Kind: cluster.KindPod})
	r.upsert(p, node)
	r.apply(cluster.Change{Op: cluster.Synced, Kind: cluster.KindPod}, cluster.Change{Op: cluster.Replace, Kind: cluster.KindConfigMap})
	for range queueLen * 2 { // the worker takes changes in order: it has seen the pods when it has taken these
		r.apply(cluster.Deleted(cluster.KindConfigMap, cluster.Key{Namespace: "x", Name: "y"}, time.Now()))
	}
	if r.manager.Ready() == nil || r.metric("writes_total")+r.metric("skips_total") != 0 {
		t.Errorf("ready %v, %v writes before the ConfigMaps are known", r.manager.Ready() == nil, r.metric("writes_total"))
	}
	r.upsert(newConfigMap("namespace", "shop", "aliases", "10.9.0.1 db.example.com"))
	r.apply(cluster.Change{Op: cluster.Synced, Kind: cluster.KindConfigMap})
	r.ready()
	if got := r.read(r.file(p)); got != full {
		t.Error(cmp.Diff(full, got))
	}
	if n := r.metric("writes_total"); n != 1 { // node's, for the alias
		t.Errorf("%v writes, want 1", n)
	}
	if n := r.metric("files"); n != 2 {
		t.Errorf("%v files, want 2", n)
	}
}

// TestChangesReachTheFile goes through what may change in the life of a pod. The file keeps its inode.
func TestChangesReachTheFile(t *testing.T) {
	r := newRig(t)
	p := newPod("shop", "web")
	r.asKubelet(p)
	inode := r.inode(r.file(p))
	r.start()
	r.list(p)
	r.ready()

	steps := []struct {
		name    string
		changes []cluster.Change
		pod     *cluster.Pod
		more    []cluster.HostAlias
	}{
		{"an annotation", []cluster.Change{up(newPod("shop", "web", withAlias("10.9.0.1", "a.example")))}, nil,
			[]cluster.HostAlias{alias("10.9.0.1", "a.example")}},
		{"of the namespace", []cluster.Change{up(newConfigMap("namespace", "shop", "m", "10.9.0.2 b.example b\n"))}, nil,
			[]cluster.HostAlias{alias("10.9.0.1", "a.example"), alias("10.9.0.2", "b.example", "b")}},
		{"of the cluster", []cluster.Change{up(newConfigMap("cluster", "infra", "m", "10.9.0.3 c.example"))}, nil,
			[]cluster.HostAlias{alias("10.9.0.1", "a.example"), alias("10.9.0.2", "b.example", "b"), alias("10.9.0.3", "c.example")}},
		{"the annotation is broken", []cluster.Change{up(newPod("shop", "web", annotated("[{")))}, nil,
			[]cluster.HostAlias{alias("10.9.0.2", "b.example", "b"), alias("10.9.0.3", "c.example")}},
		{"another address", []cluster.Change{up(newPod("shop", "web", withIPs("10.244.1.5", "2001:db8::5")))},
			newPod("shop", "web", withIPs("10.244.1.5", "2001:db8::5")),
			[]cluster.HostAlias{alias("10.9.0.2", "b.example", "b"), alias("10.9.0.3", "c.example")}},
		{"the ConfigMaps go", []cluster.Change{
			cluster.Deleted(cluster.KindConfigMap, cluster.Key{Namespace: "shop", Name: "m"}, time.Now()),
			cluster.Deleted(cluster.KindConfigMap, cluster.Key{Namespace: "infra", Name: "m"}, time.Now()),
		}, newPod("shop", "web", withIPs("10.244.1.5", "2001:db8::5")), nil},
	}
	for _, s := range steps {
		r.apply(s.changes...)
		if s.pod == nil {
			s.pod = p
		}
		r.becomes(r.file(p), r.rendered(s.pod, s.more...))
		if got := r.inode(r.file(p)); got != inode {
			t.Fatalf("%s: inode %d, was %d", s.name, got, inode)
		}
	}
	if n := r.metric("failures_total", "reason=pod"); n != 1 {
		t.Errorf("%v failures for the broken annotation, want 1", n)
	}
	if r.metric("change_to_written_seconds") == 0 || r.metric("written_bytes_total") == 0 || r.metric("repairs_total") != 0 {
		t.Error("the metrics do not tell of it")
	}
}

func up(o cluster.Object) cluster.Change { return cluster.Upserted(o, time.Now()) }

// TestFilesOfTheKubelet holds that no file or directory is made or deleted, that the kubelet's are found when it makes
// them, in whatever steps, and are put right after it has rewritten them.
func TestFilesOfTheKubelet(t *testing.T) {
	r := newRig(t)
	p := newPod("shop", "web", withAlias("10.9.0.1", "a.example"))
	want, plain := r.rendered(p, alias("10.9.0.1", "a.example")), r.rendered(p)
	r.start()
	r.list(p)
	r.ready()
	if entries, err := os.ReadDir(filepath.Join(r.kubelet, "pods")); err != nil || len(entries) > 0 {
		t.Fatalf("made %v, %v", entries, err)
	}
	r.must(os.Mkdir(r.dir(p), 0o750))
	r.asKubelet(p)
	r.becomes(r.file(p), want)
	inode := r.inode(r.file(p))
	for range 10 { // as for the containers of a pod
		r.write(r.file(p), plain)
		r.becomes(r.file(p), want)
	}
	if r.inode(r.file(p)) != inode {
		t.Error("another inode")
	}
	if n := r.metric("repairs_total"); n < 10 {
		t.Errorf("%v repairs, want 10", n)
	}

	r.must(os.RemoveAll(r.dir(p)))
	r.asKubelet(p)
	r.becomes(r.file(p), want)
	r.must(os.Rename(r.dir(p), r.dir(p)+".away"))
	r.must(os.Mkdir(r.dir(p), 0o750))
	r.write(r.file(p)+".new", plain)
	r.must(os.Rename(r.file(p)+".new", r.file(p)))
	r.becomes(r.file(p), want)

	r.apply(cluster.Deleted(cluster.KindPod, p.Key(), time.Now()))
	r.eventually("forgotten", func() bool { return r.metric("files") == 0 })
	if got := r.read(r.file(p)); got != want {
		t.Errorf("the file of a pod that is gone holds %q", got)
	}
	r.write(r.file(p), plain)
	r.upsert(newPod("shop", "other")) // taken in after the event of the write
	r.must(os.Mkdir(r.dir(newPod("shop", "other")), 0o750))
	r.asKubelet(newPod("shop", "other"))
	r.eventually("the other one is seen to", func() bool { return r.metric("files") == 1 })
	if got := r.read(r.file(p)); got != plain {
		t.Error("the file of a pod that is gone is still written")
	}
}

// TestThePodsDirectory goes away and comes back, as when a node is set up anew.
func TestThePodsDirectory(t *testing.T) {
	r := newRig(t)
	p := newPod("shop", "web", withAlias("10.9.0.1", "a.example"))
	want := r.rendered(p, alias("10.9.0.1", "a.example"))
	pods := filepath.Join(r.kubelet, "pods")
	r.must(os.Remove(pods))
	r.start()
	r.eventually("it says what it waits for", func() bool { return strings.Contains(r.log.String(), "made no directory") })
	// Until then it holds up nobody who hears of the cluster from the same source.
	for range 2 * queueLen {
		r.upsert(p)
	}
	r.list(p)
	if r.manager.Ready() == nil {
		t.Error("it is ready, and has not seen to any file")
	}
	r.must(os.Mkdir(pods, 0o755))
	for range 2 {
		r.asKubelet(p)
		r.becomes(r.file(p), want)
		r.must(os.RemoveAll(pods))
		r.eventually("it notices", func() bool { return strings.Count(r.log.String(), "pods is gone") > 0 })
		r.must(os.Mkdir(pods, 0o755))
	}
}

// TestWritesFromAContainer holds that what a pod writes through its own mount of the file is noticed: the watch is one of a
// directory that the container does not see.
func TestWritesFromAContainer(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := newRig(t)
	p := newPod("shop", "web", withAlias("10.9.0.1", "a.example"))
	want := r.rendered(p, alias("10.9.0.1", "a.example"))
	r.asKubelet(p)
	container := filepath.Join(t.TempDir(), "hosts")
	r.write(container, "")
	r.must(syscall.Mount(r.file(p), container, "", syscall.MS_BIND, ""))
	defer syscall.Unmount(container, 0)
	r.start()
	r.list(p)
	r.becomes(container, want)
	for range 5 {
		f, err := os.OpenFile(container, os.O_APPEND|os.O_WRONLY, 0)
		r.must(err)
		_, err = f.WriteString("6.6.6.6 a.example\n")
		r.must(errors.Join(err, f.Close()))
		r.becomes(container, want)
		r.must(os.Chmod(container, 0o600))
		r.eventually("the mode", func() bool { fi, err := os.Stat(container); return err == nil && fi.Mode() == 0o644 })
	}
	if n := r.metric("repairs_total"); n < 10 {
		t.Errorf("%v repairs, want 10", n)
	}
}

// TestARestlessPod holds that a pod that rewrites its file without end costs little, is told of once, and does not keep another
// pod from its own.
func TestARestlessPod(t *testing.T) {
	r := newRig(t)
	p, other := newPod("shop", "restless"), newPod("shop", "web")
	r.asKubelet(p)
	r.asKubelet(other)
	r.start()
	r.list(p, other)
	r.ready()
	for n := 0; !strings.Contains(r.log.String(), "keeps rewriting"); n++ {
		if n > 300_000 {
			t.Fatal("rewritten 300,000 times, and nothing is said of it")
		}
		r.write(r.file(p), "6.6.6.6 localhost\n")
	}
	repairs := r.metric("repairs_total")
	if repairs > paceBurst {
		t.Errorf("%v repairs, want %d at most", repairs, paceBurst)
	}
	for range 1000 {
		r.write(r.file(p), "6.6.6.6 localhost\n")
	}
	r.upsert(newPod("shop", "web", withAlias("10.9.0.1", "a.example")))
	r.becomes(r.file(other), r.rendered(other, alias("10.9.0.1", "a.example")))
	r.becomes(r.file(p), r.rendered(p)) // after the first wait
	if n := strings.Count(r.log.String(), "keeps rewriting"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// TestOwnWritesAreNotDisturbances holds that changes of a pod do not use up what the kubelet's rewrites are allowed.
func TestOwnWritesAreNotDisturbances(t *testing.T) {
	r := newRig(t)
	p := newPod("shop", "web")
	r.asKubelet(p)
	r.start()
	r.list(p)
	r.ready()
	for i := range 3 * paceBurst {
		name := strings.Repeat("x", i+1) + ".example"
		looked := r.metric("writes_total") + r.metric("skips_total")
		r.upsert(newPod("shop", "web", withAlias("10.9.0.1", name)))
		r.becomes(r.file(p), r.rendered(p, alias("10.9.0.1", name)))
		r.eventually("our own write is looked at", func() bool { return r.metric("writes_total")+r.metric("skips_total") >= looked+2 })
		if strings.Contains(r.log.String(), "keeps rewriting") {
			t.Fatalf("after %d changes, our own writes are taken for a pod's", i)
		}
	}
}

// TestTheNodesFile holds that pods on the node's network follow it, also after an editor has put another in its place, and that
// the block in it is kept and does not reach them twice.
func TestTheNodesFile(t *testing.T) {
	r := newRig(t, func(c *Config) { c.NodeBlock = true })
	p := newPod("infra", "agent", onHostNetwork)
	r.asKubelet(p)
	r.start()
	r.list(p)
	r.ready()
	if got := r.read(r.node); got != nodeHosts {
		t.Fatalf("%q without aliases", got)
	}
	r.upsert(newConfigMap("cluster", "infra", "m", "10.9.0.3 c.example"), newConfigMap("namespace", "infra", "n", "10.9.0.4 d.example"))
	block := string(blockOf([]cluster.HostAlias{alias("10.9.0.3", "c.example")}))
	r.becomes(r.node, nodeHosts+block)
	more := []cluster.HostAlias{alias("10.9.0.4", "d.example"), alias("10.9.0.3", "c.example")}
	r.becomes(r.file(p), r.rendered(p, more...))

	const edited = "127.0.0.1\tlocalhost\n10.0.0.1\tnode edited\n"
	inOrder := func(node string) string {
		b, err := hostsfile.Render(p, hostsfile.Node{Hosts: []byte(node)}, more...)
		r.must(err)
		return string(b)
	}
	for range 3 { // every time another inode
		r.write(r.node+"~", edited)
		r.must(os.Rename(r.node+"~", r.node))
		r.becomes(r.node, edited+block)
		r.becomes(r.file(p), inOrder(edited))
		r.write(r.node, nodeHosts)
		r.becomes(r.node, nodeHosts+block)
		r.becomes(r.file(p), inOrder(nodeHosts))
	}
	damaged := nodeHosts + "# BEGIN ropewalk\n"
	r.write(r.node, damaged)
	r.becomes(r.file(p), inOrder(damaged))
	r.eventually("counted", func() bool { return r.metric("failures_total", "reason=markers") > 0 })
	r.upsert(newConfigMap("cluster", "infra", "m", "10.9.0.5 e.example"))
	more[1] = alias("10.9.0.5", "e.example")
	r.becomes(r.file(p), inOrder(damaged))
	if got := r.read(r.node); got != damaged {
		t.Errorf("a damaged block is guessed at: %q", got)
	}
	r.write(r.node, nodeHosts)
	r.becomes(r.node, nodeHosts+string(blockOf([]cluster.HostAlias{alias("10.9.0.5", "e.example")})))
	r.apply(cluster.Deleted(cluster.KindConfigMap, cluster.Key{Namespace: "infra", Name: "m"}, time.Now()))
	r.becomes(r.node, nodeHosts)
}

// TestTheNodesFileIsOpen holds that nothing is written into the node's file while somebody has it open, who may be about to write the rest of it.
func TestTheNodesFileIsOpen(t *testing.T) {
	r := newRig(t, func(c *Config) { c.NodeBlock = true })
	r.start()
	r.list()
	r.ready()
	editor, err := os.OpenFile(r.node, os.O_WRONLY|os.O_TRUNC, 0)
	r.must(err)
	defer editor.Close()
	r.upsert(newConfigMap("cluster", "infra", "m", "10.9.0.3 c.example"))
	r.eventually("told", func() bool { return r.metric("failures_total", "reason=leased") > 0 })
	if got := r.read(r.node); got != "" {
		t.Errorf("written meanwhile: %q", got)
	}
	_, err = editor.WriteString(nodeHosts)
	r.must(errors.Join(err, editor.Close()))
	r.becomes(r.node, nodeHosts+string(blockOf([]cluster.HostAlias{alias("10.9.0.3", "c.example")})))
}

// TestTheNodesFileInAllShapes holds that pods on the node's network follow it where it is a link, whatever is done to the link or what
// it leads to, and whatever is in it.
func TestTheNodesFileInAllShapes(t *testing.T) {
	r := newRig(t)
	p := newPod("infra", "agent", onHostNetwork, withAlias("10.9.0.1", "a.example"))
	r.asKubelet(p)
	else1, else2 := filepath.Join(t.TempDir(), "hosts"), filepath.Join(t.TempDir(), "hosts")
	r.write(else1, nodeHosts)
	r.must(errors.Join(os.Remove(r.node), os.Symlink(else1, r.node)))
	n := 0
	follows := func(what string, change func(text string)) {
		t.Helper()
		r.again() // one that has not seen many changes, and is not slower for them
		r.start()
		r.list(p)
		r.ready()
		n++
		for _, text := range []string{fmt.Sprintf("127.0.0.1 localhost\n10.0.0.%d node\n", n), fmt.Sprintf("10.0.0.%d node", n), ""} {
			change(text)
			b, err := hostsfile.Render(p, hostsfile.Node{Hosts: []byte(text)}, alias("10.9.0.1", "a.example"))
			r.must(err)
			r.becomes(r.file(p), string(b))
		}
	}
	rename := func(path string) func(string) {
		return func(text string) {
			r.write(path+"~", text)
			r.must(os.Rename(path+"~", path))
		}
	}
	follows("in place", func(text string) { r.write(else1, text) })
	follows("the file that the link leads to is another one", rename(else1))
	follows("the link leads elsewhere", func(text string) {
		r.write(else2, text)
		r.must(errors.Join(os.Symlink(else2, r.node+"~"), os.Rename(r.node+"~", r.node)))
	})
	follows("and in place there", func(text string) { r.write(else2, text) })
	follows("no link any more", rename(r.node))
	follows("deleted and made again", func(text string) {
		r.must(os.Remove(r.node))
		r.write(r.node, text)
	})
	before := r.read(r.file(p))
	r.must(os.Truncate(r.node, 1<<30))
	r.eventually("said", func() bool { return r.metric("failures_total", "reason=too_large") > 0 })
	if got := r.read(r.file(p)); got != before {
		t.Errorf("with a node's file of 1 GB: %.200q", got)
	}
	follows("after that", func(text string) { r.write(r.node, text) })
}

// TestBlockOfBefore holds that pods do not get a block that is in the node's file when we start, whether it is kept or not.
func TestBlockOfBefore(t *testing.T) {
	more := alias("10.9.0.3", "c.example")
	block := nodeHosts + string(blockOf([]cluster.HostAlias{more}))
	for _, keep := range []bool{true, false} {
		r := newRig(t, func(c *Config) { c.NodeBlock = keep })
		p := newPod("infra", "agent", onHostNetwork)
		r.asKubelet(p)
		r.write(r.file(p), strings.Replace(r.rendered(p, more), nodeHosts, block, 1)) // as the kubelet has it
		r.write(r.node, block)
		r.start()
		r.list(p, newConfigMap("cluster", "infra", "m", "10.9.0.3 c.example"))
		r.ready()
		if got := r.read(r.file(p)); got != r.rendered(p, more) {
			t.Errorf("kept %v: %s", keep, got)
		}
		if got := r.read(r.node); got != block {
			t.Errorf("kept %v: the node's: %s", keep, got)
		}
	}
}

// TestTheNodesFileIsMissing for a while: pods that need it wait, others do not.
func TestTheNodesFileIsMissing(t *testing.T) {
	r := newRig(t)
	p, other := newPod("infra", "agent", onHostNetwork), newPod("shop", "web", withAlias("10.9.0.1", "a.example"))
	r.must(os.Remove(r.node))
	r.must(os.MkdirAll(r.dir(p), 0o755))
	r.write(r.file(p), "old\n")
	r.asKubelet(other)
	r.start()
	r.list(p, other)
	r.ready()
	r.becomes(r.file(other), r.rendered(other, alias("10.9.0.1", "a.example")))
	if got := r.read(r.file(p)); got != "old\n" {
		t.Errorf("%q", got)
	}
	r.write(r.node, nodeHosts)
	r.becomes(r.file(p), r.rendered(p))
}

// withoutInotify runs the test once more, in a user namespace in which there is no inotify, and reports whether this is that process.
// To use up all instances that a user may have would take them from everybody's tests.
func withoutInotify(t *testing.T) bool {
	t.Helper()
	const inside = "ROPEWALK_TEST_WITHOUT_INOTIFY"
	if os.Getenv(inside) == t.Name() {
		ok(t, os.WriteFile("/proc/sys/user/max_inotify_instances", []byte("0"), 0)) // of the namespace (namespaces(7))
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	netns.Need(t, !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOSPC), "user namespaces")
	if err != nil {
		t.Errorf("in its namespace: %v\n%s", err, out)
	}
	return false
}

// TestWithoutInotify holds that files are kept right when nothing can be watched, and that the log says what to do.
func TestWithoutInotify(t *testing.T) {
	if !withoutInotify(t) {
		return
	}
	r := newRig(t)
	p := newPod("shop", "web", withAlias("10.9.0.1", "a.example"))
	r.asKubelet(p)
	r.start()
	r.list(p)
	want := r.rendered(p, alias("10.9.0.1", "a.example"))
	r.becomes(r.file(p), want)
	r.write(r.file(p), "else\n")
	r.becomes(r.file(p), want)
	if log := r.log.String(); strings.Count(log, "fs.inotify.max_user_watches") != 1 {
		t.Errorf("the log does not say what to do:\n%s", log)
	}
}

func TestCheck(t *testing.T) {
	r := newRig(t, func(c *Config) { c.NodeBlock, c.MaxSize = true, 4096 })
	right, wrong, gone := newPod("shop", "right"), newPod("shop", "wrong"), newPod("shop", "none")
	linked, large, closed := newPod("shop", "linked"), newPod("shop", "large"), newPod("shop", "closed")
	more := alias("10.9.0.3", "c.example")
	for _, p := range []*cluster.Pod{right, wrong, linked, large, closed} {
		r.must(os.Mkdir(r.dir(p), 0o755))
		r.write(r.file(p), r.rendered(p, more))
	}
	r.asKubelet(wrong)
	r.must(os.Link(r.file(linked), r.file(linked)+"2"))
	r.must(os.Truncate(r.file(large), 1<<30))
	r.must(os.Chmod(r.file(closed), 0o600))
	// A source that goes on after all is synced is not held up.
	delivered := make(chan struct{})
	go func() {
		defer close(delivered)
		r.list(right, wrong, gone, linked, large, closed, newConfigMap("cluster", "infra", "m", "10.9.0.3 c.example"))
		for range 2 * queueLen {
			r.upsert(right)
		}
	}()
	found, err := r.manager.Check(t.Context())
	r.must(err)
	<-delivered
	type line struct {
		Pod       string
		Want, Got int
		Err       bool
	}
	var got []line
	for d := range found {
		got = append(got, line{d.Pod.String(), len(d.Want), len(d.Got), d.Err != nil})
	}
	full := len(r.rendered(right, more))
	want := []line{
		{"shop/closed", len(r.rendered(closed, more)), len(r.rendered(closed, more)), true},
		{"shop/large", full, 4096, true},
		{"shop/linked", len(r.rendered(linked, more)), 0, true},
		{"shop/wrong", full, len(r.rendered(wrong)), false},
		{"", len(nodeHosts) + len(blockOf([]cluster.HostAlias{more})), len(nodeHosts), false},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if r.read(r.node) != nodeHosts || r.read(r.file(wrong)) != r.rendered(wrong) {
		t.Error("Check has written")
	}
	if _, err := r.manager.Check(t.Context()); !errors.Is(err, ErrUsed) {
		t.Errorf("a second Check: %v", err)
	}
	r.again()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.manager.Check(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Check that ends before all is known: %v", err)
	}
}

func TestNew(t *testing.T) {
	for name, c := range map[string]Config{
		"relative kubelet": {KubeletDir: "kubelet"},
		"relative node":    {NodeHostsFile: "hosts"},
		"small":            {MaxSize: 100},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	m, err := New(Config{ClusterDomain: "example.org."})
	if err != nil {
		t.Fatal(err)
	}
	if got := m.config; got.KubeletDir != "/var/lib/kubelet" || got.ClusterDomain != "example.org" || got.MaxSize != 1<<20 {
		t.Errorf("%+v", got)
	}
	r := newRig(t)
	if _, err := New(Config{Registerer: r.registry}); err == nil {
		t.Error("metrics are registered twice, and nothing is said")
	}
}

// newIdleWorker returns the worker of a rig, with all known, and nobody who runs it.
func newIdleWorker(r *rig, objects ...cluster.Object) *worker {
	r.Helper()
	w := newWorker(r.manager)
	var err error
	w.tree, err = podfile.OpenTree(r.manager.podsDir())
	r.must(err)
	r.Cleanup(w.tree.Close)
	w.watch, err = newWatcher(w.tree.Path(), r.node)
	r.must(err)
	r.Cleanup(w.watch.close)
	for _, o := range objects {
		w.take(up(o))
	}
	w.take(cluster.Change{Op: cluster.Synced, Kind: cluster.KindPod})
	w.take(cluster.Change{Op: cluster.Synced, Kind: cluster.KindConfigMap})
	return w
}

// workOff does what is to be done at once.
func workOff(w *worker) {
	for len(w.urgent)+len(w.bulk) > 0 {
		w.work(time.Now())
	}
}

// TestWhatNobodyNeeds holds what no file shows: that there is no more waiting, watching and trying than there has to be.
func TestWhatNobodyNeeds(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxSize = 4096 })
	p := newPod("shop", "web")
	r.asKubelet(p)
	w := newIdleWorker(r, p)
	workOff(w)
	for _, scope := range []string{"cluster", "namespace"} { // changes of one pod wait together
		for i := range 1000 {
			w.take(up(newConfigMap(scope, "shop", scope, fmt.Sprintf("10.9.0.1 a%d.example", i))))
		}
	}
	if n := len(w.urgent) + len(w.bulk); n > 2 {
		t.Errorf("one pod waits %d times", n)
	}
	workOff(w)

	w.take(up(newConfigMap("namespace", "shop", "namespace", manyAliases(100, "x.example"))))
	w.take(up(newConfigMap("cluster", "infra", "m", manyAliases(100, "x.example"))))
	workOff(w)
	if n := r.metric("failures_total", "reason=too_large"); n != 1 || len(w.later) > 0 {
		t.Errorf("a file that is too long has failed %v times, and is to be tried again %d times: nothing but a change helps", n, len(w.later))
	}

	w.take(up(newConfigMap("cluster", "infra", "m", "")))
	workOff(w)
	for range 10 * paceBurst {
		w.disturbed(w.state.pods[p.Key()], time.Now())
		w.later.remove(w.state.pods[p.Key()])
		w.state.pods[p.Key()].file.counted = false
	}
	if slices.Contains(w.watch.WatchList(), r.dir(p)) {
		t.Error("a file that is rewritten without end is watched on")
	}
	w.recheckAll(time.Now())
	workOff(w)
	if !slices.Contains(w.watch.WatchList(), r.dir(p)) {
		t.Error("it is not watched any more")
	}
	r.must(os.RemoveAll(w.tree.Path()))
	if w.recheckAll(time.Now()); !w.lostTree {
		t.Error("a directory that is gone is not noticed without its event")
	}
}

// TestEventsThatAreMissed holds that all files are looked at when inotify has lost events, or gives no more watches, and that
// the log says so once, with what to do.
func TestEventsThatAreMissed(t *testing.T) {
	r := newRig(t)
	p := newPod("shop", "web")
	r.asKubelet(p)
	w := newIdleWorker(r, p)
	now := time.Now()
	w.work(now)
	if wait := w.work(time.Now()); wait < recheck-time.Minute {
		t.Errorf("works again in %v", wait)
	}
	r.write(r.file(p), "something\n")
	w.missed(fsnotify.ErrEventOverflow, now)
	w.work(now)
	if got := r.read(r.file(p)); got != r.rendered(p) {
		t.Errorf("after an overflow: %q", got)
	}

	w.watch.close() // it refuses to watch anything else
	for _, name := range []string{"a", "b"} {
		q := newPod("shop", name)
		r.asKubelet(q)
		w.take(up(q))
		w.work(time.Now())
	}
	if n := strings.Count(r.log.String(), "fs.inotify.max_user_watches"); n != 1 {
		t.Errorf("said %d times what to do", n)
	}
	wait := w.work(time.Now())
	if wait > recheckBlind {
		t.Errorf("looks again in %v", wait)
	}
	r.write(r.file(newPod("shop", "b")), "something\n")
	for range 10 { // one pod each
		w.work(now.Add(time.Minute))
	}
	if got := r.read(r.file(newPod("shop", "b"))); got != r.rendered(newPod("shop", "b")) {
		t.Errorf("without watches: %q", got)
	}
	if n := r.metric("unwatched_files"); n != 2 {
		t.Errorf("%v unwatched files, want 2", n)
	}
}
