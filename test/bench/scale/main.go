// Command scale measures Ropewalk and CoreDNS's kubernetes plugin side by side on a large cluster that test/standin
// plays: how long a start takes, what it costs in memory and CPU time, how soon a change is answered, and what a change
// costs in a large service. It prints one table in Markdown.
//
//	make bench-dns-scale
//
// Everything runs in a network namespace of its own, which needs root. The servers are processes of their own, one at a
// time; the stand-in and whoever asks share this one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

var (
	ours     = flag.String("ours", "bin/coredns", "the coredns with the ropewalk plugin")
	stock    = flag.String("stock", "", "a stock coredns; without, the version in go.mod is built into bin/stock")
	only     = flag.String("only", "", "the one scenario to run, by a part of its name")
	alone    = flag.Bool("alone", false, "leave the stock one out")
	reps     = flag.Int("reps", 3, "starts of each server in each scenario")
	services = flag.Int("services", 50_000, "services")
	perSlice = flag.Int("endpoints", 5, "endpoints of each service")
	pods     = flag.Int("pods", 100_000, "pods, in the scenario that has them")
	settle   = flag.Duration("settle", 5*time.Second, "from ready to the look at the memory")
	churn    = flag.Duration("churn", 10*time.Second, "how long 1,000 changes a second go on")
	heap     = flag.String("heap", "", "a file for ropewalk's heap profile at rest; it costs memory")
	timeout  = flag.Duration("timeout", 30*time.Minute, "when to give up")
)

// inside marks the process in the namespaces.
const inside = "ROPEWALK_BENCH_NAMESPACE"

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	// Children get the signal that ends them when the thread that made them ends.
	runtime.LockOSThread()
	step := enter
	if os.Getenv(inside) != "" {
		step = measure
	}
	if err := step(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

// enter prepares what needs the network and runs the program again in new namespaces.
func enter(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	if *stock == "" && !*alone {
		var err error
		if *stock, err = buildStock(ctx); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "scale-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append(os.Args[1:], "-stock="+*stock)...)
	cmd.Env = append(os.Environ(), inside+"=1", "TMPDIR="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	return cmd.Run()
}

// buildStock builds CoreDNS as its authors release it, all plugins included.
func buildStock(ctx context.Context) (string, error) {
	const module = "github.com/coredns/coredns"
	version, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("find CoreDNS's version: %w", err)
	}
	dir, err := filepath.Abs("bin/stock")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "install", "-trimpath", "-ldflags=-s -w",
		module+"@"+strings.TrimSpace(string(version)))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("build stock CoreDNS: %w", err)
	}
	return filepath.Join(dir, "coredns"), nil
}

// measure is the program in its namespaces.
func measure(ctx context.Context) error {
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link: %w\n%s", err, out)
	}
	// The collector of this process must not run beside what is measured; scenarios call it in between.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(8 << 30)
	candidates := []candidate{{"ropewalk", *ours}}
	if !*alone {
		candidates = append(candidates, candidate{"kubernetes", *stock})
	}
	var results []result
	for _, s := range scenarios() {
		if !strings.Contains(s.name, *only) {
			continue
		}
		r, err := s.run(ctx, candidates)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		results = append(results, r...)
	}
	return report(results)
}
