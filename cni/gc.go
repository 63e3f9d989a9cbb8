package cni

import (
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ropewalk-net/ropewalk/cni/bandwidth"
	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
)

// grace is how old a lease is at least that a GC without a list frees. It is for an ADD that is under way: a minute is long.
const grace = time.Minute

// GC detaches whoever is not in the runtime's list of valid attachments. It goes on past errors and returns them together. The leases
// are all there is to look at, since no interface is without one. Without a list, as cnitool calls it, only what is certainly dead goes:
// whose interface on the node the kernel has taken away with the pod's namespace. What nobody calls GC for, package collect frees.
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
	var there map[string]bool
	if valid == nil {
		if there, err = link.Hosts(); err != nil {
			return kernelError("listing interfaces", err)
		}
	}
	var errs []error
	for _, l := range leases {
		if valid[types.GCAttachment{ContainerID: l.Container, IfName: l.Interface}] ||
			valid == nil && (time.Since(l.Since) < grace || there[link.New(l.Container, l.Interface, "", 0, nil).Host]) {
			continue
		}
		if err := detach(dir, &skel.CmdArgs{ContainerID: l.Container, IfName: l.Interface}); err != nil {
			errs = append(errs, fmt.Errorf("container %s, interface %s: %w", l.Container, l.Interface, err))
		}
	}
	if _, err := bandwidth.Collect(); err != nil { // of pods whose lease is gone
		errs = append(errs, fmt.Errorf("limits of bandwidth of pods that are gone: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return types.NewError(CodeKernel, "not all could be removed", err.Error())
	}
	return nil
}
