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

var (
	// ErrExists says that the pod has an interface of the name.
	ErrExists = errors.New("the interface exists already")
	// ErrTaken says that the hardware address is that of another port of the bridge.
	ErrTaken = errors.New("hardware address is taken")
	// ErrDefault says that the pod has a default route already, by another interface.
	ErrDefault = errors.New("the pod has a default route already, by another interface")
)

// Absent returns ErrExists if there is an interface of that name in the namespace.
func Absent(pod ns.NetNS, name string) error {
	return inside(pod, func(h *netlink.Handle) error {
		_, err := h.LinkByName(name)
		switch {
		case err == nil:
			return ErrExists
		case missing(err):
			return nil
		}
		return err
	})
}

// Add makes all that the spec says, or nothing: on an error, what was made is taken away.
func Add(pod ns.NetNS, s Spec) (err error) {
	if err := forward(s.Has4(), s.Has6()); err != nil {
		return err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	bridge := 0
	if s.Bridge != nil {
		l, err := s.Bridge.ensure(h)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", s.Bridge.Name, err)
		}
		bridge = l.Attrs().Index
	}
	host, err := create(h, pod, s, bridge)
	if errors.Is(err, unix.EEXIST) {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, Delete(s))
		}
	}()
	if err != nil { // it may be there all the same, if only the kernel's answer was lost
		return err
	}
	if err := s.setHost(h, host); err != nil {
		return fmt.Errorf("host end %s: %w", s.Host, err)
	}
	if err := inside(pod, s.setPod); err != nil {
		return fmt.Errorf("interface %s in the pod: %w", s.Pod, err)
	}
	return nil
}

// create makes the pair, down, with one end in the pod's namespace from the start: it is never seen on the node. The other end is a port of
// the bridge with that index, if it is not 0.
func create(h *netlink.Handle, pod ns.NetNS, s Spec, bridge int) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU, attrs.MasterIndex = s.Host, s.HostMAC, s.MTU, bridge
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = s.Pod, s.PodMAC, uint32(s.MTU)
	veth.PeerNamespace = netlink.NsFd(pod.Fd())
	if err := h.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("veth pair %s on the node, %s in the pod: %w", s.Host, s.Pod, err)
	}
	return veth, nil
}

func (s Spec) setHost(h *netlink.Handle, host netlink.Link) error {
	sysctls := hostSysctls(s.Host, HasIPv6())
	if s.Bridge != nil {
		sysctls = portSysctls(s.Host, HasIPv6())
	}
	if err := write(sysctls); err != nil {
		return err
	}
	if s.Alias != "" {
		if err := h.LinkSetAlias(host, s.Alias); err != nil {
			return err
		}
	}
	index := host.Attrs().Index
	if s.Bridge != nil {
		if err := s.Bridge.plug(h, index, s.PodMAC); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(host); err != nil || s.Bridge != nil {
		return err
	}
	for _, a := range s.Addrs {
		if err := h.NeighSet(neighbour(index, a, s.PodMAC)); err != nil {
			return fmt.Errorf("neighbour %s: %w", a, err)
		}
		if err := h.RouteAdd(hostRoute(index, a)); err != nil {
			return fmt.Errorf("route to %s: %w", a, err)
		}
	}
	return nil
}

func (s Spec) setPod(h *netlink.Handle) error {
	if err := loopbackUp(h); err != nil {
		return err
	}
	l, err := h.LinkByName(s.Pod)
	if err != nil {
		return err
	}
	if s.Has6() {
		if err := write(podSysctls(s.Pod)); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return err
	}
	index := l.Attrs().Index
	for i := range s.Addrs {
		if err := h.AddrAdd(l, address(s.Network(i))); err != nil {
			return fmt.Errorf("address %s: %w", s.Network(i), err)
		}
		if s.Bridge == nil {
			if err := h.NeighSet(neighbour(index, s.Gateway(i), s.HostMAC)); err != nil {
				return fmt.Errorf("neighbour %s: %w", s.Gateway(i), err)
			}
		}
		if !s.HasDefault() {
			continue
		}
		switch err := h.RouteAdd(s.podRoute(index, i)); {
		case errors.Is(err, unix.EEXIST):
			return fmt.Errorf("%w (%s)", ErrDefault, Default(s.Addrs[i]))
		case err != nil:
			return fmt.Errorf("default route by %s: %w", s.Gateway(i), err)
		}
	}
	return nil
}

// loopbackUp is for whoever runs no loopback plugin.
func loopbackUp(h *netlink.Handle) error {
	lo, err := h.LinkByName("lo")
	if err != nil || lo.Attrs().Flags&net.FlagUp != 0 {
		return err
	}
	return h.LinkSetUp(lo)
}

// Delete removes the host end, and with it the other end, the routes and the neighbours. None is no error: the kernel takes the pair
// away by itself some time after the namespace is gone.
func Delete(s Spec) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := s.find(h)
	if err != nil || l == nil {
		return err
	}
	if err := h.LinkDel(l); !missing(err) {
		return err
	}
	return nil
}

// Possible says why no veth pair can be made, or no bridge if there is to be one, as an error: a kernel without them, or a caller who may not
// (CAP_NET_ADMIN). It makes none: it asks for one with an MTU that none has, which the kernel refuses (EINVAL) only if it would have made
// another.
func Possible(bridge bool) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = Prefix+"-none", 1
	pair := netlink.NewVeth(attrs)
	pair.PeerName = attrs.Name + "2"
	links := []netlink.Link{pair}
	if bridge {
		links = append(links, &netlink.Bridge{LinkAttrs: attrs})
	}
	for _, l := range links {
		err := netlink.LinkAdd(l)
		if err == nil {
			err = netlink.LinkDel(l)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("no %s can be made: %w", l.Type(), err)
		}
	}
	return nil
}

// Exists says whether there is a host end.
func Exists(s Spec) (bool, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false, err
	}
	defer h.Close()
	l, err := s.find(h)
	return l != nil, err
}

// Hosts returns the names of all interfaces of the node that are called as host ends are.
func Hosts() (map[string]bool, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, l := range links {
		if IsHost(l.Attrs().Name) {
			names[l.Attrs().Name] = true
		}
	}
	return names, nil
}

// find returns the host end, or nil. An interface of the name that has another MAC is another container's, whose hash begins with
// the same 32 bits, or a stranger's: it is not ours to remove.
func (s Spec) find(h *netlink.Handle) (netlink.Link, error) {
	l, err := h.LinkByName(s.Host)
	switch {
	case missing(err):
		return nil, nil
	case err != nil:
		return nil, err
	case !bytes.Equal(l.Attrs().HardwareAddr, s.HostMAC):
		return nil, nil
	}
	return l, nil
}

// inside runs f in the pod's namespace, with a handle that is bound to it.
func inside(pod ns.NetNS, f func(*netlink.Handle) error) error {
	return pod.Do(func(ns.NetNS) error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return f(h)
	})
}

func missing(err error) bool {
	var not netlink.LinkNotFoundError
	return errors.As(err, &not) || errors.Is(err, unix.ENODEV)
}

// address is free of duplicate address detection, even where net.ipv6.conf.all.accept_dad asks for it: leases have no duplicates.
func address(p netip.Prefix) *netlink.Addr {
	out := &netlink.Addr{IPNet: IPNet(p)}
	if p.Addr().Is6() {
		out.Flags = unix.IFA_F_NODAD
	}
	return out
}

func neighbour(index int, a netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	family := netlink.FAMILY_V6
	if a.Is4() {
		family = netlink.FAMILY_V4
	}
	return &netlink.Neigh{LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
}

// hostRoute is of the protocol that routing daemons leave alone (ip-route(8)).
func hostRoute(index int, a netip.Addr) *netlink.Route {
	return &netlink.Route{LinkIndex: index, Dst: single(a), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC}
}

// podRoute is the default route of the i-th address's family. In routed mode it is onlink, since no route of the pod covers the gateway.
func (s Spec) podRoute(index, i int) *netlink.Route {
	r := &netlink.Route{LinkIndex: index, Dst: IPNet(Default(s.Addrs[i])), Gw: s.Gateway(i).AsSlice(), Protocol: unix.RTPROT_STATIC}
	if s.Bridge == nil {
		r.Flags = int(netlink.FLAG_ONLINK)
	}
	return r
}
