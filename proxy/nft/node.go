package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Node is what the rules need to know of the node they are for.
type Node struct {
	// Addresses are the node's addresses that take node ports.
	Addresses []netip.Addr
	// ClusterCIDRs and Interfaces say which connections come from the cluster's pods: by their source, or by the interface
	// they come in at ("cni0"; "veth*" for all that begin so). One that does not is from outside, unless there is nothing to tell by.
	ClusterCIDRs []netip.Prefix
	Interfaces   []string
	// ServiceCIDRs are the ranges of services' addresses. Connections to those that no service has are dropped.
	ServiceCIDRs []netip.Prefix
	// Mark is the bit of packets' marks that tells, from one hook to the next, what to masquerade. 0 means DefaultMark.
	Mark uint32
}

// DefaultMark is kube-proxy's bit, which other software knows to keep its hands off.
const DefaultMark = 0x4000

// ErrNode is wrapped by what Node's Validate returns.
var ErrNode = errors.New("invalid node")

// Validate returns nil if n is as the fields' descriptions ask.
func (n *Node) Validate() error {
	for _, a := range n.Addresses {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() {
			return fmt.Errorf("%w: address %v", ErrNode, a)
		}
	}
	for _, p := range slices.Concat(n.ClusterCIDRs, n.ServiceCIDRs) {
		if !p.IsValid() || p.Addr().Is4In6() {
			return fmt.Errorf("%w: range %v", ErrNode, p)
		}
	}
	for _, name := range n.Interfaces {
		// The kernel's limit (IFNAMSIZ); a name and its prefix are comparisons of bytes, and a prefix has at least one.
		if strings.Trim(name, "*") == "" || len(name) > unix.IFNAMSIZ-1 || strings.ContainsAny(name, "/ \x00") {
			return fmt.Errorf("%w: interface %q", ErrNode, name)
		}
	}
	if n.Mark&(n.Mark-1) != 0 {
		return fmt.Errorf("%w: mark %#x is not one bit", ErrNode, n.Mark)
	}
	return nil
}

// knowsPods reports whether connections of the cluster's pods can be told from others of a family. If they cannot, none is taken for one
// from outside: it may be a pod's.
func (n *Node) knowsPods(f family) bool {
	return len(n.Interfaces) > 0 || slices.ContainsFunc(n.ClusterCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() == (f.size == 4) })
}

func (n *Node) mark() uint32 {
	if n.Mark == 0 {
		return DefaultMark
	}
	return n.Mark
}

func (n *Node) setMark() []expr.Any { return setMark(^n.mark(), n.mark()) }

func (n Node) clone() Node {
	n.Addresses, n.Interfaces = slices.Clone(n.Addresses), slices.Clone(n.Interfaces)
	n.ClusterCIDRs, n.ServiceCIDRs = slices.Clone(n.ClusterCIDRs), slices.Clone(n.ServiceCIDRs)
	return n
}
