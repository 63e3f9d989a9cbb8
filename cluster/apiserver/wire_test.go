package apiserver

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// readFields says which fields lean reads: under the numbers of messages those of their fields, nil for all there are.
type readFields map[protowire.Number]readFields

var (
	readOfEntry = readFields{1: nil, 2: nil}
	readOfMeta  = readFields{1: nil, 3: nil, 6: nil, 9: nil, 11: readOfEntry, 12: readOfEntry}
	readOfKinds = map[cluster.Kind]readFields{
		cluster.KindNamespace: {1: readOfMeta},
		cluster.KindService:   {1: readOfMeta, 2: {1: {1: nil, 2: nil, 3: nil}, 3: nil, 4: nil, 10: nil, 13: nil, 18: nil}},
		cluster.KindSlice: {1: readOfMeta, 2: {1: nil, 2: {1: nil}, 3: nil, 4: {3: nil}, 6: nil, 7: nil},
			3: {1: nil, 2: nil, 3: nil}, 4: nil},
		cluster.KindPod:       {1: readOfMeta, 3: {1: nil, 12: nil}},
		cluster.KindNode:      {1: readOfMeta, 2: {1: nil, 7: nil}},
		cluster.KindConfigMap: {1: readOfMeta, 2: readOfEntry},
	}
	readOfProxyService = readFields{
		1: readOfMeta,
		2: {1: {1: nil, 2: nil, 3: nil, 5: nil}, 3: nil, 4: nil, 5: nil, 7: nil, 9: nil, 10: nil, 11: nil, 12: nil, 13: nil, 14: nil, 18: nil, 22: nil},
		3: {1: nil},
	}
	readOfProxySlice = readFields{
		1: readOfMeta,
		2: {1: nil, 2: {1: nil, 2: nil, 3: nil}, 3: nil, 4: {3: nil}, 6: nil, 7: nil, 8: {1: {1: nil}, 2: {1: nil}}},
		3: {1: nil, 2: nil, 3: nil}, 4: nil,
	}
	readOfNodeNet  = readFields{1: {1: nil, 3: nil, 6: nil, 8: nil, 9: nil, 11: readOfEntry, 12: readOfEntry}, 2: {1: nil, 5: {1: nil}, 7: nil}, 3: {5: nil}}
	readOfPodHosts = readFields{
		1: {1: nil, 3: nil, 5: nil, 6: nil, 9: nil, 11: readOfEntry, 12: readOfEntry},
		2: {11: nil, 16: nil, 17: nil, 23: nil, 30: nil, 41: nil},
		3: {1: nil, 12: nil},
	}
)

// reads returns what r reads of a kind.
func (r *lean) reads(kind cluster.Kind) readFields {
	switch {
	case kind == cluster.KindPod && r.podHosts:
		return readOfPodHosts
	case kind == cluster.KindService && r.proxy:
		return readOfProxyService
	case kind == cluster.KindSlice && r.proxy:
		return readOfProxySlice
	case kind == cluster.KindNode && r.nodeNet:
		return readOfNodeNet
	}
	return readOfKinds[kind]
}

// asksIn returns what the bits of n ask for.
func asksIn(n uint8) asks {
	return asks{podLabels: n&1 != 0, podHosts: n&2 != 0, proxy: n&4 != 0, nodeNet: n&8 != 0}
}

// converter returns the one that goes with r.
func (r *lean) converter() *converter {
	return &converter{names: newInterner(), asks: r.asks}
}

// leanKinds are those that lean knows.
var leanKinds = []cluster.Kind{cluster.KindNamespace, cluster.KindService, cluster.KindSlice, cluster.KindPod, cluster.KindNode,
	cluster.KindConfigMap}

// prune leaves of a message what lean reads. Where it cannot be taken apart, the rest stays as it is.
func prune(b []byte, read readFields) (out []byte) {
	for len(b) > 0 {
		num, typ, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return append(out, b...)
		}
		n := protowire.ConsumeFieldValue(num, typ, b[tag:])
		if n < 0 {
			return append(out, b...)
		}
		below, ok := read[num]
		switch {
		case !ok:
		case below != nil && typ == protowire.BytesType:
			v, _ := protowire.ConsumeBytes(b[tag:])
			out = protowire.AppendBytes(protowire.AppendTag(out, num, typ), prune(v, below))
		default:
			out = append(out, b[:tag+n]...)
		}
		b = b[tag+n:]
	}
	return out
}

// known is all that this package takes from an object.
type known struct {
	Key     cluster.Key
	Version string
	End     bool
	Value   cluster.Object
	Faults  faults
}

func knownOf(o runtime.Object, c *converter) known {
	m, err := meta.Accessor(o)
	if err != nil {
		panic(err)
	}
	k := known{Version: m.GetResourceVersion(), End: m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true"}
	k.Key, _ = keyOf(o)
	k.Value, k.Faults = c.object(o)
	return k
}

var sameKnown = cmp.Options{sameAddrs, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })}

// generated decodes with the generated decoder.
func generated(c *codec, kind cluster.Kind, b []byte) (runtime.Object, error) {
	res := resourceOf(kind)
	o, err := c.scheme.New(res.objectKind(res.versions[0]))
	if err != nil {
		panic(err)
	}
	return o, o.(interface{ Unmarshal([]byte) error }).Unmarshal(b)
}

// checkLean holds lean to the generated decoder: what it reads of an object is what that decodes of the parts that
// lean reads, and so what it decodes of the whole. It reports whether lean took the object.
func checkLean(t *testing.T, c *codec, r *lean, kind cluster.Kind, b []byte) bool {
	t.Helper()
	o := r.object(kind, b)
	if o == nil {
		return false
	}
	got := knownOf(o, r.converter())
	want, err := generated(c, kind, prune(b, r.reads(kind)))
	if err != nil {
		t.Fatalf("%s %x: lean overlooked: %v", kind, b, err)
	}
	if d := cmp.Diff(knownOf(want, r.converter()), got, sameKnown); d != "" {
		t.Fatalf("%s %x (-parts +lean):\n%s", kind, b, d)
	}
	if want, err := generated(c, kind, b); err == nil {
		if d := cmp.Diff(knownOf(want, r.converter()), got, sameKnown); d != "" {
			t.Fatalf("%s %x (-whole +lean):\n%s", kind, b, d)
		}
	}
	return true
}

// fullObjects returns objects that use what there is, more than is read included.
func fullObjects() map[cluster.Kind][]runtime.Object {
	now := metav1.NewTime(time.Unix(1_700_000_000, 0))
	m := metav1.ObjectMeta{
		Namespace: "ns", Name: "name", GenerateName: "na", UID: "uid", ResourceVersion: "123", Generation: 7, CreationTimestamp: now,
		Labels: map[string]string{"a": "b", discoveryv1.LabelServiceName: "web", "multicluster.kubernetes.io/service-name": "far",
			"multicluster.kubernetes.io/source-cluster": "west", "": "empty", "ropewalk.dev/host-aliases": "cluster",
			corev1.LabelTopologyZone: "zone-a", corev1.LabelTopologyRegion: "region"},
		Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: "2024-05-06T07:08:09.1Z", metav1.InitialEventsAnnotationKey: "true", "x": strings.Repeat("y", 300),
			"ropewalk.dev/host-aliases": `[{"ip":"10.1.2.3"}]`, "ropewalk.dev/": "", "ropewalk.devil/x": "y", "ropewalk.dev": "z"},
		OwnerReferences: []metav1.OwnerReference{{Kind: "Deployment", Name: "owner", Controller: new(true)}}, Finalizers: []string{"f"},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m", Time: &now, FieldsV1: metav1.NewFieldsV1(`{"f:a":{}}`)}},
	}
	gone := m
	gone.DeletionTimestamp, gone.DeletionGracePeriodSeconds = &now, new(int64(30))
	return map[cluster.Kind][]runtime.Object{
		cluster.KindNamespace: {&corev1.Namespace{ObjectMeta: m, Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{"kubernetes"}}, Status: corev1.NamespaceStatus{Phase: "Active"}}},
		cluster.KindService: {
			&corev1.Service{ObjectMeta: m, Spec: corev1.ServiceSpec{Type: "ClusterIP", ClusterIP: "10.0.0.1", ClusterIPs: []string{"10.0.0.1", "fd00::1"}, Selector: map[string]string{"k": "v"},
				PublishNotReadyAddresses: true, SessionAffinity: "None", IPFamilies: []corev1.IPFamily{"IPv4"}, IPFamilyPolicy: new(corev1.IPFamilyPolicyPreferDualStack), HealthCheckNodePort: 4,
				Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: "TCP", TargetPort: intstr.FromString("http"), NodePort: 30000, AppProtocol: new("h2c")}, {Name: "dns", Port: 53, Protocol: "UDP"}, {Name: "bad", Port: -1}}},
				Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "1.2.3.4"}}}}},
			&corev1.Service{ObjectMeta: m, Spec: corev1.ServiceSpec{Type: "LoadBalancer", ClusterIP: "10.0.0.1", ClusterIPs: []string{"10.0.0.1", "fd00::1"},
				SessionAffinity: "ClientIP", SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(int32(60))}},
				ExternalIPs: []string{"192.0.2.1", "?", "2001:db8::1"}, LoadBalancerIP: "192.0.2.9", LoadBalancerClass: new("c"), AllocateLoadBalancerNodePorts: new(true),
				LoadBalancerSourceRanges: []string{" 10.0.0.0/8", "x", "fd00::/8 "}, ExternalTrafficPolicy: "Local", HealthCheckNodePort: 32000,
				InternalTrafficPolicy: new(corev1.ServiceInternalTrafficPolicyLocal), TrafficDistribution: new("PreferClose"),
				Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: "TCP", NodePort: 30080}, {Name: "bad", Port: 0, NodePort: 30081}, {Name: "dns", Port: 53, Protocol: "UDP", NodePort: -1}}},
				Status: corev1.ServiceStatus{Conditions: []metav1.Condition{{Type: "LoadBalancerPortsError"}}, LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{
					{IP: "192.0.2.3", IPMode: new(corev1.LoadBalancerIPModeVIP), Ports: []corev1.PortStatus{{Port: 80, Protocol: "TCP", Error: new("e")}}}, {IP: "192.0.2.4", IPMode: new(corev1.LoadBalancerIPModeProxy)},
					{Hostname: "lb.example.org"}, {IP: "2001:db8::3"}, {IP: "no"}}}}},
			&corev1.Service{ObjectMeta: gone, Spec: corev1.ServiceSpec{Type: "ExternalName", ExternalName: "example.org"}},
			&corev1.Service{ObjectMeta: m, Spec: corev1.ServiceSpec{Type: "NodePort", ClusterIP: "10.0.0.1", SessionAffinity: "ClientIP", SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{}}}},
			&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "n"}, Spec: corev1.ServiceSpec{Type: "Magic", ClusterIP: "None", ClusterIPs: []string{"None"}}},
		},
		cluster.KindSlice: {
			&discoveryv1.EndpointSlice{ObjectMeta: m, AddressType: "IPv4", Ports: []discoveryv1.EndpointPort{{}, {Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP), AppProtocol: new("x")}},
				Endpoints: []discoveryv1.Endpoint{
					{Addresses: []string{"10.1.0.1", "010.1.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)}, Hostname: new("h"),
						NodeName: new("n1"), Zone: new("z"), TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "ns", Name: "p", UID: "u"},
						Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "z"}}}, DeprecatedTopology: map[string]string{"a": "b"}},
					{Addresses: []string{"bad"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false)}, Hostname: new("")}, {},
				}},
			&discoveryv1.EndpointSlice{ObjectMeta: m, AddressType: "IPv6", Endpoints: []discoveryv1.Endpoint{
				{Addresses: []string{"fd00::1"}, Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "z"}, {Name: "y"}, {}}, ForNodes: []discoveryv1.ForNode{{Name: "n1"}, {Name: "n2"}}}},
				{Addresses: []string{"bad", "fd00::2", "fd00::3"}, Conditions: discoveryv1.EndpointConditions{Serving: new(false), Terminating: new(true)}, Hints: &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: "n1"}}}},
				{Addresses: []string{"fd00::4"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)}, Hints: &discoveryv1.EndpointHints{}},
				{Addresses: []string{"fd00::5"}},
			}},
			&discoveryv1.EndpointSlice{ObjectMeta: gone, AddressType: "FQDN"},
		},
		cluster.KindPod: {
			&corev1.Pod{ObjectMeta: m, Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i", Args: []string{"a"}}}},
				Status: corev1.PodStatus{Phase: "Running", PodIP: "10.1.0.1", PodIPs: []corev1.PodIP{{IP: "10.1.0.1"}, {IP: "fd00::1"}, {IP: "?"}}, HostIP: "10.0.0.9", StartTime: &now, Conditions: []corev1.PodCondition{{Type: "Ready"}}}},
			&corev1.Pod{ObjectMeta: m, Spec: corev1.PodSpec{Hostname: "h", Subdomain: "s", HostnameOverride: new("over.ride"), HostNetwork: true, EnableServiceLinks: new(false), DNSPolicy: "Default",
				HostAliases: []corev1.HostAlias{{IP: "10.1.2.3", Hostnames: []string{"foo.remote", "bar.remote"}}, {IP: "fd00::7"}, {IP: "10.1.2.300", Hostnames: []string{"x"}}, {IP: "010.1.2.3", Hostnames: []string{"old"}}, {IP: "10.1.2.4", Hostnames: []string{"x y"}}}}},
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "plain", UID: "other"}, Spec: corev1.PodSpec{EnableServiceLinks: new(true), HostAliases: []corev1.HostAlias{{}}}},
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "nameless"}},
			&corev1.Pod{ObjectMeta: gone, Status: corev1.PodStatus{Phase: "Running"}},
			&corev1.Pod{ObjectMeta: m, Status: corev1.PodStatus{Phase: "Failed"}},
		},
		cluster.KindNode: {
			&corev1.Node{ObjectMeta: m, Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24", PodCIDRs: []string{"10.1.0.0/24", "fd00::/64", "x"}, ProviderID: "p", Taints: []corev1.Taint{{Key: "k"}, {Key: cluster.LeavingTaint, Effect: "NoSchedule"}}},
				Status: corev1.NodeStatus{Images: []corev1.ContainerImage{{Names: []string{"i"}}}, Conditions: []corev1.NodeCondition{{Type: "Ready"}}, Addresses: []corev1.NodeAddress{
					{Type: "InternalIP", Address: "10.0.0.9"}, {Type: "Hostname", Address: "n1"}, {Type: "ExternalIP", Address: "192.0.2.9"}, {Type: "InternalIP", Address: "?"}, {Type: "InternalIP", Address: "fd00::9"}}}},
			&corev1.Node{ObjectMeta: gone, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{}}}},
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24"}},
		},
		cluster.KindConfigMap: {
			&corev1.ConfigMap{ObjectMeta: m, Immutable: new(true), Data: map[string]string{"hosts": "10.1.2.3 foo.remote\n", "empty": "", "large": strings.Repeat("#", 5000)}, BinaryData: map[string][]byte{"b": {0, 1, 2}}},
			&corev1.ConfigMap{ObjectMeta: gone, Data: map[string]string{"hosts": "10.1.2.4 foo.remote\n"}},
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "none"}},
		},
	}
}

func marshal(t testing.TB, o runtime.Object) []byte {
	t.Helper()
	b, err := o.(interface{ Marshal() ([]byte, error) }).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestLeanReadsObjects also holds that what an object before left behind does not show.
func TestLeanReadsObjects(t *testing.T) {
	c := mustCodec(t)
	for bits := range uint8(16) {
		r := &lean{names: newInterner(), asks: asksIn(bits)}
		for kind, objs := range fullObjects() {
			for _, o := range slices.Concat(objs, objs) {
				if !checkLean(t, c, r, kind, marshal(t, o)) {
					t.Errorf("%T: lean did not take %v", o, o)
				}
			}
			if !checkLean(t, c, r, kind, nil) {
				t.Errorf("%s: lean did not take the empty object", kind)
			}
		}
	}
	for _, kind := range []cluster.Kind{cluster.KindServiceCIDR, cluster.KindServiceImport} {
		if (&lean{names: newInterner()}).object(kind, nil) != nil {
			t.Errorf("lean took a %s", kind)
		}
	}
}

// TestLeanReadsAnyWire mutates messages as a server of another version, and a broken one, might send them.
func TestLeanReadsAnyWire(t *testing.T) {
	c := mustCodec(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	r := &lean{names: newInterner()}
	objs := fullObjects()
	taken, refused := 0, 0
	for i := range 20_000 {
		r.asks = asksIn(uint8(i))
		kind := leanKinds[rnd.IntN(len(leanKinds))]
		b := marshal(t, objs[kind][rnd.IntN(len(objs[kind]))])
		for range 1 + rnd.IntN(3) {
			b = mutate(rnd, b, 0)
		}
		if checkLean(t, c, r, kind, b) {
			taken++
		} else {
			refused++
		}
	}
	if taken < 4000 || refused < 4000 {
		t.Errorf("%d taken, %d refused: the mutations are not what they should be", taken, refused)
	}
}

// mutate changes one thing in a message or in a message in it.
func mutate(rnd *rand.Rand, b []byte, depth int) []byte {
	var fields [][]byte
	for rest := b; len(rest) > 0; {
		_, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			fields = append(fields, rest)
			break
		}
		fields, rest = append(fields, rest[:n]), rest[n:]
	}
	if len(fields) == 0 {
		return unknownField(rnd)
	}
	i := rnd.IntN(len(fields))
	num, typ, tag := protowire.ConsumeTag(fields[i])
	if tag > 0 && typ == protowire.BytesType && depth < 4 && rnd.IntN(3) > 0 {
		if v, n := protowire.ConsumeBytes(fields[i][tag:]); n >= 0 {
			fields[i] = protowire.AppendBytes(protowire.AppendTag(nil, num, typ), mutate(rnd, v, depth+1))
			return bytes.Join(fields, nil)
		}
	}
	switch rnd.IntN(8) {
	case 0: // twice: the last one counts, lists grow, messages are merged
		fields = append(fields, fields[i])
	case 1:
		fields = slices.Delete(fields, i, i+1)
	case 2:
		j := rnd.IntN(len(fields))
		fields[i], fields[j] = fields[j], fields[i]
	case 3:
		fields = slices.Insert(fields, i, unknownField(rnd))
	case 4: // another wire type
		fields[i] = protowire.AppendVarint(protowire.AppendTag(nil, max(num, 1), protowire.VarintType), rnd.Uint64()>>rnd.IntN(64))
	case 5:
		fields[i] = protowire.AppendBytes(protowire.AppendTag(nil, max(num, 1), protowire.BytesType), []byte("x"))
	case 6:
		fields[i] = fields[i][:rnd.IntN(len(fields[i]))]
	case 7:
		fields[i] = slices.Clone(fields[i])
		fields[i][rnd.IntN(len(fields[i]))] = byte(rnd.Uint32())
	}
	return bytes.Join(fields, nil)
}

func unknownField(rnd *rand.Rand) []byte {
	num := protowire.Number(1 + rnd.IntN(40))
	switch rnd.IntN(5) {
	case 0:
		return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), rnd.Uint64())
	case 1:
		return protowire.AppendFixed32(protowire.AppendTag(nil, num, protowire.Fixed32Type), rnd.Uint32())
	case 2:
		return protowire.AppendFixed64(protowire.AppendTag(nil, num, protowire.Fixed64Type), rnd.Uint64())
	case 3:
		g := protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), 7)
		return protowire.AppendGroup(protowire.AppendTag(nil, num, protowire.StartGroupType), num, g)
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte{8, byte(rnd.Uint32())})
}

func mustCodec(t testing.TB) *codec {
	t.Helper()
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// FuzzLean is TestLeanReadsAnyWire with a fuzzer's mutations.
func FuzzLean(f *testing.F) {
	for i, kind := range leanKinds {
		for _, o := range fullObjects()[kind] {
			f.Add(uint8(i), marshal(f, o))
			f.Add(uint8(i)|0xf0, marshal(f, o))
		}
	}
	c := mustCodec(f)
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		r := &lean{names: newInterner(), asks: asksIn(kind >> 4)}
		checkLean(t, c, r, leanKinds[int(kind&0xf)%len(leanKinds)], b)
	})
}

// FuzzEnvelopes holds the envelopes of events and objects to the generated decoders.
func FuzzEnvelopes(f *testing.F) {
	s := protobufBytes(f, typedService("a", "5", "10.0.0.1"))
	f.Add(s)
	f.Add(marshalEvent(f, metav1.WatchEvent{Type: "ADDED", Object: runtime.RawExtension{Raw: s}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var want metav1.WatchEvent
		errWant := want.Unmarshal(b)
		got, err := readWatchEvent(b)
		if (err == nil) != (errWant == nil) || err == nil && (got.Type != want.Type || !bytes.Equal(got.Object.Raw, want.Object.Raw)) {
			t.Errorf("event: got %v, %v, want %v, %v", got, err, want, errWant)
		}
		e, ok := openEnvelope(append([]byte(protobufMagic), b...))
		var u runtime.Unknown
		if err := u.Unmarshal(b); ok && (err != nil || u.Kind != string(e.kind) || u.APIVersion != string(e.apiVersion) || !bytes.Equal(u.Raw, e.object)) {
			t.Errorf("object: got %s %s %x, want %v, %v", e.apiVersion, e.kind, e.object, u, err)
		}
	})
}

func marshalEvent(t testing.TB, e metav1.WatchEvent) []byte {
	b, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func serviceDecoder(t testing.TB) *decoder {
	res := resourceOf(cluster.KindService)
	return newDecoder(mustCodec(t), res.kind, res.objectKind(res.versions[0]), &converter{names: newInterner()})
}

// listed decodes a list and returns its objects by name, with "!" for those that do not decode.
func listed(d *decoder, body io.Reader) (names []string, m *metav1.ListMeta, err error) {
	m, err = d.list(body, func(o runtime.Object, bad *undecoded) {
		if bad != nil {
			names = append(names, "!")
			return
		}
		names = append(names, o.(*corev1.Service).Name)
	})
	return names, m, err
}

func serviceList(n int) *corev1.ServiceList {
	l := &corev1.ServiceList{ListMeta: metav1.ListMeta{ResourceVersion: "9", Continue: "more", RemainingItemCount: new(int64(3))}}
	for i := range n {
		l.Items = append(l.Items, *typedService(fmt.Sprint("s", i), "5", "10.0.0.1"))
	}
	return l
}

func TestProtobufListAsItComes(t *testing.T) {
	l := serviceList(3)
	l.Items[1].Annotations = map[string]string{"large": strings.Repeat("x", 3*bufferSize)}
	raw := protobufBytes(t, l)
	names, m, err := listed(serviceDecoder(t), iotest.OneByteReader(bytes.NewReader(raw)))
	if err != nil || strings.Join(names, " ") != "s0 s1 s2" || m.ResourceVersion != "9" || m.Continue != "more" {
		t.Errorf("%v %v %v", names, m, err)
	}
	for cut := range len(raw) - 4 { // the last fields of the envelope say nothing
		if cut > 1000 && cut < len(raw)-1000 {
			continue
		}
		if _, _, err := listed(serviceDecoder(t), bytes.NewReader(raw[:cut])); err == nil {
			t.Fatalf("cut off at %d of %d, and no error", cut, len(raw))
		}
	}
	broken := errors.New("broken")
	if _, _, err := listed(serviceDecoder(t), io.MultiReader(bytes.NewReader(raw[:200]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("the body's error is lost: %v", err)
	}
}

// One object that is malformed does not take the others with it.
func TestProtobufListWithABadObject(t *testing.T) {
	good := marshal(t, typedService("good", "5", "10.0.0.1"))
	items := slices.Clone(version9)
	for _, o := range [][]byte{good, good[:len(good)-2], good} {
		items = appendBytes(items, 2, o)
	}
	names, m, err := listed(serviceDecoder(t), bytes.NewReader(enveloped("v1", "ServiceList", items)))
	if err != nil || strings.Join(names, " ") != "good ! good" || m.ResourceVersion != "9" {
		t.Errorf("%v %v %v", names, m, err)
	}
}

func TestProtobufListsThatAreNone(t *testing.T) {
	for name, raw := range map[string][]byte{
		"nothing":         []byte(protobufMagic),
		"no list":         enveloped("v1", "ServiceList", nil)[:len(protobufMagic)],
		"no metadata":     enveloped("v1", "ServiceList", nil),
		"another kind":    enveloped("v1", "PodList", version9),
		"an object":       protobufBytes(t, typedService("a", "5", "10.0.0.1")),
		"another version": enveloped("v2", "ServiceList", version9),
		"two":             append(enveloped("v1", "ServiceList", version9), appendBytes(nil, 2, version9)...),
		"a huge object":   append(enveloped("v1", "ServiceList", nil)[:len(protobufMagic)], 0x12, 0xff, 0xff, 0xff, 0xff, 0xf, 0x12, 0xff, 0xff, 0xff, 0xff, 0xf),
		"a group":         append(enveloped("v1", "ServiceList", version9), 0x1b, 0x1c),
	} {
		t.Run(name, func(t *testing.T) {
			if names, m, err := listed(serviceDecoder(t), bytes.NewReader(raw)); err == nil {
				t.Errorf("taken: %v %v", names, m)
			}
		})
	}
	if _, m, err := listed(serviceDecoder(t), bytes.NewReader(enveloped("", "", version9))); err != nil || m.ResourceVersion != "9" {
		t.Errorf("a list that does not say what it is: %v %v", m, err)
	}
}

// version9 is the metadata of a list at version 9, as a field of the list.
var version9 = []byte{0x0a, 3, 0x12, 1, '9'}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func enveloped(apiVersion, kind string, object []byte) []byte {
	u := appendBytes(appendBytes(nil, 1, []byte(apiVersion)), 2, []byte(kind))
	return appendBytes(appendBytes([]byte(protobufMagic), 1, u), 2, object)
}

// FuzzProtobufList holds the list that is decoded as it comes to the one that is decoded whole.
func FuzzProtobufList(f *testing.F) {
	f.Add(protobufBytes(f, serviceList(3)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if !isProtobuf(raw) {
			return
		}
		d := serviceDecoder(t)
		var got []known
		m, err := d.protobufList(bufio.NewReader(bytes.NewReader(raw)), func(o runtime.Object, bad *undecoded) {
			if bad == nil {
				got = append(got, knownOf(o, new(converter)))
			}
		})
		whole, errWhole := d.object(raw, d.gvk.GroupVersion().WithKind("ServiceList"))
		if err != nil || errWhole != nil {
			return
		}
		list, ok := whole.(*corev1.ServiceList)
		if !ok {
			t.Fatalf("a %T was taken", whole)
		}
		var want []known
		for i := range list.Items {
			want = append(want, knownOf(&list.Items[i], new(converter)))
		}
		if d := cmp.Diff(want, got, sameKnown); d != "" || m.ResourceVersion != list.ResourceVersion || m.Continue != list.Continue {
			t.Errorf("(-whole +lean):\n%s\n%v, %v", d, m, list.ListMeta)
		}
	})
}

// A stream is framed by lengths, and a length is no reason to allocate.
func TestFrames(t *testing.T) {
	frame := func(n uint32, b string) string {
		return string([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + b
	}
	large := strings.Repeat("x", bufferSize+1)
	r := bufio.NewReaderSize(strings.NewReader(frame(1, "a")+frame(0, "")+frame(uint32(len(large)), large)+frame(2, "bc")+frame(maxObject+1, "")), bufferSize)
	for _, want := range []string{"a", "", large, "bc"} {
		if got, err := nextFrame(r); err != nil || string(got) != want {
			t.Fatalf("got %d octets, %v, want %d", len(got), err, len(want))
		}
	}
	if _, err := nextFrame(r); !errors.Is(err, errTooLarge) {
		t.Errorf("too large: %v", err)
	}
	for _, cut := range []string{frame(5, "")[:2], frame(5, ""), frame(5, "abc"), frame(uint32(len(large)), ""), frame(uint32(len(large)), "x")} {
		if _, err := nextFrame(bufio.NewReaderSize(strings.NewReader(cut), bufferSize)); err != io.ErrUnexpectedEOF {
			t.Errorf("cut off after %d octets: %v", len(cut), err)
		}
	}
	if _, err := nextFrame(bufio.NewReader(strings.NewReader(""))); err != io.EOF {
		t.Errorf("the end: %v", err)
	}
}

// What a pod's hosts file is made of costs nothing where nobody asks for it.
func TestPodHostsAllocateOnRequest(t *testing.T) {
	pod := fullObjects()[cluster.KindPod][1].(*corev1.Pod)
	for k := range pod.Annotations {
		if !strings.HasPrefix(k, cluster.AnnotationPrefix) {
			delete(pod.Annotations, k)
		}
	}
	pod.Labels = nil
	plain := pod.DeepCopy()
	plain.UID, plain.Annotations, plain.Spec = "", nil, corev1.PodSpec{}
	allocs := func(o *corev1.Pod, podHosts bool) float64 {
		b := marshal(t, o)
		r := &lean{names: newInterner(), asks: asks{podHosts: podHosts}}
		conv := r.converter()
		return testing.AllocsPerRun(100, func() {
			if v, _ := conv.object(r.object(cluster.KindPod, b)); v == nil {
				t.Fatal("not taken")
			}
		})
	}
	if a, b := allocs(plain, false), allocs(pod, false); a != b {
		t.Errorf("%v allocations for a pod without anything of the kind, %v for one with all of it", a, b)
	}
	if a, b := allocs(pod, false), allocs(pod, true); a >= b {
		t.Errorf("%v allocations without, %v with what is asked for: this test measures nothing", a, b)
	}
}

// What proxies and routers need costs nothing where nobody asks for it: an object that has it all is as good as one that has
// nothing of it.
func TestProxyAllocatesOnRequest(t *testing.T) {
	objs := fullObjects()
	service := objs[cluster.KindService][1].(*corev1.Service)
	service.Spec.Ports = service.Spec.Ports[:1]
	slice := objs[cluster.KindSlice][1].(*discoveryv1.EndpointSlice)
	node := objs[cluster.KindNode][0].(*corev1.Node)
	for _, m := range []metav1.Object{service, slice, node} {
		maps.DeleteFunc(m.GetLabels(), func(k, _ string) bool { return k != discoveryv1.LabelServiceName && k != corev1.LabelTopologyZone })
		maps.DeleteFunc(m.GetAnnotations(), func(string, string) bool { return true })
	}
	for i := range slice.Endpoints {
		slice.Endpoints[i].Conditions.Ready = new(true)
		slice.Endpoints[i].Addresses = []string{"fd00::1"}
	}
	node.Spec.PodCIDRs = nil
	plainService, plainSlice, plainNode := service.DeepCopy(), slice.DeepCopy(), node.DeepCopy()
	plainService.Spec = corev1.ServiceSpec{Type: service.Spec.Type, ClusterIP: service.Spec.ClusterIP, ClusterIPs: service.Spec.ClusterIPs, Ports: service.Spec.Ports}
	plainService.Status, plainService.Spec.Ports[0].NodePort = corev1.ServiceStatus{}, 0
	for i := range plainSlice.Endpoints {
		plainSlice.Endpoints[i] = discoveryv1.Endpoint{Addresses: []string{"fd00::1"}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}}
	}
	plainNode.Status, plainNode.Labels = corev1.NodeStatus{}, map[string]string{discoveryv1.LabelServiceName: "web"}
	allocs := func(kind cluster.Kind, o runtime.Object, a asks) float64 {
		b := marshal(t, o)
		r := &lean{names: newInterner(), asks: a}
		conv := r.converter()
		return testing.AllocsPerRun(100, func() {
			if v, why := conv.object(r.object(kind, b)); v == nil || a == (asks{}) && len(why) > 0 {
				t.Fatal("not taken", why)
			}
		})
	}
	for _, tt := range []struct {
		kind        cluster.Kind
		plain, full runtime.Object
	}{{cluster.KindService, plainService, service}, {cluster.KindSlice, plainSlice, slice}, {cluster.KindNode, plainNode, node}} {
		if a, b := allocs(tt.kind, tt.plain, asks{}), allocs(tt.kind, tt.full, asks{}); a != b {
			t.Errorf("%s: %v allocations for one without anything of the kind, %v for one with all of it", tt.kind, a, b)
		}
		if a, b := allocs(tt.kind, tt.full, asks{}), allocs(tt.kind, tt.full, asks{proxy: true, nodeNet: true}); a >= b {
			t.Errorf("%s: %v allocations without, %v with what is asked for: this test measures nothing", tt.kind, a, b)
		}
	}
}

// Endpoints of one zone share their hints: they cost a value of each slice no more than a pointer for each endpoint.
func TestHintsAreShared(t *testing.T) {
	slice := func(hints bool) []byte {
		s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}}
		for i := range 100 {
			e := discoveryv1.Endpoint{Addresses: []string{"10.1.0.1"}}
			if hints {
				e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: fmt.Sprint("zone-", i%3)}}}
			}
			s.Endpoints = append(s.Endpoints, e)
		}
		return marshal(t, s)
	}
	allocs := func(b []byte) float64 {
		r := &lean{names: newInterner(), asks: asks{proxy: true}}
		conv := r.converter()
		return testing.AllocsPerRun(100, func() {
			if _, why := conv.object(r.object(cluster.KindSlice, b)); len(why) > 0 {
				t.Fatal(why)
			}
		})
	}
	if a, b := allocs(slice(false)), allocs(slice(true)); a != b {
		t.Errorf("%v allocations for a slice without hints, %v for one with", a, b)
	}
}

// What is not read of an object is not decoded, which is what its decoder is for.
func TestLeanAllocates(t *testing.T) {
	s := fullObjects()[cluster.KindService][0].(*corev1.Service)
	small := marshal(t, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, ResourceVersion: s.ResourceVersion}})
	s.Annotations = nil
	s.Spec = corev1.ServiceSpec{Selector: s.Spec.Selector}
	big := marshal(t, s)
	r := &lean{names: newInterner()}
	allocs := func(b []byte) float64 {
		return testing.AllocsPerRun(100, func() {
			if r.object(cluster.KindService, b) == nil {
				t.Fatal("not taken")
			}
		})
	}
	if a, b := allocs(small), allocs(big); a > 2 || b > a+3 { // the labels that are read
		t.Errorf("%v allocations for the name and version alone, %v with all the rest", a, b)
	}
}
