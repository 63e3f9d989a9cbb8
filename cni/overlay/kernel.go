package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kernel says what plans do not of what a Keeper makes. What is not its own it leaves alone: routes of its own have Protocol, and the tunnel's
// device has Device for a name.
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

// Remove takes away all that is ours from the network namespace of the calling thread.
func (k Kernel) Remove() error {
	_, err := new(Keeper).Put(k, Plan{}, true)
	return err
}

// changer does things and notes how that went.
type changer struct {
	changes int
	errs    []error
	failed  map[unix.Errno]int // how often by the kernel's word, 0 for what is not the kernel's
}

// toldEach is how many errors of a kind are told: what is wrong with one of thousands of nodes may be wrong with all, and people read it.
const toldEach = 10

// do calls change, and reports whether that went well.
func (c *changer) do(what string, change func() error) bool {
	c.changes++
	return c.ok(what, change())
}

func (c *changer) ok(what string, err error) bool {
	if err == nil {
		return true
	}
	var kind unix.Errno
	_ = errors.As(err, &kind)
	if c.failed == nil {
		c.failed = map[unix.Errno]int{}
	}
	if c.failed[kind]++; c.failed[kind] <= toldEach {
		c.errs = append(c.errs, fmt.Errorf("%s: %w", what, err))
	}
	return false
}

// err returns what went wrong.
func (c *changer) err() error {
	more := -len(c.errs)
	for _, n := range c.failed {
		more += n
	}
	return joined(c.errs, more)
}

// joined returns errors as one, which says that there are more.
func joined(errs []error, more int) error {
	if more > 0 {
		errs = append(errs, fmt.Errorf("and %d more like these", more))
	}
	return errors.Join(errs...)
}

// device returns the index of the tunnel's device, which is as it is to be, 0 if that cannot be had.
func (k Kernel) device(c *changer, t *Tunnel) int {
	want := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: k.Device, MTU: k.MTU, HardwareAddr: t.MAC[:]},
		VxlanId:   k.VNI, SrcAddr: t.Local.AsSlice(), Port: k.Port,
	}
	link := k.existing(c)
	if link != nil && !k.fits(link, t) {
		c.do("deleting "+k.Device, func() error { return netlink.LinkDel(link) })
		link = nil
	}
	if link == nil {
		if !c.do("making "+k.Device, func() error { return netlink.LinkAdd(want) }) {
			return 0
		}
		if link = k.existing(c); link == nil {
			c.ok(k.Device, errors.New("it is gone as soon as it was made"))
			return 0
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
	return have.Index
}

// fits reports whether a link has all that a tunnel's has from its making on.
func (k Kernel) fits(link netlink.Link, t *Tunnel) bool {
	have, ok := link.(*netlink.Vxlan)
	return ok && have.VxlanId == k.VNI && have.Port == k.Port && !have.Learning && have.SrcAddr.Equal(t.Local.AsSlice())
}

// right reports whether a link is the tunnel's as it is to be.
func (k Kernel) right(link netlink.Link, t *Tunnel) bool {
	have := link.Attrs()
	return k.fits(link, t) && have.MTU == k.MTU && bytes.Equal(have.HardwareAddr, t.MAC[:]) && have.Flags&net.FlagUp != 0
}

// existing returns the tunnel's device, nil if there is none. What has its name and is no tunnel is somebody else's.
func (k Kernel) existing(c *changer) netlink.Link {
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

func (k Kernel) removeDevice(c *changer) {
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

func (k Kernel) addresses(c *changer, link netlink.Link, t *Tunnel) {
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

// work is what is to be done to routes and to what a tunnel's device knows.
type work struct {
	forward   map[MAC]netip.Addr // to be set
	neighbors map[netip.Addr]MAC // to be set
	wrong     []netlink.Route    // to be deleted, or replaced by those of routes
	routes    map[netip.Prefix]Route
	stale     []netlink.Neigh // to be deleted when the routes are right, so that no packet is lost whose route changes
}

// differ returns what makes a plan, which the kernel has, into another.
func differ(have, want Plan, device int) work {
	w := work{routes: lacks(have.Routes, want.Routes)}
	for _, r := range lacks(want.Routes, have.Routes) {
		w.wrong = append(w.wrong, *r.route(device))
	}
	if have.Tunnel == nil || want.Tunnel == nil {
		return w
	}
	w.forward, w.neighbors = lacks(have.Tunnel.Forward, want.Tunnel.Forward), lacks(have.Tunnel.Neighbors, want.Tunnel.Neighbors)
	for mac, end := range have.Tunnel.Forward {
		if _, ok := want.Tunnel.Forward[mac]; !ok {
			w.stale = append(w.stale, *forwarding(device, mac, end))
		}
	}
	for a, mac := range have.Tunnel.Neighbors {
		if _, ok := want.Tunnel.Neighbors[a]; !ok {
			w.stale = append(w.stale, *neighbor(device, a, mac))
		}
	}
	return w
}

// lacks returns what want has that have does not, or not so.
func lacks[K, V comparable](have, want map[K]V) map[K]V {
	out := map[K]V{}
	for k, v := range want {
		if h, ok := have[k]; !ok || h != v {
			out[k] = v
		}
	}
	return out
}

// find lists what the kernel has, and returns what makes that into a plan.
func (p Plan) find(c *changer, device int) (w work) {
	if device != 0 {
		p.Tunnel.findForward(c, &w, device)
		p.Tunnel.findNeighbors(c, &w, device)
	}
	p.findRoutes(c, &w, device)
	return w
}

func (t *Tunnel) findNeighbors(c *changer, w *work, device int) {
	w.neighbors = map[netip.Addr]MAC{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := list(func() ([]netlink.Neigh, error) { return netlink.NeighList(device, family) })
		if !c.ok("neighbours", err) {
			continue
		}
		right := map[netip.Addr]bool{}
		for _, h := range have {
			a := addrOf(h.IP)
			if _, ok := t.Neighbors[a]; !ok && h.State&netlink.NUD_NOARP == 0 {
				w.stale = append(w.stale, h)
			}
			right[a] = t.knows(h)
		}
		for a, mac := range t.Neighbors {
			if !right[a] && a.Is4() == (family == netlink.FAMILY_V4) {
				w.neighbors[a] = mac
			}
		}
	}
}

func (t *Tunnel) findForward(c *changer, w *work, device int) {
	have, err := list(func() ([]netlink.Neigh, error) { return netlink.NeighList(device, unix.AF_BRIDGE) })
	if !c.ok("forwarding entries", err) {
		return
	}
	w.forward = maps.Clone(t.Forward)
	for _, h := range have {
		mac := macIn(h)
		if _, ok := t.Forward[mac]; !ok {
			w.stale = append(w.stale, h)
		} else if t.knows(h) {
			delete(w.forward, mac)
		}
	}
}

// knows reports whether a neighbour or a forwarding entry is as it is to be.
func (t *Tunnel) knows(h netlink.Neigh) bool {
	mac, a := macIn(h), addrOf(h.IP)
	if h.Family == unix.AF_BRIDGE {
		end, ok := t.Forward[mac]
		return ok && end == a
	}
	want, ok := t.Neighbors[a]
	return ok && want == mac && h.State == netlink.NUD_PERMANENT
}

func macIn(h netlink.Neigh) (m MAC) {
	copy(m[:], h.HardwareAddr)
	return m
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func (p Plan) findRoutes(c *changer, w *work, device int) {
	want := maps.Clone(p.Routes)
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
				w.wrong = append(w.wrong, h)
			}
		}
	}
	w.routes = want
}

// perform does what is to be done. Without the tunnel's device, routes that need it are left out.
func (c *changer) perform(w work, device int) {
	for _, mac := range slices.SortedFunc(maps.Keys(w.forward), func(a, b MAC) int { return bytes.Compare(a[:], b[:]) }) { // so that what fails is told alike
		end := w.forward[mac]
		c.do("forwarding entry of "+end.String(), func() error { return netlink.NeighSet(forwarding(device, mac, end)) })
	}
	for _, a := range slices.SortedFunc(maps.Keys(w.neighbors), netip.Addr.Compare) {
		mac := w.neighbors[a]
		c.do("neighbour "+a.String(), func() error { return netlink.NeighSet(neighbor(device, a, mac)) })
	}
	// What is wrong goes first: it may be in the way of what is right. A route that only changes is replaced, so that no packet is lost.
	replaced := map[netip.Prefix]bool{}
	for _, h := range w.wrong {
		dst := prefixOf(h.Dst)
		if _, ok := w.routes[dst]; ok {
			replaced[dst] = true
			continue
		}
		c.do("deleting the route to "+h.Dst.String(), func() error { return gone(netlink.RouteDel(&h)) })
	}
	for _, dst := range slices.SortedFunc(maps.Keys(w.routes), netip.Prefix.Compare) {
		r := w.routes[dst]
		if r.Tunnel && device == 0 {
			continue // it has been told why
		}
		c.do("route to "+dst.String(), func() error {
			if replaced[dst] {
				return netlink.RouteReplace(r.route(device))
			}
			err := netlink.RouteAdd(r.route(device))
			if errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("%w: there is one", ErrForeign)
			}
			return err
		})
	}
	for _, n := range w.stale {
		c.do("deleting a neighbour or forwarding entry", func() error { return gone(netlink.NeighDel(&n)) })
	}
}

func neighbor(device int, a netip.Addr, mac MAC) *netlink.Neigh {
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	return &netlink.Neigh{LinkIndex: device, Family: family, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac[:]}
}

func forwarding(device int, mac MAC, end netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: device, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, IP: end.AsSlice(), HardwareAddr: mac[:],
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
func (r Route) is(h netlink.Route, device int) bool {
	via, _ := netip.AddrFromSlice(h.Gw)
	if via.Unmap() != r.Via || h.Priority != r.priority() {
		return false
	}
	return !r.Tunnel || device != 0 && h.LinkIndex == device
}

// priority is what the kernel makes of none.
func (r Route) priority() int {
	if r.Dst.Addr().Is4() {
		return 0
	}
	return 1024
}

func (r Route) route(device int) *netlink.Route {
	out := &netlink.Route{Dst: network(r.Dst), Gw: r.Via.AsSlice(), Protocol: Protocol, Table: unix.RT_TABLE_MAIN}
	if r.Tunnel {
		out.LinkIndex = device
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
