package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/test/bench/box"
)

// process is a running server, in a session of its own, with all its processes on one core.
type process struct {
	cmd  *exec.Cmd
	addr string
	log  string
	done chan struct{} // closed when it has ended
}

var errEnded = errors.New("the server has ended")

// launch starts a server on a core and waits until it answers the question with a record.
func launch(s spec, p place, core string, q question) (*process, error) {
	for name, text := range s.files {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	log, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command("taskset", append([]string{"--cpu-list", core}, s.argv...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &process{cmd, fmt.Sprintf("127.0.0.1:%d", p.port), log.Name(), make(chan struct{})}
	go func() {
		// How it ends is of no interest; that it ends before it is told to, launch finds.
		_ = cmd.Wait()
		close(r.done)
	}()
	if err := r.answering(q); err != nil {
		r.stop()
		return nil, fmt.Errorf("%s: %w\n%s", s.argv[0], err, r.said())
	}
	return r, nil
}

func (r *process) answering(q question) error {
	c := &dns.Client{Timeout: time.Second}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		select {
		case <-r.done:
			return errEnded
		case <-time.After(50 * time.Millisecond):
		}
		if m, _, err := c.Exchange(new(dns.Msg).SetQuestion(q.name, q.qtype), r.addr); err == nil && len(m.Answer) > 0 {
			return nil
		}
	}
	return fmt.Errorf("no answer to %s", q)
}

// said is the server's log so far.
func (r *process) said() string {
	text, _ := os.ReadFile(r.log) // launch made it
	return string(text)
}

// stop ends the server and returns when it has ended.
func (r *process) stop() {
	_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGTERM) // it may be gone
	select {
	case <-r.done:
	case <-time.After(10 * time.Second):
		_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
		<-r.done
	}
}

// cpu returns the time that all of the server's processes have run for. Processes that have ended do not count; servers
// start theirs once.
func (r *process) cpu() (sum time.Duration, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, file := range stats {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		pid, session, err := sessionOf(raw)
		if err != nil {
			return 0, err
		}
		if session != r.cmd.Process.Pid {
			continue
		}
		t, err := box.CPU(pid)
		if err != nil {
			return 0, err
		}
		sum += t
	}
	if sum == 0 {
		return 0, errEnded
	}
	return sum, nil
}

// sessionOf reads a process's number and its session's from /proc/PID/stat (proc_pid_stat(5)).
func sessionOf(stat []byte) (pid, session int, err error) {
	head, _, _ := bytes.Cut(stat, []byte(" "))
	tail := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // the name before it may have anything in it
	if len(tail) < 4 {
		return 0, 0, fmt.Errorf("not a stat of a process: %q", stat)
	}
	if pid, err = strconv.Atoi(string(head)); err == nil {
		session, err = strconv.Atoi(tail[3])
	}
	return pid, session, err
}

// coreTime reads from /proc/stat (proc_stat(5)) for how long a core has been busy with anything, or stolen by the host.
func coreTime(stat, core string) (time.Duration, error) {
	for line := range strings.Lines(stat) {
		f := strings.Fields(line)
		if len(f) < 9 || f[0] != "cpu"+core {
			continue
		}
		ticks := 0
		for i, field := range f[1:9] { // user nice system idle iowait irq softirq steal
			n, err := strconv.Atoi(field)
			if err != nil {
				return 0, err
			}
			if i != 3 && i != 4 {
				ticks += n
			}
		}
		return time.Duration(ticks) * (time.Second / 100), nil // USER_HZ is 100 on all that Go runs on
	}
	return 0, fmt.Errorf("no core %s in /proc/stat", core)
}
