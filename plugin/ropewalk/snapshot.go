package ropewalk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/coredns/caddy"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/apiserver"
	"github.com/ropewalk-net/ropewalk/cluster/snapshot"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

const (
	// saveEvery is how long there is at least between the snapshots of a cluster that changes.
	saveEvery = 30 * time.Second
	// askEvery is how often a feed that has a snapshot asks its source whether it is out of touch, until it knows.
	askEvery = 10 * time.Millisecond
	// patience is for how long a source that is out of touch may yet find what it looks for: a kind that is served in
	// another version, say.
	patience = 200 * time.Millisecond
)

// keeper keeps the snapshot of a feed: it reads it where the source does not deliver, and writes it while there is
// something new.
type keeper struct {
	path   string
	header snapshot.Header // but for the time
	opts   zone.Options
	feed   *feed
	every  time.Duration
	// loaded is closed when it is known what the file is good for, or that it is not needed; done when run has ended.
	loaded, done chan struct{}
	// view is made of what was in the file. It is nil if there was nothing, and when the source has delivered.
	view atomic.Pointer[zone.View]
	// filled is what view was made of, last what is in the file by now.
	filled, last atomic.Pointer[inFile]
	// failing says that the last attempt to write failed, saved is what the last good one wrote. It is weak, so that a
	// disk that is full does not keep what has long been replaced in memory.
	failing bool
	saved   weak.Pointer[zone.View]
}

// inFile is a snapshot that is in a file.
type inFile struct {
	taken time.Time
	size  int64
}

func newKeeper(f *feed, c *config) *keeper {
	snapshotErrors.WithLabelValues(c.snapshot)
	return &keeper{
		path: c.snapshot, header: snapshot.Header{Key: c.snapshotKey(f.source), Kinds: f.interest.Kinds},
		opts: c.zoneOptions(), feed: f, every: saveEvery, loaded: make(chan struct{}), done: make(chan struct{}),
	}
}

// run loads if need be, and once the source has delivered saves until ctx ends and then once more.
func (k *keeper) run(ctx context.Context) {
	defer close(k.done)
	snapshotFiles.take(k)
	defer snapshotFiles.leave(k)
	if !k.live(ctx) {
		k.load(ctx)
	}
	close(k.loaded)
	select {
	case <-k.feed.zone.Ready():
	case <-ctx.Done():
		if !isClosed(k.feed.zone.Ready()) {
			return // there is nothing newer than what is in the file
		}
	}
	if k.view.Swap(nil) != nil {
		log.Infof("the API server's objects have taken the place of those in the snapshot %s", k.path)
	}
	tick := time.NewTicker(k.every)
	defer tick.Stop()
	for {
		if ctx.Err() == nil && weak.Make(k.feed.zone.View()) != k.saved {
			k.save()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			k.save() // even if nothing has changed: it says that nothing has until now
			return
		}
	}
}

// live waits until the source has delivered, is out of touch, or has been waited for long enough, and says whether it
// has delivered.
func (k *keeper) live(ctx context.Context) bool {
	ask := time.NewTicker(askEvery)
	defer ask.Stop()
	for k.feed.source.Age() < patience {
		select {
		case <-ask.C:
		case <-k.feed.zone.Ready():
			return true
		case <-k.feed.late:
			return isClosed(k.feed.zone.Ready())
		case <-ctx.Done():
			return isClosed(k.feed.zone.Ready())
		}
	}
	return false
}

// load makes view of what is in the file.
func (k *keeper) load(ctx context.Context) {
	var in inFile
	view, err := zone.Fill(k.opts, func(sink cluster.Sink) error {
		h, size, err := snapshot.Load(ctx, k.path, k.header.Key, sink)
		in = inFile{h.Taken, size}
		return err
	})
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, fs.ErrNotExist):
		log.Infof("there is no snapshot %s yet", k.path)
	case err != nil:
		snapshotErrors.WithLabelValues(k.path).Inc()
		log.Warningf("starting without the snapshot: %v", err)
	default:
		k.filled.Store(&in)
		k.last.Store(&in)
		k.view.Store(view)
		log.Warningf("the API server has not delivered: serving what is in the snapshot %s, which is %v old",
			k.path, k.age().Round(time.Second))
	}
}

// age returns how old the snapshot is that has been loaded, 0 if none has.
func (k *keeper) age() time.Duration {
	if in := k.filled.Load(); in != nil {
		return max(time.Since(in.taken), time.Nanosecond)
	}
	return 0
}

// save writes the file, unless it belongs to a younger feed by now.
func (k *keeper) save() {
	snapshotFiles.mu.Lock()
	defer snapshotFiles.mu.Unlock()
	if !snapshotFiles.mayWrite(k) {
		return
	}
	view, h := k.feed.zone.View(), k.header
	h.Taken = time.Now().Add(-k.feed.source.Age())
	size, err := snapshot.Save(k.path, h, view.Objects())
	if err != nil {
		snapshotErrors.WithLabelValues(k.path).Inc()
		if !k.failing {
			log.Errorf("the snapshot cannot be written, so that the old one stays; trying again: %v", err)
		}
		k.failing = true
		return
	}
	if k.failing {
		log.Infof("the snapshot %s can be written again", k.path)
	}
	k.failing, k.saved = false, weak.Make(view)
	k.last.Store(&inFile{h.Taken, size})
}

func (k *keeper) collect(ch chan<- prometheus.Metric) {
	if in := k.last.Load(); in != nil {
		taken := float64(in.taken.UnixNano()) / 1e9
		ch <- prometheus.MustNewConstMetric(snapshotTimeDesc, prometheus.GaugeValue, taken, k.path)
		ch <- prometheus.MustNewConstMetric(snapshotSizeDesc, prometheus.GaugeValue, float64(in.size), k.path)
	}
}

// files says who writes which snapshot: the youngest of the feeds that are to, which after a reload of the Corefile is
// the one that stays. Its lock is held while one is written.
type files struct {
	mu     sync.Mutex
	keeper map[string]*keeper
}

var snapshotFiles = &files{keeper: map[string]*keeper{}}

func (f *files) take(k *keeper) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keeper[k.path] = k
	if err := snapshot.Tidy(k.path); err != nil {
		log.Warningf("what was left unfinished beside the snapshot stays: %v", err)
	}
}

// mayWrite is for those who hold the lock. A feed that never came up leaves the file to the one that it was to follow.
func (f *files) mayWrite(k *keeper) bool {
	if f.keeper[k.path] == nil {
		f.keeper[k.path] = k
	}
	return f.keeper[k.path] == k
}

func (f *files) leave(k *keeper) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keeper[k.path] == k {
		delete(f.keeper, k.path)
	}
}

// snapshotKey tells snapshots apart that cannot stand for each other. What only matters when answers are made of them,
// such as ttl, is not in it.
func (cfg *config) snapshotKey(source cluster.Source) string {
	host := ""
	if s, ok := source.(*apiserver.Source); ok {
		host = s.Host()
	}
	interest := cfg.interest()
	parts := []string{strings.Join(cfg.zones, " "), host}
	for k := range cluster.NumKinds {
		if interest.Kinds.Has(k) {
			parts = append(parts, k.String())
		}
	}
	for _, option := range []struct {
		name string
		set  bool
	}{
		{fmt.Sprintf("namespaces %q", cfg.namespaces), len(cfg.namespaces) > 0},
		{fmt.Sprintf("namespace_labels %q", cfg.nsLabels), cfg.nsLabels != ""},
		{fmt.Sprintf("labels %q", cfg.labels), cfg.labels != ""},
		{"endpoint_pod_names", cfg.endpointPodNames},
		{"ignore empty_service", cfg.ignoreEmpty},
		{"zonal", cfg.zonal},
		{"labels of pods", interest.PodLabels},
	} {
		if option.set {
			parts = append(parts, option.name)
		}
	}
	return strings.Join(parts, ", ")
}

// checkSnapshot refuses a file that could not be written.
func (cfg *config) checkSnapshot() error {
	if cfg.snapshot == "" {
		return nil
	}
	if err := snapshot.Check(cfg.snapshot); err != nil {
		return fmt.Errorf("%s: snapshot %s: %w: its directory has to be there, "+
			"and this program has to be allowed to write files to it", cfg.snapshotAt, cfg.snapshot, err)
	}
	return nil
}

// ownSnapshot refuses a file that another stanza of the Corefile, with other options, has already.
func (cfg *config) ownSnapshot(c *caddy.Controller) error {
	if cfg.snapshot == "" {
		return nil
	}
	type file string
	other, ok := c.Get(file(cfg.snapshot)).(*config)
	if ok && other.feedKey() != cfg.feedKey() {
		return fmt.Errorf("%s: snapshot %s is that of %s, whose zones or options are others: name another file",
			cfg.snapshotAt, cfg.snapshot, other.snapshotAt)
	}
	c.Set(file(cfg.snapshot), cfg)
	return nil
}
