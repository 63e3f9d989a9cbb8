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

	mu   sync.Mutex
	gone map[frontends.Key]struct{} // keys that have become nobody's since the last walk
}

// cleanPause is the shortest time from one walk to the next.
const cleanPause = 200 * time.Millisecond

// note takes what a transaction changed.
func (c *cleaner) note(d frontends.Diff) {
	udp := slices.ContainsFunc(d.Put, func(f *frontends.Frontend) bool { return f.Protocol == frontends.UDP })
	c.mu.Lock()
	for _, k := range d.Delete {
		if k.Protocol == frontends.UDP {
			if c.gone == nil {
				c.gone = map[frontends.Key]struct{}{}
			}
			c.gone[k], udp = struct{}{}, true
		}
	}
	c.mu.Unlock()
	if udp {
		c.again()
	}
}

func (c *cleaner) again() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *cleaner) run(ctx context.Context) {
	first := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		c.walk(first)
		first = false
		if !sleep(ctx, cleanPause) {
			return
		}
	}
}

// walk goes through the kernel's entries once. What went while no agent was there is found by the ranges of services'
// addresses; not later, since services of another proxy have addresses of these ranges, too.
func (c *cleaner) walk(first bool) {
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
	// keys returns the keys that packets to dest may have been led by.
	keys := func(dest netip.AddrPort) []frontends.Key {
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
			for _, k := range keys(dest) {
				if have := find(k); have != nil {
					_, may = have[backend]
					return true, may
				}
			}
			return false, false
		},
		Gone: func(dest netip.AddrPort) bool {
			return slices.ContainsFunc(keys(dest), func(k frontends.Key) bool { _, ok := gone[k]; return ok })
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
		c.log.Error("stale connections of UDP may be left", "error", err)
		c.p.metrics.conntrackFailures.Inc()
	}
}
