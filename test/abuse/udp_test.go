// Package abuse floods bin/coredns with what strangers may send, and holds what that can cost: memory and goroutines are
// bounded, honest clients are answered, and nobody gets more octets than they may ask for.
package abuse

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/test/coredns"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

var (
	duration = flag.Duration("duration", 750*time.Millisecond, "how long honest clients ask during each flood")
	kinds    = flag.String("kinds", ".", "pattern of the kinds of abuse to try")
)

// flood is a kind of abuse over UDP.
type flood struct {
	name     string
	fastpath string
	corefile string // more lines
	// queries are sent in turn, with an ID, and a random label in the place of the first if random says so.
	queries [][]byte
	random  bool
	// limit is how long a reply may be; 0 allows none.
	limit func(query []byte) int
	// hole is the upstream that does not answer, if there is one.
	hole *hole
	// share is how many of the honest clients' queries for names of the cluster are answered at least. 0 is for a flood that
	// the kernel drops packets of, theirs among them: they ask over TCP.
	share float64
	// memory is how many MiB it may cost. 0: nothing is bounded but the replies.
	memory float64
}

// outcome is what came of a flood.
type outcome struct {
	sent, replies atomic.Int64
	asked, octets atomic.Int64 // of the queries that were answered, and of their answers
	longest       atomic.Int64
	rcodes        [16]atomic.Int64
}

func (o *outcome) String() string {
	codes := ""
	for r := range o.rcodes {
		if n := o.rcodes[r].Load(); n > 0 {
			codes += fmt.Sprintf(" %s %d", dns.RcodeToString[r], n)
		}
	}
	return fmt.Sprintf("%d sent, %d answered (%s), longest %d, amplification %.2f", o.sent.Load(), o.replies.Load(),
		strings.TrimSpace(codes), o.longest.Load(), float64(o.octets.Load())/float64(max(1, o.asked.Load())))
}

// run sends the flood until ctx ends, from as many sockets as there are senders times spread.
func (f *flood) run(ctx context.Context, t *testing.T, o *outcome) {
	const senders, spread = 2, 8
	var sending, reading sync.WaitGroup
	var conns []*net.UDPConn
	for range senders {
		var own []*net.UDPConn
		for range spread {
			c, err := net.Dial("udp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			own = append(own, c.(*net.UDPConn))
			c.(*net.UDPConn).SetReadBuffer(4 << 20)
			reading.Go(func() { f.read(t, c.(*net.UDPConn), o) })
		}
		conns = append(conns, own...)
		sending.Go(func() {
			buf := make([]byte, 65536)
			for i := rand.Uint32(); ctx.Err() == nil; i++ {
				if _, err := own[i%spread].Write(f.make(buf, uint16(i))); err == nil {
					o.sent.Add(1)
				}
			}
		})
	}
	sending.Wait()
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)) // what comes later is not looked at
	}
	reading.Wait()
	for _, c := range conns {
		c.Close()
	}
}

func (f *flood) of(id uint16) []byte { return f.queries[int(id)%len(f.queries)] }

// make writes the query with an ID.
func (f *flood) make(buf []byte, id uint16) []byte {
	b := buf[:copy(buf, f.of(id))]
	if len(b) >= 2 {
		binary.BigEndian.PutUint16(b, id)
	}
	if f.random {
		label := b[13 : 13+b[12]]
		for r := rand.Uint64(); len(label) > 0; label, r = label[1:], r/26 {
			label[0] = 'a' + byte(r%26)
		}
	}
	return b
}

func (f *flood) read(t *testing.T, c *net.UDPConn, o *outcome) {
	buf := make([]byte, 65536)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if n < 12 {
			t.Errorf("a reply of %d octets", n)
			return
		}
		q := f.of(binary.BigEndian.Uint16(buf))
		if limit := f.limit(q); n > limit || buf[2]&0x80 == 0 {
			t.Errorf("reply of %d octets, at most %d are allowed, to\n%x\n%x", n, limit, q, buf[:min(n, 100)])
			return
		}
		o.replies.Add(1)
		o.asked.Add(int64(len(q)))
		o.octets.Add(int64(n))
		o.rcodes[buf[3]&15].Add(1)
		for {
			if l := o.longest.Load(); l >= int64(n) || o.longest.CompareAndSwap(l, int64(n)) {
				break
			}
		}
	}
}

// query packs a query, with an OPT record if size is not 0.
func query(t *testing.T, name string, typ uint16, size uint16) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, typ)
	if size > 0 {
		m.SetEdns0(size, false)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// bufsize is how much the client that sends a query takes (RFC 6891 section 6.2.3). What the tests send has its OPT record,
// without options, at the end.
func bufsize(q []byte) int {
	if q[11] == 0 {
		return 512
	}
	var m dns.Msg
	if err := m.Unpack(q); err != nil {
		return 512
	}
	return max(512, int(m.IsEdns0().UDPSize()))
}

// short is for what is no query, or hardly one.
func short(q []byte) int {
	if len(q) < 12 || q[2]&0x80 != 0 {
		return 0
	}
	return 512
}

// What misses of the fast path may be at a time (package fastpath): with the plugins, and waiting for their turn.
const (
	maxServing = 2048
	maxWaiting = 2048
)

// What things take in memory, in MiB, and what a server may take for nothing in particular.
const (
	kib   = 1.0 / 1024
	slack = 32
	// garbage is how much more Go's collector lets there be than what is in use (GOGC=100).
	garbage = 2
	// waiting is a query that waits: 4 KiB of it, and its address.
	waiting = 4.5 * kib
	// plain is a query with the plugins: itself, a goroutine's stack, its message as records, and a few small things.
	plain = waiting + 20*kib
	// forwarded has a socket and a larger stack besides.
	forwarded = plain + 20*kib
	// full has an answer of 4 KiB, as records and packed.
	full = plain + 40*kib
)

// misses is what it may cost that all places for misses are taken, each query taking each.
func misses(each float64) float64 { return slack + garbage*(maxServing*each+maxWaiting*waiting) }

func TestUDP(t *testing.T) {
	coredns.Binary(t)
	if !netns.Enter(t) {
		return
	}
	manifests := cluster(t)
	hole, good := blackHole(t), upstream(t)
	forward := "forward good.test " + good + "\n forward . " + hole.LocalAddr().String()
	random := strings.Repeat("x", 12)
	names := [][]byte{
		query(t, random+".a.svc.cluster.local.", dns.TypeA, 0),
		query(t, random+".b.svc.cluster.local.", dns.TypeAAAA, 1232),
		query(t, random+".cluster.local.", dns.TypeSRV, 65535),
	}
	elsewhere := [][]byte{query(t, random+".example.", dns.TypeA, 65535), query(t, random+".example.", dns.TypeA, 0)}
	capped := func(at int) func([]byte) int { return func(q []byte) int { return min(at, bufsize(q)) } }
	for _, f := range []flood{
		{name: "random names inside", fastpath: "on", random: true, queries: names, limit: capped(4096), share: 0.1, memory: slack},
		{name: "random names outside", fastpath: "on", random: true, queries: elsewhere, limit: capped(4096), share: 0.3,
			corefile: forward, hole: hole, memory: misses(forwarded)},
		{name: "random names outside, max_concurrent", fastpath: "on", random: true, queries: elsewhere, limit: capped(4096),
			share: 0.3, corefile: forward + " {\n max_concurrent 1000\n }", hole: hole, memory: misses(forwarded)},
		{name: "malformed", fastpath: "on", queries: malformed(t), limit: short, share: 0.3, memory: misses(plain)},
		{name: "largest answer", fastpath: "on", queries: largest(t), limit: capped(4096), memory: slack},
		{name: "largest answer by the plugins", fastpath: "on", queries: withOption(t), limit: capped(4096), share: 0.3,
			memory: misses(full)},
		// CoreDNS's own server has a goroutine for each query, as many as there are: nothing to hold it to but the length of
		// its replies. With what it takes for queries, that is more than was sent.
		{name: "random names inside", fastpath: "off", random: true, queries: names, limit: bufsize},
		{name: "random names outside", fastpath: "off", random: true, queries: elsewhere, limit: bufsize, corefile: forward, hole: hole},
		{name: "malformed", fastpath: "off", queries: malformed(t), limit: short},
		{name: "largest answer, bufsize 1232", fastpath: "off", queries: largest(t), limit: capped(1232), corefile: "bufsize 1232"},
	} {
		f.try(t, manifests)
	}
}

func largest(t *testing.T) (qs [][]byte) {
	for _, size := range []uint16{65535, 4096, 512, 0} {
		qs = append(qs, query(t, "big.a.svc.cluster.local.", dns.TypeA, size),
			query(t, "_http._tcp.big.a.svc.cluster.local.", dns.TypeSRV, size))
	}
	return qs
}

// withOption returns the queries for the largest answer with an option that the fast path leaves to the plugins.
func withOption(t *testing.T) (qs [][]byte) {
	for _, q := range largest(t) {
		var m dns.Msg
		if err := m.Unpack(q); err != nil {
			t.Fatal(err)
		}
		if opt := m.IsEdns0(); opt != nil {
			opt.Option = append(opt.Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")})
			q, _ = m.Pack()
			qs = append(qs, q)
		}
	}
	return qs
}

// try floods a server and looks at it and at honest clients meanwhile.
func (f flood) try(t *testing.T, manifests string) {
	name := f.name + ", fastpath " + f.fastpath
	if !regexp.MustCompile(*kinds).MatchString(name) {
		return
	}
	t.Run(name, func(t *testing.T) {
		s := start(t, manifests, f.fastpath, f.corefile)
		var o outcome
		r := s.during(t, f.hole != nil, func(ctx context.Context) { f.run(ctx, t, &o) })
		t.Logf("%v", &o)
		r.log(t, s)
		if f.hole != nil {
			defer f.hole.open(t)()
		}
		if f.memory > 0 {
			serves(t)
			r.check(t, s, f.memory, maxServing)
			r.udp.check(t, "UDP", f.share)
			r.tcp.check(t, "TCP", 0.5)
		}
		s.fallsBack(t)
		serves(t)
	})
}

// result is what a server and honest clients did during a flood.
type result struct {
	udp, tcp, outside honest
	peak              float64
	goroutines        int
}

// during runs f, and honest clients once that is under way, also for names outside if there are any. It goes on until the last
// of them has its answer or has given up.
func (s *server) during(t *testing.T, outsiders bool, f func(ctx context.Context)) *result {
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var r result
	var flood, honest sync.WaitGroup
	s.watch(ctx, &flood, &r.goroutines)
	flood.Go(func() { f(ctx) })
	time.Sleep(*duration / 4) // not to wait for anything: what is asked before the flood has risen shows nothing
	asking, enough := context.WithTimeout(ctx, *duration)
	defer enough()
	r.udp.ask(asking, &honest, t, "udp", inside)
	r.tcp.ask(asking, &honest, t, "tcp", inside)
	if outsiders {
		r.outside.ask(asking, &honest, t, "udp", outside)
	}
	<-asking.Done()
	honest.Wait()
	end()
	flood.Wait()
	r.peak = s.peak(t)
	return &r
}

func (r *result) log(t *testing.T, s *server) {
	t.Logf("honest: UDP %v, TCP %v, outside %v; RSS %.0f -> %.0f MiB; goroutines %d -> %d; log %d KiB", &r.udp, &r.tcp, &r.outside,
		s.idle.rss, r.peak, s.idle.goroutines, r.goroutines, len(s.Log())>>10)
}

// check holds that it cost no more than memory MiB, and one goroutine for each of things and a few.
func (r *result) check(t *testing.T, s *server, memory float64, things int) {
	t.Helper()
	if cost := r.peak - s.idle.rss; cost > memory {
		t.Errorf("it cost %.0f MiB, want at most %.0f", cost, memory)
	}
	if most := s.idle.goroutines + things + 50; r.goroutines > most {
		t.Errorf("%d goroutines, want at most %d", r.goroutines, most)
	}
}

// fallsBack waits until what a flood has started has ended.
func (s *server) fallsBack(t *testing.T) {
	t.Helper()
	eventually(t, "goroutines are as before", func() bool { return s.goroutines(t) <= s.idle.goroutines+20 })
}
