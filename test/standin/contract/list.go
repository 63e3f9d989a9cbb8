package contract

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func serviceNames(l *corev1.ServiceList) []string {
	var names []string
	for _, s := range l.Items {
		names = append(names, s.Name)
	}
	return names
}

func (s *suite) listServices(t *testing.T, ns string, opts metav1.ListOptions) *corev1.ServiceList {
	t.Helper()
	l, err := s.client.CoreV1().Services(ns).List(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func testListOrder(t *testing.T, s *suite) {
	ns, other := s.namespace(t), s.namespace(t)
	var last string
	for _, name := range []string{"b", "c", "a"} {
		s.service(t, other, name, nil)
		last = s.service(t, ns, name, nil).ResourceVersion
	}
	want := []string{"a", "b", "c"}
	for _, rv := range []string{"", last} {
		l := s.listServices(t, ns, metav1.ListOptions{ResourceVersion: rv})
		if d := cmp.Diff(want, serviceNames(l)); d != "" {
			t.Errorf("version %q:\n%s", rv, d)
		}
		for _, i := range l.Items {
			if version(t, i.ResourceVersion) > version(t, l.ResourceVersion) {
				t.Errorf("%s is of version %s, the list of %s", i.Name, i.ResourceVersion, l.ResourceVersion)
			}
		}
	}
	var keys []string
	for _, i := range s.listServices(t, "", metav1.ListOptions{}).Items {
		keys = append(keys, i.Namespace+"/"+i.Name)
	}
	if !slices.IsSorted(keys) {
		t.Errorf("of all namespaces, not in order: %q", keys)
	}
	for _, n := range []string{ns, other} {
		if !slices.Contains(keys, n+"/a") {
			t.Errorf("of all namespaces, without %s/a: %q", n, keys)
		}
	}
	if l := s.listServices(t, "contract-none", metav1.ListOptions{}); len(l.Items) != 0 {
		t.Errorf("a namespace that does not exist has %q", serviceNames(l))
	}
}

func testListSelectors(t *testing.T, s *suite) {
	ns := s.namespace(t)
	s.service(t, ns, "plain", nil)
	s.service(t, ns, "front", map[string]string{"app": "front", "old": ""})
	s.service(t, ns, "back", map[string]string{"app": "back"})
	if _, err := s.client.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "virtual"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		labels, fields string
		want           []string
	}{
		{"app", "", []string{"back", "front"}},
		{"app in (front, back),!old", "", []string{"back"}},
		{"app!=front", "", []string{"back", "plain", "virtual"}},
		{"", "metadata.name=plain", []string{"plain"}},
		{"", "metadata.namespace=contract-none", nil},
		{"", "spec.clusterIP!=None", []string{"virtual"}},
		{"", "spec.clusterIP=None,metadata.name!=plain", []string{"back", "front"}},
		{"", "spec.type=ClusterIP", []string{"back", "front", "plain", "virtual"}},
		{"!app", "spec.clusterIP=None", []string{"plain"}},
	} {
		l := s.listServices(t, ns, metav1.ListOptions{LabelSelector: c.labels, FieldSelector: c.fields})
		if d := cmp.Diff(c.want, serviceNames(l)); d != "" {
			t.Errorf("labels %q, fields %q:\n%s", c.labels, c.fields, d)
		}
	}
	path := "/api/v1/namespaces/" + ns + "/services"
	s.wantStatus(t, path, url.Values{"fieldSelector": {"spec.nothing=a"}}, http.StatusBadRequest, metav1.StatusReasonBadRequest)
	s.wantStatus(t, path, url.Values{"labelSelector": {"a in"}}, http.StatusBadRequest, metav1.StatusReasonBadRequest)
	testPodSelectors(t, s, ns)
}

func testPodSelectors(t *testing.T, s *suite, ns string) {
	s.setPhase(t, s.pod(t, ns, "done", "n1"), corev1.PodSucceeded)
	s.setPhase(t, s.pod(t, ns, "here", "n1"), corev1.PodRunning)
	s.pod(t, ns, "new", "")
	for fields, want := range map[string][]string{
		"status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown": {"here", "new"},
		"spec.nodeName=n1":                      {"done", "here"},
		"spec.nodeName=":                        {"new"},
		"spec.nodeName=n1,status.phase=Running": {"here"},
	} {
		l, err := s.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{FieldSelector: fields})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range l.Items {
			got = append(got, p.Name)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("pods of %q:\n%s", fields, d)
		}
	}
}

func testListPages(t *testing.T, s *suite) {
	ns := s.namespace(t)
	var svcs []*corev1.Service
	for i := range 5 {
		svcs = append(svcs, s.service(t, ns, fmt.Sprint("s", i), nil))
	}
	first := s.listServices(t, ns, metav1.ListOptions{Limit: 2})
	if first.Continue == "" || first.RemainingItemCount == nil || *first.RemainingItemCount != 3 {
		t.Errorf("first page: continue %q, remaining %v", first.Continue, first.RemainingItemCount)
	}
	if l := s.listServices(t, ns, metav1.ListOptions{Limit: 2, LabelSelector: "!a"}); l.Continue == "" || l.RemainingItemCount != nil {
		t.Errorf("first page with a selector: continue %q, remaining %v", l.Continue, l.RemainingItemCount)
	}
	// None of this happened yet when the list began.
	s.deleteService(t, svcs[3])
	s.service(t, ns, "s33", nil)
	s.relabel(t, svcs[4], map[string]string{"late": ""})
	got, page := serviceNames(first), first
	for page.Continue != "" {
		page = s.listServices(t, ns, metav1.ListOptions{Limit: 2, Continue: page.Continue})
		if page.ResourceVersion != first.ResourceVersion {
			t.Errorf("a page is of version %s, the first of %s", page.ResourceVersion, first.ResourceVersion)
		}
		for _, i := range page.Items {
			if _, late := i.Labels["late"]; late {
				t.Errorf("%s is newer than the list", i.Name)
			}
		}
		got = append(got, serviceNames(page)...)
	}
	if d := cmp.Diff([]string{"s0", "s1", "s2", "s3", "s4"}, got); d != "" {
		t.Error(d)
	}
	s.wantStatus(t, "/api/v1/namespaces/"+ns+"/services", url.Values{"limit": {"2"}, "continue": {"nonsense"}},
		http.StatusBadRequest, metav1.StatusReasonBadRequest)
}

func testListVersions(t *testing.T, s *suite) {
	ns := s.namespace(t)
	a, b := s.service(t, ns, "a", nil), s.service(t, ns, "b", nil)
	for _, c := range []struct {
		opts metav1.ListOptions
		want []string
	}{
		// From a's version on, b may be there or not: a server's cache may lag.
		{metav1.ListOptions{ResourceVersion: b.ResourceVersion}, []string{"a", "b"}},
		{metav1.ListOptions{ResourceVersion: b.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan}, []string{"a", "b"}},
		{metav1.ListOptions{ResourceVersion: a.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact}, []string{"a"}},
		{metav1.ListOptions{ResourceVersion: a.ResourceVersion, Limit: 10}, []string{"a"}},
	} {
		if d := cmp.Diff(c.want, serviceNames(s.listServices(t, ns, c.opts))); d != "" {
			t.Errorf("%+v:\n%s", c.opts, d)
		}
	}
	path := "/api/v1/namespaces/" + ns + "/services"
	future := strconv.FormatUint(version(t, a.ResourceVersion)+1_000_000, 10)
	st := s.wantStatus(t, path, url.Values{"resourceVersion": {future}}, http.StatusGatewayTimeout, metav1.StatusReasonTimeout)
	if !apierrors.HasStatusCause(&apierrors.StatusError{ErrStatus: st}, metav1.CauseTypeResourceVersionTooLarge) {
		t.Errorf("a version of the future: %+v", st)
	}
	for _, q := range []url.Values{
		{"resourceVersionMatch": {"Exact"}},
		{"resourceVersion": {"0"}, "resourceVersionMatch": {"Exact"}},
		{"resourceVersion": {"0"}, "resourceVersionMatch": {"Nearly"}},
		{"sendInitialEvents": {"true"}},
	} {
		s.wantStatus(t, path, q, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	}
}

func testListEncodings(t *testing.T, s *suite) {
	ns := s.namespace(t)
	s.service(t, ns, "a", map[string]string{"x": "y"})
	s.service(t, ns, "b", nil)
	s.slice(t, ns, "c")
	proto := s.listServices(t, ns, metav1.ListOptions{})
	plain, err := s.plain.CoreV1().Services(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(proto.Items, plain.Items); d != "" {
		t.Errorf("protobuf and JSON differ:\n%s", d)
	}
	for path, kind := range map[string]string{
		"/api/v1/namespaces/" + ns + "/services":                         "ServiceList",
		"/apis/discovery.k8s.io/v1/namespaces/" + ns + "/endpointslices": "EndpointSliceList",
		"/apis/networking.k8s.io/v1/servicecidrs":                        "ServiceCIDRList",
	} {
		resp, body := s.get(t, path, nil, acceptProto+","+acceptJSON)
		if got := resp.Header.Get("Content-Type"); got != acceptProto {
			t.Errorf("%s: Content-Type %q", path, got)
		}
		if len(body) < 4 || string(body[:4]) != "k8s\x00" {
			t.Fatalf("%s: no magic number", path)
		}
		var envelope runtime.Unknown
		if err := envelope.Unmarshal(body[4:]); err != nil {
			t.Fatal(err)
		}
		if envelope.Kind != kind {
			t.Errorf("%s: kind %q, want %q", path, envelope.Kind, kind)
		}
		resp, body = s.get(t, path, nil, acceptJSON)
		if got := resp.Header.Get("Content-Type"); got != acceptJSON {
			t.Errorf("%s: Content-Type %q", path, got)
		}
		var list struct {
			Kind  string
			Items []metav1.TypeMeta
		}
		if err := json.Unmarshal(body, &list); err != nil {
			t.Fatal(err)
		}
		if list.Kind != kind {
			t.Errorf("%s: kind %q, want %q", path, list.Kind, kind)
		}
		for _, i := range list.Items {
			if i.Kind != "" {
				t.Errorf("%s: an item repeats its kind %q", path, i.Kind)
			}
		}
	}
	resp, _ := s.get(t, "/api/v1/namespaces", nil, "text/html")
	if resp.StatusCode != http.StatusNotAcceptable {
		t.Errorf("a list in HTML: %s", resp.Status)
	}
}
