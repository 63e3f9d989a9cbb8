package manifests

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// Cluster is what a control plane would hold after the objects of the files were applied: complete objects, each kind in
// order of their keys. They must not be written to.
type Cluster struct {
	Namespaces []*corev1.Namespace
	Services   []*corev1.Service
	Slices     []*discoveryv1.EndpointSlice
	Pods       []*corev1.Pod
	Nodes      []*corev1.Node
	CIDRs      []*networkingv1.ServiceCIDR
	Imports    []*mcsv1alpha1.ServiceImport
	ConfigMaps []*corev1.ConfigMap

	// Assigned are the cluster addresses of the services, for the next Fill.
	Assigned Assigned
	// Notes are what a reader of the files should know, though it is not wrong, with file and line.
	Notes []string
}

// Assigned are the cluster addresses that services have, the primary one first.
type Assigned map[cluster.Key][]netip.Addr

// Fill completes objects, in the order of their files, the way a control plane would:
//
//   - Namespaces: default, kube-system, kube-public, kube-node-lease and every namespace that an object is in exist, and
//     bear the label kubernetes.io/metadata.name.
//   - Without a ServiceCIDR there is one called "kubernetes", of 10.96.0.0/12 and fd00:10:96::/112. The one of that name,
//     else the first by name, is the primary one; the family of its first range is that of single-stack services.
//   - The service default/kubernetes has the first address of that range, and port https 443/TCP.
//   - Services have their type, protocols, target ports, address families (KEP-563) and cluster addresses. An address
//     starts from a hash of the service's key, so that it is mostly the same in another process; what a service
//     had in before, which is nil or another Cluster's Assigned, it keeps as long as no other one asks for it by number.
//   - Endpoints are mirrored to slices, those of services with a selector too unless there are slices, since nothing else
//     is known of them then. Services whose endpoints are not in the files get slices of the pods that they select, with the
//     hints of their trafficDistribution.
//
// Node ports are as they are written: a service that has none gets none.
//
// The error is an *Error: two objects of the same kind and name, two services of the same address or node port, two pods of
// the same UID, a family that the cluster does not have, or a range that is full.
func Fill(objects []Object, before Assigned) (*Cluster, error) {
	f := filler{c: &Cluster{}, slices: map[cluster.Key]bool{}}
	if err := f.sort(objects); err != nil {
		return nil, err
	}
	f.fillCIDRs()
	if err := f.fillServices(before); err != nil {
		return nil, err
	}
	f.fillSlices()
	f.fillNamespaces(objects)
	f.order()
	return f.c, nil
}

// filler is a Cluster in the making.
type filler struct {
	c *Cluster
	// services are the objects that the services come from, in the order of keys.
	services []service
	// endpoints are the v1 Endpoints of the files.
	endpoints []*endpoints
	// slices are the keys of all slices.
	slices map[cluster.Key]bool
	// nodeZones are the zones of the nodes by name, nil until somebody asks.
	nodeZones map[string]string
}

// service is a Service that is being completed, and where it stands.
type service struct {
	*corev1.Service
	from *Object
}

func (s service) key() cluster.Key { return cluster.Key{Namespace: s.Namespace, Name: s.Name} }

// sort puts the objects into their kinds.
func (f *filler) sort(objects []Object) error {
	type id struct {
		kind string
		key  cluster.Key
	}
	seen, uids := map[id]*Object{}, map[types.UID]*Object{}
	for i := range objects {
		o := &objects[i]
		if o.Value == nil {
			continue
		}
		k := id{o.Kind, o.Key()}
		if other, ok := seen[k]; ok {
			err := o.fail("metadata.name", "also in %s:%d; keep one of the two", other.File, other.Line)
			err.Other = other.File
			return err
		}
		seen[k] = o
		if pod, ok := o.Value.(*corev1.Pod); ok {
			if other, ok := uids[pod.UID]; ok { // they would have one directory
				err := o.fail("metadata.uid", "that of Pod %s, too%s; want another one, or leave it out", other.Key(), other.place())
				err.Other = other.File
				return err
			}
			uids[pod.UID] = o
		}
		f.add(o)
	}
	slices.SortFunc(f.services, func(a, b service) int { return a.key().Compare(b.key()) })
	return nil
}

func (f *filler) add(o *Object) {
	switch v := o.Value.(type) {
	case *corev1.Namespace:
		f.c.Namespaces = append(f.c.Namespaces, v)
	case *corev1.Service:
		f.services = append(f.services, service{v.DeepCopy(), o})
	case *endpoints:
		f.endpoints = append(f.endpoints, v)
	case *discoveryv1.EndpointSlice:
		f.addSlice(v)
	case *corev1.Pod:
		f.c.Pods = append(f.c.Pods, v)
	case *corev1.Node:
		f.c.Nodes = append(f.c.Nodes, v)
	case *networkingv1.ServiceCIDR:
		f.c.CIDRs = append(f.c.CIDRs, v)
	case *mcsv1alpha1.ServiceImport:
		f.c.Imports = append(f.c.Imports, v)
	case *corev1.ConfigMap:
		f.c.ConfigMaps = append(f.c.ConfigMaps, v)
	}
}

// order puts every kind in the order of keys. The services are in it.
func (f *filler) order() {
	slices.SortFunc(f.c.Namespaces, byKey)
	slices.SortFunc(f.c.Slices, byKey)
	slices.SortFunc(f.c.Nodes, byKey)
	slices.SortFunc(f.c.Imports, byKey)
	slices.SortFunc(f.c.ConfigMaps, byKey)
}

func byKey[T metav1.Object](a, b T) int { return keyOf(a).Compare(keyOf(b)) }

func keyOf(v metav1.Object) cluster.Key {
	return cluster.Key{Namespace: v.GetNamespace(), Name: v.GetName()}
}

// The names of the primary ServiceCIDR and of the service of the API server (KEP-1880).
const kubernetesName = "kubernetes"

func (f *filler) fillCIDRs() {
	if len(f.c.CIDRs) == 0 {
		f.c.CIDRs = []*networkingv1.ServiceCIDR{{
			ObjectMeta: metav1.ObjectMeta{Name: kubernetesName},
			Spec:       networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12", "fd00:10:96::/112"}},
		}}
	}
	slices.SortFunc(f.c.CIDRs, func(a, b *networkingv1.ServiceCIDR) int {
		if a.Name == kubernetesName || b.Name == kubernetesName {
			return cmp.Compare(primacy(a), primacy(b))
		}
		return cmp.Compare(a.Name, b.Name)
	})
}

func primacy(c *networkingv1.ServiceCIDR) int {
	if c.Name == kubernetesName {
		return 0
	}
	return 1
}

func (f *filler) fillServices(before Assigned) error {
	f.fillKubernetesService()
	ranges := rangesOf(f.c.CIDRs)
	for _, s := range f.services {
		fillServiceDefaults(s.Service)
		if err := fillFamilies(s, ranges); err != nil {
			return err
		}
	}
	if err := checkNodePorts(f.services); err != nil {
		return err
	}
	a := allocator{ranges: ranges, owners: map[netip.Addr]service{}}
	notes, err := a.allocate(f.services, before)
	if err != nil {
		return err
	}
	f.c.Notes = append(f.c.Notes, notes...)
	f.c.Assigned = Assigned{}
	for _, s := range f.services {
		f.c.Services = append(f.c.Services, s.Service)
		if ips := clusterAddrs(s.Service); len(ips) > 0 {
			f.c.Assigned[s.key()] = ips
		}
	}
	return nil
}

// fillKubernetesService sees to default/kubernetes, which the API server writes for itself.
func (f *filler) fillKubernetesService() {
	key := cluster.Key{Namespace: metav1.NamespaceDefault, Name: kubernetesName}
	primary := netip.MustParsePrefix(f.c.CIDRs[0].Spec.CIDRs[0])
	address := ""
	if usable(primary) > 0 {
		address = nth(primary, 0).String()
	}
	i, there := slices.BinarySearchFunc(f.services, key, func(s service, k cluster.Key) int { return s.key().Compare(k) })
	if there {
		s := f.services[i]
		if s.Spec.Type != corev1.ServiceTypeExternalName && s.Spec.ClusterIP == "" && len(s.Spec.ClusterIPs) == 0 {
			s.Spec.ClusterIP = address
		}
		return
	}
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: key.Namespace, Name: key.Name,
			Labels: map[string]string{"component": "apiserver", "provider": kubernetesName},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP: address,
			Ports:     []corev1.ServicePort{{Name: "https", Port: 443, TargetPort: intstr.FromInt32(6443)}},
		},
	}
	f.services = slices.Insert(f.services, i, service{s, &Object{Kind: "Service", Value: s}})
}

// fillServiceDefaults sets what does not depend on the cluster.
func fillServiceDefaults(s *corev1.Service) {
	s.Spec.Type = cmp.Or(s.Spec.Type, corev1.ServiceTypeClusterIP)
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		p.Protocol = cmp.Or(p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == (intstr.IntOrString{}) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	switch {
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = "", nil, nil, nil
	case len(s.Spec.ClusterIPs) == 0 && s.Spec.ClusterIP != "":
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
	}
}

func headless(s *corev1.Service) bool {
	return s.Spec.Type != corev1.ServiceTypeExternalName && len(s.Spec.ClusterIPs) > 0 && s.Spec.ClusterIPs[0] == corev1.ClusterIPNone
}

// fillFamilies completes ipFamilyPolicy and ipFamilies (KEP-563, "Service IP family").
func fillFamilies(s service, ranges ranges) error {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	noSelector := headless(s.Service) && len(s.Spec.Selector) == 0
	if s.Spec.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		// Nothing picks the endpoints of a headless service without selector, so it may have those of both families.
		if noSelector || len(s.Spec.ClusterIPs) > 1 || len(s.Spec.IPFamilies) > 1 {
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		s.Spec.IPFamilyPolicy = &policy
	}
	for i, ip := range s.Spec.ClusterIPs {
		if ip != corev1.ClusterIPNone && i >= len(s.Spec.IPFamilies) {
			s.Spec.IPFamilies = append(s.Spec.IPFamilies, familyOf(ip))
		}
	}
	if len(s.Spec.IPFamilies) == 0 {
		s.Spec.IPFamilies = []corev1.IPFamily{ranges.first}
	}
	if *s.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack && len(s.Spec.IPFamilies) == 1 && (ranges.dual() || noSelector) {
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, otherFamily(s.Spec.IPFamilies[0]))
	}
	if noSelector {
		return nil
	}
	if *s.Spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack && !ranges.dual() && len(s.Spec.ClusterIPs) < 2 {
		return s.from.fail("spec.ipFamilyPolicy", "RequireDualStack, but the cluster has %s ranges only; want PreferDualStack or SingleStack, or a ServiceCIDR of both families", ranges.first)
	}
	for i, fam := range s.Spec.IPFamilies {
		given := i < len(s.Spec.ClusterIPs) && s.Spec.ClusterIPs[i] != corev1.ClusterIPNone
		if !given && len(ranges.of[fam]) == 0 {
			return s.from.fail("spec.ipFamilies", "%s, but the cluster has %s ranges only; want that, or a ServiceCIDR of both families", fam, ranges.first)
		}
	}
	return nil
}

func otherFamily(f corev1.IPFamily) corev1.IPFamily {
	if f == corev1.IPv4Protocol {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

func (f *filler) fillNamespaces(objects []Object) {
	names := map[string]*corev1.Namespace{}
	for _, n := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
		names[n] = nil
	}
	for i := range objects {
		if v := objects[i].Value; v != nil && v.GetNamespace() != "" {
			names[v.GetNamespace()] = nil
		}
	}
	for _, n := range f.c.Namespaces {
		names[n.Name] = n.DeepCopy()
	}
	f.c.Namespaces = f.c.Namespaces[:0:0]
	for _, name := range slices.Sorted(maps.Keys(names)) {
		n := names[name]
		if n == nil {
			n = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		}
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[corev1.LabelMetadataName] = name
		f.c.Namespaces = append(f.c.Namespaces, n)
	}
}
