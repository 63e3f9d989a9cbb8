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
		}
	}
	mended, err = link.Mend(specs)
	return mended, errors.Join(append(errs, err)...)
}

// young says whether the ADD that has taken a lease may be under way. Who has a lease of the future has it for longer: somebody has set the
// clock back.
func young(since, now time.Time, grace time.Duration) bool {
	age := now.Sub(since)
	return age >= 0 && age < grace
}
