package contract

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/apiserver"
)

// hostsPods are pods that differ in what the kubelet makes their hosts files of.
func hostsPods(node string) []*corev1.Pod {
	pod := func(name string, spec corev1.PodSpec) *corev1.Pod {
		spec.NodeName, spec.Containers = node, []corev1.Container{{Name: "c", Image: "i"}}
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	}
	full := pod("full", corev1.PodSpec{
		Hostname: "web", Subdomain: "nginx", EnableServiceLinks: new(false),
		HostAliases: []corev1.HostAlias{{IP: "10.1.2.3", Hostnames: []string{"foo.remote", "bar.remote"}}, {IP: "FD00::7", Hostnames: []string{"six"}}, {IP: "10.1.2.3"}},
	})
	full.Annotations = map[string]string{"ropewalk.dev/host-aliases": "[]", "other": "note"}
	return []*corev1.Pod{
		full,
		pod("host", corev1.PodSpec{HostNetwork: true}),
		pod("override", corev1.PodSpec{HostnameOverride: new("a.b.example.org")}),
		pod("plain", corev1.PodSpec{}),
	}
}

func (s *suite) createPods(t *testing.T, ns string, pods ...*corev1.Pod) {
	t.Helper()
	for _, p := range pods {
		if _, err := s.client.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// annotate gives a pod other annotations.
func (s *suite) annotate(t *testing.T, ns, name string, notes map[string]string) {
	t.Helper()
	pod, err := s.client.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Annotations = notes
	if _, err := s.client.CoreV1().Pods(ns).Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// setAddress is what the kubelet does when it knows the pod's addresses.
func (s *suite) setAddress(t *testing.T, ns, name, ip string) {
	t.Helper()
	pod, err := s.client.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
	if _, err := s.client.CoreV1().Pods(ns).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// What a pod's hosts file is made of comes back as it went in, in both encodings, and a change of an annotation is a change
// of the pod to who watches the pods of its node.
func testPodHosts(t *testing.T, s *suite) {
	ns := s.namespace(t)
	pods := hostsPods("n1")
	s.createPods(t, ns, pods...)
	s.createPods(t, ns, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "elsewhere"}, Spec: corev1.PodSpec{NodeName: "n2", Containers: pods[0].Spec.Containers}})
	proto, err := s.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=n1"})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := s.plain.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=n1"})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(proto.Items, plain.Items); d != "" {
		t.Errorf("protobuf and JSON differ:\n%s", d)
	}
	if len(proto.Items) != len(pods) {
		t.Fatalf("%d pods are on n1, want %d", len(proto.Items), len(pods))
	}
	for i, got := range proto.Items {
		made := pods[i]
		want := corev1.PodSpec{
			NodeName: "n1", Hostname: made.Spec.Hostname, Subdomain: made.Spec.Subdomain, HostnameOverride: made.Spec.HostnameOverride,
			HostNetwork: made.Spec.HostNetwork, HostAliases: made.Spec.HostAliases, EnableServiceLinks: made.Spec.EnableServiceLinks,
		}
		if want.EnableServiceLinks == nil {
			want.EnableServiceLinks = new(true)
		}
		spec := corev1.PodSpec{
			NodeName: got.Spec.NodeName, Hostname: got.Spec.Hostname, Subdomain: got.Spec.Subdomain, HostnameOverride: got.Spec.HostnameOverride,
			HostNetwork: got.Spec.HostNetwork, HostAliases: got.Spec.HostAliases, EnableServiceLinks: got.Spec.EnableServiceLinks,
		}
		if d := cmp.Diff(want, spec); d != "" || got.UID == "" || !maps.Equal(got.Annotations, made.Annotations) {
			t.Errorf("%s: UID %q, annotations %v:\n%s", made.Name, got.UID, got.Annotations, d)
		}
	}
	w, err := s.client.CoreV1().Pods(ns).Watch(t.Context(), metav1.ListOptions{ResourceVersion: proto.ResourceVersion, FieldSelector: "spec.nodeName=n1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	s.annotate(t, ns, "elsewhere", map[string]string{"ropewalk.dev/host-aliases": "[]"})
	s.annotate(t, ns, "plain", map[string]string{"ropewalk.dev/host-aliases": "[]"})
	if got := expect(t, w, watch.Modified, "plain"); got.GetAnnotations()["ropewalk.dev/host-aliases"] != "[]" {
		t.Errorf("annotations %v", got.GetAnnotations())
	}
}

func (s *suite) configMap(t *testing.T, ns, name string, labels map[string]string, data string) *corev1.ConfigMap {
	t.Helper()
	m, err := s.client.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Data:       map[string]string{"hosts": data}, BinaryData: map[string][]byte{"b": {0, 1, 2}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (s *suite) updateConfigMap(t *testing.T, m *corev1.ConfigMap) *corev1.ConfigMap {
	t.Helper()
	m, err := s.client.CoreV1().ConfigMaps(m.Namespace).Update(t.Context(), m, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func testConfigMaps(t *testing.T, s *suite) {
	ns := s.namespace(t)
	s.configMap(t, ns, "other", nil, "10.1.2.1 other\n")
	m := s.configMap(t, ns, "mine", map[string]string{"scope": "cluster"}, "10.1.2.3 foo\n")
	selected := metav1.ListOptions{LabelSelector: "scope in (cluster, namespace)"}
	list, err := s.client.CoreV1().ConfigMaps(ns).List(t.Context(), selected)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := s.plain.CoreV1().ConfigMaps(ns).List(t.Context(), selected)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]corev1.ConfigMap{*m}, list.Items); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(list.Items, plain.Items); d != "" {
		t.Errorf("protobuf and JSON differ:\n%s", d)
	}
	selected.ResourceVersion = list.ResourceVersion
	w, err := s.client.CoreV1().ConfigMaps(ns).Watch(t.Context(), selected)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	m.Data["hosts"] = "10.1.2.4 foo\n"
	m = s.updateConfigMap(t, m)
	if got := expect(t, w, watch.Modified, "mine").(*corev1.ConfigMap); got.Data["hosts"] != "10.1.2.4 foo\n" {
		t.Errorf("data %q", got.Data)
	}
	m.Labels = nil
	m = s.updateConfigMap(t, m)
	expect(t, w, watch.Deleted, "mine")
	m.Labels = map[string]string{"scope": "namespace"}
	s.updateConfigMap(t, m)
	expect(t, w, watch.Added, "mine")
	if err := s.client.CoreV1().ConfigMaps(ns).Delete(t.Context(), "mine", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect(t, w, watch.Deleted, "mine")
}

// sink hands on changes, of all kinds in one channel.
type sink struct {
	ctx     context.Context
	changes chan cluster.Change
}

func (s sink) Apply(c cluster.Change) {
	select {
	case s.changes <- c:
	case <-s.ctx.Done():
	}
}

// next returns the next change that is not the beginning of a listing.
func (s sink) next(t *testing.T) cluster.Change {
	t.Helper()
	for {
		select {
		case c := <-s.changes:
			if c.Op != cluster.Replace {
				return c
			}
		case <-time.After(patience):
			t.Fatal("no change")
		}
	}
}

// expect takes the next change, which must be an upsert, and returns the object.
func (s sink) expect(t *testing.T, want string) cluster.Object {
	t.Helper()
	c := s.next(t)
	if got := c.Op.String() + " " + c.Key.Name; got != want {
		t.Fatalf("%s %s, want %s", c.Kind, got, want)
	}
	return c.Object
}

// source runs the source that Ropewalk has for API servers until the test ends.
func (s *suite) source(t *testing.T, interest cluster.Interest) sink {
	t.Helper()
	src, err := apiserver.New(apiserver.Config{
		Kubeconfig: s.kubeconfig,
		OnError:    func(kind cluster.Kind, err error) { t.Errorf("%s: %v", kind, err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	to := sink{ctx, make(chan cluster.Change)}
	done := make(chan error)
	go func() { done <- src.Run(ctx, interest, to) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return to
}

// listed takes a listing and returns its objects by name.
func (s sink) listed(t *testing.T) map[string]cluster.Object {
	t.Helper()
	objects := map[string]cluster.Object{}
	for c := s.next(t); c.Op != cluster.Synced; c = s.next(t) {
		objects[c.Key.Name] = c.Object
	}
	return objects
}

// The pods of a node become values with all that their hosts files need; changed annotations and addresses come as upserts.
func testSourcePods(t *testing.T, s *suite) {
	ns := s.namespace(t)
	node := strings.TrimPrefix(ns, "contract-")
	pods := hostsPods(node)
	s.createPods(t, ns, pods...)
	s.pod(t, ns, "elsewhere", "n2")
	to := s.source(t, cluster.Interest{Kinds: cluster.KindsOf(cluster.KindPod), PodHosts: true, NodeName: node})
	got := map[string]*cluster.Pod{}
	uids := map[string]bool{}
	for name, o := range to.listed(t) {
		p := o.(*cluster.Pod)
		got[name] = p
		uids[p.Hosts.UID] = true
	}
	want := map[string]cluster.PodHosts{
		"full": {Hostname: "web", Subdomain: "nginx", NoServiceLinks: true, Annotations: map[string]string{"ropewalk.dev/host-aliases": "[]"},
			Aliases: []cluster.HostAlias{{IP: "10.1.2.3", Hostnames: []string{"foo.remote", "bar.remote"}}, {IP: "FD00::7", Hostnames: []string{"six"}}, {IP: "10.1.2.3"}}},
		"host": {HostNetwork: true}, "override": {HostnameOverride: "a.b.example.org"}, "plain": {},
	}
	if len(uids) != len(want) || uids[""] {
		t.Errorf("UIDs %v, want %d", slices.Collect(maps.Keys(uids)), len(want))
	}
	for name, w := range want {
		if got[name] == nil {
			t.Fatalf("%s is not among the pods of the node: %v", name, slices.Collect(maps.Keys(got)))
		}
		w.UID = got[name].Hosts.UID
		if d := cmp.Diff(&w, got[name].Hosts); d != "" || len(got[name].IPs) != 0 {
			t.Errorf("%s, with %v:\n%s", name, got[name].IPs, d)
		}
	}
	s.annotate(t, ns, "plain", map[string]string{"ropewalk.dev/host-aliases": "[1]", "other": "note"})
	p := to.expect(t, "upsert plain").(*cluster.Pod)
	if d := cmp.Diff(&cluster.PodHosts{UID: got["plain"].Hosts.UID, Annotations: map[string]string{"ropewalk.dev/host-aliases": "[1]"}}, p.Hosts); d != "" {
		t.Error(d)
	}
	s.setAddress(t, ns, "plain", "10.244.1.4")
	if p = to.expect(t, "upsert plain").(*cluster.Pod); len(p.IPs) != 1 || p.IPs[0].String() != "10.244.1.4" {
		t.Errorf("addresses %v", p.IPs)
	}
	if err := s.client.CoreV1().Pods(ns).Delete(t.Context(), "plain", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
		t.Fatal(err)
	}
	to.expect(t, "delete plain")
}

func testSourceConfigMaps(t *testing.T, s *suite) {
	ns := s.namespace(t)
	mine := map[string]string{cluster.AnnotationPrefix + "scope": ns, "other": "label"}
	s.configMap(t, ns, "other", nil, "10.1.2.1 other\n")
	m := s.configMap(t, ns, "mine", mine, "10.1.2.3 foo\n")
	to := s.source(t, cluster.Interest{
		Kinds: cluster.KindsOf(cluster.KindConfigMap), ConfigMapLabels: cluster.AnnotationPrefix + "scope=" + mine[cluster.AnnotationPrefix+"scope"],
	})
	want := &cluster.ConfigMap{Namespace: ns, Name: "mine", Labels: cluster.Own(mine), Data: map[string]string{"hosts": "10.1.2.3 foo\n"}}
	if d := cmp.Diff(map[string]cluster.Object{"mine": want}, to.listed(t)); d != "" {
		t.Error(d)
	}
	m.Data["hosts"] = "10.1.2.4 foo\n"
	m = s.updateConfigMap(t, m)
	if got := to.expect(t, "upsert mine").(*cluster.ConfigMap); got.Data["hosts"] != m.Data["hosts"] {
		t.Errorf("data %q", got.Data)
	}
	m.Labels = nil
	s.updateConfigMap(t, m)
	to.expect(t, "delete mine")
}
