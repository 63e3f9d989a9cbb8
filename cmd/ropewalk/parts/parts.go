// Package parts runs the parts of an agent side by side. Each starts, fails and is started again without the others, and what they hear of the
// cluster comes from one source, with one watch a kind. It knows nothing of what they do.
package parts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	// Degraded returns what is not as it should be though it is no reason not to be ready, if anything; it may be nil.
	Degraded func() error
	// Consumer is what the part hears of the cluster; without a Sink it hears nothing.
	Consumer cluster.Consumer
}

// ErrStuck is wrapped if something does not end that is to. There is no going on then: there would be two of it, and only the end of the process
// ends the first one.
var ErrStuck = errors.New("it does not end")

// Supervisor runs parts.
type Supervisor struct {
	Source cluster.Source
	Log    *slog.Logger
	// First and Most are the shortest and the longest pause before a part that has failed is started again; 0 means a second and a minute.
	First, Most time.Duration
	// Grace is for how long parts may take to end; 0 means 5 seconds, which is less than kubelets and systemd give an agent.
	Grace time.Duration

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
	deaf     atomic.Bool   // set when it is to end, or has failed
	err      error         // what it failed with
	failures int           // one after the other
	began    time.Time
	again    time.Time // when it is started again; zero while it runs
}

// steady is for how long a part has to run to have its failures before forgotten.
const steady = 5 * time.Minute

// Run runs the parts that come last from configs until ctx ends, and then ends them. It returns an error, which is ErrStuck, if some do not end in time.
func (s *Supervisor) Run(ctx context.Context, configs <-chan []Part) (err error) {
	if s.First == 0 {
		s.First = time.Second
	}
	if s.Most == 0 {
		s.Most = time.Minute
	}
	if s.Grace == 0 {
		s.Grace = 5 * time.Second
	}
	s.mu.Lock()
	s.instances, s.failed = map[string]*instance{}, map[string]int{}
	s.mu.Unlock()
	failed := make(chan *instance)
	delivery := &delivery{source: s.Source, log: s.Log}
	defer func() {
		if stuck := s.wait(append(s.sorted(), delivery.stop())); err == nil { // else it is told, by the same ones
			err = stuck
		}
	}()
	retry := time.NewTimer(0)
	retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case wanted := <-configs:
			if err := s.configure(ctx, wanted, failed); err != nil {
				return err
			}
		case i := <-failed:
			if errors.Is(i.err, ErrStuck) {
				return fmt.Errorf("%s: %w", i.part.Name, i.err)
			}
			s.fail(i, i.err)
		case <-retry.C:
			s.restart(ctx, failed)
		}
		if consumers := s.consumers(); !slices.Equal(consumers, delivery.consumers) && !(s.awaits() && delivery.has(consumers)) {
			if err := s.wait([]*instance{delivery.stop()}); err != nil {
				return err
			}
			delivery.to(ctx, consumers)
		}
		if at := s.next(); !at.IsZero() {
			retry.Reset(time.Until(at))
		}
	}
}

// configure ends what is not wanted any more, and starts what is new or other than it was.
func (s *Supervisor) configure(ctx context.Context, wanted []Part, failed chan<- *instance) error {
	byName := map[string]Part{}
	for _, p := range wanted {
		byName[p.Name] = p
	}
	gone := slices.DeleteFunc(s.sorted(), func(i *instance) bool {
		p, ok := byName[i.part.Name]
		same := ok && p.Config == i.part.Config
		if same {
			delete(byName, p.Name)
		}
		return same
	})
	if err := s.wait(gone); err != nil {
		return err
	}
	for _, i := range gone {
		s.mu.Lock()
		delete(s.instances, i.part.Name)
		s.mu.Unlock()
		s.Log.Info("part ended", "part", i.part.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		s.start(ctx, &instance{part: byName[name]}, failed)
	}
	return nil
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
	i.deaf.Store(true)
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

// wait ends what runs of these, and waits until it has, or until the grace is over. Then what is still there is told, and what it is at.
func (s *Supervisor) wait(ending []*instance) error {
	for _, i := range ending {
		if i.cancel != nil {
			i.cancel()
		}
		i.deaf.Store(true)
	}
	late, stop := context.WithTimeout(context.Background(), s.Grace)
	defer stop()
	var stuck []string
	for _, i := range ending {
		if i.cancel == nil {
			continue
		}
		select {
		case <-i.ended:
			continue
		default:
		}
		select {
		case <-i.ended:
		case <-late.Done():
			stuck = append(stuck, i.part.Name)
		}
	}
	if len(stuck) == 0 {
		return nil
	}
	err := fmt.Errorf("%s: %w within %v", strings.Join(stuck, ", "), ErrStuck, s.Grace)
	s.Log.Error("the agent ends with parts that do not", "error", err, "goroutines", Goroutines())
	return err
}

// Goroutines returns what all goroutines are at, those at the same together.
func Goroutines() string {
	var b strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&b, 1) // into memory
	return b.String()
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

// awaits says that a part is to come that has failed. The others' delivery is left as it is until then, so that they hear of the cluster once more
// because of it, and not twice.
func (s *Supervisor) awaits() bool {
	return slices.ContainsFunc(s.sorted(), func(i *instance) bool { return i.failures > 0 && (!i.again.IsZero() || s.onTrial(i)) })
}

// consumers returns the instances that are to hear of the cluster.
func (s *Supervisor) consumers() []*instance {
	return slices.DeleteFunc(s.sorted(), func(i *instance) bool { return !i.again.IsZero() || i.running.Consumer.Sink == nil || s.onTrial(i) })
}

// State is what a part is doing.
type State struct {
	Name string `json:"name"`
	// Ready says that all is as it should be; Error, why not.
	Ready bool   `json:"ready"`
	Error string `json:"error,omitempty"`
	// Degraded is what is not as it should be though all that this node can do is done.
	Degraded string `json:"degraded,omitempty"`
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
			if degraded := i.running.Degraded; degraded != nil {
				if d := degraded(); d != nil {
					st.Degraded = d.Error()
				}
			}
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

// has says that nobody of these is missed by the delivery.
func (d *delivery) has(consumers []*instance) bool {
	return !slices.ContainsFunc(consumers, func(i *instance) bool { return !slices.Contains(d.consumers, i) })
}

// to has the source deliver to these consumers from the beginning. Those that have heard of the cluster already hear of it again, which tells them
// nothing new.
func (d *delivery) to(ctx context.Context, consumers []*instance) {
	d.consumers = consumers
	if len(consumers) == 0 {
		return
	}
	var all []cluster.Consumer
	for _, i := range consumers {
		all = append(all, cluster.Consumer{Interest: i.running.Consumer.Interest, Sink: hearing{i}})
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

// hearing is an instance's sink, for as long as it does something.
type hearing struct{ *instance }

// Apply implements cluster.Sink.
func (h hearing) Apply(c cluster.Change) {
	if !h.deaf.Load() {
		h.running.Consumer.Sink.Apply(c)
	}
}

// sourceRetry is the pause after a source could not start.
const sourceRetry = 5 * time.Second

// stop returns what is to be waited for until nothing is delivered any more. Consumers go on to take what they are given until then.
func (d *delivery) stop() *instance {
	return &instance{part: Part{Name: "what hears of the cluster"}, cancel: d.cancel, ended: d.ended}
}
