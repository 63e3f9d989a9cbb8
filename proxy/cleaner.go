package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ropewalk-net/ropewalk/proxy/conntrack"
	"github.com/ropewalk-net/ropewalk/proxy/frontends"
)

// cleaner has stale UDP entries deleted after a transaction that changed something of UDP. A walk through the kernel's entries
// takes what it takes, up to tens of milliseconds, so that transactions do not wait for it.
type cleaner struct {
	p    *Proxy
	log  *slog.Logger
	wake chan struct{}

	// What is to be in the kernel, as note was told: whether there is something of UDP, and keys that become nobody's.
	changed bool
	going   keys

	mu   sync.Mutex
	gone keys // that have become nobody's since the last walk
}

// keys are some, up to maxKeys: without end they would be where the kernel refuses all there is to do with them.
type keys map[frontends.Key]struct{}

const maxKeys = 1 << 16

func (ks *keys) add(k frontends.Key) {
	if *ks == nil {
		*ks = keys{}
	}
	if len(*ks) < maxKeys {
		(*ks)[k] = struct{}{}
	}
}

// cleanPause is the shortest time from one walk to the next, and twice what a walk took if that is longer: where the kernel has some
// hundred thousand entries that is a third of a second. It doubles, up to maxRetry, while walks fail.
const cleanPause = 200 * time.Millisecond

// note takes what a transaction is to change. An entry that goes while the rules lead where it leads comes back.
func (c *cleaner) note(d frontends.Diff) {
	c.changed = c.changed || d.UDP
	for _, k := range d.Delete {
		if k.Protocol == frontends.UDP {
			c.going.add(k)
		}
	}
}

// written says that the kernel has what was noted.
func (c *cleaner) written() {
	if !c.changed {
		return
	}
	c.mu.Lock()
	for k := range c.going {
		c.gone.add(k)
	}
	c.mu.Unlock()
	c.changed, c.going = false, nil
	c.again()
}

func (c *cleaner) again() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *cleaner) run(ctx context.Context) {
	first, failing, pause := true, false, cleanPause
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		begun := time.Now()
		if err := c.walk(first); err == nil {
			first, failing, pause = false, false, max(cleanPause, 2*time.Since(begun))
		} else {
			if !failing {
				c.log.Error("stale connections of UDP may be left; trying again", "error", err)
			}
			failing, pause = true, min(2*pause, maxRetry)
			c.again()
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// walk goes through the kernel's entries once. What went while no agent was there is found by the ranges of services'
// addresses; not later, since services of another proxy have addresses of these ranges, too.
func (c *cleaner) walk(first bool) error {
	c.mu.Lock()
	gone := c.gone
	c.gone = nil
	c.mu.Unlock()
	node := c.p.nodeNow()
	serving := map[frontends.Key]map[netip.AddrPort]struct{}{}
	find := func(k frontends.Key) map[netip.AddrPort]struct{} {
		have, ok := serving[k]
		if !ok {
			c.p.mu.Lock()
			have = c.p.builder.Serving(k)
			c.p.mu.Unlock()
			serving[k] = have
		}
		return have
	}
	// leaders returns the keys that packets to dest may have been led by.
	leaders := func(dest netip.AddrPort) []frontends.Key {
		ks := []frontends.Key{{Addr: dest.Addr(), Protocol: frontends.UDP, Port: dest.Port()}}
		if slices.Contains(node.Addresses, dest.Addr()) {
			any := netip.IPv6Unspecified()
			if dest.Addr().Is4() {
				any = netip.IPv4Unspecified()
			}
			ks = append(ks, frontends.Key{Addr: any, Protocol: frontends.UDP, Port: dest.Port()})
		}
		return ks
	}
	services := conntrack.Services{
		Leads: func(dest, backend netip.AddrPort) (known, may bool) {
			for _, k := range leaders(dest) {
				if have := find(k); have != nil {
					_, may = have[backend]
					return true, may
				}
			}
			return false, false
		},
		Gone: func(dest netip.AddrPort) bool {
			return slices.ContainsFunc(leaders(dest), func(k frontends.Key) bool { _, ok := gone[k]; return ok })
		},
	}
	if first {
		services.InServiceCIDR = func(a netip.Addr) bool {
			return slices.ContainsFunc(node.ServiceCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
		}
	}
	n, err := conntrack.Delete(services.Stale)
	c.p.metrics.deleted.Add(float64(n))
	if err != nil {
		c.p.metrics.conntrackFailures.Inc()
		c.mu.Lock()
		for k := range gone {
			c.gone.add(k)
		}
		c.mu.Unlock()
	}
	return err
}
