package fastpath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long something that should happen may take.
const patience = 10 * time.Second

// counter is an Observer for all sockets.
type counter struct {
	mu      sync.Mutex
	samples []Sample
	missed  int
	panic   int
}

func (c *counter) Observe(samples []Sample, _ time.Time, missed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range samples {
		s.Name = nil
		c.samples = append(c.samples, s)
	}
	c.missed += missed
}

// handler answers for cluster.local, and everything else with REFUSED in Serve.
func handler(t testing.TB, c *counter) *Handler {
	t.Helper()
	return &Handler{
		Zones:      NewSuffixes(wire("."), wire("cluster.local.")),
		Responders: []*Responder{nil, responder(t)},
		Serve: func(q *Query) {
			m := new(dns.Msg)
			if err := m.Unpack(q.Msg); err != nil {
				return
			}
			m.SetRcode(m, dns.RcodeRefused)
			m.Extra = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeTXT, Class: 1}, Txt: []string{q.From.String()}}}
			b, err := m.Pack()
			if err != nil {
				t.Error(err)
			}
			if err := q.Reply(b); err != nil {
				t.Error(err)
			}
		},
		NewObserver: func() Observer { return c },
		Dropped:     func() {},
		Panicked: func(any) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.panic++
		},
	}
}

// addresses are what a server can be bound to: as its Corefile has it, and what clients ask then.
var addresses = []struct{ bind, asked string }{
	{"127.0.0.1:53", "127.0.0.1"},
	{"192.0.2.1:53", "192.0.2.1"},
	{"[::1]:53", "::1"},
	{":53", "127.0.0.1"},
	{":53", "192.0.2.2"},
	{":53", "::1"},
	{":53", "2001:db8::2"},
	{"0.0.0.0:53", "192.0.2.1"},
}

var local = []string{"192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128", "2001:db8::2/128"}

// TestLeave holds the way in which sockets leave the group of an address: on it hangs that no query is lost.
func TestLeave(t *testing.T) {
	if !netns.Enter(t, local...) {
		return
	}
	for _, a := range addresses {
		t.Run(a.bind+" "+a.asked, func(t *testing.T) {
			first, second := listen(t, a.bind), listen(t, a.bind)
			if n := send(t, a.asked, first, second); n[0] == 0 || n[1] == 0 {
				t.Fatalf("both in the group: got %v", n)
			}
			if HasLeft(first) {
				t.Fatal("has left before it does")
			}
			must(t, Leave(first))
			must(t, Leave(first))
			if !HasLeft(first) {
				t.Fatal("has not left")
			}
			if n := send(t, a.asked, first, second); n[0] != 0 {
				t.Fatalf("the first has left: got %v", n)
			}
			second.Close()
			third := listen(t, a.bind)
			if n := send(t, a.asked, first, third); n[0] != 0 {
				t.Fatalf("a third has come into the second's place: got %v", n)
			}
		})
	}
}

// TestLeaveIsNotGuessed holds that a stranger's ICMP error does not get to a socket that has left: CoreDNS's own reader would
// end, and no reload find its socket any more. Errors are made here by answers to ports that nobody is at.
func TestLeaveIsNotGuessed(t *testing.T) {
	if !netns.Enter(t, local...) {
		return
	}
	for _, a := range addresses {
		t.Run(a.bind+" "+a.asked, func(t *testing.T) {
			left, stays := listen(t, a.bind), listen(t, a.bind)
			must(t, Leave(left))
			for _, from := range []string{"127.0.0.1:1", "[::1]:1", "192.0.2.1:1", "[2001:db8::1]:1", "[2001:db8::2]:1"} {
				addr := netip.MustParseAddrPort(from)
				if addr.Addr().Is4() != netip.MustParseAddr(a.asked).Is4() {
					continue
				}
				c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
				must(t, err)
				_, err = c.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort(net.JoinHostPort(a.asked, "53")))
				must(t, err)
				must(t, stays.SetReadDeadline(time.Now().Add(patience)))
				if _, _, err := stays.ReadFromUDPAddrPort(make([]byte, 10)); err != nil {
					t.Errorf("a packet from %v did not get to the socket that stays: %v", from, err)
				}
				must(t, c.Close())
				left.WriteToUDPAddrPort([]byte("x"), addr)
			}
			must(t, left.SetReadDeadline(time.Now().Add(time.Millisecond)))
			if _, _, err := left.ReadFromUDPAddrPort(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the socket that has left reads %v", err)
			}
		})
	}
}

// TestLeftAnswers holds that a socket that has left can still answer what it got, over both families.
func TestLeftAnswers(t *testing.T) {
	if !netns.Enter(t, local...) {
		return
	}
	for _, a := range addresses {
		t.Run(a.bind+" "+a.asked, func(t *testing.T) {
			in, left := make(chan *Query, 1), make(chan struct{})
			h := handler(t, &counter{})
			serve := h.Serve
			h.Serve = func(q *Query) {
				in <- q
				<-left
				serve(q)
			}
			g, err := Open(a.bind, 1, h)
			must(t, err)
			defer g.Close(patience)
			go func() {
				<-in
				if err := Leave(g.sockets[0].conn); err != nil {
					t.Error(err)
				}
				close(left)
			}()
			exchange(t, a.asked, ask("example.com.", dns.TypeA))
		})
	}
}

// TestCloseAnswersWhatWasRead holds that a group which is closed while it works on a batch answers all of it.
func TestCloseAnswersWhatWasRead(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	h := handler(t, &counter{})
	r := *h.Responders[1]
	read, view := make(chan struct{}, 1), r.View
	r.View = func() *zone.View {
		read <- struct{}{}
		time.Sleep(100 * time.Millisecond) // for Close to go wrong in
		return view()
	}
	h.Responders[1] = &r
	g, err := Open("127.0.0.1:53", 1, h)
	must(t, err)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		<-read
		g.Close(patience)
	}()
	exchange(t, "127.0.0.1", ask("web.shop.svc.cluster.local.", dns.TypeA))
	<-closed
}

// TestLateReplies holds that a query stays what it is when the one who serves it returns before it is answered, as the plugin
// cache does where it verifies stale records.
func TestLateReplies(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	h := handler(t, &counter{})
	serve := h.Serve
	var late sync.WaitGroup
	const n = 100
	answer := make(chan struct{})
	h.Serve = func(q *Query) {
		late.Go(func() {
			<-answer
			serve(q)
		})
	}
	g, err := Open("127.0.0.1:53", 1, h)
	must(t, err)
	defer g.Close(patience)
	var clients []*dns.Conn
	for i := range n {
		c, err := dns.Dial("udp", "127.0.0.1:53")
		must(t, err)
		defer c.Close()
		must(t, c.WriteMsg(ask(fmt.Sprintf("%d.example.com.", i), dns.TypeA)))
		clients = append(clients, c)
	}
	close(answer)
	for i, c := range clients {
		must(t, c.SetDeadline(time.Now().Add(patience)))
		m, err := c.ReadMsg()
		must(t, err)
		if want := fmt.Sprintf("%d.example.com.", i); m.Question[0].Name != want || m.Extra[0].(*dns.TXT).Txt[0] != c.LocalAddr().String() {
			t.Errorf("the answer to %s is %v", want, m)
		}
	}
	late.Wait()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func listen(t testing.TB, addr string) *net.UDPConn {
	t.Helper()
	conn, err := open(addr)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

const sends = 60

// send sends packets to ip, each from another port, and returns how many each of conns got. None may be lost.
func send(t *testing.T, ip string, conns ...*net.UDPConn) []int {
	t.Helper()
	for range sends {
		c, err := net.Dial("udp", net.JoinHostPort(ip, "53"))
		must(t, err)
		_, err = c.Write([]byte("x"))
		must(t, err)
		c.Close()
	}
	got, total := make([]int, len(conns)), 0
	for deadline := time.Now().Add(patience); total < sends; {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d packets arrived: %v", total, sends, got)
		}
		for i, conn := range conns {
			must(t, conn.SetReadDeadline(time.Now().Add(time.Millisecond)))
			for {
				if _, _, err := conn.ReadFromUDPAddrPort(make([]byte, 10)); err != nil {
					break
				}
				got[i]++
				total++
			}
			must(t, conn.SetReadDeadline(time.Time{}))
		}
	}
	return got
}

// exchange asks ip and returns what it, and nobody else, answers.
func exchange(t *testing.T, ip string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := &dns.Client{Timeout: patience, UDPSize: 4096} // the client's socket is connected: another's answer does not reach it
	r, _, err := c.Exchange(m, net.JoinHostPort(ip, "53"))
	if err != nil {
		t.Fatalf("%s: %v", ip, err)
	}
	return r
}

// TestGroup asks groups bound to all kinds of addresses, over both families.
func TestGroup(t *testing.T) {
	if !netns.Enter(t, local...) {
		return
	}
	for _, a := range addresses {
		t.Run(a.bind+" "+a.asked, func(t *testing.T) {
			var c counter
			g, err := Open(a.bind, 2, handler(t, &c))
			must(t, err)
			defer g.Close(patience)
			for range 20 {
				if r := exchange(t, a.asked, ask("Web.shop.svc.cluster.local.", dns.TypeA)); show(r) != "NOERROR aa an=1" {
					t.Fatalf("hit: %v", r)
				}
				r := exchange(t, a.asked, ask("example.com.", dns.TypeA))
				if r.Rcode != dns.RcodeRefused {
					t.Fatalf("miss: %v", r)
				}
				from := netip.MustParseAddrPort(r.Extra[0].(*dns.TXT).Txt[0])
				if asked := netip.MustParseAddr(a.asked); from.Addr().Is4() != asked.Is4() || !from.Addr().IsLoopback() && from.Addr() != asked {
					t.Fatalf("miss is said to be from %v", from)
				}
			}
			g.Close(patience)
			if len(c.samples) != 20 || c.missed != 20 {
				t.Errorf("%d hits and %d misses observed", len(c.samples), c.missed)
			}
			for _, s := range c.samples {
				if is6 := netip.MustParseAddr(a.asked).Is6(); s.IPv6 != is6 || s.Type != dns.TypeA || s.Route != 1 || s.QueryLen != 44 || s.ReplyLen != 86 {
					t.Fatalf("observed %+v", s)
				}
			}
		})
	}
}

// TestNothingIsLost replaces groups all the time while queries come.
func TestNothingIsLost(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	var c counter
	h := handler(t, &c)
	g, err := Open("127.0.0.1:53", 1, h)
	must(t, err)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			conn, err := dns.Dial("udp", "127.0.0.1:53")
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for i := 0; !stop.Load(); i++ {
				name := "web.shop.svc.cluster.local."
				if i%4 == 0 {
					name = fmt.Sprintf("%d.example.com.", i)
				}
				m := ask(name, dns.TypeA)
				must := func(what string, err error) bool {
					if err != nil {
						t.Errorf("client %d, query %d: %s: %v", k, i, what, err)
						stop.Store(true)
					}
					return err == nil
				}
				conn.SetDeadline(time.Now().Add(patience))
				if !must("write", conn.WriteMsg(m)) {
					return
				}
				r, err := conn.ReadMsg()
				if !must("read", err) {
					return
				}
				if r.Id != m.Id {
					t.Errorf("client %d, query %d: another one's answer", k, i)
				}
			}
		})
	}
	for i := range 100 {
		next, err := Open("127.0.0.1:53", 1+i%3, h)
		must(t, err)
		g.Close(patience)
		g = next
	}
	stop.Store(true)
	wg.Wait()
	g.Close(patience)
	if len(c.samples) < 100 || c.missed < 100 {
		t.Errorf("only %d hits and %d misses", len(c.samples), c.missed)
	}
}

// TestPanic holds that a query that makes the code panic takes no other with it, and gets its answer from the server.
func TestPanic(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	var c counter
	h := handler(t, &c)
	h.Zones = NewSuffixes(wire("."), wire("cluster.local."), wire("broken.local."))
	h.Responders = append(h.Responders, &Responder{}) // without a zone
	g, err := Open("127.0.0.1:53", 1, h)
	must(t, err)
	defer g.Close(patience)
	for range 3 {
		if r := exchange(t, "127.0.0.1", ask("a.broken.local.", dns.TypeA)); r.Rcode != dns.RcodeRefused {
			t.Fatal(r)
		}
		if r := exchange(t, "127.0.0.1", ask("web.shop.svc.cluster.local.", dns.TypeA)); r.Rcode != dns.RcodeSuccess {
			t.Fatal(r)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.panic != 3 {
		t.Errorf("%d panics were told", c.panic)
	}
}

// TestMisses holds that no more than so many misses are served and wait at a time, that it is the oldest that go, and that
// those which wait for something else than a processor keep no others from being served.
func TestMisses(t *testing.T) {
	release := make(chan struct{})
	var served, dropped atomic.Int64
	var seen sync.Map
	m := newMisses(func(q *Query) {
		<-release
		served.Add(1)
		seen.Store(string(q.Msg), true)
	}, func() { dropped.Add(1) })
	const extra = 10
	counts := func() (serving, waiting int) {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.serving, m.n
	}
	for i := range maxServing + maxWaiting + extra {
		m.add(fmt.Append(nil, i), netip.AddrPort{}, nil, nil)
		if i != maxServing-1 {
			continue
		}
		for deadline := time.Now().Add(patience); ; time.Sleep(usherEvery) {
			serving, _ := counts()
			if serving == maxServing {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d are served", serving)
			}
		}
	}
	if n := dropped.Load(); n != extra {
		t.Errorf("%d dropped, want %d", n, extra)
	}
	if serving, waiting := counts(); serving != maxServing || waiting != maxWaiting {
		t.Errorf("%d served, %d wait", serving, waiting)
	}
	close(release)
	for deadline := time.Now().Add(patience); m.busy(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still busy")
		}
	}
	if n := served.Load(); n != maxServing+maxWaiting {
		t.Errorf("%d served", n)
	}
	for i := range maxServing + maxWaiting + extra {
		_, ok := seen.Load(fmt.Sprint(i))
		if oldest := i >= maxServing && i < maxServing+extra; ok == oldest {
			t.Errorf("query %d: served %v", i, ok)
		}
	}
}

// batch fills a socket's vector with queries as if they had been received.
func batch(t testing.TB, names ...string) *socket {
	var c counter
	g := &Group{addr: "test"}
	s := &socket{group: g, v: newVector(true), handler: handler(t, &c), observer: &c}
	for i := range batchLen {
		b := pack(t, ask(names[i%len(names)], dns.TypeA))
		copy(s.v.slots[i].query[:], b)
		s.v.in[i].len = uint32(len(b))
	}
	s.in = batchLen
	return s
}

func TestAnswerDoesNotAllocate(t *testing.T) {
	s := batch(t, "web.shop.svc.cluster.local.", "few.shop.svc.cluster.local.", "none.shop.svc.cluster.local.")
	if n := testing.AllocsPerRun(100, func() {
		s.out, s.samples = 0, s.samples[:0]
		if s.answer(0) != batchLen || s.out != batchLen {
			t.Fatal("not all were answered")
		}
	}); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

func BenchmarkAnswer(b *testing.B) {
	s := batch(b, "web.shop.svc.cluster.local.")
	b.ReportAllocs()
	for range b.N {
		s.out, s.samples = 0, s.samples[:0]
		s.answer(0)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batchLen), "ns/query")
}
