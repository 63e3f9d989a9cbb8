package ropewalk

import (
	"context"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

// feed is a source and the zone that it fills. Instances of the plugin that are configured alike share one, above all
// the one that a reload of the Corefile stops and the one that it starts: so a reload lists nothing anew.
type feed struct {
	key      string
	source   cluster.Source
	interest cluster.Interest
	zone     *zone.Zone
	keeper   *keeper // nil without the option snapshot
	users    []*Ropewalk
	stop     context.CancelFunc
	done     sync.WaitGroup

	// late is closed when somebody does not want to wait for the source any longer.
	late   chan struct{}
	beLate sync.Once
}

// registry holds the feeds that run. CoreDNS gives two instances of a plugin no other place to meet.
type registry struct {
	mu    sync.Mutex
	feeds map[string]*feed
}

var feeds = &registry{feeds: map[string]*feed{}}

func init() { prometheus.MustRegister(feeds) }

// join makes h a user of the feed of its configuration, started if need be.
func (r *registry) join(h *Ropewalk, c *config) (*feed, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := c.feedKey()
	f := r.feeds[key]
	if f == nil {
		source, err := c.newSource()
		if err != nil {
			return nil, err
		}
		f = newFeed(key, source, c)
		f.start()
		r.feeds[key] = f
	}
	f.users = append(f.users, h)
	h.zone, h.keeper, h.feed = f.zone, f.keeper, f
	r.sweep()
	return f, nil
}

// ready says whether the feed of h is. It is false before h joins and after it leaves.
func (r *registry) ready(h *Ropewalk) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return h.feed != nil && h.feed.ready()
}

// sweep lets go of users that never came up: when a start fails after the plugin's own part of it, as with an address in
// use, CoreDNS forgets the instance and tells none of its plugins. The caller holds r.mu.
func (r *registry) sweep() {
	for _, f := range r.feeds {
		for _, u := range slices.Clone(f.users) {
			if u.instance() == nil {
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

func newFeed(key string, source cluster.Source, c *config) *feed {
	f := &feed{
		key: key, source: source, interest: c.interest(), zone: zone.New(c.zoneOptions()), late: make(chan struct{}),
	}
	if c.snapshot != "" {
		f.keeper = newKeeper(f, c)
	}
	return f
}

func (f *feed) start() {
	ctx, stop := context.WithCancel(context.Background())
	f.stop = stop
	f.done.Go(func() { f.zone.Run(ctx) })
	if k := f.keeper; k != nil {
		keeping, stopKeeper := context.WithCancel(ctx)
		f.done.Go(func() { k.run(keeping) })
		f.stop = func() {
			// The last snapshot says for how long the source has been out of touch, if it is.
			stopKeeper()
			<-k.done
			stop()
		}
	}
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
		if err := f.source.Run(ctx, f.interest, f.zone); err != nil && ctx.Err() == nil {
			slog.Error("the source of records has stopped", "plugin", pluginName, "error", err)
		}
	})
}

// newest returns what is to be served: what the source has delivered or, until that is everything, what the snapshot says.
func newest(z *zone.Zone, k *keeper) *zone.View {
	v := z.View()
	if k == nil || v.Synced() {
		return v
	}
	if kept := k.view.Load(); kept != nil {
		return kept
	}
	return z.View() // synced, if there was something kept a moment ago
}

// ready says whether everything is known, be it from a snapshot.
func (f *feed) ready() bool { return newest(f.zone, f.keeper).Synced() }

// age returns for how long what is served has not been known to be current.
func (f *feed) age() time.Duration {
	if f.keeper != nil && !isClosed(f.zone.Ready()) {
		if age := f.keeper.age(); age > 0 {
			return age
		}
	}
	return f.source.Age()
}

// await waits for the first full sync, so that a server does not begin with answers it will regret; not for ever, so
// that the rest of the Corefile is served while the API is away, and not at all if there is a snapshot and the API is
// known to be away.
func (f *feed) await(timeout time.Duration) {
	var loaded chan struct{}
	if f.keeper != nil {
		loaded = f.keeper.loaded
	}
	deadline := time.After(timeout)
	progress := time.NewTicker(time.Second)
	defer progress.Stop()
	for !f.ready() {
		select {
		case <-f.zone.Ready():
		case <-loaded:
			loaded = nil // of use or not
		case <-progress.C:
			log.Info("waiting for the cluster's objects before serving")
		case <-deadline:
			f.beLate.Do(func() { close(f.late) })
			if loaded != nil {
				<-loaded
			}
			if !f.ready() {
				log.Warningf("serving without all of the cluster's objects, since they did not arrive within %v (startup_timeout): "+
					"names that are not known yet get SERVFAIL", timeout)
			}
			return
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
