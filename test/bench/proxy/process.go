package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ropewalk-net/ropewalk/test/bench/box"
)

// candidate is a proxy to be measured.
type candidate struct {
	name string
	argv []string // but for the kubeconfig
	// syncs is the histogram of its syncs' durations.
	syncs string
	// pause is how long a change waits for the one before: longer than what the proxy keeps its syncs apart by.
	pause time.Duration
	// count returns how many frontends and backends of the test's services the kernel has.
	count func(context.Context) (frontends, backends int, err error)
}

func ropewalk(binary string) candidate {
	return candidate{
		name:  "Ropewalk",
		argv:  []string{binary, "proxy", "--node-name", nodeName, "--cluster-cidr", clusterCIDRs},
		syncs: "ropewalk_proxy_sync_duration_seconds",
		pause: 5 * time.Millisecond,
		count: func(ctx context.Context) (int, int, error) {
			frontends, err := listed(ctx, frontend, "list", "map", "ip", "ropewalk", "frontends")
			backends, e := listed(ctx, backend, "list", "map", "ip", "ropewalk", "backends")
			return frontends, backends, errors.Join(err, e)
		},
	}
}

// kubeProxy is upstream's with its defaults, but that it leaves the sysctls of conntrack alone.
func kubeProxy(binary string) candidate {
	return candidate{
		name: "kube-proxy",
		argv: []string{binary, "--proxy-mode", "nftables", "--hostname-override", nodeName, "--cluster-cidr", clusterCIDRs,
			"--conntrack-max-per-core", "0", "--conntrack-min", "0", "--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0"},
		syncs: "kubeproxy_sync_proxy_rules_duration_seconds",
		pause: 1100 * time.Millisecond,
		count: func(ctx context.Context) (int, int, error) {
			frontends, err := listed(ctx, frontend, "list", "map", "ip", "kube-proxy", "service-ips")
			backends, e := listed(ctx, backend, "list", "table", "ip", "kube-proxy")
			return frontends, backends, errors.Join(err, e)
		},
	}
}

// frontend and backend are what the services' ports and the backends look like in nft(8)'s listings.
const (
	frontend = ` \. 80 : `
	backend  = ` : \S+ \. 8080\b`
)

// listed counts the matches in what nft(8) prints.
func listed(ctx context.Context, what string, args ...string) (int, error) {
	out, err := exec.CommandContext(ctx, "nft", args...).Output()
	if err != nil {
		return 0, fmt.Errorf("nft %s: %w", strings.Join(args, " "), err)
	}
	return len(regexp.MustCompile(what).FindAll(out, -1)), nil
}

// process is a proxy that runs.
type process struct {
	*candidate
	cmd     *exec.Cmd
	started time.Time
	log     string
	// running ends with the process, and the process with it; done waits until nothing of either is left.
	running context.Context
	cancel  context.CancelCauseFunc
	done    sync.WaitGroup

	// mu guards peak, the most memory that the process and its children had together when it was looked at.
	mu   sync.Mutex
	peak int64
}

var errEnded = errors.New("the proxy has ended")

// start runs the candidate against the API server of a kubeconfig. Its log goes to dir.
func (c *candidate) start(ctx context.Context, dir, kubeconfig string) (*process, error) {
	log, err := os.Create(filepath.Join(dir, "proxy.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{candidate: c, log: log.Name()}
	p.running, p.cancel = context.WithCancelCause(ctx)
	p.cmd = exec.CommandContext(p.running, c.argv[0], append(c.argv[1:], "--kubeconfig", kubeconfig)...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.started = time.Now()
	if err := p.cmd.Start(); err != nil {
		p.cancel(err)
		return nil, err
	}
	p.done.Go(func() {
		// How it ends is of no interest: it is killed, or missed.
		_ = p.cmd.Wait()
		p.cancel(errEnded)
	})
	p.done.Go(p.sample)
	return p, nil
}

// stop kills the process and returns when it has ended.
func (p *process) stop() {
	p.cancel(errEnded)
	p.done.Wait()
}

// said is the end of the log.
func (p *process) said() string {
	text, _ := os.ReadFile(p.log) // start made it
	return string(text[max(0, len(text)-4000):])
}

// cpu returns the time that the process has run for, with those of its children that have ended.
func (p *process) cpu() (time.Duration, error) { return box.AllCPU(p.cmd.Process.Pid) }

// during returns for how long the process ran while f did.
func (p *process) during(f func() error) (time.Duration, error) {
	before, err := p.cpu()
	if err == nil {
		err = f()
	}
	if err != nil {
		return 0, err
	}
	after, err := p.cpu()
	return after - before, err
}

// rest waits until the process has nothing to do.
func (p *process) rest() error {
	const look, idle = 300 * time.Millisecond, 6 * time.Millisecond
	for quiet := 0; quiet < 4; {
		used, err := p.during(func() error {
			select {
			case <-p.running.Done():
				return context.Cause(p.running)
			case <-time.After(look):
				return nil
			}
		})
		if err != nil {
			return fmt.Errorf("never at rest: %w\n%s", err, p.said())
		}
		if quiet++; used > idle || p.busy() {
			quiet = 0
		}
	}
	return nil
}

// busy says whether the process has children.
func (p *process) busy() bool {
	all, err := box.Children(p.cmd.Process.Pid)
	return err == nil && len(all) > 0
}

// sample keeps peak while the process runs.
func (p *process) sample() {
	for t := time.NewTicker(20 * time.Millisecond); ; {
		select {
		case <-p.running.Done():
			t.Stop()
			return
		case <-t.C:
		}
		sum, err := box.AllResident(p.cmd.Process.Pid)
		if err != nil {
			continue // it has ended
		}
		p.mu.Lock()
		p.peak = max(p.peak, sum)
		p.mu.Unlock()
	}
}

// memory returns what is resident, and the most that it was, children included.
func (p *process) memory() (resident, peak int64, err error) {
	resident, peak, err = box.Memory(p.cmd.Process.Pid)
	p.mu.Lock()
	defer p.mu.Unlock()
	return resident, max(peak, p.peak), err
}

// synced returns how long all the process's syncs so far took by its own metrics, and how many they were.
func (p *process) synced(ctx context.Context) (sum time.Duration, n int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10249/metrics", nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, 0, err
	}
	return histogram(string(text), p.syncs)
}

// histogram adds up the sums and counts of a histogram of seconds, over all labels, in the text format of Prometheus.
func histogram(text, name string) (sum time.Duration, n int, err error) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok {
			continue
		}
		f := strings.Fields(line)
		v, err := strconv.ParseFloat(f[len(f)-1], 64)
		if err != nil {
			return 0, 0, fmt.Errorf("%q: %w", line, err)
		}
		switch {
		case strings.HasPrefix(rest, "_sum"):
			sum += time.Duration(v * float64(time.Second))
		case strings.HasPrefix(rest, "_count"):
			n += int(v)
		}
	}
	if n == 0 {
		return 0, 0, fmt.Errorf("no metric %s", name)
	}
	return sum, n, nil
}
