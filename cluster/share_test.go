package cluster_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cni/routes"
	"github.com/ropewalk-net/ropewalk/hostsmgr"
	"github.com/ropewalk-net/ropewalk/proxy"
)

// heard is a sink that notes what it hears.
type heard []string

func (h *heard) Apply(c cluster.Change) { *h = append(*h, fmt.Sprint(c.Op, " ", c.Kind, " ", c.Key)) }

// TestShare holds that what runs on a node can hear of it all by one watch a kind, and that each hears of what it wants and no more.
func TestShare(t *testing.T) {
	var hosts, services, links heard
	all, sink, err := cluster.Share(
		cluster.Consumer{Interest: hostsmgr.Interest("n1"), Sink: &hosts},
		cluster.Consumer{Interest: proxy.Interest("n1"), Sink: &services},
		cluster.Consumer{Interest: routes.Interest(), Sink: &links})
	if err != nil {
		t.Fatal(err)
	}
	want := proxy.Interest("n1")
	want.Kinds |= hostsmgr.Interest("n1").Kinds
	want.PodHosts, want.ConfigMapLabels, want.OneNode = true, hostsmgr.Interest("n1").ConfigMapLabels, false
	if d := cmp.Diff(want, all); d != "" {
		t.Error(d)
	}
	sink.Apply(cluster.Change{Op: cluster.Replace, Kind: cluster.KindNode})
	for _, o := range []cluster.Object{&cluster.Node{Name: "n1"}, &cluster.Node{Name: "n2"}, &cluster.Pod{Namespace: "a", Name: "p"}, &cluster.Service{Namespace: "a", Name: "s"}} {
		sink.Apply(cluster.Upserted(o, time.Time{}))
	}
	sink.Apply(cluster.Change{Op: cluster.Synced, Kind: cluster.KindNode})
	sink.Apply(cluster.Deleted(cluster.KindNode, cluster.Key{Name: "n2"}, time.Time{}))
	for _, c := range []struct {
		who  string
		got  heard
		want []string
	}{
		{"hosts", hosts, []string{"upsert Pod a/p"}},
		{"proxy", services, []string{"replace Node ", "upsert Node n1", "upsert Service a/s", "synced Node "}},
		{"routes", links, []string{"replace Node ", "upsert Node n1", "upsert Node n2", "synced Node ", "delete Node n2"}},
	} {
		if d := cmp.Diff(c.want, []string(c.got)); d != "" {
			t.Errorf("%s: %s", c.who, d)
		}
	}
}

func TestShareRefuses(t *testing.T) {
	kinds := cluster.KindsOf
	for _, c := range []struct {
		a, b cluster.Interest
		says string
	}{
		{cluster.Interest{Kinds: kinds(cluster.KindPod), NodeName: "a"}, cluster.Interest{Kinds: kinds(cluster.KindPod), NodeName: "b"}, "NodeName"},
		{cluster.Interest{Kinds: kinds(cluster.KindPod)}, cluster.Interest{Kinds: kinds(cluster.KindNode), OneNode: true, NodeName: "b"}, "NodeName"},
		{cluster.Interest{Kinds: kinds(cluster.KindService), Labels: "x"}, cluster.Interest{Kinds: kinds(cluster.KindSlice)}, "Labels"},
		{cluster.Interest{Kinds: kinds(cluster.KindService)}, cluster.Interest{Kinds: kinds(cluster.KindService), NoHeadless: true}, "headless"},
		{cluster.Interest{Kinds: kinds(cluster.KindConfigMap), ConfigMapLabels: "x"}, cluster.Interest{Kinds: kinds(cluster.KindConfigMap)}, "ConfigMapLabels"},
		{cluster.Interest{Kinds: kinds(cluster.KindNode), OneNode: true, NodeName: "a"}, cluster.Interest{Kinds: kinds(cluster.KindNode)}, ""},
		{cluster.Interest{Kinds: kinds(cluster.KindService), Labels: "x"}, cluster.Interest{Kinds: kinds(cluster.KindNode)}, ""},
	} {
		for _, two := range [][2]cluster.Interest{{c.a, c.b}, {c.b, c.a}} {
			all, _, err := cluster.Share(cluster.Consumer{Interest: two[0]}, cluster.Consumer{Interest: two[1]})
			if c.says == "" && (err != nil || all.OneNode || all.Kinds != c.a.Kinds|c.b.Kinds) || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%+v: %+v, %v", two, all, err)
			}
		}
	}
}
