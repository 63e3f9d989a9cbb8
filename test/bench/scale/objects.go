package main

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The objects carry what those of a real cluster do beside what a DNS server reads: labels, owners, managed fields, and
// in pods the containers, volumes and conditions.

const (
	numSpaces = 100
	numNodes  = 1000
	// every headlessEvery-th service is headless.
	headlessEvery = 10
)

func space(i int) string { return fmt.Sprintf("team-%d", i%numSpaces) }

func node(i int) string {
	return fmt.Sprintf("ip-10-0-%d-%d.eu-central-1.compute.internal", i%numNodes/250, i%250)
}

func zoneOf(i int) string { return fmt.Sprintf("eu-central-1%c", 'a'+i%3) }

func namespaces() (list []*corev1.Namespace) {
	for i := range numSpaces {
		list = append(list, &corev1.Namespace{ObjectMeta: objectMeta("", space(i), "kubectl", "status.phase")})
	}
	return list
}

// managed stands for the managedFields of an object.
const managed = `{"f:metadata":{"f:annotations":{".":{},"f:endpoints.kubernetes.io/last-change-trigger-time":{}},` +
	`"f:labels":{".":{},"f:app.kubernetes.io/name":{},"f:endpointslice.kubernetes.io/managed-by":{}},` +
	`"f:ownerReferences":{".":{},"k:{\"uid\":\"7f9f0f4f-3c41-4c4c-9c06-8bd3ed3b1e6b\"}":{}}},"f:%s":{}}`

func objectMeta(ns, name, manager, fields string) metav1.ObjectMeta {
	when := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	return metav1.ObjectMeta{
		Namespace: ns, Name: name, CreationTimestamp: when, Generation: 3,
		ManagedFields: []metav1.ManagedFieldsEntry{{
			Manager: manager, Operation: "Update", APIVersion: "v1", Time: &when, FieldsType: "FieldsV1",
			FieldsV1: metav1.NewFieldsV1(fmt.Sprintf(managed, fields)),
		}},
	}
}

// serviceName is what the i-th service is called: as long as names in clusters are.
func serviceName(i int) string { return fmt.Sprintf("checkout-backend-%d", i) }

func clusterIP(i int) string { return fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255) }

// endpointIP is the j-th address of the i-th service.
func endpointIP(i, j int) string {
	n := i*16 + j%16
	return fmt.Sprintf("10.%d.%d.%d", 128+n>>16, n>>8&255, n&255)
}

func service(i int) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: objectMeta(space(i), serviceName(i), "kubectl-client-side-apply", "spec.ports"),
		Spec: corev1.ServiceSpec{
			ClusterIP: "None", ClusterIPs: []string{"None"},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Selector: map[string]string{"app.kubernetes.io/name": serviceName(i)},
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, Protocol: "TCP", TargetPort: intstr.FromInt32(8080)},
				{Name: "metrics", Port: 9090, Protocol: "TCP", TargetPort: intstr.FromInt32(9090)},
			},
		},
	}
	if i%headlessEvery != 0 {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = clusterIP(i), []string{clusterIP(i)}
	}
	s.Labels = map[string]string{"app.kubernetes.io/name": s.Name, "app.kubernetes.io/part-of": "checkout", "helm.sh/chart": "checkout-1.2.3"}
	s.Annotations = map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "9090"}
	return s
}

// slice is the EndpointSlice of a service, with an endpoint for each of ips. The one at notReady is not.
func slice(ns, service, name string, ips []string, notReady int) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  objectMeta(ns, name, "kube-controller-manager", "endpoints"),
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{
			{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)},
			{Name: new("metrics"), Port: new(int32(9090)), Protocol: new(corev1.ProtocolTCP)},
		},
	}
	s.GenerateName = service + "-"
	s.Labels = map[string]string{
		discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io",
		"app.kubernetes.io/name": service, "app.kubernetes.io/part-of": "checkout",
	}
	s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: "2026-01-02T03:04:05Z"}
	s.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: "v1", Kind: "Service", Name: service, UID: uid(1), Controller: new(true), BlockOwnerDeletion: new(true),
	}}
	for i, ip := range ips {
		ready := i != notReady
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{ip},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready, Terminating: new(false)},
			NodeName:   new(node(i)), Zone: new(zoneOf(i)),
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: podName(service, i), UID: uid(i)},
		})
	}
	return s
}

func podName(of string, i int) string { return fmt.Sprintf("%s-7d4b9c6f5d-%05d", of, i) }

func uid(i int) types.UID { return types.UID(fmt.Sprintf("7f9f0f4f-3c41-4c4c-9c06-%012x", i)) }

// sliceOf is the slice of the i-th service. The endpoint at notReady is not; -1 for none.
func sliceOf(i, notReady int) *discoveryv1.EndpointSlice {
	return slice(space(i), serviceName(i), serviceName(i)+"-x7k2p", sliceIPs(i), notReady)
}

func sliceIPs(i int) (ips []string) {
	for j := range *perSlice {
		ips = append(ips, endpointIP(i, j))
	}
	return ips
}

func podIP(i int) string { return fmt.Sprintf("11.%d.%d.%d", i>>16, i>>8&255, i&255) }

func pod(i int) *corev1.Pod {
	of := serviceName(i / 2)
	p := &corev1.Pod{
		ObjectMeta: objectMeta(space(i/2), podName(of, i), "kubelet", "status.podIPs"),
		Spec: corev1.PodSpec{
			NodeName: node(i), ServiceAccountName: "default", DNSPolicy: "ClusterFirst", SchedulerName: "default-scheduler",
			Containers: []corev1.Container{container("main"), container("proxy")},
			Volumes: []corev1.Volume{{Name: "kube-api-access-x7k2p", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{
					{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: new(int64(3607)), Path: "token"}},
					{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}}},
				}}}}},
			Tolerations: []corev1.Toleration{{Key: "node.kubernetes.io/not-ready", Operator: "Exists", Effect: "NoExecute", TolerationSeconds: new(int64(300))}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, HostIP: "10.0.0.1", PodIP: podIP(i), PodIPs: []corev1.PodIP{{IP: podIP(i)}}, QOSClass: "Burstable",
		},
	}
	p.Labels = map[string]string{"app.kubernetes.io/name": of, "pod-template-hash": "7d4b9c6f5d", "app.kubernetes.io/part-of": "checkout"}
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: of + "-7d4b9c6f5d", UID: uid(i), Controller: new(true)}}
	for _, t := range []corev1.PodConditionType{"PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: t, Status: "True", LastTransitionTime: p.CreationTimestamp})
	}
	for _, c := range p.Spec.Containers {
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Ready: true, Image: c.Image, ImageID: c.Image + "@sha256:" + managed[:64], ContainerID: "containerd://" + managed[:64],
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: p.CreationTimestamp}},
		})
	}
	return p
}

func container(name string) corev1.Container {
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080), Scheme: "HTTP"}}, TimeoutSeconds: 1, PeriodSeconds: 10}
	c := corev1.Container{
		Name: name, Image: "example.com/checkout/" + name + ":1.2.3", ImagePullPolicy: "IfNotPresent", TerminationMessagePath: "/dev/termination-log",
		Ports:         []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: "TCP"}},
		Resources:     corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")}},
		VolumeMounts:  []corev1.VolumeMount{{Name: "kube-api-access-x7k2p", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}},
		LivenessProbe: probe, ReadinessProbe: probe,
	}
	for i := range 8 {
		c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("CHECKOUT_SETTING_%d", i), Value: "a value of some length"})
	}
	return c
}
