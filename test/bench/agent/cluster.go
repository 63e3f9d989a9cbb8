package main

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ropewalk-net/ropewalk/test/standin"
)

// What pods have addresses from.
const clusterCIDR4, clusterCIDR6 = "10.128.0.0/14", "fd00:244::/32"

func nodeName(i int) string { return fmt.Sprintf("node-%d", i) }
func uid(i int) string      { return fmt.Sprintf("1b2c3d4e-0000-4000-8000-%012d", i) }

// fill gives the API server the cluster.
func fill(api *standin.Server) {
	api.Apply(&networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12"}},
		Status: networkingv1.ServiceCIDRStatus{Conditions: []metav1.Condition{{Type: "Ready", Status: "True"}}},
	})
	for i := range *nodes {
		api.Apply(node(i, 0))
	}
	for i := range *services {
		name := fmt.Sprintf("backend-%d", i)
		meta := func(name string) metav1.ObjectMeta {
			return metav1.ObjectMeta{Namespace: fmt.Sprintf("team-%d", i%100), Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("backend-%d", i)}}
		}
		ip := fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255)
		s := &corev1.Service{ObjectMeta: meta(name), Spec: corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}}}}
		slice := &discoveryv1.EndpointSlice{ObjectMeta: meta(name + "-x7k2p"), AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}}}
		for j := range 2 {
			at := (i + j) % *nodes
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 128+at>>8, at&255, 2 + i / *nodes)}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}, NodeName: new(nodeName(at))})
		}
		api.Apply(s, slice)
	}
	for i := range *pods {
		ip := fmt.Sprintf("10.128.0.%d", 2+i)
		api.Apply(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "team-0", Name: fmt.Sprintf("pod-%d", i), UID: types.UID(uid(i))}, Spec: corev1.PodSpec{NodeName: nodeName(0)},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}})
	}
}

// node is one that has told for the n-th time that it is alive. On all but the first there is a flannel that has told what others need.
func node(i, n int) *corev1.Node {
	addr, addr6 := "172.16.0.1", fmt.Sprintf("2001:db8::%x", 1+i)
	annotations := map[string]string{"node.alpha.kubernetes.io/ttl": "0"} // there is always one: flanneld cannot be without any
	if i > 0 {
		addr = fmt.Sprintf("172.17.%d.%d", i>>8, i&255)
		for name, value := range map[string]string{
			"backend-type": "vxlan", "kube-subnet-manager": "true", "public-ip": addr, "public-ipv6": addr6,
			"backend-data":    fmt.Sprintf(`{"VNI":1,"VtepMAC":"0a:04:00:00:%02x:%02x"}`, i>>8, i&255),
			"backend-v6-data": fmt.Sprintf(`{"VNI":1,"VtepMAC":"0a:06:00:00:%02x:%02x"}`, i>>8, i&255),
		} {
			annotations["flannel.alpha.coreos.com/"+name] = value
		}
	}
	cidrs := []string{fmt.Sprintf("10.%d.%d.0/24", 128+i>>8, i&255), fmt.Sprintf("fd00:244:%x::/64", i)}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName(i), Annotations: annotations}, Spec: corev1.NodeSpec{PodCIDR: cidrs[0], PodCIDRs: cidrs},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}, {Type: corev1.NodeInternalIP, Address: addr6}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(time.Unix(int64(1_700_000_000+n), 0))}},
		},
	}
}

// beat has each other node write its status every five minutes, as the kubelet does, for a time.
func beat(api *standin.Server, d time.Duration) {
	begun := time.Now()
	for n := 1; time.Since(begun) < d; n++ {
		api.Apply(node(1+n%(*nodes-1), n))
		time.Sleep(5 * time.Minute / time.Duration(*nodes))
	}
}
