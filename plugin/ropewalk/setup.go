package ropewalk

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/coredns/coredns/plugin/pkg/upstream"
	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

var log = clog.NewWithPlugin(pluginName)

func init() { plugin.Register(pluginName, setup) }

func setup(c *caddy.Controller) error {
	cfg, err := parse(c)
	if err != nil {
		return plugin.Error(pluginName, err)
	}
	h, err := newHandler(cfg)
	if err != nil {
		return plugin.Error(pluginName, err)
	}
	if err := cfg.ownSnapshot(c); err != nil {
		return plugin.Error(pluginName, err)
	}
	conf := dnsserver.GetConfig(c)
	conf.AddPlugin(func(next plugin.Handler) plugin.Handler {
		h.Next = next
		return h
	})
	c.Set(h, struct{}{})                   // tells the instance of CoreDNS that h is part of
	if conf.UDPDecorateWriterFunc == nil { // or else it is the plugin shed's
		conf.UDPDecorateWriterFunc = h.decorate
	}
	c.OnStartup(func() error {
		cfg.metadata = conf.Handler("metadata") != nil
		h.local = localAddrs(conf.ListenHosts)
		h.inst = h.instance()
		f, err := feeds.join(h, cfg)
		if err != nil {
			return plugin.Error(pluginName, err)
		}
		f.await(cfg.startupTimeout)
		return nil
	})
	// A reload calls OnRestart, starts another instance, stops this one and calls OnShutdown. At the end of the process,
	// OnShutdown comes first, then OnFinalShutdown (where the health plugin waits for its lameduck), and then the stop: until
	// it, everything goes on.
	restarting := false
	c.OnRestart(func() error {
		restarting = true
		return nil
	})
	c.OnRestartFailed(func() error {
		restarting = false
		feeds.startFailed()
		return nil
	})
	c.OnShutdown(func() error {
		if restarting {
			fronts.bar(h)
			fronts.leave(h.inst)
			feeds.leave(h)
		}
		return nil
	})
	c.OnFinalShutdown(func() error {
		fronts.bar(h)
		fronts.finish(h.inst)
		feeds.leave(h)
		return nil
	})
	return nil
}

// instance returns the running instance of CoreDNS that h is part of; nil if it is not running. It is for the goroutine that starts
// and stops instances, which caddy.Instances does not lock.
func (h *Ropewalk) instance() *caddy.Instance {
	for _, i := range caddy.Instances() {
		i.StorageMu.RLock()
		mine := i.Storage[h] != nil
		i.StorageMu.RUnlock()
		if mine {
			return i
		}
	}
	return nil
}

// newHandler makes the handler of a configuration, and tries the source of its records as far as that goes without
// starting it.
func newHandler(cfg *config) (*Ropewalk, error) {
	origins, err := zone.NewOrigins(cfg.zones, cfg.multicluster)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.stanzaAt, err)
	}
	cfg.followReverse = origins.HasPrimary() && !origins.HasReverse()
	if _, err := cfg.newSource(); err != nil {
		return nil, err
	}
	if err := cfg.checkSnapshot(); err != nil {
		return nil, err
	}
	return &Ropewalk{
		Fall:       cfg.fall,
		zones:      cfg.zones,
		multi:      cfg.multicluster,
		zonal:      cfg.zonal,
		origins:    origins,
		zone:       zone.New(cfg.zoneOptions()), // empty, until OnStartup puts the feed's in its place
		upstream:   upstream.New(),
		autopath:   cfg.autopath,
		hostSearch: searchFromResolvConf(),
		fast:       cfg.fast,
	}, nil
}

// Ready implements ready.Readiness: everything that is watched has been delivered once, or was in the snapshot of a server
// that starts while the API is away. The ready plugin asks while the server is still starting.
func (h *Ropewalk) Ready() bool { return feeds.ready(h) }

func (h *Ropewalk) isMulti(z string) bool { return slices.Contains(h.multi, z) }

// localAddrs returns the addresses, other than loopback ones, that a server with these hosts listens on.
func localAddrs(hosts []string) (addrs []netip.Addr) {
	if len(hosts) == 0 || hosts[0] == "" {
		ifaddrs, err := net.InterfaceAddrs()
		if err != nil {
			log.Warningf("the addresses of this machine cannot be read, so that zones have no NS records: %v", err)
			return nil
		}
		hosts = nil
		for _, a := range ifaddrs {
			hosts = append(hosts, a.String())
		}
	}
	for _, h := range hosts {
		a, err := netip.ParseAddr(h)
		if p, perr := netip.ParsePrefix(h); perr == nil {
			a, err = p.Addr(), nil
		}
		if err == nil && !a.IsLoopback() {
			addrs = append(addrs, a.Unmap().WithZone(""))
		}
	}
	return addrs
}

// searchFromResolvConf returns the search path that the kubelet adds to that of pods: this machine's.
func searchFromResolvConf() []string {
	rc, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	plugin.Zones(rc.Search).Normalize()
	return rc.Search
}
