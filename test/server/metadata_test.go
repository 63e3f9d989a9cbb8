package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// metadataOf returns the labels of a directive that a query has.
func (s *server) metadataOf(t *testing.T, name, directive string) []string {
	t.Helper()
	m := s.exchange(t, "tcp", query(name, dns.TypeA))
	var found []string
	for _, l := range m.Answer[0].(*dns.TXT).Txt {
		if l, ok := strings.CutPrefix(l, directive+"/"); ok {
			found = append(found, l)
		}
	}
	slices.Sort(found)
	return found
}

// TestMetadataIsThatOfKubernetes asks both for the same names.
func TestMetadataIsThatOfKubernetes(t *testing.T) {
	names := []string{
		"cluster.local", "svc.cluster.local", "pod.cluster.local", "shop.svc.cluster.local", "web.shop.svc.cluster.local",
		"WEB.Shop.SVC.cluster.local", "ep.web.shop.svc.cluster.local", "_http._tcp.web.shop.svc.cluster.local",
		"_HTTP._udp.web.shop.svc.cluster.local", "http.tcp.web.shop.svc.cluster.local", "10-0-0-1.shop.pod.cluster.local",
		"a.10-0-0-1.shop.pod.cluster.local", "foo.bar.notapod.cluster.local", "x.cluster.local", "a.b.c.web.shop.svc.cluster.local",
		"a.b.c.d.web.shop.svc.cluster.local", "eu-1a.pin._zone.web.shop.svc.cluster.local", "eu.1a.prefer._zone.web.shop.svc.cluster.local",
		"pin._zone.web.shop.svc.cluster.local", "_zone.web.shop.svc.cluster.local", "eu-1a.other._zone.web.shop.svc.cluster.local",
		"eu-1a.pin._zone.web.shop.pod.cluster.local", "dns-version.cluster.local", "ns.dns.cluster.local", "example.com", "local",
		"2.0.96.10.in-addr.arpa", "_._tcp.web.shop.svc.cluster.local", "*.web.shop.svc.cluster.local",
	}
	dir, kubeconfig := files(t, "web.yaml", web), away(t)
	both := func(format string) *server {
		plain := fmt.Sprintf(format, "cluster.local", "")
		zonal := fmt.Sprintf(format, "zonal.local", "zonal")
		return start(t, block("metadata", "labels", plain)+"zonal.local:0 {\nbind 127.0.0.1\nmetadata\nlabels\n"+zonal+"\n}\n")
	}
	ours := both("ropewalk %s in-addr.arpa {\nmanifests " + dir + "\n%s\n}")
	stock := both("kubernetes %s in-addr.arpa {\nkubeconfig " + kubeconfig + "\nstartup_timeout 1ms\n%s\n}")
	some := map[string]bool{}
	for _, domain := range []string{"cluster.local", "zonal.local"} {
		for _, n := range names {
			n = strings.Replace(n, "cluster.local", domain, 1)
			want, got := stock.metadataOf(t, n, "kubernetes"), ours.metadataOf(t, n, "ropewalk")
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: kubernetes -, ropewalk +\n%s", n, diff)
			}
			for _, l := range want {
				some[l] = true
			}
		}
	}
	for _, l := range []string{"kind=svc", "zone=eu.1a", "parse-error=invalid query name"} {
		if !some[l] {
			t.Errorf("kubernetes gave %s for none of the names", l)
		}
	}
}

func TestMetadataOfClient(t *testing.T) {
	dir := files(t, "web.yaml", web, "pod.yaml", podAt("127.0.0.1", "client", "shop"))
	client := []string{"client-label/app=client", "client-namespace=shop", "client-pod-name=client"}
	for mode, want := range map[string][]string{"pods verified": client, "autopath": client, "": nil, "pods insecure": nil} {
		s := start(t, block("metadata", "labels", ropewalk(dir, mode)))
		if diff := cmp.Diff(want, s.metadataOf(t, "example.com", "ropewalk")); diff != "" {
			t.Errorf("%q: want -, got +\n%s", mode, diff)
		}
	}
}

// TestMetadataOfClusterset goes further than kubernetes, which does not find out that the zone is a clusterset's.
func TestMetadataOfClusterset(t *testing.T) {
	s := start(t, block("metadata", "labels", stanza("cluster.local clusterset.local", files(t, "web.yaml", web), "multicluster clusterset.local")))
	want := []string{"cluster=c1", "endpoint=ep", "kind=svc", "namespace=shop", "port-name=", "protocol=", "service=web"}
	if diff := cmp.Diff(want, s.metadataOf(t, "ep.c1.web.shop.svc.clusterset.local", "ropewalk")); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
	want = []string{"endpoint=", "kind=svc", "namespace=shop", "port-name=http", "protocol=tcp", "service=web"}
	if diff := cmp.Diff(want, s.metadataOf(t, "_http._tcp.web.shop.svc.cluster.local", "ropewalk")); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
}

func TestMetadataInTheLog(t *testing.T) {
	mark := logged.mark()
	s := start(t, block("metadata", `log . "{/ropewalk/kind} {/ropewalk/namespace} {/ropewalk/service} {/ropewalk/client-pod-name}"`,
		ropewalk(files(t, "web.yaml", web, "pod.yaml", podAt("127.0.0.1", "client", "shop")), "pods verified")))
	s.ask(t, "web.shop.svc.cluster.local", dns.TypeA)
	eventually(t, "the log has the labels", func() bool { return contains(logged.since(mark), "[INFO] svc shop web client\n") })
}
