package manifests

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/ropewalk-net/ropewalk/cluster"
)

var update = flag.Bool("update", false, "write what the code gives into the golden files")

// allKinds is an interest in everything.
var allKinds = cluster.Interest{Kinds: 1<<cluster.NumKinds - 1, PodLabels: true}

// TestGolden holds what a directory of files becomes, values or an error, to the section "want" of each archive. A
// comment line "quiet" leaves out the namespaces and objects that every cluster has, one "hosts" asks for what pods' hosts
// files are made of, and one "proxy" for what proxies and routers need.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := golden(ar)
			if isBad := strings.HasPrefix(got, "error: "); isBad != strings.Contains(path, "/bad/") {
				t.Errorf("an error, or none, in the wrong directory")
			}
			checkGolden(t, path, ar, got)
		})
	}
}

func checkGolden(t *testing.T, path string, ar *txtar.Archive, got string) {
	t.Helper()
	last := &ar.Files[len(ar.Files)-1]
	if last.Name != "want" {
		t.Fatalf("the last file of %s is %q, not want", path, last.Name)
	}
	if *update {
		last.Data = []byte(got)
		if err := os.WriteFile(path, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(last.Data), got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func golden(ar *txtar.Archive) string {
	var objects []Object
	for _, f := range ar.Files[:len(ar.Files)-1] {
		more, err := Parse(f.Name, f.Data)
		if err != nil {
			return "error: " + err.Error() + "\n"
		}
		objects = append(objects, more...)
	}
	c, err := Fill(objects, nil)
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	interest := allKinds
	interest.PodHosts = strings.Contains(string(ar.Comment), "hosts")
	interest.Proxy = strings.Contains(string(ar.Comment), "proxy")
	interest.NodeNet = interest.Proxy
	v, err := Values(c, interest)
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	if strings.Contains(string(ar.Comment), "quiet") {
		for _, n := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
			delete(v[cluster.KindNamespace], cluster.Key{Name: n})
		}
		delete(v[cluster.KindService], cluster.Key{Namespace: "default", Name: "kubernetes"})
		delete(v[cluster.KindServiceCIDR], cluster.Key{Name: "kubernetes"})
	}
	var b strings.Builder
	for _, note := range c.Notes {
		fmt.Fprintln(&b, "note:", note)
	}
	for k := range cluster.NumKinds {
		for _, o := range v.sorted(k) {
			b.WriteString(render(o))
		}
	}
	return b.String()
}

// portsOf writes ports, those with a node port with that.
func portsOf(list []cluster.ServicePort) string {
	var ports []string
	for _, p := range list {
		text := fmt.Sprintf("{%s %s %d", p.Name, p.Protocol, p.Port)
		if p.NodePort != 0 {
			text += fmt.Sprint(" node:", p.NodePort)
		}
		ports = append(ports, text+"}")
	}
	return fmt.Sprint(ports)
}

// render writes a value on a line, slices with a line for each endpoint.
func render(o cluster.Object) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", o.Kind(), o.Key())
	switch o := o.(type) {
	case *cluster.Service:
		fmt.Fprintf(&b, " type=%d headless=%t ips=%v external=%q ports=%v notready=%t", o.Type, o.Headless, o.ClusterIPs, o.ExternalName, portsOf(o.Ports), o.PublishNotReady)
		if p := o.Proxy; p != nil {
			fmt.Fprintf(&b, "\n  external=%v lb=%v from=%v affinity=%v local=%t/%t health=%d", p.ExternalIPs, p.LoadBalancerIPs, p.SourceRanges,
				p.Affinity, p.InternalLocal, p.ExternalLocal, p.HealthCheckNodePort)
		}
	case *cluster.Slice:
		fmt.Fprintf(&b, " service=%q import=%q/%q ports=%v", o.Service, o.Cluster, o.Import, o.Ports)
		if !o.Triggered.IsZero() {
			fmt.Fprintf(&b, " triggered=%s", o.Triggered)
		}
		for i, e := range o.Endpoints {
			fmt.Fprintf(&b, "\n  %s written=%q hostname=%q pod=%q node=%q zone=%q ready=%t", e.Addr, e.Written, e.Hostname, e.PodName, e.NodeName, e.Zone, e.Ready)
			if o.Proxy != nil {
				p := o.Proxy.Endpoints[i]
				fmt.Fprintf(&b, " serving=%t terminating=%t extra=%t", p.Serving, p.Terminating, p.Extra)
				if p.Hints != nil {
					fmt.Fprintf(&b, " zones=%q nodes=%q", p.Hints.ForZones, p.Hints.ForNodes)
				}
			}
		}
	case *cluster.Pod:
		fmt.Fprintf(&b, " ips=%v labels=%v", o.IPs, o.Labels)
		if h := o.Hosts; h != nil {
			fmt.Fprintf(&b, "\n  uid=%s hostname=%q subdomain=%q override=%q hostnetwork=%t nolinks=%t annotations=%q", h.UID, h.Hostname,
				h.Subdomain, h.HostnameOverride, h.HostNetwork, h.NoServiceLinks, h.Annotations)
			for _, a := range h.Aliases {
				fmt.Fprintf(&b, "\n  %s %q", a.IP, a.Hostnames)
			}
		}
	case *cluster.Node:
		fmt.Fprintf(&b, " %v", o.PodCIDRs)
		if n := o.Net; n != nil {
			fmt.Fprintf(&b, " internal=%v external=%v zone=%q leaving=%t", n.InternalIPs, n.ExternalIPs, n.Zone, n.Leaving)
		}
	case *cluster.ServiceCIDR:
		fmt.Fprintf(&b, " %v", o.CIDRs)
	case *cluster.ServiceImport:
		fmt.Fprintf(&b, " headless=%t ips=%v ports=%v", o.Headless, o.IPs, portsOf(o.Ports))
	case *cluster.ConfigMap:
		fmt.Fprintf(&b, " labels=%q data=%q", o.Labels, o.Data)
	}
	return b.String() + "\n"
}
