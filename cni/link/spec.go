// Package link makes, checks and removes what connects a pod to its node: a veth pair, with the pod's addresses at one end. In routed
// mode these are /32 and /128, with a default route by a gateway that no interface has, and there is a route per address on the node. In
// bridge mode the node's end is a port of a bridge (bridge.go), which is the pod's gateway. Link does not choose addresses, and knows
// nothing of configurations.
package link

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Prefix begins the name of every host end.
const Prefix = "rw"

// digits is how many of them follow.
const digits = 8

// IsHost says whether an interface of the name may be a host end.
func IsHost(name string) bool {
	hash, ours := strings.CutPrefix(name, Prefix)
	return ours && len(hash) == digits && strings.Trim(hash, "0123456789abcdef") == ""
}

// aliasMax is the longest alias that the kernel takes: IFALIASZ less the final zero.
const aliasMax = 255

// The gateways of every pod. Both are link-local, so that they cannot be anybody's address elsewhere, and are never asked for: the pod
// has a permanent neighbour entry for each.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// Spec is the connection of one pod interface.
type Spec struct {
	// Host and Pod are the names of the two ends.
	Host, Pod string
	// Alias tells an operator whose the host end is.
	Alias string
	// The MACs are chosen here and not by the kernel: each end is in the other's neighbour table for good, and udev gives a
	// new address to an interface whose address the kernel has chosen (systemd.link(5), MACAddressPolicy).
	HostMAC, PodMAC net.HardwareAddr
	// MTU is that of both ends, in bytes.
	MTU int
	// Addrs are the pod's addresses, at most one a family.
	Addrs []netip.Addr
	// Bridge is what the host end is a port of; nil in routed mode.
	Bridge *Bridge
}

// New returns what connects the interface of that name in a container. Names and MACs are a hash of the two, so that everything that
// is ever made for them can be found again without a record of it.
func New(container, ifname, alias string, mtu int, addrs []netip.Addr) Spec {
	sum := sha256.Sum256([]byte(container + "\x00" + ifname))
	return Spec{
		Host:    Prefix + hex.EncodeToString(sum[:digits/2]),
		Pod:     ifname,
		Alias:   alias[:min(len(alias), aliasMax)],
		HostMAC: mac(sum[4:10]),
		PodMAC:  mac(sum[10:16]),
		MTU:     mtu,
		Addrs:   addrs,
	}
}

// mac returns a unicast, locally administered address (IEEE 802, 8.4).
func mac(b []byte) net.HardwareAddr {
	m := net.HardwareAddr(slices.Clone(b))
	m[0] = m[0]&^1 | 2
	return m
}

// Network returns the pod's i-th address with the length of what it reaches without a gateway.
func (s Spec) Network(i int) netip.Prefix {
	a := s.Addrs[i]
	if s.Bridge != nil {
		return netip.PrefixFrom(a, s.Bridge.Gateways[i].Bits())
	}
	return netip.PrefixFrom(a, a.BitLen())
}

// Networks returns all of them.
func (s Spec) Networks() []netip.Prefix {
	var out []netip.Prefix
	for i := range s.Addrs {
		out = append(out, s.Network(i))
	}
	return out
}

// Gateway returns what the pod's default route leads by, of the family of its i-th address.
func (s Spec) Gateway(i int) netip.Addr {
	switch {
	case s.Bridge != nil:
		return s.Bridge.Gateways[i].Addr()
	case s.Addrs[i].Is4():
		return gateway4
	default:
		return gateway6
	}
}

// HasDefault says whether the pod gets a default route of each of its families.
func (s Spec) HasDefault() bool { return s.Bridge == nil || !s.Bridge.NoDefault }

// Default returns the default route's destination of the address's family.
func Default(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// IPNet returns a prefix in the form that netlink and CNI results have.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// single returns the prefix that is the address alone.
func single(a netip.Addr) *net.IPNet { return IPNet(netip.PrefixFrom(a, a.BitLen())) }

// Has4 and Has6 say whether the pod has an address of the family.
func (s Spec) Has4() bool { return slices.ContainsFunc(s.Addrs, netip.Addr.Is4) }
func (s Spec) Has6() bool { return slices.ContainsFunc(s.Addrs, netip.Addr.Is6) }
