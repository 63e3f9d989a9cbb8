package contract

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

func testWatchFromVersion(t *testing.T, s *suite) {
	ns := s.namespace(t)
	before := s.service(t, ns, "before", nil)
	list := s.listServices(t, ns, metav1.ListOptions{})
	missed := s.service(t, ns, "missed", nil)
	w := s.watchServices(t, ns, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	last := s.relabel(t, before, map[string]string{"a": "b"})
	s.deleteService(t, missed)

	var versions []uint64
	for _, want := range []struct {
		typ  watch.EventType
		name string
	}{{watch.Added, "missed"}, {watch.Modified, "before"}, {watch.Deleted, "missed"}} {
		m := expect(t, w, want.typ, want.name)
		versions = append(versions, version(t, m.GetResourceVersion()))
	}
	// A deletion has a version of its own, and the object it tells of has that version.
	if !slices.IsSorted(versions) || versions[2] <= version(t, last.ResourceVersion) {
		t.Errorf("versions %v do not rise", versions)
	}
}

func testWatchFromNow(t *testing.T, s *suite) {
	ns := s.namespace(t)
	s.service(t, ns, "b", nil)
	s.service(t, ns, "a", nil)
	for _, rv := range []string{"", "0"} {
		w := s.watchServices(t, ns, metav1.ListOptions{ResourceVersion: rv})
		// From a version of the server's choice, what there was when it was asked need not all be there at first.
		got := map[string]bool{}
		for range 2 {
			e := next(t, w)
			if e.Type != watch.Added {
				t.Fatalf("version %q: event %s", rv, e.Type)
			}
			got[e.Object.(*corev1.Service).Name] = true
		}
		if d := cmp.Diff(map[string]bool{"a": true, "b": true}, got); d != "" {
			t.Errorf("version %q:\n%s", rv, d)
		}
		c := s.service(t, ns, "c", nil)
		expect(t, w, watch.Added, "c")
		s.deleteService(t, c)
		expect(t, w, watch.Deleted, "c")
	}
}

func testWatchNamespace(t *testing.T, s *suite) {
	ns, other := s.namespace(t), s.namespace(t)
	list := s.listServices(t, "", metav1.ListOptions{})
	here := s.watchServices(t, ns, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	all := s.watchServices(t, "", metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	named := s.watchServices(t, ns, metav1.ListOptions{ResourceVersion: list.ResourceVersion, FieldSelector: "metadata.name=last"})
	s.service(t, other, "elsewhere", nil)
	s.service(t, ns, "first", nil)
	s.service(t, ns, "last", nil)
	expect(t, here, watch.Added, "first")
	expect(t, here, watch.Added, "last")
	expect(t, all, watch.Added, "elsewhere")
	expect(t, all, watch.Added, "first")
	expect(t, named, watch.Added, "last")
}

// An object that begins to be selected is added to what a watcher sees, and one that ceases to be is deleted from it.
func testWatchSelectors(t *testing.T, s *suite) {
	ns := s.namespace(t)
	list := s.listServices(t, ns, metav1.ListOptions{})
	w := s.watchServices(t, ns, metav1.ListOptions{ResourceVersion: list.ResourceVersion, LabelSelector: "seen"})
	seen := map[string]string{"seen": "1"}
	svc := s.relabel(t, s.service(t, ns, "svc", nil), seen)
	expect(t, w, watch.Added, "svc")
	svc = s.relabel(t, svc, map[string]string{"seen": "2"})
	expect(t, w, watch.Modified, "svc")
	svc = s.relabel(t, svc, nil)
	gone := expect(t, w, watch.Deleted, "svc")
	// The watcher is told the last state it knew, as of the change.
	if gone.GetLabels()["seen"] != "2" || gone.GetResourceVersion() != svc.ResourceVersion {
		t.Errorf("deleted at %s with %v, want %s with the labels before", gone.GetResourceVersion(), gone.GetLabels(), svc.ResourceVersion)
	}
	s.deleteService(t, svc)
	s.service(t, ns, "end", seen)
	expect(t, w, watch.Added, "end")

	pod := s.pod(t, ns, "pod", "n1")
	pods, err := s.client.CoreV1().Pods(ns).Watch(t.Context(), metav1.ListOptions{
		ResourceVersion: pod.ResourceVersion, FieldSelector: "status.phase!=Succeeded,spec.nodeName=n1",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pods.Stop)
	pod = s.setPhase(t, pod, corev1.PodRunning)
	expect(t, pods, watch.Modified, "pod")
	s.setPhase(t, pod, corev1.PodSucceeded)
	if gone := expect(t, pods, watch.Deleted, "pod").(*corev1.Pod); gone.Status.Phase != corev1.PodRunning {
		t.Errorf("deleted in phase %s", gone.Status.Phase)
	}
}

func watchList(more metav1.ListOptions) metav1.ListOptions {
	more.SendInitialEvents = new(bool)
	*more.SendInitialEvents = true
	more.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
	more.AllowWatchBookmarks = true
	return more
}

// KEP-3157: what there is, a bookmark that says so, and then what happens.
func testInitialEvents(t *testing.T, s *suite) {
	ns := s.namespace(t)
	s.service(t, ns, "b", nil)
	s.service(t, ns, "a", map[string]string{"app": ""})
	last := s.service(t, ns, "c", nil)
	for name, c := range map[string]struct {
		opts metav1.ListOptions
		want []string
	}{
		"all":      {metav1.ListOptions{}, []string{"a", "b", "c"}},
		"zero":     {metav1.ListOptions{ResourceVersion: "0"}, []string{"a", "b", "c"}},
		"version":  {metav1.ListOptions{ResourceVersion: last.ResourceVersion}, []string{"a", "b", "c"}},
		"selected": {metav1.ListOptions{LabelSelector: "app"}, []string{"a"}},
		"none":     {metav1.ListOptions{LabelSelector: "nothing"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := s.watchServices(t, ns, watchList(c.opts))
			var got []string
			e := next(t, w)
			for ; e.Type == watch.Added; e = next(t, w) {
				got = append(got, e.Object.(*corev1.Service).Name)
			}
			slices.Sort(got)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
			if e.Type != watch.Bookmark || !initialEventsEnd(e) {
				t.Fatalf("event %s %v, want the bookmark at the end", e.Type, e.Object)
			}
			mark, ok := e.Object.(*corev1.Service)
			if !ok || mark.Name != "" || version(t, mark.ResourceVersion) < version(t, last.ResourceVersion) {
				t.Errorf("bookmark %+v behind version %s", e.Object, last.ResourceVersion)
			}
			new := s.service(t, ns, "new", map[string]string{"app": "", "nothing": ""})
			expect(t, w, watch.Added, "new")
			s.deleteService(t, new)
			expect(t, w, watch.Deleted, "new")
			last = new
		})
	}
	t.Run("without bookmarks", func(t *testing.T) {
		opts := watchList(metav1.ListOptions{LabelSelector: "app"})
		opts.AllowWatchBookmarks = false
		w := s.watchServices(t, ns, opts)
		expect(t, w, watch.Added, "a")
		s.service(t, ns, "later", map[string]string{"app": ""})
		expect(t, w, watch.Added, "later")
	})
}

func testWatchOptions(t *testing.T, s *suite) {
	for _, q := range []url.Values{
		{"sendInitialEvents": {"true"}},
		{"sendInitialEvents": {"true"}, "resourceVersionMatch": {"Exact"}},
		{"resourceVersionMatch": {"NotOlderThan"}},
	} {
		q.Set("watch", "true")
		s.wantStatus(t, "/api/v1/services", q, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	}
	s.wantStatus(t, "/api/v1/services", url.Values{"watch": {"1"}, "fieldSelector": {"spec.nothing=a"}},
		http.StatusBadRequest, metav1.StatusReasonBadRequest)
}

// By the time of the test, version 1 has to be older than what the server remembers.
//
// The watch begins well, and its first event is the error.
func testWatchTooOld(t *testing.T, s *suite) {
	for _, path := range []string{"/api/v1/services", "/api/v1/pods", "/apis/discovery.k8s.io/v1/endpointslices"} {
		resp, body := s.get(t, path, url.Values{
			"watch": {"true"}, "resourceVersion": {"1"}, "timeoutSeconds": {"5"},
		}, acceptJSON)
		var e struct {
			Type   string
			Object metav1.Status
		}
		if err := json.Unmarshal(body, &e); err != nil {
			t.Fatalf("%s: %s: %v", path, body, err)
		}
		if resp.StatusCode != http.StatusOK || e.Type != string(watch.Error) || e.Object.Code != http.StatusGone || e.Object.Reason != metav1.StatusReasonExpired {
			t.Errorf("%s: %s %s, want an event with 410", path, resp.Status, body)
		}
	}
	w := s.watchServices(t, "", metav1.ListOptions{ResourceVersion: "1"})
	e, _ := receive(t, w)
	if st, ok := e.Object.(*metav1.Status); e.Type != watch.Error || !ok || st.Code != http.StatusGone {
		t.Errorf("in protobuf: %s %v", e.Type, e.Object)
	}
}

// A watch from a version that is not reached yet says nothing of what happens up to it. That is how it goes for a client
// whose server has been put back to an earlier state.
func testWatchTooNew(t *testing.T, s *suite) {
	ns := s.namespace(t)
	a := s.service(t, ns, "a", nil)
	future := strconv.FormatUint(version(t, a.ResourceVersion)+1_000_000, 10)
	w := s.watchServices(t, ns, metav1.ListOptions{ResourceVersion: future})
	present := s.watchServices(t, ns, metav1.ListOptions{ResourceVersion: a.ResourceVersion})
	s.service(t, ns, "b", nil)
	expect(t, present, watch.Added, "b")
	select {
	case e := <-w.ResultChan():
		t.Errorf("event %s %v", e.Type, e.Object)
	case <-time.After(time.Second):
		// Silence cannot be waited for to its end.
	}

	// But what there is at that version cannot be told, and the server says so.
	w = s.watchServices(t, ns, watchList(metav1.ListOptions{ResourceVersion: future}))
	e := next(t, w)
	if st, ok := e.Object.(*metav1.Status); e.Type != watch.Error || !ok || st.Code != http.StatusGatewayTimeout {
		t.Errorf("initial events: %s %v, want an error with 504", e.Type, e.Object)
	}
}

func testWatchTimeout(t *testing.T, s *suite) {
	ns := s.namespace(t)
	svc := s.service(t, ns, "svc", nil)
	seconds := int64(2)
	w := s.watchServices(t, ns, metav1.ListOptions{
		ResourceVersion: svc.ResourceVersion, TimeoutSeconds: &seconds, AllowWatchBookmarks: true,
	})
	for {
		e, ok := receive(t, w)
		if !ok {
			return
		}
		if e.Type != watch.Bookmark {
			t.Fatalf("event %s %v", e.Type, e.Object)
		}
		if got := e.Object.(*corev1.Service).ResourceVersion; version(t, got) < version(t, svc.ResourceVersion) {
			t.Errorf("bookmark at %s, the watch began at %s", got, svc.ResourceVersion)
		}
	}
}

func testWatchEncodings(t *testing.T, s *suite) {
	ns := s.namespace(t)
	list := s.listServices(t, ns, metav1.ListOptions{})
	svc := s.service(t, ns, "svc", nil)
	path := "/api/v1/namespaces/" + ns + "/services"
	query := url.Values{"watch": {"true"}, "resourceVersion": {list.ResourceVersion}, "timeoutSeconds": {"1"}}

	resp, body := s.get(t, path, query, acceptProto+";stream=watch")
	if got := resp.Header.Get("Content-Type"); got != acceptProto+";stream=watch" {
		t.Errorf("Content-Type %q", got)
	}
	if len(body) < 4 || uint64(len(body)-4) != uint64(binary.BigEndian.Uint32(body)) {
		t.Fatalf("%d bytes, and not one frame", len(body))
	}
	var frame metav1.WatchEvent
	if err := frame.Unmarshal(body[4:]); err != nil {
		t.Fatal(err)
	}
	raw, magic := bytes.CutPrefix(frame.Object.Raw, []byte("k8s\x00"))
	var envelope runtime.Unknown
	if err := envelope.Unmarshal(raw); err != nil || !magic {
		t.Fatalf("object of the frame: magic %v, %v", magic, err)
	}
	var got corev1.Service
	if err := got.Unmarshal(envelope.Raw); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(svc, &got); d != "" || frame.Type != string(watch.Added) || envelope.Kind != "Service" {
		t.Errorf("event %s of a %s:\n%s", frame.Type, envelope.Kind, d)
	}

	resp, body = s.get(t, path, query, acceptJSON)
	if got := resp.Header.Get("Content-Type"); got != acceptJSON {
		t.Errorf("Content-Type %q", got)
	}
	var e struct {
		Type   string
		Object corev1.Service
	}
	if err := json.Unmarshal(body, &e); err != nil {
		t.Fatal(err)
	}
	if e.Type != string(watch.Added) || e.Object.Kind != "Service" || e.Object.APIVersion != "v1" || e.Object.Name != "svc" {
		t.Errorf("event %s", body)
	}
}

var imports = schema.GroupVersionResource{Group: "multicluster.x-k8s.io", Version: "v1alpha1", Resource: "serviceimports"}

// Custom resources come in JSON, whatever else the client would take, and their items say what they are.
func testCustom(t *testing.T, s *suite) {
	ns := s.namespace(t)
	client, err := dynamic.NewForConfigAndClient(s.config, s.http)
	if err != nil {
		t.Fatal(err)
	}
	in := client.Resource(imports).Namespace(ns)
	w, err := in.Watch(t.Context(), watchList(metav1.ListOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	if e := next(t, w); !initialEventsEnd(e) {
		t.Fatalf("event %s %v, want the bookmark at the end", e.Type, e.Object)
	}
	if _, err := in.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceImport",
		"metadata": map[string]any{"name": "far"},
		"spec": map[string]any{
			"type": "ClusterSetIP", "ips": []any{"10.9.9.9"}, "ports": []any{map[string]any{"port": int64(80), "protocol": "TCP"}},
		},
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect(t, w, watch.Added, "far")
	path := "/apis/multicluster.x-k8s.io/v1alpha1/namespaces/" + ns + "/serviceimports"
	resp, body := s.get(t, path, nil, acceptProto+","+acceptJSON)
	var list struct {
		Kind  string
		Items []metav1.TypeMeta
	}
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatalf("%s %s: %v", resp.Status, body, err)
	}
	want := []metav1.TypeMeta{{Kind: "ServiceImport", APIVersion: "multicluster.x-k8s.io/v1alpha1"}}
	if d := cmp.Diff(want, list.Items); d != "" || list.Kind != "ServiceImportList" {
		t.Errorf("%s: %s", list.Kind, d)
	}
	if resp, _ := s.get(t, path, nil, acceptProto); resp.StatusCode != http.StatusNotAcceptable {
		t.Errorf("in protobuf alone: %s", resp.Status)
	}
}

func testInformer(t *testing.T, s *suite) {
	ns := s.namespace(t)
	old := s.service(t, ns, "old", nil)
	factory := informers.NewSharedInformerFactoryWithOptions(s.client, 0, informers.WithNamespace(ns))
	informer := factory.Core().V1().Services()
	seen := make(chan string, 16)
	if _, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { seen <- "add " + o.(*corev1.Service).Name },
		UpdateFunc: func(_, o any) { seen <- "update " + o.(*corev1.Service).Name },
		DeleteFunc: func(o any) { seen <- "delete " + o.(*corev1.Service).Name },
	}); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	factory.Start(stop)
	defer factory.Shutdown()
	defer close(stop)
	want := func(what string) {
		t.Helper()
		select {
		case got := <-seen:
			if got != what {
				t.Fatalf("informer: %s, want %s", got, what)
			}
		case <-time.After(patience):
			t.Fatalf("informer: nothing, want %s", what)
		}
	}
	want("add old")
	old = s.relabel(t, old, map[string]string{"a": "b"})
	want("update old")
	s.service(t, ns, "new", nil)
	want("add new")
	s.deleteService(t, old)
	want("delete old")
}
