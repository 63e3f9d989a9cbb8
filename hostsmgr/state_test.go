package hostsmgr

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
)

// watched is a state with what it told.
type watched struct {
	*state
	touched   map[string]bool // pods, and whether it was the cluster
	forgotten []string
	reported  []string
}

func newWatched(os ...cluster.Object) *watched {
	w := &watched{state: newState("cluster.local", nil, 1<<20), touched: map[string]bool{}}
	w.touch = func(p *pod, wide bool, _ time.Time) { w.touched[p.Key().String()] = wide }
	w.forget = func(p *pod) { w.forgotten = append(w.forgotten, p.Key().String()) }
	w.report = func(k cluster.Kind, key cluster.Key, err error) {
		w.reported = append(w.reported, fmt.Sprintf("%s %s: %v", k, key, err))
	}
	for _, o := range os {
		w.take(up(o))
	}
	w.take(cluster.Change{Op: cluster.Synced, Kind: cluster.KindPod})
	w.take(cluster.Change{Op: cluster.Synced, Kind: cluster.KindConfigMap})
	clear(w.touched)
	return w
}

// aliasesOf returns the lines behind the header of the aliases.
func (w *watched) aliasesOf(t *testing.T, key string) []string {
	t.Helper()
	namespace, name, _ := strings.Cut(key, "/")
	b, err := w.want(w.pods[cluster.Key{Namespace: namespace, Name: name}])
	ok(t, err)
	_, lines, _ := strings.Cut(string(b), "\n# Entries added by HostAliases.\n")
	return strings.Fields(lines)
}

// TestTheOrderOfAliases is that of the specification: the spec's, the annotation's, those of the namespace's ConfigMaps by name,
// those of the cluster's by namespace and name; of each by key.
func TestTheOrderOfAliases(t *testing.T) {
	p := newPod("shop", "web", withAlias("10.0.0.2", "annotation.example"))
	p.Hosts.Aliases = []cluster.HostAlias{alias("10.0.0.1", "spec.example")}
	objects := []cluster.Object{
		p,
		newConfigMap("namespace", "shop", "b", "10.0.0.5 b.example"),
		newConfigMap("namespace", "shop", "a", "10.0.0.3 a0.example\n", "10.0.0.4 a1.example"),
		newConfigMap("namespace", "bank", "a", "10.6.6.6 another.example"),
		newConfigMap("cluster", "shop", "c", "10.0.0.8 shop-c.example"),
		newConfigMap("cluster", "infra", "z", "10.0.0.7 infra-z.example"),
		newConfigMap("cluster", "infra", "y", "10.0.0.6 infra-y.example # and more\n\n# nothing\n"),
	}
	want := []string{
		"10.0.0.1", "spec.example", "10.0.0.2", "annotation.example", "10.0.0.3", "a0.example", "10.0.0.4", "a1.example",
		"10.0.0.5", "b.example", "10.0.0.6", "infra-y.example", "10.0.0.7", "infra-z.example", "10.0.0.8", "shop-c.example",
	}
	for range 10 { // whatever the order in which they come
		first := objects[0]
		objects = append(objects[1:], first)
		if diff := cmp.Diff(want, newWatched(objects...).aliasesOf(t, "shop/web")); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestWhatAChangeTouches(t *testing.T) {
	deleted := func(o cluster.Object) cluster.Change { return cluster.Deleted(o.Kind(), o.Key(), time.Time{}) }
	ofShop, ofAll := newConfigMap("namespace", "shop", "m", "10.0.0.1 a"), newConfigMap("cluster", "shop", "all", "10.0.0.2 b")
	all := map[string]bool{"shop/web": true, "shop/db": true, "bank/web": true}
	shop := map[string]bool{"shop/web": false, "shop/db": false}
	none := map[string]bool{}
	tests := map[string]struct {
		changes   []cluster.Change
		touched   map[string]bool
		forgotten []string
	}{
		"a pod":                            {[]cluster.Change{up(newPod("shop", "web", withIPs("10.1.1.1")))}, map[string]bool{"shop/web": false}, nil},
		"the same pod":                     {[]cluster.Change{up(newPod("shop", "web"))}, none, nil},
		"a new pod":                        {[]cluster.Change{up(newPod("shop", "new"))}, map[string]bool{"shop/new": false}, nil},
		"a pod that goes":                  {[]cluster.Change{deleted(newPod("shop", "web"))}, none, []string{"shop/web"}},
		"a pod that was never there":       {[]cluster.Change{deleted(newPod("shop", "x"))}, none, nil},
		"a pod made anew":                  {[]cluster.Change{up(newPod("shop", "web", uid("2")))}, map[string]bool{"shop/web": false}, []string{"shop/web"}},
		"a pod renamed":                    {[]cluster.Change{up(newPod("shop", "web2", uid("uid-shop-web")))}, map[string]bool{"shop/web2": false}, []string{"shop/web"}},
		"of a namespace":                   {[]cluster.Change{up(newConfigMap("namespace", "shop", "m", "10.0.0.3 c"))}, shop, nil},
		"of a namespace, unchanged":        {[]cluster.Change{up(newConfigMap("namespace", "shop", "m", "10.0.0.1 a"))}, none, nil},
		"of a namespace without pods":      {[]cluster.Change{up(newConfigMap("namespace", "x", "m", "10.0.0.3 c"))}, none, nil},
		"of a namespace, gone":             {[]cluster.Change{deleted(ofShop)}, shop, nil},
		"of the cluster":                   {[]cluster.Change{up(newConfigMap("cluster", "shop", "all", "10.0.0.3 c"))}, all, nil},
		"of the cluster, unchanged":        {[]cluster.Change{up(newConfigMap("cluster", "shop", "all", "10.0.0.2 b"))}, none, nil},
		"of the cluster, gone":             {[]cluster.Change{deleted(ofAll)}, all, nil},
		"of the cluster, of the namespace": {[]cluster.Change{up(newConfigMap("namespace", "shop", "all", "10.0.0.2 b"))}, map[string]bool{"shop/web": false, "shop/db": false, "bank/web": true}, nil},
		"of nobody":                        {[]cluster.Change{up(newConfigMap("galaxy", "shop", "x", "10.0.0.2 b"))}, none, nil},
		"a listing that lacks some": {[]cluster.Change{
			{Op: cluster.Replace, Kind: cluster.KindPod}, up(newPod("shop", "web")), up(newPod("shop", "db")),
			{Op: cluster.Synced, Kind: cluster.KindPod},
		}, none, []string{"bank/web"}},
		"a listing that is not over": {[]cluster.Change{{Op: cluster.Replace, Kind: cluster.KindPod}, up(newPod("shop", "web"))}, none, nil},
		"a listing that starts over": {[]cluster.Change{
			{Op: cluster.Replace, Kind: cluster.KindConfigMap}, up(ofShop), {Op: cluster.Replace, Kind: cluster.KindConfigMap}, up(ofAll),
			{Op: cluster.Synced, Kind: cluster.KindConfigMap},
		}, shop, nil},
		"of another kind": {[]cluster.Change{up(&cluster.Service{Namespace: "shop", Name: "web"}), {Op: cluster.Synced, Kind: cluster.KindService}}, none, nil},
	}
	for name, test := range tests {
		w := newWatched(newPod("shop", "web"), newPod("shop", "db"), newPod("bank", "web"), ofShop, ofAll)
		for _, c := range test.changes {
			w.take(c)
		}
		if diff := cmp.Diff(test.touched, w.touched); diff != "" {
			t.Errorf("%s: touched (-want +got)\n%s", name, diff)
		}
		if diff := cmp.Diff(test.forgotten, w.forgotten); diff != "" {
			t.Errorf("%s: forgotten (-want +got)\n%s", name, diff)
		}
		if got := slices.Sorted(maps.Keys(w.byUID)); len(got) != len(w.pods) {
			t.Errorf("%s: %d pods by %v", name, len(w.pods), got)
		}
	}
}

func uid(uid string) func(*cluster.Pod) { return func(p *cluster.Pod) { p.Hosts.UID = uid } }

// TestWhatIsWrongIsReported once for each version, and what is right in it is used.
func TestWhatIsWrongIsReported(t *testing.T) {
	bad := "10.0.0.1 good.example\n10.0.0.300 bad.example\nx\n10.0.0.2 good2.example"
	w := newWatched(newPod("shop", "web"), newConfigMap("namespace", "shop", "m", bad))
	w.take(up(newConfigMap("namespace", "shop", "m", bad)))
	if got, want := w.aliasesOf(t, "shop/web"), []string{"10.0.0.1", "good.example", "10.0.0.2", "good2.example"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if len(w.reported) != 1 || !strings.HasPrefix(w.reported[0], "ConfigMap shop/m: hosts0: line 2: ") ||
		!strings.HasSuffix(w.reported[0], "; and 1 more lines are wrong") {
		t.Errorf("%q", w.reported)
	}
	for name, o := range map[string]cluster.Object{
		`Pod shop/web: annotation ropewalk.dev/host-aliases: `:                            newPod("shop", "web", annotated("[{}]")),
		`Pod shop/x: its UID "../x" is no name`:                                           newPod("shop", "x", uid("../x")),
		`Pod shop/x: its UID ".." is no name`:                                             newPod("shop", "x", uid("..")),
		`Pod shop/x: it has no UID`:                                                       newPod("shop", "x", uid("")),
		`Pod shop/y: it has no UID`:                                                       &cluster.Pod{Namespace: "shop", Name: "y"},
		`ConfigMap shop/g: label ropewalk.dev/host-aliases is "galaxy"; want "namespace"`: newConfigMap("galaxy", "shop", "g"),
		`ConfigMap shop/n: label ropewalk.dev/host-aliases is ""; want "namespace"`:       &cluster.ConfigMap{Namespace: "shop", Name: "n"},
	} {
		w := newWatched(newPod("shop", "web"))
		w.take(up(o))
		if len(w.reported) != 1 || !strings.HasPrefix(w.reported[0], name) {
			t.Errorf("%q, want %q…", w.reported, name)
		}
	}
}

// TestWhoSpeaksForTheCluster holds that ConfigMaps of other namespaces than those that are named do not.
func TestWhoSpeaksForTheCluster(t *testing.T) {
	w := newWatched()
	w.clusterFrom = []string{"infra"}
	w.take(up(newPod("shop", "web")))
	w.take(up(newConfigMap("cluster", "infra", "m", "10.0.0.1 good.example")))
	w.take(up(newConfigMap("cluster", "bank", "m", "10.6.6.6 bad.example")))
	if got, want := w.aliasesOf(t, "shop/web"), []string{"10.0.0.1", "good.example"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if len(w.reported) != 1 {
		t.Errorf("%q", w.reported)
	}
}

// TestANamespaceIsBounded holds that the ConfigMaps of one namespace, whether it has pods here or not, cost a bounded memory, and that
// what is left out is said, and comes when it changes and there is room.
func TestANamespaceIsBounded(t *testing.T) {
	w := newWatched(newPod("shop", "web"))
	w.limit = 200
	long := func(c string) string { return "10.0.0.1 " + strings.Repeat(c, 120) + "\n" }
	w.take(up(newConfigMap("namespace", "shop", "a", long("a"))))
	w.take(up(newConfigMap("namespace", "shop", "b", long("b"))))
	w.take(up(newConfigMap("namespace", "shop", "c", "10.0.0.3 c")))
	w.take(up(newConfigMap("cluster", "bank", "b", long("x"))))
	if got, want := w.aliasesOf(t, "shop/web"), []string{"10.0.0.1", strings.Repeat("a", 120), "10.0.0.3", "c", "10.0.0.1", strings.Repeat("x", 120)}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if len(w.reported) != 1 || !strings.Contains(w.reported[0], "ConfigMap shop/b: left out") {
		t.Errorf("%q", w.reported)
	}
	w.take(cluster.Deleted(cluster.KindConfigMap, cluster.Key{Namespace: "shop", Name: "a"}, time.Time{}))
	w.take(up(newConfigMap("namespace", "shop", "b", long("d"))))
	w.take(up(newConfigMap("namespace", "shop", "b", long("e")))) // in its own place
	if got, want := w.aliasesOf(t, "shop/web"), []string{"10.0.0.1", strings.Repeat("e", 120), "10.0.0.3", "c", "10.0.0.1", strings.Repeat("x", 120)}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// naive works out a pod's file anew from all there is.
func naive(t *testing.T, objects map[string]cluster.Object, p *cluster.Pod) string {
	t.Helper()
	var more []cluster.HostAlias
	if value := p.Hosts.Annotations[hostsfile.AliasesKey]; value != "" {
		more, _ = hostsfile.ParseAnnotation(value)
	}
	for _, scope := range []string{"namespace", "cluster"} {
		for _, name := range slices.Sorted(maps.Keys(objects)) {
			m, isMap := objects[name].(*cluster.ConfigMap)
			if !isMap || m.Labels[hostsfile.AliasesKey] != scope || scope == "namespace" && m.Namespace != p.Namespace {
				continue
			}
			for _, k := range slices.Sorted(maps.Keys(m.Data)) {
				good, _ := hostsfile.Parse(m.Data[k])
				more = append(more, good...)
			}
		}
	}
	b, err := hostsfile.Render(p, hostsfile.Node{ClusterDomain: "cluster.local"}, more...)
	ok(t, err)
	return string(b)
}

// TestAnyInterleaving holds the state to what is worked out anew, whatever comes in which order, listings that start over among it;
// and that each pod whose file is another one is touched.
func TestAnyInterleaving(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		w, known := newWatched(), map[string]cluster.Object{}
		named := map[cluster.Kind]map[string]bool{} // by the listing that goes on
		written := map[string]string{}
		name := func(o cluster.Object) string { return o.Kind().String() + " " + o.Key().String() }
		for range 200 {
			var o cluster.Object
			namespace, n := []string{"a", "b"}[rng.IntN(2)], fmt.Sprint(rng.IntN(3))
			line := fmt.Sprintf("10.0.0.%d x", rng.IntN(4))
			if rng.IntN(2) == 0 {
				o = newPod(namespace, n, withIPs(fmt.Sprintf("10.1.0.%d", rng.IntN(3))))
				if rng.IntN(2) == 0 {
					o = newPod(namespace, n, withAlias(fmt.Sprintf("10.2.0.%d", rng.IntN(3)), "y"), uid(fmt.Sprint(namespace, n, rng.IntN(2))))
				}
			} else {
				o = newConfigMap([]string{"namespace", "cluster", "none"}[rng.IntN(3)], namespace, n, line, line)
			}
			k := o.Kind()
			switch rng.IntN(10) {
			case 0:
				named[k] = map[string]bool{}
				w.take(cluster.Change{Op: cluster.Replace, Kind: k})
			case 1:
				if named[k] == nil {
					break
				}
				for key, o := range known {
					if o.Kind() == k && !named[k][key] {
						delete(known, key)
					}
				}
				named[k] = nil
				w.take(cluster.Change{Op: cluster.Synced, Kind: k})
			case 2, 3:
				delete(known, name(o))
				delete(named[k], name(o))
				w.take(cluster.Deleted(k, o.Key(), time.Time{}))
			default:
				known[name(o)] = o
				if named[k] != nil {
					named[k][name(o)] = true
				}
				w.take(up(o))
			}
			pods := 0
			for _, o := range known {
				p, isPod := o.(*cluster.Pod)
				if !isPod {
					continue
				}
				pods++
				key := p.Hosts.UID
				if _, touched := w.touched[p.Key().String()]; touched {
					b, err := w.want(w.pods[p.Key()])
					ok(t, err)
					written[key] = string(b)
				}
				if want := naive(t, known, p); written[key] != want {
					t.Fatalf("seed %d: pod %s has %q, want %q", seed, p.Key(), written[key], want)
				}
			}
			if pods != len(w.pods) || pods != len(w.byUID) {
				t.Fatalf("seed %d: %d pods, %d by UID, want %d", seed, len(w.pods), len(w.byUID), pods)
			}
			clear(w.touched)
		}
	}
}

// TestNothingIsKept of what has gone.
func TestNothingIsKept(t *testing.T) {
	w := newWatched()
	var objects []cluster.Object
	for i := range 20 {
		objects = append(objects, newPod(fmt.Sprintf("n%d", i), "p"), newConfigMap(hostsfile.ScopeCluster, fmt.Sprintf("m%d", i), "m", "10.0.0.1 a"))
	}
	for _, o := range objects {
		w.take(up(o))
	}
	for _, o := range objects {
		w.take(cluster.Deleted(o.Kind(), o.Key(), time.Time{}))
	}
	if len(w.pods)+len(w.byUID)+len(w.spaces) != 0 || len(w.ofCluster()) != 0 {
		t.Errorf("%d pods, %d UIDs, %d namespaces, %d aliases are left", len(w.pods), len(w.byUID), len(w.spaces), len(w.ofCluster()))
	}
}
