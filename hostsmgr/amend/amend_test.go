package amend

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

func addrs(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }

var some = []cluster.HostAlias{{IP: "10.1.2.3", Hostnames: []string{"a.example", "b.example"}}, {IP: "2001:db8::1", Hostnames: []string{"c"}}}

const someLines = "10.1.2.3\ta.example\tb.example\n2001:db8::1\tc\n"

func TestTail(t *testing.T) {
	for _, c := range []struct{ name, have, want string }{
		{"no aliases yet", "10.0.0.1\tweb\n", "\n# Entries added by HostAliases.\n" + someLines},
		{"those of the spec", "x\n\n# Entries added by HostAliases.\n10.9.9.9\tspec\n", someLines},
		{"they are there", "x\n\n# Entries added by HostAliases.\n10.9.9.9\tspec\n" + someLines + "10.8.8.8\tmore\n", ""},
		{"they are the only ones", "x\n\n# Entries added by HostAliases.\n" + someLines, ""},
		{"they are there, but not among the aliases", someLines, "\n# Entries added by HostAliases.\n" + someLines},
		{"not in one piece", "x\n\n# Entries added by HostAliases.\n10.1.2.3\ta.example\tb.example\n10.9.9.9\tspec\n", someLines},
		{"the end of a line", "x\n\n# Entries added by HostAliases.\n1" + someLines, someLines},
		{"a file without a last newline", "x", "\n\n# Entries added by HostAliases.\n" + someLines},
		{"an empty file", "", "\n# Entries added by HostAliases.\n" + someLines},
	} {
		t.Run(c.name, func(t *testing.T) {
			tail := string(Tail([]byte(c.have), some))
			if d := cmp.Diff(c.want, tail); d != "" {
				t.Errorf("tail (-want +got):\n%s", d)
			}
			if again := Tail([]byte(c.have+tail), some); len(again) > 0 {
				t.Errorf("what was appended is not found again: %q", again)
			}
		})
	}
	if tail := Tail([]byte("x"), nil); tail != nil {
		t.Errorf("no aliases: %q", tail)
	}
}

// TestTailIsRendered holds that the file is then what the manager would have made of it.
func TestTailIsRendered(t *testing.T) {
	for _, spec := range [][]cluster.HostAlias{nil, {{IP: "10.9.9.9", Hostnames: []string{"spec"}}}} {
		for _, host := range []bool{false, true} {
			p := &cluster.Pod{Namespace: "shop", Name: "web", Hosts: &cluster.PodHosts{HostNetwork: true, Aliases: spec}}
			node := hostsfile.Node{ClusterDomain: "cluster.local", Hosts: []byte("127.0.0.1 localhost\n")}
			if p.Hosts.HostNetwork = host; !host {
				p = &cluster.Pod{Namespace: "shop", Name: "web", IPs: addrs("10.244.1.4"), Hosts: p.Hosts}
			}
			have, err := hostsfile.Render(p, node)
			want, err2 := hostsfile.Render(p, node, some...)
			if err != nil || err2 != nil {
				t.Fatal(err, err2)
			}
			if d := cmp.Diff(string(want), string(have)+string(Tail(have, some))); d != "" {
				t.Errorf("%+v (-rendered +amended):\n%s", p.Hosts, d)
			}
		}
	}
}

// pod makes the directory of the pod "u1" and returns the kubelet's, and the path of the pod's file.
func pod(t *testing.T) (dir, path string) {
	t.Helper()
	dir = t.TempDir()
	path = podfile.Path(dir, "u1")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, path
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestFile(t *testing.T) {
	dir, path := pod(t)
	write(t, path, "10.0.0.1\tweb\n")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		if changed, err := File(dir, "u1", some, 0); changed != want || err != nil {
			t.Fatalf("%d: %v %v", i, changed, err)
		}
	}
	if got, want := read(t, path), "10.0.0.1\tweb\n\n# Entries added by HostAliases.\n"+someLines; got != want {
		t.Errorf("%q", got)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) || after.Mode() != before.Mode() {
		t.Errorf("%v, another file or mode: %v", err, after)
	}
}

// TestFileIsNotThePods has at the file's place what a hostile pod could put there, and something that must not change.
func TestFileIsNotThePods(t *testing.T) {
	const untouched = "do not touch\n"
	for _, c := range []struct {
		name string
		make func(t *testing.T, path, other string) error
		want error
	}{
		{"symlink", func(t *testing.T, path, other string) error { return os.Symlink(other, path) }, unix.ELOOP},
		{"hard link", func(t *testing.T, path, other string) error { return os.Link(other, path) }, podfile.ErrLinked},
		{"FIFO", func(t *testing.T, path, _ string) error { return unix.Mkfifo(path, 0o644) }, podfile.ErrNotRegular},
		{"directory", func(t *testing.T, path, _ string) error { return os.Mkdir(path, 0o755) }, podfile.ErrNotRegular},
		{"1 GB", func(t *testing.T, path, _ string) error {
			write(t, path, "")
			return os.Truncate(path, 1<<30)
		}, podfile.ErrTooLarge},
		{"nothing", func(*testing.T, string, string) error { return nil }, fs.ErrNotExist},
		{"the pod's directory is a symlink", func(t *testing.T, path, other string) error {
			write(t, filepath.Join(filepath.Dir(other), "etc-hosts"), untouched)
			return errors.Join(os.Remove(filepath.Dir(path)), os.Symlink(filepath.Dir(other), filepath.Dir(path)))
		}, unix.ELOOP},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, path := pod(t)
			other := filepath.Join(t.TempDir(), "other")
			write(t, other, untouched)
			if err := c.make(t, path, other); err != nil {
				t.Fatal(err)
			}
			if changed, err := File(dir, "u1", some, 0); changed || !errors.Is(err, c.want) {
				t.Errorf("%v, %v, want %v", changed, err, c.want)
			}
			entries, err := os.ReadDir(filepath.Dir(other))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if got := read(t, filepath.Join(filepath.Dir(other), e.Name())); got != untouched {
					t.Errorf("%s: %q", e.Name(), got)
				}
			}
		})
	}
}

func TestFileTooLong(t *testing.T) {
	dir, path := pod(t)
	have := strings.Repeat("#", 99) + "\n"
	write(t, path, have)
	if _, err := File(dir, "u1", some, 120); !errors.Is(err, podfile.ErrTooLarge) {
		t.Error(err)
	}
	if read(t, path) != have {
		t.Error("the file has changed")
	}
	for _, uid := range []string{"", ".", "..", "../u1", "u1/", "a/b", "a\x00"} {
		if _, err := File(dir, uid, some, 0); err == nil {
			t.Errorf("UID %q", uid)
		}
	}
}

// FuzzTail holds that what is appended is found again, whatever the file has.
func FuzzTail(f *testing.F) {
	f.Add([]byte("10.0.0.1\tweb\n"), "10.1.2.3", "a")
	f.Add([]byte("\n# Entries added by HostAliases.\n"), "::1", "b")
	f.Fuzz(func(t *testing.T, have []byte, ip, name string) {
		aliases, _ := hostsfile.Parse(ip + " " + name)
		tail := Tail(have, aliases)
		if again := Tail(append(have[:len(have):len(have)], tail...), aliases); len(again) > 0 {
			t.Errorf("%q and %q: again %q", have, tail, again)
		}
	})
}
