// Package cluster is the vocabulary that Ropewalk's sources and consumers share: what a Kubernetes cluster says about
// names and addresses, as plain values, and the stream of changes that carries them.
//
// A source (cluster/apiserver, cluster/manifests) turns each API object into one of these values as it arrives and
// forgets the object. A consumer (a module) keeps what it serves of them. Values are immutable once they are handed
// over: neither side writes to them, or to the slices and maps they hold, afterwards.
//
// The package is not a cache and not a client. It imports the standard library only.
package cluster

import (
	"net/netip"
	"strings"
	"time"
)

// Kind names a kind of object.
type Kind uint8

// The kinds that sources know.
const (
	KindNamespace Kind = iota
	KindService
	KindSlice
	KindPod
	KindNode
	KindServiceCIDR
	KindServiceImport

	// NumKinds is the number of kinds; kinds are 0 to NumKinds-1.
	NumKinds
)

var kindNames = [NumKinds]string{"Namespace", "Service", "EndpointSlice", "Pod", "Node", "ServiceCIDR", "ServiceImport"}

// String returns the kind as the Kubernetes API spells it.
func (k Kind) String() string {
	if k < NumKinds {
		return kindNames[k]
	}
	return "unknown"
}

// Kinds is a set of kinds.
type Kinds uint16

// KindsOf returns the set of ks.
func KindsOf(ks ...Kind) Kinds {
	var s Kinds
	for _, k := range ks {
		s |= 1 << k
	}
	return s
}

// Has reports whether k is in the set.
func (s Kinds) Has(k Kind) bool { return s&(1<<k) != 0 }

// Key is what an object is called within its kind. Namespace is empty for objects that live in none.
type Key struct{ Namespace, Name string }

// String returns namespace/name, or the name alone where there is no namespace.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// Compare orders keys by namespace, then name: it returns a negative number, 0 or a positive one.
func (k Key) Compare(o Key) int {
	if c := strings.Compare(k.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(k.Name, o.Name)
}

// Object is one of the values of this package: *Namespace, *Service, *Slice, *Pod, *Node, *ServiceCIDR or
// *ServiceImport.
type Object interface {
	Kind() Kind
	Key() Key
}

// Namespace is a namespace that exists, is selected and is not gone.
type Namespace struct {
	Name string
}

// Protocol is a transport protocol as the Kubernetes API spells it, "TCP", "UDP" or "SCTP".
type Protocol string

// The protocols of the Kubernetes API.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// ServiceType is spec.type of a Service.
type ServiceType uint8

// The types of the Kubernetes API. Headless services are of type ClusterIP.
const (
	ClusterIP ServiceType = iota
	NodePort
	LoadBalancer
	ExternalName
)

// Service is a v1 Service.
type Service struct {
	Namespace, Name string
	Type            ServiceType
	// Headless says that spec.clusterIP is "None".
	Headless bool
	// ClusterIPs are the virtual addresses, the primary one first. It is empty for headless services, for ExternalName
	// services, and for a service that has not been given an address yet.
	ClusterIPs []netip.Addr
	// ExternalName is the name an ExternalName service stands for, as it is written.
	ExternalName string
	// Ports may be empty.
	Ports []ServicePort
	// PublishNotReady is spec.publishNotReadyAddresses. The slice controller applies it before slices are written.
	PublishNotReady bool
}

// ServicePort is one of a Service's ports.
type ServicePort struct {
	// Name is empty for the only port of a service that does not name it.
	Name     string
	Protocol Protocol
	Port     uint16
}

// Slice is a discovery/v1 EndpointSlice of IP addresses. Slices of the address type FQDN never become values.
type Slice struct {
	Namespace, Name string
	// Service is the service the slice belongs to (label kubernetes.io/service-name); empty if to none.
	Service string
	// Import and Cluster are the ServiceImport the slice belongs to and the cluster it comes from (labels
	// multicluster.kubernetes.io/service-name and multicluster.kubernetes.io/source-cluster, MCS-API, KEP-1645).
	Import, Cluster string
	// Ports apply to all endpoints. It may be empty.
	Ports []EndpointPort
	// Endpoints holds one entry for each address of each endpoint, in the order of the object.
	Endpoints []Endpoint
	// Triggered is when the change that led to this state of the slice happened (annotation
	// endpoints.kubernetes.io/last-change-trigger-time); zero if the object does not say.
	Triggered time.Time
}

// EndpointPort is one of a Slice's ports.
type EndpointPort struct {
	// Name is the service port's name.
	Name     string
	Protocol Protocol
	// Port is the number on the endpoint, -1 if the object leaves it open ("all ports").
	Port int32
}

// Endpoint is one address behind a service.
type Endpoint struct {
	Addr netip.Addr
	// Written is the address as the object has it, where that is not what Addr.String returns; else empty. (The API
	// accepts IPv6 addresses that are not in canonical form, and an endpoint's name in DNS follows what is written.)
	Written string
	// Hostname is the endpoint's own hostname, empty if it has none.
	Hostname string
	// PodName is targetRef.name, whatever the target's kind; empty if there is none.
	PodName string
	// NodeName and Zone tell where the endpoint is; empty if unknown. Zone is as it is written.
	NodeName, Zone string
	// Ready is the condition ready, with absent taken for true, as the API asks consumers to.
	Ready bool
}

// Pod is a v1 Pod that is neither finished nor being deleted.
type Pod struct {
	Namespace, Name string
	// IPs is status.podIPs in order. Pods on the host's network have the node's.
	IPs []netip.Addr
	// Labels is nil unless the Interest asks for PodLabels.
	Labels map[string]string
}

// Node is a v1 Node.
type Node struct {
	Name string
	// PodCIDRs is spec.podCIDRs in order.
	PodCIDRs []netip.Prefix
}

// ServiceCIDR is a networking.k8s.io ServiceCIDR (KEP-1880).
type ServiceCIDR struct {
	Name  string
	CIDRs []netip.Prefix
}

// ServiceImport is a multicluster.x-k8s.io ServiceImport (MCS-API, KEP-1645).
type ServiceImport struct {
	Namespace, Name string
	Headless        bool
	// IPs are the ClusterSetIPs; empty for headless imports.
	IPs   []netip.Addr
	Ports []ServicePort
}

func (*Namespace) Kind() Kind     { return KindNamespace }
func (*Service) Kind() Kind       { return KindService }
func (*Slice) Kind() Kind         { return KindSlice }
func (*Pod) Kind() Kind           { return KindPod }
func (*Node) Kind() Kind          { return KindNode }
func (*ServiceCIDR) Kind() Kind   { return KindServiceCIDR }
func (*ServiceImport) Kind() Kind { return KindServiceImport }

func (o *Namespace) Key() Key     { return Key{Name: o.Name} }
func (o *Service) Key() Key       { return Key{o.Namespace, o.Name} }
func (o *Slice) Key() Key         { return Key{o.Namespace, o.Name} }
func (o *Pod) Key() Key           { return Key{o.Namespace, o.Name} }
func (o *Node) Key() Key          { return Key{Name: o.Name} }
func (o *ServiceCIDR) Key() Key   { return Key{Name: o.Name} }
func (o *ServiceImport) Key() Key { return Key{o.Namespace, o.Name} }
