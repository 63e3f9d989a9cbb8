package conntrack

import "net/netip"

// Services is what Stale asks about services of UDP. A nil function says no.
type Services struct {
	// Leads says whether a service has an address and port, and if so, whether packets may go from there to backend.
	Leads func(dest, backend netip.AddrPort) (known, may bool)
	// Gone says that a service had this address and port until now.
	Gone func(dest netip.AddrPort) bool
	// InServiceCIDR says that an address is from a range that only services have addresses from.
	InServiceCIDR func(netip.Addr) bool
}

// Stale reports whether a flow leads where no service does. All others are somebody else's.
//
//   - Where a service is, it must lead to one of the service's backends. That goes for a flow without DNAT, too: it is from before
//     the service was, and its packets never get to the rules. If there is no backend, no flow stays.
//   - Where a service was until now, or only services can be, it must not have been translated.
//
// kube-proxy (pkg/proxy/conntrack) lets flows of a service be that went away, or that has no endpoints: their packets go
// to a backend that is not there until another one comes.
func (s Services) Stale(f Flow) bool {
	if s.Leads != nil {
		if known, may := s.Leads(f.Dest, f.Backend); known {
			return !may
		}
	}
	return f.DNAT && (s.Gone != nil && s.Gone(f.Dest) || s.InServiceCIDR != nil && s.InServiceCIDR(f.Dest.Addr()))
}
