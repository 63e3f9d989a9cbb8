package main

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// TestLoad asks a server that answers some questions, denies some, loses some, and sends answers to none.
func TestLoad(t *testing.T) {
	questions, err := read(strings.NewReader("a.test A\nnone.test. AAAA\nlost.test SRV\nb.test A\n"))
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var answered, denied, dropped int // the server has one goroutine, which has ended when they are read
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			q, m := new(dns.Msg), new(dns.Msg)
			if err := q.Unpack(buf[:n]); err != nil {
				t.Errorf("%x: %v", buf[:n], err)
				return
			}
			m.SetReply(q)
			switch q.Question[0].Name {
			case "lost.test.":
				dropped++
				continue
			case "none.test.":
				denied++
				m.Rcode = dns.RcodeNameError
			default:
				answered++
			}
			raw, err := m.Pack()
			if err != nil {
				t.Errorf("%v", err)
				return
			}
			other := append([]byte{raw[0] + 1}, raw[1:]...) // to an older question of the slot
			for _, msg := range [][]byte{raw[:5], buf[:n], other, raw, raw} {
				if _, err := pc.WriteTo(msg, from); err != nil {
					t.Errorf("%v", err)
				}
			}
		}
	}()
	*clients, *window, *length, *timeout = 2, 16, 0.1, 1
	got, took, err := load(pc.LocalAddr().String(), questions)
	if err != nil {
		t.Fatal(err)
	}
	pc.Close()
	<-done
	want := counts{completed: answered + denied, lost: dropped}
	want.codes[dns.RcodeSuccess], want.codes[dns.RcodeNameError] = answered, denied
	if got != want || answered == 0 || denied == 0 || dropped == 0 || took <= 0 {
		t.Errorf("%+v in %s, want %+v", got, took, want)
	}
}

func TestPrint(t *testing.T) {
	c := counts{completed: 3, lost: 1}
	c.codes[dns.RcodeSuccess], c.codes[dns.RcodeNameError] = 2, 1
	var b strings.Builder
	c.print(&b, 500*time.Millisecond)
	want := `Statistics:

  Queries sent:         4
  Queries completed:    3 (75.00%)
  Queries lost:         1 (25.00%)

  Response codes:       NOERROR 2 (66.67%), NXDOMAIN 1 (33.33%)
  Run time (s):         0.500000
  Queries per second:   6.000000
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestReadRefuses(t *testing.T) {
	for _, text := range []string{"", "name\n", "name TYPE\n", strings.Repeat("a", 64) + " A\n"} {
		if got, err := read(strings.NewReader(text)); err == nil {
			t.Errorf("%q: %x", text, got)
		}
	}
}
