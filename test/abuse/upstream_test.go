package abuse

import (
	"net"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// hole is an upstream that does not answer until it is opened.
type hole struct{ *net.UDPConn }

func blackHole(t *testing.T) *hole {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadBuffer(4 << 20)
	return &hole{c}
}

// open refuses what has come and what comes, until the returned function is called.
func (h *hole) open(t *testing.T) (shut func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := h.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if n < 12 {
				t.Errorf("a query of %d octets to the upstream", n)
				continue
			}
			buf[2], buf[3] = buf[2]|0x80, dns.RcodeRefused
			h.WriteToUDPAddrPort(buf[:n], from)
		}
	})
	return func() {
		h.SetReadDeadline(time.Unix(1, 0))
		wg.Wait()
		h.SetReadDeadline(time.Time{})
	}
}

// upstream is one that answers, and returns its address.
func upstream(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1},
			A: net.IPv4(192, 0, 2, 1)}}
		w.WriteMsg(m)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { s.ActivateAndServe() })
	t.Cleanup(func() {
		s.Shutdown()
		wg.Wait()
	})
	return c.LocalAddr().String()
}
