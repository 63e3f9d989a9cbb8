package apiserver

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	networkingv1beta1 "k8s.io/api/networking/v1beta1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	netutils "k8s.io/utils/net"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// converter turns API objects into cluster values. A value shares no memory with the object it was made of but single
// strings, which the decoders allocate one by one.
//
// Its functions return nil for an object that is not to be known: it is finished, being deleted, or of a form that is
// not served. What they say besides is wrong with the object was left out of the value.
type converter struct {
	// names holds strings that many objects have in common; nil shares none.
	names *interner
	asks
	// hints holds what endpoints have in common, by hintsID.
	hints map[string]*cluster.Hints
}

// asks says what is taken from objects besides what is taken from all (see cluster.Interest).
type asks struct{ podLabels, podHosts, proxy, nodeNet bool }

func asksOf(i cluster.Interest) asks {
	return asks{podLabels: i.PodLabels, podHosts: i.PodHosts, proxy: i.Proxy, nodeNet: i.NodeNet}
}

// faults are the parts of an object that are no good, in words.
type faults []string

// maxFaults bounds what is said about one object: a slice may have a thousand endpoints.
const maxFaults = 8

func (f *faults) addf(format string, args ...any) {
	switch {
	case len(*f) < maxFaults:
		*f = append(*f, fmt.Sprintf(format, args...))
	case len(*f) == maxFaults:
		*f = append(*f, "and more")
	}
}

// object converts an object of any kind that sources know.
func (c *converter) object(o runtime.Object) (cluster.Object, faults) {
	var f faults
	var v cluster.Object
	switch o := o.(type) {
	case *corev1.Namespace:
		v = &cluster.Namespace{Name: o.Name}
	case *corev1.Service:
		v = c.service(o, &f)
	case *discoveryv1.EndpointSlice:
		// A nil *Slice in an Object would be an Object that is not nil; so with pods.
		if s := c.slice(o, &f); s != nil {
			v = s
		}
	case *corev1.Pod:
		if p := c.pod(o, &f); p != nil {
			v = p
		}
	case *corev1.Node:
		v = c.node(o, &f)
	case *corev1.ConfigMap:
		v = c.configMap(o)
	case *networkingv1.ServiceCIDR:
		v = serviceCIDR(o.Name, o.Spec.CIDRs, &f)
	case *networkingv1beta1.ServiceCIDR:
		v = serviceCIDR(o.Name, o.Spec.CIDRs, &f)
	case *mcsv1alpha1.ServiceImport:
		v = c.serviceImport(o, &f)
	default:
		f.addf("it is a %T", o)
	}
	return v, f
}

func (c *converter) service(o *corev1.Service, f *faults) *cluster.Service {
	s := &cluster.Service{
		Namespace: c.names.get(o.Namespace), Name: o.Name,
		Type:            serviceType(o.Spec.Type, f),
		PublishNotReady: o.Spec.PublishNotReadyAddresses,
	}
	if s.Type == cluster.ExternalName {
		s.ExternalName = o.Spec.ExternalName
	} else {
		s.Headless, s.ClusterIPs = clusterIPs(&o.Spec, f)
	}
	s.Ports = sized[cluster.ServicePort](len(o.Spec.Ports))
	for _, p := range o.Spec.Ports {
		n := len(s.Ports)
		if s.Ports = c.appendPort(s.Ports, p.Name, p.Protocol, p.Port, f); c.proxy && len(s.Ports) > n {
			s.Ports[n].NodePort = optionalPort(p.NodePort, "node port", f)
		}
	}
	if c.proxy && len(s.ClusterIPs) > 0 {
		s.Proxy = serviceProxy(o, s.Type, f)
	}
	return s
}

func serviceType(t corev1.ServiceType, f *faults) cluster.ServiceType {
	switch t {
	case corev1.ServiceTypeClusterIP, "":
		return cluster.ClusterIP
	case corev1.ServiceTypeNodePort:
		return cluster.NodePort
	case corev1.ServiceTypeLoadBalancer:
		return cluster.LoadBalancer
	case corev1.ServiceTypeExternalName:
		return cluster.ExternalName
	}
	f.addf("type %.80q is unknown, taken for ClusterIP", t)
	return cluster.ClusterIP
}

// clusterIPs reads spec.clusterIPs, which servers and files older than dual-stack (KEP-563) leave to spec.clusterIP.
func clusterIPs(spec *corev1.ServiceSpec, f *faults) (headless bool, ips []netip.Addr) {
	texts := spec.ClusterIPs
	if len(texts) == 0 && spec.ClusterIP != "" {
		texts = []string{spec.ClusterIP}
	}
	if len(texts) > 0 && texts[0] == corev1.ClusterIPNone {
		return true, nil
	}
	return false, addrs(texts, "cluster IP", f)
}

// appendPort appends a service's port to ports unless it is no port.
func (c *converter) appendPort(ports []cluster.ServicePort, name string, protocol corev1.Protocol, port int32, f *faults) []cluster.ServicePort {
	proto, ok := protocolOf(protocol)
	if !ok {
		f.addf("port %.80q has the protocol %.80q, not TCP, UDP or SCTP", name, protocol)
		return ports
	}
	if port < 1 || port > 65535 {
		f.addf("port %.80q has the number %d", name, port)
		return ports
	}
	return append(ports, cluster.ServicePort{Name: c.names.get(name), Protocol: proto, Port: uint16(port)})
}

// protocolOf returns the constant, so that no value keeps a string of its own for it.
func protocolOf(p corev1.Protocol) (cluster.Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return cluster.TCP, true
	case corev1.ProtocolUDP:
		return cluster.UDP, true
	case corev1.ProtocolSCTP:
		return cluster.SCTP, true
	}
	return "", false
}

// slice returns nil for slices of names (addressType FQDN), which nothing serves.
func (c *converter) slice(o *discoveryv1.EndpointSlice, f *faults) *cluster.Slice {
	if o.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	s := &cluster.Slice{
		Namespace: c.names.get(o.Namespace), Name: o.Name,
		Service: o.Labels[discoveryv1.LabelServiceName],
		Import:  o.Labels[mcsv1alpha1.LabelServiceName],
		Cluster: c.names.get(o.Labels[mcsv1alpha1.LabelSourceCluster]),
		Ports:   c.endpointPorts(o.Ports, f),
	}
	s.Endpoints, s.Proxy = c.endpoints(o.Endpoints, f)
	if t := o.Annotations[corev1.EndpointsLastChangeTriggerTime]; t != "" {
		var err error
		if s.Triggered, err = time.Parse(time.RFC3339Nano, t); err != nil {
			f.addf("annotation %s is %.80q, not a time of RFC 3339", corev1.EndpointsLastChangeTriggerTime, t)
			s.Triggered = time.Time{}
		}
	}
	return s
}

func (c *converter) endpointPorts(ports []discoveryv1.EndpointPort, f *faults) []cluster.EndpointPort {
	out := sized[cluster.EndpointPort](len(ports))
	for _, p := range ports {
		name := deref(p.Name)
		proto, ok := protocolOf(deref(p.Protocol))
		switch {
		case !ok:
			f.addf("port %.80q has the protocol %.80q, not TCP, UDP or SCTP", name, *p.Protocol)
			continue
		case p.Port != nil && (*p.Port < 1 || *p.Port > 65535):
			f.addf("port %.80q has the number %d", name, *p.Port)
			continue
		}
		ep := cluster.EndpointPort{Name: c.names.get(name), Protocol: proto, Port: -1}
		if p.Port != nil {
			ep.Port = *p.Port
		}
		out = append(out, ep)
	}
	return out
}

func (c *converter) endpoints(endpoints []discoveryv1.Endpoint, f *faults) ([]cluster.Endpoint, *cluster.SliceProxy) {
	n := 0
	for i := range endpoints {
		n += len(endpoints[i].Addresses)
	}
	out := sized[cluster.Endpoint](n)
	var proxy *cluster.SliceProxy
	if c.proxy {
		proxy = &cluster.SliceProxy{Endpoints: sized[cluster.EndpointProxy](n)}
	}
	for i := range endpoints {
		o := &endpoints[i]
		e := cluster.Endpoint{
			Hostname: deref(o.Hostname),
			NodeName: c.names.get(deref(o.NodeName)),
			Zone:     c.names.get(deref(o.Zone)),
			Ready:    o.Conditions.Ready == nil || *o.Conditions.Ready,
		}
		if o.TargetRef != nil {
			e.PodName = o.TargetRef.Name
		}
		var ep cluster.EndpointProxy
		if c.proxy {
			ep = c.endpointProxy(o, f)
		}
		for j, text := range o.Addresses {
			var ok bool
			if e.Addr, ok = parseAddr(text); !ok {
				f.addf("endpoint address %.80q is no IP address", text)
				continue
			}
			// No canonical text is longer than this one.
			var buf [len("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]byte
			e.Written = ""
			if string(e.Addr.AppendTo(buf[:0])) != text {
				e.Written = text
			}
			out = append(out, e)
			if c.proxy {
				ep.Extra = j > 0
				proxy.Endpoints = append(proxy.Endpoints, ep)
			}
		}
	}
	return out, proxy
}

// pod returns nil for pods that are finished or on their way out. The field selector keeps the finished ones away from
// servers that know it, and an unknown phase means that the node has not been heard of for long.
func (c *converter) pod(o *corev1.Pod, f *faults) *cluster.Pod {
	if o.DeletionTimestamp != nil && !o.DeletionTimestamp.IsZero() {
		return nil
	}
	switch o.Status.Phase {
	case corev1.PodSucceeded, corev1.PodFailed, corev1.PodUnknown:
		return nil
	}
	p := &cluster.Pod{Namespace: c.names.get(o.Namespace), Name: o.Name}
	p.IPs = sized[netip.Addr](len(o.Status.PodIPs))
	for _, ip := range o.Status.PodIPs {
		p.IPs = appendAddr(p.IPs, ip.IP, "pod IP", f)
	}
	if c.podLabels && len(o.Labels) > 0 {
		p.Labels = make(map[string]string, len(o.Labels))
		for k, v := range o.Labels {
			p.Labels[c.names.get(k)] = c.names.get(v)
		}
	}
	if c.podHosts {
		if p.Hosts = c.hosts(o, f); p.Hosts == nil {
			return nil
		}
	}
	return p
}

// hosts returns nil for a pod without a UID that a directory can be called by: its files cannot be found, or are not its own.
func (c *converter) hosts(o *corev1.Pod, f *faults) *cluster.PodHosts {
	if msgs := content.IsPathSegmentName(string(o.UID)); o.UID == "" || len(msgs) > 0 {
		f.addf("uid %.80q is no name of a directory", o.UID)
		return nil
	}
	h := &cluster.PodHosts{
		UID:      string(o.UID),
		Hostname: o.Spec.Hostname, Subdomain: o.Spec.Subdomain, HostnameOverride: deref(o.Spec.HostnameOverride),
		HostNetwork:    o.Spec.HostNetwork,
		Aliases:        sized[cluster.HostAlias](len(o.Spec.HostAliases)),
		NoServiceLinks: o.Spec.EnableServiceLinks != nil && !*o.Spec.EnableServiceLinks,
		Annotations:    cluster.Own(o.Annotations),
	}
	for _, a := range o.Spec.HostAliases {
		if hostAlias(a, f) {
			h.Aliases = append(h.Aliases, cluster.HostAlias{IP: a.IP, Hostnames: slices.Clone(a.Hostnames)})
		}
	}
	return h
}

// hostAlias reports whether the API would take a, so that it makes one line of a hosts file and no more.
func hostAlias(a corev1.HostAlias, f *faults) bool {
	if _, ok := parseAddr(a.IP); !ok {
		f.addf("host alias %.80q is no IP address", a.IP)
		return false
	}
	for _, name := range a.Hostnames {
		if len(validation.IsDNS1123Subdomain(name)) > 0 {
			f.addf("host alias %s has the name %.80q, which is none in DNS", a.IP, name)
			return false
		}
	}
	return true
}

// configMap keeps one that is being deleted: what it says holds until it is gone.
func (c *converter) configMap(o *corev1.ConfigMap) *cluster.ConfigMap {
	m := &cluster.ConfigMap{Namespace: c.names.get(o.Namespace), Name: o.Name, Labels: cluster.Own(o.Labels)}
	if len(o.Data) > 0 {
		m.Data = maps.Clone(o.Data)
	}
	return m
}

func (c *converter) node(o *corev1.Node, f *faults) *cluster.Node {
	cidrs := o.Spec.PodCIDRs
	if len(cidrs) == 0 && o.Spec.PodCIDR != "" {
		cidrs = []string{o.Spec.PodCIDR}
	}
	n := &cluster.Node{Name: c.names.get(o.Name), PodCIDRs: prefixes(cidrs, "pod CIDR", f)}
	if c.nodeNet {
		n.Net = c.net(o, f)
	}
	return n
}

func (c *converter) net(o *corev1.Node, f *faults) *cluster.NodeNet {
	n := &cluster.NodeNet{Zone: c.names.get(o.Labels[corev1.LabelTopologyZone]), Created: o.CreationTimestamp.UTC()}
	for _, a := range o.Status.Addresses {
		switch a.Type {
		case corev1.NodeInternalIP:
			n.InternalIPs = appendAddr(n.InternalIPs, a.Address, "internal IP", f)
		case corev1.NodeExternalIP:
			n.ExternalIPs = appendAddr(n.ExternalIPs, a.Address, "external IP", f)
		}
	}
	n.Leaving = o.DeletionTimestamp != nil || slices.ContainsFunc(o.Spec.Taints, func(t corev1.Taint) bool { return t.Key == cluster.LeavingTaint })
	return n
}

// serviceCIDR keeps one that is being deleted: it counts until it is gone (KEP-1880).
func serviceCIDR(name string, cidrs []string, f *faults) *cluster.ServiceCIDR {
	return &cluster.ServiceCIDR{Name: name, CIDRs: prefixes(cidrs, "CIDR", f)}
}

func (c *converter) serviceImport(o *mcsv1alpha1.ServiceImport, f *faults) *cluster.ServiceImport {
	s := &cluster.ServiceImport{
		Namespace: c.names.get(o.Namespace), Name: o.Name,
		Headless: o.Spec.Type == mcsv1alpha1.Headless,
	}
	if !s.Headless {
		s.IPs = addrs(o.Spec.IPs, "IP", f)
	}
	s.Ports = sized[cluster.ServicePort](len(o.Spec.Ports))
	for _, p := range o.Spec.Ports {
		s.Ports = c.appendPort(s.Ports, p.Name, p.Protocol, p.Port, f)
	}
	return s
}

// parseAddr reads an IP address as Kubernetes does. Objects from before its validation grew strict may have leading
// zeros, which are decimal (k8s.io/utils/net); an IPv4 address in IPv6 form is the IPv4 address.
func parseAddr(text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		var ok bool
		if a, ok = netip.AddrFromSlice(netutils.ParseIPSloppy(text)); !ok {
			return netip.Addr{}, false
		}
	}
	return a.Unmap(), a.Zone() == ""
}

func appendAddr(out []netip.Addr, text, what string, f *faults) []netip.Addr {
	a, ok := parseAddr(text)
	if !ok {
		f.addf("%s %.80q is no IP address", what, text)
		return out
	}
	return append(out, a)
}

func addrs(texts []string, what string, f *faults) []netip.Addr {
	out := sized[netip.Addr](len(texts))
	for _, t := range texts {
		out = appendAddr(out, t, what, f)
	}
	return out
}

// prefixes reads ranges; bits of a host that are set in one do not count.
func prefixes(texts []string, what string, f *faults) []netip.Prefix {
	out := sized[netip.Prefix](len(texts))
	for _, t := range texts {
		p, err := netip.ParsePrefix(t)
		if err != nil {
			_, n, err := netutils.ParseCIDRSloppy(t)
			if err != nil {
				f.addf("%s %.80q is no range of IP addresses", what, t)
				continue
			}
			a, _ := netip.AddrFromSlice(n.IP)
			ones, _ := n.Mask.Size()
			p = netip.PrefixFrom(a, ones)
		}
		if p.Addr().Is4In6() { // as with addresses, it is the IPv4 range
			if p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96); !p.IsValid() {
				f.addf("%s %.80q is no range of IP addresses", what, t)
				continue
			}
		}
		out = append(out, p.Masked())
	}
	return out
}

// sized returns room for n elements, nil for none.
func sized[T any](n int) []T {
	if n == 0 {
		return nil
	}
	return make([]T, 0, n)
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// maxInterned bounds an interner: more names than most clusters have nodes and namespaces.
const maxInterned = 16384

// interner shares one string between all objects that have it: namespaces, nodes, zones, port names. The strings of
// package unique would be forgotten at each collection, since nothing keeps their handles.
type interner struct{ strings map[string]*string }

func newInterner() *interner { return &interner{map[string]*string{}} }

// get returns a string equal to s.
func (n *interner) get(s string) string {
	if n == nil || s == "" {
		return s
	}
	if t, ok := n.strings[s]; ok {
		return *t
	}
	return *n.add(s)
}

// shared returns a string that holds b, which nobody may change.
func (n *interner) shared(b []byte) *string {
	if t, ok := n.strings[string(b)]; ok {
		return t
	}
	return n.add(string(b))
}

// bytes returns a string that holds b.
func (n *interner) bytes(b []byte) string { return *n.shared(b) }

// add takes in a string. A full interner starts over: what it gave out stays good.
func (n *interner) add(s string) *string {
	if len(n.strings) >= maxInterned {
		clear(n.strings)
	}
	n.strings[s] = &s
	return &s
}
