package cni

import (
	"errors"
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
	if err := withStore(c.DataDir, func(s *ipam.Store) error { leases, err = s.List(); return err }); err != nil {
		return 0, err
	}
	var specs []link.Spec
	var errs []error
	for _, l := range leases {
		if time.Since(l.Since) < grace {
			continue
		}
		one := c
		if l.Bridge == "" {
			one.Bridge = nil
		} else if c.Bridge == nil || c.Bridge.Name != l.Bridge {
			continue // the mode was changed since, and how pods were on that bridge is not known any more
		}
		if l.MAC != "" {
			if one.MAC, err = parseMAC(l.MAC); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		s, err := one.spec(&skel.CmdArgs{ContainerID: l.Container, IfName: l.Interface}, l.Addrs)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		specs = append(specs, s)
	}
	mended, err = link.Mend(specs)
	return mended, errors.Join(append(errs, err)...)
}
