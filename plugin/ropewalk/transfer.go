package ropewalk

import (
	"encoding/binary"

	"github.com/coredns/coredns/plugin/transfer"
	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

// Transfer implements transfer.Transferer: the zone as it is now, SOA record first and last. A serial that is the
// zone's own or newer yields the SOA record alone.
func (h *Ropewalk) Transfer(name string, serial uint32) (<-chan []dns.RR, error) {
	view := h.view()
	if !view.Transferable(name, h.origins) {
		return nil, transfer.ErrNotAuthoritative
	}
	ask := func(wire []byte, typ uint16) (answer, extra []dns.RR) {
		m := h.transferAnswer(view, wire, typ)
		if m == nil || m.Rcode != dns.RcodeSuccess {
			return nil, nil
		}
		return m.Answer, m.Extra
	}
	apex := make([]byte, 256)
	n, err := dns.PackDomainName(name, apex, 0, nil, false)
	if err != nil {
		return nil, transfer.ErrNotAuthoritative
	}
	apex = apex[:n]
	soa, _ := ask(apex, dns.TypeSOA)
	if len(soa) != 1 {
		return nil, transfer.ErrNotAuthoritative
	}
	ch := make(chan []dns.RR)
	go func() {
		defer close(ch)
		ch <- soa
		if serial != 0 && int32(serial-soa[0].(*dns.SOA).Serial) >= 0 {
			return
		}
		ns, glue := ask(apex, dns.TypeNS)
		ch <- ns
		seen := map[string]bool{}
		for _, rr := range glue {
			if dns.IsSubDomain(name, rr.Header().Name) {
				seen[rr.String()] = true
				ch <- []dns.RR{rr}
			}
		}
		for owner, types := range view.Names(name, h.origins) {
			for _, t := range types {
				rrs, _ := ask(owner, t)
				for _, rr := range rrs {
					// The servers' addresses have been sent as glue; nothing else comes twice.
					if len(seen) == 0 || !seen[rr.String()] {
						ch <- []dns.RR{rr}
					}
				}
			}
		}
		ch <- soa
	}()
	return ch, nil
}

// transferAnswer asks view for what a name has of a type, however much that is.
func (h *Ropewalk) transferAnswer(view *zone.View, wire []byte, typ uint16) *dns.Msg {
	msg := append(make([]byte, 12, 512), wire...)
	msg[5] = 1
	msg = binary.BigEndian.AppendUint16(msg, typ)
	msg = binary.BigEndian.AppendUint16(msg, dns.ClassINET)
	msg, res := view.Answer(msg, zone.Query{Type: typ, Origins: h.origins, Limit: transferLimit, Local: h.local})
	if res.Status != zone.Answered && res.Status != zone.Chase {
		return nil
	}
	if typ != dns.TypeCNAME && res.Aliased {
		return nil // the CNAME record is there under its own type
	}
	m := new(dns.Msg)
	if m.Unpack(msg) != nil {
		return nil
	}
	return m
}

// transferLimit bounds one answer of a transfer, which is cut into messages by the transfer plugin: room for the 65,535
// records that a message can count.
const transferLimit = 1 << 24
