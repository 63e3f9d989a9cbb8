package hostsmgr

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// trap is what a hostile pod may put in the place of its file.
type trap struct {
	name string
	// set makes it at file, in dir; outside is a file of somebody else's, which nobody may touch. It returns what takes it away,
	// where that is not os.RemoveAll of the directory.
	set func(t *testing.T, dir, file, outside string) (release func())
	// reason is what is counted; empty if the file can be put right.
	reason string
}

var traps = []trap{
	{"symlink", func(t *testing.T, _, file, outside string) func() {
		ok(t, os.Symlink(outside, file))
		return nil
	}, "symlink"},
	{"dangling symlink", func(t *testing.T, _, file, outside string) func() {
		ok(t, os.Symlink(outside+".none", file))
		return nil
	}, "symlink"},
	{"symlink within the directory", func(t *testing.T, dir, file, _ string) func() {
		ok(t, os.WriteFile(filepath.Join(dir, "other"), nil, 0o644), os.Symlink("other", file))
		return nil
	}, "symlink"},
	{"symlinked directory", func(t *testing.T, dir, _, outside string) func() {
		ok(t, os.Remove(dir), os.Symlink(filepath.Dir(outside), dir))
		return nil
	}, "symlink"},
	{"FIFO", func(t *testing.T, _, file, _ string) func() {
		ok(t, syscall.Mkfifo(file, 0o666))
		return nil
	}, "not_regular"},
	{"directory", func(t *testing.T, _, file, _ string) func() {
		ok(t, os.Mkdir(file, 0o755))
		return nil
	}, "not_regular"},
	{"file for a directory", func(t *testing.T, dir, _, _ string) func() {
		ok(t, os.Remove(dir), os.WriteFile(dir, nil, 0o644))
		return nil
	}, "not_regular"},
	{"socket", func(t *testing.T, dir, file, _ string) func() {
		t.Chdir(dir) // the path may be too long for an address
		l, err := net.Listen("unix", filepath.Base(file))
		ok(t, err)
		return func() { l.Close() }
	}, "not_regular"},
	{"device", func(t *testing.T, _, file, _ string) func() {
		ok(t, syscall.Mknod(file, syscall.S_IFCHR|0o666, 1<<8|7)) // /dev/full
		return nil
	}, "not_regular"},
	{"hard link", func(t *testing.T, _, file, outside string) func() {
		ok(t, os.Link(outside, file))
		return nil
	}, "linked"},
	{"1 GB", func(t *testing.T, _, file, _ string) func() {
		ok(t, os.WriteFile(file, nil, 0o644), os.Truncate(file, 1<<30))
		return nil
	}, ""},
	{"mode 000", func(t *testing.T, _, file, _ string) func() {
		ok(t, os.WriteFile(file, nil, 0o000))
		return nil
	}, ""},
	{"set-user-ID", func(t *testing.T, _, file, _ string) func() {
		ok(t, os.WriteFile(file, nil, 0o755), os.Chmod(file, 0o755|os.ModeSetuid))
		return nil
	}, ""},
	{"no text", func(t *testing.T, _, file, _ string) func() {
		ok(t, os.WriteFile(file, []byte(strings.Repeat("\x00\xff", 10000)), 0o644))
		return nil
	}, ""},
	{"lease", func(t *testing.T, _, file, _ string) func() {
		f, err := os.Create(file)
		ok(t, err)
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
		ok(t, err)
		return func() { f.Close() }
	}, "leased"},
	{"running program", func(t *testing.T, _, file, _ string) func() {
		program, err := exec.LookPath("sleep")
		ok(t, err)
		b, err := os.ReadFile(program)
		ok(t, err, os.WriteFile(file, b, 0o755))
		cmd := exec.Command(file, "1000")
		// Start returns after exec.
		ok(t, cmd.Start())
		return func() {
			ok(t, cmd.Process.Kill())
			_ = cmd.Wait()
		}
	}, "busy"},
	{"immutable", func(t *testing.T, _, file, _ string) func() {
		f, err := os.Create(file)
		ok(t, err, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, unix.STATX_ATTR_IMMUTABLE /* FS_IMMUTABLE_FL */))
		return func() {
			ok(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0))
			f.Close()
		}
	}, "denied"},
	{"mount", func(t *testing.T, dir, _, _ string) func() {
		ok(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, ""), os.WriteFile(filepath.Join(dir, "etc-hosts"), nil, 0o644))
		return func() { ok(t, syscall.Unmount(dir, 0)) }
	}, "other_filesystem"},
}

func ok(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// TestHostilePods holds that whatever a pod puts in the place of its file harms nothing outside, is told by its reason, holds up
// no other pod, and is over when it is over.
func TestHostilePods(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	for _, trap := range traps {
		t.Run(trap.name, func(t *testing.T) { spring(t, trap) })
	}
}

func spring(t *testing.T, trap trap) {
	r := newRig(t)
	outside := filepath.Join(t.TempDir(), "etc-hosts")
	r.write(outside, "of somebody else\n")
	r.must(os.Chmod(outside, 0o640))
	before, err := os.Stat(outside)
	r.must(err)

	p, other := newPod("shop", "hostile", withAlias("10.9.0.1", "a.example")), newPod("shop", "web")
	r.asKubelet(other)
	r.must(os.Mkdir(r.dir(p), 0o755))
	release := trap.set(t, r.dir(p), r.file(p), outside)
	defer func() {
		if release != nil {
			release()
		}
	}()
	r.start()
	r.list(p, other)
	r.ready()
	want := r.rendered(p, alias("10.9.0.1", "a.example"))
	r.upsert(newPod("shop", "web", withAlias("10.9.0.1", "a.example")))
	r.becomes(r.file(other), r.rendered(other, alias("10.9.0.1", "a.example")))
	if trap.reason != "" {
		r.eventually("counted as "+trap.reason, func() bool { return r.metric("failures_total", "reason="+trap.reason) > 0 })
		if n := strings.Count(r.log.String(), "cannot make the hosts file right"); n != 1 {
			t.Errorf("said %d times", n)
		}
		if release != nil {
			release()
			release = nil
		}
		if trap.name != "lease" { // that one ends by itself
			r.must(os.RemoveAll(r.dir(p)))
			r.asKubelet(p)
		}
	}
	r.becomes(r.file(p), want)
	r.eventually("the mode", func() bool { fi, err := os.Stat(r.file(p)); return err == nil && fi.Mode() == 0o644 })
	after, err := os.Stat(outside)
	r.must(err)
	if after.Mode() != before.Mode() || !after.ModTime().Equal(before.ModTime()) || r.read(outside) != "of somebody else\n" {
		t.Errorf("what is outside was touched: %v %v, before %v %v", after.Mode(), after.ModTime(), before.Mode(), before.ModTime())
	}
	if _, err := os.Lstat(outside + ".none"); err == nil {
		t.Error("a file was made outside")
	}
	if total := r.metric("failures_total"); trap.reason == "" && total > 0 {
		t.Errorf("%v failures", total)
	}
}

// TestALargeFileIsNotRead holds that the memory that a file costs does not depend on its size.
func TestALargeFileIsNotRead(t *testing.T) {
	r := newRig(t)
	p := newPod("shop", "web")
	r.must(os.Mkdir(r.dir(p), 0o755))
	w := newWorker(r.manager)
	w.state.take(up(p))
	var err error
	w.tree, err = podfile.OpenTree(r.manager.podsDir())
	r.must(err)
	defer w.tree.Close()
	cost := func(size int64) int64 {
		return testing.Benchmark(func(b *testing.B) {
			for b.Loop() {
				r.must(errors.Join(os.WriteFile(r.file(p), nil, 0o644), os.Truncate(r.file(p), size)))
				if _, err := w.bring(w.state.pods[p.Key()]); err != nil {
					b.Fatal(err)
				}
			}
		}).AllocedBytesPerOp()
	}
	small, large := cost(100), cost(1<<30)
	t.Logf("%d bytes for a small file, %d for 1 GB", small, large)
	if large > small+64<<10 || cap(w.buf) > 64<<10 {
		t.Errorf("%d bytes allocated for a file of 1 GB, %d for a small one; %d are kept", large, small, cap(w.buf))
	}
}

var races = flag.Int("races", 30000, "how often TestSwappedWhileWritten tries")

// TestSwappedWhileWritten replaces a file by links and back, without end, while it is written. The files that the links lead
// to stay as they are.
func TestSwappedWhileWritten(t *testing.T) {
	r := newRig(t)
	p := newPod("shop", "web")
	r.asKubelet(p)
	outside := filepath.Join(r.kubelet, "outside") // on the same file system, for hard links
	r.write(outside, "of somebody else\n")
	w := newWorker(r.manager)
	w.state.take(up(p))
	var err error
	w.tree, err = podfile.OpenTree(r.manager.podsDir())
	r.must(err)
	defer w.tree.Close()

	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			next := r.dir(p) + "/next"
			switch i % 3 {
			case 0:
				err = os.Symlink(outside, next)
			case 1:
				err = os.Link(outside, next)
			case 2:
				err = os.WriteFile(next, []byte("127.0.0.1 localhost\n"), 0o644)
			}
			if err = errors.Join(err, os.Rename(next, r.file(p))); err == nil && i%3 == 1 {
				// A rename between two names of one file does nothing.
				err = os.Remove(next)
				if errors.Is(err, os.ErrNotExist) {
					err = nil
				}
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	var wrote int
	reasons := map[string]int{}
	known := w.state.pods[p.Key()]
	for i := 0; i < *races || (wrote == 0 || len(reasons) < 2) && i < 1_000_000; i++ {
		w.state.take(up(newPod("shop", "web", withAlias("10.9.0.1", fmt.Sprintf("a%d.example", i)))))
		known.file.stale = true
		switch res, err := w.bring(known); {
		case err != nil:
			reasons[reason(err)]++
		case res.wrote:
			wrote++
		}
	}
	close(stop)
	swapper.Wait()
	t.Logf("%d writes, refused: %v", wrote, reasons)
	if got := r.read(outside); got != "of somebody else\n" {
		t.Errorf("a file outside holds %q", got)
	}
	if wrote == 0 || reasons["symlink"] == 0 || reasons["linked"] == 0 {
		t.Error("the race was not run")
	}
}

// TestDiskFull holds that a file stays as it is when there is no room for a longer one, that this is said, and that the longer
// one comes when there is room again. On ext2, nothing can be allocated beforehand.
func TestDiskFull(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	for _, fs := range []string{"tmpfs", "ext4", "ext2"} {
		t.Run(fs, func(t *testing.T) {
			dir := t.TempDir()
			if fs == "tmpfs" {
				ok(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
			} else {
				netns.NeedCommand(t, "mkfs."+fs)
				image := filepath.Join(t.TempDir(), "image")
				ok(t, os.WriteFile(image, nil, 0o600), os.Truncate(image, 4<<20))
				netns.Run(t, "mkfs."+fs, "-q", "-m", "0", image)
				netns.Run(t, "mount", "-o", "loop", image, dir)
			}
			defer syscall.Unmount(dir, syscall.MNT_DETACH)
			fillUp(t, dir)
		})
	}
}

func fillUp(t *testing.T, dir string) {
	r := newRigIn(t, dir)
	p := newPod("shop", "web")
	r.asKubelet(p)
	plain := r.rendered(p)
	inode := r.inode(r.file(p))
	r.start()
	r.list(p)
	r.ready()
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	r.must(err)
	for chunk := 4096; chunk > 0; {
		if _, err := f.Write(make([]byte, chunk)); err != nil {
			chunk /= 2
		}
	}
	r.must(f.Close())

	var text strings.Builder
	var more []cluster.HostAlias
	for i := range 5000 {
		ip := fmt.Sprintf("10.9.%d.%d", i/250, i%250+1)
		name := fmt.Sprintf("name-%d.example", i)
		fmt.Fprintf(&text, "%s %s\n", ip, name)
		more = append(more, alias(ip, name))
	}
	r.upsert(newConfigMap("cluster", "infra", "m", text.String()))
	r.eventually("said", func() bool { return r.metric("failures_total", "reason=full") > 0 })
	if got := r.read(r.file(p)); got != plain {
		t.Errorf("holds %d bytes, want the %d of before", len(got), len(plain))
	}
	if !strings.Contains(r.log.String(), "reason=full") {
		t.Error("the log does not say so")
	}
	r.must(os.Remove(filler))
	r.becomes(r.file(p), r.rendered(p, more...))
	if r.inode(r.file(p)) != inode {
		t.Error("another inode")
	}
}
