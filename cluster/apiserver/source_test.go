package apiserver

import (
	"context"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func TestStreamedListing(t *testing.T) {
	f := newFakeServer(t, servicesPath, holding(
		event1("ADDED", svc("b", "9", "10.0.0.2")), event1("ADDED", svc("a", "5", "10.0.0.1")), endBookmark("12"),
		event1("MODIFIED", svc("a", "13", "10.0.0.3")), event1("DELETED", svc("b", "14", "10.0.0.2")),
		event1("ADDED", svc("c", "15", "10.0.0.4")),
	))
	interest := onlyServices
	interest.Labels = "app in (x,y)"
	r := start(t, f, interest)
	r.eventuallyServices("a=10.0.0.3 c=10.0.0.4")
	want := []string{"replace", "upsert ns/b", "upsert ns/a", "synced", "upsert ns/a", "delete ns/b", "upsert ns/c"}
	if d := cmp.Diff(want, r.log(cluster.KindService)); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
	q := f.asked(servicesPath)[0]
	for k, v := range map[string]string{
		"watch": "true", "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true",
		"labelSelector": "app in (x,y)", "resourceVersion": "", "fieldSelector": "",
	} {
		if q.Get(k) != v {
			t.Errorf("query %s = %q, want %q", k, q.Get(k), v)
		}
	}
	if s := q.Get("timeoutSeconds"); len(s) != 3 || s < "300" || s > "600" {
		t.Errorf("timeoutSeconds = %q, want 300 to 600", s)
	}
	if age := r.src.Age(); age != 0 {
		t.Errorf("Age = %v while the watch is established", age)
	}
}

func TestServersWithoutStreamedListings(t *testing.T) {
	for name, first := range map[string]answer{
		"refuses":            status(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden"),
		"refuses plainly":    func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusBadRequest) },
		"knows no such verb": status(http.StatusNotImplemented, "", "what?"),
		"refuses in stream":  holding(event1("ERROR", statusJSON(400, metav1.StatusReasonBadRequest, "no"))),
		"ignores":            holding(),
		"ignores and plays":  holding(event1("ADDED", svc("stray", "3", "10.0.0.9"))),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeServer(t, servicesPath, first, listing("7", "", svc("a", "5", "10.0.0.1")),
				watching(event1("MODIFIED", svc("a", "8", "10.0.0.2"))), // ends early: a probe follows
				listing("9", "", svc("a", "5", "10.0.0.1")),
				holding(event1("ADDED", svc("b", "10", "10.0.0.3"))))
			r := start(t, f, onlyServices)
			r.eventuallyServices("a=10.0.0.2 b=10.0.0.3")
			q := f.asked(servicesPath)
			if q[1].Has("watch") || q[1].Get("limit") != "500" {
				t.Errorf("no listing follows: %v", q[1])
			}
			if q[2].Get("resourceVersion") != "7" || q[2].Has("sendInitialEvents") {
				t.Errorf("the watch does not start at the listing: %v", q[2])
			}
			if q[3].Get("limit") != "1" || q[3].Has("watch") {
				t.Errorf("no probe: %v", q[3])
			}
			if q[4].Get("resourceVersion") != "8" {
				t.Errorf("the watch does not resume: %v", q[4])
			}
			if r.syncs(cluster.KindService) != 1 {
				t.Errorf("changes: %v", r.log(cluster.KindService))
			}
			if r.src.streamsListings() {
				t.Error("the choice is not remembered")
			}
		})
	}
}

func TestListingInPages(t *testing.T) {
	refuse := status(422, metav1.StatusReasonInvalid, "")
	gone := status(410, metav1.StatusReasonExpired, "The provided continue parameter is too old")
	a, b, c := svc("a", "5", "10.0.0.1"), svc("b", "5", "10.0.0.2"), svc("c", "5", "10.0.0.3")
	for _, tt := range []struct {
		name    string
		answers []answer
		limits  []string
		changes string
	}{
		{"two pages", []answer{listing("7", "p2", a, b), listing("7", "", c)}, []string{"500", "500"},
			"replace,upsert ns/a,upsert ns/b,upsert ns/c,synced"},
		{"410 once", []answer{listing("7", "p2", a), gone, listing("8", "p2", a, b), listing("8", "", c)},
			[]string{"500", "500", "500", "500"},
			"replace,upsert ns/a,replace,upsert ns/a,upsert ns/b,upsert ns/c,synced"},
		{"410 twice", []answer{listing("7", "p2", a), gone, listing("8", "p2", a), gone, listing("9", "", a, b, c)},
			[]string{"500", "500", "500", "500", ""},
			"replace,upsert ns/a,replace,upsert ns/a,replace,upsert ns/a,upsert ns/b,upsert ns/c,synced"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeServer(t, servicesPath, append(append([]answer{refuse}, tt.answers...), holding())...)
			r := start(t, f, onlyServices)
			r.eventuallyServices("a=10.0.0.1 b=10.0.0.2 c=10.0.0.3")
			eventually(t, "synced", func() bool { return r.syncs(cluster.KindService) == 1 })
			if got := strings.Join(r.log(cluster.KindService), ","); got != tt.changes {
				t.Errorf("changes: got %s, want %s", got, tt.changes)
			}
			q := f.asked(servicesPath)[1:]
			for i, limit := range tt.limits {
				if q[i].Get("limit") != limit {
					t.Errorf("listing request %d: %v, want limit %q", i, q[i], limit)
				}
			}
			if q[1].Get("continue") != "p2" {
				t.Errorf("second page: %v", q[1])
			}
		})
	}
}

func TestResume(t *testing.T) {
	a := event1("ADDED", svc("a", "5", "10.0.0.1"))
	probe := listing("30", "", svc("a", "5", "10.0.0.1"))
	for name, first := range map[string]answer{
		"ended":       watching(a, endBookmark("12"), bookmark("20")),
		"broken off":  dropping(a, endBookmark("12"), bookmark("20")),
		"half object": dropping(a, endBookmark("12"), bookmark("20"), `{"type":"ADDED","object":{"metadata":{"na`),
		"half object, tidy end": watching(a, endBookmark("12"), bookmark("20"),
			`{"type":"ADDED","object":{"metadata":{"na`),
		"timed out": watching(a, endBookmark("12"), bookmark("20"), event1("ERROR", statusJSON(504, metav1.StatusReasonTimeout, "too slow"))),
		"throttled": watching(a, endBookmark("12"), bookmark("20"), event1("ERROR", statusJSON(429, metav1.StatusReasonTooManyRequests, "easy"))),
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t, servicesPath, first,
				status(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, "starting"), probe,
				holding(event1("ADDED", svc("b", "21", "10.0.0.2"))))
			r := start(t, f, onlyServices)
			r.eventuallyServices("a=10.0.0.1 b=10.0.0.2")
			q := f.asked(servicesPath)
			if last := q[len(q)-1]; last.Get("resourceVersion") != "20" || last.Has("sendInitialEvents") {
				t.Errorf("not resumed at the bookmark: %v", last)
			}
			if n := r.syncs(cluster.KindService); n != 1 {
				t.Errorf("%d listings, want 1: %v", n, r.log(cluster.KindService))
			}
		})
	}
}

func TestListingAgain(t *testing.T) {
	begin := []string{event1("ADDED", svc("a", "5", "10.0.0.1")), event1("ADDED", svc("gone", "5", "10.0.0.9")), endBookmark("50")}
	again := holding(event1("ADDED", svc("a", "5", "10.0.0.1")), event1("ADDED", svc("b", "60", "10.0.0.2")), endBookmark("60"))
	probe := listing("50", "")
	ends := func(line string) []answer { return []answer{holding(append(begin, line)...), again} }
	// A server that was set back takes the watch and waits for its state to catch up.
	setBack := answer(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("sendInitialEvents") {
			again(w, r)
		} else {
			holding()(w, r)
		}
	})
	resumed := func(a answer) []answer { return []answer{watching(begin...), probe, a, again} }
	for name, answers := range map[string][]answer{
		"410 in the stream":           ends(event1("ERROR", statusJSON(410, metav1.StatusReasonExpired, "too old resource version"))),
		"internal error":              ends(event1("ERROR", statusJSON(500, metav1.StatusReasonInternalError, "etcd event without PrevKv"))),
		"no JSON":                     ends(`]nonsense[`),
		"an object in an object":      ends(`{"type":"ADDED","object":{"metadata":{"na` + "\n" + event1("ADDED", svc("c", "51", "10.0.0.5"))),
		"unknown event":               ends(event1("UPSERTED", svc("c", "51", "10.0.0.5"))),
		"event of lower version":      ends(event1("ADDED", svc("c", "7", "10.0.0.5"))),
		"bookmark of lower one":       ends(bookmark("7")),
		"410 at the resumption":       resumed(status(410, metav1.StatusReasonGone, "too old")),
		"400 at the resumption":       resumed(status(400, metav1.StatusReasonBadRequest, "invalid resource version")),
		"422 at the resumption":       resumed(status(422, metav1.StatusReasonInvalid, "invalid resource version")),
		"too large":                   resumed(status(504, metav1.StatusReasonTimeout, "Too large resource version: 50, current: 3")),
		"too large in the stream":     resumed(holding(event1("ERROR", statusJSON(504, metav1.StatusReasonTimeout, "Too large resource version")))),
		"probe finds another history": {watching(begin...), listing("8", ""), setBack},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeServer(t, servicesPath, answers...)
			r := start(t, f, onlyServices)
			r.eventuallyServices("a=10.0.0.1 b=10.0.0.2")
			log := strings.Join(r.log(cluster.KindService), ",")
			if want := "replace,upsert ns/a,upsert ns/gone,synced,replace,upsert ns/a,upsert ns/b,synced"; log != want {
				t.Errorf("changes: got %s, want %s", log, want)
			}
			q := f.asked(servicesPath)
			if last := q[len(q)-1]; last.Get("resourceVersion") != "" {
				t.Errorf("the listing starts from a version: %v", last)
			}
			eventually(t, "in touch", func() bool { return r.src.Age() == 0 })
		})
	}
}

func TestDeletedEventWithItsOldVersion(t *testing.T) {
	f := newFakeServer(t, servicesPath, holding(event1("ADDED", svc("a", "5", "10.0.0.1")), endBookmark("50"),
		event1("DELETED", svc("a", "5", "10.0.0.1")), event1("ADDED", svc("b", "51", "10.0.0.2"))))
	r := start(t, f, onlyServices)
	r.eventuallyServices("b=10.0.0.2")
	if n := len(f.asked(servicesPath)); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

func TestBadObjects(t *testing.T) {
	f := newFakeServer(t, servicesPath, holding(
		event1("ADDED", svc("a", "5", "10.0.0.1")), event1("ADDED", svc("typo", "5", "10.0.0.2")),
		event1("ADDED", `{"metadata":{"name":"nowhere"}}`), event1("ADDED", `{}`), event1("ADDED", `null`), event1("ADDED", `7`),
		event1("ADDED", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"ns"}}`),
		event1("ADDED", `{"apiVersion":"v9","kind":"Service","metadata":{"name":"p9","namespace":"ns"}}`),
		event1("ADDED", svc("noip", "6", "10.0.0.300")), endBookmark("12"),
		event1("MODIFIED", `{"metadata":{"name":"typo","namespace":"ns","resourceVersion":"13"},"spec":{"ports":[{"port":"http"}]}}`),
		event1("MODIFIED", svc("noip", "14", "10.0.0.300")),
		event1("ADDED", svc("b", "15", "10.0.0.3")),
	))
	r := start(t, f, onlyServices)
	r.eventuallyServices("a=10.0.0.1 b=10.0.0.3 noip=none")
	if n := len(f.asked(servicesPath)); n != 1 {
		t.Errorf("%d requests, want 1: a bad object ends no watch", n)
	}
	if n := r.logs.count("ns/noip", "10.0.0.300"); n != 1 {
		t.Errorf("the bad address is logged %d times, want once:\n%s", n, r.logs)
	}
	if n := len(r.errs); n < 8 {
		t.Errorf("OnError was called %d times, want 8 or more", n)
	}
}

func TestBadObjectInAList(t *testing.T) {
	f := newFakeServer(t, servicesPath, status(422, metav1.StatusReasonInvalid, ""),
		listing("7", "", svc("a", "5", "10.0.0.1"), `{"metadata":{"name":"typo","namespace":"ns"},"spec":{"ports":[{"port":"http"}]}}`,
			svc("b", "6", "10.0.0.2")), holding())
	r := start(t, f, onlyServices)
	r.eventuallyServices("a=10.0.0.1 b=10.0.0.2")
	if r.logs.count("ns/typo") != 1 {
		t.Errorf("log:\n%s", r.logs)
	}
}

func TestListsThatAreNone(t *testing.T) {
	for name, body := range map[string]string{
		"no JSON": "<html>", "empty": "", "object": svc("a", "1", "10.0.0.1")[:1] + `"kind":"Service","apiVersion":"v1"}`, "number": "7",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t, servicesPath, status(422, metav1.StatusReasonInvalid, ""),
				func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) },
				listing("7", "", svc("a", "5", "10.0.0.1")), holding())
			r := start(t, f, onlyServices)
			r.eventuallyServices("a=10.0.0.1")
			if log := strings.Join(r.log(cluster.KindService), ","); !strings.HasPrefix(log, "replace,upsert ns/a,synced") {
				t.Errorf("changes: %s", log)
			}
		})
	}
}

func TestOptionalKinds(t *testing.T) {
	forbidden := status(403, metav1.StatusReasonForbidden, `nodes is forbidden: User "x" cannot list resource "nodes"`)
	f := newFakeServer(t, nodesPath, forbidden, holding(event1("ADDED", `{"metadata":{"name":"n1","resourceVersion":"3"},"spec":{"podCIDR":"10.1.0.0/24"}}`), endBookmark("4")))
	f.scripts[cidrsOldPath] = []answer{holding(event1("ADDED", `{"metadata":{"name":"kubernetes","resourceVersion":"3"},"spec":{"cidrs":["10.96.0.0/12"]}}`), endBookmark("4"))}
	r := start(t, f, cluster.Interest{Kinds: cluster.KindsOf(cluster.KindNode, cluster.KindServiceCIDR, cluster.KindServiceImport)})

	eventually(t, "nodes", func() bool { return r.get(cluster.KindNode, "n1") != nil })
	if got := strings.Join(r.log(cluster.KindNode), ","); !strings.HasPrefix(got, "replace,synced,replace,upsert n1") {
		t.Errorf("nodes: %s", got)
	}
	if n := r.logs.count("kind=Node", `resources: [\"nodes\"], verbs: [\"list\", \"watch\"]`); n != 1 {
		t.Errorf("the missing rule is logged %d times:\n%s", n, r.logs)
	}

	eventually(t, "service CIDRs of v1beta1", func() bool { return r.get(cluster.KindServiceCIDR, "kubernetes") != nil })
	if got := r.log(cluster.KindServiceCIDR)[0:2]; got[1] == "synced" {
		t.Errorf("service CIDRs: %v, want the older version to be tried first", got)
	}

	eventually(t, "imports given up", func() bool { return r.syncs(cluster.KindServiceImport) == 1 })
	eventually(t, "asked for again", func() bool { return len(f.asked(importsPath)) >= 2 })
	if n := r.logs.count("kind=ServiceImport", "serviceimports.multicluster.x-k8s.io"); n != 1 {
		t.Errorf("the missing CRD is logged %d times:\n%s", n, r.logs)
	}
	if r.syncs(cluster.KindServiceImport) != 1 {
		t.Error("emptied again")
	}
	if age := r.src.Age(); age != 0 {
		t.Errorf("Age = %v, but a kind that is not there cannot be out of date", age)
	}
}

// What is known stays when the right to read it goes, and goes when the kind does.
func TestOptionalKindThatGoes(t *testing.T) {
	node := watching(event1("ADDED", `{"metadata":{"name":"n1","resourceVersion":"3"}}`), endBookmark("4"))
	for name, tt := range map[string]struct {
		then answer
		keep bool
	}{
		"forbidden": {status(403, metav1.StatusReasonForbidden, ""), true},
		"unknown":   {status(404, metav1.StatusReasonNotFound, ""), false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t, nodesPath, node, tt.then)
			r := start(t, f, cluster.Interest{Kinds: cluster.KindsOf(cluster.KindNode)})
			eventually(t, "asked again", func() bool { return len(f.asked(nodesPath)) >= 3 })
			if got := r.get(cluster.KindNode, "n1") != nil; got != tt.keep {
				t.Errorf("kept: %v, want %v: %v", got, tt.keep, r.log(cluster.KindNode))
			}
			if got := r.src.Age() > 0; got != tt.keep {
				t.Errorf("out of touch: %v, want %v", got, tt.keep)
			}
		})
	}
}

func TestRequiredKindForbidden(t *testing.T) {
	forbidden := status(403, metav1.StatusReasonForbidden, "services is forbidden")
	denied := status(401, metav1.StatusReasonUnauthorized, "Unauthorized")
	f := newFakeServer(t, servicesPath, forbidden, forbidden, denied, denied, forbidden, denied,
		holding(event1("ADDED", svc("a", "5", "10.0.0.1")), endBookmark("6")))
	r := start(t, f, onlyServices)
	eventually(t, "out of touch", func() bool { return r.src.Age() > 0 })
	if n := r.syncs(cluster.KindService); n != 0 {
		t.Error("synced without a right to read")
	}
	r.eventuallyServices("a=10.0.0.1")
	eventually(t, "in touch", func() bool { return r.src.Age() == 0 })
	eventually(t, "recovery is logged", func() bool { return r.logs.count("in touch") == 1 })
	if n := r.logs.count("level=WARN", "forbidden", `resources: [\"services\"]`); n != 1 {
		t.Errorf("the missing rule is logged %d times:\n%s", n, r.logs)
	}
	if n := r.logs.count("level=WARN", "credentials"); n != 1 {
		t.Errorf("missing credentials are logged %d times:\n%s", n, r.logs)
	}
}

func TestServerAway(t *testing.T) {
	f := newFakeServer(t, servicesPath, holding(event1("ADDED", svc("a", "5", "10.0.0.1")), endBookmark("60")))
	r := start(t, f, onlyServices)
	defer r.stop() // before the second server is closed, which waits for its connections
	r.eventuallyServices("a=10.0.0.1")
	addr := f.Listener.Addr().String()
	// The listener goes first, or the client comes in again and Close waits for it.
	f.Listener.Close()
	f.CloseClientConnections()
	f.Close()
	eventually(t, "out of touch", func() bool { return r.src.Age() > 0 })
	r.eventuallyServices("a=10.0.0.1")

	// Another server, set up anew, on the same address: it takes any watch and knows nothing of version 60.
	g := &fakeServer{t: t, scripts: map[string][]answer{servicesPath: {listing("3", ""),
		holding(event1("ADDED", svc("b", "2", "10.0.0.2")), endBookmark("3"))}}, requests: map[string][]url.Values{}}
	g.Server = serveAt(t, addr, g)
	r.eventuallyServices("b=10.0.0.2")
	eventually(t, "in touch", func() bool { return r.src.Age() == 0 })
}

func TestPodsThatGo(t *testing.T) {
	pod := func(name, rv, more, phase string) string {
		return `{"metadata":{"namespace":"ns","name":"` + name + `","resourceVersion":"` + rv + `"` + more + `},"status":{"phase":"` + phase + `","podIPs":[{"ip":"10.1.0.1"}]}}`
	}
	f := newFakeServer(t, podsPath, holding(
		event1("ADDED", pod("a", "1", "", "Running")), event1("ADDED", pod("b", "2", "", "Running")),
		event1("ADDED", pod("c", "3", `,"deletionTimestamp":"2024-01-01T00:00:00Z"`, "Running")), endBookmark("5"),
		event1("MODIFIED", pod("a", "6", `,"deletionTimestamp":"2024-01-01T00:00:00Z"`, "Running")),
		event1("MODIFIED", pod("b", "7", "", "Succeeded")), event1("ADDED", pod("d", "8", "", "Pending")),
	))
	r := start(t, f, cluster.Interest{Kinds: cluster.KindsOf(cluster.KindPod)})
	eventually(t, "d", func() bool { return r.get(cluster.KindPod, "ns/d") != nil })
	for _, name := range []string{"ns/a", "ns/b", "ns/c"} {
		if r.get(cluster.KindPod, name) != nil {
			t.Errorf("%s is still there: %v", name, r.log(cluster.KindPod))
		}
	}
	if q := f.asked(podsPath)[0].Get("fieldSelector"); q != "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown" {
		t.Errorf("fieldSelector = %q", q)
	}
}

// What makes a pod's hosts file comes and changes with the pod, and only the node's own pods are asked for.
func TestPodHosts(t *testing.T) {
	pod := func(rv, notes, spec, status string) string {
		return `{"metadata":{"namespace":"ns","name":"a","uid":"u-1","resourceVersion":"` + rv + `","annotations":{` + notes + `}},"spec":{` + spec + `},"status":{` + status + `}}`
	}
	f := newFakeServer(t, podsPath, holding(
		event1("ADDED", pod("1", ``, `"hostNetwork":true`, ``)), endBookmark("2"),
		event1("MODIFIED", pod("3", `"ropewalk.dev/host-aliases":"[]","x":"y"`, `"hostNetwork":true`, ``)),
		event1("MODIFIED", pod("4", `"x":"z"`, `"hostAliases":[{"ip":"no","hostnames":["a"]},{"ip":"10.1.2.3","hostnames":["b"]}]`, `"podIPs":[{"ip":"10.1.0.1"}]`)),
		event1("ADDED", `{"metadata":{"namespace":"ns","name":"b","resourceVersion":"5"}}`),
		event1("ADDED", `{"metadata":{"namespace":"ns","name":"c","uid":"u-3","resourceVersion":"6"}}`),
	))
	r := start(t, f, cluster.Interest{Kinds: cluster.KindsOf(cluster.KindPod), PodHosts: true, NodeName: "n1"})
	eventually(t, "c", func() bool { return r.get(cluster.KindPod, "ns/c") != nil })
	want := []string{"replace", "upsert ns/a", "synced", "upsert ns/a", "upsert ns/a", "delete ns/b", "upsert ns/c"}
	if d := cmp.Diff(want, r.log(cluster.KindPod)); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
	if d := cmp.Diff(&cluster.Pod{Namespace: "ns", Name: "a", IPs: ips("10.1.0.1"), Hosts: &cluster.PodHosts{
		UID: "u-1", Aliases: []cluster.HostAlias{{IP: "10.1.2.3", Hostnames: []string{"b"}}},
	}}, r.get(cluster.KindPod, "ns/a"), sameAddrs); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if n := r.logs.count("in part unusable", "object=ns/a", "host alias"); n != 1 {
		t.Errorf("the bad alias is logged %d times", n)
	}
	if n := len(r.errs); n != 2 {
		t.Errorf("%d errors are counted, want those of the alias and of the pod without a UID", n)
	}
	if q := f.asked(podsPath)[0].Get("fieldSelector"); q != "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown,spec.nodeName=n1" {
		t.Errorf("fieldSelector = %q", q)
	}
}

func TestConfigMaps(t *testing.T) {
	object := func(rv, data string) string {
		return `{"metadata":{"namespace":"ns","name":"m","resourceVersion":"` + rv + `","labels":{"ropewalk.dev/host-aliases":"cluster","a":"b"}},"data":{` + data + `}}`
	}
	f := newFakeServer(t, "/api/v1/configmaps", status(403, metav1.StatusReasonForbidden, "configmaps is forbidden"), holding(
		event1("ADDED", object("1", ``)), endBookmark("2"), event1("MODIFIED", object("3", `"hosts":"10.1.2.3 foo"`)),
	))
	r := start(t, f, cluster.Interest{Kinds: cluster.KindsOf(cluster.KindConfigMap), Labels: "not=this", ConfigMapLabels: "ropewalk.dev/host-aliases"})
	want := &cluster.ConfigMap{Namespace: "ns", Name: "m", Labels: map[string]string{"ropewalk.dev/host-aliases": "cluster"}, Data: map[string]string{"hosts": "10.1.2.3 foo"}}
	eventually(t, "the data", func() bool { return cmp.Equal(r.get(cluster.KindConfigMap, "ns/m"), cluster.Object(want)) })
	if n := r.logs.count("level=WARN", "forbidden", `resources: [\"configmaps\"]`); n != 1 || r.syncs(cluster.KindConfigMap) != 1 {
		t.Errorf("the missing rule is logged %d times, %d listings:\n%s", n, r.syncs(cluster.KindConfigMap), r.logs)
	}
	q := f.asked("/api/v1/configmaps")[0]
	if q.Get("labelSelector") != "ropewalk.dev/host-aliases" || q.Has("fieldSelector") {
		t.Errorf("query %v", q)
	}
}

// protobufWatch answers in protobuf, framed and encoded by client-go's own scheme.
func protobufWatch(t *testing.T, hold bool, events ...metav1.WatchEvent) answer {
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !ok {
		t.Fatal("no protobuf serializer")
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if accept := r.Header.Get("Accept"); accept != "application/vnd.kubernetes.protobuf,application/json" {
			t.Errorf("Accept: %s", accept)
		}
		w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf;stream=watch")
		enc := streaming.NewEncoder(info.StreamSerializer.NewFrameWriter(w), scheme.Codecs.EncoderForVersion(info.StreamSerializer.Serializer, corev1.SchemeGroupVersion))
		for i := range events {
			if err := enc.Encode(&events[i]); err != nil {
				t.Error(err)
			}
		}
		w.(http.Flusher).Flush()
		if hold {
			<-r.Context().Done()
		}
	}
}

func protobufEvent(t *testing.T, typ string, o runtime.Object) metav1.WatchEvent {
	return metav1.WatchEvent{Type: typ, Object: runtime.RawExtension{Raw: protobufBytes(t, o)}}
}

func protobufBytes(t testing.TB, o runtime.Object) []byte {
	info, _ := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	raw, err := runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion), o)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestProtobufStream(t *testing.T) {
	end := typedService("", "12", "")
	end.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	big := typedService("big", "13", "10.0.0.3")
	big.Annotations = map[string]string{"note": strings.Repeat("x", 200_000)}
	garbled := protobufEvent(t, "ADDED", typedService("garbled", "14", "10.0.0.4"))
	garbled.Object.Raw = garbled.Object.Raw[:len(garbled.Object.Raw)-3]
	expired := &metav1.Status{Status: metav1.StatusFailure, Code: 410, Reason: metav1.StatusReasonExpired, Message: "old"}
	f := newFakeServer(t, servicesPath, protobufWatch(t, true,
		protobufEvent(t, "ADDED", typedService("a", "5", "10.0.0.1")), protobufEvent(t, "BOOKMARK", end),
		protobufEvent(t, "ADDED", big), garbled, protobufEvent(t, "ADDED", typedService("c", "15", "10.0.0.5")),
		protobufEvent(t, "ERROR", expired)),
		protobufWatch(t, true, protobufEvent(t, "ADDED", typedService("d", "16", "10.0.0.6")), protobufEvent(t, "BOOKMARK", end)))
	r := start(t, f, onlyServices)
	r.eventuallyServices("d=10.0.0.6")
	want := []string{"replace", "upsert ns/a", "synced", "upsert ns/big", "upsert ns/c", "replace", "upsert ns/d", "synced"}
	if d := cmp.Diff(want, r.log(cluster.KindService)); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
}

// What cannot be an event may have been one, so that only a listing tells what is there.
func TestProtobufStreamGarbled(t *testing.T) {
	end := typedService("", "12", "")
	end.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	for name, garbage := range map[string]string{
		"too large":    "\x02\x00\x00\x00",
		"no message":   "\x00\x00\x00\x02\xff\xff",
		"half a field": "\x00\x00\x00\x04\x0a\x05AD",
		"no event":     "\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			begin := protobufWatch(t, false, protobufEvent(t, "ADDED", typedService("a", "5", "10.0.0.1")), protobufEvent(t, "BOOKMARK", end))
			f := newFakeServer(t, servicesPath, func(w http.ResponseWriter, r *http.Request) {
				begin(w, r)
				holding(garbage)(w, r)
			}, protobufWatch(t, true, protobufEvent(t, "ADDED", typedService("b", "16", "10.0.0.2")), protobufEvent(t, "BOOKMARK", end)))
			r := start(t, f, onlyServices)
			r.eventuallyServices("b=10.0.0.2")
			if q := f.asked(servicesPath); len(q) != 2 || q[1].Get("resourceVersion") != "" {
				t.Errorf("requests: %v", q)
			}
		})
	}
}

func TestProtobufList(t *testing.T) {
	list := &corev1.ServiceList{ListMeta: metav1.ListMeta{ResourceVersion: "9"}, Items: []corev1.Service{*typedService("a", "5", "10.0.0.1"), *typedService("b", "6", "10.0.0.2")}}
	raw := protobufBytes(t, list)
	f := newFakeServer(t, servicesPath, status(422, metav1.StatusReasonInvalid, ""),
		func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
			w.Write(raw)
		}, protobufWatch(t, true, protobufEvent(t, "DELETED", typedService("a", "10", "10.0.0.1"))))
	r := start(t, f, onlyServices)
	r.eventuallyServices("b=10.0.0.2")
	if rv := f.asked(servicesPath)[2].Get("resourceVersion"); rv != "9" {
		t.Errorf("the watch starts at %q, want 9", rv)
	}
}

// A sink that is behind slows the source down, and is not taken for a server that keeps silent.
func TestSlowSink(t *testing.T) {
	slept := make(chan struct{})
	f := newFakeServer(t, servicesPath, func(w http.ResponseWriter, r *http.Request) {
		watching(event1("ADDED", svc("a", "5", "10.0.0.1")))(w, r)
		<-slept
		holding(endBookmark("6"))(w, r)
	})
	src, err := New(Config{Endpoint: f.URL})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	rec := newRecorder(t)
	sleptOnce := sync.OnceFunc(func() { close(slept) })
	done := make(chan error, 1)
	go func() {
		done <- src.Run(ctx, onlyServices, sinkFunc(func(c cluster.Change) {
			if c.Op == cluster.Upsert {
				time.Sleep(initialPatience + 200*time.Millisecond)
				sleptOnce()
			}
			rec.Apply(c)
		}))
	}()
	eventually(t, "synced", func() bool { return rec.syncs(cluster.KindService) == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := len(f.asked(servicesPath)); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

type sinkFunc func(cluster.Change)

func (f sinkFunc) Apply(c cluster.Change) { f(c) }

// Neither a listing, nor a watch, nor a server that says nothing, nor one that is not there outlives Run.
func TestRunLeavesNothing(t *testing.T) {
	hang := answer(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	for name, tt := range map[string]struct {
		answers []answer
		until   func(*fakeServer, *running) bool
	}{
		"watching":    {[]answer{holding(endBookmark("6"))}, func(_ *fakeServer, r *running) bool { return r.syncs(cluster.KindService) > 0 }},
		"hanging":     {[]answer{hang}, func(f *fakeServer, _ *running) bool { return len(f.asked(servicesPath)) > 0 }},
		"listing":     {[]answer{status(422, metav1.StatusReasonInvalid, ""), hang}, func(f *fakeServer, _ *running) bool { return len(f.asked(servicesPath)) > 1 }},
		"backing off": {[]answer{status(500, metav1.StatusReasonInternalError, "")}, func(f *fakeServer, _ *running) bool { return len(f.asked(servicesPath)) > 4 }},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t, servicesPath, tt.answers...)
			before := goleak.IgnoreCurrent()
			r := start(t, f, onlyServices)
			eventually(t, name, func() bool { return tt.until(f, r) })
			r.stop()
			f.CloseClientConnections()
			n := len(r.log(cluster.KindService))
			if err := goleak.Find(before); err != nil {
				t.Error(err)
			}
			if len(r.log(cluster.KindService)) != n {
				t.Error("Apply was called after Run returned")
			}
			if age := r.src.Age(); age != 0 {
				t.Errorf("Age = %v with nothing running", age)
			}
		})
	}
}

func TestRunRefusesBadSelectors(t *testing.T) {
	src, err := New(Config{Endpoint: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	for says, interest := range map[string]cluster.Interest{
		`label selector "a in ("`:              {Labels: "a in ("},
		`label selector of namespaces "=="`:    {NamespaceLabels: "=="},
		`label selector of ConfigMaps "a b"`:   {ConfigMapLabels: "a b"},
		`label selector of services "a b"`:     {ServiceLabels: "a b"},
		`label selector of slices "a b"`:       {SliceLabels: "a b"},
		`node name ""`:                         {OneNode: true},
		`node name "n1,status.phase=Failed": `: {NodeName: "n1,status.phase=Failed"},
	} {
		if err := src.Run(context.Background(), interest, newRecorder(t)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("Run(%+v): %v, want an error that says %s", interest, err, says)
		}
	}
}

// The limits have to reach the clients: they are easily set too late.
func TestLimits(t *testing.T) {
	var now, most atomic.Int32
	slow := answer(func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(20 * time.Millisecond)
		now.Add(-1)
		status(500, metav1.StatusReasonInternalError, "")(w, r)
	})
	kinds := cluster.Interest{Kinds: cluster.KindsOf(cluster.KindService, cluster.KindPod, cluster.KindSlice)}

	t.Run("MaxInflight", func(t *testing.T) {
		f := newFakeServer(t, servicesPath, slow)
		f.scripts[podsPath], f.scripts[slicesPath] = []answer{slow}, []answer{slow}
		start(t, f, kinds, func(c *Config) { c.MaxInflight = 1 })
		eventually(t, "requests", func() bool {
			return len(f.asked(servicesPath)) > 2 && len(f.asked(podsPath)) > 2 && len(f.asked(slicesPath)) > 2
		})
		if most.Load() != 1 {
			t.Errorf("%d requests at a time, want 1", most.Load())
		}
	})
	t.Run("MaxInflight leaves watches alone", func(t *testing.T) {
		f := newFakeServer(t, servicesPath, holding(endBookmark("1")))
		f.scripts[podsPath] = []answer{status(422, metav1.StatusReasonInvalid, ""), listing("2", ""), holding()}
		f.scripts[slicesPath] = f.scripts[podsPath]
		r := start(t, f, kinds, func(c *Config) { c.MaxInflight = 1 })
		eventually(t, "all are synced", func() bool {
			return r.syncs(cluster.KindService) == 1 && r.syncs(cluster.KindPod) == 1 && r.syncs(cluster.KindSlice) == 1
		})
	})
	t.Run("QPS", func(t *testing.T) {
		f := newFakeServer(t, servicesPath, status(500, metav1.StatusReasonInternalError, ""))
		f.scripts[podsPath], f.scripts[slicesPath] = f.scripts[servicesPath], f.scripts[servicesPath]
		start(t, f, kinds, func(c *Config) { c.QPS, c.Burst = 0.001, 4 })
		asked := func() int {
			return len(f.asked(servicesPath)) + len(f.asked(podsPath)) + len(f.asked(slicesPath))
		}
		eventually(t, "the burst", func() bool { return asked() == 4 })
		// Three kinds that back off for less than a second each would have asked again many times over.
		time.Sleep(1500 * time.Millisecond)
		if n := asked(); n != 4 {
			t.Errorf("%d requests of all kinds together, want the burst of 4", n)
		}
	})
	t.Run("UserAgent", func(t *testing.T) {
		got := make(chan string, 10)
		f := newFakeServer(t, servicesPath, func(w http.ResponseWriter, r *http.Request) {
			got <- r.UserAgent()
			holding()(w, r)
		})
		start(t, f, onlyServices, func(c *Config) { c.UserAgent = "ropewalk/1" })
		if ua := <-got; ua != "ropewalk/1" {
			t.Errorf("User-Agent: %s", ua)
		}
	})
}

func serveAt(t *testing.T, addr string, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Listener.Close()
	eventually(t, "listening again", func() (ok bool) {
		l, err := net.Listen("tcp", addr)
		s.Listener = l
		return err == nil
	})
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// Over TLS all kinds share one HTTP/2 connection, which has goroutines of its own.
func TestHTTP2(t *testing.T) {
	f := &fakeServer{t: t, requests: map[string][]url.Values{}, scripts: map[string][]answer{
		servicesPath: {holding(event1("ADDED", svc("a", "5", "10.0.0.1")), endBookmark("6"))}, podsPath: {holding(endBookmark("6"))},
	}}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("%s over %s", r.URL.Path, r.Proto)
		}
		f.ServeHTTP(w, r)
	}))
	f.EnableHTTP2 = true
	f.StartTLS()
	t.Cleanup(f.Close)
	ca := writeFile(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})))
	before := goleak.IgnoreCurrent()
	r := start(t, f, cluster.Interest{Kinds: cluster.KindsOf(cluster.KindService, cluster.KindPod)}, func(c *Config) { c.CAFile, c.MaxInflight = ca, 3 })
	r.eventuallyServices("a=10.0.0.1")
	eventually(t, "pods", func() bool { return r.syncs(cluster.KindPod) == 1 })
	r.stop()
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

// TestAgeGoesOn holds that a source that is run again, while its server is away, does not begin to count anew.
func TestAgeGoesOn(t *testing.T) {
	src, err := New(Config{Endpoint: "http://127.0.0.1:1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	const old = 50 * time.Millisecond
	for run := range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- src.Run(ctx, onlyServices, sinkFunc(func(cluster.Change) {})) }()
		age := time.Duration(0)
		for age == 0 || run == 0 && age < old {
			time.Sleep(time.Millisecond)
			age = src.Age()
		}
		if age < old {
			t.Errorf("%v after another start", age)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
