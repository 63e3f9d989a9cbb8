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
