package ropewalk

import (
	"context"
	"net/netip"
	"strings"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/nonwriter"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

// AutoPath implements autopath.AutoPather for the autopath plugin: the search path of the pod that asks, ending in the
// empty string; nil if that is not known.
func (h *Ropewalk) AutoPath(state request.Request) []string {
	zone := plugin.Zones(h.zones).Matches(state.Name())
	pod := h.podOf(state)
	if zone == "" || pod == nil {
		return nil
	}
	svc := "svc." + strings.TrimPrefix(zone, ".")
	search := append([]string{pod.Namespace + "." + svc, svc, zone}, h.hostSearch...)
	return append(search, "")
}

// podOf returns the pod that asks, nil if it is none that is known.
func (h *Ropewalk) podOf(state request.Request) *zone.Pod {
	ip, err := netip.ParseAddr(state.IP())
	if err != nil {
		return nil
	}
	return h.view().PodAt(ip.Unmap().WithZone(""))
}

// searchPath answers a query for a name at the first step of its asker's search path with what the first step that
// leads anywhere gives, so that the asker need not take the others. It returns nil if the query is none of that kind, or
// if it leads nowhere.
func (h *Ropewalk) searchPath(ctx context.Context, state request.Request) *dns.Msg {
	if t := state.QType(); t != dns.TypeA && t != dns.TypeAAAA {
		return nil
	}
	if state.Req.Opcode != dns.OpcodeQuery || state.QClass() != dns.ClassINET {
		return nil
	}
	if !strings.Contains(state.Name(), ".svc.") {
		return nil
	}
	search := h.AutoPath(state)
	if len(search) == 0 || len(state.Name()) <= len(search[0]) || !dns.IsSubDomain(search[0], state.Name()) {
		return nil
	}
	base := state.QName()[:len(state.QName())-len(search[0])]
	for i, suffix := range search {
		m := h.resolve(ctx, state, base+suffix)
		if m == nil || m.Rcode == dns.RcodeNameError {
			continue
		}
		if m.Rcode != dns.RcodeSuccess {
			return nil // a step that failed must not be skipped
		}
		if i > 0 {
			autopathSuccess.Inc()
		}
		return rename(m, state)
	}
	return nil
}

// resolve answers a query for another name: as here and, for what is not ours, as this server does, with all plugins
// that stand in front of this one, or in another server block. It returns nil if there can be no such name.
func (h *Ropewalk) resolve(ctx context.Context, state request.Request, name string) *dns.Msg {
	failure := &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeServerFailure}}
	if plugin.Zones(h.zones).Matches(strings.ToLower(name)) == "" {
		if m, err := h.upstream.Lookup(ctx, state, name, state.QType()); err == nil && m != nil {
			return m
		}
		return failure
	}
	asked := state.NewWithQuestion(name, state.QType())
	m, code := h.answer(ctx, asked)
	if code != passOn {
		return m
	}
	nw := nonwriter.New(state.W)
	code, err := plugin.NextOrFailure(h.Name(), h.Next, ctx, nw, asked.Req)
	if err != nil || !plugin.ClientWrite(code) || nw.Msg == nil {
		return failure
	}
	return nw.Msg
}

// rename makes m, an answer for another name, the reply to state: with a CNAME record from the one to the other.
func rename(m *dns.Msg, state request.Request) *dns.Msg {
	reply := new(dns.Msg).SetReply(state.Req)
	reply.Authoritative, reply.RecursionAvailable = m.Authoritative, m.RecursionAvailable
	reply.Truncated, reply.Rcode = m.Truncated, m.Rcode
	reply.Answer, reply.Ns = m.Answer, m.Ns
	if len(m.Answer) == 0 {
		return reply
	}
	if first := m.Answer[0].Header(); !strings.EqualFold(first.Name, state.QName()) {
		reply.Answer = append([]dns.RR{&dns.CNAME{
			Hdr:    dns.RR_Header{Name: state.QName(), Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: first.Ttl},
			Target: first.Name,
		}}, m.Answer...)
	}
	return reply
}
