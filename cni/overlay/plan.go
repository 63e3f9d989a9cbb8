// Package overlay leads packets for the pods of other nodes to these nodes: what flannel's backends host-gw and vxlan do.
//
// plan.go decides, from what the cluster says of its nodes, which routes, neighbours and forwarding entries there are to be, and planner.go what
// of it a change changes; keeper.go and kernel.go make the kernel have them, and nothing else that is ours; watch.go hears what others do to it.
package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Mode is how packets get to another node.
type Mode uint8

const (
	// Direct has a route by way of the other node's own address. All nodes are neighbours on one link.
	Direct Mode = iota
	// VXLAN packs packets into UDP between nodes (RFC 7348).
	VXLAN
	// Cloud leaves the routes to somebody else, who knows the podCIDRs, too.
	Cloud
)

// Modes are the names of modes in configurations.
var Modes = map[string]Mode{"direct": Direct, "vxlan": VXLAN, "cloud": Cloud}

// Node is what is known of a node.
type Node struct {
	Name     string
	PodCIDRs []netip.Prefix
	Addrs    []netip.Addr // its own, in the order of its Node object; the first of a family counts
	Created  time.Time    // when the API server has made the object; the zero Time if that is not known
}

// Equal reports whether two nodes are the same.
func (n Node) Equal(o Node) bool {
	return n.Name == o.Name && slices.Equal(n.PodCIDRs, o.PodCIDRs) && slices.Equal(n.Addrs, o.Addrs) && n.Created.Equal(o.Created)
}

// first returns those of a node's addresses that count, by which it is reached.
func (n Node) first() []netip.Addr {
	var out []netip.Addr
	for _, is4 := range []bool{true, false} {
		if a, ok := n.addr(is4); ok {
			out = append(out, a)
		}
	}
	return out
}

// before reports whether what two nodes both claim is the first one's.
func (n Node) before(o Node) int {
	return cmp.Or(n.Created.Compare(o.Created), cmp.Compare(n.Name, o.Name))
}

// addr returns a node's own address of a family.
func (n Node) addr(is4 bool) (netip.Addr, bool) {
	i := slices.IndexFunc(n.Addrs, func(a netip.Addr) bool { return a.Is4() == is4 })
	if i < 0 {
		return netip.Addr{}, false
	}
	return n.Addrs[i], true
}

// Route leads packets for Dst to Via, through the tunnel or by the link that Via is on.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr
	Tunnel bool
}

// MAC is a hardware address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// linkLocal returns the address that a link with that hardware address has by itself (RFC 4291, appendix A). IPv6 takes no gateway that
// another route leads to, be it the one that is to be replaced; these lead nowhere but to their link.
func (m MAC) linkLocal() netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// Tunnel is the tunnel's device and what it knows.
type Tunnel struct {
	Local netip.Addr // this node's end
	MAC   MAC
	Addrs []netip.Addr // what the node itself is known by to pods of other nodes
	// Neighbors are the other ends by the address that routes name.
	Neighbors map[netip.Addr]MAC
	// Forward is where the other ends are, by their hardware addresses.
	Forward map[MAC]netip.Addr
}

// Plan is what the kernel is to have. Two that are equal mean the same.
type Plan struct {
	Routes map[netip.Prefix]Route
	Tunnel *Tunnel // nil if there is none
	near   bool    // it depends on what links lead to
}

// ErrNode is wrapped by what is wrong with a node.
var ErrNode = errors.New("node")

// Make returns what self is to have for others, and what is wrong with some of these, which are left out. direct says of an address
// whether it is on a link of this node's, so that no tunnel is needed; nil means no for all. In the mode Direct nil means yes for all, and nodes that are on
// no link are left out.
//
// A Node's podCIDRs are the controller manager's word, and nobody can change them any more; its addresses are what its kubelet says, and it may say what
// it likes (NodeRestriction). So a node is left out whose address is in a range of pods, its own or another's, and others lose nothing by it. Of
// ranges that overlap the node keeps its own that was there first, by the API server's clock and then by name: its kubelet may have written the podCIDRs
// of a node that is new. This node's own come before all, and no range is another's that has this node's address in it.
func Make(mode Mode, self Node, others []Node, direct func(netip.Addr) bool) (Plan, error) {
	return new(Planner).Make(mode, self, others, direct)
}

// lead adds what leads to a range of a node's pods to a plan.
func (x *Planner) lead(p *Plan, n Node, pods netip.Prefix) error {
	mode, direct := x.mode, x.direct
	next, ok := n.addr(pods.Addr().Is4())
	if mode == Direct || ok && direct != nil && direct(next) {
		if !ok {
			return errors.New("it has no address of that family")
		}
		if err := x.reachable(next); err != nil {
			return err
		}
		if direct != nil && !direct(next) {
			return fmt.Errorf("its address %s is on no link of this node's", next)
		}
		p.Routes[pods] = Route{Dst: pods, Via: next}
		return nil
	}
	end, ok := n.addr(p.Tunnel.Local.Is4())
	if !ok {
		return errors.New("it has no address of the family that the tunnel is of")
	}
	if err := x.reachable(end); err != nil {
		return err
	}
	mac := macOf(n.Name)
	if other, ok := p.Tunnel.Forward[mac]; mac == p.Tunnel.MAC || ok && other != end {
		return fmt.Errorf("its hardware address %s is another's", mac)
	}
	via := pods.Addr()
	if !via.Is4() {
		via = mac.linkLocal()
	}
	p.Routes[pods] = Route{Dst: pods, Via: via, Tunnel: true}
	p.Tunnel.Neighbors[via], p.Tunnel.Forward[mac] = mac, end
	return nil
}

// reachable returns why packets from this node do not get to another by that address. A node may say of itself what it likes, and what the kernel
// refuses of it would be an error for all others. One that has an address of this one's, such as its object of a former name, would lead packets back here.
func (x *Planner) reachable(a netip.Addr) error {
	switch {
	case slices.Contains(x.self.Addrs, a):
		return fmt.Errorf("its address %s is this node's", a)
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.Is4In6(), a.Is6() && a.IsLinkLocalUnicast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("its address %s is none that leads to a node", a)
	}
	if pods, ok := x.taken.of(a); ok {
		return fmt.Errorf("its address %s is a pod's, of %s", a, pods)
	}
	return nil
}

// macOf returns the hardware address of a node's end of the tunnel. It follows from the name, so that nobody has to tell it. The bits say
// that it is one host's, and not a manufacturer's.
func macOf(name string) MAC {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	var m MAC
	copy(m[:], h.Sum(nil))
	m[0] = m[0]&^1 | 2
	return m
}
