package main

import (
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ropewalk-net/ropewalk/test/standin"
)

// The objects carry what those of a real cluster do beside what a proxy reads: labels, owners, managed fields.

const (
	nodeName     = "node-0"
	serviceCIDR  = "10.96.0.0/12"
	clusterCIDRs = "10.128.0.0/9,fd00:244::/56"
	// numNodes have the endpoints, one of them the proxy's own.
	numNodes = 1000
)

func namespace(i int) string { return fmt.Sprintf("team-%d", i%100) }

// fill gives the API server the node and a cluster of so many services with so many endpoints each, and the probe.
func fill(api *standin.Server, services, endpoints int) {
	api.Apply(node(), &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{serviceCIDR}},
		Status: networkingv1.ServiceCIDRStatus{Conditions: []metav1.Condition{{Type: "Ready", Status: "True"}}},
	})
	for i := range services {
		api.Apply(service(i), slice(i, bulkAddrs(i, endpoints)))
	}
	api.Apply(probeService(), probeSlice(0))
}

func node() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{corev1.LabelTopologyZone: "zone-a"}},
		Spec:       corev1.NodeSpec{PodCIDR: "10.254.1.0/24", PodCIDRs: []string{"10.254.1.0/24"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: nodeAddr}, {Type: corev1.NodeHostName, Address: nodeName}}},
	}
}

// managed stands for the managedFields of an object.
const managed = `{"f:metadata":{"f:annotations":{".":{},"f:endpoints.kubernetes.io/last-change-trigger-time":{}},` +
	`"f:labels":{".":{},"f:app.kubernetes.io/name":{},"f:endpointslice.kubernetes.io/managed-by":{}}}}`

func objectMeta(ns, name, app string) metav1.ObjectMeta {
	when := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	return metav1.ObjectMeta{
		Namespace: ns, Name: name, CreationTimestamp: when, Generation: 3,
		Labels: map[string]string{"app.kubernetes.io/name": app, "app.kubernetes.io/part-of": "checkout", "helm.sh/chart": "checkout-1.2.3"},
		ManagedFields: []metav1.ManagedFieldsEntry{{
			Manager: "kube-controller-manager", Operation: "Update", APIVersion: "v1", Time: &when, FieldsType: "FieldsV1",
			FieldsV1: metav1.NewFieldsV1(managed),
		}},
	}
}

func serviceName(i int) string { return fmt.Sprintf("checkout-backend-%d", i) }

// clusterIP is the address of the i-th service.
func clusterIP(i int) string { return fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255) }

// bulkAddrs are the endpoints of the i-th service. Nobody answers there.
func bulkAddrs(i, n int) (addrs []string) {
	for j := range n {
		k := i*8 + j%8
		addrs = append(addrs, fmt.Sprintf("10.%d.%d.%d", 128+k>>16, k>>8&255, k&255))
	}
	return addrs
}

// fresh is the n-th address that the kernel has not had before.
func fresh(n int) [4]byte { return [4]byte{watched[0], watched[1], byte(n >> 8), byte(n)} }

func text(a [4]byte) string { return netip.AddrFrom4(a).String() }

func service(i int) *corev1.Service {
	return serviceOf(objectMeta(namespace(i), serviceName(i), serviceName(i)), clusterIP(i),
		corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(backendPort)})
}

func serviceOf(meta metav1.ObjectMeta, ip string, ports ...corev1.ServicePort) *corev1.Service {
	meta.Annotations = map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "9090"}
	return &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Ports: ports,
		Selector: map[string]string{"app.kubernetes.io/name": meta.Name},
	}}
}

// slice is the EndpointSlice of the i-th service.
func slice(i int, addrs []string) *discoveryv1.EndpointSlice {
	return sliceOf(namespace(i), serviceName(i), i, addrs, discoveryv1.EndpointPort{Name: new("http"), Port: new(int32(backendPort)), Protocol: new(corev1.ProtocolTCP)})
}

func sliceOf(ns, service string, at int, addrs []string, ports ...discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: objectMeta(ns, service+"-x7k2p", service), AddressType: discoveryv1.AddressTypeIPv4, Ports: ports}
	s.Labels[discoveryv1.LabelServiceName] = service
	s.Labels[discoveryv1.LabelManagedBy] = "endpointslice-controller.k8s.io"
	s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: "2026-01-02T03:04:05Z"}
	for j, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{a},
			Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
			NodeName:   new(fmt.Sprintf("node-%d", (at+j)%numNodes)), Zone: new("zone-a"),
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: fmt.Sprintf("%s-7d4b9c6f5d-%05d", service, j)},
		})
	}
	return s
}

// The probe is a service whose backends answer. It has one at a time.

var probeVIP = netip.MustParseAddrPort("10.111.0.1:80")

func probeService() *corev1.Service {
	return serviceOf(objectMeta("default", "probe", "probe"), probeVIP.Addr().String(),
		corev1.ServicePort{Name: "tcp", Port: int32(probeVIP.Port()), Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(backendPort)},
		corev1.ServicePort{Name: "udp", Port: int32(probeVIP.Port()), Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(backendPort)})
}

func probeSlice(backend byte) *discoveryv1.EndpointSlice {
	return sliceOf("default", "probe", 0, []string{backendAddrs[backend]},
		discoveryv1.EndpointPort{Name: new("tcp"), Port: new(int32(backendPort)), Protocol: new(corev1.ProtocolTCP)},
		discoveryv1.EndpointPort{Name: new("udp"), Port: new(int32(backendPort)), Protocol: new(corev1.ProtocolUDP)})
}
