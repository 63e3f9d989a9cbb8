package cni

import (
	"errors"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
)

// Add attaches a pod and prints the result. On an error nothing of it is left.
func Add(args *skel.CmdArgs) error {
	c, err := ParseConfig(args.StdinData)
	if err != nil {
		return err
	}
	if err := checkPrevious(c.Previous, args.IfName); err != nil {
		return err
	}
	podName, static, err := wanted(args.Args)
	if err != nil {
		return err
	}
	static = append(static, c.Static...)
	if err := checkStatic(static, c.Ranges); err != nil {
		return err
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

	owner := ipam.Owner{Container: args.ContainerID, Interface: args.IfName, Netns: args.Netns, Pod: podName}
	lease, err := allocate(c, owner, static)
	if codeOf(err) == types.ErrIOFailure { // there may be a lease all the same, if it could not be written to the end
		return undone(err, release(c.DataDir, args))
	}
	if err != nil {
		return err
	}
	spec := link.New(args.ContainerID, args.IfName, podName, c.MTU, lease.Addrs)
	if err := link.Add(pod, spec); err != nil {
		return undone(kernelError("attaching the pod", err), release(c.DataDir, args))
	}
	if err := openPorts(args, c.Ports, lease.Addrs); err != nil {
		return undone(err, detach(c.DataDir, args))
	}
	if err := types.PrintResult(chain(c.Previous, result(c, spec, args.Netns)), c.Version); err != nil {
		// The runtime does not know of it, or not all.
		err = types.NewError(types.ErrIOFailure, "the result cannot be written", err.Error())
		return undone(err, detach(c.DataDir, args))
	}
	return nil
}

func allocate(c Config, o ipam.Owner, static []netip.Addr) (lease ipam.Lease, err error) {
	err = withStore(c.DataDir, func(s *ipam.Store) error {
		lease, err = s.Allocate(o, c.Ranges, static)
		return err
	})
	return lease, err
}

// result describes the attachment. The interfaces are the node's end and the pod's, in this order.
func result(c Config, s link.Spec, netns string) *current.Result {
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: s.Host, Mac: s.HostMAC.String(), Mtu: s.MTU},
			{Name: s.Pod, Mac: s.PodMAC.String(), Mtu: s.MTU, Sandbox: netns},
		},
		DNS: c.DNS,
	}
	for _, a := range s.Addrs {
		gateway := link.Gateway(a).AsSlice()
		r.IPs = append(r.IPs, &current.IPConfig{
			Interface: current.Int(1),
			Address:   *link.IPNet(netip.PrefixFrom(a, a.BitLen())),
			Gateway:   gateway,
		})
		r.Routes = append(r.Routes, &types.Route{Dst: *link.IPNet(link.Default(a)), GW: gateway})
	}
	return r
}
