package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kernel makes the network namespace of the calling thread have what plans say. What is not its own it leaves alone: routes of its own
// have Protocol, and the tunnel's device has Device for a name.
type Kernel struct {
	Device string // of the tunnel
	VNI    int
	Port   int // of UDP, between nodes
	MTU    int // of the tunnel, for what is packed into it
}

// Protocol is where routes are from, as the kernel notes it (ip route: "proto 82"): no number that rt_protos(5) has.
const Protocol netlink.RouteProtocol = 82

// Overhead returns by how many bytes a packet grows in a tunnel whose ends have addresses like local: Ethernet, IP, UDP and VXLAN headers.
func Overhead(local netip.Addr) int {
	if local.Is4() {
		return 14 + 20 + 8 + 8
	}
	return 14 + 40 + 8 + 8
}

// ErrForeign is wrapped if something of somebody else is in the way.
var ErrForeign = errors.New("somebody else's")

// Sync makes the kernel have a plan, and returns how many things it had to change. What fails is left out, and told.
func (k *Kernel) Sync(p Plan) (changes int, err error) {
	c := &changer{}
	var device netlink.Link
	if p.Tunnel != nil {
		device = k.device(c, p.Tunnel)
	}
	k.routes(c, p, device)
	for _, n := range c.stale { // now that no route leads there
		c.do("deleting a neighbour or forwarding entry", func() error { return gone(netlink.NeighDel(&n)) })
	}
	if p.Tunnel == nil {
		k.removeDevice(c)
	}
	return c.changes, errors.Join(c.errs...)
}

// Remove takes away all that is ours.
func (k *Kernel) Remove() error {
	_, err := k.Sync(Plan{})
	return err
}

// changer does things and notes how that went.
type changer struct {
	changes int
	errs    []error
	stale   []netlink.Neigh // what is to go when the routes are right, so that no packet is lost whose route changes
}

// do calls change, and reports whether that went well.
func (c *changer) do(what string, change func() error) bool {
	c.changes++
	return c.ok(what, change())
}

func (c *changer) ok(what string, err error) bool {
	if err != nil {
		c.errs = append(c.errs, fmt.Errorf("%s: %w", what, err))
	}
	return err == nil
}

// device returns the tunnel's device as it is to be, nil if that cannot be had.
func (k *Kernel) device(c *changer, t *Tunnel) netlink.Link {
	want := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: k.Device, MTU: k.MTU, HardwareAddr: t.MAC[:]},
		VxlanId:   k.VNI, SrcAddr: t.Local.AsSlice(), Port: k.Port,
	}
	link := k.existing(c)
	if have, ok := link.(*netlink.Vxlan); ok && (have.VxlanId != k.VNI || have.Port != k.Port || have.Learning || !have.SrcAddr.Equal(want.SrcAddr)) {
		c.do("deleting "+k.Device, func() error { return netlink.LinkDel(link) })
		link = nil
	}
	if link == nil {
		if !c.do("making "+k.Device, func() error { return netlink.LinkAdd(want) }) {
			return nil
		}
		if link = k.existing(c); link == nil {
			c.ok(k.Device, errors.New("it is gone as soon as it was made"))
			return nil
		}
		// No address of its own making, which would have to be looked for on the link first, and replies that come another way are welcome.
		c.ok("addr_gen_mode", sysctl("ipv6/conf/"+k.Device+"/addr_gen_mode", "1"))
		c.ok("rp_filter", sysctl("ipv4/conf/"+k.Device+"/rp_filter", "2"))
	}
	have := link.Attrs()
	if have.MTU != k.MTU {
		c.do("MTU", func() error { return netlink.LinkSetMTU(link, k.MTU) })
	}
	if !bytes.Equal(have.HardwareAddr, t.MAC[:]) {
		c.do("hardware address", func() error { return netlink.LinkSetHardwareAddr(link, t.MAC[:]) })
	}
	if have.Flags&net.FlagUp == 0 {
		c.do("setting up", func() error { return netlink.LinkSetUp(link) })
	}
	k.addresses(c, link, t)
	k.forward(c, link, t)
	k.neighbors(c, link, t)
	return link
}

// existing returns the tunnel's device, nil if there is none. What has its name and is no tunnel is somebody else's.
func (k *Kernel) existing(c *changer) netlink.Link {
	link, err := netlink.LinkByName(k.Device)
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none):
	case !c.ok(k.Device, err):
	case link.Type() != "vxlan":
		c.ok(k.Device, fmt.Errorf("%w: it is of the type %s", ErrForeign, link.Type()))
	default:
		return link
	}
	return nil
}

func (k *Kernel) removeDevice(c *changer) {
	link, err := netlink.LinkByName(k.Device)
	if err == nil && link.Type() == "vxlan" {
		c.do("deleting "+k.Device, func() error { return netlink.LinkDel(link) })
	}
}

func sysctl(name, value string) error {
	err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644)
	if errors.Is(err, os.ErrNotExist) { // no IPv6
		return nil
	}
	return err
}

// list returns what a dump gives, which others may interrupt.
func list[T any](dump func() ([]T, error)) ([]T, error) {
	for range 4 {
		if all, err := dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return dump()
}

func (k *Kernel) addresses(c *changer, link netlink.Link, t *Tunnel) {
	have, err := list(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if !c.ok("addresses", err) {
		return
	}
	want := map[netip.Addr]bool{}
	for _, a := range t.Addrs {
		want[a] = true
	}
	for _, h := range have {
		a, _ := netip.AddrFromSlice(h.IP)
		ones, bits := h.Mask.Size()
		if a = a.Unmap(); want[a] && ones == bits {
			delete(want, a)
		} else if !a.IsLinkLocalUnicast() {
			c.do("deleting an address", func() error { return netlink.AddrDel(link, &h) })
		}
	}
	for a := range want {
		c.do("address "+a.String(), func() error {
			return netlink.AddrReplace(link, &netlink.Addr{IPNet: network(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD})
		})
	}
}

// neighbors has the kernel know the hardware addresses of the other ends.
func (k *Kernel) neighbors(c *changer, link netlink.Link, t *Tunnel) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := list(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Attrs().Index, family) })
		if !c.ok("neighbours", err) {
			continue
		}
		right := map[netip.Addr]bool{}
		for _, h := range have {
			a, _ := netip.AddrFromSlice(h.IP)
			a = a.Unmap()
			if mac, ok := t.Neighbors[a]; ok && h.State == netlink.NUD_PERMANENT && bytes.Equal(h.HardwareAddr, mac[:]) {
				right[a] = true
			} else if !ok && h.State&netlink.NUD_NOARP == 0 {
				c.stale = append(c.stale, h)
			}
		}
		for a, mac := range t.Neighbors {
			if right[a] || a.Is4() != (family == netlink.FAMILY_V4) {
				continue
			}
			c.do("neighbour "+a.String(), func() error {
				return netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac[:]})
			})
		}
	}
}

// forward has the device know where the other ends are.
func (k *Kernel) forward(c *changer, link netlink.Link, t *Tunnel) {
	have, err := list(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Attrs().Index, unix.AF_BRIDGE) })
	if !c.ok("forwarding entries", err) {
		return
	}
	right := map[MAC]bool{}
	for _, h := range have {
		var mac MAC
		copy(mac[:], h.HardwareAddr)
		to, _ := netip.AddrFromSlice(h.IP)
		if end, ok := t.Forward[mac]; ok && to.Unmap() == end {
			right[mac] = true
		} else if !ok {
			c.stale = append(c.stale, h)
		}
	}
	for mac, end := range t.Forward {
		if !right[mac] {
			c.do("forwarding entry of "+end.String(), func() error {
				return netlink.NeighSet(&netlink.Neigh{
					LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, IP: end.AsSlice(), HardwareAddr: mac[:],
				})
			})
		}
	}
}

// routes has the kernel have the plan's routes. Without the tunnel's device those that need it are left out.
func (k *Kernel) routes(c *changer, p Plan, device netlink.Link) {
	want := maps.Clone(p.Routes)
	var wrong []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := list(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Protocol: Protocol, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		if !c.ok("routes", err) {
			return
		}
		for _, h := range have {
			dst := prefixOf(h.Dst)
			if r, ok := want[dst]; ok && r.is(h, device) {
				delete(want, dst)
			} else {
				wrong = append(wrong, h)
			}
		}
	}
	// What is wrong goes first: it may be in the way of what is right. A route that only changes is replaced, so that no packet is lost.
	for _, h := range wrong {
		if _, ok := want[prefixOf(h.Dst)]; !ok {
			c.do("deleting the route to "+h.Dst.String(), func() error { return gone(netlink.RouteDel(&h)) })
		}
	}
	ours := map[netip.Prefix]bool{}
	for _, h := range wrong {
		ours[prefixOf(h.Dst)] = true
	}
	for _, dst := range slices.SortedFunc(maps.Keys(want), netip.Prefix.Compare) {
		r := want[dst]
		if r.Tunnel && device == nil {
			continue // it has been told why
		}
		c.do("route to "+dst.String(), func() error {
			if ours[dst] {
				return netlink.RouteReplace(r.route(device))
			}
			err := netlink.RouteAdd(r.route(device))
			if errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("%w: there is one", ErrForeign)
			}
			return err
		})
	}
}

// gone leaves out that what is to be deleted is not there.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// is reports whether the kernel's route is r.
func (r Route) is(h netlink.Route, device netlink.Link) bool {
	via, _ := netip.AddrFromSlice(h.Gw)
	if via.Unmap() != r.Via || h.Priority != r.priority() {
		return false
	}
	return !r.Tunnel || device != nil && h.LinkIndex == device.Attrs().Index
}

// priority is what the kernel makes of none.
func (r Route) priority() int {
	if r.Dst.Addr().Is4() {
		return 0
	}
	return 1024
}

func (r Route) route(device netlink.Link) *netlink.Route {
	out := &netlink.Route{Dst: network(r.Dst), Gw: r.Via.AsSlice(), Protocol: Protocol, Table: unix.RT_TABLE_MAIN}
	if r.Tunnel {
		out.LinkIndex = device.Attrs().Index
		if r.Via.Is4() { // what is link-local is on the link
			out.Flags = int(netlink.FLAG_ONLINK)
		}
	}
	return out
}

func network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones)
}

// OnLink reports whether the main table leads to an address without a gateway.
func OnLink(a netip.Addr) bool {
	routes, err := netlink.RouteGet(a.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Gw == nil
}

// watchRetry is the pause after a subscription has ended: the kernel ends those whose reader is too slow.
const watchRetry = time.Second

// Watch calls changed whenever a link, a route, an address, or a neighbour on a tunnel has changed, until ctx ends; not for what comes and
// goes with a pod of this node. It is for the network namespace of the calling thread. What a Sync of one's own changes is told, too.
func Watch(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		watch(ctx, changed)
		changed()
		select {
		case <-ctx.Done():
		case <-time.After(watchRetry):
		}
	}
}

// watch ends with ctx, or with a subscription.
func watch(ctx context.Context, changed func()) {
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE) // of this thread's namespace, for the goroutine that looks at neighbours
	if err != nil {
		return
	}
	defer links.Close()
	done := make(chan struct{})
	events := make(chan struct{}, 1)
	var open []<-chan struct{} // closed when a subscription has ended
	var errs []error
	add := func(ended <-chan struct{}, err error) {
		if errs = append(errs, err); err == nil {
			open = append(open, ended)
		}
	}
	add(subscribe(netlink.LinkSubscribe, done, events, linkMatters))
	add(subscribe(netlink.RouteSubscribe, done, events, routeMatters))
	add(subscribe(netlink.AddrSubscribe, done, events, addrMatters))
	// On other links neighbours come and go all the time.
	add(subscribe(netlink.NeighSubscribe, done, events, func(u netlink.NeighUpdate) bool {
		if !neighMatters(u) {
			return false
		}
		link, err := links.LinkByIndex(u.LinkIndex)
		return err == nil && link.Type() == "vxlan"
	}))
	defer func() {
		close(done)
		for _, ended := range open {
			<-ended
		}
	}()
	if errors.Join(errs...) != nil {
		return
	}
	for {
		changed()
		select {
		case <-ctx.Done():
			return
		case <-open[0]:
			return
		case <-open[1]:
			return
		case <-open[2]:
			return
		case <-open[3]:
			return
		case <-events:
		}
	}
}

// podLink is what the CNI plugin calls the node's ends of pods' links, and the interfaces by which it limits what they send.
var podLink = regexp.MustCompile("^r[wi][0-9a-f]{8}$")

func linkMatters(u netlink.LinkUpdate) bool { return !podLink.MatchString(u.Attrs().Name) }

// routeMatters is false for routes to single addresses that are not ours, as those to pods are, and for those that the kernel makes of addresses.
func routeMatters(u netlink.RouteUpdate) bool {
	dst := prefixOf(u.Dst)
	return u.Protocol == Protocol || u.Table == unix.RT_TABLE_MAIN && !(dst.IsValid() && dst.IsSingleIP())
}

// addrMatters is false for the addresses that a node has towards its pods.
func addrMatters(u netlink.AddrUpdate) bool { return !u.LinkAddress.IP.IsLinkLocalUnicast() }

// neighMatters is false for neighbours that the kernel asks for, which come and go too often to look at each one's link.
func neighMatters(u netlink.NeighUpdate) bool {
	return u.Type == unix.RTM_DELNEIGH || u.Family == unix.AF_BRIDGE || u.State&netlink.NUD_PERMANENT != 0
}

// subscribe has events get one for what a subscription tells and matters, until done or until it ends. If matters is nil all does.
func subscribe[T any](begin func(chan<- T, <-chan struct{}) error, done <-chan struct{}, events chan<- struct{}, matters func(T) bool) (<-chan struct{}, error) {
	updates, ended := make(chan T, 16), make(chan struct{})
	if err := begin(updates, done); err != nil {
		return nil, err
	}
	go func() {
		defer close(ended)
		for u := range updates {
			if !matters(u) {
				continue
			}
			select {
			case events <- struct{}{}:
			default:
			}
		}
	}()
	return ended, nil
}
