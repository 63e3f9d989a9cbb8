package fastpath

import (
	"bytes"
	"testing"

	"github.com/miekg/dns"
)

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ask(name string, typ uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, typ) }

// change applies changes to a message.
func change(m *dns.Msg, f ...func(*dns.Msg)) *dns.Msg {
	for _, f := range f {
		f(m)
	}
	return m
}

func withOption(o ...dns.EDNS0) func(*dns.Msg) {
	return func(m *dns.Msg) {
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = o
	}
}

func TestParse(t *testing.T) {
	const name = "web.shop.svc.cluster.local."
	tests := []struct {
		name  string
		msg   []byte
		plain bool
	}{
		{"A", pack(t, ask(name, dns.TypeA)), true},
		{"root", pack(t, ask(".", dns.TypeNS)), true},
		{"HTTPS", pack(t, ask(name, dns.TypeHTTPS)), true},
		{"EDNS", pack(t, ask(name, dns.TypeA).SetEdns0(1232, true)), true},
		{"cookie", pack(t, change(ask(name, dns.TypeA), withOption(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}))), true},
		{"checking disabled", pack(t, change(ask(name, dns.TypeA), func(m *dns.Msg) { m.CheckingDisabled = true })), true},
		{"empty", nil, false},
		{"header", make([]byte, HeaderLen), false},
		{"response", pack(t, change(ask(name, dns.TypeA), func(m *dns.Msg) { m.Response = true })), false},
		{"notify", pack(t, change(ask(name, dns.TypeA), func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify })), false},
		{"class", pack(t, change(ask(name, dns.TypeA), func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS })), false},
		{"two questions", pack(t, change(ask(name, dns.TypeA), func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) })), false},
		{"answer", pack(t, change(ask(name, dns.TypeA), func(m *dns.Msg) {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: 1}}}
		})), false},
		{"TSIG", pack(t, ask(name, dns.TypeA).SetEdns0(1232, false).SetTsig("key.", dns.HmacSHA256, 300, 1)), false},
		{"EDNS version 1", pack(t, change(ask(name, dns.TypeA), withOption(), func(m *dns.Msg) { m.IsEdns0().SetVersion(1) })), false},
		{"compressed", append(pack(t, ask(".", dns.TypeA))[:HeaderLen], 0xC0, HeaderLen, 0, 1, 0, 1), false},
		{"trailing", append(pack(t, ask(name, dns.TypeA)), 0), false},
		{"cut", pack(t, ask(name, dns.TypeA))[:30], false},
	}
	for _, typ := range []uint16{dns.TypeANY, dns.TypeAXFR, dns.TypeIXFR, dns.TypeDS, dns.TypeOPT, dns.TypeTSIG, dns.TypeNone, dns.TypeMAILB} {
		tests = append(tests, struct {
			name  string
			msg   []byte
			plain bool
		}{dns.Type(typ).String(), pack(t, ask(name, typ)), false})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var q query
			if got := q.parse(test.msg); got != test.plain {
				t.Errorf("got %v, want %v", got, test.plain)
			}
		})
	}
}

// FuzzParse holds that what is taken for a plain query is one to miekg/dns, and says the same there.
func FuzzParse(f *testing.F) {
	f.Add(pack(f, ask("web.shop.svc.cluster.local.", dns.TypeA)))
	f.Add(pack(f, ask("Web.shop.svc.cluster.local.", dns.TypeSRV).SetEdns0(4096, true)))
	f.Add(pack(f, change(ask("a.", dns.TypeA), withOption(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}))))
	f.Add(pack(f, change(ask("a.", dns.TypeA), withOption(&dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_PADDING{Padding: make([]byte, 9)}))))
	f.Fuzz(func(t *testing.T, b []byte) {
		var q query
		if !q.parse(b) || !q.eachOption(harmless) {
			return
		}
		m := new(dns.Msg)
		if err := m.Unpack(b); err != nil {
			t.Fatalf("not to miekg/dns: %v", err)
		}
		if m.Response || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 || len(m.Answer)+len(m.Ns) > 0 {
			t.Fatalf("not plain: %v", m)
		}
		if got := m.Question[0]; got.Qtype != q.qtype || got.Qclass != dns.ClassINET {
			t.Fatalf("question: %v", got)
		}
		name := make([]byte, 256)
		n, err := dns.PackDomainName(m.Question[0].Name, name, 0, nil, false)
		if err != nil || !bytes.Equal(name[:n], b[HeaderLen:q.end-4]) {
			t.Fatalf("name: %q, %v", name[:n], err)
		}
		opt := m.IsEdns0()
		if (opt != nil) != q.edns {
			t.Fatalf("EDNS: %v", opt)
		}
		if q.edns && (opt.UDPSize() != q.udpSize || opt.Do() != (q.ednsFlags&flagDO != 0) || opt.Version() != 0 || dns.Len(opt) != optLen+q.optionsLen) {
			t.Fatalf("OPT: %v, got %+v", opt, q)
		}
	})
}
