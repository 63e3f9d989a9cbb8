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
	// churns and flips say whether 1,000 changes a second and single endpoints of large services are measured.
	churns, flips bool
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
		{name: size, fill: fillServices, questions: base, churns: true},
		{name: size + ", and one service of 10000", fill: fillLarge, questions: append(base, hundred.question(0, true), huge.question(0, true)), flips: true},
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
func (s scenario) run(ctx context.Context, candidates []candidate) ([]result, error) {
	api := standin.New(nil)
	defer api.Close()
	s.fill(api)
	// The first start is for the stand-in to encode what it has, and for the program to come into memory.
	if err := (scenario{questions: s.questions, options: s.options}).once(ctx, api, candidates[0], &result{}); err != nil {
		return nil, err
	}
	results := make([]result, len(candidates))
	for range *reps {
		for i, c := range candidates {
			results[i].scenario, results[i].candidate = s.name, c.plugin
			runtime.GC() // not beside what is measured: see measure
			if err := s.once(ctx, api, c, &results[i]); err != nil {
				return nil, fmt.Errorf("%s: %w", c.plugin, err)
			}
		}
	}
	return results, nil
}

// once starts a candidate and adds what is measured to r.
func (s scenario) once(ctx context.Context, api *standin.Server, c candidate, r *result) error {
	p, err := c.start(ctx, api, s.options)
	if err != nil {
		return err
	}
	defer p.stop()
	patience, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	start, err := p.ready(patience, s.questions)
	if err != nil {
		return err
	}
	r.start.add(start)
	r.startCPU.add(p.cpu())
	time.Sleep(*settle)
	resident, peak, err := p.memory()
	if err != nil {
		return err
	}
	r.resident.add(resident)
	r.peak.add(peak)
	fmt.Fprintf(os.Stderr, "%s: ready after %v, %d MB, at most %d MB\n", c.plugin, start, resident>>20, peak>>20)
	if *heap != "" {
		if err := saveHeap(*heap); err != nil {
			return err
		}
	}
	if s.churns {
		if err := measureChurn(ctx, api, p, r); err != nil {
			return err
		}
	}
	if s.flips {
		return measureFlips(ctx, api, p, r)
	}
	return nil
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
	var most int64
	wg.Go(func() {
		for q := range probes {
			if err := q.await(ctx); err != nil {
				failed = err
				continue
			}
			r.answered.add(time.Since(q.since))
		}
	})
	before, begin := p.cpu(), time.Now()
	n := 0
	for ; time.Since(begin) < *churn; n++ {
		time.Sleep(time.Until(begin.Add(time.Duration(n) * time.Second / rate)))
		switch {
		case n%probeEvery == 0:
			i, state := n/probeEvery%numProbes, n
			since := time.Now()
			api.Apply(probeSlice(i, state))
			select {
			case probes <- probe{probeQuestion(i, state), since}:
			default:
			}
		default:
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
	r.changeCPU.add((p.cpu() - before) / time.Duration(n))
	close(probes)
	wg.Wait()
	r.churned.add(most)
	if took := time.Since(begin); took > *churn*11/10 {
		return fmt.Errorf("%d changes took %v", n, took)
	}
	return failed
}

// measureFlips compares the CPU time of a change of one endpoint in services of 100 and of 10,000.
func measureFlips(ctx context.Context, api *standin.Server, p *process, r *result) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for _, l := range []struct {
		large
		to *durations
	}{{hundred, &r.flip100}, {huge, &r.flip10000}} {
		const flips, every = 1000, 4 * time.Millisecond
		before, begin := p.cpu(), time.Now()
		for n := range flips {
			time.Sleep(time.Until(begin.Add(time.Duration(n) * every)))
			// Not ready, then ready again, in one slice after the other.
			api.Apply(l.slice(n/2%l.slices, -(n % 2)))
		}
		took := p.cpu() - before
		last := (flips/2 - 1) % l.slices
		if err := l.question(last, true).await(ctx); err != nil {
			return err
		}
		api.Apply(l.slice(last, 0))
		if err := l.question(last, false).await(ctx); err != nil {
			return err
		}
		api.Apply(l.slice(last, -1))
		if err := l.question(last, true).await(ctx); err != nil {
			return err
		}
		l.to.add(took / flips)
	}
	return nil
}
