package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Forward has the network namespace of the calling thread forward packets of the families that there are pods of, and returns how many
// things it had to change. Others reset what it sets ("sysctl --system"), so that it is to be called again and again.
func Forward(pods []netip.Prefix) (changes int, err error) {
	c := &changer{}
	has := func(is4 bool) bool {
		return slices.ContainsFunc(pods, func(p netip.Prefix) bool { return p.Addr().Is4() == is4 })
	}
	if has(true) {
		c.forwarding("ipv4/ip_forward", func() {})
	}
	if has(false) {
		c.forwarding("ipv6/conf/all/forwarding", c.keepAdvertised)
	}
	return c.changes, c.err()
}

// forwarding turns a sysctl on if it is off. Writing what it is already would reset others (kernel doc: ip-sysctl).
func (c *changer) forwarding(name string, before func()) {
	value, err := os.ReadFile("/proc/sys/net/" + name)
	if errors.Is(err, os.ErrNotExist) {
		err = errors.New("the kernel does without that family, and the node has pods of it")
	}
	if !c.ok(name, err) || strings.TrimSpace(string(value)) != "0" {
		return
	}
	before()
	c.do(name, func() error { return sysctl(name, "1") })
}

// keepAdvertised has links go on to listen to routers (RFC 4861) that have addresses or routes from them: where a host forwards, the kernel
// stops to, and forgets its default route, unless accept_ra is 2. Others are left alone: what a pod advertises must not be believed.
func (c *changer) keepAdvertised() {
	routes, err := list(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	})
	c.ok("routes of routers", err)
	addrs, err := list(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V6) })
	c.ok("addresses", err)
	links := map[int]bool{}
	for _, r := range routes {
		links[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			links[hop.LinkIndex] = true
		}
	}
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_PERMANENT == 0 && a.Scope == unix.RT_SCOPE_UNIVERSE {
			links[a.LinkIndex] = true
		}
	}
	for index := range links {
		link, err := netlink.LinkByIndex(index)
		if err != nil { // the index 0 of routes of several hops, or a link that is gone
			continue
		}
		name := fmt.Sprintf("ipv6/conf/%s/accept_ra", link.Attrs().Name)
		if value, err := os.ReadFile("/proc/sys/net/" + name); err == nil && strings.TrimSpace(string(value)) == "1" {
			c.do(name, func() error { return sysctl(name, "2") })
		}
	}
}

// Loosen has the links that have one of these addresses, the node's own and its tunnel's, take packets that do not come by the way that replies
// go, and returns how many things it had to change. What pods send to another node itself comes without the tunnel, and the replies go by
// it: a strict rp_filter would drop them (RFC 3704; some distributions ask for one). What is off stays off, and IPv6 knows no such thing.
func Loosen(of []netip.Addr) (changes int, err error) {
	c := &changer{}
	addrs, err := list(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	c.ok("addresses", err)
	for _, have := range addrs {
		a, _ := netip.AddrFromSlice(have.IP)
		if !slices.Contains(of, a.Unmap()) {
			continue
		}
		link, err := netlink.LinkByIndex(have.LinkIndex)
		if err != nil { // it is gone
			continue
		}
		name := "ipv4/conf/" + link.Attrs().Name + "/rp_filter"
		if largest(name, "ipv4/conf/all/rp_filter") == "1" { // the larger of the two counts
			c.do(name, func() error { return sysctl(name, "2") })
		}
	}
	return c.changes, c.err()
}

// largest returns the largest value of sysctls, each of one digit.
func largest(names ...string) (most string) {
	for _, n := range names {
		if value, err := os.ReadFile("/proc/sys/net/" + n); err == nil {
			most = max(most, strings.TrimSpace(string(value)))
		}
	}
	return most
}
