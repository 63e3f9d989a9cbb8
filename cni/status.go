package cni

import (
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
)

// Status says why an ADD could not succeed, or why pods that are there are not reached.
func Status(args *skel.CmdArgs) error {
	c, err := ParseConfig(args.StdinData)
	if err != nil {
		return unavailable(err)
	}
	var has4, has6 bool
	for _, r := range c.Ranges {
		has4, has6 = has4 || r.Addr().Is4(), has6 || r.Addr().Is6()
	}
	if has6 && !link.HasIPv6() {
		return types.NewError(codeUnavailable, "the kernel has no IPv6", "take the range out of ranges, or the kernel's ipv6.disable=1 off its command line")
	}
	var leases []ipam.Lease
	if err := withStore(c.DataDir, func(s *ipam.Store) error { leases, err = s.List(); return err }); err != nil {
		return unavailable(err)
	}
	for _, r := range c.Ranges {
		if full(r, leases) {
			return types.NewError(codeUnavailable, "range "+r.String()+" has no address left", "")
		}
	}
	if err := link.Forwards(has4, has6); err != nil && len(leases) > 0 { // the first ADD turns it on
		return types.NewError(codeLimited, "pods are not reached", err.Error())
	}
	return nil
}

// unavailable keeps a code that tells more.
func unavailable(err error) error {
	if codeOf(err) == types.ErrTryAgainLater {
		return err
	}
	return types.NewError(codeUnavailable, "pods cannot be attached", err.Error())
}

// full says whether every address of a range that a pod may have is leased.
func full(r netip.Prefix, leases []ipam.Lease) bool {
	room := ipam.Capacity(r)
	for _, l := range leases {
		for _, a := range l.Addrs {
			if r.Contains(a) {
				room--
			}
		}
	}
	return room <= 0
}
