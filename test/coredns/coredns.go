// Package coredns builds and runs this module's coredns for tests that want the program itself.
package coredns

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binaryEnv names a binary that is there already: make test builds one for all packages, and a test that enters
// namespaces builds it outside of them.
const binaryEnv = "ROPEWALK_TEST_COREDNS"

// Root is the root of the repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Binary returns the path of the program, built if need be. A test that goes on in a process of its own must call it
// before.
func Binary(t testing.TB) string {
	t.Helper()
	if b := os.Getenv(binaryEnv); b != "" {
		// The look at the file is also what tells Go's test cache that a result was another binary's.
		if _, err := os.Stat(b); err != nil {
			t.Fatalf("%s: %v", binaryEnv, err)
		}
		return b
	}
	b := filepath.Join(t.TempDir(), "coredns")
	cmd := exec.Command("go", "build", "-o", b, "./cmd/coredns")
	cmd.Dir = Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv(binaryEnv, b)
	return b
}

// Server is a running coredns.
type Server struct {
	Cmd *exec.Cmd
	log syncBuffer
}

// Start runs coredns in the root of the repository with a Corefile, and extra variables in its environment, and ends it
// with the test: with SIGTERM, and with SIGKILL if that does not help.
func Start(t testing.TB, corefile string, env ...string) *Server {
	t.Helper()
	s := &Server{Cmd: exec.Command(Binary(t), "-conf", corefile)}
	s.Cmd.Dir = Root()
	s.Cmd.Env = append(os.Environ(), env...)
	s.Cmd.Stdout, s.Cmd.Stderr = &s.log, &s.log
	s.Cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(20*time.Second, func() { s.Cmd.Process.Kill() })
		defer timer.Stop()
		s.Cmd.Wait()
		if t.Failed() {
			lines := strings.SplitAfter(s.Log(), "\n")
			t.Logf("the end of the server's log:\n%s", strings.Join(lines[max(0, len(lines)-100):], ""))
		}
	})
	return s
}

// Log returns what the server has printed so far.
func (s *Server) Log() string { return s.log.String() }

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
