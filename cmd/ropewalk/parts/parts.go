// Package parts runs the parts of an agent side by side. Each starts, fails and is started again without the others, and what they hear of the
// cluster comes from one source, with one watch a kind. It knows nothing of what they do.
package parts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cmd/ropewalk/hold"
)

// Part is something that an agent does.
type Part struct {
	Name string
	// Config is what the part is made of, for people and to be compared: one whose Config is the same is not started anew.
	Config string
	// Start makes the part, with metrics of its own. It is called again, for another, when the part has failed or its configuration is another. An
	// error that is hold.ErrHeld means that another process does it still: it is no failure, and Start is called again until that one has ended.
	Start func(*slog.Logger, prometheus.Registerer) (Running, error)
}

// Running is a part that was made.
type Running struct {
	// Run does what the part does until its context ends. An error means that it cannot go on.
	Run func(context.Context) error
	// Ready returns nil while all is as it should be.
	Ready func() error
	// Consumer is what the part hears of the cluster; without a Sink it hears nothing.
	Consumer cluster.Consumer
}

// Supervisor runs parts.
type Supervisor struct {
	Source cluster.Source
	Log    *slog.Logger
	// First and Most are the shortest and the longest pause before a part that has failed is started again; 0 means a second and a minute.
	First, Most time.Duration

	mu        sync.Mutex
	instances map[string]*instance
	failed    map[string]int // how often parts have failed
}

// instance is a part that runs, or that waits until it is started again.
type instance struct {
	part     Part
	running  Running
	registry *prometheus.Registry
	cancel   context.CancelFunc
	ended    chan struct{} // closed when it does nothing any more
	err      error         // what it failed with
	failures int           // one after the other
	began    time.Time
	again    time.Time // when it is started again; zero while it runs
}

// steady is for how long a part has to run to have its failures before forgotten.
const steady = 5 * time.Minute

// Run runs the parts that come last from configs until ctx ends, and then ends them.
func (s *Supervisor) Run(ctx context.Context, configs <-chan []Part) error {
	if s.First == 0 {
		s.First = time.Second
	}
	if s.Most == 0 {
		s.Most = time.Minute
	}
	s.mu.Lock()
	s.instances, s.failed = map[string]*instance{}, map[string]int{}
	s.mu.Unlock()
	failed := make(chan *instance)
	delivery := &delivery{source: s.Source, log: s.Log}
	defer func() {
		delivery.stop()
		for _, i := range s.sorted() {
			s.stop(i)
		}
	}()
	retry := time.NewTimer(0)
	retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case wanted := <-configs:
			s.configure(ctx, wanted, failed)
		case i := <-failed:
			s.fail(i, i.err)
		case <-retry.C:
			s.restart(ctx, failed)
		}
		delivery.to(ctx, s.consumers())
		if at := s.next(); !at.IsZero() {
			retry.Reset(time.Until(at))
		}
	}
}

// configure ends what is not wanted any more, and starts what is new or other than it was.
func (s *Supervisor) configure(ctx context.Context, wanted []Part, failed chan<- *instance) {
	byName := map[string]Part{}
	for _, p := range wanted {
		byName[p.Name] = p
	}
	for _, i := range s.sorted() {
		if p, ok := byName[i.part.Name]; ok && p.Config == i.part.Config {
			delete(byName, p.Name)
			continue
		}
		s.stop(i)
		s.mu.Lock()
		delete(s.instances, i.part.Name)
		s.mu.Unlock()
		s.Log.Info("part ended", "part", i.part.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		s.start(ctx, &instance{part: byName[name]}, failed)
	}
}

// start makes a part and runs it.
func (s *Supervisor) start(ctx context.Context, i *instance, failed chan<- *instance) {
	log := s.Log.With("part", i.part.Name)
	registry := prometheus.NewRegistry()
	running, err := i.part.Start(log, registry)
	if err != nil {
		s.fail(i, err)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	next := &instance{part: i.part, running: running, registry: registry, cancel: cancel, ended: make(chan struct{}), failures: i.failures, began: time.Now()}
	s.put(next)
	log.Info("part started")
	go func() {
		defer close(next.ended) // at last: whoever has waited for it hears no more of this one
		err := running.Run(ctx)
		if ctx.Err() != nil {
			return
		}
		if next.err = err; err == nil {
			next.err = errors.New("it has ended by itself")
		}
		select {
		case failed <- next:
		case <-ctx.Done():
		}
	}()
}

func (s *Supervisor) put(i *instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[i.part.Name] = i
}

// fail has a part wait, twice as long with each failure.
func (s *Supervisor) fail(i *instance, err error) {
	if errors.Is(err, hold.ErrHeld) {
		if i.err == nil || i.err.Error() != err.Error() {
			s.Log.Warn("part waits", "part", i.part.Name, "error", err)
		}
		s.put(&instance{part: i.part, err: err, failures: i.failures, again: time.Now().Add(s.First)})
		return
	}
	if i.cancel != nil {
		i.cancel()
	}
	failures := i.failures + 1
	if !i.began.IsZero() && time.Since(i.began) > steady {
		failures = 1
	}
	pause := min(s.First<<min(failures-1, 16), s.Most)
	s.put(&instance{part: i.part, err: err, failures: failures, again: time.Now().Add(pause)})
	s.mu.Lock()
	s.failed[i.part.Name]++
	s.mu.Unlock()
	s.Log.Error("part failed", "part", i.part.Name, "error", err, "again in", pause)
}

// restart starts those again that have waited.
func (s *Supervisor) restart(ctx context.Context, failed chan<- *instance) {
	for _, i := range s.sorted() {
		if !i.again.IsZero() && !time.Now().Before(i.again) {
			s.start(ctx, i, failed)
		}
	}
}

// next returns when a part is to be started again, or to hear of the cluster; zero if none is.
func (s *Supervisor) next() (at time.Time) {
	for _, i := range s.sorted() {
		due := i.again
		if due.IsZero() && s.onTrial(i) {
			due = i.began.Add(s.First)
		}
		if !due.IsZero() && (at.IsZero() || due.Before(at)) {
			at = due
		}
	}
	return at
}

// onTrial says that a part has failed and has only just been started again. It hears of the cluster when it has run for a while: the others
// hear of all of it once more then, and a part that fails as soon as it runs is no reason for that.
func (s *Supervisor) onTrial(i *instance) bool {
	return i.failures > 0 && time.Since(i.began) < s.First
}

// stop ends a part, and waits for it.
func (s *Supervisor) stop(i *instance) {
	if i.cancel != nil {
		i.cancel()
		<-i.ended
	}
}

// sorted returns the instances by name.
func (s *Supervisor) sorted() []*instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*instance
	for _, name := range slices.Sorted(maps.Keys(s.instances)) {
		out = append(out, s.instances[name])
	}
	return out
}

func (s *Supervisor) consumers() []*instance {
	return slices.DeleteFunc(s.sorted(), func(i *instance) bool { return !i.again.IsZero() || i.running.Consumer.Sink == nil || s.onTrial(i) })
}

// State is what a part is doing.
type State struct {
	Name string `json:"name"`
	// Ready says that all is as it should be; Error, why not.
	Ready bool   `json:"ready"`
	Error string `json:"error,omitempty"`
	// Since is when it was started last, Failures how often it has failed one time after the other.
	Since    time.Time `json:"since,omitzero"`
	Failures int       `json:"failures,omitempty"`
}

// States returns those of all parts, by name.
func (s *Supervisor) States() []State {
	var out []State
	for _, i := range s.sorted() {
		st := State{Name: i.part.Name, Since: i.began, Failures: i.failures}
		var err error
		if i.again.IsZero() {
			err = i.running.Ready()
		} else {
			err = fmt.Errorf("%w; it is started again in %v", i.err, time.Until(i.again).Round(time.Second))
		}
		if st.Ready = err == nil; err != nil {
			st.Error = err.Error()
		}
		out = append(out, st)
	}
	return out
}

// Ready returns an error that says which parts are not.
func (s *Supervisor) Ready() error {
	states := s.States()
	if len(states) == 0 {
		return errors.New("no part has been started yet")
	}
	var not []string
	for _, st := range states {
		if !st.Ready {
			not = append(not, st.Name+": "+st.Error)
		}
	}
	if len(not) == 0 {
		return nil
	}
	return errors.New(strings.Join(not, "\n"))
}

var (
	readyDesc  = prometheus.NewDesc("ropewalk_agent_part_ready", "1 for a part of the agent of which all is as it should be, 0 for one that is not ready.", []string{"part"}, nil)
	failedDesc = prometheus.NewDesc("ropewalk_agent_part_failures_total", "Times that a part of the agent has failed, and was started again.", []string{"part"}, nil)
)

// Describe implements prometheus.Collector.
func (s *Supervisor) Describe(ch chan<- *prometheus.Desc) {
	ch <- readyDesc
	ch <- failedDesc
}

// Collect implements prometheus.Collector: it tells which parts are ready, and how often they have failed.
func (s *Supervisor) Collect(ch chan<- prometheus.Metric) {
	for _, st := range s.States() {
		ready := 0.0
		if st.Ready {
			ready = 1
		}
		s.mu.Lock()
		failed := s.failed[st.Name]
		s.mu.Unlock()
		ch <- prometheus.MustNewConstMetric(readyDesc, prometheus.GaugeValue, ready, st.Name)
		ch <- prometheus.MustNewConstMetric(failedDesc, prometheus.CounterValue, float64(failed), st.Name)
	}
}

// Gather implements prometheus.Gatherer: the metrics of all parts that run.
func (s *Supervisor) Gather() ([]*dto.MetricFamily, error) {
	var all prometheus.Gatherers
	for _, i := range s.sorted() {
		if i.registry != nil {
			all = append(all, i.registry)
		}
	}
	return all.Gather()
}

// delivery is the source's, for as long as its consumers are the same.
type delivery struct {
	source    cluster.Source
	log       *slog.Logger
	consumers []*instance
	cancel    context.CancelFunc
	ended     chan struct{}
}

// to has the source deliver to these consumers from the beginning, if they are others than before. Those that have heard of the cluster
// already hear of it again, which tells them nothing new.
func (d *delivery) to(ctx context.Context, consumers []*instance) {
	if slices.Equal(consumers, d.consumers) {
		return
	}
	d.stop()
	d.consumers = consumers
	if len(consumers) == 0 {
		return
	}
	var all []cluster.Consumer
	for _, i := range consumers {
		all = append(all, i.running.Consumer)
	}
	interest, sink, err := cluster.Share(all...)
	if err != nil { // which no configuration leads to
		d.log.Error("parts cannot hear of the cluster", "error", err)
		return
	}
	ctx, d.cancel = context.WithCancel(ctx)
	ended := make(chan struct{})
	d.ended = ended
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if err := d.source.Run(ctx, interest, sink); err != nil {
				d.log.Error("the cluster cannot be read", "error", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(sourceRetry):
			}
		}
	}()
}

// sourceRetry is the pause after a source could not start.
const sourceRetry = 5 * time.Second

// stop ends the delivery. Consumers go on to take what they are given until it has ended.
func (d *delivery) stop() {
	if d.cancel != nil {
		d.cancel()
		<-d.ended
		d.cancel = nil
	}
}
