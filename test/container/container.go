// Package container runs containers for tests: real ones, made by runc, of one static program, with a hosts file mounted on
// them as the kubelet does it. Nothing of a container is left when its test is over, and little if the test is killed: the
// program ends with the test's end of its pipe, and runc, which waits for it, takes away mounts and cgroups.
package container

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

// patience is how long something may take that should happen.
const patience = 30 * time.Second

// Bundle is what containers are made of.
type Bundle struct{ rootfs string }

// Build makes a Bundle, for as long as the test. It needs root and runc; without, the test is skipped, and fails if CI=true.
func Build(t testing.TB) *Bundle {
	t.Helper()
	netns.Need(t, os.Geteuid() == 0, "containers need root")
	netns.NeedCommand(t, "runc")
	b := &Bundle{rootfs: filepath.Join(t.TempDir(), "rootfs")}
	for _, dir := range []string{"etc", "proc", "dev"} { // where something is mounted
		must(t, os.MkdirAll(filepath.Join(b.rootfs, dir), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(b.rootfs, "etc/hosts"), nil, 0o644))
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(b.rootfs, "probe"), "./probe")
	cmd.Dir = filepath.Dir(here)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // There is no C library in there.
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return b
}

// HostsFile returns where the kubelet has a pod's hosts file beneath its directory, and makes the directories.
func HostsFile(t testing.TB, kubeletDir, uid string) string {
	t.Helper()
	dir := filepath.Join(kubeletDir, "pods", uid)
	must(t, os.MkdirAll(dir, 0o750))
	return filepath.Join(dir, "etc-hosts")
}

// Container is a container that runs.
type Container struct {
	t       testing.TB
	id      string
	state   string // the directory where runc keeps what it knows
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *json.Decoder
	log     bytes.Buffer
	stopped bool
}

// Start runs a container that has the file called hosts, which is there, as its /etc/hosts, until Stop or the test's end.
func (b *Bundle) Start(t testing.TB, hosts string) *Container {
	t.Helper()
	dir := t.TempDir()
	c := &Container{t: t, id: "ropewalk-test-" + rand.Text(), state: filepath.Join(dir, "state")}
	config, err := json.Marshal(b.spec(c.id, hosts))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600))
	c.cmd = exec.Command("runc", "--root", c.state, "run", "--bundle", dir, c.id)
	c.cmd.Stderr = &c.log
	c.in, err = c.cmd.StdinPipe()
	must(t, err)
	out, err := c.cmd.StdoutPipe()
	must(t, err)
	c.out = json.NewDecoder(out)
	must(t, c.cmd.Start())
	t.Cleanup(c.Stop)
	c.Hosts() // It is there with its first answer.
	return c
}

// Hosts returns the container's /etc/hosts, and its inode, as they are seen from inside.
func (c *Container) Hosts() (content string, inode uint64) {
	c.t.Helper()
	c.ask(nil)
	a := c.answer()
	return a.Content, a.Inode
}

// Expect makes the container look at its /etc/hosts every 0.1 ms from now on, until it holds want and nothing else. The function
// that it returns waits for that, and returns the inode.
func (c *Container) Expect(want string) (wait func() (inode uint64)) {
	c.t.Helper()
	c.ask(&want)
	return func() uint64 {
		c.t.Helper()
		a := c.answer()
		if !a.Found {
			c.t.Fatalf("inside the container there is still\n%s\nwant\n%s", a.Content, want)
		}
		return a.Inode
	}
}

func (c *Container) ask(want *string) {
	c.t.Helper()
	must(c.t, json.NewEncoder(c.in).Encode(map[string]any{"Want": want, "Patience": patience}))
}

type answer struct {
	Content string
	Inode   uint64
	Found   bool
}

func (c *Container) answer() (a answer) {
	c.t.Helper()
	if err := c.out.Decode(&a); err != nil {
		c.Stop() // so that all has been said
		c.t.Fatalf("no answer from the container: %v\n%s", err, &c.log)
	}
	return a
}

// Stop ends the container and takes away what is left of it. It may be called more than once.
func (c *Container) Stop() {
	c.t.Helper()
	if c.stopped {
		return
	}
	c.stopped = true
	c.in.Close()
	// The container's first process has the pipe; what comes after it is runc's own work.
	timer := time.AfterFunc(patience, func() { _ = c.cmd.Process.Signal(syscall.SIGKILL) }) // It may just have ended.
	defer timer.Stop()
	if err := c.cmd.Wait(); err == nil {
		return
	} else if !c.t.Failed() {
		c.t.Errorf("runc: %v\n%s", err, &c.log)
	}
	// runc did not come to its own cleanup, or there was nothing to clean up.
	if out, err := exec.Command("runc", "--root", c.state, "delete", "--force", c.id).CombinedOutput(); err != nil {
		c.t.Errorf("runc delete: %v\n%s", err, out)
	}
	for _, dir := range c.cgroups() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			c.t.Error(err)
		}
	}
}

// cgroups returns the container's cgroups that there are: one for each hierarchy.
func (c *Container) cgroups() []string {
	v1, err1 := filepath.Glob("/sys/fs/cgroup/*/" + c.id)
	v2, err2 := filepath.Glob("/sys/fs/cgroup/" + c.id)
	must(c.t, errors.Join(err1, err2))
	return append(v1, v2...)
}

// spec is the container's configuration (OCI runtime specification 1.0). It has no oom_score_adj, which to set takes a
// capability that test machines may lack, and a network without anything in it.
func (b *Bundle) spec(id, hosts string) map[string]any {
	type object = map[string]any
	var namespaces []object
	for _, kind := range strings.Fields("pid mount uts ipc network") {
		namespaces = append(namespaces, object{"type": kind})
	}
	return object{
		"ociVersion": "1.0.2",
		"hostname":   "probe",
		"root":       object{"path": b.rootfs, "readonly": true},
		"process": object{
			"args": []string{"/probe"}, "cwd": "/", "user": object{"uid": 0, "gid": 0}, "noNewPrivileges": true,
			"env": []string{"GOMAXPROCS=1"},
		},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755", "size=64k"}},
			// As containerd has it from the kubelet.
			{"destination": "/etc/hosts", "type": "bind", "source": hosts, "options": []string{"rbind", "rprivate", "rw"}},
		},
		"linux": object{"namespaces": namespaces, "cgroupsPath": "/" + id, "rootfsPropagation": "rprivate"},
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
