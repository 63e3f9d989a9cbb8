package podfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

func ok(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// newTree makes a directory of pods in dir, with one pod's file, whose UID is u1.
func newTree(t testing.TB, dir string) (tree *Tree, path string) {
	t.Helper()
	path = Path(dir, "u1")
	ok(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644))
	tree, err := OpenTree(filepath.Join(dir, "pods"))
	ok(t, err)
	t.Cleanup(tree.Close)
	return tree, path
}

// put gives the file of u1 a text as the manager does.
func put(tree *Tree, text string) error {
	f, err := tree.Open("u1", unix.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	old, err := f.Read(nil, DefaultMaxSize)
	if err != nil {
		return err
	}
	_, err = f.Replace(old, []byte(text))
	return err
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	ok(t, err)
	return string(b)
}

func TestUID(t *testing.T) {
	for path, want := range map[string]string{
		"/var/lib/kubelet/pods/6f1c-2/etc-hosts":       "6f1c-2",
		"/var/lib/kubelet/pods/etc-hosts":              "",
		"/var/lib/kubelet/pods/../etc-hosts":           "",
		"/var/lib/kubelet/pods/a/b/etc-hosts":          "",
		"/var/lib/kubelet/pods//etc-hosts":             "",
		"/var/lib/kubelet/pods/a/etc-hosts/":           "",
		"/var/lib/kubelet/pods/a/volumes/x/etc-hosts":  "",
		"/var/lib/kubeletx/pods/a/etc-hosts":           "",
		"/etc/hosts":                                   "",
		"/var/lib/kubelet/pods/a\x00b/etc-hosts":       "",
		"/other/../var/lib/kubelet/pods/6f1/etc-hosts": "",
	} {
		if uid, ok := UID("/var/lib/kubelet/", path); ok != (want != "") || ok && uid != want {
			t.Errorf("%q: %q %v", path, uid, ok)
		}
	}
}

// TestWhatAReaderSees reads a file without end while it gets longer and shorter. Each byte is one that the old or the new text
// has there, an empty line where either has ended, and never is it shorter than the shorter one.
func TestWhatAReaderSees(t *testing.T) {
	tree, path := newTree(t, t.TempDir())
	texts := []string{"127.0.0.1 localhost\n" + strings.Repeat("10.0.0.1 short.example\n", 100)}
	texts = append(texts, texts[0][:20]+strings.Repeat("10.0.0.2 a.long.one.example\n", 3000), texts[0][:20])
	ok(t, os.WriteFile(path, []byte(texts[0]), 0o644))
	f, err := os.Open(path)
	ok(t, err)
	defer f.Close()

	stop := make(chan struct{})
	var writer sync.WaitGroup
	var writeErr error
	writes := 0
	writer.Go(func() {
		for writes = 1; ; writes++ {
			select {
			case <-stop:
				return
			default:
			}
			if writeErr = put(tree, texts[writes%len(texts)]); writeErr != nil {
				return
			}
		}
	})
	defer func() {
		close(stop)
		writer.Wait()
		ok(t, writeErr)
	}()
	longest := len(texts[1])
	buf := make([]byte, longest+1)
	whole := map[int]int{}
	mixed := 0
	// A machine with other things to do may let the writer wait for long.
	for i, end := 0, time.Now().Add(time.Minute); i < 20000 || len(whole) < len(texts) && time.Now().Before(end); i++ {
		n, err := f.ReadAt(buf, 0)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		got := string(buf[:n])
		is := -1
		for i, text := range texts {
			if got == text {
				is = i
			}
		}
		if is >= 0 {
			whole[is]++
			continue
		}
		mixed++
		if n < len(texts[2]) || got[:20] != texts[0][:20] {
			t.Fatalf("%d bytes, and not the lines that all have: %.100q", n, got)
		}
		for i := range n {
			if got[i] == '\n' {
				continue
			}
			found := false
			for _, text := range texts {
				found = found || i < len(text) && text[i] == got[i]
			}
			if !found {
				t.Fatalf("at %d of %d: %.40q", i, n, got[i:])
			}
		}
	}
	t.Logf("whole texts %v, mixed %d", whole, mixed)
	if len(whole) < len(texts) {
		t.Error("the reader has not seen all texts")
	}
}

// TestOtherFileSystems holds that a file can be replaced where nothing can be allocated beforehand (ramfs).
func TestOtherFileSystems(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	dir := t.TempDir()
	ok(t, syscall.Mount("ramfs", dir, "ramfs", 0, ""))
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	tree, path := newTree(t, dir)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ok(t, err)
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 10000); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatalf("fallocate: %v; want a file system without", err)
	}
	for _, text := range []string{"short\n", strings.Repeat("long\n", 5000), "short\n", ""} {
		ok(t, put(tree, text))
		if got := read(t, path); got != text {
			t.Errorf("%.100q, want %.100q", got, text)
		}
	}
}

// TestNoRoom holds that nobody who reads a file sees it in another state while there is no room for a longer one: where room can be
// had beforehand, none of the old text is overwritten before it is.
func TestNoRoom(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	dir := t.TempDir()
	ok(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	tree, path := newTree(t, dir)
	old := strings.Repeat("127.0.0.1 old.example\n", 100)
	ok(t, put(tree, old))
	f, err := os.Open(path)
	ok(t, err)
	defer f.Close()
	done := make(chan struct{})
	var failed error
	go func() {
		defer close(done)
		for range 500 {
			if failed = put(tree, strings.Repeat("127.0.0.1 new.example\n", 20000)); !errors.Is(failed, unix.ENOSPC) {
				return
			}
		}
	}()
	buf := make([]byte, 2*len(old))
	for on := true; on; {
		select {
		case <-done:
			on = false
		default:
		}
		if n, err := f.ReadAt(buf, 0); err != io.EOF || string(buf[:n]) != old {
			t.Errorf("%v, %d bytes: %.100q", err, n, buf[:n])
			on = false
		}
	}
	<-done
	if !errors.Is(failed, unix.ENOSPC) {
		t.Errorf("%v, want ENOSPC", failed)
	}
}

// TestShorterBeforeItIsCutOff holds that a shorter text has nothing but empty lines behind it until the file is cut off, which one
// who is killed then never does. Here the kernel refuses it.
func TestShorterBeforeItIsCutOff(t *testing.T) {
	fd, err := unix.MemfdCreate("hosts", unix.MFD_ALLOW_SEALING)
	ok(t, err)
	defer unix.Close(fd)
	old, want := strings.Repeat("10.0.0.1 old.example\n", 10), "10.0.0.2 new.example\n"
	_, err = unix.Write(fd, []byte(old))
	ok(t, err)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK)
	ok(t, err)
	f, err := Open(procPath(fd), unix.O_RDWR)
	ok(t, err)
	defer f.Close()
	if _, err := f.Replace([]byte(old), []byte(want)); !errors.Is(err, unix.EPERM) {
		t.Errorf("%v, want EPERM", err)
	}
	got, err := f.Read(nil, DefaultMaxSize)
	if err != nil || string(got) != want+strings.Repeat("\n", len(old)-len(want)) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestRestore holds that the old text is put back where writing has failed.
func TestRestore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	const old = "old text\n"
	for _, now := range []string{"new tex", "new text that is longer\n", "new text\n"} {
		for n := range now {
			ok(t, os.WriteFile(path, []byte(now[:n]+old[min(n, len(old)):]), 0o644))
			f, err := Open(path, unix.O_RDWR)
			ok(t, err)
			err = f.restore([]byte(old), 0, n)
			f.Close()
			got, readErr := os.ReadFile(path)
			ok(t, err, readErr)
			if string(got) != old {
				t.Errorf("after %d bytes of %q: %q", n, now, got)
			}
		}
	}
}
