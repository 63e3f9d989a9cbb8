package cni

import (
	"errors"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ropewalk-net/ropewalk/cni/bandwidth"
	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
)

// Add attaches a pod and prints the result. On an error nothing of it is left.
func Add(args *skel.CmdArgs) error {
	c, err := ParseConfig(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	if err := checkPrevious(c.Previous, args.IfName); err != nil {
		return err
	}
	if err := ipam.CheckStatic(c.Pools, slices.Concat(c.Static, c.Asked)); err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "the wanted addresses", err.Error())
	}
	pod, err := openPod(args.Netns)
	if err != nil {
		return err
	}
	defer pod.Close()
	switch err := link.Absent(pod, args.IfName); {
	case errors.Is(err, link.ErrExists):
		return types.NewError(CodeExists, "CNI_IFNAME: the pod has an interface "+args.IfName, "")
	case err != nil:
		return kernelError("the pod's interfaces", err)
	}

	owner := ipam.Owner{Container: args.ContainerID, Interface: args.IfName, Netns: args.Netns, Pod: podName(args.Args), MAC: c.MAC.String()}
	owner.Ports = c.notePorts()
	if c.Bridge != nil {
		owner.Bridge = c.Bridge.Name
	}
	lease, err := allocate(c, owner)
	if codeOf(err) == types.ErrIOFailure { // there may be a lease all the same, if it could not be written to the end
		return undone(err, release(c.DataDir, args))
	}
	if err != nil {
		return err
	}
	spec, err := c.spec(args, lease.Addrs)
	if err == nil {
		err = link.Add(pod, spec)
	}
	switch {
	case errors.Is(err, link.ErrTaken):
		return undone(types.NewError(CodeTaken, "attaching the pod", err.Error()), release(c.DataDir, args))
	case errors.Is(err, link.ErrDefault):
		return undone(types.NewError(types.ErrInvalidNetworkConfig, err.Error(), secondNetwork), release(c.DataDir, args))
	case err != nil:
		return undone(kernelError("attaching the pod", err), release(c.DataDir, args))
	}
	if err := bandwidth.Add(spec, c.Bandwidth); err != nil {
		return undone(kernelError("limits of the pod's bandwidth", err), detach(c.DataDir, args))
	}
	if err := openPorts(args, c, spec); err != nil {
		return undone(err, detach(c.DataDir, args))
	}
	if err := types.PrintResult(chain(c.Previous, result(c, spec, args.Netns)), c.Version); err != nil {
		// The runtime does not know of it, or not all.
		err = types.NewError(types.ErrIOFailure, "the result cannot be written", err.Error())
		return undone(err, detach(c.DataDir, args))
	}
	return nil
}

// secondNetwork is what to do where this plugin attaches a pod to a further network, as Multus has it done.
const secondNetwork = `a further network is of mode "bridge", and has "isDefaultGateway": false; mode "routed" is for the network that has the default route`

// allocate leases addresses. What a pod asks for by itself it does not get while it rests: it may have been made to get the packets of
// the pod before.
func allocate(c Config, o ipam.Owner) (lease ipam.Lease, err error) {
	err = withStore(c.DataDir, func(s *ipam.Store) error {
		for _, a := range c.Asked {
			switch rests, err := s.Rests(a); {
			case err != nil:
				return err
			case rests:
				return types.NewError(types.ErrTryAgainLater, "address "+a.String()+" was another pod's a moment ago", "")
			}
		}
		lease, err = s.Allocate(o, c.Pools, slices.Concat(c.Static, c.Asked))
		return err
	})
	return lease, err
}

// result describes the attachment. The interfaces are the bridge, if there is one, the node's end and the pod's, in this order.
func result(c Config, s link.Spec, netns string) *current.Result {
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, DNS: c.DNS}
	if s.Bridge != nil {
		r.Interfaces = append(r.Interfaces, &current.Interface{Name: s.Bridge.Name})
	}
	r.Interfaces = append(r.Interfaces,
		&current.Interface{Name: s.Host, Mac: s.HostMAC.String(), Mtu: s.MTU},
		&current.Interface{Name: s.Pod, Mac: s.PodMAC.String(), Mtu: s.MTU, Sandbox: netns})
	for i, a := range s.Addrs {
		gateway := s.Gateway(i).AsSlice()
		r.IPs = append(r.IPs, &current.IPConfig{
			Interface: current.Int(len(r.Interfaces) - 1),
			Address:   *link.IPNet(s.Network(i)),
			Gateway:   gateway,
		})
		if s.HasDefault() {
			r.Routes = append(r.Routes, &types.Route{Dst: *link.IPNet(link.Default(a)), GW: gateway})
		}
	}
	return r
}
