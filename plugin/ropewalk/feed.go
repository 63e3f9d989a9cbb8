package ropewalk

import (
	"context"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

// feed is a source and the zone that it fills. Instances of the plugin that are configured alike share one, above all
// the one that a reload of the Corefile stops and the one that it starts: so a reload lists nothing anew.
type feed struct {
	key    string
	source cluster.Source
	zone   *zone.Zone
	users  []*Ropewalk
	stop   context.CancelFunc
	done   sync.WaitGroup
}

// registry holds the feeds that run. CoreDNS gives two instances of a plugin no other place to meet.
type registry struct {
	mu    sync.Mutex
	feeds map[string]*feed
}

var feeds = &registry{feeds: map[string]*feed{}}

func init() { prometheus.MustRegister(feeds) }

// join makes h a user of the feed of its configuration, started if need be.
func (r *registry) join(h *Ropewalk, c *config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := c.feedKey()
	f := r.feeds[key]
	if f == nil {
		source, err := c.newSource()
		if err != nil {
			return err
		}
		f = startFeed(key, source, c)
		r.feeds[key] = f
	}
	f.users = append(f.users, h)
	h.zone, h.feed = f.zone, f
	r.sweep()
	return nil
}

// synced says whether the feed of h has been filled. It is false before h joins and after it leaves.
func (r *registry) synced(h *Ropewalk) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return h.feed != nil && h.feed.zone.View().Synced()
}

// sweep lets go of users that never came up: when a start fails after the plugin's own part of it, as with an address in
// use, CoreDNS forgets the instance and tells none of its plugins. The caller holds r.mu.
func (r *registry) sweep() {
	for _, f := range r.feeds {
		for _, u := range slices.Clone(f.users) {
			if !u.running() {
				r.drop(u)
			}
		}
	}
}

// startFailed is for the instance that stays when another one could not take its place.
func (r *registry) startFailed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep()
}

// leave is the inverse of join. The last user stops the feed.
func (r *registry) leave(h *Ropewalk) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(h)
}

// drop is leave for those who hold r.mu.
func (r *registry) drop(h *Ropewalk) {
	f := h.feed
	if f == nil {
		return
	}
	h.feed = nil
	f.users = slices.DeleteFunc(f.users, func(u *Ropewalk) bool { return u == h })
	if len(f.users) == 0 {
		delete(r.feeds, f.key)
		f.stop()
		f.done.Wait()
	}
}

func startFeed(key string, source cluster.Source, c *config) *feed {
	ctx, stop := context.WithCancel(context.Background())
	f := &feed{key: key, source: source, zone: zone.New(c.zoneOptions()), stop: stop}
	f.done.Go(func() { f.zone.Run(ctx) })
	f.done.Go(func() {
		select {
		case <-f.zone.Ready():
			// A first sync leaves as much garbage as it leaves records, and afterwards little is allocated, so that for
			// long nothing would give its memory back. It costs one collection beside the first queries.
			debug.FreeOSMemory()
		case <-ctx.Done():
		}
	})
	f.done.Go(func() {
		if err := source.Run(ctx, c.interest(), f.zone); err != nil && ctx.Err() == nil {
			slog.Error("the source of records has stopped", "plugin", pluginName, "error", err)
		}
	})
	return f
}
