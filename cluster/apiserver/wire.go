package apiserver

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
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
	asks

	namespace corev1.Namespace
	service   corev1.Service
	slice     discoveryv1.EndpointSlice
	pod       corev1.Pod
	node      corev1.Node
	configMap corev1.ConfigMap
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
	case cluster.KindConfigMap:
		o, ok = &r.configMap, r.readConfigMap(b, &r.configMap)
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
			m.and(r.readMeta(m.bytes(), &o.ObjectMeta, metaParts{}))
		}
	}
	return m.whole()
}

func (r *lean) readService(b []byte, o *corev1.Service) bool {
	resetMeta(&o.ObjectMeta)
	o.Spec = corev1.ServiceSpec{
		Ports: o.Spec.Ports[:0], ClusterIPs: o.Spec.ClusterIPs[:0],
		ExternalIPs: o.Spec.ExternalIPs[:0], LoadBalancerSourceRanges: o.Spec.LoadBalancerSourceRanges[:0],
	}
	o.Status.LoadBalancer.Ingress = o.Status.LoadBalancer.Ingress[:0]
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			m.and(r.readMeta(m.bytes(), &o.ObjectMeta, metaParts{}))
		case 2:
			m.and(r.readServiceSpec(m.bytes(), &o.Spec))
		case 3:
			if r.proxy {
				m.and(readServiceStatus(m.bytes(), &o.Status))
			}
		}
	}
	return m.whole()
}

func readServiceStatus(b []byte, o *corev1.ServiceStatus) bool {
	m := message{rest: b}
	for m.next() {
		if m.num == 1 {
			m.and(o.LoadBalancer.Unmarshal(m.bytes()) == nil)
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
		default:
			if r.proxy {
				r.readProxySpec(&m, o)
			}
		}
	}
	return m.whole()
}

// readProxySpec reads the present field of m if it is one that only proxies need.
func (r *lean) readProxySpec(m *message, o *corev1.ServiceSpec) {
	switch m.num {
	case 5:
		o.ExternalIPs = append(o.ExternalIPs, m.text())
	case 7:
		o.SessionAffinity = corev1.ServiceAffinity(r.names.bytes(m.bytes()))
	case 9:
		o.LoadBalancerSourceRanges = append(o.LoadBalancerSourceRanges, m.text())
	case 11:
		o.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicy(r.names.bytes(m.bytes()))
	case 12:
		o.HealthCheckNodePort = int32(m.number())
	case 14:
		if o.SessionAffinityConfig == nil {
			o.SessionAffinityConfig = &corev1.SessionAffinityConfig{}
		}
		m.and(o.SessionAffinityConfig.Unmarshal(m.bytes()) == nil)
	case 22:
		o.InternalTrafficPolicy = (*corev1.ServiceInternalTrafficPolicy)(r.names.shared(m.bytes()))
	}
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
		case 5:
			if r.proxy {
				o.NodePort = int32(m.number())
			}
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
			m.and(r.readMeta(m.bytes(), &o.ObjectMeta, metaParts{}))
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
			m.and(r.readConditions(m.bytes(), &o.Conditions, &was.Conditions))
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
		case 8:
			if r.proxy {
				if o.Hints == nil {
					o.Hints = emptied(was.Hints)
				}
				m.and(r.readHints(m.bytes(), o.Hints))
			}
		}
	}
	return m.whole()
}

// readConditions may use what was points to.
func (r *lean) readConditions(b []byte, o, was *discoveryv1.EndpointConditions) bool {
	m := message{rest: b}
	for m.next() {
		switch {
		case m.num == 1:
			o.Ready = again(was.Ready)
			*o.Ready = m.number() != 0
		case m.num == 2 && r.proxy:
			o.Serving = again(was.Serving)
			*o.Serving = m.number() != 0
		case m.num == 3 && r.proxy:
			o.Terminating = again(was.Terminating)
			*o.Terminating = m.number() != 0
		}
	}
	return m.whole()
}

// emptied returns h without hints, with the room for them.
func emptied(h *discoveryv1.EndpointHints) *discoveryv1.EndpointHints {
	if h == nil {
		return &discoveryv1.EndpointHints{}
	}
	h.ForZones, h.ForNodes = h.ForZones[:0], h.ForNodes[:0]
	return h
}

func (r *lean) readHints(b []byte, o *discoveryv1.EndpointHints) bool {
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			o.ForZones = append(o.ForZones, discoveryv1.ForZone{})
			m.and(r.readName(m.bytes(), &o.ForZones[len(o.ForZones)-1].Name))
		case 2:
			o.ForNodes = append(o.ForNodes, discoveryv1.ForNode{})
			m.and(r.readName(m.bytes(), &o.ForNodes[len(o.ForNodes)-1].Name))
		}
	}
	return m.whole()
}

// readName reads a message that has nothing but a name.
func (r *lean) readName(b []byte, name *string) bool {
	m := message{rest: b}
	for m.next() {
		if m.num == 1 {
			*name = r.names.bytes(m.bytes())
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
	var parts metaParts
	if r.podLabels {
		parts.labels = allKeys
	}
	if r.podHosts {
		parts.uid, parts.annotations = true, ownKeys
		o.Spec = corev1.PodSpec{HostAliases: o.Spec.HostAliases[:0]}
	}
	m := message{rest: b}
	for m.next() {
		switch {
		case m.num == 1:
			m.and(r.readMeta(m.bytes(), &o.ObjectMeta, parts))
		case m.num == 2 && r.podHosts:
			m.and(readPodSpec(m.bytes(), &o.Spec))
		case m.num == 3:
			m.and(r.readPodStatus(m.bytes(), &o.Status))
		}
	}
	return m.whole()
}

func readPodSpec(b []byte, o *corev1.PodSpec) bool {
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 11:
			o.HostNetwork = m.number() != 0
		case 16:
			o.Hostname = m.text()
		case 17:
			o.Subdomain = m.text()
		case 23:
			o.HostAliases = append(o.HostAliases, corev1.HostAlias{})
			m.and(o.HostAliases[len(o.HostAliases)-1].Unmarshal(m.bytes()) == nil)
		case 30:
			o.EnableServiceLinks = new(m.number() != 0)
		case 41:
			o.HostnameOverride = new(m.text())
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
	o.Spec.PodCIDR, o.Spec.PodCIDRs, o.Spec.Taints = "", o.Spec.PodCIDRs[:0], o.Spec.Taints[:0]
	o.Status.Addresses = o.Status.Addresses[:0]
	var parts metaParts
	if r.nodeNet {
		parts.labels, parts.created = zoneKey, true
	}
	m := message{rest: b}
	for m.next() {
		switch {
		case m.num == 1:
			m.and(r.readMeta(m.bytes(), &o.ObjectMeta, parts))
		case m.num == 2:
			m.and(r.readNodeSpec(m.bytes(), &o.Spec))
		case m.num == 3 && r.nodeNet:
			m.and(readNodeStatus(m.bytes(), &o.Status))
		}
	}
	return m.whole()
}

func readNodeStatus(b []byte, o *corev1.NodeStatus) bool {
	m := message{rest: b}
	for m.next() {
		if m.num == 5 {
			o.Addresses = append(o.Addresses, corev1.NodeAddress{})
			m.and(o.Addresses[len(o.Addresses)-1].Unmarshal(m.bytes()) == nil)
		}
	}
	return m.whole()
}

func (r *lean) readNodeSpec(b []byte, o *corev1.NodeSpec) bool {
	m := message{rest: b}
	for m.next() {
		switch {
		case m.num == 1:
			o.PodCIDR = m.text()
		case m.num == 5 && r.nodeNet:
			m.and(readTaint(m.bytes(), &o.Taints))
		case m.num == 7:
			o.PodCIDRs = append(o.PodCIDRs, m.text())
		}
	}
	return m.whole()
}

// readTaint appends a taint's key.
func readTaint(b []byte, list *[]corev1.Taint) bool {
	var t corev1.Taint
	m := message{rest: b}
	for m.next() {
		if m.num == 1 {
			t.Key = m.text()
		}
	}
	*list = append(*list, t)
	return m.whole()
}

func (r *lean) readConfigMap(b []byte, o *corev1.ConfigMap) bool {
	resetMeta(&o.ObjectMeta)
	clear(o.Data)
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			m.and(r.readMeta(m.bytes(), &o.ObjectMeta, metaParts{labels: ownKeys}))
		case 2:
			m.and(r.readEntry(m.bytes(), &o.Data, allKeys))
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

// metaParts says what is read of an object's metadata besides what is read of every object's.
type metaParts struct {
	uid, created        bool
	labels, annotations keys
}

// keys are those of a map whose entries are read: if nothing else, those that isUsed names.
type keys uint8

const (
	// ownKeys are those of cluster.AnnotationPrefix, too.
	ownKeys keys = 1 + iota
	// zoneKey is the one that tells a node's zone, too.
	zoneKey
	allKeys
)

// has reports whether an entry is read.
func (s keys) has(key []byte) bool {
	return s == allKeys || isUsed(key) || s == ownKeys && isOwn(key) || s == zoneKey && string(key) == corev1.LabelTopologyZone
}

func isOwn(key []byte) bool {
	const n = len(cluster.AnnotationPrefix)
	return len(key) >= n && string(key[:n]) == cluster.AnnotationPrefix
}

func (r *lean) readMeta(b []byte, o *metav1.ObjectMeta, parts metaParts) bool {
	m := message{rest: b}
	for m.next() {
		switch m.num {
		case 1:
			o.Name = m.text()
		case 3:
			o.Namespace = r.names.bytes(m.bytes())
		case 5:
			if parts.uid {
				o.UID = types.UID(m.text())
			}
		case 6:
			o.ResourceVersion = m.text()
		case 8:
			if parts.created {
				m.and(o.CreationTimestamp.Unmarshal(m.bytes()) == nil)
			}
		case 9:
			if o.DeletionTimestamp == nil {
				o.DeletionTimestamp = &metav1.Time{}
			}
			m.and(o.DeletionTimestamp.Unmarshal(m.bytes()) == nil)
		case 11:
			m.and(r.readEntry(m.bytes(), &o.Labels, parts.labels))
		case 12:
			m.and(r.readEntry(m.bytes(), &o.Annotations, parts.annotations))
		}
	}
	return m.whole()
}

// readEntry reads an entry of a map if it is among the wanted.
func (r *lean) readEntry(b []byte, to *map[string]string, wanted keys) bool {
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
	if wanted.has(k) {
		if *to == nil {
			*to = map[string]string{}
		}
		(*to)[r.names.bytes(k)] = string(v)
	}
	return m.whole()
}

// isUsed says whether anybody looks at a label or annotation of an object of any kind.
func isUsed(key []byte) bool {
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
