package parts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source tells of how many consumers it delivers to.
type source struct {
	mu   sync.Mutex
	runs []cluster.Kinds
}

func (s *source) Run(ctx context.Context, i cluster.Interest, sink cluster.Sink) error {
	s.mu.Lock()
	s.runs = append(s.runs, i.Kinds)
	s.mu.Unlock()
	sink.Apply(cluster.Change{Op: cluster.Synced, Kind: cluster.KindNode})
	sink.Apply(cluster.Change{Op: cluster.Synced, Kind: cluster.KindPod})
	<-ctx.Done()
	return nil
}

func (s *source) Age() time.Duration { return 0 }

// fake is a part that can be told to fail.
type fake struct {
	name   string
	starts int
	heard  int
	refuse bool       // Start fails
	fail   chan error // Run fails
	mu     sync.Mutex
}

func (f *fake) Apply(cluster.Change) { f.mu.Lock(); f.heard++; f.mu.Unlock() }

func (f *fake) part(config string, kind cluster.Kind) Part {
	return Part{Name: f.name, Config: config, Start: func(_ *slog.Logger, reg prometheus.Registerer) (Running, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.starts++
		if f.refuse {
			return Running{}, errors.New("it cannot be made")
		}
		reg.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: f.name + "_total"}))
		return Running{
			Run: func(ctx context.Context) error {
				select {
				case <-ctx.Done():
					return nil
				case err := <-f.fail:
					return err
				}
			},
			Ready:    func() error { return nil },
			Consumer: cluster.Consumer{Interest: cluster.Interest{Kinds: cluster.KindsOf(kind)}, Sink: f},
		}, nil
	}}
}

func (f *fake) counts() (starts, heard int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts, f.heard
}

// TestSupervisor holds that a part that fails, or cannot be made, leaves the others alone, is not ready, and is started again; that a part
// whose configuration changes is started anew, and no other; and that the source has one run at a time, for all.
func TestSupervisor(t *testing.T) {
	src := &source{}
	s := &Supervisor{Source: src, Log: slog.New(slog.DiscardHandler), First: time.Millisecond, Most: 4 * time.Millisecond}
	if s.Ready() == nil {
		t.Error("ready before anything was started")
	}
	a, b := &fake{name: "a", fail: make(chan error)}, &fake{name: "b", fail: make(chan error)}
	ctx, cancel := context.WithCancel(context.Background())
	configs, ended := make(chan []Part), make(chan error)
	go func() { ended <- s.Run(ctx, configs) }()
	node, pod := cluster.KindNode, cluster.KindPod

	configs <- []Part{a.part("1", node), b.part("1", pod)}
	soon(t, func() error { return s.Ready() })
	soon(t, func() error {
		if _, h := a.counts(); h == 0 {
			return errors.New("nothing is heard")
		}
		return nil
	})
	if f, err := s.Gather(); err != nil || len(f) != 2 {
		t.Error(f, err)
	}

	b.mu.Lock()
	b.refuse = true
	b.mu.Unlock()
	b.fail <- errors.New("the disk is full")
	soon(t, func() error {
		if starts, _ := b.counts(); starts < 4 {
			return fmt.Errorf("%d starts", starts)
		}
		return nil
	})
	if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "b: it cannot be made") || strings.Contains(err.Error(), "a:") {
		t.Error(err)
	}
	b.mu.Lock()
	b.refuse = false
	b.mu.Unlock()
	soon(t, s.Ready)
	if starts, _ := a.counts(); starts != 1 {
		t.Errorf("a was started %d times", starts)
	}

	before, _ := b.counts()
	configs <- []Part{a.part("2", node), b.part("1", pod)}
	soon(t, func() error {
		if starts, _ := a.counts(); starts != 2 {
			return fmt.Errorf("%d starts", starts)
		}
		return s.Ready()
	})
	if starts, _ := b.counts(); starts != before {
		t.Errorf("b was started %d times more", starts-before)
	}
	configs <- []Part{a.part("2", node)}
	soon(t, func() error {
		if n := len(s.States()); n != 1 {
			return fmt.Errorf("%d parts", n)
		}
		return nil
	})
	configs <- nil
	configs <- nil
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	src.mu.Lock()
	defer src.mu.Unlock()
	if first := src.runs[0]; first != cluster.KindsOf(node, pod) {
		t.Errorf("the first run is of the kinds %b", first)
	}
	if last := src.runs[len(src.runs)-1]; last != cluster.KindsOf(node) {
		t.Errorf("the last run is of the kinds %b", last)
	}
}

// TestFailedAndReplaced holds that a part that fails as its configuration changes is not taken for its successor: there is one of it at a time.
func TestFailedAndReplaced(t *testing.T) {
	s := &Supervisor{Source: &source{}, Log: slog.New(slog.DiscardHandler), First: time.Microsecond, Most: time.Microsecond}
	ctx, cancel := context.WithCancel(context.Background())
	configs, ended := make(chan []Part), make(chan error)
	go func() { ended <- s.Run(ctx, configs) }()
	var running, most atomic.Int32
	var fail atomic.Pointer[chan struct{}]
	part := func(config string) Part {
		return Part{Name: "a", Config: config, Start: func(*slog.Logger, prometheus.Registerer) (Running, error) {
			c := make(chan struct{}, 1)
			fail.Store(&c)
			return Running{Ready: func() error { return nil }, Run: func(ctx context.Context) error {
				most.Store(max(most.Load(), running.Add(1)))
				defer running.Add(-1)
				select {
				case <-ctx.Done():
					return nil
				case <-c:
					return errors.New("failed")
				}
			}}, nil
		}}
	}
	for n := range 5000 {
		configs <- []Part{part(fmt.Sprint(n))}
		if c := fail.Load(); c != nil {
			select {
			case *c <- struct{}{}:
			default:
			}
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := running.Load(); n != 0 || most.Load() > 1 {
		t.Errorf("%d run at the end, %d at a time", n, most.Load())
	}
}

// TestStuck holds that a part that does not end holds up neither the others' end nor the process's, whether it is to end with all others or as its
// configuration changes; that it is named; and that no second one of it is made.
func TestStuck(t *testing.T) {
	for name, end := range map[string]func(cancel func(), configs chan<- []Part, other Part){
		"the end":               func(cancel func(), _ chan<- []Part, _ Part) { cancel() },
		"another configuration": func(_ func(), configs chan<- []Part, other Part) { configs <- []Part{other} },
	} {
		s := &Supervisor{Source: &source{}, Log: slog.New(slog.DiscardHandler), Grace: 50 * time.Millisecond}
		ctx, cancel := context.WithCancel(context.Background())
		configs, ended, release := make(chan []Part), make(chan error), make(chan struct{})
		go func() { ended <- s.Run(ctx, configs) }()
		var left sync.WaitGroup
		left.Add(1)
		starts := 0
		part := func(config string) Part {
			return Part{Name: "b", Config: config, Start: func(*slog.Logger, prometheus.Registerer) (Running, error) {
				starts++
				return Running{Ready: func() error { return nil }, Run: func(context.Context) error { defer left.Done(); <-release; return nil }}, nil
			}}
		}
		a := &fake{name: "a"}
		configs <- []Part{a.part("1", cluster.KindNode), part("1")}
		soon(t, s.Ready)
		end(cancel, configs, part("2"))
		if err := <-ended; !errors.Is(err, ErrStuck) || !strings.HasPrefix(err.Error(), "b: ") || starts != 1 {
			t.Errorf("%s: %v, %d starts", name, err, starts)
		}
		for _, i := range s.sorted() {
			if i.part.Name == "a" {
				<-i.ended
			}
		}
		cancel()
		close(release)
		left.Wait()
	}
}

// TestFailsAtOnce holds that a part that fails as soon as it is started, however often, does not have the others hear of the whole cluster again, and
// that it hears of it itself when it no longer does.
func TestFailsAtOnce(t *testing.T) {
	src := &source{}
	s := &Supervisor{Source: src, Log: slog.New(slog.DiscardHandler), First: 200 * time.Millisecond, Most: time.Millisecond}
	ctx, cancel := context.WithCancel(context.Background())
	configs, ended := make(chan []Part), make(chan error)
	go func() { ended <- s.Run(ctx, configs) }()
	a, b := &fake{name: "a"}, &fake{name: "b", fail: make(chan error, 20)}
	for range cap(b.fail) {
		b.fail <- errors.New("no such directory")
	}
	configs <- []Part{a.part("1", cluster.KindNode), b.part("1", cluster.KindPod)}
	soon(t, func() error {
		src.mu.Lock()
		defer src.mu.Unlock()
		starts, _ := b.counts()
		if n := len(src.runs); starts <= cap(b.fail) || src.runs[n-1] != cluster.KindsOf(cluster.KindNode, cluster.KindPod) {
			return fmt.Errorf("%d starts, %d runs", starts, n)
		}
		return nil
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if len(src.runs) > 3 { // of both, of a alone, and of both
		t.Errorf("%d runs: %b", len(src.runs), src.runs)
	}
}

func soon(t *testing.T, is func() error) {
	t.Helper()
	var err error
	for begun := time.Now(); time.Since(begun) < 20*time.Second; time.Sleep(time.Millisecond) {
		if err = is(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// TestListedOnce: a part that fails and comes back has the others hear of the cluster once more, not twice.
func TestListedOnce(t *testing.T) {
	src := &source{}
	s := &Supervisor{Source: src, Log: slog.New(slog.DiscardHandler), First: 10 * time.Millisecond, Most: 40 * time.Millisecond}
	a, b := &fake{name: "a", fail: make(chan error)}, &fake{name: "b", fail: make(chan error)}
	ctx, cancel := context.WithCancel(context.Background())
	configs, ended := make(chan []Part), make(chan error)
	go func() { ended <- s.Run(ctx, configs) }()
	configs <- []Part{a.part("1", cluster.KindNode), b.part("1", cluster.KindPod)}
	heard := func(f *fake, n int) {
		t.Helper()
		soon(t, func() error {
			if _, h := f.counts(); h < n {
				return errors.New("not heard")
			}
			return nil
		})
	}
	heard(a, 1)
	heard(b, 1)
	b.fail <- errors.New("the disk is full")
	heard(b, 2)
	cancel()
	<-ended
	if len(src.runs) != 2 {
		t.Errorf("the source has listed %d times; want 2", len(src.runs))
	}
}
