package link

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Mend gives host ends back what somebody has taken from them since they were made: up, their routes and neighbours, or their place on the
// bridge. Those that are not there are left out: they are the kernel's to take away, and DEL's. It returns how many things it had to make
// again; what fails does not keep it from the rest. However many there are, the kernel is asked for each kind of thing once.
func Mend(specs []Spec) (mended int, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	have, err := look(h)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, s := range specs {
		for _, f := range s.faults(h, have) {
			mended++
			if err := f.mend(); err != nil && !missing(err) && !errors.Is(err, unix.ENETDOWN) { // it has gone meanwhile
				errs = append(errs, fmt.Errorf("%s: %s: %w", s.Host, f.what, err))
			}
		}
	}
	return mended, errors.Join(errs...)
}

// node is what the kernel has of all host ends together.
type node struct {
	links  map[string]netlink.Link
	routes map[at]bool
	neighs map[at]string // hardware addresses of permanent neighbours
	addrs  map[at]bool
}

// at is an address, or a network, at a link.
type at struct {
	index int
	dst   string
}

func look(h *netlink.Handle) (node, error) {
	n := node{links: map[string]netlink.Link{}, routes: map[at]bool{}, neighs: map[at]string{}, addrs: map[at]bool{}}
	links, err := whole(h.LinkList)
	for _, l := range links {
		n.links[l.Attrs().Name] = l
	}
	routes, err2 := whole(func() ([]netlink.Route, error) { return h.RouteList(nil, netlink.FAMILY_ALL) })
	for _, r := range routes {
		if r.Dst != nil {
			n.routes[at{r.LinkIndex, r.Dst.String()}] = true
		}
	}
	var err3 error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		neighs, e := whole(func() ([]netlink.Neigh, error) { return h.NeighList(0, family) })
		err3 = errors.Join(err3, e)
		for _, e := range neighs {
			if e.State == netlink.NUD_PERMANENT {
				n.neighs[at{e.LinkIndex, e.IP.String()}] = e.HardwareAddr.String()
			}
		}
	}
	addrs, err4 := whole(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	for _, a := range addrs {
		n.addrs[at{a.LinkIndex, a.IPNet.String()}] = true
	}
	return n, errors.Join(err, err2, err3, err4)
}

// fault is something that is not as it was made.
type fault struct {
	what string
	mend func() error
}

func (s Spec) faults(h *netlink.Handle, have node) (out []fault) {
	l := have.links[s.Host]
	if l == nil || !bytes.Equal(l.Attrs().HardwareAddr, s.HostMAC) {
		return nil
	}
	if s.Bridge != nil {
		out = s.Bridge.faults(h, have, l, s.PodMAC)
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		out = append(out, fault{"setting up", func() error { return h.LinkSetUp(l) }})
	}
	if s.Bridge != nil {
		return out
	}
	index := l.Attrs().Index
	for _, a := range s.Addrs {
		if n := neighbour(index, a, s.PodMAC); have.neighs[at{index, n.IP.String()}] != s.PodMAC.String() {
			out = append(out, fault{"neighbour " + a.String(), func() error { return h.NeighSet(n) }})
		}
		if r := hostRoute(index, a); !have.routes[at{index, r.Dst.String()}] {
			out = append(out, fault{"route to " + a.String(), func() error { return h.RouteAdd(r) }})
		}
	}
	return out
}

// faults looks at a port. That of a bridge that is not there any more is on none.
func (b *Bridge) faults(h *netlink.Handle, have node, port netlink.Link, pod net.HardwareAddr) (out []fault) {
	if bridge := have.links[b.Name]; bridge != nil && bridge.Attrs().Flags&net.FlagUp != 0 && port.Attrs().MasterIndex == bridge.Attrs().Index &&
		!slices.ContainsFunc(b.Gateways, func(g netip.Prefix) bool { return !have.addrs[at{bridge.Attrs().Index, g.String()}] }) {
		return nil
	}
	return []fault{{"place on " + b.Name, func() error {
		l, err := b.ensure(h)
		if err != nil || port.Attrs().MasterIndex == l.Attrs().Index {
			return err
		}
		return errors.Join(h.LinkSetMaster(port, l), b.plug(h, port.Attrs().Index, pod))
	}}}
}
