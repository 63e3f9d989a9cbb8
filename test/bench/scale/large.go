package main

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ropewalk-net/ropewalk/test/standin"
)

// large is a headless service with slices of 100 endpoints.
type large struct {
	name   string
	net    int // second octet of its addresses
	slices int
}

var hundred, huge = large{"hundred", 1, 1}, large{"huge", 2, 100}

func fillLarge(api *standin.Server) {
	fillServices(api)
	for _, l := range []large{hundred, huge} {
		api.Apply(headless(l.name))
		for i := range l.slices {
			api.Apply(l.slice(i, -1))
		}
	}
}

func headless(name string) *corev1.Service {
	s := service(0)
	s.Namespace, s.Name = space(0), name
	return s
}

func (l large) ips(i int) (ips []string) {
	for j := range 100 {
		ips = append(ips, fmt.Sprintf("12.%d.%d.%d", l.net, i, j+1))
	}
	return ips
}

// slice is the i-th one. The endpoint at notReady is not; -1 for none.
func (l large) slice(i, notReady int) *discoveryv1.EndpointSlice {
	return slice(space(0), l.name, fmt.Sprintf("%s-%d", l.name, i), l.ips(i), notReady)
}

// question asks for the name of the first endpoint of the i-th slice.
func (l large) question(i int, ready bool) question {
	ip := l.ips(i)[0]
	q := question{name: fmt.Sprintf("%s.%s.%s.svc.cluster.local.", strings.ReplaceAll(ip, ".", "-"), l.name, space(0))}
	if ready {
		q.want = []string{ip}
	}
	return q
}

// Probes are headless services with one endpoint, which moves.

func probeName(i int) string { return fmt.Sprintf("probe-%d", i) }

func probeService(i int) *corev1.Service { return headless(probeName(i)) }

func probeIP(i, state int) string { return fmt.Sprintf("13.%d.%d.%d", i, state>>8&255, state&255) }

func probeSlice(i, state int) *discoveryv1.EndpointSlice {
	return slice(space(0), probeName(i), probeName(i)+"-x7k2p", []string{probeIP(i, state)}, -1)
}

func probeQuestion(i, state int) question {
	return question{fmt.Sprintf("%s.%s.svc.cluster.local.", probeName(i), space(0)), []string{probeIP(i, state)}}
}
