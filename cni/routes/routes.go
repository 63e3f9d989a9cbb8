// Package routes keeps what a node must know of the others for its pods' sake: routes or tunnels to their pods, what of its own pods' packets
// is to have its address, and the configuration by which the container runtime calls the CNI plugin. It is what flannel's daemon and
// ip-masq-agent do.
package routes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"

	"github.com/ropewalk-net/ropewalk/cluster"
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
	// ConfDir is where the runtime looks for CNI configurations; nothing is written if it is empty. DataDir is the plugin's.
	ConfDir, DataDir string
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

	mu      sync.Mutex
	nodes   objects[*cluster.Node]
	cidrs   objects[*cluster.ServiceCIDR]
	ready   error  // nil once all is as it should be
	told    string // what the log was told last of nodes that are wrong
	desired counts

	masqueraded masquerade.Config // what Run has put there, if it is there
	there       bool
}

type counts struct{ nodes, routes int }

// objects are those of a kind.
type objects[T any] struct {
	all    map[cluster.Key]T
	listed map[cluster.Key]T // while a listing is on its way; nil else
	synced bool
}

func (o *objects[T]) apply(c cluster.Change) {
	if o.all == nil {
		o.all = map[cluster.Key]T{}
	}
	switch c.Op {
	case cluster.Replace:
		o.listed = map[cluster.Key]T{}
	case cluster.Synced:
		if o.listed != nil {
			o.all, o.listed = o.listed, nil
		}
		o.synced = true
	case cluster.Upsert:
		o.all[c.Key] = c.Object.(T)
		if o.listed != nil {
			o.listed[c.Key] = c.Object.(T)
		}
	case cluster.Delete:
		delete(o.all, c.Key)
		delete(o.listed, c.Key)
	}
}

// New checks a Config and returns Routes that do nothing before Run.
func New(c Config) (*Routes, error) {
	if c.NodeName == "" {
		return nil, errors.New("routes need their node's name")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	r := &Routes{config: c, kick: make(chan struct{}, 1), ready: errors.New("not all nodes have been heard of yet")}
	var err error
	r.metrics, err = newMetrics(c.Registerer, r)
	return r, err
}

// Apply implements cluster.Sink.
func (r *Routes) Apply(c cluster.Change) {
	r.mu.Lock()
	switch c.Kind {
	case cluster.KindNode:
		r.nodes.apply(c)
	case cluster.KindServiceCIDR:
		r.cidrs.apply(c)
	}
	r.mu.Unlock()
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

const (
	// pause is the shortest time from one look at the kernel to the next: the kernel tells of each route that changes, our own too.
	pause = 100 * time.Millisecond
	// look is the longest.
	look = time.Minute
	// retry is the pause after a failure.
	retry = time.Second
)

// Run keeps the kernel right until ctx ends. What is in the kernel stays there: pods go on to talk to each other.
func (r *Routes) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { overlay.Watch(ctx, r.wake) })
	for {
		wait := look
		if err := r.sync(); err != nil {
			wait = retry
		}
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
		case <-time.After(pause):
		}
	}
}

// view is what the cluster says.
type view struct {
	self   overlay.Node
	others []overlay.Node
	cidrs  []netip.Prefix // of services
}

func (r *Routes) view() (v view, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.nodes.synced || !r.cidrs.synced {
		return v, errors.New("not all nodes have been heard of yet")
	}
	for _, k := range slices.SortedFunc(maps.Keys(r.nodes.all), cluster.Key.Compare) {
		n := nodeOf(r.nodes.all[k])
		if n.Name == r.config.NodeName {
			v.self = n
		} else {
			v.others = append(v.others, n)
		}
	}
	for _, c := range r.cidrs.all {
		v.cidrs = append(v.cidrs, c.CIDRs...)
	}
	slices.SortFunc(v.cidrs, netip.Prefix.Compare)
	switch {
	case v.self.Name == "":
		return v, fmt.Errorf("the API server has no node %s yet; is --node-name right?", r.config.NodeName)
	case len(v.self.PodCIDRs) == 0:
		return v, fmt.Errorf("node %s has no podCIDRs yet; does the controller manager allocate them (--allocate-node-cidrs)?", r.config.NodeName)
	}
	return v, nil
}

func nodeOf(n *cluster.Node) overlay.Node {
	out := overlay.Node{Name: n.Name, PodCIDRs: n.PodCIDRs}
	if n.Net != nil {
		out.Addrs = slices.Concat(n.Net.InternalIPs, n.Net.ExternalIPs)
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
	kernel, err := r.kernel(v)
	if err != nil {
		return err
	}
	var near func(netip.Addr) bool
	if r.config.NearDirect {
		near = overlay.OnLink
	}
	plan, wrong := overlay.Make(r.config.Mode, v.self, v.others, near)
	r.tell(wrong, counts{len(v.others), len(plan.Routes)})
	if plan.Routes == nil || r.config.Mode == overlay.VXLAN && plan.Tunnel == nil {
		return wrong
	}
	n, err := kernel.Sync(plan)
	r.metrics.changes.Add(float64(n))
	if err != nil {
		r.metrics.failures.Inc()
	}
	if r.config.Masquerade {
		err = errors.Join(err, r.masquerade(v))
	}
	return errors.Join(err, r.announce(v, kernel.MTU))
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
	mtu, err := linkMTU()
	if err != nil {
		return k, err
	}
	if r.config.Mode == overlay.VXLAN && len(v.self.Addrs) > 0 {
		mtu -= overlay.Overhead(v.self.Addrs[0])
	}
	k.MTU = mtu
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
		for _, route := range routes {
			link, err := netlink.LinkByIndex(route.LinkIndex)
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

// masquerade writes the rules if they are not there as they should be.
func (r *Routes) masquerade(v view) error {
	c := masquerade.Config{Pods: v.self.PodCIDRs, Inside: slices.Concat(r.config.Inside, v.cidrs)}
	for _, n := range append([]overlay.Node{v.self}, v.others...) {
		c.Inside = append(c.Inside, n.PodCIDRs...)
		for _, a := range n.Addrs {
			c.Inside = append(c.Inside, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	if r.there && reflect.DeepEqual(c, r.masqueraded) && masquerade.There() {
		return nil
	}
	if err := masquerade.Apply(c); err != nil {
		r.metrics.failures.Inc()
		r.there = false
		return err
	}
	r.metrics.changes.Inc()
	r.masqueraded, r.there = c, true
	return nil
}
