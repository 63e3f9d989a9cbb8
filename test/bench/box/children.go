package box

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Children returns the processes that a process has started and that have not ended.
func Children(pid int) (pids []int, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	for _, t := range tasks {
		raw, err := os.ReadFile(t)
		if err != nil {
			continue // a thread that has ended
		}
		for _, f := range strings.Fields(string(raw)) {
			if child, err := strconv.Atoi(f); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids, nil
}

// AllCPU returns the time that a process has run for, with those of its children that have ended. Theirs is in /proc/PID/stat
// (proc_pid_stat(5)), in hundredths of a second.
func AllCPU(pid int) (time.Duration, error) {
	sum, err := CPU(pid)
	if err != nil {
		return 0, err
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:])) // the name before it may have anything in it
	if len(f) < 15 {
		return 0, fmt.Errorf("not a stat of a process: %q", raw)
	}
	for _, field := range f[13:15] { // cutime, cstime
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * (time.Second / 100) // USER_HZ is 100 on all that Go runs on
	}
	return sum, nil
}

// AllResident returns what is resident of a process and its children together, in bytes. A child that is not another program yet has
// the memory of the process itself, and does not count (vfork(2)).
func AllResident(pid int) (int64, error) {
	sum, _, err := Memory(pid)
	if err != nil {
		return 0, err
	}
	pids, err := Children(pid)
	if err != nil {
		return 0, err
	}
	own := programOf(pid)
	for _, pid := range pids {
		if resident, _, err := Memory(pid); err == nil && programOf(pid) != own { // else it has ended
			sum += resident
		}
	}
	return sum, nil
}

// programOf returns the file that a process runs, empty if it has ended.
func programOf(pid int) string {
	file, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return file
}
