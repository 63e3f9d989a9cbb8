package manifests

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// What follows is what a proxy of services and a router read: what is wrong with it, and what it becomes. The rules of the
// values are those of cluster.ServiceProxy, EndpointProxy and NodeNet.

func checkExposure(s *corev1.Service) *finding {
	for i, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			if f := checkNodePort(s, fmt.Sprintf("spec.ports[%d].nodePort", i), p.NodePort); f != nil {
				return f
			}
		}
	}
	for i, ip := range s.Spec.ExternalIPs {
		if f := checkExternalIP(fmt.Sprintf("spec.externalIPs[%d]", i), ip); f != nil {
			return f
		}
	}
	for i, r := range s.Spec.LoadBalancerSourceRanges { // the API takes blanks around them
		if f := checkPrefix(fmt.Sprintf("spec.loadBalancerSourceRanges[%d]", i), strings.TrimSpace(r)); f != nil {
			return f
		}
	}
	for i, ing := range s.Status.LoadBalancer.Ingress {
		at := fmt.Sprintf("status.loadBalancer.ingress[%d]", i)
		if f := first(checkOptional(at+".ip", ing.IP, checkAddr), checkOneOf(at+".ipMode", string(deref(ing.IPMode)), "",
			string(corev1.LoadBalancerIPModeVIP), string(corev1.LoadBalancerIPModeProxy))); f != nil {
			return f
		}
	}
	return checkPolicies(&s.Spec)
}

func checkNodePort(s *corev1.Service, field string, n int32) *finding {
	if s.Spec.Type != corev1.ServiceTypeNodePort && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return found(field, "only services of the type NodePort or LoadBalancer have one; want one of these types, or leave it out")
	}
	return checkPort(field, n)
}

// checkExternalIP refuses the addresses that mean something on every node, as the API server does.
func checkExternalIP(field, ip string) *finding {
	if f := checkAddr(field, ip); f != nil {
		return f
	}
	if a := netip.MustParseAddr(ip); a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() {
		return found(field, "%s is unspecified, loopback or link-local; want an address that others send to the nodes", a)
	}
	return nil
}

// maxAffinity is the API's limit of timeoutSeconds.
const maxAffinity = 86400

func checkPolicies(spec *corev1.ServiceSpec) *finding {
	if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		if n := *c.ClientIP.TimeoutSeconds; n < 1 || n > maxAffinity {
			return found("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d; want 1 to %d", n, maxAffinity)
		}
	}
	if n := spec.HealthCheckNodePort; n != 0 {
		if f := checkPort("spec.healthCheckNodePort", n); f != nil {
			return f
		}
	}
	const inCluster, local = "Cluster", "Local"
	return first(
		checkOneOf("spec.sessionAffinity", string(spec.SessionAffinity), "", string(corev1.ServiceAffinityNone), string(corev1.ServiceAffinityClientIP)),
		checkOneOf("spec.internalTrafficPolicy", string(deref(spec.InternalTrafficPolicy)), "", inCluster, local),
		checkOneOf("spec.externalTrafficPolicy", string(spec.ExternalTrafficPolicy), "", inCluster, local),
		checkOneOf("spec.trafficDistribution", deref(spec.TrafficDistribution), "", corev1.ServiceTrafficDistributionPreferClose,
			corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode),
	)
}

// maxHints is how many zones, and nodes, the API takes for one endpoint.
const maxHints = 8

func checkHints(at string, h *discoveryv1.EndpointHints) *finding {
	switch {
	case h == nil:
	case len(h.ForZones) > maxHints:
		return found(at+".forZones", "%d zones; want at most %d", len(h.ForZones), maxHints)
	case len(h.ForNodes) > maxHints:
		return found(at+".forNodes", "%d nodes; want at most %d", len(h.ForNodes), maxHints)
	}
	return nil
}

func checkNode(n *corev1.Node) *finding {
	for i, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			if f := checkAddr(fmt.Sprintf("status.addresses[%d].address", i), a.Address); f != nil {
				return f
			}
		}
	}
	return first(checkPrefixes("spec.podCIDRs", n.Spec.PodCIDRs), checkOptional("spec.podCIDR", n.Spec.PodCIDR, checkPrefix))
}

// nodePort is what a service listens at on every node.
type nodePort struct {
	protocol corev1.Protocol
	number   int32
}

// checkNodePorts refuses a node port that two services have, or one has twice. None is given to a service that lacks one.
func checkNodePorts(services []service) error {
	owners := map[nodePort]service{}
	own := func(s service, field string, p nodePort) error {
		if p.number == 0 {
			return nil
		}
		if owner, ok := owners[p]; ok {
			err := s.from.fail(field, "%d/%s is that of Service %s%s, too; want a port of its own", p.number, p.protocol, owner.key(), owner.from.place())
			err.Other = owner.from.File
			return err
		}
		owners[p] = s
		return nil
	}
	for _, s := range services {
		for i, p := range s.Spec.Ports {
			if err := own(s, fmt.Sprintf("spec.ports[%d].nodePort", i), nodePort{p.Protocol, p.NodePort}); err != nil {
				return err
			}
		}
		if err := own(s, "spec.healthCheckNodePort", nodePort{corev1.ProtocolTCP, s.Spec.HealthCheckNodePort}); err != nil {
			return err
		}
	}
	return nil
}

func serviceProxy(o *corev1.Service) *cluster.ServiceProxy {
	p := &cluster.ServiceProxy{InternalLocal: deref(o.Spec.InternalTrafficPolicy) == corev1.ServiceInternalTrafficPolicyLocal}
	for _, ip := range o.Spec.ExternalIPs {
		p.ExternalIPs = appendNew(p.ExternalIPs, ip)
	}
	for _, ing := range o.Status.LoadBalancer.Ingress {
		if ing.IP != "" && (ing.IPMode == nil || *ing.IPMode == corev1.LoadBalancerIPModeVIP) {
			p.LoadBalancerIPs = appendNew(p.LoadBalancerIPs, ing.IP)
		}
	}
	p.LoadBalancerIPs = slices.DeleteFunc(p.LoadBalancerIPs, func(a netip.Addr) bool { return a.IsUnspecified() || a.IsLoopback() })
	p.SourceRanges = sourceRanges(o.Spec.LoadBalancerSourceRanges)
	if o.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		p.Affinity = cluster.DefaultAffinity
		if c := o.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			p.Affinity = time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
		}
	}
	external := o.Spec.Type != corev1.ServiceTypeClusterIP || len(o.Spec.ExternalIPs) > 0
	p.ExternalLocal = external && o.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if p.ExternalLocal && o.Spec.Type == corev1.ServiceTypeLoadBalancer {
		p.HealthCheckNodePort = uint16(o.Spec.HealthCheckNodePort)
	}
	return p
}

// appendNew appends an address that has been checked, unless it is there.
func appendNew(to []netip.Addr, text string) []netip.Addr {
	if a := netip.MustParseAddr(text); !slices.Contains(to, a) {
		to = append(to, a)
	}
	return to
}

func sourceRanges(texts []string) []netip.Prefix {
	var trimmed []string
	for _, t := range texts {
		trimmed = append(trimmed, strings.TrimSpace(t))
	}
	all := prefixes(trimmed)
	open := func(r netip.Prefix) bool {
		return slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Bits() == 0 && p.Addr().Is4() == r.Addr().Is4() })
	}
	return slices.DeleteFunc(slices.Clone(all), open)
}

func endpointProxy(e *discoveryv1.Endpoint) cluster.EndpointProxy {
	p := cluster.EndpointProxy{
		Serving:     e.Conditions.Serving == nil || *e.Conditions.Serving,
		Terminating: deref(e.Conditions.Terminating),
	}
	if e.Hints == nil {
		return p
	}
	h := &cluster.Hints{}
	for _, z := range e.Hints.ForZones {
		if z.Name != "" {
			h.ForZones = append(h.ForZones, z.Name)
		}
	}
	for _, n := range e.Hints.ForNodes {
		if n.Name != "" {
			h.ForNodes = append(h.ForNodes, n.Name)
		}
	}
	if len(h.ForZones)+len(h.ForNodes) > 0 {
		p.Hints = h
	}
	return p
}

func nodeNet(o *corev1.Node) *cluster.NodeNet {
	n := &cluster.NodeNet{Zone: o.Labels[corev1.LabelTopologyZone], Created: o.CreationTimestamp.UTC()}
	for _, a := range o.Status.Addresses {
		switch a.Type {
		case corev1.NodeInternalIP:
			n.InternalIPs = append(n.InternalIPs, netip.MustParseAddr(a.Address))
		case corev1.NodeExternalIP:
			n.ExternalIPs = append(n.ExternalIPs, netip.MustParseAddr(a.Address))
		}
	}
	n.Leaving = o.DeletionTimestamp != nil || slices.ContainsFunc(o.Spec.Taints, func(t corev1.Taint) bool { return t.Key == cluster.LeavingTaint })
	return n
}
