package link

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Check returns everything that is not as the spec says, joined.
func Check(pod ns.NetNS, s Spec) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return errors.Join(
		checkEnd(h, "on the node", s.Host, s.HostMAC, func(l netlink.Link) error { return s.checkHost(h, l) }),
		inside(pod, func(h *netlink.Handle) error {
			return checkEnd(h, "in the pod", s.Pod, s.PodMAC, func(l netlink.Link) error { return s.checkPod(h, l) })
		}),
	)
}

// checkEnd looks at what both ends have, and then at what this one has.
func checkEnd(h *netlink.Handle, where, name string, mac net.HardwareAddr, more func(netlink.Link) error) error {
	l, err := h.LinkByName(name)
	switch {
	case missing(err):
		return fmt.Errorf("interface %s %s is missing", name, where)
	case err != nil:
		return err
	case l.Type() != "veth":
		return fmt.Errorf("interface %s %s is a %s, not a veth", name, where, l.Type())
	}
	var errs []error
	if l.Attrs().Flags&net.FlagUp == 0 {
		errs = append(errs, errors.New("it is down"))
	}
	if got := l.Attrs().HardwareAddr; !bytes.Equal(got, mac) {
		errs = append(errs, fmt.Errorf("its MAC is %s, not %s", got, mac))
	}
	if err := errors.Join(append(errs, more(l))...); err != nil {
		return fmt.Errorf("interface %s %s: %w", name, where, err)
	}
	return nil
}

func (s Spec) checkHost(h *netlink.Handle, l netlink.Link) error {
	if s.Bridge != nil {
		return s.Bridge.check(h, l, s.PodMAC)
	}
	var errs []error
	for _, a := range s.Addrs {
		errs = append(errs,
			checkRoute(h, hostRoute(l.Attrs().Index, a), fmt.Sprintf("route to %s", a)),
			checkNeighbour(h, neighbour(l.Attrs().Index, a, s.PodMAC)))
	}
	return errors.Join(errs...)
}

func (s Spec) checkPod(h *netlink.Handle, l netlink.Link) error {
	errs := []error{checkAddresses(h, l, s.Networks())}
	for i := range s.Addrs {
		if s.HasDefault() {
			errs = append(errs, checkRoute(h, s.podRoute(l.Attrs().Index, i), fmt.Sprintf("default route by %s", s.Gateway(i))))
		}
		if s.Bridge == nil {
			errs = append(errs, checkNeighbour(h, neighbour(l.Attrs().Index, s.Gateway(i), s.HostMAC)))
		}
	}
	return errors.Join(errs...)
}

func checkAddresses(h *netlink.Handle, l netlink.Link, addrs []netip.Prefix) error {
	got, err := whole(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	has := map[string]bool{}
	for _, a := range got {
		has[a.IPNet.String()] = true
	}
	var errs []error
	for _, a := range addrs {
		if !has[IPNet(a).String()] {
			errs = append(errs, fmt.Errorf("address %s is missing", a))
		}
	}
	return errors.Join(errs...)
}

func checkRoute(h *netlink.Handle, r *netlink.Route, what string) error {
	family, mask := netlink.FAMILY_V6, netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST
	if len(r.Dst.IP) == net.IPv4len {
		family = netlink.FAMILY_V4
	}
	if r.Gw != nil {
		mask |= netlink.RT_FILTER_GW
	}
	got, err := whole(func() ([]netlink.Route, error) { return h.RouteListFiltered(family, r, mask) })
	if err == nil && len(got) == 0 {
		return fmt.Errorf("%s is missing", what)
	}
	return err
}

func checkNeighbour(h *netlink.Handle, n *netlink.Neigh) error {
	got, err := whole(func() ([]netlink.Neigh, error) { return h.NeighList(n.LinkIndex, n.Family) })
	if err != nil {
		return err
	}
	for _, g := range got {
		if g.IP.Equal(n.IP) && g.State == n.State && bytes.Equal(g.HardwareAddr, n.HardwareAddr) {
			return nil
		}
	}
	return fmt.Errorf("neighbour %s at %s is missing", n.IP, n.HardwareAddr)
}

// lists is how often a list is asked for that changes while the kernel gives it.
const lists = 10

// whole asks again for a list that was interrupted.
func whole[T any](list func() ([]T, error)) (got []T, err error) {
	for range lists {
		if got, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return got, err
}
