// Package ropewalk is a CoreDNS plugin that serves a Kubernetes cluster's names from ready-made answers. It takes the
// place of CoreDNS's kubernetes plugin: same options, same answers, but for those listed in docs/dns-differences.md.
//
// The work is done elsewhere: cluster/apiserver and cluster/manifests tell what there is, package zone makes answers of
// it. This package is what CoreDNS sees: configuration, the handler, and the interfaces that other plugins look for.
package ropewalk

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/fall"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

const pluginName = "ropewalk"

// Upstream resolves names that are outside of the cluster's zones.
type Upstream interface {
	Lookup(ctx context.Context, state request.Request, name string, typ uint16) (*dns.Msg, error)
}

// Ropewalk is the handler in a server block's plugin chain.
type Ropewalk struct {
	Next plugin.Handler
	Fall fall.F

	zones   []string
	multi   []string
	origins *zone.Origins
	zonal   bool
	zone    *zone.Zone
	keeper  *keeper // nil without a snapshot
	feed    *feed
	// inst is the instance of CoreDNS that this is part of, from its start on.
	inst *caddy.Instance
	// gone says that the instance has been told to stop. It belongs to fronts.
	gone     bool
	local    []netip.Addr
	upstream Upstream
	// autopath says that search paths are completed here; hostSearch is what the nodes' resolv.conf adds to them.
	autopath   bool
	hostSearch []string
	fast       fastMode
}

// Name implements plugin.Handler.
func (*Ropewalk) Name() string { return pluginName }

// ServeDNS implements plugin.Handler.
func (h *Ropewalk) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := request.Request{W: w, Req: r}
	if h.autopath {
		if m := h.searchPath(ctx, state); m != nil {
			return dns.RcodeSuccess, w.WriteMsg(m)
		}
	}
	m, code := h.answer(ctx, state)
	switch {
	case code == passOn:
		if c, ok := ctx.Value(chasing{}).(*chase); ok && h.Next == nil {
			c.unserved = true
		}
		return plugin.NextOrFailure(h.Name(), h.Next, ctx, w, r)
	case m == nil:
		return code, nil
	}
	if err := w.WriteMsg(m); err != nil {
		w.Close() // or else a TCP client that is gone costs an answer and a line in the log for each query it has left behind
		return dns.RcodeServerFailure, plugin.Error(pluginName, err)
	}
	return dns.RcodeSuccess, nil
}

// view returns what is to be served.
func (h *Ropewalk) view() *zone.View { return newest(h.zone, h.keeper) }

// passOn is what answer returns instead of a code for queries that the next plugin should have.
const passOn = -1

// answer returns the reply to a query, or a nil message and the code to return, or passOn.
func (h *Ropewalk) answer(ctx context.Context, state request.Request) (*dns.Msg, int) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	q := state.Req.Question[0]
	msg, err := h.question((*buf)[:0], state.Req)
	if err != nil {
		return nil, dns.RcodeFormatError
	}
	view := h.view()
	msg, res := view.Answer(msg, zone.Query{
		Type:    q.Qtype,
		Origins: h.origins,
		Limit:   limit(state),
		Rotate:  uint32(state.Req.Id),
		Local:   h.local,
	})
	switch {
	case res.Status == zone.Outside:
		return nil, passOn
	case res.Status == zone.Malformed:
		return nil, dns.RcodeFormatError
	case state.Req.Opcode != dns.OpcodeQuery:
		return nil, dns.RcodeNotImplemented // the server lets NOTIFY in, for the sake of secondary zones
	case q.Qclass != dns.ClassINET, q.Qtype == dns.TypeAXFR, q.Qtype == dns.TypeIXFR:
		return nil, dns.RcodeRefused
	case res.Rcode == dns.RcodeNameError && !res.Aliased && h.Fall.Through(state.Name()):
		return nil, passOn
	}
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil {
		return nil, dns.RcodeServerFailure
	}
	m.Question[0] = q // a copy: the autopath plugin writes to its question while it keeps replies
	if res.Status == zone.Chase {
		h.follow(ctx, state, m, res.Target)
	}
	return m, dns.RcodeSuccess
}

// buffers hold messages while they are made. The largest message is 64 KiB.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, 0, dns.MaxMsgSize)
	return &b
}}

// question writes the header and the question of a reply to r.
func (h *Ropewalk) question(buf []byte, r *dns.Msg) ([]byte, error) {
	buf = append(buf, make([]byte, 12)...)
	binary.BigEndian.PutUint16(buf, r.Id)
	binary.BigEndian.PutUint16(buf[4:], 1)
	buf[2] = byte(r.Opcode) << 3
	if r.Opcode == dns.OpcodeQuery {
		if r.RecursionDesired {
			buf[2] |= 1
		}
		if r.CheckingDisabled {
			buf[3] |= 0x10
		}
	}
	n, err := dns.PackDomainName(r.Question[0].Name, buf[:cap(buf)], len(buf), nil, false)
	if err != nil {
		return nil, err
	}
	buf = binary.BigEndian.AppendUint16(buf[:n], r.Question[0].Qtype)
	return binary.BigEndian.AppendUint16(buf, r.Question[0].Qclass), nil
}

// limit returns how long the reply may be before the server adds its OPT record.
func limit(state request.Request) int {
	n := state.Size()
	if opt := state.Req.IsEdns0(); opt != nil {
		n -= dns.Len(opt)
	}
	return n
}

// maxDepth bounds how often a chase may lead from one zone of this server into another one.
const maxDepth = 16

// chase is on its way in a context, under the key chasing{}.
type chase struct {
	depth int
	// unserved says that the query for the target came back to a server block with nothing behind ropewalk. CoreDNS
	// calls that a failure, though nothing has failed.
	unserved bool
}

type chasing struct{}

// follow adds to m what the target of its last CNAME record resolves to. The code becomes the target's (RFC 6604), but
// where nobody here resolves it, and a client that can is left to do so.
func (h *Ropewalk) follow(ctx context.Context, state request.Request, m *dns.Msg, target []byte) {
	name, _, err := dns.UnpackDomainName(target, 0)
	if err != nil {
		return
	}
	c := &chase{}
	if outer, ok := ctx.Value(chasing{}).(*chase); ok {
		c.depth = outer.depth + 1
	}
	if c.depth == maxDepth {
		m.Answer, m.Rcode = nil, dns.RcodeServerFailure
		return
	}
	next, err := h.upstream.Lookup(context.WithValue(ctx, chasing{}, c), state, name, state.QType())
	if err != nil || next == nil || c.unserved {
		return
	}
	m.Answer = append(m.Answer, next.Answer...)
	m.Truncated = m.Truncated || next.Truncated
	if next.Rcode == dns.RcodeNameError || next.Rcode == dns.RcodeServerFailure {
		m.Rcode = next.Rcode
	}
}
