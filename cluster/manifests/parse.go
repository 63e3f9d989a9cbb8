package manifests

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// endpoints is deprecated in favour of slices, but clusters still mirror it, and so do we.
//
//lint:ignore SA1019 files may hold Endpoints
type endpoints = corev1.Endpoints

// Object is one object of a file, checked by itself but not against others.
type Object struct {
	File string
	// Line is where the object's name stands.
	Line int
	// APIVersion and Kind are as they are written.
	APIVersion, Kind string
	// Value is a *Namespace, *Service, *Endpoints, *Pod or *Node of v1, a discovery/v1 *EndpointSlice, a networking/v1
	// *ServiceCIDR, a multicluster.x-k8s.io/v1alpha1 *ServiceImport or a v1 *ConfigMap; nil if the kind is not understood. Of
	// pods, of ConfigMaps and of metadata it has only what this package uses. It must not be written to.
	Value metav1.Object

	// lines are those of the fields that may turn out wrong together with other objects.
	lines map[string]int
}

// Key returns the namespace and name of the object.
func (o *Object) Key() cluster.Key {
	return cluster.Key{Namespace: o.Value.GetNamespace(), Name: o.Value.GetName()}
}

// madeUp reports whether the object is in no file.
func (o *Object) madeUp() bool { return o.File == "" }

// place returns " (file:line)" for use in a sentence, nothing for what is in no file.
func (o *Object) place() string {
	if o.madeUp() {
		return ""
	}
	return fmt.Sprintf(" (%s:%d)", o.File, o.Line)
}

// fail returns an Error at field of o.
func (o *Object) fail(field, format string, args ...any) *Error {
	line, ok := o.lines[field]
	if !ok {
		line = o.Line
	}
	return &Error{
		File: o.File, Line: line, Object: o.Kind + " " + o.Key().String(), Field: field,
		Problem: fmt.Sprintf(format, args...),
	}
}

// Parse reads the objects of a file. Its name tells JSON from YAML, and is for errors. The error is the first thing
// that is wrong, an *Error; the objects before it are returned with it.
//
// Objects without a namespace get "default", as kubectl gives it to them.
func Parse(file string, data []byte) ([]Object, error) {
	p := parser{file: file}
	for n, err := range documents(file, data) {
		if err != nil {
			return p.objects, err
		}
		if err := p.object(n, "", "", 0); err != nil {
			return p.objects, err
		}
	}
	return p.objects, nil
}

type parser struct {
	file    string
	objects []Object
	// aliased and nested count what aliases and lists in lists have stood for in this file so far.
	aliased, nested int
}

// object reads the object, or the list of objects, at n. apiVersion and kind are for items of typed lists, which may
// leave out their own.
func (p *parser) object(n *yaml.Node, apiVersion, kind string, depth int) error {
	if depth > maxDepth {
		return &Error{File: p.file, Line: n.Line, Problem: fmt.Sprintf("lists nested over %d levels deep", maxDepth)}
	}
	if target(n).Kind != yaml.MappingNode {
		return &Error{File: p.file, Line: n.Line, Problem: "not a Kubernetes object; want a mapping with apiVersion, kind and metadata"}
	}
	if v := text(n, "apiVersion"); v != "" {
		apiVersion = v
	}
	if v := text(n, "kind"); v != "" {
		kind = v
	}
	switch {
	case kind == "":
		return &Error{File: p.file, Line: n.Line, Field: "kind", Problem: "missing; want one such as Service"}
	case apiVersion == "":
		return &Error{File: p.file, Line: n.Line, Field: "apiVersion", Problem: "missing; want one such as v1"}
	}
	if items := target(child(n, "items")); items != nil && strings.HasSuffix(kind, "List") {
		return p.list(items, apiVersion, strings.TrimSuffix(kind, "List"), depth)
	}
	o := Object{File: p.file, Line: lineOf(n, "metadata.name"), APIVersion: apiVersion, Kind: kind, Value: newValue(apiVersion, kind)}
	if o.Value != nil {
		if err := p.fill(&o, n); err != nil {
			return err
		}
	}
	p.objects = append(p.objects, o)
	return nil
}

func (p *parser) list(items *yaml.Node, apiVersion, kind string, depth int) error {
	if kind == "" { // v1 List: items name their own
		apiVersion = ""
	}
	if items.Kind != yaml.SequenceNode {
		if items.ShortTag() == "!!null" {
			return nil
		}
		return &Error{File: p.file, Line: items.Line, Field: "items", Problem: "not a list; want a list of objects"}
	}
	for _, item := range items.Content {
		// Aliases let lists in lists multiply; no cluster returns such lists.
		if p.nested += depth; p.nested > maxAliased {
			return &Error{File: p.file, Line: items.Line, Field: "items", Problem: fmt.Sprintf("over %d objects in nested lists; write one list", maxAliased)}
		}
		if err := p.object(item, apiVersion, kind, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// fill decodes n into o's value and checks it.
func (p *parser) fill(o *Object, n *yaml.Node) error {
	if m := decode(n, o.Value, &p.aliased); m != nil {
		return &Error{File: p.file, Line: m.line, Object: describe(o.Kind, n), Field: m.field, Problem: m.what}
	}
	if f := check(o.Value); f != nil {
		return &Error{File: p.file, Line: lineOf(n, f.field), Object: describe(o.Kind, n), Field: f.field, Problem: f.problem}
	}
	switch v := o.Value.(type) {
	case *corev1.Service:
		o.lines = map[string]int{}
		for _, f := range []string{"spec.clusterIP", "spec.clusterIPs", "spec.ipFamilyPolicy", "spec.ipFamilies", "spec.healthCheckNodePort"} {
			o.lines[f] = lineOf(n, f)
		}
		for i, p := range v.Spec.Ports {
			if f := fmt.Sprintf("spec.ports[%d].nodePort", i); p.NodePort != 0 {
				o.lines[f] = lineOf(n, f)
			}
		}
	case *corev1.Pod:
		if v.UID != "" {
			o.lines = map[string]int{"metadata.uid": lineOf(n, "metadata.uid")}
		}
	}
	trim(o.Value)
	return nil
}

// describe names an object that may not have decoded.
func describe(kind string, n *yaml.Node) string {
	meta := child(n, "metadata")
	if text(meta, "name") == "" {
		return kind
	}
	name := cluster.Key{Namespace: text(meta, "namespace"), Name: text(meta, "name")}.String()
	return kind + " " + name
}

// newValue returns an empty object of a kind, nil if the kind is not one that is understood.
func newValue(apiVersion, kind string) metav1.Object {
	switch apiVersion + " " + kind {
	case "v1 Namespace":
		return &corev1.Namespace{}
	case "v1 Service":
		return &corev1.Service{}
	case "v1 Endpoints":
		return &endpoints{}
	case "v1 Pod":
		return &corev1.Pod{}
	case "v1 Node":
		return &corev1.Node{}
	case "discovery.k8s.io/v1 EndpointSlice":
		return &discoveryv1.EndpointSlice{}
	case "networking.k8s.io/v1 ServiceCIDR", "networking.k8s.io/v1beta1 ServiceCIDR": // of the same shape
		return &networkingv1.ServiceCIDR{}
	case "multicluster.x-k8s.io/v1alpha1 ServiceImport":
		return &mcsv1alpha1.ServiceImport{}
	case "v1 ConfigMap":
		return &corev1.ConfigMap{}
	}
	return nil
}

// namespaced reports whether objects like v live in a namespace.
func namespaced(v metav1.Object) bool {
	switch v.(type) {
	case *corev1.Namespace, *corev1.Node, *networkingv1.ServiceCIDR:
		return false
	}
	return true
}

// trim drops what is large and not used, and sets the defaults that need no other object.
func trim(v metav1.Object) {
	switch {
	case !namespaced(v):
		v.SetNamespace("")
	case v.GetNamespace() == "":
		v.SetNamespace(metav1.NamespaceDefault)
	}
	v.SetManagedFields(nil)
	switch v := v.(type) {
	case *discoveryv1.EndpointSlice:
		for i := range v.Ports {
			v.Ports[i].Name = cmp.Or(v.Ports[i].Name, new(""))
			v.Ports[i].Protocol = cmp.Or(v.Ports[i].Protocol, new(corev1.ProtocolTCP))
		}
	case *corev1.Pod:
		trimPod(v)
	case *corev1.ConfigMap:
		v.SetAnnotations(nil)
		v.BinaryData = nil
	}
}

func trimPod(pod *corev1.Pod) {
	pod.UID = cmp.Or(pod.UID, podUID(keyOf(pod)))
	pod.SetAnnotations(cluster.Own(pod.Annotations))
	pod.Spec = corev1.PodSpec{
		NodeName: pod.Spec.NodeName, Hostname: pod.Spec.Hostname, Subdomain: pod.Spec.Subdomain,
		HostnameOverride: pod.Spec.HostnameOverride, HostNetwork: pod.Spec.HostNetwork, HostAliases: pod.Spec.HostAliases,
		EnableServiceLinks: pod.Spec.EnableServiceLinks,
		Containers:         trimContainers(pod.Spec.Containers, false), InitContainers: trimContainers(pod.Spec.InitContainers, true),
	}
	pod.Status = corev1.PodStatus{
		Phase: pod.Status.Phase, PodIP: pod.Status.PodIP, PodIPs: pod.Status.PodIPs, Conditions: pod.Status.Conditions,
	}
	if len(pod.Status.PodIPs) == 0 && pod.Status.PodIP != "" {
		pod.Status.PodIPs = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
}

// podUID returns the UID of a pod whose file gives none: the same at each reading and in each process, and in the form of
// those that API servers give (RFC 9562, version 8).
func podUID(key cluster.Key) types.UID {
	h := sha256.Sum256([]byte("pod " + key.String()))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16]))
}

// trimContainers keeps the ports; of init containers only those that stay (sidecars, KEP-753) have any that count.
func trimContainers(cs []corev1.Container, init bool) []corev1.Container {
	var out []corev1.Container
	for _, c := range cs {
		sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		if len(c.Ports) > 0 && (!init || sidecar) {
			out = append(out, corev1.Container{Name: c.Name, Ports: c.Ports})
		}
	}
	return out
}
