package collect

import (
	"errors"
	"log/slog"
	"net/netip"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
)

// free takes an orphan away if it is one still. It has the leases meanwhile: the ADD of a new attachment that has the same names waits for
// them before it makes anything.
func free(dir string, o orphan) (freed bool, err error) {
	s, err := ipam.Open(dir)
	if err != nil {
		return false, err
	}
	var addrs []netip.Addr
	switch o.kind {
	case aLease:
		addrs, err = freeLease(s, o)
		freed = len(addrs) > 0
	case somePorts:
		freed, err = freePorts(s, o)
	}
	if err := errors.Join(err, s.Close()); err != nil || len(addrs) == 0 {
		return freed, err
	}
	if err := link.Forget(addrs); err != nil { // as for DEL, that is not a reason to try again
		slog.Warn("connections of freed addresses stay", "addresses", addrs, "err", err)
	}
	return freed, nil
}

// freeLease ends a lease when no port leads to its addresses any more.
func freeLease(s *ipam.Store, o orphan) ([]netip.Addr, error) {
	l, there, err := s.Get(o.container, o.ifname)
	if err != nil || !there || l.Since.UnixNano() != o.since {
		return nil, err
	}
	if there, err := link.Exists(link.New(o.container, o.ifname, "", 0, nil)); err != nil || there {
		return nil, err
	}
	if err := portmap.Delete(portmap.Owner{Container: o.container, Interface: o.ifname}); err != nil {
		return nil, err
	}
	return s.Release(o.container, o.ifname)
}

func freePorts(s *ipam.Store, o orphan) (bool, error) {
	l, leased, err := s.Get(o.container, o.ifname)
	if err != nil {
		return false, err
	}
	attached := false
	if !leased {
		if attached, err = link.Exists(link.New(o.container, o.ifname, "", 0, nil)); err != nil {
			return false, err
		}
	}
	if needed(l, leased, o.pod, func() bool { return attached }) {
		return false, nil
	}
	return true, portmap.DeleteTo(portmap.Owner{Container: o.container, Interface: o.ifname}, o.pod)
}
