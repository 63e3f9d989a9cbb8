// Package proxy leads connections to services' addresses to their endpoints, on one node: what kube-proxy does.
//
// frontends works out what becomes of connections to which address and port, nft puts that into the kernel, conntrack takes the
// entries of UDP out of the kernel that lead where nothing is any more, health answers load balancers. What is here brings
// them together: one goroutine takes all that has changed since its last transaction, and makes the next of it.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/proxy/frontends"
	"github.com/ropewalk-net/ropewalk/proxy/health"
	"github.com/ropewalk-net/ropewalk/proxy/nft"
)

// Config says how services are to be proxied on a node.
type Config struct {
	// NodeName is this node, as the API calls it.
	NodeName string
	// ClusterCIDRs and Interfaces say which connections come from pods: by source, or by the interface they come in at ("cni0",
	// "veth*"). If both are empty, those from the node's podCIDRs do.
	ClusterCIDRs []netip.Prefix
	Interfaces   []string
	// NodePortCIDRs say which of the node's own addresses take node ports: those of its interfaces that are in one of them. If
	// there are none, the node's primary addresses do, as its Node object has them.
	NodePortCIDRs []netip.Prefix
	// MasqueradeAll replaces all clients' addresses where they ask for a ClusterIP.
	MasqueradeAll bool
	// Mark is the bit of packets' marks that is used; nft.DefaultMark if 0.
	Mark uint32
	// MinSync is the shortest time from one transaction to the next; 0 makes the next at once, of all that has come meanwhile.
	MinSync time.Duration
	// Log is slog.Default() if nil.
	Log *slog.Logger
	// Registerer takes the metrics, ropewalk_proxy_*; nil for none.
	Registerer prometheus.Registerer
}

// Interest is what a Proxy for a node needs to hear of.
func Interest(node string) cluster.Interest { return frontends.Interest(node) }

// Proxy is a cluster.Sink. Run puts into the kernel what it hears.
type Proxy struct {
	config  Config
	metrics *metrics
	kick    chan struct{} // has one if there is something new
	started time.Time

	addresses *addresses // nil unless NodePortCIDRs ask for them

	mu        sync.Mutex // guards what follows
	builder   *frontends.Builder
	waiting   time.Time // since when there are changes that were not taken; zero if there are none
	writing   time.Time // since when there are changes that were taken, and are not in the kernel; zero if there are none
	unwritten int       // services that these are of; one counts again for each time it was taken
	synced    time.Time // when the kernel was last known to be right; zero before
	failure   error     // of the last transaction

	// What only Run uses.
	tables   *nft.Tables
	cleaner  *cleaner
	servers  *health.Servers
	checks   map[cluster.Key]frontends.Health // that servers have not been told of
	triggers []time.Time                      // of what is not in the kernel, up to maxTriggers
	node     nft.Node
}

// New returns a Proxy that does nothing to the kernel before Run. It fails for a Config that cannot be.
func New(c Config) (*Proxy, error) {
	if c.NodeName == "" {
		return nil, errors.New("a proxy needs its node's name")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	node := nft.Node{ClusterCIDRs: c.ClusterCIDRs, Interfaces: c.Interfaces, Mark: c.Mark}
	if err := node.Validate(); err != nil {
		return nil, err
	}
	p := &Proxy{
		config: c, kick: make(chan struct{}, 1), started: time.Now(), node: node,
		tables:  nft.New(node),
		builder: frontends.New(frontends.Options{NodeName: c.NodeName, MasqueradeAll: c.MasqueradeAll}),
		checks:  map[cluster.Key]frontends.Health{},
	}
	if len(c.NodePortCIDRs) > 0 {
		p.addresses = &addresses{wake: p.wake}
	}
	p.servers = health.NewServers(c.Log, p.healthNode().Healthy)
	p.cleaner = &cleaner{p: p, log: c.Log, wake: make(chan struct{}, 1)}
	var err error
	p.metrics, err = newMetrics(c.Registerer, p)
	return p, err
}

// Apply implements cluster.Sink.
func (p *Proxy) Apply(c cluster.Change) {
	p.mu.Lock()
	known := p.builder.Synced()
	p.builder.Apply(c)
	if p.waiting.IsZero() || !known { // until all is known, it is the API server that is waited for
		p.waiting = time.Now()
	}
	p.mu.Unlock()
	p.wake()
}

func (p *Proxy) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// Ready returns nil once the kernel has had all that was there at the start, and an error that says why not before.
func (p *Proxy) Ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.synced.IsZero():
		return nil
	case p.failure != nil:
		return fmt.Errorf("the rules cannot be written: %w", p.failure)
	case !p.builder.Synced():
		return errors.New("not all services, endpoints and the node have been heard of yet")
	}
	return errors.New("the rules are being written")
}

// Lag returns since when changes wait to be in the kernel, zero if none do, and when the kernel was last known to be right,
// zero if it has not been yet.
func (p *Proxy) Lag() (waiting, synced time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.behind(), p.synced
}

// behind is for callers that hold the lock.
func (p *Proxy) behind() time.Time {
	if !p.writing.IsZero() {
		return p.writing
	}
	return p.waiting
}

const (
	// checkPause is how often a look is taken at whether somebody else has changed the kernel's rules.
	checkPause = 5 * time.Second
	// What failed is tried again after a pause that begins with minRetry and doubles up to maxRetry.
	minRetry = 100 * time.Millisecond
	maxRetry = 30 * time.Second
)

// Run keeps the kernel right until ctx ends. What is in the kernel stays there. It is for one call.
func (p *Proxy) Run(ctx context.Context) error {
	defer p.tables.Close()
	p.tables.Read() // while the cluster is heard of
	var wg sync.WaitGroup
	defer wg.Wait()
	if p.addresses != nil {
		wg.Go(func() { p.addresses.follow(ctx, p.config.Log) })
	}
	wg.Go(func() { p.cleaner.run(ctx) })
	wg.Go(func() { p.servers.Run(ctx) })

	check := time.NewTimer(checkPause)
	defer check.Stop()
	pause := minRetry
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-check.C:
			begun := time.Now()
			p.check()
			check.Reset(max(checkPause, 50*time.Since(begun))) // it may be other software's rules that change all the time
			continue
		case <-p.kick:
		}
		begun := time.Now()
		known, err := p.sync()
		left := p.config.MinSync - time.Since(begun)
		switch {
		case err != nil:
			left = max(left, pause+rand.N(pause/4))
			p.config.Log.Error("writing the rules failed; the kernel has what was there before", "error", err, "again in", left)
			pause = min(2*pause, maxRetry)
			p.wake()
		case known:
			pause = minRetry
		default: // no transaction
			left = 0
		}
		if left > 0 && !sleep(ctx, left) {
			return nil
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// take returns what is to be written, and false before all is known: a part of it would take from the kernel what an agent of before
// has put there.
func (p *Proxy) take() (frontends.Diff, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.builder.Synced() || p.addresses != nil && !p.addresses.known() {
		return frontends.Diff{}, false
	}
	if p.writing = p.behind(); p.writing.IsZero() {
		p.writing = time.Now()
	}
	p.waiting = time.Time{}
	p.unwritten += p.builder.Pending()
	return p.builder.Take(), true
}

// sync writes what is new. It returns false if it could not know.
func (p *Proxy) sync() (known bool, err error) {
	begun := time.Now()
	d, ok := p.take()
	if !ok {
		return false, nil
	}
	p.tellRivals(d.Rivals)
	change := nft.Change{Put: d.Put, Delete: d.Delete, Hairpin: d.Hairpin}
	p.refuse(&change)
	if n := p.nodeNow(); !reflect.DeepEqual(n, p.node) {
		p.node, change.Node = n, &n
	}
	err = p.tables.Apply(change)
	p.cleaner.note(d)
	if len(p.triggers) < maxTriggers {
		p.triggers = append(p.triggers, d.Triggers...)
	}
	maps.Copy(p.checks, d.Health)
	if err == nil {
		p.metrics.pass(time.Since(begun), p.triggers, p.started)
		p.triggers = nil
		p.cleaner.written()
		p.tellHealth()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failure = err
	if err != nil {
		return true, err
	}
	p.writing, p.unwritten = time.Time{}, 0
	if p.synced.IsZero() {
		n := p.builder.Counts()
		p.config.Log.Info("all services are in the kernel", "services", n.Services, "frontends", n.Frontends, "endpoints", n.Endpoints, "took", time.Since(begun))
	}
	p.synced = time.Now()
	return true, nil
}

// maxTriggers is from how many times on no more are kept while the kernel refuses what they are of.
const maxTriggers = 1 << 16

// rivalsTold is how many services the log names after a transaction: whoever may write services can have any number of them.
const rivalsTold = 10

func (p *Proxy) tellRivals(rivals []frontends.Rival) {
	p.metrics.rivals.Add(float64(len(rivals)))
	for i, r := range rivals {
		if i == rivalsTold {
			p.config.Log.Warn("more services want addresses and ports that others have", "count", len(rivals)-i)
			break
		}
		p.config.Log.Warn("two services want the same address and port; it stays with the first", "key", r.Key.String(), "first", r.Owner.String(), "other", r.Loser.String())
	}
}

// refuse takes out of a change what the rules cannot have. What such an address and port was before goes, too: it may be less than what
// the service allows now.
func (p *Proxy) refuse(c *nft.Change) {
	c.Put = slices.DeleteFunc(c.Put, func(f *frontends.Frontend) bool {
		err := f.Validate()
		if err != nil {
			p.config.Log.Error("a service's address and port is left out", "error", err)
			p.metrics.refused.Inc()
			c.Delete = append(c.Delete, f.Key)
		}
		return err != nil
	})
}

// check looks whether somebody else has changed our rules, and mends them.
func (p *Proxy) check() {
	if _, synced := p.Lag(); synced.IsZero() {
		return
	}
	repaired, err := p.tables.Check()
	switch {
	case err != nil:
		p.config.Log.Error("the rules cannot be looked at", "error", err)
		p.wake()
	case repaired:
		p.config.Log.Warn("somebody else had changed our rules; they are as they should be again")
	}
}

// nodeNow returns what the rules need to know of the node now.
func (p *Proxy) nodeNow() nft.Node {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := nft.Node{
		ClusterCIDRs: p.config.ClusterCIDRs, Interfaces: p.config.Interfaces, ServiceCIDRs: p.builder.ServiceCIDRs(), Mark: p.config.Mark,
		Addresses: frontends.PrimaryAddresses(p.builder.Node()),
	}
	if len(n.ClusterCIDRs) == 0 && len(n.Interfaces) == 0 && p.builder.Node() != nil {
		n.ClusterCIDRs = p.builder.Node().PodCIDRs
	}
	if p.addresses != nil {
		n.Addresses = slices.DeleteFunc(p.addresses.now(), func(a netip.Addr) bool {
			return !slices.ContainsFunc(p.config.NodePortCIDRs, func(c netip.Prefix) bool { return c.Contains(a) })
		})
	}
	// What the API takes and packets cannot have is left out.
	n.Addresses = slices.DeleteFunc(n.Addresses, func(a netip.Addr) bool { return a.Is4In6() || a.Zone() != "" || a.IsUnspecified() })
	odd := func(p netip.Prefix) bool { return !p.IsValid() || p.Addr().Is4In6() }
	n.ClusterCIDRs, n.ServiceCIDRs = slices.DeleteFunc(slices.Clone(n.ClusterCIDRs), odd), slices.DeleteFunc(n.ServiceCIDRs, odd)
	return n
}
