package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/test/bench/box"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

// candidate is a server to be measured: what it is called, the plugin, and the program that has it.
type candidate struct{ name, plugin, binary string }

const (
	dnsAddr   = "127.0.0.1:1053"
	readyURL  = "http://127.0.0.1:8181/ready"
	pprofAddr = "127.0.0.1:6053"
)

// process is a server that runs.
type process struct {
	cmd     *exec.Cmd
	started time.Time
	log     bytes.Buffer
}

// start runs the candidate in front of api, with what else the Corefile of a cluster has; the cache is left out, since it
// would answer with what was. Its files go to dir.
func (c candidate) start(ctx context.Context, dir string, api *standin.Server, options []string) (*process, error) {
	corefile := filepath.Join(dir, "Corefile")
	more := ""
	if *heap != "" {
		more = " pprof " + pprofAddr + "\n"
	}
	text := fmt.Sprintf(".:1053 {\n bind 127.0.0.1\n errors\n health 127.0.0.1:8080\n ready 127.0.0.1:8181\n prometheus 127.0.0.1:9153\n"+
		" loadbalance\n%s %s cluster.local in-addr.arpa ip6.arpa {\n kubeconfig %s\n %s\n }\n}\n",
		more, c.plugin, api.Kubeconfig(dir), strings.Join(options, "\n "))
	if err := os.WriteFile(corefile, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p := &process{cmd: exec.CommandContext(ctx, c.binary, "-conf", corefile)}
	if *heap != "" {
		p.cmd.Env = append(os.Environ(), "GODEBUG=memprofilerate=4096")
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	p.started = time.Now()
	return p, p.cmd.Start()
}

// stop ends the process and waits for it.
func (p *process) stop() {
	// It may have ended by itself: whoever asked it something has noticed.
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// ready waits until the server says that it is and answers all questions rightly, and returns the time since its start.
func (p *process) ready(ctx context.Context, questions []question) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for ; ; time.Sleep(2 * time.Millisecond) {
		if resp, err := http.Get(readyURL); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("never ready: %w\n%s", ctx.Err(), p.log.String())
		}
	}
	for _, q := range questions {
		if err := q.await(ctx); err != nil {
			return 0, err
		}
	}
	return time.Since(p.started), nil
}

// cpu returns the time that the process has run for.
func (p *process) cpu() (time.Duration, error) { return box.CPU(p.cmd.Process.Pid) }

// during returns for how long the process ran while f did.
func (p *process) during(f func() error) (time.Duration, error) {
	before, err := p.cpu()
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	after, err := p.cpu()
	return after - before, err
}

// memory returns what is resident and the most that ever was, in bytes.
func (p *process) memory() (resident, peak int64, err error) { return box.Memory(p.cmd.Process.Pid) }

// saveHeap writes a profile of what is live.
func saveHeap(file string) error {
	resp, err := http.Get("http://" + pprofAddr + "/debug/pprof/heap?gc=1")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return os.WriteFile(file, raw, 0o644)
}

// question is one with the addresses of its right answer. None means that there is no such name.
type question struct {
	name string
	want []string
}

// await asks until the answer is right.
func (q question) await(ctx context.Context) error {
	conn, err := dns.Dial("udp", dnsAddr)
	if err != nil {
		return err
	}
	defer conn.Close()
	slices.Sort(q.want)
	query := new(dns.Msg).SetQuestion(q.name, dns.TypeA)
	query.SetEdns0(4096, false)
	var m *dns.Msg
	for ctx.Err() == nil {
		conn.SetDeadline(time.Now().Add(time.Second))
		if err := conn.WriteMsg(query); err != nil {
			return err
		}
		if m, err = conn.ReadMsg(); err != nil {
			continue
		}
		var got []string
		for _, rr := range m.Answer {
			if a, ok := rr.(*dns.A); ok {
				got = append(got, a.A.String())
			}
		}
		slices.Sort(got)
		if slices.Equal(got, q.want) && (m.Rcode == dns.RcodeNameError) == (len(q.want) == 0) {
			return nil
		}
	}
	return fmt.Errorf("%s is never %v: %w; the last answer is %v", q.name, q.want, ctx.Err(), m)
}
