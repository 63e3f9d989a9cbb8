package manifests

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// quiet is how long nothing may happen before the files are read: writers write in steps.
	quiet = 100 * time.Millisecond
	// maxWait bounds that for directories that are never quiet.
	maxWait = 2 * time.Second
	// poll is how often the directory is looked at for what events do not tell: that it was replaced, and changes of
	// what links in it lead to.
	poll = time.Second
)

// watch tells when to look at a directory.
type watch struct {
	dir string
	log *slog.Logger
	// events is nil where the system has no watch to give; polling goes on then.
	events *fsnotify.Watcher
	// watched is the directory that events come from.
	watched fs.FileInfo
	poll    *time.Ticker

	// since is when the first thing happened that has not been looked at, dirty the files that it happened to.
	since time.Time
	dirty map[string]bool
	due   *time.Timer
}

func newWatch(dir string, log *slog.Logger) *watch {
	w := &watch{dir: dir, log: log, poll: time.NewTicker(poll), due: time.NewTimer(time.Hour)}
	w.due.Stop()
	var err error
	if w.events, err = fsnotify.NewWatcher(); err != nil {
		w.events = nil
		log.Warn("manifests: no file events, changes are found by looking every second", "err", err)
	}
	w.attach()
	return w
}

func (w *watch) close() {
	w.poll.Stop()
	w.due.Stop()
	if w.events != nil {
		if err := w.events.Close(); err != nil {
			w.log.Debug("manifests: closing the watch", "err", err)
		}
	}
}

// attach sees to it that the directory which now has the name is the one watched, and reports whether it was not.
func (w *watch) attach() bool {
	if w.events == nil {
		return false
	}
	info, err := os.Stat(w.dir)
	if err != nil {
		return false
	}
	// A new directory may get the inode of the old one, whose watch went with it.
	if w.watched != nil && os.SameFile(info, w.watched) && len(w.events.WatchList()) > 0 {
		return false
	}
	for _, path := range w.events.WatchList() {
		if err := w.events.Remove(path); err != nil {
			w.log.Debug("manifests: leaving a directory", "err", err)
		}
	}
	if err := w.events.Add(w.dir); err != nil {
		w.log.Debug("manifests: watching the directory", "err", err)
		return false
	}
	w.watched = info
	return true
}

// next waits until something has happened and then nothing for a while; ok is false if ctx ended. It returns when the
// first thing happened, and to which files as far as that is known. stale looks for what events did not tell.
func (w *watch) next(ctx context.Context, stale func() bool) (since time.Time, dirty map[string]bool, ok bool) {
	var events chan fsnotify.Event
	var errs chan error
	if w.events != nil {
		events, errs = w.events.Events, w.events.Errors
	}
	for {
		select {
		case <-ctx.Done():
			return time.Time{}, nil, false
		case e := <-events:
			w.event(e)
		case err := <-errs: // events were lost, or the directory
			w.log.Debug("manifests: watching the directory", "err", err)
			w.happened(time.Now())
		case <-w.poll.C:
			if w.attach() || (w.since.IsZero() && stale()) {
				w.happened(time.Now())
			}
		case <-w.due.C:
			since, dirty = w.since, w.dirty
			w.since, w.dirty = time.Time{}, nil
			return since, dirty, true
		}
	}
}

func (w *watch) event(e fsnotify.Event) {
	name := filepath.Base(e.Name)
	self := filepath.Clean(e.Name) == filepath.Clean(w.dir)
	// "..data" is the link that a ConfigMap volume turns to the new content.
	if !self && !isManifest(name) && name != "..data" {
		return
	}
	if w.dirty == nil {
		w.dirty = map[string]bool{}
	}
	w.dirty[name] = true
	w.happened(time.Now())
}

// happened puts off looking until it is quiet, but not for ever.
func (w *watch) happened(now time.Time) {
	if w.since.IsZero() {
		w.since = now
	}
	w.due.Reset(min(quiet, max(0, w.since.Add(maxWait).Sub(now))))
}

// again asks for another look at what was dirty.
func (w *watch) again(dirty map[string]bool) {
	w.dirty = dirty
	w.happened(time.Now())
}
