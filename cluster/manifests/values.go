package manifests

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// View is what a consumer hears of a cluster: the values of each kind by their keys.
type View [cluster.NumKinds]map[cluster.Key]cluster.Object

func (v *View) add(o cluster.Object) {
	if v[o.Kind()] == nil {
		v[o.Kind()] = map[cluster.Key]cluster.Object{}
	}
	v[o.Kind()][o.Key()] = o
}

// sorted returns the values of a kind in the order of their keys.
func (v *View) sorted(k cluster.Kind) []cluster.Object {
	objects := slices.Collect(maps.Values(v[k]))
	slices.SortFunc(objects, func(a, b cluster.Object) int { return a.Key().Compare(b.Key()) })
	return objects
}

// changes returns the steps from old to v: first what is new or different, in the order of kinds, then what is gone, in
// the reverse order, so that nothing that moves is missing in between.
func (v *View) changes(old *View, received time.Time) []cluster.Change {
	var changes []cluster.Change
	for k := range cluster.NumKinds {
		for _, o := range v.sorted(k) {
			if was, ok := old[k][o.Key()]; !ok || !reflect.DeepEqual(was, o) {
				changes = append(changes, cluster.Upserted(o, received))
			}
		}
	}
	for k := cluster.NumKinds; k > 0; k-- {
		for _, o := range old.sorted(k - 1) {
			if _, ok := v[k-1][o.Key()]; !ok {
				changes = append(changes, cluster.Deleted(k-1, o.Key(), received))
			}
		}
	}
	return changes
}

// selection is an Interest with its selectors parsed.
type selection struct {
	cluster.Interest
	labels, namespaces, services, slices, configMaps labels.Selector
}

func newSelection(interest cluster.Interest) (selection, error) {
	s := selection{Interest: interest}
	var err error
	if s.labels, err = labels.Parse(interest.Labels); err != nil {
		return s, fmt.Errorf("labels %q: %w", interest.Labels, err)
	}
	if s.namespaces, err = labels.Parse(interest.NamespaceLabels); err != nil {
		return s, fmt.Errorf("namespace labels %q: %w", interest.NamespaceLabels, err)
	}
	if s.services, err = labels.Parse(interest.ServiceLabels); err != nil {
		return s, fmt.Errorf("service labels %q: %w", interest.ServiceLabels, err)
	}
	if s.slices, err = labels.Parse(interest.SliceLabels); err != nil {
		return s, fmt.Errorf("slice labels %q: %w", interest.SliceLabels, err)
	}
	if s.configMaps, err = labels.Parse(interest.ConfigMapLabels); err != nil {
		return s, fmt.Errorf("ConfigMap labels %q: %w", interest.ConfigMapLabels, err)
	}
	if n := interest.NodeName; n != "" || interest.OneNode {
		if msgs := validation.IsDNS1123Subdomain(n); len(msgs) > 0 {
			return s, fmt.Errorf("node name %q: %s", n, strings.Join(msgs, "; "))
		}
	}
	return s, nil
}

// wants reports whether objects like v are of interest, and v is selected.
func (s selection) wants(k cluster.Kind, v metav1.Object) bool {
	if !s.Kinds.Has(k) {
		return false
	}
	switch k {
	case cluster.KindNamespace:
		return s.namespaces.Matches(labels.Set(v.GetLabels()))
	case cluster.KindService:
		return s.labels.Matches(labels.Set(v.GetLabels())) && s.services.Matches(labels.Set(v.GetLabels()))
	case cluster.KindSlice:
		return s.labels.Matches(labels.Set(v.GetLabels())) && s.slices.Matches(labels.Set(v.GetLabels()))
	case cluster.KindPod:
		return s.labels.Matches(labels.Set(v.GetLabels()))
	case cluster.KindNode:
		return !s.OneNode || v.GetName() == s.NodeName
	case cluster.KindConfigMap:
		return s.configMaps.Matches(labels.Set(v.GetLabels()))
	}
	return true
}

// wantsPod reports whether o is of interest. Without an address a pod has no name in DNS, but hosts files may be told of it.
func (s selection) wantsPod(o *corev1.Pod) bool {
	return s.wants(cluster.KindPod, o) && (s.NodeName == "" || s.NodeName == o.Spec.NodeName) &&
		!finished(o) && o.DeletionTimestamp == nil && (s.PodHosts || len(o.Status.PodIPs) > 0)
}

// Values returns c as cluster values, as far as interest selects them. An error is one of interest's selectors.
func Values(c *Cluster, interest cluster.Interest) (View, error) {
	s, err := newSelection(interest)
	if err != nil {
		return View{}, err
	}
	return s.view(c), nil
}

func (s selection) view(c *Cluster) View {
	var v View
	for _, o := range c.Namespaces {
		if s.wants(cluster.KindNamespace, o) {
			v.add(&cluster.Namespace{Name: o.Name})
		}
	}
	for _, o := range c.Services {
		if s.wants(cluster.KindService, o) && !(s.NoHeadless && headless(o)) {
			v.add(s.serviceValue(o))
		}
	}
	for _, o := range c.Slices {
		if s.wants(cluster.KindSlice, o) && o.AddressType != discoveryv1.AddressTypeFQDN {
			v.add(s.sliceValue(o))
		}
	}
	for _, o := range c.Pods {
		if s.wantsPod(o) {
			v.add(s.podValue(o))
		}
	}
	for _, o := range c.Nodes {
		if s.wants(cluster.KindNode, o) {
			v.add(s.nodeValue(o))
		}
	}
	for _, o := range c.CIDRs {
		if s.wants(cluster.KindServiceCIDR, o) {
			v.add(&cluster.ServiceCIDR{Name: o.Name, CIDRs: prefixes(o.Spec.CIDRs)})
		}
	}
	for _, o := range c.Imports {
		if s.wants(cluster.KindServiceImport, o) {
			v.add(importValue(o))
		}
	}
	for _, o := range c.ConfigMaps {
		if s.wants(cluster.KindConfigMap, o) {
			v.add(&cluster.ConfigMap{Namespace: o.Namespace, Name: o.Name, Labels: cluster.Own(o.Labels), Data: o.Data})
		}
	}
	return v
}

func (s selection) serviceValue(o *corev1.Service) *cluster.Service {
	v := &cluster.Service{
		Namespace: o.Namespace, Name: o.Name,
		Headless: headless(o), ClusterIPs: clusterAddrs(o), PublishNotReady: o.Spec.PublishNotReadyAddresses,
	}
	switch o.Spec.Type {
	case corev1.ServiceTypeNodePort:
		v.Type = cluster.NodePort
	case corev1.ServiceTypeLoadBalancer:
		v.Type = cluster.LoadBalancer
	case corev1.ServiceTypeExternalName:
		v.Type, v.ExternalName = cluster.ExternalName, o.Spec.ExternalName
	}
	for _, p := range o.Spec.Ports {
		port := cluster.ServicePort{Name: p.Name, Protocol: cluster.Protocol(p.Protocol), Port: uint16(p.Port)}
		if s.Proxy {
			port.NodePort = uint16(p.NodePort)
		}
		v.Ports = append(v.Ports, port)
	}
	if s.Proxy && len(v.ClusterIPs) > 0 {
		v.Proxy = serviceProxy(o)
	}
	return v
}

func (s selection) sliceValue(o *discoveryv1.EndpointSlice) *cluster.Slice {
	v := &cluster.Slice{
		Namespace: o.Namespace, Name: o.Name,
		Service: o.Labels[discoveryv1.LabelServiceName],
		Import:  o.Labels[mcsv1alpha1.LabelServiceName], Cluster: o.Labels[mcsv1alpha1.LabelSourceCluster],
	}
	if t, err := time.Parse(time.RFC3339Nano, o.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
		v.Triggered = t.UTC()
	}
	for _, p := range o.Ports {
		port := cluster.EndpointPort{Name: deref(p.Name), Protocol: cluster.Protocol(deref(p.Protocol)), Port: -1}
		if p.Port != nil {
			port.Port = *p.Port
		}
		v.Ports = append(v.Ports, port)
	}
	if s.Proxy {
		v.Proxy = &cluster.SliceProxy{}
	}
	for i := range o.Endpoints {
		n := len(v.Endpoints)
		v.Endpoints = appendEndpoint(v.Endpoints, &o.Endpoints[i])
		if s.Proxy {
			p := endpointProxy(&o.Endpoints[i])
			for range len(v.Endpoints) - n {
				v.Proxy.Endpoints = append(v.Proxy.Endpoints, p)
				p.Extra = true
			}
		}
	}
	return v
}

// appendEndpoint appends one value for each address of e.
func appendEndpoint(eps []cluster.Endpoint, e *discoveryv1.Endpoint) []cluster.Endpoint {
	v := cluster.Endpoint{
		Hostname: deref(e.Hostname), NodeName: deref(e.NodeName), Zone: deref(e.Zone),
		Ready: e.Conditions.Ready == nil || *e.Conditions.Ready,
	}
	if e.TargetRef != nil {
		v.PodName = e.TargetRef.Name
	}
	for _, text := range e.Addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			continue // cannot be: addresses have been checked
		}
		v.Addr, v.Written = addr, ""
		if addr.String() != text {
			v.Written = text
		}
		eps = append(eps, v)
	}
	return eps
}

func (s selection) podValue(o *corev1.Pod) *cluster.Pod {
	p := &cluster.Pod{Namespace: o.Namespace, Name: o.Name}
	for _, ip := range o.Status.PodIPs {
		p.IPs = append(p.IPs, netip.MustParseAddr(ip.IP))
	}
	if s.PodLabels {
		p.Labels = o.Labels
	}
	if s.PodHosts {
		p.Hosts = podHosts(o)
	}
	return p
}

func podHosts(o *corev1.Pod) *cluster.PodHosts {
	h := &cluster.PodHosts{
		UID:      string(o.UID),
		Hostname: o.Spec.Hostname, Subdomain: o.Spec.Subdomain, HostnameOverride: deref(o.Spec.HostnameOverride),
		HostNetwork:    o.Spec.HostNetwork,
		NoServiceLinks: o.Spec.EnableServiceLinks != nil && !*o.Spec.EnableServiceLinks,
		Annotations:    o.Annotations,
	}
	for _, a := range o.Spec.HostAliases {
		h.Aliases = append(h.Aliases, cluster.HostAlias(a))
	}
	return h
}

func (s selection) nodeValue(o *corev1.Node) *cluster.Node {
	cidrs := o.Spec.PodCIDRs
	if len(cidrs) == 0 && o.Spec.PodCIDR != "" {
		cidrs = []string{o.Spec.PodCIDR}
	}
	n := &cluster.Node{Name: o.Name, PodCIDRs: prefixes(cidrs)}
	if s.NodeNet {
		n.Net = nodeNet(o)
	}
	return n
}

// prefixes parses ranges that have been checked.
func prefixes(ss []string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s).Masked())
	}
	return ps
}

func importValue(o *mcsv1alpha1.ServiceImport) *cluster.ServiceImport {
	s := &cluster.ServiceImport{Namespace: o.Namespace, Name: o.Name, Headless: o.Spec.Type == mcsv1alpha1.Headless}
	if !s.Headless {
		for _, ip := range o.Spec.IPs {
			s.IPs = append(s.IPs, netip.MustParseAddr(ip))
		}
	}
	for _, p := range o.Spec.Ports {
		protocol := cluster.TCP
		if p.Protocol != "" {
			protocol = cluster.Protocol(p.Protocol)
		}
		s.Ports = append(s.Ports, cluster.ServicePort{Name: p.Name, Protocol: protocol, Port: uint16(p.Port)})
	}
	return s
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
