package manifests

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
)

// A writer that takes its time is waited for, one that never ends is not.
func TestQuiet(t *testing.T) {
	tests := []struct {
		name   string
		events int // 50 ms apart
		want   time.Duration
	}{
		{"one event", 1, quiet},
		{"a slow writer", 10, 9*50*time.Millisecond + quiet},
		{"never quiet", 1000, maxWait},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				events := make(chan fsnotify.Event)
				w := &watch{
					dir: "/nonexistent", log: slog.Default(), events: &fsnotify.Watcher{Events: events},
					poll: time.NewTicker(poll), due: time.NewTimer(time.Hour),
				}
				start := time.Now()
				done := make(chan struct{})
				go func() {
					defer close(done)
					for range tt.events {
						select {
						case events <- fsnotify.Event{Name: "/nonexistent/a.yaml", Op: fsnotify.Write}:
						case <-ctx.Done():
							return
						}
						time.Sleep(50 * time.Millisecond)
					}
				}()
				since, dirty, ok := w.next(ctx, func() bool { return false })
				if !ok || !dirty["a.yaml"] || !since.Equal(start) {
					t.Errorf("since %v, dirty %v, ok %v", since, dirty, ok)
				}
				if got := time.Since(start); got != tt.want { // the bubble's clock, which is exact
					t.Errorf("looked after %v, want %v", got, tt.want)
				}
				cancel()
				<-done // it may sleep, and time stands still when the bubble's first goroutine is gone
			})
		})
	}
}

// Without file events the directory is polled.
func TestPolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &watch{dir: "/nonexistent", log: slog.Default(), poll: time.NewTicker(poll), due: time.NewTimer(time.Hour)}
		looks := 0
		_, dirty, ok := w.next(t.Context(), func() bool { looks++; return looks == 3 })
		if !ok || len(dirty) > 0 || looks != 3 {
			t.Errorf("dirty %v, ok %v, looks %d", dirty, ok, looks)
		}
	})
}
