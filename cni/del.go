package cni

import (
	"errors"
	"log/slog"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/ropewalk-net/ropewalk/cni/bandwidth"
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

// detach removes the ports and the interface, and then the lease, so that nothing leads to an address that is free. If one fails the lease
// stays, for the next DEL or GC. An interface takes the kernel long, as it waits until no packet looks at it any more: the ports, and the
// interface by which the pod was limited, go meanwhile.
func detach(dir string, args *skel.CmdArgs) error {
	spec := link.New(args.ContainerID, args.IfName, "", 0, nil)
	closed, limits := make(chan error, 1), make(chan error, 1)
	go func() { closed <- closePorts(args) }()
	go func() { limits <- bandwidth.Delete(spec) }()
	err := link.Delete(spec)
	ports, err := <-closed, errors.Join(err, <-limits)
	if err != nil {
		return undone(kernelError("removing interface "+spec.Host, err), ports)
	}
	if ports != nil {
		return ports
	}
	return release(dir, args)
}

// release ends the lease. What connection tracking knows of its addresses goes too, and if it does not, that is not a reason to try again:
// an address rests before it is given out, longer than an entry of UDP lives.
func release(dir string, args *skel.CmdArgs) error {
	var freed []netip.Addr
	err := withStore(dir, func(s *ipam.Store) (err error) {
		if l, leased, err := s.Get(args.ContainerID, args.IfName); err == nil && leased && l.Ports != "" {
			if err := closePorts(args); err != nil { // which mendPorts may have opened again
				return err
			}
		}
		freed, err = s.Release(args.ContainerID, args.IfName)
		return err
	})
	if len(freed) > 0 {
		if err := link.Forget(freed); err != nil {
			slog.Warn("connections of freed addresses stay", "addresses", freed, "err", err)
		}
	}
	return err
}
