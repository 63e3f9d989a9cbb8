package ropewalk

import (
	"context"
	"fmt"
	"maps"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/bufsize"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/coredns/coredns/plugin/pkg/edns"
	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/fastpath"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

// fastMode is what the option fastpath says.
type fastMode struct {
	off bool
	// asked says that the operator asked for the fast path, rather than got it by default.
	asked bool
	// sockets is how many there are to be; 0 leaves it to us.
	sockets int
}

// count returns the number of sockets: one for each processor that Go uses, unless the operator has another wish.
func (m fastMode) count() int {
	if m.sockets > 0 {
		return m.sockets
	}
	return min(runtime.GOMAXPROCS(0), maxFastSockets)
}

const (
	// maxFastSockets bounds the option. Each socket has 260 KiB of buffers.
	maxFastSockets = 256
	// maxUDPSize bounds answers over UDP, whatever the client says it takes; the rest is for TCP. Nobody who means well asks
	// for more (RFC 9715 has 1400), while an answer of 64 KiB is a thousand times the query of who does not, and takes
	// milliseconds to make.
	maxUDPSize = 4096
)

// relayHandler hands all queries to a server.
func relayHandler(s *dnsserver.Server) *fastpath.Handler {
	internals, _ := serverInternals(s) // an error has no more effect than that opcodes are as usual
	return &fastpath.Handler{
		Serve:       func(q *fastpath.Query) { serveMiss(s, internals.accept, q) },
		NewObserver: func() fastpath.Observer { return &observer{} },
		Dropped:     func() { fastDropped.Inc() },
		Panicked: func(reason any) {
			log.Errorf("Recovered from panic in the fast path: %q %v\n%s", s.Addr, reason, debug.Stack())
			vars.Panic.Inc()
		},
	}
}

// fastHandler works out what of a server's queries can be answered ahead of its plugins: on says whether any can, and the
// log why not. sockets is how many there should be.
func fastHandler(s *dnsserver.Server) (h *fastpath.Handler, on bool, sockets int) {
	h = relayHandler(s)
	internals, err := serverInternals(s)
	if err != nil {
		log.Warningf("fastpath is off at %s: this version of CoreDNS is not known to it: %v", s.Addr, err)
		return h, false, 0
	}
	if internals.proxied {
		log.Infof("fastpath is off at %s: the plugin proxyproto has to see every packet", s.Addr)
		return h, false, 0
	}
	var (
		zones      = slices.Sorted(maps.Keys(internals.zones))
		wires      [][]byte
		responders []*fastpath.Responder
		configs    []*dnsserver.Config
		fast       []string
	)
	for _, z := range zones {
		r, mode := zoneResponder(z, internals.zones[z], s.Addr)
		if r != nil {
			fast = append(fast, z)
			sockets = max(sockets, mode.count())
		}
		wires = append(wires, wireZone(z))
		responders = append(responders, r)
		configs = append(configs, internals.zones[z][0])
	}
	if len(fast) == 0 {
		return h, false, 0
	}
	h.Zones, h.Responders = fastpath.NewSuffixes(wires...), responders
	h.NewObserver = func() fastpath.Observer { return newObserver(s.Addr, configs) }
	log.Infof("fastpath is on for %s at %s with %d sockets", strings.Join(fast, " "), s.Addr, sockets)
	return h, true, sockets
}

// zoneResponder returns what answers for one zone of a server; nil if that is for its plugins alone.
func zoneResponder(z string, configs []*dnsserver.Config, addr string) (*fastpath.Responder, fastMode) {
	h, ok := configs[0].Handler(pluginName).(*Ropewalk)
	if !ok || h.fast.off {
		return nil, fastMode{}
	}
	r, err := h.responder(configs)
	if err != nil {
		logf := log.Infof
		if h.fast.asked {
			logf = log.Warningf
		}
		logf("fastpath is off for %s at %s: %v", z, addr, err)
		return nil, fastMode{}
	}
	return r, h.fast
}

// wireZone returns a zone's name in wire format.
func wireZone(z string) []byte {
	buf := make([]byte, 256)
	n, err := dns.PackDomainName(z, buf, 0, nil, false)
	if err != nil {
		return nil // no name in a query is that zone's
	}
	return buf[:n]
}

// responder returns what answers for a server block in its plugin chain's place, or an error that says which plugin does
// not allow it.
func (h *Ropewalk) responder(configs []*dnsserver.Config) (*fastpath.Responder, error) {
	if len(configs) > 1 || len(configs[0].FilterFuncs) > 0 {
		return nil, fmt.Errorf("the plugin view has to see every query")
	}
	r := &fastpath.Responder{
		View:          h.view,
		Query:         zone.Query{Origins: h.origins, Local: h.local},
		PositiveOnly:  h.autopath,
		UDPSize:       maxUDPSize,
		EchoesOptions: edns.SupportedOption(dns.EDNS0COOKIE) || edns.SupportedOption(dns.EDNS0PADDING),
	}
	var through [][]byte
	for _, z := range h.Fall.Zones {
		through = append(through, wireZone(z))
	}
	r.Fallthrough = fastpath.NewSuffixes(through...)
	ahead, err := handlersAhead(configs[0])
	if err != nil {
		return nil, err
	}
	for _, p := range ahead {
		switch name := p.Name(); name {
		case "prometheus":
			// The fast path counts for it, with the zones that it knows at the start: not those that the plugin auto adds.
		case "errors", "metadata", "cancel":
			// Nothing fails here or takes long, and plugins that want metadata keep the fast path off.
		case "cache":
			// A ready-made answer is no slower than a cached one, and newer, also where the cache would serve stale records
			// or fetch ahead. Its metrics count misses of the fast path alone. TTLs are those of the records: they do not run
			// down, and cache's own bounds (at least 5 s, at most what its line says) do not change them.
		case "transfer", "chaos", "any", "nsid":
			// Their queries are of a kind that is left to the plugins: AXFR, class CH, ANY, the option NSID.
		case "autopath":
			// What exists is answered here, and not counted as a success of autopath.
			r.PositiveOnly = true
		case "bufsize":
			b, ok := p.(bufsize.Bufsize)
			if !ok {
				return nil, fmt.Errorf("the plugin bufsize is not known in this form")
			}
			r.UDPSize = uint16(min(b.Size, maxUDPSize))
		case "loadbalance":
			if !isRoundRobin(p) { // the order of ready-made answers goes round, too
				return nil, fmt.Errorf("the plugin loadbalance with a policy other than round_robin has to see every answer")
			}
		default:
			return nil, fmt.Errorf("the plugin %s has to see every query", name)
		}
	}
	return r, nil
}

// serveMiss does with a query what miekg/dns does with one from a server's own socket, but for two things that bound what
// a stranger gets for a packet: what it rejects it answers with a header alone, and what a client says it takes is cut.
func serveMiss(s *dnsserver.Server, accept dns.MsgAcceptFunc, q *fastpath.Query) {
	w := &responseWriter{q: q, secrets: s.TsigSecret}
	m := new(dns.Msg)
	m.Unpack(q.Msg[:fastpath.HeaderLen])
	action := accept(header(q.Msg))
	if action == dns.MsgAccept && m.Unpack(q.Msg) != nil {
		action = dns.MsgReject
	}
	switch action {
	case dns.MsgIgnore:
		return
	case dns.MsgReject, dns.MsgRejectNotImplemented:
		opcode := m.Opcode
		m.SetRcodeFormatError(m)
		m.Zero = false
		if action == dns.MsgRejectNotImplemented {
			m.Opcode, m.Rcode = opcode, dns.RcodeNotImplemented
		}
		m.Question, m.Ns, m.Answer, m.Extra = nil, nil, nil, nil
		w.WriteMsg(m)
		return
	}
	w.verify(m)
	if opt := m.IsEdns0(); opt != nil && opt.UDPSize() > maxUDPSize {
		opt.SetUDPSize(maxUDPSize)
	}
	ctx := context.WithValue(context.Background(), dnsserver.Key{}, s)
	ctx = context.WithValue(ctx, dnsserver.LoopKey{}, 0)
	s.ServeDNS(ctx, w, m)
}

// header reads a header, as far as the decision whether to accept a message needs it.
func header(b []byte) dns.Header {
	at := func(i int) uint16 { return uint16(b[i])<<8 | uint16(b[i+1]) }
	return dns.Header{Id: at(0), Bits: at(2), Qdcount: at(4), Ancount: at(6), Nscount: at(8), Arcount: at(10)}
}

// responseWriter is the way back to the client of a query that the fast path handed on.
type responseWriter struct {
	q *fastpath.Query
	// What follows is about a signature (RFC 8945), which the plugin tsig asks for: keys by their names, whether the query's
	// is good, and the last one that the next is to be made from.
	secrets    map[string]string
	tsigStatus error
	mac        string
	timersOnly bool
}

// verify finds out about a query's signature.
func (w *responseWriter) verify(m *dns.Msg) {
	t := m.IsTsig()
	if t == nil {
		return
	}
	w.mac = t.MAC
	w.tsigStatus = dns.ErrSecret
	if secret, ok := w.secrets[t.Hdr.Name]; ok {
		w.tsigStatus = dns.TsigVerify(w.q.Msg, secret, "", false)
	}
}

// pack returns a message as it is to be sent, signed if it has a record for that.
func (w *responseWriter) pack(m *dns.Msg) (msg []byte, err error) {
	t := m.IsTsig()
	if t == nil {
		return m.Pack()
	}
	secret, ok := w.secrets[t.Hdr.Name]
	if !ok && t.Error == dns.RcodeSuccess { // answers that refuse a key are not signed
		return nil, dns.ErrSecret
	}
	msg, w.mac, err = dns.TsigGenerate(m, secret, w.mac, w.timersOnly)
	return msg, err
}

// LocalAddr implements dns.ResponseWriter.
func (w *responseWriter) LocalAddr() net.Addr { return w.q.LocalAddr() }

// RemoteAddr implements dns.ResponseWriter.
func (w *responseWriter) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(w.q.From) }

// WriteMsg implements dns.ResponseWriter.
func (w *responseWriter) WriteMsg(m *dns.Msg) error {
	msg, err := w.pack(m)
	if err != nil {
		return err
	}
	return w.q.Reply(msg)
}

// Write implements dns.ResponseWriter.
func (w *responseWriter) Write(b []byte) (int, error) {
	if err := w.q.Reply(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close implements dns.ResponseWriter. The socket is everybody's.
func (w *responseWriter) Close() error { return nil }

// TsigStatus implements dns.ResponseWriter.
func (w *responseWriter) TsigStatus() error { return w.tsigStatus }

// TsigTimersOnly implements dns.ResponseWriter.
func (w *responseWriter) TsigTimersOnly(b bool) { w.timersOnly = b }

// Hijack implements dns.ResponseWriter.
func (w *responseWriter) Hijack() {}
