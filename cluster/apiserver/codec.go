package apiserver

import (
	"bytes"
	"encoding/json"
	"fmt"

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
	c := &codec{factory: serializer.NewCodecFactory(scheme).WithoutConversion()}
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

func isProtobuf(raw []byte) bool { return bytes.HasPrefix(raw, []byte("k8s\x00")) }

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

// page is a part of a listing.
type page struct {
	version, next string
	// each calls its argument for every object of the page, with an error in the place of those that do not decode.
	each func(func(runtime.Object, *undecoded)) error
}

// page decodes a part of a listing of gvk.
func (c *codec) page(raw []byte, gvk schema.GroupVersionKind) (page, error) {
	list, err := c.object(raw, gvk.GroupVersion().WithKind(gvk.Kind+"List"))
	if err != nil {
		if isProtobuf(raw) {
			return page{}, err
		}
		return c.looseJSONPage(raw, gvk)
	}
	m, err := meta.ListAccessor(list)
	if err != nil || !meta.IsListType(list) {
		return page{}, fmt.Errorf("got a %T for a list of %s", list, gvk.Kind)
	}
	return page{m.GetResourceVersion(), m.GetContinue(), func(f func(runtime.Object, *undecoded)) error {
		return meta.EachListItem(list, func(o runtime.Object) error {
			f(o, nil)
			return nil
		})
	}}, nil
}

// looseJSONPage decodes object by object, so that one that is wrong does not take the others with it.
func (c *codec) looseJSONPage(raw []byte, gvk schema.GroupVersionKind) (page, error) {
	var list struct {
		Metadata *metav1.ListMeta  `json:"metadata"`
		Items    []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return page{}, fmt.Errorf("decode a list of %s: %w", gvk.Kind, err)
	}
	if list.Metadata == nil {
		return page{}, fmt.Errorf("decode a list of %s: it has no metadata", gvk.Kind)
	}
	return page{list.Metadata.ResourceVersion, list.Metadata.Continue, func(f func(runtime.Object, *undecoded)) error {
		for _, item := range list.Items {
			if obj, err := c.object(item, gvk); err != nil {
				f(nil, newUndecoded(item, err))
			} else {
				f(obj, nil)
			}
		}
		return nil
	}}, nil
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
