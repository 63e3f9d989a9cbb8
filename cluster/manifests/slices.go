package manifests

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// The values of discoveryv1.LabelManagedBy that the controllers of Kubernetes write.
const (
	sliceController  = "endpointslice-controller.k8s.io"
	mirrorController = "endpointslicemirroring-controller.k8s.io"
)

const (
	// maxSliceEndpoints is how many endpoints the slice controller puts into a slice (KEP-752).
	maxSliceEndpoints = 100
	// maxMirrored is how many addresses of a subset the mirroring controller takes (KEP-2896).
	maxMirrored = 1000
)

func (f *filler) addSlice(s *discoveryv1.EndpointSlice) {
	f.c.Slices = append(f.c.Slices, s)
	f.slices[keyOf(s)] = true
}

// fillSlices makes the slices of services whose endpoints come as v1 Endpoints, or not at all.
func (f *filler) fillSlices() {
	slices.SortFunc(f.c.Pods, byKey)
	given := map[cluster.Key]bool{}    // services that have slices in the files
	mirrored := map[cluster.Key]bool{} // services whose slices in the files are mirrors already
	for _, s := range f.c.Slices {
		key := cluster.Key{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		given[key] = true
		mirrored[key] = mirrored[key] || s.Labels[discoveryv1.LabelManagedBy] == mirrorController
	}
	byName := map[cluster.Key]*endpoints{}
	for _, e := range f.endpoints {
		byName[keyOf(e)] = e
	}
	pods := f.podIndex()
	for _, s := range f.services {
		key, e := s.key(), byName[s.key()]
		selects := len(s.Spec.Selector) > 0 && s.Spec.Type != corev1.ServiceTypeExternalName
		switch {
		case e != nil && !skipMirror(e) && !mirrored[key] && (!selects || !given[key]):
			f.mirror(e)
		case selects && e == nil && !given[key]:
			f.synthesise(s.Service, pods)
		}
	}
}

// skipMirror reports whether the mirroring controller leaves e alone.
func skipMirror(e *endpoints) bool {
	_, leader := e.Annotations["control-plane.alpha.kubernetes.io/leader"]
	return leader || e.Labels[discoveryv1.LabelSkipMirror] == "true"
}

// mirror makes slices of e, as the EndpointSliceMirroring controller does: one for each subset and family.
func (f *filler) mirror(e *endpoints) {
	for i := range e.Subsets {
		subset := &e.Subsets[i]
		var ports []discoveryv1.EndpointPort
		for _, p := range subset.Ports {
			ports = append(ports, discoveryv1.EndpointPort{
				Name: new(p.Name), Port: new(p.Port), Protocol: new(cmp.Or(p.Protocol, corev1.ProtocolTCP)),
			})
		}
		byFamily := map[corev1.IPFamily][]discoveryv1.Endpoint{}
		n := 0
		add := func(a corev1.EndpointAddress, ready bool) {
			if n++; n <= maxMirrored {
				fam := familyOf(a.IP)
				byFamily[fam] = append(byFamily[fam], mirrorAddress(a, ready))
			}
		}
		for _, a := range subset.Addresses {
			add(a, true)
		}
		for _, a := range subset.NotReadyAddresses {
			add(a, false)
		}
		for _, fam := range slices.Sorted(maps.Keys(byFamily)) {
			meta := metav1.ObjectMeta{Labels: maps.Clone(e.Labels), Annotations: e.Annotations}
			f.writeSlices(e.Namespace, e.Name, meta, mirrorController, fam, ports, byFamily[fam])
		}
	}
}

func mirrorAddress(a corev1.EndpointAddress, ready bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{
		Addresses: []string{a.IP}, NodeName: a.NodeName, TargetRef: a.TargetRef,
		Conditions: discoveryv1.EndpointConditions{Ready: &ready},
	}
	if a.Hostname != "" {
		e.Hostname = &a.Hostname
	}
	return e
}

// writeSlices adds slices of one family and set of ports, named after the service and the family.
func (f *filler) writeSlices(namespace, service string, meta metav1.ObjectMeta, manager string, fam corev1.IPFamily,
	ports []discoveryv1.EndpointPort, eps []discoveryv1.Endpoint) {
	if meta.Labels == nil {
		meta.Labels = map[string]string{}
	}
	meta.Labels[discoveryv1.LabelServiceName] = service
	meta.Labels[discoveryv1.LabelManagedBy] = manager
	meta.Namespace = namespace
	for chunk := range slices.Chunk(eps, maxSliceEndpoints) {
		meta.Name = f.sliceName(namespace, service, fam)
		f.addSlice(&discoveryv1.EndpointSlice{
			ObjectMeta: meta, AddressType: discoveryv1.AddressType(fam), Ports: ports, Endpoints: chunk,
		})
	}
}

// sliceName returns the first of service-ipv4, service-ipv4-2, … that no slice has.
func (f *filler) sliceName(namespace, service string, fam corev1.IPFamily) string {
	base := service + "-" + strings.ToLower(string(fam))
	name := base
	for i := 2; f.slices[cluster.Key{Namespace: namespace, Name: name}]; i++ {
		name = fmt.Sprintf("%s-%d", base, i)
	}
	return name
}

// podIndex finds pods by namespace and one of their labels.
type podIndex map[podLabel][]*corev1.Pod

type podLabel struct{ namespace, key, value string }

// podIndex lists the pods that can be endpoints: those with addresses that are not finished.
func (f *filler) podIndex() podIndex {
	index := podIndex{}
	for _, p := range f.c.Pods {
		if len(p.Status.PodIPs) == 0 || finished(p) {
			continue
		}
		for k, v := range p.Labels {
			l := podLabel{p.Namespace, k, v}
			index[l] = append(index[l], p)
		}
	}
	return index
}

func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// selected returns the pods that s selects, in the order of keys.
func (x podIndex) selected(s *corev1.Service) []*corev1.Pod {
	var candidates []*corev1.Pod
	rarest := -1
	for k, v := range s.Spec.Selector {
		if ps := x[podLabel{s.Namespace, k, v}]; rarest < 0 || len(ps) < rarest {
			candidates, rarest = ps, len(ps)
		}
	}
	selector := labels.SelectorFromSet(s.Spec.Selector)
	var pods []*corev1.Pod
	for _, p := range candidates {
		if selector.Matches(labels.Set(p.Labels)) {
			pods = append(pods, p)
		}
	}
	return pods
}

// portGroup is pods that a service's ports lead to the same port numbers.
type portGroup struct {
	ports []discoveryv1.EndpointPort
	pods  []*corev1.Pod
}

// synthesise makes the slices of a service from the pods that it selects, as the EndpointSlice controller does: for each
// family and each distinct outcome of its named target ports.
func (f *filler) synthesise(s *corev1.Service, pods podIndex) {
	var groups []*portGroup
	byPorts := map[string]*portGroup{}
	for _, p := range pods.selected(s) {
		ports := resolvePorts(s, p)
		id := portsID(ports)
		if byPorts[id] == nil {
			byPorts[id] = &portGroup{ports: ports}
			groups = append(groups, byPorts[id])
		}
		byPorts[id].pods = append(byPorts[id].pods, p)
	}
	zones := f.zones()
	for _, g := range groups {
		for _, fam := range s.Spec.IPFamilies {
			var eps []discoveryv1.Endpoint
			for _, p := range g.pods {
				if e := podEndpoint(s, p, fam, zones); len(e.Addresses) > 0 {
					eps = append(eps, e)
				}
			}
			meta := metav1.ObjectMeta{Labels: maps.Clone(s.Labels)}
			if headless(s) {
				if meta.Labels == nil {
					meta.Labels = map[string]string{}
				}
				meta.Labels[corev1.IsHeadlessService] = ""
			}
			f.writeSlices(s.Namespace, s.Name, meta, sliceController, fam, g.ports, eps)
		}
	}
}

// zones returns the zone of each node by name.
func (f *filler) zones() map[string]string {
	if f.nodeZones == nil {
		f.nodeZones = map[string]string{}
		for _, n := range f.c.Nodes {
			f.nodeZones[n.Name] = n.Labels[corev1.LabelTopologyZone]
		}
	}
	return f.nodeZones
}

// resolvePorts returns where the ports of s lead in p. A port whose target p does not name is left out.
func resolvePorts(s *corev1.Service, p *corev1.Pod) []discoveryv1.EndpointPort {
	var ports []discoveryv1.EndpointPort
	for _, sp := range s.Spec.Ports {
		if n, ok := resolvePort(sp, p); ok {
			ports = append(ports, discoveryv1.EndpointPort{Name: new(sp.Name), Protocol: new(sp.Protocol), Port: &n})
		}
	}
	return ports
}

func resolvePort(sp corev1.ServicePort, p *corev1.Pod) (int32, bool) {
	if sp.TargetPort.Type == intstr.Int {
		return sp.TargetPort.IntVal, true
	}
	for _, containers := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for _, c := range containers {
			for _, cp := range c.Ports {
				if cp.Name == sp.TargetPort.StrVal && cmp.Or(cp.Protocol, corev1.ProtocolTCP) == sp.Protocol {
					return cp.ContainerPort, true
				}
			}
		}
	}
	return 0, false
}

func portsID(ports []discoveryv1.EndpointPort) string {
	var b strings.Builder
	for _, p := range ports {
		fmt.Fprintf(&b, "%s/%s/%d ", *p.Name, *p.Protocol, *p.Port)
	}
	return b.String()
}

// podEndpoint returns p as an endpoint of s; it has no addresses if p has none of the family.
func podEndpoint(s *corev1.Service, p *corev1.Pod, fam corev1.IPFamily, zones map[string]string) discoveryv1.Endpoint {
	serving, terminating := ready(p), p.DeletionTimestamp != nil
	e := discoveryv1.Endpoint{
		Conditions: discoveryv1.EndpointConditions{
			Ready: new(s.Spec.PublishNotReadyAddresses || serving && !terminating), Serving: &serving, Terminating: &terminating,
		},
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	for _, ip := range p.Status.PodIPs {
		if familyOf(ip.IP) == fam {
			e.Addresses = append(e.Addresses, ip.IP)
		}
	}
	if p.Spec.Hostname != "" && p.Spec.Subdomain == s.Name {
		e.Hostname = &p.Spec.Hostname
	}
	if node := p.Spec.NodeName; node != "" {
		e.NodeName = &node
		if zone := zones[node]; zone != "" {
			e.Zone = &zone
		}
	}
	if *e.Conditions.Ready {
		e.Hints = hints(deref(s.Spec.TrafficDistribution), &e)
	}
	return e
}

// hints returns the hints that say what a service's trafficDistribution says (KEP-4444, KEP-3015): who is near prefers e.
func hints(distribution string, e *discoveryv1.Endpoint) *discoveryv1.EndpointHints {
	h := &discoveryv1.EndpointHints{}
	if distribution != "" && e.Zone != nil {
		h.ForZones = []discoveryv1.ForZone{{Name: *e.Zone}}
	}
	if distribution == corev1.ServiceTrafficDistributionPreferSameNode && e.NodeName != nil {
		h.ForNodes = []discoveryv1.ForNode{{Name: *e.NodeName}}
	}
	if h.ForZones == nil && h.ForNodes == nil {
		return nil
	}
	return h
}

// ready reads the condition Ready. A pod without any condition is ready, so that files can be short.
func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return len(p.Status.Conditions) == 0
}
