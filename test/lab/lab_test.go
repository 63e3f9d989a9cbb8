package main

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

const root = "../.."

// binEnv names a folder with this program and the others.
const binEnv = "ROPEWALK_TEST_LAB"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") { // this is the lab itself
		main()
		return
	}
	for _, v := range []string{"MAKEFLAGS", "MFLAGS", "MAKELEVEL"} {
		os.Unsetenv(v) // of a make that runs the tests: one below another says more
	}
	os.Exit(withBinaries(m.Run))
}

// withBinaries makes the folder, with the programs that make has built, or new ones.
func withBinaries(run func() int) int {
	if os.Getenv(binEnv) != "" {
		return run()
	}
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	os.Setenv(binEnv, dir)
	for env, name := range map[string]string{"ROPEWALK_TEST_COREDNS": "coredns", "ROPEWALK_TEST_ROPEWALK": "ropewalk", "ROPEWALK_TEST_CNI": "ropewalk-cni"} {
		b := filepath.Join(dir, name)
		if there := os.Getenv(env); there != "" {
			err = errors.Join(err, os.Symlink(there, b))
			continue
		}
		cmd := exec.Command("go", "build", "-o", b, "github.com/ropewalk-net/ropewalk/cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stderr = os.Stderr
		err = errors.Join(err, cmd.Run())
	}
	if err = errors.Join(err, duplicate(os.Args[0], filepath.Join(dir, "lab"))); err != nil {
		panic(err)
	}
	return run()
}

func duplicate(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// TestLab starts the lab, where half of one is, does all that it says to try and that the documents show, and ends it: nothing may be left.
func TestLab(t *testing.T) {
	for _, c := range []string{"curl", "dig", "nft"} {
		netns.NeedCommand(t, c)
	}
	if !netns.Enter(t) {
		return
	}
	for _, dir := range writable {
		netns.Tmpfs(t, dir, nil)
	}
	// A machine on which nothing can be run from /run, as Debian has it, and names are not asked of DNS, as systemd-resolved may have it.
	nss := filepath.Join(t.TempDir(), "nsswitch.conf")
	if err := errors.Join(
		unix.Mount("", "/run", "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		os.WriteFile(nss, []byte("hosts: files\n"), 0o644),
		unix.Mount(nss, "/etc/nsswitch.conf", "", unix.MS_BIND, ""),
	); err != nil {
		t.Fatal(err)
	}
	bin := os.Getenv(binEnv)
	program := filepath.Join(bin, "lab")
	t.Setenv("LAB", program)
	for target, want := range map[string]string{"lab": program + " up corefile/example", "lab-down": program + " down"} {
		if out := sh(t, "make -n "+target); !strings.Contains(out, want) {
			t.Errorf("make %s: %s", target, out)
		}
	}
	up := func() string { return sh(t, program+" up corefile/example") }
	before := visible(t)

	// One that a machine's end has left, and one that nobody waits for.
	if err := errors.Join(os.MkdirAll(state+"/nodes/old", 0o755), os.WriteFile(state+"/up", nil, 0o644), os.WriteFile(state+"/machine", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	half := exec.Command(program, "up", "corefile/example")
	half.Dir = root
	if err := half.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Command(program, "down").Run() })
	until(t, func() bool { _, err := os.Stat(state + "/nodes/node-a/net.d"); return err == nil })
	_ = half.Process.Kill()
	_ = half.Wait()

	if out := up(); !strings.Contains(out, "The lab is up") || !strings.Contains(out, guide()) {
		t.Errorf("it says %s", out)
	}
	if out := up(); !strings.Contains(out, "The lab runs already") || !strings.Contains(out, guide()) {
		t.Errorf("it says %s", out)
	}
	if _, err := os.Stat(state + "/nodes/old"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("there is a node of the lab before")
	}
	for _, s := range steps {
		for _, s := range s.steps {
			var out string
			until(t, func() bool { // what follows a change may take a moment
				var err error
				out, err = try(s.command)
				return err == nil && regexp.MustCompile(s.prints).MatchString(out)
			}, func() string { return s.command + " prints " + out })
		}
	}
	documented(t)
	if out := sh(t, "echo 'hostname; exit 3' | make lab-shell POD=shop/db-0 || echo not 0"); !strings.HasPrefix(out, "db-0\n") || !strings.HasSuffix(out, "not 0\n") {
		t.Errorf("a shell says %s", out)
	}
	if out := sh(t, "make lab-shell POD=shop/nobody || true"); !strings.Contains(out, "there is no pod shop/nobody; there are\n  POD=batch/reports-7c9f8b6d5-k4x9z\n") {
		t.Errorf("a shell in no pod says %s", out)
	}

	// Somebody is in a pod when it ends.
	visitor := exec.Command("make", "lab-shell", "POD=shop/web", "CMD=echo here; sleep 1000 & wait")
	visitor.Dir = root
	out, err := visitor.StdoutPipe()
	if err == nil {
		err = visitor.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	namespaces := spaces(t, bin)
	if n := len(inside(t, namespaces)); n < 15 || len(namespaces) < 20 {
		t.Fatalf("%d processes in %d namespaces", n, len(namespaces))
	}
	sh(t, program+" down")
	_ = visitor.Wait()
	if left := inside(t, namespaces); len(left) != 0 {
		t.Errorf("there are still\n%s", strings.Join(left, "\n"))
	}
	if d := cmp.Diff(before, visible(t)); d != "" {
		t.Errorf("what is to be seen (-before +after):\n%s", d)
	}
	if out := sh(t, program+" down; make lab-shell POD=shop/web || true"); !strings.Contains(out, errNone.Error()) {
		t.Errorf("without a lab it says %s", out)
	}
	if d := cmp.Diff(before, visible(t)); d != "" {
		t.Errorf("what is to be seen (-before +after):\n%s", d)
	}
}

// documented runs the commands that the documents show.
func documented(t *testing.T) {
	t.Helper()
	found := 0
	for _, doc := range []string{"README.md", "docs/lab.md"} {
		text, err := os.ReadFile(filepath.Join(root, doc))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^ *(make lab-shell .*CMD=.*)$`).FindAllSubmatch(text, -1) {
			found++
			sh(t, string(m[1]))
		}
	}
	if found < 5 {
		t.Errorf("%d commands", found)
	}
}

// sh runs a command in the root of the repository and returns what it prints.
func sh(t *testing.T, line string) string {
	t.Helper()
	out, err := try(line)
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

func try(line string) (string, error) {
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func until(t *testing.T, is func() bool, why ...func() string) {
	t.Helper()
	for begun := time.Now(); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > patience {
			for _, w := range why {
				t.Error(w())
			}
			t.FailNow()
		}
	}
}

// writable are folders in which programs of nodes have files, which are the test's own.
var writable = []string{"/run", "/opt", "/var/lib"}

// visible is what others see of the lab: links, addresses, routes, rules, mounts, and files where the programs would have theirs.
func visible(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, c := range []string{"ip -o addr", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all", "ip netns", "nft list ruleset", "cat /proc/self/mountinfo"} {
		out[c] = sh(t, c)
	}
	for _, dir := range writable {
		_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			out[path] = "a file"
			return err
		})
	}
	return out
}

// spaces returns the namespaces of the processes of programs in a folder, but for those of this process.
func spaces(t *testing.T, dir string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		if text, _ := os.ReadFile(p + "/cmdline"); strings.HasPrefix(string(text), dir+"/") {
			maps.Copy(out, of(p))
		}
	}
	for ns := range of("/proc/self") {
		delete(out, ns)
	}
	return out
}

// of returns the namespaces of a process; those of one that has ended are none, though its parent may not have looked yet.
func of(proc string) map[string]bool {
	out := map[string]bool{}
	if stat, _ := os.ReadFile(proc + "/stat"); strings.Contains(string(stat), ") Z ") {
		return out
	}
	for _, kind := range []string{"net", "mnt", "pid", "uts"} {
		if ns, err := os.Readlink(proc + "/ns/" + kind); err == nil {
			out[ns] = true
		}
	}
	return out
}

// inside returns the processes that are in any of the namespaces.
func inside(t *testing.T, namespaces map[string]bool) (found []string) {
	t.Helper()
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		if slices.ContainsFunc(slices.Collect(maps.Keys(of(p))), func(ns string) bool { return namespaces[ns] }) {
			text, _ := os.ReadFile(p + "/cmdline")
			found = append(found, p+" "+strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	return found
}
