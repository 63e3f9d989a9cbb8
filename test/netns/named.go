package netns

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const named = "/run/netns"

// Add makes a further network namespace by name, as ip-netns(8) does, with its loopback interface up. It is for tests that Enter
// has put into namespaces of their own: the name is theirs, too, and all goes with their process.
func Add(t testing.TB, name string) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Fatal("Add needs Enter")
	}
	if _, err := os.Stat(named + "/.ours"); err != nil {
		Tmpfs(t, "/run", map[string]string{named + "/.ours": ""})
	}
	Run(t, "ip", "netns", "add", name)
	Run(t, "ip", "-n", name, "link", "set", "lo", "up")
}

// Batch gives ip(8) a command a line, in the namespace of that name, or in the test's own if it is empty. Empty lines are skipped.
func Batch(t testing.TB, name, commands string) {
	t.Helper()
	args := []string{"-batch", "-"}
	if name != "" {
		args = append([]string{"-n", name}, args...)
	}
	cmd := exec.Command("ip", args...)
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip -batch: %v\n%s", err, out)
	}
}

// In runs f in the namespace of that name. Sockets that f opens stay there. f must not call t.FailNow.
func In(t testing.TB, name string, f func()) {
	t.Helper()
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, for it is in the wrong namespace
		file, err := os.Open(named + "/" + name)
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
			_ = file.Close()
		}
		if err == nil {
			f()
		}
		failed <- err
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}
