package cleanup

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ipvsServers removes the link that kube-proxy's IPVS mode has services' addresses on, and the virtual servers at these.
func ipvsServers(context.Context) (removed []string, err error) {
	link, err := netlink.LinkByName("kube-ipvs0")
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("kube-ipvs0: %w", err)
	}
	list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresses of kube-ipvs0: %w", err)
	}
	addrs := map[netip.Addr]bool{}
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			addrs[addr.Unmap()] = true
		}
	}
	// The servers go first: without the link, nobody would know whose they are.
	if removed, err = removeServers(addrs); err != nil {
		return removed, err
	}
	if err := netlink.LinkDel(link); err != nil {
		return removed, fmt.Errorf("removing kube-ipvs0: %w", err)
	}
	return append(removed, "link kube-ipvs0"), nil
}

// removeServers removes IPVS virtual servers by their addresses.
func removeServers(addrs map[netip.Addr]bool) (removed []string, err error) {
	if _, err := netlink.GenlFamilyGet("IPVS"); errors.Is(err, unix.ENOENT) { // then there are none
		return nil, nil
	}
	h, err := ipvs.New("")
	if err != nil {
		return nil, fmt.Errorf("IPVS: %w", err)
	}
	defer h.Close()
	servers, err := h.GetServices()
	if err != nil {
		return nil, fmt.Errorf("listing IPVS virtual servers: %w", err)
	}
	for _, s := range servers {
		addr, ok := netip.AddrFromSlice(s.Address)
		if addr = addr.Unmap(); !ok || s.FWMark != 0 || !addrs[addr] {
			continue
		}
		if err := h.DelService(s); err != nil {
			return removed, fmt.Errorf("removing IPVS virtual server %s: %w", netip.AddrPortFrom(addr, s.Port), err)
		}
		removed = append(removed, fmt.Sprintf("IPVS virtual server %s, protocol %d", netip.AddrPortFrom(addr, s.Port), s.Protocol))
	}
	return removed, nil
}

// ipsets removes the ip sets of kube-proxy's IPVS mode, by the names of pkg/proxy/ipvs/ipset.go.
func ipsets(context.Context) (removed []string, err error) {
	for _, prefix := range []string{"KUBE-", "KUBE-6-"} {
		for _, name := range []string{
			"LOOP-BACK", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "LOAD-BALANCER", "LOAD-BALANCER-LOCAL", "LOAD-BALANCER-FW",
			"LOAD-BALANCER-SOURCE-IP", "LOAD-BALANCER-SOURCE-CIDR", "NODE-PORT-TCP", "NODE-PORT-LOCAL-TCP", "NODE-PORT-UDP",
			"NODE-PORT-LOCAL-UDP", "NODE-PORT-SCTP-HASH", "NODE-PORT-LOCAL-SCTP-HASH", "HEALTH-CHECK-NODE-PORT", "IPVS-IPS",
		} {
			name = prefix + name
			name = name[:min(len(name), 31)] // as much as the kernel takes
			failed := destroySet(name)
			switch {
			case failed == nil:
				removed = append(removed, "ip set "+name)
			case absent(failed):
				return removed, err // the kernel has no ip sets
			case !errors.Is(failed, unix.ENOENT):
				err = errors.Join(err, fmt.Errorf("removing ip set %s: %w", name, failed))
			}
		}
	}
	return removed, err
}

// destroySet removes an ip set. The library's function for it does not say whether there was one.
func destroySet(name string) error {
	req := nl.NewNetlinkRequest(nl.IPSET_CMD_DESTROY|unix.NFNL_SUBSYS_IPSET<<8, unix.NLM_F_ACK|unix.NLM_F_EXCL)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errno := syscall.Errno(0); errors.As(err, &errno) && errno >= nl.IPSET_ERR_PRIVATE {
		return nl.IPSetError(errno)
	}
	return err
}
