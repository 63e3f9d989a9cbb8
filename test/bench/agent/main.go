// Command agent measures what `ropewalk agent`, with all of its parts, costs a node of a large cluster that does nothing but go on, and
// what the programs cost that it takes the place of: memory, and CPU time, while nodes tell that they are alive. Each runs alone, one
// after the other, on a node that is a fresh network namespace, in front of test/standin.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ropewalk-net/ropewalk/test/bench/box"
	"github.com/ropewalk-net/ropewalk/test/bench/report"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

var (
	ropewalk = flag.String("ropewalk", "bin/ropewalk", "the ropewalk to measure")
	plugin   = flag.String("plugin", "bin/ropewalk-cni", "the CNI plugin that it installs")
	stock    = flag.String("stock", "bin/stock", "where kube-proxy and flanneld are")
	nodes    = flag.Int("nodes", 1000, "nodes of the cluster")
	services = flag.Int("services", 10_000, "services of the cluster, with two endpoints each")
	pods     = flag.Int("pods", 110, "pods of the node")
	idle     = flag.Duration("idle", time.Minute, "how long is measured")
	doc      = flag.String("write", "", "a document to write the table into")
)

// patience is how long a program may take to do its work, and calm how long after that it is left alone before it is at rest.
const (
	patience = 2 * time.Minute
	calm     = 10 * time.Second
)

func main() { box.Run("bench-agent", "", all) }

func all(dir string) error {
	// The collector of this process must not run beside what is measured.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(8 << 30)
	programs := []program{ropewalkAgent, kubeProxy, flanneld("flanneld", true), flanneld("flanneld, iptables", false)}
	results := make([]result, len(programs))
	for i, p := range programs {
		scratch := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(scratch, 0o755); err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, p.name)
		if err := box.Fresh(func() (err error) {
			results[i], err = p.measure(scratch)
			return err
		}); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		debug.FreeOSMemory()
	}
	text := report.Stamp(report.Command("make bench-agent"), time.Now()) + fmt.Sprintf("\n%d nodes, %d services with two endpoints each, %d pods on the node; at rest for %s.\n\n", *nodes, *services, *pods, *idle) +
		table(programs, results)
	fmt.Println(text)
	if *doc == "" {
		return nil
	}
	return report.Save(*doc, "bench-agent", text)
}

// result is what a program costs, with the processes that it starts.
type result struct {
	start, starting time.Duration // until all is in the kernel, and the CPU time of that
	resident, peak  int64         // bytes
	share           float64       // of a core, at rest
}

// measure runs a program in the namespace of the calling thread.
func (p program) measure(dir string) (r result, err error) {
	if err := network(); err != nil {
		return r, err
	}
	api := standin.New(nil)
	defer api.Close()
	fill(api)
	cmd, err := p.command(dir, api.Kubeconfig(dir))
	if err != nil {
		return r, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return r, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return r, err
	}
	peak, ended := sample(cmd.Process.Pid), make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ends is of no interest: it is killed, or missed
		close(ended)
	}()
	defer func() {
		_ = cmd.Process.Kill()
		<-ended
		r.peak = max(r.peak, peak())
	}()
	if r.start, err = p.done(begun, ended); err != nil {
		text, _ := os.ReadFile(log.Name())
		return r, fmt.Errorf("%w\n%s", err, text[max(0, len(text)-4000):])
	}
	pid := cmd.Process.Pid
	if r.starting, err = box.AllCPU(pid); err != nil {
		return r, err
	}
	time.Sleep(calm)
	before, err := box.AllCPU(pid)
	if err != nil {
		return r, err
	}
	wall := time.Now()
	beat(api, *idle)
	took := time.Since(wall)
	after, err := box.AllCPU(pid)
	if err != nil {
		return r, err
	}
	r.share = float64(after-before) / float64(took)
	r.resident, r.peak, err = box.Memory(pid)
	return r, err
}

// network has an address that other nodes are neighbours of.
func network() error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader("link add eth0 type veth peer name other\naddr add 172.16.0.1/12 dev eth0\naddr add 2001:db8::1/64 dev eth0 nodad\nlink set eth0 up\nlink set other up\n" +
		"route add default via 172.16.0.254\nroute add default via 2001:db8::fffe\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
	}
	return nil
}

// done returns how long the program took until nothing was missing, to the last look before.
func (p program) done(begun time.Time, ended <-chan struct{}) (time.Duration, error) {
	for {
		looked := time.Now()
		err := p.missing()
		if err == nil {
			return looked.Sub(begun), nil
		}
		select {
		case <-ended:
			return 0, fmt.Errorf("it has ended: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Since(begun) > patience {
			return 0, err
		}
	}
}

// sample looks at the memory of a process and its children until the process has ended or peak, which returns the most that they had
// together, is called.
func sample(pid int) (peak func() int64) {
	var most int64
	var looking sync.WaitGroup
	enough := make(chan struct{})
	looking.Go(func() {
		for t := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-enough:
				t.Stop()
				return
			case <-t.C:
			}
			if sum, err := box.AllResident(pid); err == nil {
				most = max(most, sum)
			}
		}
	})
	return func() int64 {
		close(enough)
		looking.Wait()
		return most
	}
}

// table compares ours with the two that it takes the place of, in the mode of nftables both, and has the last program for itself.
func table(programs []program, results []result) string {
	head := []string{"", programs[0].name, programs[1].name, programs[2].name, "the two together", "ratio", "budget", programs[3].name}
	row := func(name, budget, format string, of func(result) float64, together func(a, b float64) float64) []string {
		cell := func(i int) string { return fmt.Sprintf(format, of(results[i])) }
		both := together(of(results[1]), of(results[2]))
		return []string{name, cell(0), cell(1), cell(2), fmt.Sprintf(format, both), fmt.Sprintf("%.2f", of(results[0])/both), budget, cell(3)}
	}
	sum := func(a, b float64) float64 { return a + b }
	longer := func(a, b float64) float64 { return max(a, b) }
	return report.Table(head, [][]string{
		row("start until all is in the kernel", "", "%.2f s", func(r result) float64 { return r.start.Seconds() }, longer),
		row("CPU time of that", "", "%.2f s", func(r result) float64 { return r.starting.Seconds() }, sum),
		row("resident, at rest", "150 MB", "%.0f MB", func(r result) float64 { return float64(r.resident) / 1e6 }, sum),
		row("resident, at most until then", "", "%.0f MB", func(r result) float64 { return float64(r.peak) / 1e6 }, sum),
		row("CPU at rest, of a core", "1 %", "%.2f %%", func(r result) float64 { return 100 * r.share }, sum),
	})
}
