package cni

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ropewalk-net/ropewalk/cni/bandwidth"
	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
)

// Check says what of an attachment is not as ADD has made it. The MTU is not looked at: plugins that come later may change it.
func Check(args *skel.CmdArgs) error {
	c, err := ParseConfig(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	if c.Previous == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing", "CHECK is given what ADD has returned")
	}
	pod, err := openPod(args.Netns)
	if err != nil {
		return err
	}
	defer pod.Close()
	lease, there, err := find(c.DataDir, args)
	if err != nil {
		return err
	}
	if !there {
		return withoutLease(link.New(args.ContainerID, args.IfName, "", 0, nil))
	}
	spec, err := c.attached(args, lease)
	if err != nil {
		return changed(err)
	}
	errs := []error{link.Check(pod, spec), link.Forwards(spec.Has4(), spec.Has6()), bandwidth.Check(spec, c.Bandwidth), checkPorts(args, c, spec)}
	if c.Masquerade {
		errs = append(errs, checkMasquerade(lease.Addrs))
	}
	for _, a := range lease.Addrs {
		if !includes(c.Previous, a) {
			errs = append(errs, fmt.Errorf("address %s is leased, but not in prevResult", a))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return changed(err)
	}
	return nil
}

func changed(err error) error {
	return types.NewError(CodeChanged, "the attachment is not as it was made", err.Error())
}

// withoutLease tells an attachment that never was from one whose lease was lost.
func withoutLease(spec link.Spec) error {
	switch there, err := link.Exists(spec); {
	case err != nil:
		return kernelError("looking for "+spec.Host, err)
	case there:
		return changed(errors.New("the lease is missing"))
	default:
		return types.NewError(types.ErrUnknownContainer, "there is no such attachment", "")
	}
}

func find(dir string, args *skel.CmdArgs) (lease ipam.Lease, there bool, err error) {
	err = withStore(dir, func(s *ipam.Store) error {
		lease, there, err = s.Get(args.ContainerID, args.IfName)
		return err
	})
	return lease, there, err
}
