package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/env"
	"github.com/ropewalk-net/ropewalk/cluster/manifests"
)

// plan is what there is to be, of a cluster's objects.
type plan struct {
	nodes []*node
	// outside are endpoints that are no pods.
	outside map[netip.Addr]ports
	// dns is the address of the service that pods' resolv.conf names.
	dns netip.Addr
}

type node struct {
	name  string
	addrs []netip.Addr
	pods  []*pod
}

type pod struct {
	namespace, name, uid, hostname string
	addrs                          []netip.Addr
	ports                          ports // of TCP
	env                            []string
	dns                            bool // it is an endpoint of the cluster's DNS
}

type ports map[int32]bool

func (p ports) sorted() []int32 { return slices.Sorted(maps.Keys(p)) }

// The service of the cluster's DNS, as everywhere.
var dnsService = cluster.Key{Namespace: "kube-system", Name: "kube-dns"}

// read makes the plan of a directory of manifests.
func read(dir string) (*plan, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	var objects []manifests.Object
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		more, err := manifests.Parse(f, text)
		if err != nil {
			return nil, err
		}
		objects = append(objects, more...)
	}
	c, err := manifests.Fill(objects, nil)
	if err != nil {
		return nil, err
	}
	return planOf(c)
}

func planOf(c *manifests.Cluster) (*plan, error) {
	view, err := manifests.Values(c, cluster.Interest{Kinds: cluster.KindsOf(cluster.KindService)})
	if err != nil {
		return nil, err
	}
	services := func(yield func(*cluster.Service) bool) {
		for _, o := range view[cluster.KindService] {
			if !yield(o.(*cluster.Service)) {
				return
			}
		}
	}
	p := &plan{}
	dns, _ := view[cluster.KindService][dnsService].(*cluster.Service)
	if dns == nil || len(dns.ClusterIPs) == 0 {
		return nil, fmt.Errorf("there is no service %s with an address", dnsService)
	}
	p.dns = dns.ClusterIPs[0]
	listening, isDNS := endpoints(c.Slices)
	p.outside = maps.Clone(listening)

	byName := map[string]*node{}
	for _, o := range c.Nodes {
		n := &node{name: o.Name}
		for _, a := range o.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				n.addrs = append(n.addrs, netip.MustParseAddr(a.Address)) // it has been checked
			}
		}
		if len(n.addrs) == 0 {
			return nil, fmt.Errorf("node %s has no InternalIP", o.Name)
		}
		p.nodes, byName[o.Name] = append(p.nodes, n), n
	}
	for _, o := range c.Pods {
		n := byName[o.Spec.NodeName]
		if n == nil || o.Spec.HostNetwork || len(o.Status.PodIPs) == 0 || o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
			continue
		}
		d := &pod{namespace: o.Namespace, name: o.Name, uid: string(o.UID), hostname: o.Spec.Hostname, ports: ports{}}
		if d.hostname == "" {
			d.hostname = o.Name[:min(len(o.Name), 63)]
		}
		for _, c := range o.Spec.Containers {
			for _, port := range c.Ports {
				d.ports[port.ContainerPort] = true
			}
		}
		for _, ip := range o.Status.PodIPs {
			a := netip.MustParseAddr(ip.IP)
			d.addrs = append(d.addrs, a)
			d.dns = d.dns || isDNS[a]
			maps.Copy(d.ports, listening[a])
			delete(p.outside, a)
		}
		d.env = append([]string{"PATH=" + path, "HOME=/root", "HOSTNAME=" + d.hostname},
			env.Variables(services, d.namespace, o.Spec.EnableServiceLinks == nil || *o.Spec.EnableServiceLinks)...)
		n.pods = append(n.pods, d)
	}
	if len(p.nodes) == 0 {
		return nil, errors.New("there are no nodes")
	}
	return p, nil
}

// endpoints returns where slices say that somebody listens on TCP, and who of them is the cluster's DNS.
func endpoints(all []*discoveryv1.EndpointSlice) (listening map[netip.Addr]ports, dns map[netip.Addr]bool) {
	listening, dns = map[netip.Addr]ports{}, map[netip.Addr]bool{}
	for _, s := range all {
		if s.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, e := range s.Endpoints {
			for _, text := range e.Addresses {
				a := netip.MustParseAddr(text) // it has been checked
				if listening[a] == nil {
					listening[a] = ports{}
				}
				for _, p := range s.Ports {
					if p.Port != nil && *p.Protocol == corev1.ProtocolTCP {
						listening[a][*p.Port] = true
					}
				}
				if s.Namespace == dnsService.Namespace && s.Labels[discoveryv1.LabelServiceName] == dnsService.Name {
					dns[a] = true
				}
			}
		}
	}
	return listening, dns
}
