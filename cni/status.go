package cni

import (
	"errors"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/limited"
	"github.com/ropewalk-net/ropewalk/cni/link"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
)

// Status says why an ADD could not succeed, or why pods that are there are not reached. The runtime asks every few seconds, and while there is
// an error the node is not ready: it changes nothing, and says nothing that may pass by itself.
func Status(args *skel.CmdArgs) error {
	c, err := ParseConfig(args.StdinData, args.Args)
	if err != nil {
		return unavailable(err)
	}
	var has4, has6 bool
	for _, p := range c.Pools {
		is4 := p[0].Subnet.Addr().Is4()
		has4, has6 = has4 || is4, has6 || !is4
	}
	if has6 && !link.HasIPv6() {
		return types.NewError(codeUnavailable, "the kernel has no IPv6", "take the range out of ranges, or the kernel's ipv6.disable=1 off its command line")
	}
	if err := link.Possible(c.Bridge != nil); err != nil {
		return types.NewError(codeUnavailable, "pods cannot be attached", err.Error())
	}
	if c.TakesPorts {
		if err := portmap.Possible(); err != nil {
			return types.NewError(codeUnavailable, "ports of the node cannot lead to pods", err.Error())
		}
	}
	leases, err := leasesIfFree(c.DataDir)
	if err != nil {
		return unavailable(err)
	}
	for _, p := range c.Pools {
		if p.Full(leases) {
			return types.NewError(codeUnavailable, "range "+p.String()+" has no address left", "")
		}
	}
	if err := link.Forwards(has4, has6); err != nil && len(leases) > 0 { // the first ADD turns it on
		return types.NewError(codeLimited, "pods are not reached", err.Error())
	}
	switch missing, err := limited.Read(c.DataDir); {
	case err != nil:
		return unavailable(types.NewError(types.ErrIOFailure, "what is missing of the network cannot be read", err.Error()))
	case missing != "":
		return types.NewError(codeLimited, "ropewalk routes cannot make all of the node's network", missing)
	}
	return nil
}

// momentarily is how long STATUS waits for ADDs and DELs. That they have the leases is no reason for a node to be not ready.
const momentarily = time.Second

// leasesIfFree returns all leases, or none if others have them.
func leasesIfFree(dir string) ([]ipam.Lease, error) {
	s, err := ipam.OpenWithin(dir, momentarily)
	if errors.Is(err, ipam.ErrBusy) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	leases, err := s.List()
	return leases, errors.Join(err, s.Close())
}

func unavailable(err error) error {
	return types.NewError(codeUnavailable, "pods cannot be attached", err.Error())
}
