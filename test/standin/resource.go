package standin

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"
)

// resource describes one of the kinds that are served.
type resource struct {
	schema.GroupVersionKind
	// plural is what paths say.
	plural     string
	namespaced bool
	// custom tells a kind that a CustomResourceDefinition would define; the API server has no protobuf for those.
	custom bool
	// fields are the ones that field selectors know beside metadata.name and metadata.namespace.
	fields map[string]func(runtime.Object) string
	// complete fills in what an API server does. It may be nil.
	complete func(runtime.Object)
	// bornWithStatus tells that a create may set the status.
	bornWithStatus bool
	// setStatus copies the status of one object into another. It is nil where there is no status of its own.
	setStatus func(to, from runtime.Object)
}

// field, fill and status let the descriptions below speak of the types themselves.
func field[T runtime.Object](get func(T) string) func(runtime.Object) string {
	return func(o runtime.Object) string { return get(o.(T)) }
}

func fill[T runtime.Object](f func(T)) func(runtime.Object) {
	return func(o runtime.Object) { f(o.(T)) }
}

func status[T runtime.Object](set func(to, from T)) func(to, from runtime.Object) {
	return func(to, from runtime.Object) { set(to.(T), from.(T)) }
}

var resources = []*resource{
	{
		GroupVersionKind: corev1.SchemeGroupVersion.WithKind("Namespace"), plural: "namespaces",
		fields: map[string]func(runtime.Object) string{
			"status.phase": field(func(n *corev1.Namespace) string { return string(n.Status.Phase) }),
		},
		complete:  fill(completeNamespace),
		setStatus: status(func(to, from *corev1.Namespace) { to.Status = from.Status }),
	}, {
		GroupVersionKind: corev1.SchemeGroupVersion.WithKind("Service"), plural: "services", namespaced: true,
		fields: map[string]func(runtime.Object) string{
			"spec.clusterIP": field(func(s *corev1.Service) string { return s.Spec.ClusterIP }),
			"spec.type":      field(func(s *corev1.Service) string { return string(s.Spec.Type) }),
		},
		complete:  fill(completeService),
		setStatus: status(func(to, from *corev1.Service) { to.Status = from.Status }),
	}, {
		GroupVersionKind: corev1.SchemeGroupVersion.WithKind("Pod"), plural: "pods", namespaced: true,
		fields: map[string]func(runtime.Object) string{
			"spec.nodeName":            field(func(p *corev1.Pod) string { return p.Spec.NodeName }),
			"spec.restartPolicy":       field(func(p *corev1.Pod) string { return string(p.Spec.RestartPolicy) }),
			"spec.schedulerName":       field(func(p *corev1.Pod) string { return p.Spec.SchedulerName }),
			"spec.serviceAccountName":  field(func(p *corev1.Pod) string { return p.Spec.ServiceAccountName }),
			"spec.hostNetwork":         field(func(p *corev1.Pod) string { return strconv.FormatBool(p.Spec.HostNetwork) }),
			"status.phase":             field(func(p *corev1.Pod) string { return string(p.Status.Phase) }),
			"status.podIP":             field(func(p *corev1.Pod) string { return p.Status.PodIP }),
			"status.nominatedNodeName": field(func(p *corev1.Pod) string { return p.Status.NominatedNodeName }),
		},
		complete:  fill(completePod),
		setStatus: status(func(to, from *corev1.Pod) { to.Status = from.Status }),
	}, {
		GroupVersionKind: corev1.SchemeGroupVersion.WithKind("Node"), plural: "nodes",
		fields: map[string]func(runtime.Object) string{
			"spec.unschedulable": field(func(n *corev1.Node) string { return strconv.FormatBool(n.Spec.Unschedulable) }),
		},
		bornWithStatus: true,
		setStatus:      status(func(to, from *corev1.Node) { to.Status = from.Status }),
	}, {
		GroupVersionKind: corev1.SchemeGroupVersion.WithKind("ConfigMap"), plural: "configmaps", namespaced: true,
	}, {
		GroupVersionKind: discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), plural: "endpointslices",
		namespaced: true, complete: fill(completeSlice),
	}, {
		GroupVersionKind: networkingv1.SchemeGroupVersion.WithKind("ServiceCIDR"), plural: "servicecidrs",
		setStatus: status(func(to, from *networkingv1.ServiceCIDR) { to.Status = from.Status }),
	}, {
		GroupVersionKind: schema.GroupVersionKind{Group: mcs.GroupName, Version: mcs.GroupVersion.Version, Kind: "ServiceImport"},
		plural:           "serviceimports",
		namespaced:       true, custom: true,
		setStatus: status(func(to, from *mcs.ServiceImport) { to.Status = from.Status }),
	},
}

// The defaults are those of k8s.io/kubernetes/pkg/apis, where a reader of Ropewalk's could tell.

func completeNamespace(n *corev1.Namespace) {
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	n.Labels[corev1.LabelMetadataName] = n.Name
	n.Status.Phase = orDefault(n.Status.Phase, corev1.NamespaceActive)
}

func completeService(s *corev1.Service) {
	spec := &s.Spec
	spec.Type = orDefault(spec.Type, corev1.ServiceTypeClusterIP)
	spec.SessionAffinity = orDefault(spec.SessionAffinity, corev1.ServiceAffinityNone)
	if len(spec.ClusterIPs) == 0 && spec.ClusterIP != "" {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	if len(spec.ClusterIPs) > 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		p.Protocol = orDefault(p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == (intstr.IntOrString{}) {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	completeTraffic(s)
}

// completeTraffic is the part of completeService that only proxies of services read.
func completeTraffic(s *corev1.Service) {
	spec := &s.Spec
	if spec.SessionAffinity == corev1.ServiceAffinityClientIP && spec.SessionAffinityConfig == nil {
		spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To(corev1.DefaultClientIPServiceAffinitySeconds)}}
	}
	balanced := spec.Type == corev1.ServiceTypeLoadBalancer
	if balanced || spec.Type == corev1.ServiceTypeNodePort || spec.Type == corev1.ServiceTypeClusterIP && len(spec.ExternalIPs) > 0 {
		spec.ExternalTrafficPolicy = orDefault(spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if spec.Type != corev1.ServiceTypeExternalName {
		spec.InternalTrafficPolicy = orDefault(spec.InternalTrafficPolicy, ptr.To(corev1.ServiceInternalTrafficPolicyCluster))
	}
	if !balanced {
		return
	}
	spec.AllocateLoadBalancerNodePorts = orDefault(spec.AllocateLoadBalancerNodePorts, ptr.To(true))
	for i := range s.Status.LoadBalancer.Ingress {
		if ing := &s.Status.LoadBalancer.Ingress[i]; ing.IP != "" {
			ing.IPMode = orDefault(ing.IPMode, ptr.To(corev1.LoadBalancerIPModeVIP))
		}
	}
}

func completePod(p *corev1.Pod) {
	p.Status.Phase = orDefault(p.Status.Phase, corev1.PodPending)
	p.Spec.RestartPolicy = orDefault(p.Spec.RestartPolicy, corev1.RestartPolicyAlways)
	p.Spec.SchedulerName = orDefault(p.Spec.SchedulerName, corev1.DefaultSchedulerName)
	p.Spec.EnableServiceLinks = orDefault(p.Spec.EnableServiceLinks, ptr.To(corev1.DefaultEnableServiceLinks))
}

func completeSlice(s *discoveryv1.EndpointSlice) {
	for i := range s.Ports {
		p := &s.Ports[i]
		p.Name = orDefault(p.Name, ptr.To(""))
		p.Protocol = orDefault(p.Protocol, ptr.To(corev1.ProtocolTCP))
	}
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// selectable tells whether field selectors of the resource may name a field.
func (r *resource) selectable(name string) bool {
	if name == "metadata.name" || name == "metadata.namespace" && r.namespaced {
		return true
	}
	_, ok := r.fields[name]
	return ok
}

// groupResource is what errors call the resource.
func (r *resource) groupResource() schema.GroupResource {
	return schema.GroupResource{Group: r.Group, Resource: r.plural}
}

// fieldsOf is the view that field selectors have of an object. It makes no map, for it is asked at every event.
type fieldsOf struct{ *object }

var _ fields.Fields = fieldsOf{}

func (f fieldsOf) Has(name string) bool { return f.resource.selectable(name) }

func (f fieldsOf) Get(name string) string {
	switch name {
	case "metadata.name":
		return f.key.name
	case "metadata.namespace":
		return f.key.namespace
	}
	if get, ok := f.resource.fields[name]; ok {
		return get(f.value)
	}
	return ""
}

var (
	scheme  = newScheme()
	decoder = serializer.NewCodecFactory(scheme).UniversalDeserializer()
)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme, mcs.Install,
	} {
		if err := add(s); err != nil {
			panic(err) // Two kinds of one name: the list above is wrong.
		}
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return s
}

// decode reads an object of a kind that is served, in JSON, YAML or protobuf.
func decode(raw []byte) (runtime.Object, error) {
	o, _, err := decoder.Decode(raw, nil, nil)
	return o, err
}

// typed returns a copy of o as the type of its kind, and the resource it is of.
func typed(o runtime.Object) (runtime.Object, *resource, error) {
	if u, ok := o.(*unstructured.Unstructured); ok {
		t, err := scheme.New(u.GroupVersionKind())
		if err != nil {
			return nil, nil, err
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, t); err != nil {
			return nil, nil, err
		}
		o = t
	} else {
		o = o.DeepCopyObject()
	}
	kinds, _, err := scheme.ObjectKinds(o)
	if err != nil {
		return nil, nil, err
	}
	for _, r := range resources {
		if r.GroupVersionKind == kinds[0] {
			return o, r, nil
		}
	}
	return nil, nil, fmt.Errorf("kind %s is not served", kinds[0])
}

// newObject returns o as the server keeps it, without a place in the history yet.
func newObject(o runtime.Object) (*object, error) {
	value, r, err := typed(o)
	if err != nil {
		return nil, err
	}
	m, err := meta.Accessor(value)
	if err != nil {
		return nil, err
	}
	switch {
	case m.GetName() == "":
		return nil, fmt.Errorf("%s without a name", r.Kind)
	case !r.namespaced:
		m.SetNamespace("")
	case m.GetNamespace() == "":
		m.SetNamespace(metav1.NamespaceDefault)
	}
	if r.complete != nil {
		r.complete(value)
	}
	return wrap(r, value, m), nil
}
