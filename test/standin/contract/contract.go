// Package contract says how an API server of Kubernetes behaves where Ropewalk depends on it: what lists and watches
// give, in which order, from which resource version on, and how they fail; and what Ropewalk's source makes of that where
// it asks for parts of objects. Run holds a server to it.
//
// It runs against the stand-in (test/standin) and against a real kube-apiserver (test/e2e), so that what is tested with
// the one can be relied on with the other. It leaves objects behind, in namespaces of their own.
package contract

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// patience is how long something may take that should happen.
const patience = 30 * time.Second

// The two encodings, as clients ask for them. Custom resources come in JSON only.
const (
	acceptJSON  = "application/json"
	acceptProto = "application/vnd.kubernetes.protobuf"
)

// suite is a server under test.
type suite struct {
	kubeconfig string
	config     *rest.Config
	http       *http.Client
	// client talks protobuf, plain JSON.
	client, plain kubernetes.Interface
}

// Run holds the server that a kubeconfig file is of to the contract. The server must let the client do everything, admit pods without
// service accounts, serve ServiceImports of multicluster.x-k8s.io/v1alpha1, and take the addresses 10.96.0.11
// to 10.96.0.13 and fd00:10:96::13 and the node ports 30911 to 30913 for services that ask for them.
func Run(t *testing.T, kubeconfig string) {
	s := newSuite(t, kubeconfig)
	for _, c := range []struct {
		name string
		test func(*testing.T, *suite)
	}{
		{"discovery", testDiscovery},
		{"write/create", testCreate},
		{"write/update", testUpdate},
		{"write/status", testStatus},
		{"write/patch", testPatch},
		{"write/delete", testDelete},
		{"write/defaults", testDefaults},
		{"list/order", testListOrder},
		{"list/selectors", testListSelectors},
		{"list/pages", testListPages},
		{"list/versions", testListVersions},
		{"list/encodings", testListEncodings},
		{"watch/from-version", testWatchFromVersion},
		{"watch/from-now", testWatchFromNow},
		{"watch/namespace", testWatchNamespace},
		{"watch/selectors", testWatchSelectors},
		{"watch/initial-events", testInitialEvents},
		{"watch/options", testWatchOptions},
		{"watch/too-old", testWatchTooOld},
		{"watch/too-new", testWatchTooNew},
		{"watch/timeout", testWatchTimeout},
		{"watch/encodings", testWatchEncodings},
		{"custom", testCustom},
		{"informer", testInformer},
		{"hosts/pods", testPodHosts},
		{"hosts/configmaps", testConfigMaps},
		{"source/pods", testSourcePods},
		{"source/configmaps", testSourceConfigMaps},
		{"source/services", testSourceServices},
		{"source/slices", testSourceSlices},
		{"source/nodes", testSourceNodes},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, s) })
	}
}

func newSuite(t *testing.T, kubeconfig string) *suite {
	t.Helper()
	plain, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	plain.QPS, plain.Burst = -1, 0
	plain.AcceptContentTypes, plain.ContentType = acceptJSON, acceptJSON
	proto := rest.CopyConfig(plain)
	proto.AcceptContentTypes, proto.ContentType = acceptProto, acceptProto
	client, err := rest.HTTPClientFor(plain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	s := &suite{kubeconfig: kubeconfig, config: plain, http: client}
	if s.client, err = kubernetes.NewForConfigAndClient(proto, client); err != nil {
		t.Fatal(err)
	}
	if s.plain, err = kubernetes.NewForConfigAndClient(plain, client); err != nil {
		t.Fatal(err)
	}
	return s
}

// namespace makes a namespace of the test's own.
func (s *suite) namespace(t *testing.T) string {
	t.Helper()
	// Not generateName: the stand-in has no need of it otherwise.
	name := "contract-" + strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name())) +
		"-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	ns, err := s.client.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

// service makes a headless service, which a real server gives no address.
func (s *suite) service(t *testing.T, ns, name string, labels map[string]string) *corev1.Service {
	t.Helper()
	svc, err := s.client.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: []corev1.ServicePort{{Name: "dns", Port: 53}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

// relabel gives a service other labels.
func (s *suite) relabel(t *testing.T, svc *corev1.Service, labels map[string]string) *corev1.Service {
	t.Helper()
	svc = svc.DeepCopy()
	svc.Labels = labels
	svc, err := s.client.CoreV1().Services(svc.Namespace).Update(t.Context(), svc, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

func (s *suite) deleteService(t *testing.T, svc *corev1.Service) {
	t.Helper()
	if err := s.client.CoreV1().Services(svc.Namespace).Delete(t.Context(), svc.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (s *suite) pod(t *testing.T, ns, name, node string) *corev1.Pod {
	t.Helper()
	pod, err := s.client.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		// A server does not take this from whoever makes a pod.
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func (s *suite) setPhase(t *testing.T, pod *corev1.Pod, phase corev1.PodPhase) *corev1.Pod {
	t.Helper()
	pod = pod.DeepCopy()
	pod.Status.Phase = phase
	pod, err := s.client.CoreV1().Pods(pod.Namespace).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func (s *suite) slice(t *testing.T, ns, name string) *discoveryv1.EndpointSlice {
	t.Helper()
	slice, err := s.client.DiscoveryV1().EndpointSlices(ns).Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "svc"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.1.2.3"}}},
		Ports:       []discoveryv1.EndpointPort{{}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return slice
}

// watchServices starts a watch on the services of a namespace. It ends with the test.
func (s *suite) watchServices(t *testing.T, ns string, opts metav1.ListOptions) watch.Interface {
	t.Helper()
	w, err := s.client.CoreV1().Services(ns).Watch(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return w
}

// next returns the next event of a watch that is not a bookmark which a server sends when it likes to.
func next(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	for {
		e, ok := receive(t, w)
		if !ok {
			t.Fatal("the watch ended")
		}
		if e.Type == watch.Bookmark && !initialEventsEnd(e) {
			continue
		}
		return e
	}
}

// receive returns the next event; it is not ok when the watch ended.
func receive(t *testing.T, w watch.Interface) (watch.Event, bool) {
	t.Helper()
	select {
	case e, ok := <-w.ResultChan():
		return e, ok
	case <-time.After(patience):
		t.Fatal("no event")
		panic("not reached")
	}
}

func initialEventsEnd(e watch.Event) bool {
	m, ok := e.Object.(metav1.Object)
	return ok && m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true"
}

// expect takes the next event of a watch, which must be of a type and about the object called name.
func expect(t *testing.T, w watch.Interface, typ watch.EventType, name string) metav1.Object {
	t.Helper()
	e := next(t, w)
	m, ok := e.Object.(metav1.Object)
	if !ok {
		t.Fatalf("event %s with %v, want %s of %s", e.Type, e.Object, typ, name)
	}
	if e.Type != typ || m.GetName() != name {
		t.Fatalf("event %s of %s, want %s of %s", e.Type, m.GetName(), typ, name)
	}
	return m
}

// version is an object's resource version as a number, which by contract it is.
func version(t *testing.T, resourceVersion string) uint64 {
	t.Helper()
	v, err := strconv.ParseUint(resourceVersion, 10, 64)
	if err != nil {
		t.Fatalf("resourceVersion %q: %v", resourceVersion, err)
	}
	return v
}

// get asks for a path and reads the answer.
func (s *suite) get(t *testing.T, path string, query url.Values, accept string) (*http.Response, []byte) {
	t.Helper()
	base, _, err := rest.DefaultServerUrlFor(s.config)
	if err != nil {
		t.Fatal(err)
	}
	u := base.JoinPath(path)
	u.RawQuery = query.Encode()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	resp, err := s.http.Do(req)
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

// wantStatus asks for a path, and wants the Status of a failure.
func (s *suite) wantStatus(t *testing.T, path string, query url.Values, code int, reason metav1.StatusReason) metav1.Status {
	t.Helper()
	resp, body := s.get(t, path, query, acceptJSON)
	var st metav1.Status
	if err := json.Unmarshal(body, &st); err != nil {
		t.Fatalf("%s?%s: %s: %v", path, query.Encode(), body, err)
	}
	if resp.StatusCode != code || st.Kind != "Status" || st.Reason != reason || int(st.Code) != code {
		t.Errorf("%s?%s: %d %s, want %d with reason %s", path, query.Encode(), resp.StatusCode, body, code, reason)
	}
	return st
}
