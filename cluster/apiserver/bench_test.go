package apiserver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// BenchmarkStreamedListing is the way from a protobuf stream to cluster values; an operation is a listing of 10,000
// services.
func BenchmarkStreamedListing(b *testing.B) {
	const n = 10_000
	info, _ := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	var stream bytes.Buffer
	enc := streaming.NewEncoder(info.StreamSerializer.NewFrameWriter(&stream), info.StreamSerializer.Serializer)
	add := func(typ string, name string, notes map[string]string) {
		s := typedService(name, "5", "10.0.0.1")
		s.Annotations = notes
		if err := enc.Encode(&metav1.WatchEvent{Type: typ, Object: runtime.RawExtension{Raw: protobufBytes(b, s)}}); err != nil {
			b.Fatal(err)
		}
	}
	for i := range n {
		add("ADDED", fmt.Sprint("service-", i), nil)
	}
	add("BOOKMARK", "", map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write(stream.Bytes())
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	defer srv.Close()
	src, err := New(Config{Endpoint: srv.URL, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		ctx, cancel := context.WithCancel(context.Background())
		got := 0
		err := src.Run(ctx, onlyServices, sinkFunc(func(c cluster.Change) {
			switch c.Op {
			case cluster.Upsert:
				got++
			case cluster.Synced:
				cancel()
			}
		}))
		cancel()
		if err != nil || got != n {
			b.Fatalf("%d services, %v", got, err)
		}
	}
}

// BenchmarkPod is the way from a pod in protobuf to a cluster value, for who serves names and who writes hosts files.
func BenchmarkPod(b *testing.B) {
	pod := marshal(b, fullObjects()[cluster.KindPod][0])
	for name, podHosts := range map[string]bool{"addresses": false, "hosts": true} {
		b.Run(name, func(b *testing.B) {
			r := &lean{names: newInterner(), asks: asks{podHosts: podHosts}}
			conv := r.converter()
			b.ReportAllocs()
			for b.Loop() {
				if v, _ := conv.object(r.object(cluster.KindPod, pod)); v == nil {
					b.Fatal("not taken")
				}
			}
		})
	}
}

// BenchmarkSlice is the way from a slice of 100 endpoints in protobuf to a cluster value, for who serves names and who makes
// rules for packets.
func BenchmarkSlice(b *testing.B) {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web-1"}, AddressType: discoveryv1.AddressTypeIPv4}
	for i := range 100 {
		zone := fmt.Sprint("zone-", i%3)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{fmt.Sprint("10.1.0.", i)}, NodeName: new(fmt.Sprint("node-", i)), Zone: &zone,
			Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "ns", Name: fmt.Sprint("web-", i)},
			Hints:      &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}},
		})
	}
	raw := marshal(b, s)
	for name, a := range map[string]asks{"names": {}, "proxy": {proxy: true}} {
		b.Run(name, func(b *testing.B) {
			r := &lean{names: newInterner(), asks: a}
			conv := r.converter()
			b.ReportAllocs()
			for b.Loop() {
				if v, _ := conv.object(r.object(cluster.KindSlice, raw)); v == nil {
					b.Fatal("not taken")
				}
			}
		})
	}
}
