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
	KindConfigMap

	// NumKinds is the number of kinds; kinds are 0 to NumKinds-1.
	NumKinds
)

var kindNames = [NumKinds]string{"Namespace", "Service", "EndpointSlice", "Pod", "Node", "ServiceCIDR", "ServiceImport", "ConfigMap"}

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

// Object is one of the values of this package: *Namespace, *Service, *Slice, *Pod, *Node, *ServiceCIDR,
// *ServiceImport or *ConfigMap.
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
	// PublishNotReady is spec.publishNotReadyAddresses. The slice controller applies it before slices are written.
	PublishNotReady bool
	// ClusterIPs are the virtual addresses, the primary one first. It is empty for headless services, for ExternalName
	// services, and for a service that has not been given an address yet.
	ClusterIPs []netip.Addr
	// ExternalName is the name an ExternalName service stands for, as it is written.
	ExternalName string
	// Ports may be empty.
	Ports []ServicePort
	// Proxy is nil unless the Interest asks for Proxy, and nil for services without an address of their own, which no proxy
	// serves: headless ones, those of type ExternalName, and those that have not been given one yet.
	Proxy *ServiceProxy `json:",omitempty"`
}

// ServicePort is one of a Service's ports.
type ServicePort struct {
	// Name is empty for the only port of a service that does not name it.
	Name     string
	Protocol Protocol
	Port     uint16
	// NodePort is the port on every node, 0 if there is none. It is 0 unless the Interest asks for Proxy.
	NodePort uint16 `json:",omitempty"`
}

// ServiceProxy is what a proxy of services on a node makes its rules of, besides addresses and ports. A service of which
// ClusterIPs are of one family is of that family only: the addresses and node ports of the other one are not its own. Where to
// prefer what is near (spec.trafficDistribution) is in the Hints of the slices already.
type ServiceProxy struct {
	// ExternalIPs is spec.externalIPs, each once: addresses that other routers lead to the nodes. Left out are those that the
	// API refuses because they mean something on every node (unspecified, loopback, link-local).
	ExternalIPs []netip.Addr
	// LoadBalancerIPs are the addresses of status.loadBalancer.ingress, each once, that packets still have when they come to a
	// node: those of the mode VIP, or of none (KEP-1860). Those of the mode Proxy are the load balancer's own.
	LoadBalancerIPs []netip.Addr
	// SourceRanges says who may send to LoadBalancerIPs: for each family, if there is a range of it, sources in one of them
	// alone. It is spec.loadBalancerSourceRanges, but for a family that has a range of length 0, which allows all, and is left
	// out. Where no range of a family is left because one cannot be read, LoadBalancerIPs has none of that family either: a
	// restriction that is lost should not open what it was for.
	SourceRanges []netip.Prefix
	// Affinity is for how long a client that has come back is sent to where it was sent before (sessionAffinity ClientIP), 0 if
	// it is not. The API has whole seconds of it, at most a day, and DefaultAffinity where there is no number.
	Affinity time.Duration
	// InternalLocal and ExternalLocal say that traffic from inside, and to NodePorts, ExternalIPs and LoadBalancerIPs, goes to
	// endpoints on its node alone (internalTrafficPolicy, KEP-2086, and externalTrafficPolicy). ExternalLocal is false for
	// services that nothing outside can reach, whatever is written.
	InternalLocal, ExternalLocal bool
	// HealthCheckNodePort is where load balancers ask a node whether it has endpoints; 0 if the service has none, which it needs
	// only as a LoadBalancer that is ExternalLocal.
	HealthCheckNodePort uint16
}

// DefaultAffinity is how long clients stay with their endpoint if a service that wants it does not say.
const DefaultAffinity = 10800 * time.Second

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
	// Proxy is nil unless the Interest asks for Proxy.
	Proxy *SliceProxy `json:",omitempty"`
}

// SliceProxy is what a proxy of services needs to know of endpoints besides.
type SliceProxy struct {
	// Endpoints has one element for each of Slice.Endpoints, in the same order.
	Endpoints []EndpointProxy
}

// EndpointProxy is what a proxy of services needs to know of an Endpoint.
type EndpointProxy struct {
	// Serving is the condition serving, with absent taken for true, as the API asks consumers to; Terminating is the condition
	// terminating. Where no endpoint is Ready, those that are serving while they terminate are better than none (KEP-1669).
	Serving, Terminating bool
	// Extra says that this is not the first address of its endpoint. Others have no meaning in the API, and kube-proxy does not
	// look at them.
	Extra bool
	// Hints is nil if there are none. Endpoints share it.
	Hints *Hints `json:",omitempty"`
}

// Hints say who should prefer an endpoint: the zones and nodes that are named (KEP-2433, KEP-3015). The API takes at most 8 of
// each. They are of use only where every ready endpoint of a service has some. A name that is empty is left out, so that it
// cannot mean nodes that have no zone.
type Hints struct {
	ForZones []string `json:",omitempty"`
	ForNodes []string `json:",omitempty"`
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
	// Hosts is nil unless the Interest asks for PodHosts.
	Hosts *PodHosts
}

// PodHosts is what the kubelet makes a pod's hosts file and environment of, besides its name and addresses.
type PodHosts struct {
	// UID is metadata.uid, fit to be the name of a directory. The kubelet's directory for the pod is called so; that of a static
	// pod is not, of which an API server knows the mirror alone, with a UID of its own.
	UID string
	// Hostname, Subdomain and HostnameOverride (KEP-4762) are of the spec; empty if it has none.
	Hostname, Subdomain, HostnameOverride string
	// HostNetwork says that the pod is on the node's network.
	HostNetwork bool
	// Aliases is spec.hostAliases in order.
	Aliases []HostAlias
	// NoServiceLinks says that spec.enableServiceLinks is false.
	NoServiceLinks bool
	// Annotations are those whose keys begin with AnnotationPrefix; nil if there are none.
	Annotations map[string]string
}

// AnnotationPrefix is what Ropewalk's own labels and annotations begin with.
const AnnotationPrefix = "ropewalk.dev/"

// Own returns the labels or annotations in m whose keys begin with AnnotationPrefix, nil if there are none.
func Own(m map[string]string) map[string]string {
	var own map[string]string
	for k, v := range m {
		if strings.HasPrefix(k, AnnotationPrefix) {
			if own == nil {
				own = map[string]string{}
			}
			own[k] = v
		}
	}
	return own
}

// HostAlias is an entry of spec.hostAliases, which the API has checked: a line of a hosts file.
type HostAlias struct {
	// IP is the address as it is written.
	IP        string   `json:"ip"`
	Hostnames []string `json:"hostnames,omitempty"`
}

// ConfigMap is a v1 ConfigMap.
type ConfigMap struct {
	Namespace, Name string
	// Labels are those whose keys begin with AnnotationPrefix.
	Labels map[string]string
	// Data is the object's data; binaryData is left aside.
	Data map[string]string
}

// Node is a v1 Node.
type Node struct {
	Name string
	// PodCIDRs is spec.podCIDRs in order.
	PodCIDRs []netip.Prefix
	// Net is nil unless the Interest asks for NodeNet.
	Net *NodeNet `json:",omitempty"`
}

// NodeNet is where a node is.
type NodeNet struct {
	// InternalIPs and ExternalIPs are those of status.addresses in order. What Kubernetes takes for a node's own address of a
	// family is the first one of that family in InternalIPs, else in ExternalIPs.
	InternalIPs, ExternalIPs []netip.Addr
	// Zone is the label topology.kubernetes.io/zone, empty if there is none.
	Zone string
	// Leaving says that the node is on its way out, so that no new connections are to be led to it from outside (KEP-3836): it is being
	// deleted, or has the taint ToBeDeletedByClusterAutoscaler.
	Leaving bool `json:",omitempty"`
	// Created is when the API server has made the object (metadata.creationTimestamp, in UTC): nobody else can say so. Zero if that is not known.
	Created time.Time `json:",omitzero"`
}

// LeavingTaint is what the cluster autoscaler marks nodes with that it is about to delete.
const LeavingTaint = "ToBeDeletedByClusterAutoscaler"

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
func (*ConfigMap) Kind() Kind     { return KindConfigMap }

func (o *Namespace) Key() Key     { return Key{Name: o.Name} }
func (o *Service) Key() Key       { return Key{o.Namespace, o.Name} }
func (o *Slice) Key() Key         { return Key{o.Namespace, o.Name} }
func (o *Pod) Key() Key           { return Key{o.Namespace, o.Name} }
func (o *Node) Key() Key          { return Key{Name: o.Name} }
func (o *ServiceCIDR) Key() Key   { return Key{Name: o.Name} }
func (o *ServiceImport) Key() Key { return Key{o.Namespace, o.Name} }
func (o *ConfigMap) Key() Key     { return Key{o.Namespace, o.Name} }
