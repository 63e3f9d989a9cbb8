package apiserver

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// serviceProxy reads what kube-proxy reads of a service, as it does (pkg/proxy/serviceport.go), but that nothing it cannot read
// makes more of a service reachable.
func serviceProxy(o *corev1.Service, typ cluster.ServiceType, f *faults) *cluster.ServiceProxy {
	p := &cluster.ServiceProxy{
		ExternalIPs: externalIPs(o.Spec.ExternalIPs, f),
		Affinity:    affinity(&o.Spec, f),
	}
	p.LoadBalancerIPs, p.SourceRanges = restricted(loadBalancerIPs(o.Status.LoadBalancer.Ingress, f), o.Spec.LoadBalancerSourceRanges, f)
	if t := o.Spec.InternalTrafficPolicy; t != nil {
		p.InternalLocal = isLocal("internal", string(*t), f)
	}
	// The API gives the policy no meaning for others, and may have kept it from when the service was of another type.
	if typ == cluster.NodePort || typ == cluster.LoadBalancer || len(o.Spec.ExternalIPs) > 0 {
		p.ExternalLocal = isLocal("external", string(o.Spec.ExternalTrafficPolicy), f)
	}
	if typ == cluster.LoadBalancer && p.ExternalLocal {
		if p.HealthCheckNodePort = optionalPort(o.Spec.HealthCheckNodePort, "health check node port", f); p.HealthCheckNodePort == 0 {
			f.addf("it has no health check node port, which load balancers need where the external traffic policy is Local")
		}
	}
	return p
}

func isLocal(which, policy string, f *faults) bool {
	switch policy {
	case "Local":
		return true
	case "Cluster", "":
	default:
		f.addf("%s traffic policy %.80q is unknown, taken for Cluster", which, policy)
	}
	return false
}

// maxAffinity is the API's limit of timeoutSeconds.
const maxAffinity = 86400

func affinity(spec *corev1.ServiceSpec, f *faults) time.Duration {
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityClientIP:
	case corev1.ServiceAffinityNone, "":
		return 0
	default:
		f.addf("session affinity %.80q is unknown, taken for None", spec.SessionAffinity)
		return 0
	}
	c := spec.SessionAffinityConfig
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return cluster.DefaultAffinity
	}
	n := *c.ClientIP.TimeoutSeconds
	if n < 1 || n > maxAffinity {
		f.addf("session affinity lasts %d seconds, taken for %v", n, cluster.DefaultAffinity)
		return cluster.DefaultAffinity
	}
	return time.Duration(n) * time.Second
}

// externalIPs leaves out what the API's validation refuses: rules for such an address would take what is not the service's.
// Addresses that are blank, which the API once took, count as none.
func externalIPs(texts []string, f *faults) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		if strings.TrimSpace(t) == "" {
			continue
		}
		a, ok := parseAddr(t)
		switch {
		case !ok:
			f.addf("external IP %.80q is no IP address", t)
		case a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast():
			f.addf("external IP %s is one that every node has a meaning of its own for", a)
		case !slices.Contains(out, a):
			out = append(out, a)
		}
	}
	return out
}

func loadBalancerIPs(ingress []corev1.LoadBalancerIngress, f *faults) []netip.Addr {
	var out []netip.Addr
	for _, ing := range ingress {
		if ing.IP == "" { // it has a hostname
			continue
		}
		if m := ing.IPMode; m != nil && *m != corev1.LoadBalancerIPModeVIP {
			if *m != corev1.LoadBalancerIPModeProxy {
				f.addf("load balancer IP %.80q has the mode %.80q, not VIP or Proxy", ing.IP, *m)
			}
			continue
		}
		a, ok := parseAddr(ing.IP)
		switch {
		case !ok:
			f.addf("load balancer IP %.80q is no IP address", ing.IP)
		case a.IsUnspecified() || a.IsLoopback(): // the API takes them in a status, but no packet comes for them from elsewhere
			f.addf("load balancer IP %s is every node's own", a)
		case !slices.Contains(out, a):
			out = append(out, a)
		}
	}
	return out
}

// restricted returns the load balancer's addresses that a proxy may serve, and who may send to them. The API takes ranges with
// blanks around them.
func restricted(vips []netip.Addr, texts []string, f *faults) ([]netip.Addr, []netip.Prefix) {
	var ranges []netip.Prefix
	var ranged, open [2]bool // by family
	bad := false
	for _, t := range texts {
		if t = strings.TrimSpace(t); t == "" {
			continue
		}
		ps := prefixes([]string{t}, "source range", f)
		bad = bad || len(ps) == 0
		for _, p := range ps {
			ranges = append(ranges, p)
			ranged[family(p.Addr())] = true
			open[family(p.Addr())] = open[family(p.Addr())] || p.Bits() == 0
		}
	}
	if bad {
		vips = slices.DeleteFunc(vips, func(a netip.Addr) bool { return !ranged[family(a)] })
	}
	return vips, slices.DeleteFunc(ranges, func(p netip.Prefix) bool { return open[family(p.Addr())] })
}

// family is 0 for IPv4, 1 for IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// optionalPort returns 0 for none, and for what is no port.
func optionalPort(n int32, what string, f *faults) uint16 {
	if n < 0 || n > 65535 {
		f.addf("%s %d is no port", what, n)
		return 0
	}
	return uint16(n)
}

func (c *converter) endpointProxy(o *discoveryv1.Endpoint, f *faults) cluster.EndpointProxy {
	return cluster.EndpointProxy{
		Serving:     o.Conditions.Serving == nil || *o.Conditions.Serving,
		Terminating: deref(o.Conditions.Terminating),
		Hints:       c.sharedHints(o.Hints, f),
	}
}

// sharedHints returns the hints of an endpoint; those with the same hints share them: there are as many as zones, or nodes.
func (c *converter) sharedHints(o *discoveryv1.EndpointHints, f *faults) *cluster.Hints {
	if o == nil || len(o.ForZones)+len(o.ForNodes) == 0 {
		return nil
	}
	var buf [64]byte
	id := hintsID(buf[:0], o)
	h, ok := c.hints[string(id)]
	if !ok {
		h = c.newHints(o)
		if c.hints == nil || len(c.hints) >= maxInterned {
			c.hints = map[string]*cluster.Hints{}
		}
		c.hints[string(id)] = h
	}
	if h == nil || len(h.ForZones) < len(o.ForZones) || len(h.ForNodes) < len(o.ForNodes) {
		f.addf("a hint names no zone or node")
	}
	return h
}

// hintsID appends to b what tells hints from others.
func hintsID(b []byte, o *discoveryv1.EndpointHints) []byte {
	b = binary.AppendUvarint(b, uint64(len(o.ForZones)))
	for _, z := range o.ForZones {
		b = append(binary.AppendUvarint(b, uint64(len(z.Name))), z.Name...)
	}
	for _, n := range o.ForNodes {
		b = append(binary.AppendUvarint(b, uint64(len(n.Name))), n.Name...)
	}
	return b
}

// newHints returns nil if nothing is named.
func (c *converter) newHints(o *discoveryv1.EndpointHints) *cluster.Hints {
	h := &cluster.Hints{}
	for _, z := range o.ForZones {
		if z.Name != "" {
			h.ForZones = append(h.ForZones, c.names.get(z.Name))
		}
	}
	for _, n := range o.ForNodes {
		if n.Name != "" {
			h.ForNodes = append(h.ForNodes, c.names.get(n.Name))
		}
	}
	if len(h.ForZones)+len(h.ForNodes) == 0 {
		return nil
	}
	return h
}
