//go:build e2e

// Package cluster holds the tests of Ropewalk in a real Kubernetes on this machine: a control plane, and two nodes with a kubelet and
// containerd each, all of it built from Go modules. `make e2e` runs them.
//
// The control plane is in namespaces of its own, and each node in further ones within: what is mounted, listened at, written to the
// kernel or left running is theirs, and goes with the first process in them. Files are in memory. What the kernel would keep are
// cgroups, which a process removes that outlives the others.
package cluster

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
)

// role names the variable that says what a process of this program is: empty is the one that was started by hand.
const role = "ROPEWALK_E2E_ROLE"

// The roles.
const (
	insider = "insider" // runs the tests
	machine = "machine" // the first process of a node
	janitor = "janitor" // removes cgroups when the others are gone
)

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(role) {
	case machine:
		err = beMachine()
	case janitor:
		err = beJanitor()
	case insider:
		if err = prepare(); err == nil {
			os.Exit(m.Run())
		}
	default:
		err = enter()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// enter runs the tests in namespaces, after all that they need has been built.
func enter() error {
	if os.Geteuid() != 0 {
		return errors.New("nodes need root")
	}
	lock, err := lockCgroup()
	if err != nil {
		return err
	}
	path, err := build()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the children's death signal is that of the thread that has started them
	cleaner := reexec(janitor)
	cleaner.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is not for it
	cleaner.ExtraFiles = []*os.File{lock}                    // so that nobody else begins before it has ended
	until, err := cleaner.StdinPipe()
	if err == nil {
		err = cleaner.Start()
	}
	if err != nil {
		return err
	}
	inside := reexec(insider)
	inside.Args = append(inside.Args, os.Args[1:]...)
	inside.Env = append(inside.Env, "PATH="+path)
	inside.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = inside.Run()
	return errors.Join(err, until.Close(), cleaner.Wait())
}

func reexec(as string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), role+"="+as)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}

// cgroup is what all cgroups of the nodes are under, in each hierarchy.
const cgroup = "ropewalk-e2e"

// cgroups returns the paths of cgroup, in version 1's hierarchies or in version 2's only one.
func cgroups() ([]string, error) {
	procs, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if _, e := os.Stat("/sys/fs/cgroup/cgroup.procs"); e == nil {
		procs = []string{"/sys/fs/cgroup/cgroup.procs"}
	}
	var out []string
	for _, p := range procs {
		out = append(out, filepath.Join(filepath.Dir(p), cgroup))
	}
	if len(out) == 0 {
		err = errors.Join(err, errors.New("there are no cgroups"))
	}
	return out, err
}

// lockCgroup makes the cgroups. The lock is on one of them, as it goes with its holders and needs no file.
func lockCgroup() (*os.File, error) {
	paths, err := cgroups()
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(paths[0], 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	f, err := os.Open(paths[0])
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("another run is under way (%s is locked): %w", paths[0], err)
	}
	for _, p := range paths {
		if err := makeCgroup(p); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// makeCgroup makes a cgroup that processes can be in: those of version 1's cpuset say nothing at first, and hold none.
func makeCgroup(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(path), file))
		if err == nil {
			err = os.WriteFile(filepath.Join(path, file), text, 0o644)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// beJanitor removes the cgroups once whoever has started it is gone, in whatever way.
func beJanitor() error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	paths, err := cgroups()
	if err != nil {
		return err
	}
	for begun := time.Now(); time.Since(begun) < time.Minute; time.Sleep(50 * time.Millisecond) {
		err = nil
		for _, p := range paths {
			err = errors.Join(err, removeCgroup(p))
		}
		if err == nil {
			return nil
		}
	}
	return err
}

// removeCgroup removes a cgroup with those in it. It fails while there are processes in them, which may be about to end.
func removeCgroup(path string) error {
	var all []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, p)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	for _, p := range slices.Backward(all) { // what is within comes first
		if e := os.Remove(p); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// prepare makes the namespaces usable, with a bridge that joins the nodes.
func prepare() error {
	err := errors.Join(
		syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""), // what is mounted here is not seen outside
		syscall.Mount("proc", "/proc", "proc", 0, ""),
		syscall.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"),
		syscall.Sethostname([]byte("control-plane")),
		os.MkdirAll(dir, 0o755),
	)
	if err != nil {
		return err
	}
	return ip(fmt.Sprintf(`link set lo up
link add br0 address 02:00:00:00:00:01 type bridge mcast_snooping 0
addr add %s/24 dev br0
addr add %s/64 dev br0 nodad
link set br0 up
`, control4, control6))
}

// dir is where everything is written, in memory.
const dir = "/run/cluster"

// beMachine makes the namespaces that it is in those of a machine, says so by closing its standard input, and goes on until it is killed.
func beMachine() error {
	home := os.Getenv("MACHINE_DIR")
	if err := boot(os.Getenv("MACHINE_NAME"), home); err != nil {
		return err
	}
	if err := os.Stdin.Close(); err != nil {
		return err
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for range children { // those whose parents are gone
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}

// boot hides from the node what is this machine's: its configuration, and what its programs keep.
func boot(name, home string) error {
	err := errors.Join(
		syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
		syscall.Mount("proc", "/proc", "proc", 0, ""),
		syscall.Sethostname([]byte(name)),
	)
	for _, d := range []string{"etc", "work", "lib", "opt", "sysctl"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(home, d), 0o755))
	}
	if err != nil {
		return err
	}
	err = errors.Join(bootCgroups(name, home),
		syscall.Mount("overlay", "/etc", "overlay", 0, fmt.Sprintf("lowerdir=/etc,upperdir=%[1]s/etc,workdir=%[1]s/work", home)),
		syscall.Mount(home+"/lib", "/var/lib", "", syscall.MS_BIND, ""),
		syscall.Mount(home+"/opt", "/opt", "", syscall.MS_BIND, ""),
		syscall.Mount(os.Getenv("MACHINE_LOGS"), "/var/log", "", syscall.MS_BIND, ""),
	)
	// The kubelet wants these to be so, for all of the machine. Let it write to files.
	for key, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		file := filepath.Join(home, "sysctl", filepath.Base(key))
		err = errors.Join(err, os.WriteFile(file, []byte(value+"\n"), 0o644), syscall.Mount(file, "/proc/sys/"+key, "", syscall.MS_BIND, ""))
	}
	// Last, as home is under it. It is empty after a restart, as on every machine. What is mounted is seen in containers that ask for that,
	// as systemd has it.
	return errors.Join(err, syscall.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"), syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""))
}

// bootCgroups has the node see its own cgroups and no others. Those of the machine are unmounted, as some programs take the first mount that
// they find.
func bootCgroups(name, home string) error {
	all, err := cgroups()
	if err != nil {
		return err
	}
	aside := func(hierarchy string) string { return filepath.Join(home, "cgroups", filepath.Base(hierarchy)) }
	for _, p := range all {
		own, to := filepath.Join(p, name), aside(filepath.Dir(p))
		err = errors.Join(err, makeCgroup(own), os.MkdirAll(to, 0o755), syscall.Mount(own, to, "", syscall.MS_BIND, ""))
	}
	const top = "/sys/fs/cgroup"
	err = errors.Join(err, syscall.Unmount(top, syscall.MNT_DETACH))
	if filepath.Dir(all[0]) != top { // version 1
		err = errors.Join(err, syscall.Mount("tmpfs", top, "tmpfs", 0, "mode=755"))
	}
	for _, p := range all {
		hierarchy := filepath.Dir(p)
		err = errors.Join(err, os.MkdirAll(hierarchy, 0o755), syscall.Mount(aside(hierarchy), hierarchy, "", syscall.MS_MOVE, ""))
	}
	return err
}
