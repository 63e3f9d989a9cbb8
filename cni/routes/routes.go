// Package routes keeps what a node must know of the others for its pods' sake: routes or tunnels to their pods, what of its own pods' packets
// is to have its address, and the configuration by which the container runtime calls the CNI plugin. It is what flannel's daemon and
// ip-masq-agent do.
package routes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cni/antispoof"
	"github.com/ropewalk-net/ropewalk/cni/masquerade"
	"github.com/ropewalk-net/ropewalk/cni/overlay"
)

// Config says how a node gets at the others' pods.
type Config struct {
	// NodeName is this node, as the API calls it.
	NodeName string
	Mode     overlay.Mode
	// NearDirect has the mode VXLAN do without the tunnel where the other node is on a link of this one's.
	NearDirect bool
	// Kernel is for the mode VXLAN. Its MTU is that of pods, too; 0 means that of the default route's link, less what a tunnel needs.
	Kernel overlay.Kernel
	// Masquerade gives packets of pods that leave the cluster the node's address, but for those to Inside, besides what the cluster says is inside.
	Masquerade bool
	Inside     []netip.Prefix
	// InsideFile has more of these (masquerade.ReadFile), read again at each look, a minute after the last one at most; none if empty.
	InsideFile string
	// Antispoof drops what pods in mode routed send from IPv6 addresses that are not theirs.
	Antispoof bool
	// ConfDir is where the runtime looks for CNI configurations; nothing is written if it is empty. DataDir is the plugin's.
	ConfDir, DataDir string
	// CNIMode is the plugin's mode, "routed" if empty. In mode "bridge", Bridge is the device, the plugin's default if empty, and SpoofCheck
	// drops what pods send from others' hardware addresses.
	CNIMode    string
	Bridge     string
	SpoofCheck bool
	// LocalhostPorts has the plugin lead ports of 127.0.0.1 to pods, too.
	LocalhostPorts bool
	// Patience is for how long something of this node's network has to be missing before the plugin says so to the runtime; 0 is a minute.
	Patience time.Duration
	// Log is slog.Default() if nil.
	Log *slog.Logger
	// Registerer takes the metrics, ropewalk_routes_*; nil for none.
	Registerer prometheus.Registerer
}

// Interest is what Routes for a node need to hear of.
func Interest() cluster.Interest {
	return cluster.Interest{Kinds: cluster.KindsOf(cluster.KindNode, cluster.KindServiceCIDR), NodeNet: true}
}

// Routes is a cluster.Sink. Run puts into the kernel what it hears.
type Routes struct {
	config  Config
	metrics *metrics
	kick    chan struct{}
	doubted atomic.Bool // the kernel is to be looked at

	mu      sync.Mutex
	nodes   objects[overlay.Node]
	cidrs   objects[[]netip.Prefix]
	changed map[cluster.Key]bool // nodes, since the last view
	whole   bool                 // that does not tell all
	ready   error                // nil once all is as it should be
	given   []byte               // the plugin's configuration
	told    string               // what the log was told last of nodes that are wrong
	desired counts

	// What follows is for Run alone.
	keeper  overlay.Keeper
	tables  masquerade.Tables
	looked  time.Time    // when the kernel was last looked at; zero if that is to be done again
	self    overlay.Node // as of the last view
	planner overlay.Planner
	plan    overlay.Plan
	wrong   error // with nodes
	behind  bool  // these, or what is inside, do not know all of the views so far
	inside  inside
	file    masquerade.File     // as it was last right
	mtu     int                 // as of the last look
	near    map[netip.Addr]bool // which are on a link, as of the last look
	loose   []netip.Addr        // whose links were looked at, as of the last look
	removed bool                // the masquerading of an earlier process
	guarded error               // why antispoof is not as it should be
	limit   limit
}

type counts struct{ nodes, routes, left int }

// objects are what matters of those of a kind.
type objects[T any] struct {
	equal  func(a, b T) bool
	all    map[cluster.Key]T
	listed map[cluster.Key]T // while a listing is on its way; nil else
	synced bool
}

// apply reports whether that has changed anything. object is what matters of the change's object, if it has one.
func (o *objects[T]) apply(c cluster.Change, object T) bool {
	switch c.Op {
	case cluster.Replace:
		o.listed = map[cluster.Key]T{}
	case cluster.Synced:
		before, first := o.all, !o.synced
		if o.synced = true; o.listed != nil {
			o.all, o.listed = o.listed, nil
		}
		return first || !maps.EqualFunc(before, o.all, o.equal)
	case cluster.Upsert:
		if o.listed != nil {
			o.listed[c.Key] = object
		}
		have, ok := o.all[c.Key]
		if ok && o.equal(have, object) {
			return false
		}
		o.all[c.Key] = object
		return true
	case cluster.Delete:
		_, ok := o.all[c.Key]
		delete(o.all, c.Key)
		delete(o.listed, c.Key)
		return ok
	}
	return false
}

// New checks a Config and returns Routes that do nothing before Run.
func New(c Config) (*Routes, error) {
	if c.NodeName == "" {
		return nil, errors.New("routes need their node's name")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.CNIMode == "" {
		c.CNIMode = "routed"
	}
	if c.Patience == 0 {
		c.Patience = patience
	}
	r := &Routes{config: c, kick: make(chan struct{}, 1), ready: errors.New("not all nodes have been heard of yet"), near: map[netip.Addr]bool{}, whole: true, changed: map[cluster.Key]bool{}}
	r.nodes = objects[overlay.Node]{equal: overlay.Node.Equal, all: map[cluster.Key]overlay.Node{}}
	r.cidrs = objects[[]netip.Prefix]{equal: slices.Equal[[]netip.Prefix], all: map[cluster.Key][]netip.Prefix{}}
	var err error
	r.metrics, err = newMetrics(c.Registerer, r)
	return r, err
}

// Apply implements cluster.Sink. What tells nothing new, such as a node's heartbeat, has nobody look at anything.
func (r *Routes) Apply(c cluster.Change) {
	if r.apply(c) {
		r.wake()
	}
}

func (r *Routes) apply(c cluster.Change) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch c.Kind {
	case cluster.KindNode:
		var n overlay.Node
		if c.Op == cluster.Upsert {
			n = nodeOf(c.Object.(*cluster.Node))
		}
		if changed = r.nodes.apply(c, n); changed {
			r.changed[c.Key] = true
		}
		if changed && c.Op == cluster.Synced || len(r.changed) > len(r.nodes.all) { // so that it stays short
			r.whole, r.changed = true, map[cluster.Key]bool{}
		}
	case cluster.KindServiceCIDR:
		var cidrs []netip.Prefix
		if c.Op == cluster.Upsert {
			cidrs = c.Object.(*cluster.ServiceCIDR).CIDRs
		}
		changed = r.cidrs.apply(c, cidrs)
	}
	return changed
}

// doubt has the kernel looked at.
func (r *Routes) doubt() {
	r.doubted.Store(true)
	r.wake()
}

func (r *Routes) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Ready returns nil while all is as it should be, and else an error that says what is not.
func (r *Routes) Ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ready
}

// Ranges returns the node's podCIDRs; none before they are known.
func (r *Routes) Ranges() (ranges []netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.nodes.all {
		if n.Name == r.config.NodeName {
			for _, c := range n.PodCIDRs {
				ranges = append(ranges, c.Masked())
			}
		}
	}
	return ranges
}

const (
	// pause is the shortest time from one change of the kernel, or look at it, to the next. Where they take long it is share times what the
	// last one took, pauseMost at most: some other program may change routes all the time.
	pause     = 100 * time.Millisecond
	share     = 10
	pauseMost = time.Second
	// look is the longest from one look to the next.
	look = time.Minute
	// retry is the pause after a failure; or retryShare times what that took, so that one which stays costs little in a large cluster, too.
	retry      = time.Second
	retryShare = 100
)

// Run keeps the kernel right until ctx ends. What is in the kernel stays there: pods go on to talk to each other.
//
// All that the kernel has is looked at in the beginning, after an error, each minute, when this node has changed, and when the kernel tells what is not
// as it is to be, or may not have told all. A change of the cluster has that sent which is different, and nothing looked at.
func (r *Routes) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	watching := make(chan struct{}) // ahead of the first look, so that one does
	began := sync.OnceFunc(func() { close(watching) })
	wg.Go(func() { r.keeper.Watch(ctx, func() { r.doubt(); began() }) })
	if err := r.sweep(); err != nil {
		r.config.Log.Warn("what an earlier process may have left stays", "error", err)
	}
	if err := r.recall(); err != nil {
		r.config.Log.Warn("how an earlier process had pods attached is not known", "error", err)
	}
	if err := r.forget(); err != nil {
		r.config.Log.Warn("what an earlier process has told the plugin stays", "error", err)
	}
	select {
	case <-watching:
	case <-ctx.Done():
		return nil
	}
	for {
		begun := time.Now()
		err := r.sync()
		wait := look - time.Since(r.looked)
		if err != nil {
			wait = min(max(retry, retryShare*time.Since(begun)), look)
		}
		rest := time.After(min(max(pause, share*time.Since(begun)), pauseMost))
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-r.kick:
		case <-timer.C:
		}
		timer.Stop()
		select {
		case <-ctx.Done():
			return nil
		case <-rest:
		}
	}
}

// view is what the cluster says.
type view struct {
	self   overlay.Node
	cidrs  []netip.Prefix // of services
	others int
	// changed are other nodes by their names that are different since the last view, without a Node if they are gone. It is nil if that is not
	// known: then all are to be looked at.
	changed map[string]overlay.Node
}

func (r *Routes) view() (v view, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.nodes.synced || !r.cidrs.synced {
		return v, errors.New("not all nodes have been heard of yet")
	}
	own := cluster.Key{Name: r.config.NodeName}
	v.self = r.nodes.all[own]
	switch {
	case v.self.Name == "":
		return v, fmt.Errorf("the API server has no node %s yet; is --node-name right?", r.config.NodeName)
	case len(v.self.PodCIDRs) == 0:
		return v, fmt.Errorf("node %s has no podCIDRs yet; does the controller manager allocate them (--allocate-node-cidrs)?", r.config.NodeName)
	}
	v.others = len(r.nodes.all) - 1
	for _, c := range r.cidrs.all {
		v.cidrs = append(v.cidrs, c...)
	}
	if !r.whole && !r.changed[own] {
		v.changed = make(map[string]overlay.Node, len(r.changed))
		for k := range r.changed {
			v.changed[k.Name] = r.nodes.all[k]
		}
	}
	r.whole, r.changed = false, map[cluster.Key]bool{}
	return v, nil
}

// others returns all other nodes, in an order of their names.
func (r *Routes) others() (out []overlay.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.nodes.all {
		if n.Name != r.config.NodeName {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b overlay.Node) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func nodeOf(n *cluster.Node) overlay.Node {
	out := overlay.Node{Name: n.Name, PodCIDRs: n.PodCIDRs}
	if n.Net != nil {
		out.Addrs, out.Created = slices.Concat(n.Net.InternalIPs, n.Net.ExternalIPs), n.Net.Created
	}
	return out
}

// sync makes all as it should be.
func (r *Routes) sync() error {
	v, err := r.view()
	if err == nil {
		err = r.put(v)
	}
	if err != nil {
		err = errors.Join(err, r.unannounce())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch before := r.ready; {
	case err == nil && before != nil:
		r.config.Log.Info("all nodes' routes are in the kernel", "nodes", r.desired.nodes, "routes", r.desired.routes)
	case err != nil && (before == nil || before.Error() != err.Error()):
		r.config.Log.Warn("not all is as it should be", "error", err)
	}
	if r.ready = err; err == nil {
		r.metrics.last.SetToCurrentTime()
	}
	return err
}

func (r *Routes) put(v view) error {
	r.behind = r.behind || v.changed == nil
	begun := time.Now()
	if r.doubted.Swap(false) || !r.self.Equal(v.self) {
		r.looked, r.self = time.Time{}, v.self
	}
	now := begun.Sub(r.looked) >= look
	if now {
		r.mtu = 0
		clear(r.near)
	}
	kernel, err := r.kernel(v)
	if err != nil {
		r.behind, r.looked = true, time.Time{}
		return err
	}
	n, err := r.lead(v, kernel, now)
	if r.plan.Routes == nil || r.config.Mode == overlay.VXLAN && r.plan.Tunnel == nil {
		return err
	}
	forwarding, err2 := r.forward(v.self, r.plan, now)
	r.metrics.changes.Add(float64(forwarding + n))
	switch err = errors.Join(err2, err); {
	case err != nil:
		r.metrics.failures.Inc()
		r.looked = time.Time{}
	case now:
		r.looked = begun
	}
	err = errors.Join(err, r.masquerade(v, now))
	if now {
		r.antispoof()
	}
	return errors.Join(err, r.nowhere(), r.limited(missing(err, r.plan, kernel.Device)), r.announce(v, kernel.MTU))
}

// forward has the kernel let packets of pods through. Links are looked at with everything else, and when the node's addresses have changed.
func (r *Routes) forward(self overlay.Node, plan overlay.Plan, now bool) (changes int, err error) {
	changes, err = overlay.Forward(self.PodCIDRs)
	if plan.Tunnel == nil {
		return changes, err
	}
	addrs := slices.Concat(self.Addrs, plan.Tunnel.Addrs)
	if !now && slices.Equal(addrs, r.loose) {
		return changes, err
	}
	n, err2 := overlay.Loosen(addrs)
	r.loose = addrs
	return changes + n, errors.Join(err, err2)
}

// lead has the kernel lead packets to nodes: to those that have changed where that is all there is to do.
func (r *Routes) lead(v view, k overlay.Kernel, now bool) (changes int, err error) {
	direct := r.onLink
	if !r.config.NearDirect && r.config.Mode != overlay.Direct {
		direct = nil
	}
	looks := r.keeper.Looks()
	defer func() { r.metrics.looks.Add(float64(r.keeper.Looks() - looks)) }()
	whole := r.behind || now && direct != nil
	if !whole {
		gone, come, ok := r.planner.Change(v.changed)
		whole = !ok
		if ok {
			r.inside.change(v.changed)
			r.tell(nil, counts{v.others, len(r.plan.Routes), 0})
			if !now {
				if changes, ok := r.keeper.Change(k, gone, come); ok {
					return changes, nil
				}
			}
		}
	}
	if whole {
		others := r.others()
		r.plan, r.wrong = r.planner.Make(r.config.Mode, v.self, others, direct)
		r.inside.reset(others)
		r.behind = false
		r.tell(r.wrong, counts{len(others), len(r.plan.Routes), r.planner.Left()})
		if r.plan.Routes == nil || r.config.Mode == overlay.VXLAN && r.plan.Tunnel == nil {
			return 0, r.wrong
		}
	}
	return r.keeper.Put(k, r.plan, now)
}

// onLink asks the kernel once for each address from one look to the next.
func (r *Routes) onLink(a netip.Addr) bool {
	near, ok := r.near[a]
	if !ok {
		near = overlay.OnLink(a)
		r.near[a] = near
	}
	return near
}

// nowhere returns an error if packets get to no other node at all, though there are some. It is then that this node is to blame, or the mode. That some
// nodes are left out is no reason for this one to be not ready: one that is far from all others would stop each rollout for good.
func (r *Routes) nowhere() error {
	if r.config.Mode != overlay.Direct || len(r.plan.Routes) > 0 || r.planner.Left() == 0 {
		return nil
	}
	return fmt.Errorf("no other node can be reached; are they on one link, as --overlay direct needs? %w", r.wrong)
}

// Degraded returns an error that says which nodes are left out; nil if none are.
func (r *Routes) Degraded() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told == "" {
		return nil
	}
	return errors.New("some nodes' pods cannot be reached: " + r.told)
}

// tell logs what is wrong with nodes, once.
func (r *Routes) tell(wrong error, n counts) {
	text := ""
	if wrong != nil {
		text = wrong.Error()
	}
	r.mu.Lock()
	again := text == r.told
	r.told, r.desired = text, n
	r.mu.Unlock()
	if !again && text != "" {
		r.metrics.wrong.Inc()
		r.config.Log.Error("some nodes' pods cannot be reached", "error", text)
	}
}

// kernel returns the configured one with its MTU.
func (r *Routes) kernel(v view) (overlay.Kernel, error) {
	k := r.config.Kernel
	if k.MTU != 0 {
		return k, nil
	}
	if r.mtu == 0 {
		var err error
		if r.mtu, err = linkMTU(); err != nil {
			return k, err
		}
	}
	k.MTU = r.mtu
	if r.config.Mode == overlay.VXLAN && len(v.self.Addrs) > 0 {
		k.MTU -= overlay.Overhead(v.self.Addrs[0])
	}
	return k, nil
}

// linkMTU returns that of the default route's link; the least, if there are several.
func linkMTU() (int, error) {
	mtu := 0
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_DST)
		if err != nil {
			return 0, fmt.Errorf("default route: %w", err)
		}
		var links []int
		for _, route := range routes {
			links = append(links, route.LinkIndex)
			for _, hop := range route.MultiPath { // then the route itself has none
				links = append(links, hop.LinkIndex)
			}
		}
		for _, index := range links {
			link, err := netlink.LinkByIndex(index)
			if err != nil || link.Attrs().Flags&net.FlagLoopback != 0 {
				continue
			}
			if n := link.Attrs().MTU; mtu == 0 || n < mtu {
				mtu = n
			}
		}
	}
	if mtu == 0 {
		return 0, errors.New("there is no default route to take the MTU from; give --mtu")
	}
	return mtu, nil
}

// antispoof has the table there, or not there. The log is told once of a kernel that lacks what it needs: pods are reached without it.
func (r *Routes) antispoof() {
	apply := antispoof.Apply
	if !r.config.Antispoof {
		apply = func() (bool, error) { return false, antispoof.Remove() }
	}
	changed, err := apply()
	if changed {
		r.metrics.changes.Inc()
	}
	if err != nil && (r.guarded == nil || r.guarded.Error() != err.Error()) {
		r.metrics.failures.Inc()
		r.config.Log.Error("pods may send from IPv6 addresses that are not theirs", "error", err)
	}
	r.guarded = err
}

// masquerade has the rules there as they should be. Where there are to be none, those of an earlier process go, once.
func (r *Routes) masquerade(v view, now bool) error {
	if !r.config.Masquerade {
		if r.removed {
			return nil
		}
		if err := masquerade.Remove(); err != nil { // a kernel without nftables has none that could be left
			r.config.Log.Warn("masquerading of an earlier process may be left", "error", err)
		}
		r.removed = true
		return nil
	}
	var wrong error
	if r.config.InsideFile != "" {
		file, err := masquerade.ReadFile(r.config.InsideFile)
		if err == nil {
			r.file = file
		} else { // the last one that was right holds, or none: packets with the node's address get farther than those of pods that are not masqueraded at all
			wrong = errors.New(err.Error()) // that a file may not be read is not the kernel's refusal (missing)
		}
	}
	own := slices.Concat(r.config.Inside, r.file.Inside, v.cidrs, prefixesOf(v.self))
	c := masquerade.Config{Pods: v.self.PodCIDRs, Inside: r.inside.with(own), LinkLocal: r.file.LinkLocal, LinkLocal6: r.file.LinkLocal6}
	changed, err := r.tables.Apply(c, now)
	if changed {
		r.metrics.changes.Inc()
	}
	if err = errors.Join(wrong, err); err != nil {
		r.metrics.failures.Inc()
	}
	return err
}
