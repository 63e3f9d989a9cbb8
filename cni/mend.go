package cni

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
)

// Mend gives pods that are older than grace back what somebody has taken from their node's ends: a daemon of the distribution's that flushes
// routes it does not know, for instance. stdin is the plugin's configuration. Younger ones are those of ADDs under way. It returns how many
// things it had to make again.
func Mend(stdin []byte, grace time.Duration) (mended int, err error) {
	c, err := ParseConfig(stdin, "")
	if err != nil {
		return 0, err
	}
	var leases []ipam.Lease
	var errs []error
	if err := withStore(c.DataDir, func(s *ipam.Store) error {
		if leases, err = s.List(); err == nil && c.Bridge != nil {
			errs = append(errs, c.dropFormer(s, leases))
		}
		return err
	}); err != nil {
		return 0, err
	}
	var specs, exposed []link.Spec
	var ports []ipam.Lease
	for _, l := range leases {
		if young(l.Since, time.Now(), grace) {
			continue
		}
		s, err := c.attached(&skel.CmdArgs{ContainerID: l.Container, IfName: l.Interface}, l)
		switch {
		case errors.Is(err, errOther): // its bridge, or its gateway, is not known any more
		case err != nil:
			errs = append(errs, err)
		default:
			specs = append(specs, s)
			if l.Ports != "" {
				ports, exposed = append(ports, l), append(exposed, s)
			}
		}
	}
	mended, err = link.Mend(specs)
	opened, err2 := mendPorts(c.DataDir, ports, exposed)
	return mended + opened, errors.Join(append(errs, err, err2)...)
}

// dropFormer takes the gateways of ranges off the bridge that the node had before, and no pod has an address of any more. An ADD that needs one
// after all waits for the leases, and makes it then.
func (c Config) dropFormer(s *ipam.Store, leases []ipam.Lease) error {
	given, err := s.Given()
	if err != nil {
		return err
	}
	return c.Bridge.Drop(func(p netip.Prefix) bool {
		return slices.Contains(given, p.Masked()) &&
			!slices.ContainsFunc(slices.Concat(c.Pools...), func(r ipam.Range) bool { return gateway(r) == p }) &&
			!slices.ContainsFunc(leases, func(l ipam.Lease) bool { return slices.ContainsFunc(l.Addrs, p.Contains) })
	})
}

// young says whether the ADD that has taken a lease may be under way. Who has a lease of the future has it for longer: somebody has set the
// clock back.
func young(since, now time.Time, grace time.Duration) bool {
	age := now.Sub(since)
	return age >= 0 && age < grace
}
