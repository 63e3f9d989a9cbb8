package manifests

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
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
	labels, namespaces labels.Selector
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
	case cluster.KindService, cluster.KindSlice, cluster.KindPod:
		return s.labels.Matches(labels.Set(v.GetLabels()))
	}
	return true
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
		if s.wants(cluster.KindService, o) {
			v.add(serviceValue(o))
		}
	}
	for _, o := range c.Slices {
		if s.wants(cluster.KindSlice, o) && o.AddressType != discoveryv1.AddressTypeFQDN {
			v.add(sliceValue(o))
		}
	}
	for _, o := range c.Pods {
		if s.wants(cluster.KindPod, o) && !finished(o) && o.DeletionTimestamp == nil && len(o.Status.PodIPs) > 0 {
			v.add(podValue(o, s.PodLabels))
		}
	}
	for _, o := range c.Nodes {
		if s.wants(cluster.KindNode, o) {
			v.add(nodeValue(o))
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
	return v
}

func serviceValue(o *corev1.Service) *cluster.Service {
	s := &cluster.Service{
		Namespace: o.Namespace, Name: o.Name,
		Headless: headless(o), ClusterIPs: clusterAddrs(o), PublishNotReady: o.Spec.PublishNotReadyAddresses,
	}
	switch o.Spec.Type {
	case corev1.ServiceTypeNodePort:
		s.Type = cluster.NodePort
	case corev1.ServiceTypeLoadBalancer:
		s.Type = cluster.LoadBalancer
	case corev1.ServiceTypeExternalName:
		s.Type, s.ExternalName = cluster.ExternalName, o.Spec.ExternalName
	}
	for _, p := range o.Spec.Ports {
		s.Ports = append(s.Ports, cluster.ServicePort{Name: p.Name, Protocol: cluster.Protocol(p.Protocol), Port: uint16(p.Port)})
	}
	return s
}

func sliceValue(o *discoveryv1.EndpointSlice) *cluster.Slice {
	s := &cluster.Slice{
		Namespace: o.Namespace, Name: o.Name,
		Service: o.Labels[discoveryv1.LabelServiceName],
		Import:  o.Labels[mcsv1alpha1.LabelServiceName], Cluster: o.Labels[mcsv1alpha1.LabelSourceCluster],
	}
	if t, err := time.Parse(time.RFC3339Nano, o.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
		s.Triggered = t.UTC()
	}
	for _, p := range o.Ports {
		port := cluster.EndpointPort{Name: deref(p.Name), Protocol: cluster.Protocol(deref(p.Protocol)), Port: -1}
		if p.Port != nil {
			port.Port = *p.Port
		}
		s.Ports = append(s.Ports, port)
	}
	for i := range o.Endpoints {
		s.Endpoints = appendEndpoint(s.Endpoints, &o.Endpoints[i])
	}
	return s
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

func podValue(o *corev1.Pod, withLabels bool) *cluster.Pod {
	p := &cluster.Pod{Namespace: o.Namespace, Name: o.Name}
	for _, ip := range o.Status.PodIPs {
		p.IPs = append(p.IPs, netip.MustParseAddr(ip.IP))
	}
	if withLabels {
		p.Labels = o.Labels
	}
	return p
}

func nodeValue(o *corev1.Node) *cluster.Node {
	cidrs := o.Spec.PodCIDRs
	if len(cidrs) == 0 && o.Spec.PodCIDR != "" {
		cidrs = []string{o.Spec.PodCIDR}
	}
	return &cluster.Node{Name: o.Name, PodCIDRs: prefixes(cidrs)}
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
