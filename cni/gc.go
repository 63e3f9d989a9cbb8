package cni

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
)

// GC detaches whoever is not in the runtime's list of valid attachments. It goes on past errors and returns them together. The leases
// are all there is to look at, since no interface is without one. What nobody calls GC for, package collect frees.
func GC(args *skel.CmdArgs) error {
	dir, err := dataDir(args.StdinData)
	if err != nil {
		return err
	}
	valid, err := attachments(args.StdinData)
	if err != nil {
		return err
	}
	var leases []ipam.Lease
	if err := withStore(dir, func(s *ipam.Store) error { leases, err = s.List(); return err }); err != nil {
		return err
	}
	var errs []error
	for _, l := range leases {
		if valid[types.GCAttachment{ContainerID: l.Container, IfName: l.Interface}] {
			continue
		}
		if err := detach(dir, &skel.CmdArgs{ContainerID: l.Container, IfName: l.Interface}); err != nil {
			errs = append(errs, fmt.Errorf("container %s, interface %s: %w", l.Container, l.Interface, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return types.NewError(CodeKernel, "not all could be removed", err.Error())
	}
	return nil
}
