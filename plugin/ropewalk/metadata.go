package ropewalk

import (
	"context"
	"errors"
	"strings"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// Metadata implements metadata.Provider with the labels that CoreDNS's kubernetes plugin gives, under ropewalk/.
func (h *Ropewalk) Metadata(ctx context.Context, state request.Request) context.Context {
	set := func(label, value string) {
		metadata.SetValueFunc(ctx, pluginName+"/"+label, func() string { return value })
	}
	if pod := h.podOf(state); pod != nil {
		set("client-namespace", pod.Namespace)
		set("client-pod-name", pod.Name)
		for k, v := range pod.Labels {
			set("client-label/"+k, v)
		}
	}
	zone := plugin.Zones(h.zones).Matches(state.Name())
	if zone == "" {
		return ctx
	}
	multi := h.isMulti(zone)
	p, err := parseParts(state.Name(), zone, multi, h.zonal)
	if err != nil {
		set("parse-error", err.Error())
		return ctx
	}
	set("port-name", p.port)
	set("protocol", p.protocol)
	set("endpoint", p.endpoint)
	if multi {
		set("cluster", p.cluster)
	}
	if h.zonal {
		set("zone", p.zone)
	}
	set("service", p.service)
	set("namespace", p.namespace)
	set("kind", p.kind)
	return ctx
}

// parts are what the labels of a name stand for.
type parts struct{ port, protocol, endpoint, cluster, zone, service, namespace, kind string }

var errInvalidName = errors.New("invalid query name")

// parseParts reads a name, in lower case, as one of
//
//	[ENDPOINT[.CLUSTER]|_PORT._PROTOCOL|TOPOZONE.pin|prefer._zone].SERVICE.NAMESPACE.svc|pod.ZONE
//
// or as an end of that.
func parseParts(name, zone string, multi, zonal bool) (p parts, err error) {
	base, err := dnsutil.TrimZone(name, zone)
	if err != nil || base == "" || base == "svc" || base == "pod" {
		return p, nil
	}
	labels := dns.SplitDomainName(base)
	take := func() (l string) {
		if n := len(labels); n > 0 {
			l, labels = labels[n-1], labels[:n-1]
		}
		return l
	}
	if p.kind = take(); p.kind != "svc" && p.kind != "pod" {
		return p, errInvalidName
	}
	p.namespace, p.service = take(), take()
	switch n := len(labels); {
	case n == 1:
		p.endpoint = labels[0]
	case n == 2 && multi && labels[0][0] != '_' && labels[1][0] != '_':
		p.endpoint, p.cluster = labels[0], labels[1]
	case n == 2:
		p.port, p.protocol = strings.TrimPrefix(labels[0], "_"), strings.TrimPrefix(labels[1], "_")
	case n > 2:
		directive := labels[n-2]
		if !zonal || multi || labels[n-1] != "_zone" || p.kind != "svc" || directive != "pin" && directive != "prefer" {
			return p, errInvalidName
		}
		p.zone = strings.Join(labels[:n-2], ".")
	}
	return p, nil
}
