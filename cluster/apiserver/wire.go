package apiserver

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// lean reads objects off the protobuf wire into the types of the API, but of each only what this package looks at: the
// generated decoders build the rest, too, which is most of an object, and a garbage collector's work. What is not read
// may hold anything. The numbers of fields are those of generated.proto in k8s.io/api and k8s.io/apimachinery.
//
// It knows the kinds that come in numbers. An object that it returns is overwritten by the next one.
type lean struct {
	names *interner
	// podLabels asks for all labels of pods.
	podLabels bool

	namespace corev1.Namespace
	service   corev1.Service
	slice     discoveryv1.EndpointSlice
	pod       corev1.Pod
	node      corev1.Node
}

// object reads an object without its envelope. It returns nil for one that is malformed where it is read, and for kinds
// that it does not know: generated decoders have the last word on those.
func (r *lean) object(kind cluster.Kind, b []byte) runtime.Object {
	var o runtime.Object
	ok := false
	switch kind {
	case cluster.KindNamespace:
		o, ok = &r.namespace, r.readNamespace(b, &r.namespace)
	case cluster.KindService:
		o, ok = &r.service, r.readService(b, &r.service)
	case cluster.KindSlice:
		o, ok = &r.slice, r.readSlice(b, &r.slice)
	case cluster.KindPod:
		o, ok = &r.pod, r.readPod(b, &r.pod)
	case cluster.KindNode:
		o, ok = &r.node, r.readNode(b, &r.node)
	}
	if !ok {
		return nil
	}
	return o
}

func (r *lean) readNamespace(b []byte, o *corev1.Namespace) bool {
	resetMeta(&o.ObjectMeta)
	m := message{rest: b}
	for m.next() {
		if m.num == 1 {
			m.and(r.readMeta(m.bytes(), &o.ObjectMeta, false))
		}
	}
	return m.whole()
}

func (r *lean) readService(b []byte, o *corev1.Service) bool {
	resetMeta(&o.ObjectMeta)
	o.Spec = corev1.ServiceSpec{Ports: o.Spec.Ports[:0], ClusterIPs: o.Spec.ClusterIPs[:0]}
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			m.and(r.readMeta(m.bytes(), &o.ObjectMeta, false))
		case 2:
			m.and(r.readServiceSpec(m.bytes(), &o.Spec))
		}
	}
	return m.whole()
}

func (r *lean) readServiceSpec(b []byte, o *corev1.ServiceSpec) bool {
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			o.Ports = append(o.Ports, corev1.ServicePort{})
			m.and(r.readServicePort(m.bytes(), &o.Ports[len(o.Ports)-1]))
		case 3:
			o.ClusterIP = m.text()
		case 4:
			o.Type = corev1.ServiceType(r.names.bytes(m.bytes()))
		case 10:
			o.ExternalName = m.text()
		case 13:
			o.PublishNotReadyAddresses = m.number() != 0
		case 18:
			o.ClusterIPs = append(o.ClusterIPs, m.text())
		}
	}
	return m.whole()
}

func (r *lean) readServicePort(b []byte, o *corev1.ServicePort) bool {
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			o.Name = r.names.bytes(m.bytes())
		case 2:
			o.Protocol = corev1.Protocol(r.names.bytes(m.bytes()))
		case 3:
			o.Port = int32(m.number())
		}
	}
	return m.whole()
}

func (r *lean) readSlice(b []byte, o *discoveryv1.EndpointSlice) bool {
	resetMeta(&o.ObjectMeta)
	o.AddressType, o.Endpoints, o.Ports = "", o.Endpoints[:0], o.Ports[:0]
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			m.and(r.readMeta(m.bytes(), &o.ObjectMeta, false))
		case 2:
			e := more(&o.Endpoints)
			was := *e
			*e = discoveryv1.Endpoint{Addresses: was.Addresses[:0]}
			m.and(r.readEndpoint(m.bytes(), e, &was))
		case 3:
			p := more(&o.Ports)
			was := *p
			*p = discoveryv1.EndpointPort{}
			m.and(r.readEndpointPort(m.bytes(), p, &was))
		case 4:
			o.AddressType = discoveryv1.AddressType(r.names.bytes(m.bytes()))
		}
	}
	return m.whole()
}

// more makes a list longer by one and returns the new element, which is what was there before.
func more[T any](list *[]T) *T {
	n := len(*list)
	*list = slices.Grow(*list, 1)[:n+1]
	return &(*list)[n]
}

// again returns what is not used any more as if it were new, if there is such a thing.
func again[T any](was *T) *T {
	if was == nil {
		return new(T)
	}
	var zero T
	*was = zero
	return was
}

// readEndpoint may use what was points to.
func (r *lean) readEndpoint(b []byte, o, was *discoveryv1.Endpoint) bool {
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			o.Addresses = append(o.Addresses, m.text())
		case 2:
			m.and(readConditions(m.bytes(), &o.Conditions, was.Conditions.Ready))
		case 3:
			o.Hostname = new(m.text())
		case 4:
			if o.TargetRef == nil {
				o.TargetRef = again(was.TargetRef)
			}
			m.and(readReference(m.bytes(), o.TargetRef))
		case 6:
			o.NodeName = r.names.shared(m.bytes())
		case 7:
			o.Zone = r.names.shared(m.bytes())
		}
	}
	return m.whole()
}

func readConditions(b []byte, o *discoveryv1.EndpointConditions, was *bool) bool {
	m := message{rest: b}
	for m.next() {
		if m.num == 1 {
			o.Ready = again(was)
			*o.Ready = m.number() != 0
		}
	}
	return m.whole()
}

func readReference(b []byte, o *corev1.ObjectReference) bool {
	m := message{rest: b}
	for m.next() {
		if m.num == 3 {
			o.Name = m.text()
		}
	}
	return m.whole()
}

// readEndpointPort may use what was points to.
func (r *lean) readEndpointPort(b []byte, o, was *discoveryv1.EndpointPort) bool {
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			o.Name = r.names.shared(m.bytes())
		case 2:
			o.Protocol = (*corev1.Protocol)(r.names.shared(m.bytes()))
		case 3:
			o.Port = again(was.Port)
			*o.Port = int32(m.number())
		}
	}
	return m.whole()
}

func (r *lean) readPod(b []byte, o *corev1.Pod) bool {
	resetMeta(&o.ObjectMeta)
	o.Status.Phase, o.Status.PodIPs = "", o.Status.PodIPs[:0]
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			m.and(r.readMeta(m.bytes(), &o.ObjectMeta, r.podLabels))
		case 3:
			m.and(r.readPodStatus(m.bytes(), &o.Status))
		}
	}
	return m.whole()
}

func (r *lean) readPodStatus(b []byte, o *corev1.PodStatus) bool {
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			o.Phase = corev1.PodPhase(r.names.bytes(m.bytes()))
		case 12:
			o.PodIPs = append(o.PodIPs, corev1.PodIP{})
			m.and(o.PodIPs[len(o.PodIPs)-1].Unmarshal(m.bytes()) == nil)
		}
	}
	return m.whole()
}

func (r *lean) readNode(b []byte, o *corev1.Node) bool {
	resetMeta(&o.ObjectMeta)
	o.Spec.PodCIDR, o.Spec.PodCIDRs = "", o.Spec.PodCIDRs[:0]
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			m.and(r.readMeta(m.bytes(), &o.ObjectMeta, false))
		case 2:
			m.and(readNodeSpec(m.bytes(), &o.Spec))
		}
	}
	return m.whole()
}

func readNodeSpec(b []byte, o *corev1.NodeSpec) bool {
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			o.PodCIDR = m.text()
		case 7:
			o.PodCIDRs = append(o.PodCIDRs, m.text())
		}
	}
	return m.whole()
}

// resetMeta empties o but for the room in its maps.
func resetMeta(o *metav1.ObjectMeta) {
	clear(o.Labels)
	clear(o.Annotations)
	*o = metav1.ObjectMeta{Labels: o.Labels, Annotations: o.Annotations}
}

// readMeta reads the metadata of an object, and the labels that somebody looks at or all of them.
func (r *lean) readMeta(b []byte, o *metav1.ObjectMeta, allLabels bool) bool {
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			o.Name = m.text()
		case 3:
			o.Namespace = r.names.bytes(m.bytes())
		case 6:
			o.ResourceVersion = m.text()
		case 9:
			if o.DeletionTimestamp == nil {
				o.DeletionTimestamp = &metav1.Time{}
			}
			m.and(o.DeletionTimestamp.Unmarshal(m.bytes()) == nil)
		case 11:
			m.and(r.readEntry(m.bytes(), &o.Labels, allLabels))
		case 12:
			m.and(r.readEntry(m.bytes(), &o.Annotations, false))
		}
	}
	return m.whole()
}

// readEntry reads an entry of a map of labels or annotations.
func (r *lean) readEntry(b []byte, to *map[string]string, all bool) bool {
	var k, v []byte
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			k = m.bytes()
		case 2:
			v = m.bytes()
		}
	}
	if all || isRead(k) {
		if *to == nil {
			*to = map[string]string{}
		}
		(*to)[r.names.bytes(k)] = string(v)
	}
	return m.whole()
}

// isRead says whether anybody looks at a label or annotation.
func isRead(key []byte) bool {
	switch string(key) {
	case discoveryv1.LabelServiceName, mcsv1alpha1.LabelServiceName, mcsv1alpha1.LabelSourceCluster,
		corev1.EndpointsLastChangeTriggerTime, metav1.InitialEventsAnnotationKey:
		return true
	}
	return false
}

// message walks the fields of a protobuf message. An error ends the walk, and whole tells.
type message struct {
	rest []byte
	// num and typ are those of the present field. Its value is val or n; groups and numbers of fixed size are skipped.
	num protowire.Number
	typ protowire.Type
	val []byte
	n   uint64
	bad bool
}

// next goes to the next field.
func (m *message) next() bool {
	if m.bad || len(m.rest) == 0 {
		return false
	}
	var tag, size int
	m.num, m.typ, tag = protowire.ConsumeTag(m.rest)
	if tag < 0 {
		m.bad = true
		return false
	}
	switch rest := m.rest[tag:]; m.typ {
	case protowire.BytesType:
		m.val, size = protowire.ConsumeBytes(rest)
	case protowire.VarintType:
		m.n, size = protowire.ConsumeVarint(rest)
	default:
		size = protowire.ConsumeFieldValue(m.num, m.typ, rest)
	}
	if size < 0 {
		m.bad = true
		return false
	}
	m.rest = m.rest[tag+size:]
	return true
}

// bytes returns the value of a field that is a string, bytes or a message. It lies in the message's memory.
func (m *message) bytes() []byte {
	if m.typ != protowire.BytesType {
		m.bad = true
		return nil
	}
	return m.val
}

// text returns bytes as a string of its own.
func (m *message) text() string { return string(m.bytes()) }

// number returns the value of a field that is a bool or an integer.
func (m *message) number() uint64 {
	if m.typ != protowire.VarintType {
		m.bad = true
	}
	return m.n
}

// and notes whether what is in the present field is as it should be.
func (m *message) and(ok bool) { m.bad = m.bad || !ok }

// whole says that there was no error.
func (m *message) whole() bool { return !m.bad }
