package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/ropewalk-net/ropewalk/test/standin"
)

// scenario is a cluster and what is measured in it.
type scenario struct {
	name string
	// options are lines in the plugin's block.
	options []string
	fill    func(*standin.Server)
	// questions tell that everything has arrived.
	questions []question
	// changes says whether 1,000 changes a second and single endpoints of large services are measured.
	changes bool
}

func scenarios() []scenario {
	last := *services - 1 // has a ClusterIP
	head := (*services - 1) / headlessEvery * headlessEvery
	base := []question{
		{fmt.Sprintf("%s.%s.svc.cluster.local.", serviceName(last), space(last)), []string{clusterIP(last)}},
		{fmt.Sprintf("%s.%s.svc.cluster.local.", serviceName(head), space(head)), sliceIPs(head)},
	}
	size := fmt.Sprintf("%d services, %d endpoints", *services, *services**perSlice)
	verified := question{fmt.Sprintf("%s.%s.pod.cluster.local.", strings.ReplaceAll(podIP(*pods-1), ".", "-"), space((*pods-1)/2)), []string{podIP(*pods - 1)}}
	return []scenario{
		{
			name: size + ", and a service of 10000", fill: fillLarge, changes: true,
			questions: append(base, hundred.question(0, true), huge.question(0, true)),
		},
		{name: fmt.Sprintf("%s, and %d pods verified", size, *pods), options: []string{"pods verified"}, fill: fillPods, questions: append(base, verified)},
	}
}

func fillServices(api *standin.Server) {
	for _, ns := range namespaces() {
		api.Apply(ns)
	}
	for i := range *services {
		api.Apply(service(i), sliceOf(i, -1))
	}
	for i := range numProbes {
		api.Apply(probeService(i), probeSlice(i, 0))
	}
}

func fillPods(api *standin.Server) {
	fillServices(api)
	for i := range *pods {
		api.Apply(pod(i))
	}
}

// run measures each candidate in the scenario. They take turns, so that what else the machine does hits all alike.
func (s scenario) run(ctx context.Context, dir string, candidates []candidate) ([]*result, error) {
	api := standin.New(nil)
	defer api.Close()
	s.fill(api)
	// The first starts are for the stand-in to encode what it has, and for the programs to come into memory.
	var results []*result
	for _, c := range candidates {
		results = append(results, &result{name: c.name})
		p, err := c.start(ctx, dir, api, s.options)
		if err != nil {
			return nil, err
		}
		_, err = p.ready(ctx, s.questions)
		p.stop()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	for range *runs {
		for i, c := range candidates {
			runtime.GC() // not beside what is measured: see bench
			if err := s.once(ctx, dir, api, c, results[i]); err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	return results, nil
}

// once starts a candidate and adds what is measured to r.
func (s scenario) once(ctx context.Context, dir string, api *standin.Server, c candidate, r *result) error {
	p, err := c.start(ctx, dir, api, s.options)
	if err != nil {
		return err
	}
	defer p.stop()
	start, err := p.ready(ctx, s.questions)
	if err != nil {
		return err
	}
	used, err := p.cpu()
	if err != nil {
		return err
	}
	r.start.Add(start)
	r.startCPU.Add(used)
	time.Sleep(*settle)
	resident, peak, err := p.memory()
	if err != nil {
		return err
	}
	r.resident.Add(resident)
	r.peak.Add(peak)
	fmt.Fprintf(os.Stderr, "%s: ready after %v, %d MB, at most %d MB\n", c.name, start, resident/1e6, peak/1e6)
	if *heap != "" {
		if err := saveHeap(*heap); err != nil {
			return err
		}
	}
	if !s.changes {
		return nil
	}
	if err := measureChurn(ctx, api, p, r); err != nil {
		return err
	}
	took, err := hundred.flip(ctx, api, p)
	if err != nil {
		return err
	}
	r.flip100.Add(took)
	took, err = huge.flip(ctx, api, p)
	r.flip10000.Add(took)
	return err
}

// rate is how many changes a second measureChurn makes; every probeEvery-th is one that is looked for in the answers.
const (
	rate       = 1000
	probeEvery = 20
	numProbes  = 16
)

// measureChurn changes one endpoint a millisecond and takes the time from a change to its answer.
func measureChurn(ctx context.Context, api *standin.Server, p *process, r *result) error {
	ctx, cancel := context.WithTimeout(ctx, *churn+30*time.Second)
	defer cancel()
	type probe struct {
		question
		since time.Time
	}
	probes := make(chan probe) // nobody waits: while one is looked for, there is no other
	var wg sync.WaitGroup
	var failed error
	var answered times
	wg.Go(func() {
		for q := range probes {
			if err := q.await(ctx); err != nil {
				failed = err
				continue
			}
			answered.Add(time.Since(q.since))
		}
	})
	n, most := 0, int64(0)
	used, err := p.during(func() error {
		begin := time.Now()
		for ; time.Since(begin) < *churn; n++ {
			time.Sleep(time.Until(begin.Add(time.Duration(n) * time.Second / rate)))
			if n%probeEvery == 0 {
				i := n / probeEvery % numProbes
				since := time.Now()
				api.Apply(probeSlice(i, n))
				select {
				case probes <- probe{probeQuestion(i, n), since}:
				default:
				}
			} else {
				api.Apply(sliceOf(n*7919%(*services-headlessEvery), n%(*perSlice+1)-1))
			}
			if n%rate == 0 {
				resident, _, err := p.memory()
				if err != nil {
					return err
				}
				most = max(most, resident)
			}
		}
		return nil
	})
	close(probes)
	wg.Wait()
	switch {
	case err != nil:
		return err
	case failed != nil:
		return failed
	case float64(n) < 0.9*rate*churn.Seconds():
		return fmt.Errorf("no more than %d changes in %v", n, *churn)
	}
	r.changeCPU.Add(used / time.Duration(n))
	r.churned.Add(most)
	r.p50.Add(answered.At(0.5))
	r.p99.Add(answered.At(0.99))
	return nil
}

// flip returns the server's CPU time for a change of one endpoint of a large service.
func (l large) flip(ctx context.Context, api *standin.Server, p *process) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	const flips, every = 1000, 4 * time.Millisecond
	took, err := p.during(func() error {
		begin := time.Now()
		for n := range flips {
			time.Sleep(time.Until(begin.Add(time.Duration(n) * every)))
			// Not ready, then ready again, in one slice after the other.
			api.Apply(l.slice(n/2%l.slices, -(n % 2)))
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	// Whatever came so far has been taken in when a last change is answered.
	last := (flips/2 - 1) % l.slices
	if err := l.question(last, true).await(ctx); err != nil {
		return 0, err
	}
	for _, ready := range []bool{false, true} {
		notReady := -1
		if !ready {
			notReady = 0
		}
		api.Apply(l.slice(last, notReady))
		if err := l.question(last, ready).await(ctx); err != nil {
			return 0, err
		}
	}
	return took / flips, nil
}
