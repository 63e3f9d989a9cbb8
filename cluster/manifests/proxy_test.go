package manifests

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// What is selected for a proxy comes, and what of it changes comes again; what it leaves to others does not.
func TestProxyInterest(t *testing.T) {
	const (
		services = `apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: LoadBalancer, clusterIP: 10.96.0.5, selector: {app: web}, ports: [{port: 80, nodePort: 30080}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}
---
apiVersion: v1
kind: Service
metadata: {name: others, namespace: shop, labels: {service.kubernetes.io/service-proxy-name: other}}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: name, namespace: shop}
spec: {type: ExternalName, externalName: a.example.org}
`
		pod = `apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {nodeName: node-a}
status: {podIP: 10.244.1.1}
`
		nodes = `apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/zone: zone-a}}
status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-b}
`
	)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write(t, path("services.yaml"), services)
	write(t, path("pods.yaml"), pod)
	write(t, path("nodes.yaml"), nodes)
	l := follow(t, dir, cluster.Interest{
		Kinds: cluster.KindsOf(cluster.KindService, cluster.KindSlice, cluster.KindNode), Proxy: true, NodeNet: true, NodeName: "node-a", OneNode: true,
		NoHeadless: true, ServiceLabels: "!service.kubernetes.io/service-proxy-name", SliceLabels: "!service.kubernetes.io/headless",
	})
	var got []string
	for k := range cluster.NumKinds {
		for _, o := range l.view.sorted(k) {
			got = append(got, fmt.Sprint(o.Kind(), " ", o.Key()))
		}
	}
	want := []string{"Service default/kubernetes", "Service shop/name", "Service shop/web", "EndpointSlice shop/web-ipv4", "Node node-a"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("(-want +got)\n%s", diff)
	}
	write(t, path("services.yaml"), strings.Replace(services, "192.0.2.1", "192.0.2.2", 1))
	eventually(t, "another address of the load balancer", func() bool {
		return l.get(cluster.KindService, "shop", "web").(*cluster.Service).Proxy.LoadBalancerIPs[0] == netip.MustParseAddr("192.0.2.2")
	})
	write(t, path("pods.yaml"), strings.Replace(pod, "{name", `{deletionTimestamp: "2024-05-06T07:08:09Z", name`, 1))
	eventually(t, "a pod that ends", func() bool {
		return l.get(cluster.KindSlice, "shop", "web-ipv4").(*cluster.Slice).Proxy.Endpoints[0] == cluster.EndpointProxy{Serving: true, Terminating: true}
	})
	write(t, path("nodes.yaml"), strings.NewReplacer("zone-a", "zone-b", "10.0.0.1", "10.0.0.2").Replace(nodes))
	eventually(t, "a node elsewhere", func() bool {
		n := l.get(cluster.KindNode, "", "node-a").(*cluster.Node).Net
		return n.Zone == "zone-b" && n.InternalIPs[0] == netip.MustParseAddr("10.0.0.2")
	})
	if diff := cmp.Diff([]string{
		"upsert Service shop/web", "upsert EndpointSlice shop/web-ipv4",
		"upsert EndpointSlice shop/web-ipv4", "upsert Node node-a", // endpoints say which zone they are in
	}, l.said()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// Nobody gets what nobody asked for.
func TestProxyOnRequest(t *testing.T) {
	objects, err := Parse("a.yaml", []byte(`apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, externalIPs: [192.0.2.1], ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1}
addressType: IPv4
endpoints: [{addresses: [10.244.1.1], hints: {forZones: [{name: a}]}}]
---
apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/zone: zone-a}}
`))
	must(t, err)
	c, err := Fill(objects, nil)
	must(t, err)
	v, err := Values(c, allKinds)
	must(t, err)
	key := func(name string) cluster.Key { return cluster.Key{Namespace: "default", Name: name} }
	s := v[cluster.KindService][key("web")].(*cluster.Service)
	slice := v[cluster.KindSlice][key("web-1")].(*cluster.Slice)
	if n := v[cluster.KindNode][cluster.Key{Name: "node-a"}].(*cluster.Node); s.Proxy != nil || s.Ports[0].NodePort != 0 || slice.Proxy != nil || n.Net != nil {
		t.Errorf("service %+v, slice %+v, node %+v", s, slice, n)
	}
}

// The API takes so many endpoints in a slice and no more.
func TestSliceSize(t *testing.T) {
	parse := func(n int) error {
		_, err := Parse("a.yaml", []byte("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nendpoints:\n"+
			strings.Repeat("- addresses: [10.244.1.1]\n", n)))
		return err
	}
	must(t, parse(maxEndpoints))
	if err := parse(maxEndpoints + 1); err == nil || !strings.Contains(err.Error(), "1001; want at most 1000") {
		t.Errorf("one too many: %v", err)
	}
}
