package contract

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func testDiscovery(t *testing.T, s *suite) {
	if _, err := s.plain.Discovery().ServerVersion(); err != nil {
		t.Error(err)
	}
	for group, kinds := range map[string][]string{
		"v1":                             {"Namespace", "Service", "Pod", "Node", "ConfigMap"},
		"discovery.k8s.io/v1":            {"EndpointSlice"},
		"networking.k8s.io/v1":           {"ServiceCIDR"},
		"multicluster.x-k8s.io/v1alpha1": {"ServiceImport"},
	} {
		list, err := s.plain.Discovery().ServerResourcesForGroupVersion(group)
		if err != nil {
			t.Errorf("%s: %v", group, err)
			continue
		}
		served := map[string]bool{}
		for _, r := range list.APIResources {
			served[r.Kind] = true
		}
		for _, k := range kinds {
			if !served[k] {
				t.Errorf("%s does not list %s", group, k)
			}
		}
	}
	for _, path := range []string{"/apis/ropewalk.dev/v1", "/apis/ropewalk.dev/v1/nothing", "/api/v1/nothing"} {
		if resp, body := s.get(t, path, nil, acceptJSON); resp.StatusCode != 404 {
			t.Errorf("%s: %s %s, want 404", path, resp.Status, body)
		}
	}
	for _, path := range []string{"/healthz", "/readyz", "/livez"} {
		if resp, body := s.get(t, path, nil, "*/*"); resp.StatusCode != 200 || string(body) != "ok" {
			t.Errorf("%s: %s %s, want ok", path, resp.Status, body)
		}
	}
}

func testCreate(t *testing.T, s *suite) {
	ns := s.namespace(t)
	made := s.service(t, ns, "svc", nil)
	if made.UID == "" || made.CreationTimestamp.IsZero() || version(t, made.ResourceVersion) == 0 {
		t.Errorf("metadata is not complete: %+v", made.ObjectMeta)
	}
	for name, c := range map[string]struct {
		get func() (*corev1.Service, error)
	}{
		"protobuf": {func() (*corev1.Service, error) {
			return s.client.CoreV1().Services(ns).Get(t.Context(), "svc", metav1.GetOptions{})
		}},
		"json": {func() (*corev1.Service, error) {
			return s.plain.CoreV1().Services(ns).Get(t.Context(), "svc", metav1.GetOptions{})
		}},
	} {
		got, err := c.get()
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(made, got); d != "" {
			t.Errorf("%s: what was made and what is there differ:\n%s", name, d)
		}
	}
	again := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "svc"}, Spec: made.Spec}
	if _, err := s.client.CoreV1().Services(ns).Create(t.Context(), again, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("made twice: %v, want AlreadyExists", err)
	}
	again.Name, again.ResourceVersion = "other", made.ResourceVersion
	if _, err := s.client.CoreV1().Services(ns).Create(t.Context(), again, metav1.CreateOptions{}); err == nil {
		t.Error("made with a resource version")
	}
	if _, err := s.client.CoreV1().Services(ns).Get(t.Context(), "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("get: %v, want NotFound", err)
	}
}

func testUpdate(t *testing.T, s *suite) {
	ns := s.namespace(t)
	first := s.service(t, ns, "svc", nil)
	second := s.relabel(t, first, map[string]string{"a": "b"})
	if version(t, second.ResourceVersion) <= version(t, first.ResourceVersion) {
		t.Errorf("the version went from %s to %s", first.ResourceVersion, second.ResourceVersion)
	}
	if second.UID != first.UID || !second.CreationTimestamp.Equal(&first.CreationTimestamp) {
		t.Error("an update changed what stays")
	}
	if same := s.relabel(t, second, second.Labels); same.ResourceVersion != second.ResourceVersion {
		t.Errorf("an update that changes nothing made version %s of %s", same.ResourceVersion, second.ResourceVersion)
	}
	services := s.client.CoreV1().Services(ns)
	if _, err := services.Update(t.Context(), first, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("update of an old version: %v, want Conflict", err)
	}
	first.Name = "none"
	if _, err := services.Update(t.Context(), first, metav1.UpdateOptions{}); err == nil {
		t.Error("updated what is not there")
	}
}

func testStatus(t *testing.T, s *suite) {
	ns := s.namespace(t)
	pod := s.pod(t, ns, "pod", "")
	if pod.Status.Phase != corev1.PodPending {
		t.Errorf("a new pod is %q, want Pending", pod.Status.Phase)
	}
	pod.Labels, pod.Spec.NodeName = map[string]string{"a": "a"}, "n1"
	pod = s.setPhase(t, pod, corev1.PodRunning)
	// Labels are not the status, and are updated with it all the same.
	if pod.Status.Phase != corev1.PodRunning || pod.Labels["a"] != "a" || pod.Spec.NodeName != "" {
		t.Errorf("update of the status: phase %q, labels %v, node %q", pod.Status.Phase, pod.Labels, pod.Spec.NodeName)
	}
	l, err := s.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "a=a"})
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Items) != 1 {
		t.Errorf("%d pods have the label", len(l.Items))
	}
	pod.Labels, pod.Status.Phase = map[string]string{"a": "b"}, corev1.PodFailed
	pod, err = s.client.CoreV1().Pods(ns).Update(t.Context(), pod, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if pod.Status.Phase != corev1.PodRunning || pod.Labels["a"] != "b" {
		t.Errorf("update of the rest: phase %q, labels %v", pod.Status.Phase, pod.Labels)
	}
}

// testPatch holds what a program needs that tells of a node by patches of its status: annotations go with it, the spec does not, and
// conditions are merged by their types.
func testPatch(t *testing.T, s *suite) {
	nodes := s.client.CoreV1().Nodes()
	made, err := nodes.Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: s.namespace(t), Annotations: map[string]string{"old": "1"}},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: "Ready", Status: "True"}, {Type: "Other", Status: "False"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const patch = `{"metadata":{"annotations":{"new":"2","old":null}},"spec":{"unschedulable":true},"status":{"conditions":[{"type":"Other","status":"True"}]}}`
	apply := func(subresources ...string) *corev1.Node {
		t.Helper()
		n, err := nodes.Patch(t.Context(), made.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, subresources...)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	got := apply("status")
	of := map[corev1.NodeConditionType]corev1.ConditionStatus{}
	for _, c := range got.Status.Conditions {
		of[c.Type] = c.Status
	}
	if d := cmp.Diff(map[corev1.NodeConditionType]corev1.ConditionStatus{"Ready": "True", "Other": "True"}, of); d != "" {
		t.Errorf("conditions:\n%s", d)
	}
	if d := cmp.Diff(map[string]string{"new": "2"}, got.Annotations); d != "" {
		t.Errorf("annotations:\n%s", d)
	}
	if got.Spec.Unschedulable || version(t, got.ResourceVersion) <= version(t, made.ResourceVersion) {
		t.Errorf("unschedulable %t, from version %s to %s", got.Spec.Unschedulable, made.ResourceVersion, got.ResourceVersion)
	}
	if same := apply("status"); same.ResourceVersion != got.ResourceVersion {
		t.Errorf("a patch that changes nothing made version %s of %s", same.ResourceVersion, got.ResourceVersion)
	}
	if !apply().Spec.Unschedulable {
		t.Error("a patch of all but the status leaves the spec")
	}
	if _, err := nodes.PatchStatus(t.Context(), made.Name+"-none", []byte(patch)); !apierrors.IsNotFound(err) {
		t.Errorf("patch of what is not there: %v, want NotFound", err)
	}
	if _, err := nodes.Patch(t.Context(), made.Name, "text/plain", []byte(patch), metav1.PatchOptions{}); !apierrors.IsUnsupportedMediaType(err) {
		t.Errorf("patch in plain text: %v, want UnsupportedMediaType", err)
	}
	if err := nodes.Delete(t.Context(), made.Name, metav1.DeleteOptions{}); err != nil { // the contract's other nodes are to be all
		t.Error(err)
	}
}

func testDelete(t *testing.T, s *suite) {
	ns := s.namespace(t)
	svc := s.service(t, ns, "svc", nil)
	s.deleteService(t, svc)
	services := s.client.CoreV1().Services(ns)
	if err := services.Delete(t.Context(), "svc", metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("deleted twice: %v, want NotFound", err)
	}
	if again := s.service(t, ns, "svc", nil); again.UID == svc.UID ||
		version(t, again.ResourceVersion) <= version(t, svc.ResourceVersion) {
		t.Error("another object of the name is not another object")
	}
}

func testDefaults(t *testing.T, s *suite) {
	ns := s.namespace(t)
	svc := s.service(t, ns, "svc", nil)
	got := corev1.ServiceSpec{
		Type: svc.Spec.Type, ClusterIP: svc.Spec.ClusterIP, ClusterIPs: svc.Spec.ClusterIPs, Ports: svc.Spec.Ports,
		SessionAffinity: svc.Spec.SessionAffinity,
	}
	want := corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: "None", ClusterIPs: []string{"None"},
		Ports:           []corev1.ServicePort{{Name: "dns", Port: 53, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(53)}},
		SessionAffinity: corev1.ServiceAffinityNone,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("service:\n%s", d)
	}
	for _, p := range s.slice(t, ns, "slice").Ports {
		if p.Name == nil || *p.Name != "" || p.Protocol == nil || *p.Protocol != corev1.ProtocolTCP {
			t.Errorf("port of a slice: %+v", p)
		}
	}
	n, err := s.client.CoreV1().Namespaces().Get(t.Context(), ns, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n.Labels[corev1.LabelMetadataName] != ns || n.Status.Phase != corev1.NamespaceActive {
		t.Errorf("namespace: labels %v, phase %q", n.Labels, n.Status.Phase)
	}
}
