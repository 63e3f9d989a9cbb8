package server

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// transferred returns what a transfer over TCP brings.
func (s *server) transferred(t *testing.T, q *dns.Msg) []dns.RR {
	t.Helper()
	tr := &dns.Transfer{}
	ch, err := tr.In(q, s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	var all []dns.RR
	for e := range ch {
		if e.Error != nil {
			t.Fatalf("%s: %v", q.Question[0].String(), e.Error)
		}
		all = append(all, e.RR...)
	}
	return all
}

func axfr(zone string) *dns.Msg { return new(dns.Msg).SetAxfr(dns.Fqdn(zone)) }

func ixfr(zone string, serial uint32) *dns.Msg {
	return new(dns.Msg).SetIxfr(dns.Fqdn(zone), serial, "ns.dns.cluster.local.", "hostmaster.cluster.local.")
}

func TestTransfer(t *testing.T) {
	const slow = "transfer {\nto *\n}"
	dir := files(t, "web.yaml", web, "db.yaml", headless("db", 3), "alias.yaml", alias("payments", "example.com"),
		"pod.yaml", podAt("10.244.9.9", "client", "shop"))
	s := start(t, block(slow, ropewalk(dir, "pods verified", "ttl 7")))

	var want []string
	add := func(format string, args ...any) { want = append(want, fmt.Sprintf(format, args...)) }
	add("cluster.local. SOA")
	add("dns-version.cluster.local. TXT \"1.1.0\"")
	add("kubernetes.default.svc.cluster.local. A 10.96.0.1")
	add("_https._tcp.kubernetes.default.svc.cluster.local. SRV 0 100 443 kubernetes.default.svc.cluster.local.")
	add("kubernetes.default.svc.cluster.local. SRV 0 100 443 kubernetes.default.svc.cluster.local.")
	add("web.shop.svc.cluster.local. A 10.96.0.2")
	add("web.shop.svc.cluster.local. SRV 0 100 80 web.shop.svc.cluster.local.")
	add("_http._tcp.web.shop.svc.cluster.local. SRV 0 100 80 web.shop.svc.cluster.local.")
	add("payments.shop.svc.cluster.local. CNAME example.com.")
	for i := range 3 {
		name := fmt.Sprintf("10-244-0-%d.db.shop.svc.cluster.local.", i+1)
		add("db.shop.svc.cluster.local. A 10.244.0.%d", i+1)
		add("%s A 10.244.0.%d", name, i+1)
		add("db.shop.svc.cluster.local. SRV 0 33 5432 %s", name)
		add("%s SRV 0 100 5432 %[1]s", name)
		add("_sql._tcp.db.shop.svc.cluster.local. SRV 0 33 5432 %s", name)
	}
	add("10-244-9-9.shop.pod.cluster.local. A 10.244.9.9")
	check(t, s.transferred(t, axfr("cluster.local")), want)

	want = nil
	add("in-addr.arpa. SOA")
	add("1.0.96.10.in-addr.arpa. PTR kubernetes.default.svc.cluster.local.")
	add("2.0.96.10.in-addr.arpa. PTR web.shop.svc.cluster.local.")
	for i := range 3 {
		add("%d.0.244.10.in-addr.arpa. PTR 10-244-0-%[1]d.db.shop.svc.cluster.local.", i+1)
	}
	check(t, s.transferred(t, axfr("in-addr.arpa")), want)

	t.Run("IXFR", func(t *testing.T) {
		serial := s.ask(t, "cluster.local", dns.TypeSOA).Answer[0].(*dns.SOA).Serial
		for _, same := range []uint32{serial, serial + 1} {
			if m := s.exchange(t, "tcp", ixfr("cluster.local", same)); len(m.Answer) != 1 || m.Answer[0].(*dns.SOA).Serial != serial {
				t.Errorf("serial %d: want the SOA record alone\n%s", same, m)
			}
		}
		whole := len(s.transferred(t, axfr("cluster.local")))
		for _, older := range []uint32{serial - 1, 1, serial - 1<<30, serial - 1900000000} { // RFC 1982
			if got := s.transferred(t, ixfr("cluster.local", older)); len(got) != whole {
				t.Errorf("serial %d: %d records, want all %d", older, len(got), whole)
			}
		}
	})
	t.Run("UDP", func(t *testing.T) {
		for _, zone := range []string{"cluster.local", "in-addr.arpa"} {
			s.expect(t, zone, dns.TypeAXFR, "REFUSED")
		}
	})
	t.Run("not a zone", func(t *testing.T) {
		for _, name := range []string{"shop.svc.cluster.local", "web.shop.svc.cluster.local", "96.10.in-addr.arpa"} {
			if m := s.exchange(t, "tcp", query(name, dns.TypeAXFR)); m.Rcode != dns.RcodeRefused || len(m.Answer) != 0 {
				t.Errorf("%s: want REFUSED\n%s", name, m)
			}
		}
	})
	t.Run("case", func(t *testing.T) {
		q := axfr("Cluster.LOCAL")
		if got := s.transferred(t, q); len(got) < 10 {
			t.Errorf("%d records", len(got))
		}
	})
}

// check compares a transfer, in any order but for the SOA record at both ends.
func check(t *testing.T, got []dns.RR, want []string) {
	t.Helper()
	if len(got) < 2 {
		t.Fatalf("%d records", len(got))
	}
	first, last := got[0], got[len(got)-1]
	if _, ok := first.(*dns.SOA); !ok || first.String() != last.String() {
		t.Errorf("does not begin and end with the SOA record: %s, %s", first, last)
	}
	var lines []string
	for _, rr := range got[:len(got)-1] {
		h := rr.Header()
		line := h.Name + " " + dns.TypeToString[h.Rrtype]
		switch h.Rrtype {
		case dns.TypeSOA:
		default:
			line += " " + strings.TrimPrefix(rr.String(), h.String())
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	slices.Sort(want)
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
}

// TestLargeTransfer holds that a zone of many messages comes whole.
func TestLargeTransfer(t *testing.T) {
	dir := files(t, "web.yaml", web, "db.yaml", headless("db", 5000))
	s := start(t, block("transfer {\nto *\n}", ropewalk(dir)))
	for zone, want := range map[string]int{"cluster.local": 5 * 5000, "in-addr.arpa": 5000} {
		seen := map[string]int{}
		n := 0
		for _, rr := range s.transferred(t, axfr(zone)) {
			seen[rr.String()]++
			if strings.Contains(rr.Header().Name, "db.shop") || strings.HasSuffix(rr.Header().Name, "244.10.in-addr.arpa.") {
				n++
			}
		}
		if n != want {
			t.Errorf("%s: %d records of the service, want %d", zone, n, want)
		}
		for rr, n := range seen {
			if n != 1 && !strings.Contains(rr, "SOA") {
				t.Errorf("%d times: %s", n, rr)
			}
		}
	}
}

func TestTransferToStrangers(t *testing.T) {
	dir := files(t, "web.yaml", web)
	for _, around := range []string{"", "transfer {\nto 127.0.0.99\n}"} {
		s := start(t, block(around, ropewalk(dir)))
		for _, zone := range []string{"cluster.local", "in-addr.arpa"} {
			for _, q := range []*dns.Msg{axfr(zone), ixfr(zone, 1)} {
				for _, network := range []string{"udp", "tcp"} {
					if m := s.exchange(t, network, q); m.Rcode != dns.RcodeRefused || len(m.Answer) != 0 {
						t.Errorf("%s over %s with %q: want REFUSED\n%s", q.Question[0].String(), network, around, m)
					}
				}
			}
		}
	}
}

func port(addr string) string {
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err)
	}
	return p
}
