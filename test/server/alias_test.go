package server

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestExternalNames(t *testing.T) {
	dir := files(t, "web.yaml", web, "alias.yaml", alias("hosts", "example.com")+alias("chain", "chain.example.org")+
		alias("none", "none.example.org")+alias("fails", "fails.example.org")+alias("else", "nobody.example.net")+
		alias("inside", "web.shop.svc.cluster.local")+alias("two", "hosts.shop.svc.cluster.local")+alias("root", "example.com."))
	inner := []completion{
		{"hosts.shop.svc.cluster.local", dns.TypeA, "NOERROR, CNAME example.com., A 192.0.2.1"},
		{"root.shop.svc.cluster.local", dns.TypeA, "NOERROR, CNAME example.com., A 192.0.2.1"},
		{"hosts.shop.svc.cluster.local", dns.TypeAAAA, "NOERROR, CNAME example.com."},
		{"hosts.shop.svc.cluster.local", dns.TypeCNAME, "NOERROR, CNAME example.com."},
		{"chain.shop.svc.cluster.local", dns.TypeA, "NOERROR, CNAME chain.example.org., CNAME example.com., A 192.0.2.1"},
		{"none.shop.svc.cluster.local", dns.TypeA, "NXDOMAIN, CNAME none.example.org."},
		{"none.shop.svc.cluster.local", dns.TypeCNAME, "NOERROR, CNAME none.example.org."},
		{"fails.shop.svc.cluster.local", dns.TypeA, "SERVFAIL, CNAME fails.example.org."},
		{"inside.shop.svc.cluster.local", dns.TypeA, "NOERROR, CNAME web.shop.svc.cluster.local., A 10.96.0.2"},
		{"two.shop.svc.cluster.local", dns.TypeA, "NOERROR, CNAME hosts.shop.svc.cluster.local., CNAME example.com., A 192.0.2.1"},
	}
	// A target that nobody here resolves is left to the client: at the end of the chain, and where no block has it.
	for where, corefile := range map[string]string{
		"one block":  block("errors", upstreams, ropewalk(dir)),
		"two blocks": "cluster.local:0 {\nbind 127.0.0.1\n" + ropewalk(dir) + "\n}\nexample.com:0 example.org:0 {\nbind 127.0.0.1\n" + upstreams + "\n}\n",
	} {
		t.Run(where, func(t *testing.T) {
			s := start(t, corefile)
			for _, c := range inner {
				s.expect(t, c.name, c.typ, c.want)
			}
			s.expect(t, "else.shop.svc.cluster.local", dns.TypeA, "NOERROR, CNAME nobody.example.net.")
		})
	}
	t.Run("EDNS", func(t *testing.T) {
		s := start(t, block(upstreams, ropewalk(dir)))
		m := s.exchange(t, "udp", query("chain.shop.svc.cluster.local", dns.TypeA).SetEdns0(1232, true))
		if opt := m.IsEdns0(); len(m.Extra) != 1 || opt == nil || !opt.Do() {
			t.Errorf("one OPT record, with DO:\n%s", m)
		}
	})
	t.Run("long", func(t *testing.T) { // more than UDP takes
		var many strings.Builder
		for i := range 100 {
			fmt.Fprintf(&many, "192.0.2.%d many.example.com\n", i)
		}
		s := start(t, block("hosts {\n"+many.String()+"fallthrough\n}", ropewalk(files(t, "web.yaml", web, "a.yaml", alias("many", "many.example.com")))))
		raw, m := s.rawUDP(t, query("many.shop.svc.cluster.local", dns.TypeA))
		if len(raw) > 512 || !m.Truncated {
			t.Errorf("%d octets, TC %v", len(raw), m.Truncated)
		}
		if m := s.exchange(t, "tcp", query("many.shop.svc.cluster.local", dns.TypeA)); len(m.Answer) != 101 || m.Truncated {
			t.Errorf("%d records over TCP, TC %v", len(m.Answer), m.Truncated)
		}
	})
}

// TestAliasLoops holds that names which lead to each other end in SERVFAIL, also where they go through the whole server.
func TestAliasLoops(t *testing.T) {
	one := files(t, "web.yaml", web, "a.yaml", alias("self", "self.shop.svc.cluster.local")+alias("a", "b.shop.svc.cluster.local")+
		alias("b", "a.shop.svc.cluster.local")+alias("there", "back.shop.svc.other.local"))
	two := files(t, "web.yaml", web, "a.yaml", alias("back", "there.shop.svc.cluster.local")+alias("hop", "web.shop.svc.cluster.local"))
	s := start(t, "cluster.local:0 {\nbind 127.0.0.1\n"+ropewalk(one)+"\n}\nother.local:0 {\nbind 127.0.0.1\n"+stanza("other.local", two)+"\n}\n")
	for _, network := range []string{"udp", "tcp"} {
		for _, name := range []string{"self.shop.svc.cluster.local", "a.shop.svc.cluster.local", "b.shop.svc.cluster.local",
			"there.shop.svc.cluster.local", "back.shop.svc.other.local"} {
			q := query(name, dns.TypeA).SetEdns0(4096, false)
			if m := s.exchange(t, network, q); m.Rcode != dns.RcodeServerFailure || len(m.Answer) > 20 {
				t.Errorf("%s over %s: want SERVFAIL\n%s", name, network, m)
			}
		}
	}
	s.expect(t, "hop.shop.svc.other.local", dns.TypeA, "NOERROR, CNAME web.shop.svc.cluster.local., A 10.96.0.2")
}
