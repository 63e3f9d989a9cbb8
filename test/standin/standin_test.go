package standin_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"

	"github.com/ropewalk-net/ropewalk/test/standin"
)

// patience is how long something may take that should happen.
const patience = 30 * time.Second

// clientOf returns a client that talks protobuf.
func clientOf(t testing.TB, config *rest.Config) kubernetes.Interface {
	t.Helper()
	config = rest.CopyConfig(config)
	config.ContentType, config.QPS = "application/vnd.kubernetes.protobuf", -1
	h, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.CloseIdleConnections)
	c, err := kubernetes.NewForConfigAndClient(config, h)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newServer(t testing.TB) (*standin.Server, kubernetes.Interface) {
	t.Helper()
	s := standin.New(t)
	return s, clientOf(t, &rest.Config{Host: s.URL()})
}

func service(name string, labels map[string]string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: labels}}
}

func names(t testing.TB, c kubernetes.Interface) []string {
	t.Helper()
	l, err := c.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range l.Items {
		names = append(names, s.Namespace+"/"+s.Name)
	}
	return names
}

func watchServices(t *testing.T, c kubernetes.Interface, opts metav1.ListOptions) watch.Interface {
	t.Helper()
	w, err := c.CoreV1().Services("").Watch(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return w
}

// next returns the next event of a watch, nil when it ended.
func next(t *testing.T, w watch.Interface) *watch.Event {
	t.Helper()
	select {
	case e, ok := <-w.ResultChan():
		if !ok {
			return nil
		}
		return &e
	case <-time.After(patience):
		t.Fatal("no event")
		panic("not reached")
	}
}

func wantEvent(t *testing.T, w watch.Interface, typ watch.EventType, name string) *corev1.Service {
	t.Helper()
	e := next(t, w)
	if e == nil {
		t.Fatalf("the watch ended, want %s of %q", typ, name)
	}
	svc, ok := e.Object.(*corev1.Service)
	if !ok || e.Type != typ || svc.Name != name {
		t.Fatalf("event %s %v, want %s of %q", e.Type, e.Object, typ, name)
	}
	return svc
}

func TestApply(t *testing.T) {
	s, c := newServer(t)
	mine := service("a", map[string]string{"v": "1"})
	s.Apply(mine, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "homeless"}})
	if mine.ResourceVersion != "" || mine.Spec.Type != "" {
		t.Error("the caller's object was written to")
	}
	if d := cmp.Diff([]string{"default/homeless", "ns/a"}, names(t, c)); d != "" {
		t.Error(d)
	}
	first, err := c.CoreV1().Services("ns").Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w := watchServices(t, c, metav1.ListOptions{ResourceVersion: first.ResourceVersion, LabelSelector: "v"})
	mine.Labels["v"] = "2"
	s.Apply(mine)
	got := wantEvent(t, w, watch.Modified, "a")
	if got.Labels["v"] != "2" || got.UID != first.UID {
		t.Errorf("second version: %+v", got.ObjectMeta)
	}
	s.Apply(mine) // Not a change of the object, but one of its version.
	if again := wantEvent(t, w, watch.Modified, "a"); again.ResourceVersion <= got.ResourceVersion {
		t.Errorf("version %s after %s", again.ResourceVersion, got.ResourceVersion)
	}
	s.Delete(mine)
	wantEvent(t, w, watch.Deleted, "a")
}

func TestApplyEveryKind(t *testing.T) {
	s := standin.New(t)
	m := metav1.ObjectMeta{Name: "x"}
	s.Apply(
		&corev1.Namespace{ObjectMeta: m}, &corev1.Service{ObjectMeta: m}, &corev1.Pod{ObjectMeta: m}, &corev1.Node{ObjectMeta: m},
		&discoveryv1.EndpointSlice{ObjectMeta: m}, &mcs.ServiceImport{ObjectMeta: m}, &corev1.ConfigMap{ObjectMeta: m},
		&unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": map[string]any{"name": "x"},
			"spec": map[string]any{"cidrs": []any{"10.0.0.0/24"}},
		}},
	)
	for _, path := range []string{
		"/api/v1/namespaces", "/api/v1/services", "/api/v1/pods", "/api/v1/nodes", "/api/v1/configmaps",
		"/apis/discovery.k8s.io/v1/endpointslices",
		"/apis/networking.k8s.io/v1/servicecidrs", "/apis/multicluster.x-k8s.io/v1alpha1/namespaces/default/serviceimports",
	} {
		_, body := get(t, s.URL()+path)
		var list metav1.PartialObjectMetadataList
		if err := json.Unmarshal(body, &list); err != nil || len(list.Items) != 1 || list.Items[0].Name != "x" {
			t.Errorf("%s: %s (%v)", path, body, err)
		}
	}
}

func get(t *testing.T, url string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true // Leaves no connection behind.
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

func TestLoad(t *testing.T) {
	s, c := newServer(t)
	s.Load([]byte(`
# Nothing but a comment.
---
apiVersion: v1
kind: Service
metadata: {name: one, namespace: ns}
spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: two, namespace: ns}}
- {apiVersion: v1, kind: Service, metadata: {name: three, namespace: ns}}
`))
	if d := cmp.Diff([]string{"ns/one", "ns/three", "ns/two"}, names(t, c)); d != "" {
		t.Error(d)
	}
	one, err := c.CoreV1().Services("ns").Get(t.Context(), "one", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"10.0.0.1"}, one.Spec.ClusterIPs); d != "" || one.Spec.Ports[0].Protocol != corev1.ProtocolTCP {
		t.Errorf("not complete: %+v", one.Spec)
	}
}

func TestKubeconfig(t *testing.T) {
	s := standin.New(t)
	s.Apply(service("a", nil))
	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"ns/a"}, names(t, clientOf(t, config))); d != "" {
		t.Error(d)
	}
}

func TestDropWatches(t *testing.T) {
	s, c := newServer(t)
	s.Apply(service("a", nil))
	w := watchServices(t, c, metav1.ListOptions{})
	last := wantEvent(t, w, watch.Added, "a").ResourceVersion
	s.DropWatches()
	if e := next(t, w); e != nil {
		t.Fatalf("event %v, want the end", e)
	}
	s.Apply(service("b", nil))
	w = watchServices(t, c, metav1.ListOptions{ResourceVersion: last})
	wantEvent(t, w, watch.Added, "b")
}

func TestDownAndUp(t *testing.T) {
	s, c := newServer(t)
	s.Apply(service("a", nil))
	w := watchServices(t, c, metav1.ListOptions{})
	wantEvent(t, w, watch.Added, "a")
	url := s.URL()
	s.Down()
	s.Down()
	if e := next(t, w); e != nil {
		t.Fatalf("event %v, want the end", e)
	}
	if conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://")); err == nil {
		conn.Close()
		t.Error("somebody listens")
	}
	s.Apply(service("b", nil))
	s.Up()
	s.Up()
	if s.URL() != url {
		t.Errorf("back at %s, was at %s", s.URL(), url)
	}
	if d := cmp.Diff([]string{"ns/a", "ns/b"}, names(t, c)); d != "" {
		t.Error(d)
	}
}

func TestForgetHistory(t *testing.T) {
	s, c := newServer(t)
	s.Apply(service("a", nil), service("b", nil))
	page, err := c.CoreV1().Services("").List(t.Context(), metav1.ListOptions{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	running := watchServices(t, c, metav1.ListOptions{ResourceVersion: page.ResourceVersion})
	s.ForgetHistory()
	s.Apply(service("c", nil))
	wantEvent(t, running, watch.Added, "c")

	w := watchServices(t, c, metav1.ListOptions{ResourceVersion: page.ResourceVersion})
	if e := next(t, w); e == nil || e.Type != watch.Error || !apierrors.IsResourceExpired(apierrors.FromObject(e.Object)) {
		t.Errorf("watch: %v, want 410", e)
	}
	_, err = c.CoreV1().Services("").List(t.Context(), metav1.ListOptions{Limit: 1, Continue: page.Continue})
	if !apierrors.IsResourceExpired(err) {
		t.Errorf("next page: %v, want 410", err)
	}
	l, err := c.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w = watchServices(t, c, metav1.ListOptions{ResourceVersion: l.ResourceVersion})
	s.Apply(service("d", nil))
	wantEvent(t, w, watch.Added, "d")
}

func TestReset(t *testing.T) {
	s, c := newServer(t)
	for i := range 10 {
		s.Apply(service(fmt.Sprint("old", i), nil))
	}
	before, err := c.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w := watchServices(t, c, metav1.ListOptions{ResourceVersion: before.ResourceVersion})
	s.Reset(service("new", nil))
	if e := next(t, w); e != nil {
		t.Fatalf("event %v, want the end", e)
	}
	after, err := c.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"ns/new"}, names(t, c)); d != "" || after.ResourceVersion >= before.ResourceVersion {
		t.Errorf("version %s after %s:\n%s", after.ResourceVersion, before.ResourceVersion, d)
	}
}

func TestBookmark(t *testing.T) {
	s, c := newServer(t)
	s.Apply(service("a", nil))
	w := watchServices(t, c, metav1.ListOptions{AllowWatchBookmarks: true})
	deaf := watchServices(t, c, metav1.ListOptions{})
	wantEvent(t, w, watch.Added, "a")
	wantEvent(t, deaf, watch.Added, "a")
	s.Apply(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	var last string
	for range 2 {
		s.Bookmark()
		got := wantEvent(t, w, watch.Bookmark, "")
		if got.ResourceVersion < last || len(got.Annotations) > 0 {
			t.Errorf("bookmark %+v after version %s", got.ObjectMeta, last)
		}
		last = got.ResourceVersion
	}
	s.Apply(service("b", nil))
	wantEvent(t, deaf, watch.Added, "b")
	// The bookmark vouches for all that came before it.
	w = watchServices(t, c, metav1.ListOptions{ResourceVersion: last})
	wantEvent(t, w, watch.Added, "b")
}

func TestRefuse(t *testing.T) {
	s, c := newServer(t)
	for code, is := range map[int]func(error) bool{
		403: apierrors.IsForbidden, 404: apierrors.IsNotFound, 401: apierrors.IsUnauthorized,
		500: apierrors.IsInternalError,
		429: func(err error) bool {
			after, ok := apierrors.SuggestsClientDelay(err)
			return apierrors.IsTooManyRequests(err) && ok && after == 1
		},
	} {
		s.Refuse("Service", code)
		// Clients sleep and try again where they are told to, which is not what is tested here.
		err := c.CoreV1().RESTClient().Get().Resource("services").MaxRetries(0).Do(t.Context()).Error()
		if !is(err) {
			t.Errorf("%d: %v", code, err)
		}
		if _, err := c.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Errorf("%d: pods: %v", code, err)
		}
	}
	s.Refuse("Service", 0)
	names(t, c)
}

func TestRequests(t *testing.T) {
	s, c := newServer(t)
	s.Apply(service("a", nil))
	names(t, c)
	watchServices(t, c, metav1.ListOptions{LabelSelector: "x"})
	if _, err := c.Discovery().ServerVersion(); err != nil {
		t.Fatal(err)
	}
	type brief struct{ Verb, Kind, Path, Labels string }
	var got []brief
	for _, r := range s.Requests() {
		got = append(got, brief{r.Verb, r.Kind, r.Path, r.Query.Get("labelSelector")})
	}
	want := []brief{
		{"list", "Service", "/api/v1/services", ""}, {"watch", "Service", "/api/v1/services", "x"}, {"get", "", "/version", ""},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// An informer of client-go gets over everything that a server can do to it.
func TestInformer(t *testing.T) {
	for _, watchList := range []bool{true, false} {
		t.Run(fmt.Sprintf("watchlist=%t", watchList), func(t *testing.T) {
			s, c := newServer(t)
			s.WatchList(watchList)
			s.Apply(service("a", nil))
			f := informers.NewSharedInformerFactory(c, 0)
			informer := f.Core().V1().Services().Informer()
			stop := make(chan struct{})
			f.Start(stop)
			defer f.Shutdown()
			defer close(stop)
			if !cache.WaitForCacheSync(t.Context().Done(), informer.HasSynced) {
				t.Fatal("not synced")
			}
			settles(t, informer, "ns/a")
			listed := count(s, "list") > 0
			if listed == watchList {
				t.Errorf("the informer has listed: %t", listed)
			}
			s.Apply(service("b", nil))
			settles(t, informer, "ns/a", "ns/b")
			s.DropWatches()
			s.Delete(service("a", nil))
			settles(t, informer, "ns/b")
			s.Down()
			s.ForgetHistory()
			s.Apply(service("c", nil))
			s.Delete(service("b", nil))
			s.Up()
			settles(t, informer, "ns/c")
		})
	}
}

func count(s *standin.Server, verb string) int {
	var n int
	for _, r := range s.Requests() {
		if r.Verb == verb {
			n++
		}
	}
	return n
}

func settles(t *testing.T, informer cache.SharedIndexInformer, want ...string) {
	t.Helper()
	less := cmp.Transformer("set", func(keys []string) map[string]bool {
		m := map[string]bool{}
		for _, k := range keys {
			m[k] = true
		}
		return m
	})
	var d string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if d = cmp.Diff(want, informer.GetStore().ListKeys(), less); d == "" {
			return
		}
	}
	t.Fatal(d)
}

// churn applies n services in each of rounds, every time with another label.
func churn(s *standin.Server, n, rounds int) {
	for i := range rounds {
		objs := make([]runtime.Object, n)
		for j := range objs {
			objs[j] = service(fmt.Sprint("s", j), map[string]string{"round": fmt.Sprint(i)})
		}
		s.Apply(objs...)
	}
}

// The log of changes is bounded, and who asks for more is told.
func TestManyChanges(t *testing.T) {
	const many = 50_000
	s, c := newServer(t)
	churn(s, many, 1)
	page, err := c.CoreV1().Services("").List(t.Context(), metav1.ListOptions{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if left := page.RemainingItemCount; left == nil || *left != many-1 {
		t.Errorf("remaining: %v", left)
	}
	churn(s, many, 3)
	w := watchServices(t, c, metav1.ListOptions{ResourceVersion: page.ResourceVersion})
	if e := next(t, w); e == nil || e.Type != watch.Error || !apierrors.IsResourceExpired(apierrors.FromObject(e.Object)) {
		t.Errorf("from before the log: %v, want 410", e)
	}
	l, err := c.CoreV1().Services("").List(t.Context(), metav1.ListOptions{LabelSelector: "round=2"})
	if err != nil || len(l.Items) != many {
		t.Errorf("%d services, %v", len(l.Items), err)
	}
}

// A watch that falls behind further than the log reaches is cut, and not left with a hole.
func TestSlowWatch(t *testing.T) {
	s, c := newServer(t)
	s.Apply(service("first", nil))
	w := watchServices(t, c, metav1.ListOptions{})
	last := revision(t, wantEvent(t, w, watch.Added, "first"))
	churn(s, 50_000, 4)
	for e := next(t, w); e != nil; e = next(t, w) {
		now := revision(t, e.Object.(*corev1.Service))
		if now != last+1 {
			t.Fatalf("version %d after %d", now, last)
		}
		last = now
	}
}

func revision(t *testing.T, svc *corev1.Service) int {
	t.Helper()
	n, err := strconv.Atoi(svc.ResourceVersion)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestFatal(t *testing.T) {
	for name, f := range map[string]func(*standin.Server){
		"unknown kind":  func(s *standin.Server) { s.Apply(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "x"}}) },
		"no name":       func(s *standin.Server) { s.Apply(&corev1.Service{}) },
		"delete absent": func(s *standin.Server) { s.Delete(service("a", nil)) },
		"bad yaml":      func(s *standin.Server) { s.Load([]byte("a: [")) },
		"foreign yaml":  func(s *standin.Server) { s.Load([]byte("apiVersion: v1\nkind: Nothing\nmetadata: {name: x}\n")) },
	} {
		t.Run(name, func(t *testing.T) {
			s := standin.New(nil)
			defer s.Close()
			defer func() {
				if err, ok := recover().(error); !ok || !strings.HasPrefix(err.Error(), "standin: ") || errors.Unwrap(err) == nil {
					t.Errorf("panic with %v", err)
				}
			}()
			f(s)
		})
	}
}
