package conntrack

import (
	"net/netip"
	"slices"
	"testing"
)

func TestStale(t *testing.T) {
	addr := netip.MustParseAddrPort
	backends := map[netip.AddrPort][]netip.AddrPort{
		addr("10.96.0.10:53"):    {addr("10.244.0.5:5353"), addr("10.244.1.5:5353")},
		addr("10.96.0.11:53"):    nil, // a service that leads nowhere
		addr("[fd00:96::10]:53"): {addr("[fd00:244::5]:5353")},
		addr("192.0.2.1:30053"):  {addr("10.244.0.5:5353")}, // a node port
	}
	s := Services{
		Leads: func(dest, backend netip.AddrPort) (bool, bool) {
			list, known := backends[dest]
			return known, slices.Contains(list, backend)
		},
		Gone: func(dest netip.AddrPort) bool {
			return dest == addr("192.0.2.1:30054") || dest == addr("10.96.0.10:53")
		},
		InServiceCIDR: netip.MustParsePrefix("10.96.0.0/16").Contains,
	}
	for _, tt := range []struct {
		name, dest, backend string
		dnat                bool
		stale               bool
	}{
		{"a backend of the service", "10.96.0.10:53", "10.244.1.5:5353", true, false},
		{"a backend that went", "10.96.0.10:53", "10.244.2.5:5353", true, true},
		{"the backend's address with another port", "10.96.0.10:53", "10.244.1.5:53", true, true},
		{"from before the service was", "10.96.0.10:53", "10.96.0.10:53", false, true},
		{"IPv6", "[fd00:96::10]:53", "[fd00:244::5]:5353", true, false},
		{"IPv6, a backend that went", "[fd00:96::10]:53", "[fd00:244::6]:5353", true, true},
		{"a service without backends", "10.96.0.11:53", "10.244.1.5:5353", true, true},
		{"a node port", "192.0.2.1:30053", "10.244.0.5:5353", true, false},
		{"a node port's backend that went", "192.0.2.1:30053", "10.244.2.5:5353", true, true},
		{"a node port that went", "192.0.2.1:30054", "10.244.0.5:5353", true, true},
		{"a port of this host, where a node port was", "192.0.2.1:30054", "192.0.2.1:30054", false, false},
		{"a service that went while nobody looked", "10.96.3.3:53", "10.244.0.5:5353", true, true},
		{"an address of no service", "10.96.3.3:53", "10.96.3.3:53", false, false},
		{"somebody else's translation", "198.51.100.1:53", "10.244.0.5:5353", true, false},
		{"no service's at all", "10.244.0.5:5353", "10.244.0.5:5353", false, false},
	} {
		f := Flow{Client: addr("10.244.0.9:4000"), Dest: addr(tt.dest), Backend: addr(tt.backend), DNAT: tt.dnat}
		if got := s.Stale(f); got != tt.stale {
			t.Errorf("%s: Stale(%+v) = %v", tt.name, f, got)
		}
		if (Services{}).Stale(f) {
			t.Errorf("%s: stale without any service", tt.name)
		}
	}
}
