package hold

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

const holder = "ROPEWALK_TEST_HOLD"

// TestMain is the other process, too: it holds what it is told until it is killed.
func TestMain(m *testing.M) {
	path := os.Getenv(holder)
	if path == "" {
		os.Exit(m.Run())
	}
	_, err := Namespace("routes", "ropewalk routes", slog.Default())
	_, err2 := Folder(path, slog.Default())
	fmt.Println(errors.Join(err, err2))
	select {}
}

// TestHold holds that what one process has another one gets neither while it runs nor with another name for the folder, that it is told who has it,
// and that it gets it as soon as that one is killed.
func TestHold(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), holder+"="+dir)
	out, err := other.StdoutPipe()
	if err == nil {
		err = other.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer other.Process.Kill()
	if said, err := bufio.NewReader(out).ReadString('\n'); said != "<nil>\n" || err != nil {
		t.Fatal(said, err)
	}
	take := map[string]func() (func(), error){
		"namespace": func() (func(), error) { return Namespace("routes", "a test", slog.Default()) },
		"folder":    func() (func(), error) { return Folder(link, slog.Default()) },
	}
	for name, f := range take {
		_, err := f()
		if pid := fmt.Sprintf("pid %d", other.Process.Pid); !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), pid) {
			t.Errorf("%s: %v; want %s", name, err, pid)
		}
	}
	if _, err := Namespace("routes", "", slog.Default()); err == nil || !strings.Contains(err.Error(), "ropewalk routes, pid") {
		t.Error(err)
	}
	if release, err := Namespace("proxy", "", slog.Default()); err != nil {
		t.Errorf("another part: %v", err)
	} else {
		release()
	}
	netns.Add(t, "elsewhere")
	netns.In(t, "elsewhere", func() {
		if release, err := Namespace("routes", "", slog.Default()); err != nil {
			t.Errorf("another network namespace: %v", err)
		} else {
			release()
		}
	})
	// One that is stopped says nothing, and has it.
	if err := other.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := Namespace("routes", "", slog.Default()); !errors.Is(err, ErrHeld) {
		t.Errorf("of a process that is stopped: %v", err)
	}
	_ = other.Process.Kill()
	_ = other.Wait()
	for name, f := range take {
		for range 2 { // and again, when it has been released
			release, err := f()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if _, err := f(); !errors.Is(err, ErrHeld) {
				t.Errorf("%s: twice in one process: %v", name, err)
			}
			release()
		}
	}
}

// TestStrangers holds that a socket of somebody who is no agent keeps none away.
func TestStrangers(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(&out, nil))
	bind := func(backlog int) (fd int, err error) { // below zero: it does not listen

		fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@ropewalk/proxy"})
		}
		if err == nil && backlog >= 0 {
			err = unix.Listen(fd, backlog)
		}
		return fd, err
	}
	asNobody := func(f func() (int, error)) func() (int, error) {
		return func() (fd int, err error) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				runtime.LockOSThread() // and never unlocked: it is another user's now
				if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 1, 1, 1); errno != 0 {
					err = errno
					return
				}
				fd, err = f()
			}()
			<-done
			return fd, err
		}
	}
	for what, f := range map[string]func() (int, error){
		"nobody listens": func() (int, error) { return bind(-1) },
		"not root":       asNobody(func() (int, error) { return bind(5) }),
		"not root, with as many as may wait": asNobody(func() (int, error) {
			fd, err := bind(0)
			if err != nil {
				return fd, err
			}
			for range 2 { // one more than may wait
				c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
				if err != nil {
					return fd, err
				}
				t.Cleanup(func() { unix.Close(c) })
				if err := unix.Connect(c, &unix.SockaddrUnix{Name: "@ropewalk/proxy"}); errors.Is(err, unix.EAGAIN) {
					return fd, nil
				}
			}
			return fd, errors.New("more may wait than were to")
		}),
	} {
		fd, err := f()
		if err != nil {
			t.Fatal(what, err)
		}
		out.Reset()
		release, err := Namespace("proxy", "", log)
		if err != nil || !strings.Contains(out.String(), "would not be noticed") {
			t.Errorf("%s: %v, %s", what, err, &out)
		} else {
			release()
		}
		unix.Close(fd)
	}
}
