package portmap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forget deletes the UDP flows that conntrack would go on with as before: those that were led to a pod by a mapping that is gone,
// and those to a port of the node itself that is a pod's from now on. A client that keeps sending from one port would never notice else.
func forget(begun, gone []Entry) error {
	var errs []error
	for i, f := range families {
		m := flows{gone: map[flow]bool{}, begun: map[netip.AddrPort]bool{}}
		for _, e := range gone {
			if e.Protocol == UDP && e.Pod.Is4() == f.is4() {
				m.gone[flow{e.HostPort, netip.AddrPortFrom(e.Pod, e.ContainerPort)}] = true
			}
		}
		for _, e := range begun {
			if e.Protocol == UDP && e.Pod.Is4() == f.is4() {
				m.begun[netip.AddrPortFrom(e.HostIP, e.HostPort)] = true
			}
		}
		if len(m.gone)+len(m.begun) == 0 {
			continue
		}
		var err error
		if m.own, err = addresses(); err != nil {
			return err
		}
		for range attempts {
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, []netlink.InetFamily{unix.AF_INET, unix.AF_INET6}[i], m)
			if !errors.Is(err, netlink.ErrDumpInterrupted) {
				break
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("deleting UDP flows: %w", err))
		}
	}
	return errors.Join(errs...)
}

// flow is the node's port, and where it led.
type flow struct {
	hostPort uint16
	pod      netip.AddrPort
}

type flows struct {
	gone  map[flow]bool
	begun map[netip.AddrPort]bool // with no address for all
	own   map[netip.Addr]bool     // the node's addresses
}

// MatchConntrackFlow is for netlink.
func (m flows) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	if c.Forward.Protocol != uint8(UDP) {
		return false
	}
	to, from := addr(c.Forward.DstIP), addr(c.Reverse.SrcIP)
	if m.gone[flow{c.Forward.DstPort, netip.AddrPortFrom(from, c.Reverse.SrcPort)}] {
		return true
	}
	return to == from && m.own[to] &&
		(m.begun[netip.AddrPortFrom(to, c.Forward.DstPort)] || m.begun[netip.AddrPortFrom(netip.Addr{}, c.Forward.DstPort)])
}

func addresses() (map[netip.Addr]bool, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("the node's addresses: %w", err)
	}
	own := map[netip.Addr]bool{}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			own[addr(n.IP)] = true
		}
	}
	return own, nil
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
