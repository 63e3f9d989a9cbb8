package hostsmgr

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	now := time.Now()
	var p pace
	for i := range paceBurst {
		if wait := p.disturbed(now); wait != 0 {
			t.Fatalf("waits %v for rewrite %d", wait, i)
		}
	}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30, 30} {
		if wait := p.disturbed(now); wait != want*time.Second {
			t.Errorf("waits %v, want %ds", wait, want)
		}
	}
	if wait := p.disturbed(now.Add(3 * paceForgive)); wait == 0 || wait >= 30*time.Second {
		t.Errorf("waits %v after a while", wait)
	}
	now = now.Add(time.Hour)
	for range 3 * paceBurst { // our own do not count
		if p.disturbed(now) != 0 {
			t.Fatal("waits after an hour")
		}
		p.excuse()
	}
	// A pod that never stops is looked at seldom, but again and again.
	var waited time.Duration
	n := 0
	for now, end := now, now.Add(time.Hour); now.Before(end); n++ {
		waited = max(waited, p.disturbed(now))
		now = now.Add(max(p.disturbed(now), settle))
	}
	if n > 1000 || n < 60 || waited > paceLast {
		t.Errorf("%d times in an hour, the longest wait %v", n, waited)
	}
}

func TestRetry(t *testing.T) {
	if retry(1) != time.Second || retry(2) != 2*time.Second || retry(1000) != time.Minute {
		t.Error(retry(1), retry(2), retry(1000))
	}
}

// TestLater holds the queue to what a scan finds.
func TestLater(t *testing.T) {
	base := time.Now()
	pods := make([]pod, 50)
	due := map[*pod]time.Time{}
	var l later
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		p := &pods[rng.IntN(len(pods))]
		at := base.Add(time.Duration(rng.IntN(100)))
		switch rng.IntN(4) {
		case 0:
			l.remove(p)
			delete(due, p)
		case 1:
			got := l.take(at)
			var first *pod
			for p, d := range due {
				if !d.After(at) && (first == nil || d.Before(due[first])) {
					first = p
				}
			}
			if (got == nil) != (first == nil) || got != nil && !due[got].Equal(due[first]) {
				t.Fatalf("took %v, want %v", got, first)
			}
			delete(due, got)
		default:
			l.set(p, at)
			if d, known := due[p]; !known || at.Before(d) {
				due[p] = at
			}
		}
		if len(l) != len(due) {
			t.Fatalf("%d, want %d", len(l), len(due))
		}
	}
}
