package apiserver

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// enough is how long anything may take; nothing is measured against it.
const enough = 30 * time.Second

// fakeServer answers requests with the functions a test gives it, in order and for each path on its own; the last one
// answers all that follow.
type fakeServer struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	scripts  map[string][]answer
	requests map[string][]url.Values
}

type answer func(w http.ResponseWriter, r *http.Request)

const (
	servicesPath = "/api/v1/services"
	slicesPath   = "/apis/discovery.k8s.io/v1/endpointslices"
	podsPath     = "/api/v1/pods"
	nodesPath    = "/api/v1/nodes"
	cidrsPath    = "/apis/networking.k8s.io/v1/servicecidrs"
	cidrsOldPath = "/apis/networking.k8s.io/v1beta1/servicecidrs"
	importsPath  = "/apis/multicluster.x-k8s.io/v1alpha1/serviceimports"
)

func newFakeServer(t *testing.T, path string, answers ...answer) *fakeServer {
	f := &fakeServer{t: t, scripts: map[string][]answer{path: answers}, requests: map[string][]url.Values{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests[r.URL.Path] = append(f.requests[r.URL.Path], r.URL.Query())
	script := f.scripts[r.URL.Path]
	if len(script) > 1 {
		f.scripts[r.URL.Path] = script[1:]
	}
	f.mu.Unlock()
	if len(script) == 0 {
		status(http.StatusNotFound, metav1.StatusReasonNotFound, "no such path")(w, r)
		return
	}
	script[0](w, r)
}

// asked returns the requests for path so far.
func (f *fakeServer) asked(path string) []url.Values {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.requests[path])
}

// status answers with a Status object.
func status(code int, reason metav1.StatusReason, message string) answer {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		io.WriteString(w, statusJSON(code, reason, message))
	}
}

func statusJSON(code int, reason metav1.StatusReason, message string) string {
	b, _ := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	})
	return string(b)
}

// listing answers with a part of a list.
func listing(rv, next string, items ...string) answer {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"metadata":{"resourceVersion":"`+rv+`","continue":"`+next+`"},"items":[`+
			strings.Join(items, ",")+`]}`)
	}
}

// watching answers with lines and closes the stream, tidily.
func watching(lines ...string) answer {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, strings.Join(lines, "\n"))
		w.(http.Flusher).Flush()
	}
}

// holding answers with lines and keeps the stream open.
func holding(lines ...string) answer {
	return func(w http.ResponseWriter, r *http.Request) {
		watching(lines...)(w, r)
		<-r.Context().Done()
	}
}

// dropping answers with lines and breaks the connection off.
func dropping(lines ...string) answer {
	return func(w http.ResponseWriter, r *http.Request) {
		watching(lines...)(w, r)
		panic(http.ErrAbortHandler)
	}
}

func event1(typ, object string) string { return `{"type":"` + typ + `","object":` + object + `}` }

func bookmark(rv string) string {
	return event1("BOOKMARK", `{"kind":"Service","apiVersion":"v1","metadata":{"resourceVersion":"`+rv+`"}}`)
}

func endBookmark(rv string) string {
	return event1("BOOKMARK", `{"kind":"Service","apiVersion":"v1","metadata":{"resourceVersion":"`+rv+
		`","annotations":{"k8s.io/initial-events-end":"true"}}}`)
}

// svc is a service of namespace ns, without the type that list items lack too.
func svc(name, rv, ip string) string {
	return `{"metadata":{"namespace":"ns","name":"` + name + `","resourceVersion":"` + rv + `"},"spec":{"clusterIP":"` + ip + `"}}`
}

// recorder is a sink that keeps the state as the contract of the stream has it.
type recorder struct {
	t  *testing.T
	mu sync.Mutex
	// now is what is known, fresh what a listing in progress has brought. Guarded by mu, as are the others.
	now, fresh map[cluster.Kind]map[string]cluster.Object
	ops        map[cluster.Kind][]string
	synced     map[cluster.Kind]int
}

func newRecorder(t *testing.T) *recorder {
	return &recorder{
		t: t, now: map[cluster.Kind]map[string]cluster.Object{}, fresh: map[cluster.Kind]map[string]cluster.Object{},
		ops: map[cluster.Kind][]string{}, synced: map[cluster.Kind]int{},
	}
}

func (r *recorder) Apply(c cluster.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	op := c.Op.String()
	if c.Key.Name != "" {
		op += " " + c.Key.String()
	}
	r.ops[c.Kind] = append(r.ops[c.Kind], op)
	if c.Received.IsZero() {
		r.t.Errorf("%s: Received is zero", op)
	}
	if r.now[c.Kind] == nil {
		r.now[c.Kind] = map[string]cluster.Object{}
	}
	listing := r.fresh[c.Kind] != nil
	switch c.Op {
	case cluster.Replace:
		r.fresh[c.Kind] = map[string]cluster.Object{}
	case cluster.Synced:
		if !listing {
			r.t.Errorf("%s synced without a replace", c.Kind)
		}
		r.now[c.Kind], r.fresh[c.Kind] = r.fresh[c.Kind], nil
		r.synced[c.Kind]++
	case cluster.Delete:
		delete(r.now[c.Kind], c.Key.String())
		if listing {
			delete(r.fresh[c.Kind], c.Key.String())
		}
	case cluster.Upsert:
		if c.Object.Kind() != c.Kind || c.Object.Key() != c.Key {
			r.t.Errorf("%s %s carries %s %s", c.Kind, c.Key, c.Object.Kind(), c.Object.Key())
		}
		r.now[c.Kind][c.Key.String()] = c.Object
		if listing {
			r.fresh[c.Kind][c.Key.String()] = c.Object
		}
	}
}

// log returns the changes of a kind so far, in words.
func (r *recorder) log(k cluster.Kind) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ops[k])
}

func (r *recorder) get(k cluster.Kind, key string) cluster.Object {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now[k][key]
}

func (r *recorder) syncs(k cluster.Kind) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.synced[k]
}

// services returns "name=ip" of what is known, in order.
func (r *recorder) services() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, k := range slices.Sorted(maps.Keys(r.now[cluster.KindService])) {
		s := r.now[cluster.KindService][k].(*cluster.Service)
		ip := "none"
		if len(s.ClusterIPs) > 0 {
			ip = s.ClusterIPs[0].String()
		}
		out = append(out, s.Name+"="+ip)
	}
	return strings.Join(out, " ")
}

// running is a source in operation.
type running struct {
	*recorder
	src  *Source
	errs chan error
	logs *lines
	stop func()
}

// start runs a source over the server f until the test ends.
func start(t *testing.T, f *fakeServer, interest cluster.Interest, change ...func(*Config)) *running {
	t.Helper()
	r := &running{recorder: newRecorder(t), errs: make(chan error, 1000), logs: &lines{}}
	c := Config{
		Endpoint: f.URL, Log: slog.New(slog.NewTextHandler(r.logs, nil)),
		OnError: func(_ cluster.Kind, err error) {
			select {
			case r.errs <- err:
			default:
			}
		},
	}
	for _, f := range change {
		f(&c)
	}
	src, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	r.src = src
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx, interest, r.recorder) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(enough):
			t.Error("Run does not return")
		}
		if t.Failed() {
			t.Logf("log:\n%s", r.logs)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(enough); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (r *running) eventuallyServices(want string) {
	r.t.Helper()
	end := time.Now().Add(enough)
	for r.services() != want {
		if time.Now().After(end) {
			r.t.Fatalf("services: got %q, want %q, after %v\n%s", r.services(), want, r.log(cluster.KindService), r.logs)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// lines is a log.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// count returns how many lines have all the words.
func (l *lines) count(words ...string) int {
	n := 0
	for line := range strings.Lines(l.String()) {
		has := true
		for _, w := range words {
			has = has && strings.Contains(line, w)
		}
		if has {
			n++
		}
	}
	return n
}

var onlyServices = cluster.Interest{Kinds: cluster.KindsOf(cluster.KindService)}

func typedService(name, rv, ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, ResourceVersion: rv},
		Spec:       corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}},
	}
}
