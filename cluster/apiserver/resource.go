package apiserver

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	networkingv1beta1 "k8s.io/api/networking/v1beta1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// resource is where the API serves a kind.
type resource struct {
	kind cluster.Kind
	// name is the kind in URLs and in RBAC rules.
	name string
	// versions are the groups and versions that may serve it, the best one first.
	versions []schema.GroupVersion
	// fields is a field selector, which an interest may narrow.
	fields string
	// optional says that a cluster may do without it, or a role without the right to it.
	optional bool
	// jsonOnly marks custom resources, which have no protobuf form.
	jsonOnly bool
	// missing says what a server that does not know the kind lacks.
	missing string
}

func resourceOf(k cluster.Kind) resource {
	switch k {
	case cluster.KindNamespace:
		return resource{kind: k, name: "namespaces", versions: []schema.GroupVersion{corev1.SchemeGroupVersion}}
	case cluster.KindService:
		return resource{kind: k, name: "services", versions: []schema.GroupVersion{corev1.SchemeGroupVersion}}
	case cluster.KindSlice:
		return resource{kind: k, name: "endpointslices", versions: []schema.GroupVersion{discoveryv1.SchemeGroupVersion},
			missing: "discovery.k8s.io/v1, which Kubernetes has since 1.21"}
	case cluster.KindPod:
		return resource{kind: k, name: "pods", versions: []schema.GroupVersion{corev1.SchemeGroupVersion},
			fields: "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown"}
	case cluster.KindNode:
		return resource{kind: k, name: "nodes", versions: []schema.GroupVersion{corev1.SchemeGroupVersion}, optional: true}
	case cluster.KindServiceCIDR:
		return resource{kind: k, name: "servicecidrs", versions: []schema.GroupVersion{
			networkingv1.SchemeGroupVersion, networkingv1beta1.SchemeGroupVersion,
		}, optional: true, missing: "networking.k8s.io/v1 ServiceCIDR, which Kubernetes has since 1.33 (KEP-1880)"}
	case cluster.KindConfigMap:
		return resource{kind: k, name: "configmaps", versions: []schema.GroupVersion{corev1.SchemeGroupVersion}}
	default:
		return resource{kind: cluster.KindServiceImport, name: mcsv1alpha1.ServiceImportPluralName,
			versions: []schema.GroupVersion{mcsv1alpha1.SchemeGroupVersion}, optional: true, jsonOnly: true,
			missing: "the CustomResourceDefinition " + mcsv1alpha1.ServiceImportFullName + " (MCS-API, KEP-1645)"}
	}
}

// labelSelector is the label selector that interest has for the resource.
func (r resource) labelSelector(interest cluster.Interest) string {
	switch r.kind {
	case cluster.KindNamespace:
		return interest.NamespaceLabels
	case cluster.KindService:
		return both(interest.Labels, interest.ServiceLabels)
	case cluster.KindSlice:
		return both(interest.Labels, interest.SliceLabels)
	case cluster.KindPod:
		return interest.Labels
	case cluster.KindConfigMap:
		return interest.ConfigMapLabels
	}
	return ""
}

// fieldSelector is the field selector that interest has for the resource.
func (r resource) fieldSelector(interest cluster.Interest) string {
	switch {
	case r.kind == cluster.KindPod && interest.NodeName != "":
		return both(r.fields, fields.OneTermEqualSelector("spec.nodeName", interest.NodeName).String())
	case r.kind == cluster.KindService && interest.NoHeadless:
		return both(r.fields, fields.OneTermNotEqualSelector("spec.clusterIP", corev1.ClusterIPNone).String())
	case r.kind == cluster.KindNode && interest.OneNode:
		return both(r.fields, fields.OneTermEqualSelector("metadata.name", interest.NodeName).String())
	}
	return r.fields
}

// both returns the selector of what two selectors select.
func both(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "," + b
}

// rule is the RBAC rule that allows to read the resource.
func (r resource) rule() string {
	return fmt.Sprintf("apiGroups: [%q], resources: [%q], verbs: [\"list\", \"watch\"]", r.versions[0].Group, r.name)
}

// objectKind returns what an object of the resource is called in the API, in version gv.
func (r resource) objectKind(gv schema.GroupVersion) schema.GroupVersionKind {
	return gv.WithKind(r.kind.String())
}

// namespaced reports whether objects of the kind live in namespaces.
func (r resource) namespaced() bool {
	switch r.kind {
	case cluster.KindNamespace, cluster.KindNode, cluster.KindServiceCIDR:
		return false
	}
	return true
}
