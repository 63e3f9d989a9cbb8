package link

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/pkg/utils"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Bridge is the node's end of a network of Ethernet that its pods are on, and how a pod is on it.
type Bridge struct {
	// Name is that of the device, which is made with the first pod and stays after the last.
	Name string
	// Gateways are the device's own addresses, with the lengths of their networks: one for each of the pod's, in their order.
	Gateways []netip.Prefix
	// Hairpin lets a pod get back what it has sent, as when it speaks to a service that has led it to itself.
	Hairpin bool
	// SpoofCheck drops what a pod sends from another hardware address than its own. The kernel has it since Linux 5.18.
	SpoofCheck bool
	// NoDefault leaves a pod without a default route: it has one by another interface, and this one is for what is on the bridge.
	NoDefault bool
}

// CheckBridgeName returns why a bridge of ours cannot have a name.
func CheckBridgeName(name string) error {
	if err := utils.ValidateInterfaceName(name); err != nil {
		return errors.New("a name has 15 characters at most, and no slashes, colons or spaces")
	}
	if name == "all" || name == "default" || IsHost(name) { // below /proc/sys/net, and ours
		return errors.New("that name has another meaning")
	}
	return nil
}

// ensure returns the device as it is to be. ADDs of several pods may do this at the same time.
func (b *Bridge) ensure(h *netlink.Handle) (netlink.Link, error) {
	l, err := h.LinkByName(b.Name)
	if missing(err) {
		if err := h.LinkAdd(b.device()); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, err
		}
		l, err = h.LinkByName(b.Name)
	}
	switch {
	case err != nil:
		return nil, err
	case l.Type() != "bridge":
		return nil, fmt.Errorf("there is a %s of that name", l.Type())
	}
	if l.Attrs().Flags&net.FlagUp == 0 { // nobody has got to the end of this yet
		if err := write(b.sysctls(HasIPv6())); err != nil {
			return nil, err
		}
		if err := filtered(l.Attrs().Index); err != nil {
			return nil, err
		}
	}
	for _, g := range b.Gateways {
		if err := h.AddrAdd(l, address(g)); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("address %s: %w", g, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		return l, h.LinkSetUp(l)
	}
	return l, nil
}

// device is a bridge whose hardware address is its own, and for good: the kernel would take that of a port, and pods would have to ask
// for their gateway's anew as ports come and go. One that somebody has deleted gets the same again, which pods know; no other node's has it.
func (b *Bridge) device() netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = b.Name, b.mac()
	return &netlink.Bridge{LinkAttrs: attrs}
}

// mac is of the name and of the boot: a bridge lives no longer.
func (b *Bridge) mac() net.HardwareAddr {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	sum := sha256.Sum256(append([]byte(b.Name), boot...))
	return mac(sum[:6])
}

// Drop takes addresses off the device that are former: those of ranges that the node does not have any more, which keep packets from who has
// them now. A device that was not made here is left alone.
func (b *Bridge) Drop(former func(netip.Prefix) bool) error {
	l, err := netlink.LinkByName(b.Name)
	switch {
	case missing(err):
		return nil
	case err != nil:
		return err
	case l.Type() != "bridge" || !bytes.Equal(l.Attrs().HardwareAddr, b.mac()):
		return nil
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
	errs := []error{err}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.IPNet.String()); err == nil && former(p) {
			errs = append(errs, netlink.AddrDel(l, &a))
		}
	}
	return errors.Join(errs...)
}

func (b *Bridge) sysctls(ipv6 bool) []sysctl {
	out := []sysctl{
		{"ipv4/conf/" + b.Name + "/forwarding", "1"},
		{"ipv4/conf/" + b.Name + "/rp_filter", "1"},
	}
	if ipv6 {
		out = append(out,
			sysctl{"ipv6/conf/" + b.Name + "/disable_ipv6", "0"},
			sysctl{"ipv6/conf/" + b.Name + "/accept_dad", "0"},
			sysctl{"ipv6/conf/" + b.Name + "/accept_ra", "0"},
		)
	}
	return out
}

// portSysctls keep the node's IP off a port: it has the bridge.
func portSysctls(name string, ipv6 bool) []sysctl {
	if !ipv6 {
		return nil
	}
	return []sysctl{{"ipv6/conf/" + name + "/disable_ipv6", "1"}}
}

// filtered has packets from one pod to another pass through the rules of services, too, if the kernel has br_netfilter: a pod that speaks
// to a service would get the answer from the pod behind it otherwise, of which it knows nothing.
func filtered(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IPTABLES, nl.Uint8Attr(1))
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IP6TABLES, nl.Uint8Attr(1))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// flags are what a port is to have set, by its attribute (include/uapi/linux/if_link.h). A port that is locked takes packets only from those
// hardware addresses that the bridge knows to be there, and learns none.
func (b *Bridge) flags() map[int]bool {
	return map[int]bool{
		nl.IFLA_BRPORT_MODE:     b.Hairpin,
		nl.IFLA_BRPORT_LEARNING: !b.SpoofCheck,
		nl.IFLA_BRPORT_LOCKED:   b.SpoofCheck,
	}
}

// plug sets how a port is, and where the pod is.
func (b *Bridge) plug(h *netlink.Handle, port int, pod net.HardwareAddr) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(port)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for attr, on := range b.flags() {
		if attr == nl.IFLA_BRPORT_LOCKED && !on {
			continue // which older kernels do not know
		}
		info.AddRtAttr(attr, boolAttr(on))
	}
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("port of %s: %w", b.Name, err)
	}
	if b.SpoofCheck { // which a kernel that does not know it is silent about
		have, err := portFlags(port)
		if err == nil && !have[nl.IFLA_BRPORT_LOCKED] {
			err = errors.New("the kernel cannot check hardware addresses: it needs Linux 5.18")
		}
		if err != nil {
			return fmt.Errorf("port of %s: %w", b.Name, err)
		}
	}
	// Sticky: what is sent from that address elsewhere does not move it there.
	switch err := h.NeighAdd(forwarding(port, pod)); {
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w on %s: %s", ErrTaken, b.Name, pod)
	case err != nil:
		return fmt.Errorf("hardware address %s on %s: %w", pod, b.Name, err)
	}
	return nil
}

func boolAttr(on bool) []byte {
	if on {
		return nl.Uint8Attr(1)
	}
	return nl.Uint8Attr(0)
}

// ntfSticky is NTF_STICKY (include/uapi/linux/neighbour.h), which the library has no name for.
const ntfSticky = 1 << 6

// forwarding is a bridge's entry for a pod: it does not age.
func forwarding(port int, pod net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: port, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER | ntfSticky, State: netlink.NUD_NOARP, HardwareAddr: pod}
}

// check returns what is wrong with the device, or with the port that a host end is to be.
func (b *Bridge) check(h *netlink.Handle, port netlink.Link, pod net.HardwareAddr) error {
	l, err := h.LinkByName(b.Name)
	switch {
	case missing(err):
		return fmt.Errorf("bridge %s is missing", b.Name)
	case err != nil:
		return err
	case l.Type() != "bridge":
		return fmt.Errorf("%s is a %s, not a bridge", b.Name, l.Type())
	}
	var errs []error
	if l.Attrs().Flags&net.FlagUp == 0 {
		errs = append(errs, fmt.Errorf("bridge %s is down", b.Name))
	}
	if err := checkAddresses(h, l, b.Gateways); err != nil {
		errs = append(errs, fmt.Errorf("bridge %s: %w", b.Name, err))
	}
	if port.Attrs().MasterIndex != l.Attrs().Index {
		return errors.Join(append(errs, fmt.Errorf("it is no port of %s", b.Name))...)
	}
	return errors.Join(append(errs, b.checkPort(h, l.Attrs().Index, port.Attrs().Index, pod))...)
}

func (b *Bridge) checkPort(h *netlink.Handle, bridge, port int, pod net.HardwareAddr) error {
	have, err := portFlags(port)
	if err != nil {
		return err
	}
	var errs []error
	names := map[int]string{nl.IFLA_BRPORT_MODE: "hairpin", nl.IFLA_BRPORT_LEARNING: "learning", nl.IFLA_BRPORT_LOCKED: "locked"}
	for attr, on := range b.flags() {
		if have[attr] != on {
			errs = append(errs, fmt.Errorf("as a port of %s it has %s %v, not %v", b.Name, names[attr], have[attr], on))
		}
	}
	entries, err := whole(func() ([]netlink.Neigh, error) { return h.NeighList(port, unix.AF_BRIDGE) })
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, e := range entries {
		if e.HardwareAddr.String() == pod.String() && e.MasterIndex == bridge && e.State&netlink.NUD_NOARP != 0 {
			return errors.Join(errs...)
		}
	}
	return errors.Join(append(errs, fmt.Errorf("%s does not know that %s is there", b.Name, pod))...)
}

// portFlags returns what of the flags a port has set.
func portFlags(port int) (map[int]bool, error) {
	dump, err := whole(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	})
	if err != nil {
		return nil, err
	}
	out := map[int]bool{}
	for _, m := range dump {
		if len(m) < unix.SizeofIfInfomsg || int(nl.DeserializeIfInfomsg(m).Index) != port {
			continue
		}
		info := attr(m[unix.SizeofIfInfomsg:], unix.IFLA_PROTINFO)
		for _, f := range []int{nl.IFLA_BRPORT_MODE, nl.IFLA_BRPORT_LEARNING, nl.IFLA_BRPORT_LOCKED} {
			if v := attr(info, f); len(v) == 1 && v[0] != 0 {
				out[f] = true
			}
		}
	}
	return out, nil
}
