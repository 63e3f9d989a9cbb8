package snapshot

import (
	"net/netip"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// slice is a cluster.Slice in a file. Endpoints are most of what there is, and most of their fields are empty: numbers
// for names, and nothing for what is empty, make the file a fourth as long.
type slice struct {
	Namespace, Name string
	Service         string
	Import, Cluster string
	Ports           []cluster.EndpointPort
	Endpoints       []endpoint
	Triggered       time.Time
	Proxy           *cluster.SliceProxy `cbor:",omitempty"`
}

// endpoint has the fields of a cluster.Endpoint, to which it converts.
type endpoint struct {
	Addr     netip.Addr `cbor:"0,keyasint"`
	Written  string     `cbor:"1,keyasint,omitempty"`
	Hostname string     `cbor:"2,keyasint,omitempty"`
	PodName  string     `cbor:"3,keyasint,omitempty"`
	NodeName string     `cbor:"4,keyasint,omitempty"`
	Zone     string     `cbor:"5,keyasint,omitempty"`
	Ready    bool       `cbor:"6,keyasint,omitempty"`
}

func fromSlice(o *cluster.Slice) *slice {
	s := &slice{o.Namespace, o.Name, o.Service, o.Import, o.Cluster, o.Ports, make([]endpoint, len(o.Endpoints)), o.Triggered, o.Proxy}
	for i, e := range o.Endpoints {
		s.Endpoints[i] = endpoint(e)
	}
	return s
}

func (s *slice) toSlice() *cluster.Slice {
	o := &cluster.Slice{
		Namespace: s.Namespace, Name: s.Name, Service: s.Service, Import: s.Import, Cluster: s.Cluster,
		Ports: s.Ports, Endpoints: make([]cluster.Endpoint, len(s.Endpoints)), Triggered: s.Triggered,
		Proxy: s.Proxy,
	}
	for i, e := range s.Endpoints {
		o.Endpoints[i] = cluster.Endpoint(e)
	}
	return o
}
