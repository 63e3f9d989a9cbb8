package ropewalk

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/snapshot"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

// BenchmarkSnapshot takes and loads the snapshot of 50,000 services with five endpoints each.
func BenchmarkSnapshot(b *testing.B) {
	opts := zone.Options{TTL: 5}
	z := zone.New(opts)
	go z.Run(b.Context())
	objs := []cluster.Object{&cluster.Namespace{Name: "shop"}}
	for i := range 50_000 {
		name, a := fmt.Sprintf("service-%d", i), [4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}
		s := &cluster.Slice{Namespace: "shop", Name: name + "-x7gqz", Service: name, Ports: []cluster.EndpointPort{{Name: "http", Protocol: cluster.TCP, Port: 8080}}}
		for n := range byte(5) {
			a[1] = 100 + n
			s.Endpoints = append(s.Endpoints, cluster.Endpoint{Addr: netip.AddrFrom4(a), Ready: true})
		}
		a[1] = byte(i >> 16)
		objs = append(objs, s, &cluster.Service{Namespace: "shop", Name: name, ClusterIPs: []netip.Addr{netip.AddrFrom4(a)},
			Ports: []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80}}})
	}
	path := filepath.Join(b.TempDir(), "snapshot")
	header := snapshot.Header{Kinds: opts.Interest()}
	if _, err := snapshot.Save(path, header, slices.Values(objs)); err != nil {
		b.Fatal(err)
	}
	load := func(b *testing.B, z *zone.Zone) {
		s, err := snapshot.Open(path, "")
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		if err := s.Deliver(b.Context(), z); err != nil {
			b.Fatal(err)
		}
		<-z.Ready()
	}
	load(b, z)
	b.Run("save", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			size, err := snapshot.Save(path, header, z.View().Objects())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(size)/1e6, "MB")
		}
	})
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s, err := snapshot.Open(path, "")
			if err != nil {
				b.Fatal(err)
			}
			s.Close()
		}
	})
	b.Run("load", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			z := zone.New(opts)
			go z.Run(b.Context())
			load(b, z)
		}
	})
	_ = time.Now
}
