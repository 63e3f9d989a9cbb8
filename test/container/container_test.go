package container

import (
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestHosts shows what the manager of hosts files rests on: a container sees a file that is rewritten in place, under the same
// inode, and goes on with the old one when another takes its place.
func TestHosts(t *testing.T) {
	b := Build(t)
	path := HostsFile(t, t.TempDir(), "8f1c")
	write(t, path, "127.0.0.1\tlocalhost\n")
	c := b.Start(t, path)
	content, inode := c.Hosts()
	if content != "127.0.0.1\tlocalhost\n" || inode != inodeOf(t, path) {
		t.Errorf("inside: inode %d, %q; outside: inode %d", inode, content, inodeOf(t, path))
	}
	const rewritten = "127.0.0.1\tlocalhost\n10.1.2.3\tfoo.remote\n"
	write(t, path, rewritten)
	if now := c.Expect(rewritten)(); now != inode {
		t.Errorf("after it was rewritten: inode %d, was %d", now, inode)
	}
	write(t, path+".new", "10.1.2.3\tbar.remote\n")
	must(t, os.Rename(path+".new", path))
	if content, now := c.Hosts(); now != inode || content != rewritten {
		t.Errorf("after another took its place: inode %d, was %d, %q", now, inode, content)
	}
	if len(c.cgroups()) == 0 {
		t.Error("it has no cgroup, so that nothing is known of its cleanup")
	}
	c.Stop()
	gone(t, c)
}

// TestKilled: nothing is left of a container whose runc was killed.
func TestKilled(t *testing.T) {
	b := Build(t)
	path := HostsFile(t, t.TempDir(), "8f1d")
	write(t, path, "")
	failed := &failing{TB: t}
	c := b.Start(t, path)
	c.t = failed
	must(t, c.cmd.Process.Kill())
	c.Stop()
	if !failed.Failed() {
		t.Error("nobody heard of it")
	}
	gone(t, c)
}

// failing notes a failure that is wanted.
type failing struct {
	testing.TB
	failed bool
}

func (f *failing) Errorf(string, ...any) { f.failed = true }
func (f *failing) Failed() bool          { return f.failed }

func gone(t *testing.T, c *Container) {
	t.Helper()
	if left := c.cgroups(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if left, err := os.ReadDir(c.state); len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(mounts), c.state) {
		t.Errorf("left:\n%s", mounts)
	}
}

// write does what os.WriteFile does: it cuts the file and writes it, under the inode that it has.
func write(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func inodeOf(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return info.Sys().(*syscall.Stat_t).Ino
}
