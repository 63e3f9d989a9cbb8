package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// state is the directory of all that the lab writes:
//
//	lock                  flock(2), held by who starts or ends a lab
//	machine               fcntl(2), held by the lab's first process: the kernel says whether there is one, and which it is
//	up                    is there once all is ready
//	log                   what the machine says
//	manifests/            the cluster, for everybody to change
//	nodes/NODE/           pid, env and log of the agent, its configuration, what the kubelet and the runtime have elsewhere
//	pods/NAMESPACE/NAME/  pid, env and log, resolv.conf
//	Corefile              that of the cluster's DNS
//	nsswitch.conf         that of all pods
//
// Process numbers are those in the machine's namespace.
const state = "/run/ropewalk-lab"

var errNone = errors.New("there is no lab; make lab starts one")

// open returns the lock's file, with which the caller keeps other calls of this program waiting until it closes it or ends.
func open(flags int) (*os.File, error) {
	path := filepath.Join(state, "lock")
	for {
		f, err := os.OpenFile(path, os.O_RDWR|flags, 0o644)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return nil, err
		}
		mine, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(mine, now) {
			return f, nil
		}
		_ = f.Close() // a call that has just ended took it away
	}
}

// machinePID returns the lab's first process; 0 if there is none.
func machinePID() (int, error) {
	f, err := os.OpenFile(filepath.Join(state, "machine"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err != nil {
		return 0, err
	}
	if l.Type == unix.F_UNLCK {
		return 0, nil
	}
	return int(l.Pid), nil
}

// up starts the lab with the cluster of a directory, unless there is one already. What is left of one that was not finished goes.
func up(manifests string) (already bool, err error) {
	if os.Geteuid() != 0 {
		return false, errors.New("namespaces need root")
	}
	if err := os.MkdirAll(state, 0o755); err != nil {
		return false, err
	}
	lock, err := open(os.O_CREATE)
	if err != nil {
		return false, err
	}
	defer lock.Close()
	pid, err := machinePID()
	if err != nil {
		return false, err
	}
	if _, err := os.Stat(filepath.Join(state, "up")); pid != 0 && err == nil {
		return true, nil
	}
	if err := clean(); err != nil {
		return false, err
	}
	if err := os.CopyFS(filepath.Join(state, "manifests"), os.DirFS(manifests)); err != nil {
		return false, err
	}
	if err := start(lock); err != nil {
		return false, fmt.Errorf("%w; what there is to know is in %s, until make lab-down", err, state)
	}
	return false, os.WriteFile(filepath.Join(state, "up"), nil, 0o644)
}

// start starts the machine, and returns when all is ready.
//
// It has a process namespace of its own, and others: when its first process ends, however it does, the kernel ends all others, shells that
// somebody has in a pod included, and with them go namespaces, links, rules and mounts. Nothing of that is ever seen from outside.
func start(lock *os.File) error {
	exe, err := self()
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(state, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(exe, "machine")
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + path, "HOME=/root"}
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{lock} // so that it is held until that process can be found, whatever becomes of this one
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS,
		Setsid:     true, // it outlives this terminal
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	answer, err := io.ReadAll(out)
	if err != nil || string(answer) == ready {
		return err
	}
	err = cmd.Wait()
	if why := strings.TrimSpace(string(answer)); why != "" {
		return errors.New(why)
	}
	return fmt.Errorf("the lab's first process: %w", err)
}

// ready is what a machine says when all is.
const ready = "ready\n"

// clean ends the machine, if there is one, and empties the directory but for the lock.
func clean() error {
	pid, err := machinePID()
	if err != nil {
		return err
	}
	if pid != 0 {
		if err := kill(pid); err != nil {
			return err
		}
	}
	all, err := os.ReadDir(state)
	for _, e := range all {
		if e.Name() != "lock" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(state, e.Name())))
		}
	}
	return err
}

// kill ends the first process of a process namespace and waits until it has ended, which it does after all others of the namespace.
func kill(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// down ends the lab. It is no error that there is none.
func down() error {
	lock, err := open(0)
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(state)
	} else if err != nil {
		return err
	}
	defer lock.Close()
	if err := clean(); err != nil {
		return err
	}
	return os.RemoveAll(state)
}

// shell puts a shell, or a command of one, in the place of this process: in the namespaces of a pod or a node, with its environment.
func shell(pod, node, command string) error {
	machine, err := machinePID()
	if err == nil && machine == 0 {
		err = errNone
	}
	if err != nil {
		return err
	}
	dir, err := find(os.DirFS(state), pod, node)
	if err != nil {
		return err
	}
	pid, err := os.ReadFile(filepath.Join(state, dir, "pid"))
	if err != nil {
		return err
	}
	env, err := os.ReadFile(filepath.Join(state, dir, "env"))
	if err != nil {
		return err
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	// First to where the numbers of processes are those that the machine knows.
	args := []string{"nsenter", "--target", strconv.Itoa(machine), "--mount", "--pid", "--",
		"nsenter", "--target", string(pid), "--mount", "--pid", "--net", "--uts", "--"}
	if command != "" {
		args = append(args, "sh", "-c", command)
	} else {
		args = append(args, "bash", "--norc") // dash complains at its end that the terminal's process group is of another namespace
	}
	vars := append(strings.Split(string(env), "\n"), "TERM="+os.Getenv("TERM"), "PS1="+filepath.Base(dir)+"# ")
	return fmt.Errorf("%s: %w", nsenter, unix.Exec(nsenter, args, vars))
}

// find returns the directory of a node, or of the first pod whose namespace and name begin as is said.
func find(state fs.FS, pod, node string) (string, error) {
	pattern, what := "nodes/"+node, "node"
	if node == "" {
		pattern, what = "pods/"+pod+"*", "pod"
	}
	if !strings.Contains(pod, "/") && node == "" {
		pattern = "pods/*/" + pod + "*"
	}
	if strings.ContainsAny(pod+node, `*?[\`) {
		return "", fmt.Errorf("%q: that is no name", pod+node)
	}
	found, err := fs.Glob(state, pattern)
	if err != nil {
		return "", err
	}
	if pod+node != "" && len(found) > 0 {
		return found[0], nil
	}
	pods, _ := fs.Glob(state, "pods/*/*")
	nodes, _ := fs.Glob(state, "nodes/*")
	all := strings.NewReplacer("pods/", "POD=", "nodes/", "NODE=").Replace(strings.Join(append(pods, nodes...), "\n  "))
	if pod+node == "" {
		return "", fmt.Errorf("where? There are\n  %s", all)
	}
	return "", fmt.Errorf("there is no %s %s; there are\n  %s", what, pod+node, all)
}
