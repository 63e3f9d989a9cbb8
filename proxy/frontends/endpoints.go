package frontends

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// endpoint is what is kept of an address in a slice.
type endpoint struct {
	addr  netip.Addr
	state state
}

// state is what an endpoint is good for. Of two that are at the same address, the one with the greater state counts: a pod's
// address may be that of a pod that is on its way out (pkg/proxy/endpointslicecache.go has the same rule).
type state uint8

const (
	local   state = 1 << iota // on this node
	leaving                   // serving while it terminates
	ready
)

// slice is what is kept of an EndpointSlice.
type slice struct {
	name      string
	service   *service
	ports     []cluster.EndpointPort
	endpoints []endpoint
	hints     []*cluster.Hints // one for each of endpoints, nil if none has any
	is4       bool
	listing   uint32
}

// newSlice keeps of s what is served, for the node. The addresses of a slice are of one family, that of the first.
func newSlice(s *cluster.Slice, node string) *slice {
	out := &slice{ports: s.Ports, endpoints: make([]endpoint, 0, len(s.Endpoints))}
	for i, e := range s.Endpoints {
		p := cluster.EndpointProxy{Serving: true}
		if s.Proxy != nil {
			p = s.Proxy.Endpoints[i]
		}
		if p.Extra || len(out.endpoints) > 0 && e.Addr.Is4() != out.is4 {
			continue
		}
		var st state
		switch {
		case e.Ready:
			st = ready
		case p.Serving && p.Terminating:
			st = leaving
		default:
			continue
		}
		if e.NodeName == node && node != "" {
			st |= local
		}
		if p.Hints != nil && out.hints == nil {
			out.hints = make([]*cluster.Hints, len(out.endpoints), len(s.Endpoints))
		}
		if out.hints != nil {
			out.hints = append(out.hints, p.Hints)
		}
		out.endpoints = append(out.endpoints, endpoint{e.Addr, st})
		out.is4 = e.Addr.Is4()
	}
	return out
}

// equal reports whether s and t of the same name mean the same.
func (s *slice) equal(t *slice) bool {
	sameHints := func(a, b *cluster.Hints) bool {
		return a == b || a != nil && b != nil && slices.Equal(a.ForZones, b.ForZones) && slices.Equal(a.ForNodes, b.ForNodes)
	}
	return s.service == t.service && slices.Equal(s.ports, t.ports) && slices.Equal(s.endpoints, t.endpoints) && slices.EqualFunc(s.hints, t.hints, sameHints)
}

// udp reports whether a slice has a port of UDP.
func (s *slice) udp() bool {
	return slices.ContainsFunc(s.ports, func(p cluster.EndpointPort) bool { return p.Protocol == cluster.UDP })
}

// within reports whether all addresses of s are in t.
func (s *slice) within(t *slice) bool {
	same := func(a, b endpoint) bool { return a.addr == b.addr }
	if slices.EqualFunc(s.endpoints, t.endpoints, same) {
		return true
	}
	there := make(map[netip.Addr]struct{}, len(t.endpoints))
	for _, e := range t.endpoints {
		there[e.addr] = struct{}{}
	}
	return !slices.ContainsFunc(s.endpoints, func(e endpoint) bool { _, ok := there[e.addr]; return !ok })
}

// candidate is an endpoint that may become a backend of a service's port.
type candidate struct {
	netip.AddrPort
	state
	hints *cluster.Hints
}

// usable reports whether a slice's port is one: -1 leaves it open.
func usable(p cluster.EndpointPort) bool { return p.Port >= 1 && p.Port <= 65535 }

// candidates appends the endpoints of slices that have a port of the name and protocol, in order, each address once.
func candidates(out []candidate, list []*slice, name string, protocol cluster.Protocol, is4 bool) []candidate {
	out = out[:0]
	sorted := true
	for _, s := range list {
		if s.is4 != is4 {
			continue
		}
		for _, p := range s.ports {
			if p.Name != name || p.Protocol != protocol || !usable(p) {
				continue
			}
			for i, e := range s.endpoints {
				c := candidate{AddrPort: netip.AddrPortFrom(e.addr, uint16(p.Port)), state: e.state}
				if s.hints != nil {
					c.hints = s.hints[i]
				}
				sorted = sorted && (len(out) == 0 || out[len(out)-1].Compare(c.AddrPort) < 0)
				out = append(out, c)
			}
		}
	}
	if sorted {
		return out
	}
	slices.SortStableFunc(out, func(a, b candidate) int {
		return cmp.Or(a.AddrPort.Compare(b.AddrPort), cmp.Compare(b.state, a.state))
	})
	return slices.CompactFunc(out, func(a, b candidate) bool { return a.AddrPort == b.AddrPort })
}

// place is where a node is, for hints.
type place struct{ node, zone string }

// hinted tells which candidates a node should prefer: a predicate for ready ones, nil for all. Hints count only if every ready
// endpoint has some and one is for this node; those for nodes come before those for zones (KEP-2433, KEP-3015).
func (p place) hinted(all []candidate) func(*cluster.Hints) bool {
	forNode := func(h *cluster.Hints) bool { return slices.Contains(h.ForNodes, p.node) }
	forZone := func(h *cluster.Hints) bool { return slices.Contains(h.ForZones, p.zone) }
	none, nodes, zones, here, inZone := true, true, true, false, false
	for _, c := range all {
		if c.state&ready == 0 {
			continue
		}
		none = false
		if c.hints == nil {
			return nil
		}
		nodes = nodes && len(c.hints.ForNodes) > 0
		zones = zones && len(c.hints.ForZones) > 0
		here = here || forNode(c.hints)
		inZone = inZone || forZone(c.hints)
	}
	switch {
	case none:
		return nil
	case nodes && here:
		return forNode
	case zones && inZone:
		return forZone
	}
	return nil
}

// choice is what the endpoints of a service's port come to on a node.
type choice struct {
	// cluster is for the policy Cluster, local for Local: ready endpoints, if there are none those that serve while they
	// terminate, found out for each of the two by itself (KEP-1669).
	cluster, local []netip.AddrPort
	// any says that there are usable endpoints somewhere.
	any bool
}

func choose(all []candidate, p place) choice {
	prefer := p.hinted(all)
	everywhere := func(c candidate) bool {
		return c.state&ready != 0 && (prefer == nil || prefer(c.hints))
	}
	var out choice
	out.cluster = addresses(all, everywhere)
	if out.cluster == nil {
		out.cluster = addresses(all, func(c candidate) bool { return c.state&leaving != 0 })
	}
	out.any = out.cluster != nil
	out.local = addresses(all, func(c candidate) bool { return c.state&(ready|local) == ready|local })
	if out.local == nil {
		out.local = addresses(all, func(c candidate) bool { return c.state&(leaving|local) == leaving|local })
	}
	if slices.Equal(out.local, out.cluster) {
		out.local = out.cluster // one list in memory
	}
	return out
}

// addresses returns those of all for which keep is true, as many as a Frontend can have, in a list of just that length.
func addresses(all []candidate, keep func(candidate) bool) []netip.AddrPort {
	n := 0
	for _, c := range all {
		if keep(c) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	n = min(n, MaxBackends)
	out := make([]netip.AddrPort, 0, n)
	for _, c := range all {
		if keep(c) && len(out) < n {
			out = append(out, c.AddrPort)
		}
	}
	return out
}
