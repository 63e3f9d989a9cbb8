//go:build e2e

package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/wait"
)

// logs is where programs write to. It is the one thing that stays, until the next run.
const logs = root + "/bin/e2e/logs"

// process is a program that runs.
type process struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // once it has ended
}

// start starts a program, by its name in PATH, in the namespaces of the process pid, or in the test's own if that is 0.
func start(t *testing.T, pid int, name, program string, args ...string) *process {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		err = os.MkdirAll(logs, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(logs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "TMPDIR=/run") // /tmp is this machine's
	p, err := launch(pid, name, cmd)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// launch starts a command in the namespaces of the process pid. It ends with the test at the latest.
func launch(pid int, name string, cmd *exec.Cmd) (*process, error) {
	p := &process{name: name, cmd: cmd, ended: make(chan struct{})}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if pid == 0 { // others go with the first process of their namespaces
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	started := make(chan error)
	go func() { // it stays until the program has ended: the signal comes when the thread ends that has started it
		defer close(p.ended)
		err := within(pid, cmd.Start)
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

// within calls f in the namespaces of a process. The calling goroutine is good for nothing else afterwards.
func within(pid int, f func() error) error {
	runtime.LockOSThread() // and never unlocked, for the thread stays there
	if pid == 0 {
		return f()
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // a thread that shares its root cannot get another
		return err
	}
	var files []*os.File
	for _, ns := range []string{"net", "uts", "ipc", "pid", "mnt"} {
		file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil {
			return err
		}
		defer file.Close()
		files = append(files, file)
	}
	for _, file := range files {
		if err := unix.Setns(int(file.Fd()), 0); err != nil {
			return fmt.Errorf("%s: %w", file.Name(), err)
		}
	}
	return f()
}

// stop ends a program and waits for that.
func (p *process) stop(with syscall.Signal) {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(with) // it may have ended
	<-p.ended
}

// gone says that a program has ended, and what it said last.
func (p *process) gone() error {
	select {
	case <-p.ended:
	default:
		return nil
	}
	text, err := os.ReadFile(filepath.Join(logs, p.name+".log"))
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return errors.Join(fmt.Errorf("%s has ended: %v\n%s", p.name, p.err, strings.Join(lines[max(0, len(lines)-20):], "\n")), err)
}

// ip gives ip(8) a command a line, in the test's own network namespace.
func ip(commands string) error { return run(strings.NewReader(commands), "ip", "-batch", "-") }

func run(stdin io.Reader, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin = stdin
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w\n%s", name, args, err, bytes.TrimSpace(out))
	}
	return nil
}

// patience is for how long to wait for what must come: long, since machines that run tests are busy.
const patience = 2 * time.Minute

// soon waits until is returns nil.
func soon(t *testing.T, what string, is func() error) {
	t.Helper()
	if err := wait.Until(patience, is); err != nil {
		t.Fatalf("%s: not so: %v", what, err)
	}
}
