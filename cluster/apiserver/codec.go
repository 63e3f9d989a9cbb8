package apiserver

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	networkingv1beta1 "k8s.io/api/networking/v1beta1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"

	"github.com/ropewalk-net/ropewalk/cluster"
)

const (
	contentProtobuf = runtime.ContentTypeProtobuf
	contentJSON     = runtime.ContentTypeJSON
)

// codec decodes what an API server sends. Which of the two encodings it is, is read off the bytes: every protobuf
// object opens with a magic number, and answers come from servers and proxies that do not always label them well.
type codec struct {
	scheme         *runtime.Scheme
	factory        runtime.NegotiatedSerializer
	protobuf, json runtime.SerializerInfo
}

// newCodec returns a codec for the few types that are read. client-go's own scheme holds all of Kubernetes.
func newCodec() (*codec, error) {
	scheme := runtime.NewScheme()
	builder := runtime.NewSchemeBuilder(corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme,
		networkingv1beta1.AddToScheme, mcsv1alpha1.Install)
	if err := builder.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register API types: %w", err)
	}
	c := &codec{scheme: scheme, factory: serializer.NewCodecFactory(scheme).WithoutConversion()}
	for _, info := range c.factory.SupportedMediaTypes() {
		switch info.MediaType {
		case contentProtobuf:
			c.protobuf = info
		case contentJSON:
			c.json = info
		}
	}
	return c, nil
}

// protobufMagic opens every object in protobuf.
const protobufMagic = "k8s\x00"

func isProtobuf(raw []byte) bool { return bytes.HasPrefix(raw, []byte(protobufMagic)) }

// object decodes one object. What does not say what it is, is taken for a gvk.
func (c *codec) object(raw []byte, gvk schema.GroupVersionKind) (runtime.Object, error) {
	s := c.json.Serializer
	if isProtobuf(raw) {
		s = c.protobuf.Serializer
	}
	obj, _, err := s.Decode(raw, &gvk, nil)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", gvk.Kind, err)
	}
	return obj, nil
}

// decoder decodes objects of one kind for one goroutine. An object that it returns is good until it is called again.
type decoder struct {
	*codec
	lean       lean
	kind       cluster.Kind
	gvk        schema.GroupVersionKind
	apiVersion string
}

func newDecoder(c *codec, kind cluster.Kind, gvk schema.GroupVersionKind, conv *converter) *decoder {
	return &decoder{codec: c, lean: lean{names: conv.names, asks: conv.asks},
		kind: kind, gvk: gvk, apiVersion: gvk.GroupVersion().String()}
}

// one decodes an object. What does not say what it is, is taken for one of the decoder's kind.
func (d *decoder) one(raw []byte) (runtime.Object, error) {
	if e, ok := openEnvelope(raw); ok && string(e.kind) == d.gvk.Kind && string(e.apiVersion) == d.apiVersion {
		if o := d.lean.object(d.kind, e.object); o != nil {
			return o, nil
		}
	}
	return d.object(raw, d.gvk)
}

// item decodes an object of a list in protobuf.
func (d *decoder) item(raw []byte) (runtime.Object, error) {
	if o := d.lean.object(d.kind, raw); o != nil {
		return o, nil
	}
	o, err := d.scheme.New(d.gvk)
	if err != nil {
		return nil, err
	}
	m, ok := o.(interface{ Unmarshal([]byte) error })
	if !ok {
		return nil, fmt.Errorf("decode %s: it has no protobuf form", d.gvk.Kind)
	}
	if err := m.Unmarshal(raw); err != nil {
		return nil, fmt.Errorf("decode %s: %w", d.gvk.Kind, err)
	}
	return o, nil
}

// each is called for every object of a list, with an error in the place of those that do not decode.
type each func(runtime.Object, *undecoded)

// list decodes a part of a listing as it comes, and returns its metadata.
func (d *decoder) list(body io.Reader, f each) (*metav1.ListMeta, error) {
	r := bufio.NewReader(body)
	if magic, err := r.Peek(len(protobufMagic)); err == nil && isProtobuf(magic) {
		return d.protobufList(r, f)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return d.jsonList(raw, f)
}

func (d *decoder) jsonList(raw []byte, f each) (*metav1.ListMeta, error) {
	list, err := d.object(raw, d.gvk.GroupVersion().WithKind(d.gvk.Kind+"List"))
	if err != nil {
		return d.looseJSONList(raw, f)
	}
	m, err := meta.ListAccessor(list)
	if err != nil || !meta.IsListType(list) {
		return nil, fmt.Errorf("got a %T for a list of %s", list, d.gvk.Kind)
	}
	err = meta.EachListItem(list, func(o runtime.Object) error {
		f(o, nil)
		return nil
	})
	return &metav1.ListMeta{ResourceVersion: m.GetResourceVersion(), Continue: m.GetContinue()}, err
}

// looseJSONList decodes object by object, so that one that is wrong does not take the others with it.
func (d *decoder) looseJSONList(raw []byte, f each) (*metav1.ListMeta, error) {
	var list struct {
		Metadata *metav1.ListMeta  `json:"metadata"`
		Items    []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("decode a list of %s: %w", d.gvk.Kind, err)
	}
	if list.Metadata == nil {
		return nil, fmt.Errorf("decode a list of %s: it has no metadata", d.gvk.Kind)
	}
	for _, item := range list.Items {
		if obj, err := d.object(item, d.gvk); err != nil {
			f(nil, newUndecoded(item, err))
		} else {
			f(obj, nil)
		}
	}
	return list.Metadata, nil
}

// undecoded is an object that is not what its kind should be. Key and version are what could be read all the same.
type undecoded struct {
	key     cluster.Key
	version string
	err     error
}

func newUndecoded(raw []byte, err error) *undecoded {
	var o struct {
		Metadata struct{ Name, Namespace, ResourceVersion string } `json:"metadata"`
	}
	if json.Unmarshal(raw, &o) != nil {
		return &undecoded{err: err}
	}
	m := o.Metadata
	return &undecoded{cluster.Key{Namespace: m.Namespace, Name: m.Name}, m.ResourceVersion, err}
}
