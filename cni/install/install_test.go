package install

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/goleak"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestInstall holds that the plugin is installed, and again whatever happens to it, and that nothing else is left in its folder.
func TestInstall(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "opt", "bin")
	program := filepath.Join(t.TempDir(), "built")
	write(t, program, "a program")
	i, err := New(Config{Plugin: program, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if i.Ready() == nil {
		t.Error("ready before it runs")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, ".ropewalk-cni.123"), "half a pro")
	write(t, filepath.Join(dir, "bridge"), "another's")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- i.Run(ctx) }()
	path := filepath.Join(dir, Name)
	right := func() error {
		b, err := os.ReadFile(path)
		if err == nil && string(b) != "a program" {
			err = errors.New("it is " + string(b))
		}
		info, err2 := os.Stat(path)
		if err2 == nil && info.Mode().Perm() != 0o755 {
			err2 = errors.New(info.Mode().String())
		}
		return errors.Join(err, err2, i.Ready())
	}
	soon(t, right)
	for what, harm := range map[string]func() error{
		"removed":         func() error { return os.Remove(path) },
		"written to":      func() error { return os.WriteFile(path, []byte("junk"), 0o755) },
		"of other rights": func() error { return os.Chmod(path, 0o600) },
		"another file":    func() error { write(t, path+"x", "older"); return os.Rename(path+"x", path) },
		"without folder":  func() error { return os.RemoveAll(dir) },
	} {
		if err := harm(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		soon(t, right)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := right(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
	if _, err := New(Config{Plugin: filepath.Join(dir, "none"), Dir: dir}); err == nil {
		t.Error("a program that is not there is taken")
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func soon(t *testing.T, is func() error) {
	t.Helper()
	var err error
	for begun := time.Now(); time.Since(begun) < 20*time.Second; time.Sleep(time.Millisecond) {
		if err = is(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// TestInstallBlind holds that the plugin is installed where no inotify is to be had, as on nodes where other programs have them all.
func TestInstallBlind(t *testing.T) {
	const inside = "ROPEWALK_TEST_BLIND"
	if os.Getenv(inside) == "" {
		netns.Need(t, os.Geteuid() == 0, "user namespaces need root")
		cmd := exec.Command("sh", "-c", `echo 0 > /proc/sys/user/max_inotify_instances && exec "$0" -test.run='^TestInstallBlind$'`, os.Args[0])
		cmd.Env = append(os.Environ(), inside+"=yes")
		one := []syscall.SysProcIDMap{{Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: one, GidMappings: one, Pdeathsig: syscall.SIGKILL}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if w, err := fsnotify.NewWatcher(); err == nil {
		w.Close()
		t.Fatal("there is an inotify")
	}
	dir, program := t.TempDir(), filepath.Join(t.TempDir(), "built")
	write(t, program, "a program")
	i, err := New(Config{Plugin: program, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- i.Run(ctx) }()
	soon(t, i.Ready)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, Name)); err != nil || string(b) != "a program" {
		t.Errorf("%q, %v", b, err)
	}
}
