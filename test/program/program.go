// Package program is for tests that run the programs of this module: it builds those that make has not, and keeps what they say.
package program

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// Variables that name the programs which make has built.
const (
	Ropewalk = "ROPEWALK_TEST_ROPEWALK"
	Plugin   = "ROPEWALK_TEST_CNI"
)

var folders = map[string]string{Ropewalk: "ropewalk", Plugin: "ropewalk-cni"}

// Run is for TestMain: it calls run when all of the variables name a program, built if need be, and returns its exit code.
func Run(run func() int, variables ...string) int {
	dir, err := os.MkdirTemp("", "ropewalk")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	for _, v := range variables {
		if os.Getenv(v) != "" {
			continue
		}
		b := filepath.Join(dir, folders[v])
		cmd := exec.Command("go", "build", "-o", b, "github.com/ropewalk-net/ropewalk/cmd/"+folders[v])
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			return 1
		}
		os.Setenv(v, b)
	}
	return run()
}

// Log is what a program says. It may be read while it is written. The zero Log is empty.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was said so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
