// Package collect frees what pods have left on this node that are gone without a DEL: leases, ports and ifbs. Container runtimes do not call GC
// (containerd does not), and what nobody frees is an address less for as long as the node runs.
//
// A pod is gone when its host end is: the kernel takes a veth away some time after the namespace of its other end. Paths of namespaces say
// less, and are not there for a program in a container. So are host ends themselves never collected: one that is there leads to a
// namespace that is there.
//
// It is for the daemon. The plugin frees what a DEL or a GC names, by itself.
package collect

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cni/bandwidth"
	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
)

// Config says where to look.
type Config struct {
	// DataDir is the plugin's.
	DataDir string
	// Grace is for how long something has to be alone before it is taken away, so that ADDs and DELs under way end first; 0 is a minute. A DEL
	// has a thirtieth of it to end its lease after its interface; all is looked at five times as seldom, whatever happens.
	Grace time.Duration
	// Ranges returns the node's pod ranges, for the metrics; none if nil.
	Ranges func() []netip.Prefix
	// Log is slog.Default() if nil.
	Log *slog.Logger
	// Registerer takes the metrics, ropewalk_cni_*; nil for none.
	Registerer prometheus.Registerer
}

// Collector frees what is left. Run does it.
type Collector struct {
	config  Config
	metrics *metrics
	kick    chan struct{}

	mu   sync.Mutex
	gone map[string]bool // host ends that went away since the last look at leases
	blur bool            // others may have gone, too

	// What Run alone knows.
	known memory
	told  map[string]bool // errors of the last look, and host ends without a lease
}

// New returns a Collector that does nothing before Run.
func New(c Config) (*Collector, error) {
	if c.Grace == 0 {
		c.Grace = time.Minute
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Ranges == nil {
		c.Ranges = func() []netip.Prefix { return nil }
	}
	out := &Collector{config: c, kick: make(chan struct{}, 1), gone: map[string]bool{}, told: map[string]bool{}}
	var err error
	out.metrics, err = newMetrics(c)
	return out, err
}

// Run frees what is left until ctx ends, in the network namespace of the process.
func (c *Collector) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { c.watch(ctx) })
	settle, often := c.config.Grace/30, 5*c.config.Grace
	full := time.Now() // when to look at all
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(full)):
		case <-c.kick: // of many pods that go at a time, once
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(settle):
			}
			if left, err := c.left(); err == nil && !left {
				continue
			}
		}
		wait, now := often, time.Now()
		if !c.look(now) {
			wait = c.config.Grace
		}
		full = now.Add(wait)
		if at, any := c.known.due(now, c.config.Grace); any && at.Before(full) {
			full = at
		}
	}
}

// left says whether one of the pods whose host end is gone has a lease still. Its DEL may be waiting for others.
func (c *Collector) left() (bool, error) {
	c.mu.Lock()
	gone, blur := c.gone, c.blur
	c.gone, c.blur = map[string]bool{}, false
	c.mu.Unlock()
	if blur {
		return true, nil
	}
	leases, err := list(c.config.DataDir)
	return slices.ContainsFunc(leases, func(l ipam.Lease) bool { return gone[hostOf(l.Container, l.Interface)] }), err
}

func list(dir string) ([]ipam.Lease, error) {
	s, err := ipam.Open(dir)
	if err != nil {
		return nil, err
	}
	leases, err := s.List()
	return leases, errors.Join(err, s.Close())
}

// look frees what has been alone for long enough, and reports whether all that was to be done is done.
func (c *Collector) look(now time.Time) bool {
	var n node
	var errs [3]error
	n.leases, errs[0] = list(c.config.DataDir)
	n.hosts, errs[1] = link.Hosts()
	n.ports, errs[2] = portmap.List()
	if err := errors.Join(errs[:]...); err != nil {
		c.tell(nil, err)
		return false
	}
	var ripe []orphan
	ripe, c.known = c.known.ripe(orphans(n), now, c.config.Grace)
	var failed []error
	var ends []string
	for _, o := range ripe {
		if o.kind == anEnd {
			ends = append(ends, o.host)
			continue
		}
		freed, err := free(c.config.DataDir, o)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if delete(c.known, o); freed {
			c.metrics.collected.WithLabelValues(string(o.kind)).Inc()
			c.config.Log.Info("freed what a pod has left that is gone", "kind", string(o.kind), "pod", o.name, "container", o.container, "interface", o.ifname)
		}
	}
	removed, err := bandwidth.Collect()
	if err != nil {
		failed = append(failed, err)
	}
	if c.metrics.collected.WithLabelValues(string(anIFB)).Add(float64(removed)); removed > 0 {
		c.config.Log.Info("removed what limited the bandwidth of pods that are gone", "interfaces", removed)
	}
	c.metrics.unleased.Set(float64(len(ends)))
	c.tell(ends, failed...)
	return len(failed) == 0
}

// tell counts errors, and logs what was not so at the last look. Leases that others had for all of the time are no failure.
func (c *Collector) tell(ends []string, errs ...error) {
	told := map[string]bool{}
	for _, end := range ends {
		if told[end] = true; !c.told[end] {
			c.config.Log.Warn("an interface of a pod has no lease: its address may be given to another; start the pod anew", "interface", end)
		}
	}
	for _, err := range errs {
		if errors.Is(err, ipam.ErrBusy) {
			continue
		}
		c.metrics.failures.Inc()
		if told[err.Error()] = true; !c.told[err.Error()] {
			c.config.Log.Warn("what pods have left that are gone cannot be freed", "error", err)
		}
	}
	c.told = told
}

// watch notes host ends that go away.
func (c *Collector) watch(ctx context.Context) {
	for ctx.Err() == nil {
		updates, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
		if err := netlink.LinkSubscribe(updates, done); err == nil {
			stop := context.AfterFunc(ctx, func() { close(done) })
			c.note("") // of what went before, nobody told
			for u := range updates {
				if u.Header.Type == unix.RTM_DELLINK && link.IsHost(u.Attrs().Name) {
					c.note(u.Attrs().Name)
				}
			}
			if stop() {
				close(done)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// note has the loop look at the lease of a host end, or at all if it is empty.
func (c *Collector) note(host string) {
	c.mu.Lock()
	if host == "" {
		c.blur = true
	} else {
		c.gone[host] = true
	}
	c.mu.Unlock()
	select {
	case c.kick <- struct{}{}:
	default:
	}
}
