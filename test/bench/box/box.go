// Package box runs a benchmark in namespaces of its own, where any address and port is free, and reads the clocks of what
// runs in there. The kernel ends whatever a benchmark has started with the benchmark itself, however that ends.
package box

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var inside = flag.String("inside", "", "the scratch directory, in the namespaces: for the program itself")

// Run parses the program's flags, of which there are to be no others left, and runs the program again in network, mount
// and process namespaces of its own, there calls bench with a scratch directory, and exits. With a core all that is on
// that core alone, but for what leaves it. It needs root.
func Run(name, core string, bench func(dir string) error) {
	flag.Parse()
	err := errors.New("unexpected arguments")
	switch {
	case flag.NArg() > 0:
	case *inside == "":
		err = enter(core)
	default:
		if err = prepare(); err == nil {
			err = bench(*inside)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

func enter(core string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	argv := append([]string{"/proc/self/exe", "-inside", dir}, os.Args[1:]...)
	if core != "" {
		if argv[0], err = os.Executable(); err != nil {
			return err
		}
		argv = append([]string{"taskset", "--cpu-list", core}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // an interrupt comes to us alone
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("in the namespaces (which need root): %w", err)
	}
	return nil
}

func prepare() error {
	// What is mounted here must not show outside.
	err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
	err = errors.Join(err, syscall.Mount("proc", "/proc", "proc", 0, ""))
	return errors.Join(err, loopback())
}

func loopback() error {
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
	}
	return nil
}

// Fresh runs f in a network namespace of its own. Programs that f starts and sockets that it opens are in there, but not those of
// goroutines that it starts. The kernel ends the programs when f returns.
func Fresh(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, for it is in another namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = loopback()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// CPU returns the time that a process has run for, in user and kernel mode, from its clock (clock_getcpuclockid(3)), which
// counts in nanoseconds where /proc/PID/stat counts ticks.
func CPU(pid int) (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return 0, fmt.Errorf("clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// Memory returns what is resident of a process and the most that ever was, in bytes, pages of files included (VmRSS and VmHWM of
// proc_pid_status(5)).
func Memory(pid int) (resident, peak int64, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return 0, 0, err
		}
		switch f[0] {
		case "VmRSS:":
			resident = n << 10
		case "VmHWM:":
			peak = n << 10
		}
	}
	return resident, peak, nil
}
