package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/ropewalk-net/ropewalk/test/standin"
)

// scenario is a cluster, and the proxies that are measured in it.
type scenario struct {
	services, endpoints int
	candidates          []candidate
	// runs is how often each is started and started again.
	runs int
	// changes is how many changes of a kind are made one by one, or as many as there is time for within; rate is how many are made
	// a second, for as long as churn. Without a rate nothing changes.
	changes int
	within  time.Duration
	rate    int
	churn   time.Duration
	// rounds is how often so many connections are made on each way.
	rounds, connections int
	// mostFirst and mostResident are budgets, in seconds and MB.
	mostFirst, mostResident float64
}

// bench is a scenario that runs.
type bench struct {
	scenario
	network
	api             *standin.Server
	dir, kubeconfig string
	// used counts the fresh addresses, changed are services with one of them, added those that were not there at first.
	used           int
	changed, added map[int]struct{}
}

// run measures each candidate. They take turns.
func (s scenario) run(ctx context.Context, dir string, n network) ([]*result, error) {
	b := &bench{scenario: s, network: n, api: standin.New(nil), dir: dir, changed: map[int]struct{}{}, added: map[int]struct{}{}}
	defer b.api.Close()
	b.kubeconfig = b.api.Kubeconfig(dir)
	fill(b.api, s.services, s.endpoints)
	var results []*result
	for _, c := range s.candidates {
		results = append(results, &result{name: c.name})
	}
	for i := range s.runs {
		for j := range s.candidates {
			runtime.GC() // not beside what is measured: see main
			if err := b.once(ctx, &s.candidates[j], results[j], i == 0); err != nil {
				return nil, fmt.Errorf("%s, %s: %w", s.name(), s.candidates[j].name, err)
			}
		}
	}
	return results, nil
}

func (s scenario) name() string {
	return fmt.Sprintf("%d services, %d endpoints", s.services, s.services*s.endpoints)
}

// once starts a candidate on a node without rules, then again on the node as it left it, and adds what is measured to r. What
// is measured once only is, the first time.
func (b *bench) once(ctx context.Context, c *candidate, r *result, first bool) error {
	if err := flush(ctx); err != nil {
		return err
	}
	b.reset()
	p, err := c.start(ctx, b.dir, b.kubeconfig)
	if err != nil {
		return err
	}
	err = b.first(ctx, p, r, first)
	p.stop()
	if err != nil {
		return err
	}
	return b.again(ctx, c, r)
}

// first measures from the start on.
func (b *bench) first(ctx context.Context, p *process, r *result, all bool) error {
	// Rules may drop what is not a service's yet. It is not waited until the packet is sent again.
	if _, err := b.caughtUp(p, 0, 20*time.Millisecond); err != nil {
		return err
	}
	took := time.Since(p.started)
	if err := p.rest(); err != nil {
		return err
	}
	cpu, err := p.cpu()
	if err != nil {
		return err
	}
	sync, _, err := p.synced(ctx)
	if err != nil {
		return err
	}
	resident, peak, err := p.memory()
	if err != nil {
		return err
	}
	r.start.Add(took)
	r.startCPU.Add(cpu)
	r.firstSync.Add(sync)
	r.resident.Add(resident)
	r.peak.Add(peak)
	fmt.Fprintf(os.Stderr, "%s, %s: ready after %v, syncs of %v, %v of CPU time, %d MB, at most %d MB\n",
		b.name(), p.name, took, sync, cpu, resident/1e6, peak/1e6)
	if !all {
		return nil
	}
	if err := b.complete(ctx, p); err != nil {
		return err
	}
	if err := r.traffic.measure(b.client, b.rounds, b.connections); err != nil {
		return err
	}
	if b.rate == 0 {
		return nil
	}
	return b.measureChanges(p, r)
}

// caughtUp waits until the probe is answered by its backend.
func (b *bench) caughtUp(p *process, backend byte, patience time.Duration) (asked, error) {
	a, err := await(p.running, b.client, probeVIP, backend, patience)
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, p.said())
	}
	return a, err
}

// complete returns an error unless the kernel has all that the API server has.
func (b *bench) complete(ctx context.Context, p *process) error {
	frontends, backends, err := p.count(ctx)
	if err != nil {
		return err
	}
	// The probe has a port for TCP and one for UDP.
	if f, e := b.services+2, b.services*b.endpoints+2; frontends != f || backends != e {
		return fmt.Errorf("the kernel has %d frontends of %d, %d backends of %d", frontends, f, backends, e)
	}
	return nil
}

// again starts the proxy on the node as it is, but that one service has changed meanwhile.
func (b *bench) again(ctx context.Context, c *candidate, r *result) error {
	runtime.GC()
	b.api.Apply(probeSlice(1))
	p, err := c.start(ctx, b.dir, b.kubeconfig)
	if err != nil {
		return err
	}
	defer p.stop()
	// TCP sends a packet again after a second: one that is lost counts.
	a, err := b.caughtUp(p, 1, 900*time.Millisecond)
	if err != nil {
		return err
	}
	r.restart.Add(time.Since(p.started))
	r.tried += a.tried
	r.failed += a.failed
	if a.failed > 0 {
		fmt.Fprintf(os.Stderr, "%s, %s: %d of %d connections failed during a restart, the last one: %v\n", b.name(), c.name, a.failed, a.tried, a.why)
	}
	if err := p.rest(); err != nil {
		return err
	}
	cpu, err := p.cpu()
	r.restartCPU.Add(cpu)
	return err
}

func (b *bench) measureChanges(p *process, r *result) error {
	var err error
	if r.endpoint, err = b.oneByOne(p, b.changeEndpoint); err != nil {
		return err
	}
	if r.service, err = b.oneByOne(p, b.addService); err != nil {
		return err
	}
	if err := p.rest(); err != nil {
		return err
	}
	return b.measureChurn(p, r)
}

// changeEndpoint replaces an endpoint of a service by one with an address that the kernel has not had.
func (b *bench) changeEndpoint(w *watch) {
	b.used++
	i := b.used * 7919 % b.services
	b.changed[i] = struct{}{}
	addrs := bulkAddrs(i, b.endpoints)
	addrs[0] = text(fresh(b.used))
	s := slice(i, addrs)
	w.expect(fresh(b.used))
	b.api.Apply(s)
}

// addService makes one with an endpoint.
func (b *bench) addService(w *watch) {
	b.used++
	i := 1<<17 + b.used // its address is nobody's
	b.added[i] = struct{}{}
	svc, s := service(i), slice(i, []string{text(fresh(b.used))})
	w.expect(fresh(b.used))
	b.api.Apply(svc, s)
}

// oneByOne makes changes, each when the one before is in the kernel, and returns what they took.
func (b *bench) oneByOne(p *process, change func(*watch)) (took times, err error) {
	w, err := newWatch()
	if err != nil {
		return nil, err
	}
	for n, end := 0, time.Now().Add(b.within); n < b.changes && time.Now().Before(end); n++ {
		time.Sleep(p.pause)
		change(w)
		if _, err = w.drain(p.running); err != nil {
			err = fmt.Errorf("a change is not in the kernel: %w\n%s", err, p.said())
			break
		}
	}
	took, e := w.close()
	if err == nil {
		err = e
	}
	return took, err
}

// measureChurn changes endpoints at a rate.
func (b *bench) measureChurn(p *process, r *result) error {
	w, err := newWatch()
	if err != nil {
		return err
	}
	total := int(b.churn.Seconds() * float64(b.rate))
	used, err := p.during(func() (err error) {
		begin := time.Now()
		for n := range total {
			time.Sleep(time.Until(begin.Add(time.Duration(n) * time.Second / time.Duration(b.rate))))
			b.changeEndpoint(w)
		}
		if missing, err := w.drain(p.running); err != nil {
			return fmt.Errorf("%d of %d changes are not in the kernel: %w\n%s", missing, total, err, p.said())
		}
		return p.rest()
	})
	took, e := w.close()
	switch {
	case err != nil:
		return err
	case e != nil:
		return e
	}
	resident, peak, err := p.memory()
	r.lag = took
	r.changeCPU.Add(used / time.Duration(total))
	r.churned.Add(resident)
	r.churnedPeak.Add(peak)
	return err
}

// reset makes the cluster what it was at first.
func (b *bench) reset() {
	b.api.Apply(probeSlice(0))
	for i := range b.changed {
		b.api.Apply(slice(i, bulkAddrs(i, b.endpoints)))
	}
	for i := range b.added {
		b.api.Delete(service(i))
		b.api.Delete(slice(i, nil))
	}
	clear(b.changed)
	clear(b.added)
}

// flush takes all rules of the namespace away. The kernel frees them a little later.
func flush(ctx context.Context) error {
	if out, err := exec.CommandContext(ctx, "nft", "flush", "ruleset").CombinedOutput(); err != nil {
		return fmt.Errorf("nft flush ruleset: %w: %s", err, out)
	}
	time.Sleep(time.Second)
	return nil
}
