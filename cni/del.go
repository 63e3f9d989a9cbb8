package cni

import (
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
)

// Del detaches a pod. What is not there is no error, and the pod's namespace is not needed: the names and the lease follow from
// the container's id and the interface's name.
func Del(args *skel.CmdArgs) error {
	dir, err := dataDir(args.StdinData)
	if err != nil {
		return err
	}
	return detach(dir, args)
}

// detach removes the interface and then the lease, so that an address that is free has no route. If the first fails the lease stays,
// for the next DEL or GC.
func detach(dir string, args *skel.CmdArgs) error {
	spec := link.New(args.ContainerID, args.IfName, "", 0, nil)
	if err := link.Delete(spec); err != nil {
		return kernelError("removing interface "+spec.Host, err)
	}
	return release(dir, args)
}

func release(dir string, args *skel.CmdArgs) error {
	return withStore(dir, func(s *ipam.Store) error {
		_, err := s.Release(args.ContainerID, args.IfName)
		return err
	})
}
