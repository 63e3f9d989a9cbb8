package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// run is what one run of dnsperf found.
type run struct {
	completed, lost int
	took            time.Duration
	// codes are the response codes seen.
	codes []string
	// latencies are those of each answer, if they were asked for.
	latencies []time.Duration
	// client is the CPU time of dnsperf.
	client time.Duration
}

// dnsperf asks a server what is in a file for a while; with a rate, only so many questions a second, and it notes each
// latency. Without a rate the program may be another one that is used alike.
func dnsperf(program, addr, file string, length time.Duration, rate int) (run, error) {
	host, port, _ := strings.Cut(addr, ":")
	args := []string{"-s", host, "-p", port, "-d", file, "-c", "8", "-q", "100", "-t", "1",
		"-l", strconv.FormatFloat(length.Seconds(), 'f', -1, 64)}
	if rate > 0 {
		args = append(args, "-v", "-Q", strconv.Itoa(rate))
	}
	cmd := exec.Command(program, args...)
	out, err := cmd.Output()
	if err != nil {
		return run{}, fmt.Errorf("%s: %w\n%s", program, err, out)
	}
	r, err := parse(string(out))
	r.client = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return r, err
}

var (
	statistic = regexp.MustCompile(`(?m)^  (Queries completed|Queries lost|Run time \(s\)|Response codes): +(.*)$`)
	code      = regexp.MustCompile(`([A-Z]+) \d+ \(`)
)

// parse reads what dnsperf prints: its statistics, and with -v a line for each answer.
func parse(out string) (r run, err error) {
	seen := map[string]string{}
	for _, m := range statistic.FindAllStringSubmatch(out, -1) {
		seen[m[1]] = m[2]
	}
	count := func(key string) int {
		first, _, _ := strings.Cut(seen[key], " ")
		n, e := strconv.Atoi(first)
		if e != nil && err == nil {
			err = fmt.Errorf("dnsperf does not tell %q:\n%s", key, out[max(0, len(out)-2000):])
		}
		return n
	}
	r.completed, r.lost = count("Queries completed"), count("Queries lost")
	if r.took, _ = time.ParseDuration(seen["Run time (s)"] + "s"); r.took == 0 && err == nil {
		err = fmt.Errorf("dnsperf does not tell how long it ran:\n%s", out[max(0, len(out)-2000):])
	}
	for _, m := range code.FindAllStringSubmatch(seen["Response codes"], -1) {
		r.codes = append(r.codes, m[1])
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 5 && f[0] == ">" { // > NOERROR name A 0.000123
			if d, err := time.ParseDuration(f[4] + "s"); err == nil {
				r.latencies = append(r.latencies, d)
			}
		}
	}
	slices.Sort(r.latencies)
	return r, err
}
