package frontends

import (
	"net/netip"
	"slices"

	"github.com/ropewalk-net/ropewalk/cluster"
)

var protocols = map[cluster.Protocol]Protocol{cluster.TCP: TCP, cluster.UDP: UDP, cluster.SCTP: SCTP}

// make works out what is to be handed out for a service that is there.
func (b *Builder) make(s *service) []*Frontend {
	fs := make([]*Frontend, 0, len(s.spec.Ports)*(len(s.spec.ClusterIPs)+len(s.spec.Proxy.ExternalIPs)+len(s.spec.Proxy.LoadBalancerIPs)+2))
	for _, is4 := range [...]bool{true, false} {
		own := func(a netip.Addr) bool { return a.Is4() == is4 }
		if !slices.ContainsFunc(s.spec.ClusterIPs, own) {
			continue // the family is not the service's
		}
		for i := range s.spec.Ports {
			p := &s.spec.Ports[i]
			b.scratch = candidates(b.scratch, s.slices, p.Name, p.Protocol, is4)
			c := choose(b.scratch, place{b.options.NodeName, netOf(b.node).Zone})
			fs = b.addPort(fs, s.spec, p, is4, c)
		}
	}
	return fs
}

// addPort appends the frontends of a port in a family.
func (b *Builder) addPort(fs []*Frontend, s *cluster.Service, p *cluster.ServicePort, is4 bool, c choice) []*Frontend {
	add := func(a netip.Addr, port uint16, f Frontend) {
		if a.Is4() == is4 {
			f.Key = Key{Addr: a, Protocol: protocols[p.Protocol], Port: port}
			fs = append(fs, &f)
		}
	}
	inside := b.inside(s.Proxy, c)
	for _, a := range s.ClusterIPs {
		add(a, p.Port, inside)
	}
	outside := outside(s.Proxy, c)
	restricted := outside
	restricted.Sources = b.sources(s.Proxy, is4)
	for _, a := range s.Proxy.LoadBalancerIPs { // before external addresses: one that is both is restricted
		add(a, p.Port, restricted)
	}
	for _, a := range s.Proxy.ExternalIPs {
		add(a, p.Port, outside)
	}
	if p.NodePort != 0 {
		any := netip.IPv6Unspecified()
		if is4 {
			any = netip.IPv4Unspecified()
		}
		add(any, p.NodePort, outside)
	}
	return fs
}

// inside is what becomes of connections to a ClusterIP (internalTrafficPolicy, KEP-2086).
func (b *Builder) inside(s *cluster.ServiceProxy, c choice) Frontend {
	f := Frontend{ClusterIP: true, Backends: c.cluster, Affinity: s.Affinity, Masquerade: Outside}
	if b.options.MasqueradeAll {
		f.Masquerade = Always
	}
	if s.InternalLocal {
		f.Backends = c.local
		f.Empty = c.none()
	}
	return f
}

// outside is what becomes of connections to node ports and external addresses (externalTrafficPolicy).
func outside(s *cluster.ServiceProxy, c choice) Frontend {
	if !s.ExternalLocal {
		return Frontend{Backends: c.cluster, Affinity: s.Affinity, Masquerade: Always}
	}
	return Frontend{Backends: c.local, Internal: c.cluster, Affinity: s.Affinity, Masquerade: Never, Empty: c.none()}
}

// none is what becomes of connections that are for endpoints on this node where there are none: other nodes may have some.
func (c *choice) none() Empty {
	if c.any {
		return Drop
	}
	return Reject
}

// sources are the clients that a service's load balancer addresses let in, nil for all. A node that is one of them uses the load
// balancer's address for its own where that is bound to an interface of its, so that it is one, too.
func (b *Builder) sources(s *cluster.ServiceProxy, is4 bool) []netip.Prefix {
	var out []netip.Prefix
	node := false
	for _, p := range s.SourceRanges {
		if p.Addr().Is4() != is4 {
			continue
		}
		out = append(out, p)
		node = node || slices.ContainsFunc(PrimaryAddresses(b.node), p.Contains)
	}
	for _, a := range s.LoadBalancerIPs {
		if node && a.Is4() == is4 {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// localAddresses returns the addresses of a service's endpoints on this node, in order, without those that are the node's own:
// nothing is to be done for a host that reaches itself.
func (b *Builder) localAddresses(s *service) []netip.Addr {
	node := netOf(b.node)
	var out []netip.Addr
	for _, x := range s.slices {
		for _, e := range x.endpoints {
			if e.state&local != 0 && !slices.Contains(node.InternalIPs, e.addr) && !slices.Contains(node.ExternalIPs, e.addr) {
				out = append(out, e.addr)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Clip(slices.Compact(out))
}

// healthOf returns what load balancers are told of a service: of its families' endpoints that have a port, those ready on this node. Of
// a service of both families the one with more of them counts, which are the same pods.
func healthOf(s *service) Health {
	h := Health{Port: s.spec.Proxy.HealthCheckNodePort}
	if h.Port == 0 {
		return h
	}
	for _, is4 := range []bool{true, false} {
		if !slices.ContainsFunc(s.spec.ClusterIPs, func(a netip.Addr) bool { return a.Is4() == is4 }) {
			continue
		}
		seen := map[netip.Addr]bool{}
		for _, x := range s.slices {
			if x.is4 != is4 || !slices.ContainsFunc(x.ports, usable) {
				continue
			}
			for _, e := range x.endpoints {
				if e.state&(ready|local) == ready|local {
					seen[e.addr] = true
				}
			}
		}
		h.Local = max(h.Local, len(seen))
	}
	return h
}
