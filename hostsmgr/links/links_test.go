package links

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func service(namespace, name, ip string) *cluster.Service {
	s := &cluster.Service{Namespace: namespace, Name: name, Headless: ip == "", Ports: []cluster.ServicePort{{Port: 80, Protocol: cluster.TCP}}}
	if ip != "" {
		s.ClusterIPs = []netip.Addr{netip.MustParseAddr(ip)}
	}
	return s
}

func slice(namespace, service, addr string) *cluster.Slice {
	return &cluster.Slice{
		Namespace: namespace, Name: service + "-1", Service: service, Ports: []cluster.EndpointPort{{Port: 80, Protocol: cluster.TCP}},
		Endpoints: []cluster.Endpoint{{Addr: netip.MustParseAddr(addr), Ready: true}},
	}
}

func list(t *Table, kind cluster.Kind, objects ...cluster.Object) {
	t.Apply(cluster.Change{Op: cluster.Replace, Kind: kind})
	for _, o := range objects {
		t.Apply(cluster.Upserted(o, time.Time{}))
	}
	t.Apply(cluster.Change{Op: cluster.Synced, Kind: kind})
}

func names(vars []string) (names []string) {
	for _, v := range vars {
		name, _, _ := strings.Cut(v, "=")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func isSynced(t *Table) bool {
	select {
	case <-t.Synced():
		return true
	default:
		return false
	}
}

func TestTable(t *testing.T) {
	table := New(nil, cluster.KindService, cluster.KindSlice, cluster.KindPod)
	list(table, cluster.KindService, service("default", "kubernetes", "10.96.0.1"), service("shop", "web", "10.96.0.2"),
		service("shop", "db", ""), service("other", "far", "10.96.0.3"))
	list(table, cluster.KindSlice, slice("shop", "db", "10.244.0.1"))
	if isSynced(table) {
		t.Error("synced without pods")
	}
	pod := cluster.Key{Namespace: "shop", Name: "p"}
	if vars, _ := table.Extra(pod, nil); vars != nil {
		t.Errorf("for a pod that is not known: %q", vars)
	}
	list(table, cluster.KindPod, &cluster.Pod{Namespace: "shop", Name: "p", Hosts: &cluster.PodHosts{}},
		&cluster.Pod{Namespace: "shop", Name: "without", Hosts: &cluster.PodHosts{NoServiceLinks: true}})
	if !isSynced(table) {
		t.Error("not synced")
	}
	vars, left := table.Extra(pod, nil)
	if d := cmp.Diff([]string{"DB_ENDPOINTS=10.244.0.1", "DB_ENDPOINTS_80=10.244.0.1:80"}, vars); d != "" || left != 0 {
		t.Errorf("%d (-want +got):\n%s", left, d)
	}
	if vars, _ := table.Extra(cluster.Key{Namespace: "shop", Name: "without"}, nil); vars != nil {
		t.Errorf("without service links: %q", vars)
	}
	far, _ := table.Extra(pod, []string{"other"})
	if !slices.Contains(far, "OTHER_FAR_SERVICE_HOST=10.96.0.3") {
		t.Errorf("on request: %q", far)
	}
	host := func(name string) bool { return strings.HasSuffix(name, "_SERVICE_HOST") }
	hosts := func(links bool) []string {
		return slices.DeleteFunc(names(table.Variables("shop", links)), func(n string) bool { return !host(n) })
	}
	if d := cmp.Diff([]string{"KUBERNETES_SERVICE_HOST", "WEB_SERVICE_HOST"}, hosts(true)); d != "" {
		t.Errorf("with service links (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"KUBERNETES_SERVICE_HOST"}, hosts(false)); d != "" {
		t.Errorf("without (-want +got):\n%s", d)
	}

	table.Apply(cluster.Deleted(cluster.KindService, cluster.Key{Namespace: "default", Name: "kubernetes"}, time.Time{}))
	if d := cmp.Diff([]string{"WEB_SERVICE_HOST"}, hosts(true)); d != "" {
		t.Errorf("after a delete (-want +got):\n%s", d)
	}
	list(table, cluster.KindService, service("shop", "new", "10.96.0.9"))
	if d := cmp.Diff([]string{"NEW_SERVICE_HOST"}, hosts(true)); d != "" {
		t.Errorf("after another listing (-want +got):\n%s", d)
	}
}

// TestAllowed has a plugin that does not tell every pod about every namespace.
func TestAllowed(t *testing.T) {
	table := New([]string{"b"}, cluster.KindService)
	list(table, cluster.KindService, service("a", "x", "10.96.0.1"), service("b", "x", "10.96.0.2"), service("c", "x", "10.96.0.3"))
	vars, _ := table.Extra(cluster.Key{Namespace: "a", Name: "p"}, []string{"a", "b", "c"})
	got := slices.DeleteFunc(names(vars), func(n string) bool { return !strings.HasSuffix(n, "_SERVICE_HOST") })
	if d := cmp.Diff([]string{"A_X_SERVICE_HOST", "B_X_SERVICE_HOST"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
