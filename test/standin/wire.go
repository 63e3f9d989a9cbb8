package standin

import (
	"bufio"
	"encoding/json"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"google.golang.org/protobuf/encoding/protowire"
)

// wire is one of the encodings of the API. A body is an encoded object without its kind and version: that is what
// protobuf lists hold, and it is kept once for lists, watches and single objects alike.
type wire interface {
	// contentType is the media type of answers, or of the frames of a watch.
	contentType(watch bool) string
	// encode makes a body.
	encode(runtime.Object) ([]byte, error)
	// kept is the place where an object keeps its body.
	kept(*object) *body
	// single makes an answer of a body.
	single(schema.GroupVersionKind, []byte) []byte
	// event makes the frame of a watch of an answer.
	event(watch.EventType, []byte) []byte
	// list writes a list of bodies.
	list(*bufio.Writer, schema.GroupVersionKind, metav1.ListMeta, [][]byte)
}

// bodyOf returns what o is in w, and encodes it only once.
func bodyOf(w wire, o *object) []byte {
	b := w.kept(o)
	b.once.Do(func() {
		raw, err := w.encode(o.value)
		if err != nil {
			panic(fmt.Errorf("standin: encode %s %v: %w", o.resource.Kind, o.key, err))
		}
		b.raw = raw
	})
	return b.raw
}

// answer returns o as the answer to a request.
func answer(w wire, o *object) []byte { return w.single(o.resource.GroupVersionKind, bodyOf(w, o)) }

// loose returns an object that is not kept, such as a Status, as an answer.
func loose(w wire, kind schema.GroupVersionKind, o runtime.Object) []byte {
	raw, err := w.encode(o)
	if err != nil {
		panic(fmt.Errorf("standin: encode %s: %w", kind.Kind, err))
	}
	return w.single(kind, raw)
}

var noKind schema.GroupVersionKind

// negotiate picks the wire of an answer by the Accept header: the first that r has, without regard to weights, which
// clients of Kubernetes do not give. It returns nil if there is none.
func negotiate(accept string, r *resource) wire {
	if accept == "" {
		return jsonWire{}
	}
	for clause := range strings.SplitSeq(accept, ",") {
		media, params, _ := strings.Cut(strings.TrimSpace(clause), ";")
		if strings.Contains(params, "as=") {
			continue // Tables and bare metadata: not here.
		}
		switch strings.TrimSpace(media) {
		case "application/json", "application/*", "*/*":
			return jsonWire{}
		case protoMedia:
			if r == nil || !r.custom {
				return protoWire{}
			}
		}
	}
	return nil
}

type jsonWire struct{}

func (jsonWire) contentType(bool) string                 { return "application/json" }
func (jsonWire) encode(o runtime.Object) ([]byte, error) { return json.Marshal(o) }
func (jsonWire) kept(o *object) *body                    { return &o.json }

func (jsonWire) single(k schema.GroupVersionKind, raw []byte) []byte {
	return append(jsonHead(k), raw[1:]...)
}

// jsonHead is what a body's opening brace becomes.
func jsonHead(k schema.GroupVersionKind) []byte {
	return fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,`, k.Kind, k.GroupVersion().String())
}

func (jsonWire) event(t watch.EventType, o []byte) []byte {
	b := fmt.Appendf(make([]byte, 0, len(o)+40), `{"type":%q,"object":`, string(t))
	return append(append(b, o...), '}', '\n')
}

// Items of built-in kinds do not repeat the kind; those of custom ones do. Errors of w come back from its Flush.
func (jsonWire) list(w *bufio.Writer, k schema.GroupVersionKind, m metav1.ListMeta, items [][]byte) {
	rawMeta, err := json.Marshal(m)
	if err != nil {
		panic(fmt.Errorf("standin: encode list metadata: %w", err))
	}
	w.Write(jsonHead(schema.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: k.Kind + "List"}))
	fmt.Fprintf(w, `"metadata":%s,"items":[`, rawMeta)
	var head []byte
	if repeatsKind(k) {
		head = jsonHead(k)
	}
	for i, item := range items {
		if i > 0 {
			w.WriteByte(',')
		}
		if head != nil {
			w.Write(head)
			item = item[1:]
		}
		w.Write(item)
	}
	w.WriteString("]}")
}

func repeatsKind(k schema.GroupVersionKind) bool {
	for _, r := range resources {
		if r.GroupVersionKind == k {
			return r.custom
		}
	}
	return false
}

// protoWire is the protobuf encoding of Kubernetes: the bytes of a runtime.Unknown behind the magic "k8s\0"; on a watch,
// frames of a length in 4 bytes, most significant first, and a metav1.WatchEvent whose object is such an envelope.
// (k8s.io/apimachinery/pkg/runtime/serializer/protobuf)
type protoWire struct{}

const (
	protoMedia = "application/vnd.kubernetes.protobuf"
	protoMagic = "k8s\x00"
)

func (protoWire) contentType(watch bool) string {
	if watch {
		return protoMedia + ";stream=watch"
	}
	return protoMedia
}

func (protoWire) encode(o runtime.Object) ([]byte, error) {
	m, ok := o.(interface{ Marshal() ([]byte, error) })
	if !ok {
		return nil, fmt.Errorf("%T has no protobuf encoding", o)
	}
	return m.Marshal()
}

func (protoWire) kept(o *object) *body { return &o.proto }

func (protoWire) single(k schema.GroupVersionKind, raw []byte) []byte {
	return append(protoHead(make([]byte, 0, len(raw)+64), k, len(raw)), raw...)
}

// protoHead appends the envelope of an object of size bytes, up to where the object goes.
func protoHead(b []byte, k schema.GroupVersionKind, size int) []byte {
	var kind []byte
	kind = appendField(kind, 1, []byte(k.GroupVersion().String()))
	kind = appendField(kind, 2, []byte(k.Kind))
	b = append(b, protoMagic...)
	b = appendField(b, 1, kind)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(size))
}

func appendField(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

func (protoWire) event(t watch.EventType, o []byte) []byte {
	e := metav1.WatchEvent{Type: string(t), Object: runtime.RawExtension{Raw: o}}
	raw, err := e.Marshal()
	if err != nil {
		panic(fmt.Errorf("standin: encode watch event: %w", err))
	}
	n := len(raw)
	return append([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, raw...)
}

// In every list of the API, field 1 is the metadata and field 2 the items. Errors of w come back from its Flush.
func (protoWire) list(w *bufio.Writer, k schema.GroupVersionKind, m metav1.ListMeta, items [][]byte) {
	rawMeta, err := m.Marshal()
	if err != nil {
		panic(fmt.Errorf("standin: encode list metadata: %w", err))
	}
	head := appendField(nil, 1, rawMeta)
	size := len(head)
	for _, item := range items {
		size += protowire.SizeTag(2) + protowire.SizeBytes(len(item))
	}
	w.Write(protoHead(nil, schema.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: k.Kind + "List"}, size))
	w.Write(head)
	for _, item := range items {
		head = protowire.AppendVarint(protowire.AppendTag(head[:0], 2, protowire.BytesType), uint64(len(item)))
		w.Write(head)
		w.Write(item)
	}
}
