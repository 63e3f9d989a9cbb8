// Package netns runs tests in network and mount namespaces of their own, where any address and port is free and nothing
// that they do is seen from outside. The kernel takes both away with the last process in them, however a test ends.
package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

const inside = "ROPEWALK_TEST_NAMESPACE"

// Enter runs the calling test again in new namespaces, in a process of its own, and returns false when that is over: the
// caller returns. In that process it returns true, with the loopback interface up and the addresses (as in
// 169.254.20.10/32) on it. It needs root; without, the test is skipped, and fails if CI=true.
func Enter(t *testing.T, addrs ...string) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		prepare(t, addrs)
		return true
	}
	Need(t, os.Geteuid() == 0, "network namespaces need root")
	args := []string{"-test.run=^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$", "-test.v=" + fmt.Sprint(testing.Verbose()), "-test.count=1"}
	for _, a := range os.Args[1:] {
		if !strings.HasPrefix(a, "-test.") { // the test's own flags
			args = append(args, a)
		}
	}
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in its namespaces: %v\n%s", err, out)
	} else if testing.Verbose() {
		t.Logf("%s", out)
	}
	return false
}

// Need skips a test where something it needs is missing. Under CI=true that is a failure.
func Need(t testing.TB, there bool, what string) {
	t.Helper()
	switch {
	case there:
	case os.Getenv("CI") == "true":
		t.Fatal(what)
	default:
		t.Skip(what)
	}
}

// NeedCommand is Need for a program.
func NeedCommand(t testing.TB, name string) {
	t.Helper()
	_, err := exec.LookPath(name)
	Need(t, err == nil, name+" is not installed: run make tools")
}

func prepare(t *testing.T, addrs []string) {
	t.Helper()
	// What is mounted here must not show outside.
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	Run(t, "ip", "link", "set", "lo", "up")
	for _, a := range addrs {
		Run(t, "ip", "addr", "add", a, "dev", "lo", "nodad")
	}
}

// Run runs a command to its end and returns what it prints.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// Tmpfs hides dir behind an empty file system, with files in it by their paths.
func Tmpfs(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "")
	for path, content := range files {
		err = errors.Join(err, os.MkdirAll(parent(path), 0o755), os.WriteFile(path, []byte(content), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func parent(path string) string {
	for i := len(path) - 1; i > 0; i-- {
		if path[i] == '/' {
			return path[:i]
		}
	}
	return "/"
}
