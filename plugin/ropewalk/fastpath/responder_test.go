package fastpath

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

// records starts a zone with a cluster in it: web (10.96.0.1), a headless service of 3 and one of 300 endpoints, and an
// alias that leads out of the cluster.
func records(t testing.TB) *zone.Zone {
	t.Helper()
	z := zone.New(zone.Options{TTL: 5})
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { z.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	objs := map[cluster.Kind][]cluster.Object{
		cluster.KindNamespace: {&cluster.Namespace{Name: "shop"}},
		cluster.KindService: {
			&cluster.Service{Namespace: "shop", Name: "web", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00::1")},
				Ports: []cluster.ServicePort{{Name: "http", Port: 80, Protocol: cluster.TCP}}},
			&cluster.Service{Namespace: "shop", Name: "few", Headless: true},
			&cluster.Service{Namespace: "shop", Name: "many", Headless: true},
			&cluster.Service{Namespace: "shop", Name: "out", Type: cluster.ExternalName, ExternalName: "example.com"},
		},
		cluster.KindSlice: {slice("few", 3), slice("many", 300)},
	}
	for _, k := range []cluster.Kind{cluster.KindNamespace, cluster.KindService, cluster.KindSlice} {
		z.Apply(cluster.Change{Op: cluster.Replace, Kind: k})
		for _, o := range objs[k] {
			z.Apply(cluster.Change{Op: cluster.Upsert, Kind: k, Key: o.Key(), Object: o})
		}
		z.Apply(cluster.Change{Op: cluster.Synced, Kind: k})
	}
	<-z.Ready()
	return z
}

func slice(service string, n int) *cluster.Slice {
	s := &cluster.Slice{Namespace: "shop", Name: service + "-1", Service: service,
		Ports: []cluster.EndpointPort{{Name: "http", Port: 80, Protocol: cluster.TCP}}}
	for i := range n {
		s.Endpoints = append(s.Endpoints, cluster.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Ready: true})
	}
	return s
}

func wire(zone string) []byte {
	buf := make([]byte, 256)
	n, err := dns.PackDomainName(zone, buf, 0, nil, false)
	if err != nil {
		panic(err)
	}
	return buf[:n]
}

func responder(t testing.TB) *Responder {
	t.Helper()
	o, err := zone.NewOrigins([]string{"cluster.local.", "in-addr.arpa."}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &Responder{View: records(t).View, Query: zone.Query{Origins: o}, Fallthrough: NewSuffixes(wire("in-addr.arpa."))}
}

// respond returns the answer to a query, nil if it is left to the server.
func (r *Responder) ask(t testing.TB, m *dns.Msg) *dns.Msg {
	t.Helper()
	in := pack(t, m)
	var q query
	if !q.parse(in) {
		return nil
	}
	rep, ok := r.respond(make([]byte, 0, replySize), in, &q)
	if !ok {
		return nil
	}
	reply := new(dns.Msg)
	if err := reply.Unpack(rep.msg); err != nil {
		t.Fatal(err)
	}
	return reply
}

func TestRespond(t *testing.T) {
	r := responder(t)
	positive := *r
	positive.PositiveOnly = true
	clamped := *r
	clamped.UDPSize = 1000
	echoing := *r
	echoing.EchoesOptions = true
	cookie := withOption(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})
	tests := []struct {
		name string
		r    *Responder
		q    *dns.Msg
		want string
	}{
		{"A", r, ask("web.shop.svc.cluster.local.", dns.TypeA), "NOERROR aa an=1"},
		{"case", r, ask("wEb.Shop.svc.Cluster.local.", dns.TypeA), "NOERROR aa an=1"},
		{"not recursive", r, change(ask("web.shop.svc.cluster.local.", dns.TypeA), func(m *dns.Msg) { m.RecursionDesired = false }), "NOERROR aa an=1"},
		{"checking disabled", r, change(ask("web.shop.svc.cluster.local.", dns.TypeA), func(m *dns.Msg) { m.CheckingDisabled = true }), "NOERROR aa an=1"},
		{"AD is not for questions", r, change(ask("web.shop.svc.cluster.local.", dns.TypeA), func(m *dns.Msg) { m.AuthenticatedData = true }), "NOERROR aa an=1"},
		{"NODATA", r, ask("web.shop.svc.cluster.local.", dns.TypeMX), "NOERROR aa ns=1"},
		{"NXDOMAIN", r, ask("none.shop.svc.cluster.local.", dns.TypeA), "NXDOMAIN aa ns=1"},
		{"NXDOMAIN that falls through", r, ask("9.9.9.10.in-addr.arpa.", dns.TypePTR), "left"},
		{"PTR", r, ask("1.0.96.10.in-addr.arpa.", dns.TypePTR), "NOERROR aa an=1"},
		{"outside", r, ask("example.com.", dns.TypeA), "left"},
		{"alias", r, ask("out.shop.svc.cluster.local.", dns.TypeA), "left"},
		{"alias itself", r, ask("out.shop.svc.cluster.local.", dns.TypeCNAME), "NOERROR aa an=1"},
		{"EDNS", r, ask("web.shop.svc.cluster.local.", dns.TypeA).SetEdns0(1232, true), "NOERROR aa an=1 udp=1232 do"},
		{"tiny EDNS", r, ask("web.shop.svc.cluster.local.", dns.TypeA).SetEdns0(100, false), "NOERROR aa an=1 udp=100"},
		{"cookie", r, change(ask("web.shop.svc.cluster.local.", dns.TypeA), cookie), "NOERROR aa an=1 udp=1232"},
		{"cookie that goes back", &echoing, change(ask("web.shop.svc.cluster.local.", dns.TypeA), cookie), "left"},
		{"NSID", r, change(ask("web.shop.svc.cluster.local.", dns.TypeA), withOption(&dns.EDNS0_NSID{Code: dns.EDNS0NSID})), "left"},
		{"truncated at 512", r, ask("many.shop.svc.cluster.local.", dns.TypeA), "NOERROR aa tc an=29"},
		{"truncated at 1232", r, ask("many.shop.svc.cluster.local.", dns.TypeA).SetEdns0(1232, false), "NOERROR aa tc an=73 udp=1232"},
		{"all of what a client says it takes is more than a buffer", r, ask("many.shop.svc.cluster.local.", dns.TypeA).SetEdns0(65535, false), "left"},
		{"clamped", &clamped, ask("many.shop.svc.cluster.local.", dns.TypeA).SetEdns0(65535, false), "NOERROR aa tc an=59 udp=1000"},
		{"search path, found", &positive, ask("web.shop.svc.cluster.local.", dns.TypeA), "NOERROR aa an=1"},
		{"search path, no data", &positive, ask("web.shop.svc.cluster.local.", dns.TypeMX), "left"},
		{"search path, not found", &positive, ask("none.shop.svc.cluster.local.", dns.TypeA), "left"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := test.r.ask(t, test.q)
			if got := show(m); got != test.want {
				t.Fatalf("got %q, want %q", got, test.want)
			}
			if m == nil {
				return
			}
			if m.Id != test.q.Id || m.Question[0] != test.q.Question[0] || !m.Response || m.AuthenticatedData ||
				m.RecursionDesired != test.q.RecursionDesired || m.CheckingDisabled != test.q.CheckingDisabled {
				t.Errorf("header or question: %v", m)
			}
		})
	}
}

// show sums a message up.
func show(m *dns.Msg) string {
	if m == nil {
		return "left"
	}
	s := dns.RcodeToString[m.Rcode]
	add := func(there bool, format string, args ...any) {
		if there {
			s += " " + fmt.Sprintf(format, args...)
		}
	}
	opt := m.IsEdns0()
	add(m.Authoritative, "aa")
	add(m.Truncated, "tc")
	add(len(m.Answer) > 0, "an=%d", len(m.Answer))
	add(len(m.Ns) > 0, "ns=%d", len(m.Ns))
	if opt != nil {
		add(true, "udp=%d", opt.UDPSize())
		add(opt.Do(), "do")
	}
	return s
}

// FuzzRespond holds that whatever is asked, the answer is a message, is no longer than allowed, and is counted as long as
// CoreDNS would.
func FuzzRespond(f *testing.F) {
	r := responder(f)
	for _, name := range []string{"web.shop.svc.cluster.local.", "many.shop.svc.cluster.local.", "none.cluster.local.", "1.0.96.10.in-addr.arpa.",
		"_http._tcp.few.shop.svc.cluster.local.", "10-1-0-1.few.shop.svc.cluster.local.", "cluster.local.", "out.shop.svc.cluster.local."} {
		for _, typ := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypeSOA, dns.TypeNS, dns.TypePTR, dns.TypeCNAME} {
			f.Add(pack(f, ask(name, typ)))
			f.Add(pack(f, ask(name, typ).SetEdns0(4096, true)))
		}
	}
	buf := make([]byte, 0, replySize)
	f.Fuzz(func(t *testing.T, in []byte) {
		var q query
		if len(in) > querySize || !isQuery(in) || !q.parse(in) {
			return
		}
		rep, ok := r.respond(buf, in, &q)
		if !ok {
			return
		}
		limit := 512
		if q.edns {
			limit = max(limit, int(q.udpSize))
		}
		if len(rep.msg) > limit || &rep.msg[0] != &buf[:1][0] {
			t.Fatalf("%d octets where %d are allowed", len(rep.msg), limit)
		}
		m := new(dns.Msg)
		if err := m.Unpack(rep.msg); err != nil {
			t.Fatal(err)
		}
		if string(rep.msg[HeaderLen:q.end]) != string(in[HeaderLen:q.end]) {
			t.Fatal("the question is another one")
		}
		m.Extra = deleteOPT(m.Extra)
		if m.Compress = false; m.Len() != rep.expanded && !strings.Contains(m.Question[0].Name, `\`) {
			t.Fatalf("counted as %d octets, CoreDNS has %d: %v", rep.expanded, m.Len(), m)
		}
	})
}

func deleteOPT(rrs []dns.RR) []dns.RR {
	if n := len(rrs); n > 0 && rrs[n-1].Header().Rrtype == dns.TypeOPT {
		return rrs[:n-1]
	}
	return rrs
}

func TestSuffixes(t *testing.T) {
	s := NewSuffixes(wire("."), wire("cluster.local."), wire("svc.cluster.local."), nil)
	for name, want := range map[string]int{
		".": 0, "example.com.": 0, "local.": 0, "cluster.local.": 1, "CLUSTER.Local.": 1, "xcluster.local.": 0, "a.svc.cluster.local.": 2,
		"x.cluster.local.example.": 0,
		// The octets of the zone, but not its labels: the length of "cluster" is also a letter.
		`a\007cluster\005local.`: 0,
	} {
		if got := s.Match(wire(name)); got != want {
			t.Errorf("%s: got %d, want %d", name, got, want)
		}
	}
	if got := (*Suffixes)(nil).Match(wire("a.")); got != -1 {
		t.Error(got)
	}
}
