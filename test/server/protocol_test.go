package server

import (
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestEDNS(t *testing.T) {
	dir := files(t, "web.yaml", web, "db.yaml", headless("db", 100))
	s := start(t, block("bufsize 1232", "behind", ropewalk(dir)))
	const name = "web.shop.svc.cluster.local"

	t.Run("none", func(t *testing.T) {
		if opt := s.ask(t, name, dns.TypeA).IsEdns0(); opt != nil {
			t.Errorf("an OPT record nobody asked for: %s", opt)
		}
	})
	for _, n := range []string{name, "none.shop.svc.cluster.local", "example.com"} {
		for _, do := range []bool{false, true} {
			for _, network := range []string{"udp", "tcp"} {
				m := s.exchange(t, network, query(n, dns.TypeA).SetEdns0(1232, do))
				opts := 0
				for _, rr := range m.Extra {
					if _, ok := rr.(*dns.OPT); ok {
						opts++
					}
				}
				opt := m.IsEdns0()
				if opts != 1 || opt.Do() != do || opt.Version() != 0 || opt.UDPSize() != 1232 {
					t.Errorf("%s, DO %v, %s: %d OPT records, %v", n, do, network, opts, opt)
				}
			}
		}
	}
	t.Run("version 1", func(t *testing.T) {
		q := query(name, dns.TypeA).SetEdns0(1232, false)
		q.IsEdns0().SetVersion(1)
		m := s.exchange(t, "udp", q)
		if opt := m.IsEdns0(); m.Rcode != dns.RcodeBadVers || len(m.Answer) != 0 || opt == nil || opt.Version() != 0 {
			t.Errorf("want BADVERS:\n%s", m)
		}
	})
}

// TestTruncation holds that no answer over UDP is longer than the client and bufsize allow, that it then says so and
// has whole records, and that TCP has all of them.
func TestTruncation(t *testing.T) {
	dir := files(t, "web.yaml", web, "db.yaml", headless("db", 100))
	s := start(t, block("bufsize 1232", ropewalk(dir)))
	const name, total = "db.shop.svc.cluster.local", 100
	for _, test := range []struct {
		size  uint16 // the client's; 0 for no EDNS
		limit int
	}{{0, 512}, {100, 512}, {512, 512}, {1232, 1232}, {4096, 1232}, {65535, 1232}} {
		q := query(name, dns.TypeA)
		if test.size > 0 {
			q.SetEdns0(test.size, false)
		}
		raw, m := s.rawUDP(t, q)
		if len(raw) > test.limit || !m.Truncated || m.Rcode != dns.RcodeSuccess {
			t.Errorf("size %d: %d octets, TC %v, %s", test.size, len(raw), m.Truncated, dns.RcodeToString[m.Rcode])
		}
		if free := test.limit - len(raw); free >= 2*16 {
			t.Errorf("size %d: %d octets left unused", test.size, free)
		}
		distinct(t, m, -1)
	}
	distinct(t, s.exchange(t, "tcp", query(name, dns.TypeA)), total)
	distinct(t, s.exchange(t, "tcp", query(name, dns.TypeA).SetEdns0(512, true)), total)

	plain := start(t, block(ropewalk(dir)))
	_, m := plain.rawUDP(t, query(name, dns.TypeA).SetEdns0(4096, false))
	if m.Truncated {
		t.Error("all of it fits into 4096 octets")
	}
	distinct(t, m, total)
}

// distinct checks that there are want different A records, any number if that is less than 0.
func distinct(t *testing.T, m *dns.Msg, want int) {
	t.Helper()
	seen := map[string]bool{}
	for _, rr := range m.Answer {
		a, ok := rr.(*dns.A)
		if !ok || seen[a.A.String()] {
			t.Errorf("unexpected %s", rr)
			continue
		}
		seen[a.A.String()] = true
	}
	if want >= 0 && (len(seen) != want || m.Truncated) {
		t.Errorf("%d records, TC %v, want %d", len(seen), m.Truncated, want)
	}
}

// rawUDP returns the octets of the answer as well.
func (s *server) rawUDP(t *testing.T, q *dns.Msg) ([]byte, *dns.Msg) {
	t.Helper()
	wire, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	c := s.dial(t, "udp")
	if _, err := c.Write(wire); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(buf[:n]); err != nil {
		t.Fatal(err)
	}
	return buf[:n], m
}

func (s *server) dial(t *testing.T, network string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, s.addr(network))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestPipelining holds that a client may send its next queries before it has its answers (RFC 7766 section 6.2.1.1).
func TestPipelining(t *testing.T) {
	dir := files(t, "web.yaml", web, "db.yaml", headless("db", 100))
	s := start(t, block(ropewalk(dir)))
	c := &dns.Conn{Conn: s.dial(t, "tcp")}
	want := map[uint16]string{}
	for i := range uint16(200) {
		q, answer := query("web.shop.svc.cluster.local", dns.TypeA), "NOERROR, A 10.96.0.2"
		if i%2 == 1 {
			q, answer = query("none.shop.svc.cluster.local", dns.TypeA), "NXDOMAIN"
		}
		q.Id = i
		want[i] = answer
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
	}
	for len(want) > 0 {
		m, err := c.ReadMsg()
		if err != nil {
			t.Fatalf("%v, with %d answers to come", err, len(want))
		}
		if got := summary(m); got != want[m.Id] {
			t.Errorf("%d: %s, want %q", m.Id, got, want[m.Id])
		}
		delete(want, m.Id)
	}
}

// TestMalformed holds that a packet which is no query gets an error or nothing, and the next query its answer.
func TestMalformed(t *testing.T) {
	s := start(t, block("errors", ropewalk(files(t, "web.yaml", web), "pods insecure", "autopath", "env", "zonal")))
	good, err := query("web.shop.svc.cluster.local", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	mark := logged.mark()
	var packets [][]byte
	r := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	for i := range 300 {
		packets = append(packets, random(i))
		mutated := append([]byte(nil), good...)
		for range 1 + i%4 {
			mutated[12+r.IntN(len(mutated)-12)] = byte(r.Uint32())
		}
		packets = append(packets, mutated, good[:i%len(good)], append(append([]byte(nil), good...), random(i%40)...))
	}
	header := []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for _, name := range []string{"\xc0\x0c", "\xc0\x0e\xc0\x0c", "\x40" + string(random(64)) + "\x00", "\x3f", "\x80a\x00"} {
		packets = append(packets, append(append([]byte(nil), header...), name+"\x00\x01\x00\x01"...))
	}
	udp := s.dial(t, "udp")
	for i, p := range packets {
		if _, err := udp.Write(p); err != nil {
			t.Fatal(err)
		}
		if i%20 == 0 {
			tcp := s.dial(t, "tcp")
			if _, err := tcp.Write(p); err != nil {
				t.Fatal(err)
			}
			if _, err := tcp.Write(append([]byte{byte(len(p) >> 8), byte(len(p))}, p...)); err != nil {
				t.Log(err) // it has hung up already
			}
			tcp.Close()
			s.expect(t, "web.shop.svc.cluster.local", dns.TypeA, "NOERROR, A 10.96.0.2")
		}
	}
	s.expect(t, "web.shop.svc.cluster.local", dns.TypeA, "NOERROR, A 10.96.0.2")
	if got := summary(s.exchange(t, "tcp", query("web.shop.svc.cluster.local", dns.TypeA))); got != "NOERROR, A 10.96.0.2" {
		t.Error(got)
	}
	for _, bad := range []string{"panic", "Recovered"} {
		if l := logged.since(mark); contains(l, bad) {
			t.Errorf("%s in the log:\n%s", bad, l)
		}
	}

	t.Run("pointer loop", func(t *testing.T) {
		c := s.dial(t, "udp")
		if _, err := c.Write(append(append([]byte(nil), header...), "\xc0\x0c\x00\x01\x00\x01"...)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 512)
		n, err := c.Read(buf)
		if err != nil || n < 12 || buf[3]&15 != dns.RcodeFormatError {
			t.Errorf("want FORMERR: % x, %v", buf[:n], err)
		}
	})
	t.Run("two questions", func(t *testing.T) {
		q := query("web.shop.svc.cluster.local", dns.TypeA)
		q.Question = append(q.Question, q.Question[0])
		if _, m := s.rawUDP(t, q); m.Rcode != dns.RcodeFormatError || len(m.Answer) != 0 {
			t.Errorf("want FORMERR:\n%s", m)
		}
	})
	t.Run("a response", func(t *testing.T) {
		c := s.dial(t, "udp")
		answer := append([]byte(nil), good...)
		answer[2] |= 0x80
		answer[1]++
		for _, p := range [][]byte{answer, good} {
			if _, err := c.Write(p); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 512)
		n, err := c.Read(buf)
		if err != nil || n < 12 || buf[1] != good[1] {
			t.Errorf("the first answer should be that to the query: % x, %v", buf[:n], err)
		}
	})
	t.Run("query with an answer", func(t *testing.T) {
		q := query("web.shop.svc.cluster.local", dns.TypeA)
		q.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "web.shop.svc.cluster.local.", Rrtype: dns.TypeA, Class: 1}, A: net.IPv4(1, 2, 3, 4)}}
		if _, m := s.rawUDP(t, q); summary(m) != "NOERROR, A 10.96.0.2" && m.Rcode != dns.RcodeFormatError {
			t.Errorf("%s", m)
		}
	})
}

func TestOpcodes(t *testing.T) {
	s := start(t, block(ropewalk(files(t, "web.yaml", web, "pod.yaml", podAt("127.0.0.1", "client", "shop")), "autopath")))
	for _, opcode := range []int{dns.OpcodeIQuery, dns.OpcodeStatus, dns.OpcodeNotify, dns.OpcodeUpdate, 6, 15} {
		for _, network := range []string{"udp", "tcp"} {
			for _, name := range []string{"cluster.local", "web.shop.svc.cluster.local", "none.shop.svc.cluster.local"} {
				q := query(name, dns.TypeA)
				q.Opcode = opcode
				c := &dns.Client{Net: network, Timeout: 10 * time.Second} // the server may leave the question out
				m, _, err := c.Exchange(q, s.addr(network))
				if err != nil {
					t.Fatal(err)
				}
				if m.Opcode != opcode || m.Rcode != dns.RcodeNotImplemented || len(m.Answer)+len(m.Ns) != 0 {
					t.Errorf("%s %s over %s: want NOTIMP\n%s", dns.OpcodeToString[opcode], name, network, m)
				}
			}
		}
	}
}

// TestClasses holds that only IN is served, even where the server lets other classes in for the sake of another plugin.
func TestClasses(t *testing.T) {
	dir := files(t, "web.yaml", web, "pod.yaml", podAt("127.0.0.1", "client", "shop"))
	for _, more := range []string{"", "forward . 127.0.0.1:" + port(freePort(t))} {
		s := start(t, block(ropewalk(dir, "autopath", "fallthrough"), more))
		for _, class := range []uint16{dns.ClassCHAOS, dns.ClassHESIOD, dns.ClassANY, dns.ClassNONE} {
			for _, name := range []string{"web.shop.svc.cluster.local", "none.shop.svc.cluster.local", "dns-version.cluster.local"} {
				q := query(name, dns.TypeA)
				q.Question[0].Qclass = class
				if m := s.exchange(t, "udp", q); m.Rcode != dns.RcodeRefused || len(m.Answer) != 0 {
					t.Errorf("%s %s with %q: want REFUSED\n%s", name, dns.ClassToString[class], more, m)
				}
			}
		}
	}
}
