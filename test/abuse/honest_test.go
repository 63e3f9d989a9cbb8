package abuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// An honest client asks like a resolver with "options timeout:1 attempts:3" (resolv.conf(5)), which is less patient than the
// C library's default of 5 and 2. There are a few of each kind.
const (
	patience = time.Second
	attempts = 3
	clients  = 8
	pause    = 200 * time.Millisecond
)

// honest is what became of the queries of honest clients.
type honest struct {
	mu                     sync.Mutex
	asked, first, answered int
}

func (h *honest) String() string {
	return fmt.Sprintf("%d of %d (%d at first)", h.answered, h.asked, h.first)
}

// ask has clients ask for names, one after the other, until ctx ends. Each query has a socket of its own.
func (h *honest) ask(ctx context.Context, wg *sync.WaitGroup, t *testing.T, network string, name func(i int) (name, ip string)) {
	for i := range clients {
		wg.Go(func() {
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for ; ctx.Err() == nil; i += clients {
				h.one(t, network, i, name)
				<-tick.C
			}
		})
	}
}

// one asks once, and again where there is no answer. A wrong answer fails the test.
func (h *honest) one(t *testing.T, network string, i int, name func(i int) (name, ip string)) {
	q, ip := name(i)
	answered := 0 // at which attempt
	for attempt := 1; attempt <= attempts && answered == 0; attempt++ {
		c := &dns.Client{Net: network, Timeout: patience}
		m, _, err := c.Exchange(new(dns.Msg).SetQuestion(q, dns.TypeA), addr)
		switch {
		case err == nil && right(m, ip):
			answered = attempt
		case err == nil:
			t.Errorf("wrong answer over %s:\n%v", network, m)
			return
		case network == "udp" && !errors.Is(err, os.ErrDeadlineExceeded):
			t.Errorf("%s over %s: %v", q, network, err)
			return
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked++
	if answered > 0 {
		h.answered++
	}
	if answered == 1 {
		h.first++
	}
}

func right(m *dns.Msg, ip string) bool {
	if m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
		return false
	}
	a, ok := m.Answer[0].(*dns.A)
	return ok && a.A.String() == ip
}

// inside is a name of the cluster, outside one of the upstream that answers.
func inside(i int) (name, ip string) {
	i %= services
	return fmt.Sprintf("svc-%d.a.svc.cluster.local.", i), clusterIP(i)
}

func outside(i int) (name, ip string) { return fmt.Sprintf("n%d.good.test.", i), "192.0.2.1" }

// check fails the test if less than share of the queries were answered.
func (h *honest) check(t *testing.T, what string, share float64) {
	t.Helper()
	if h.asked == 0 || float64(h.answered) < share*float64(h.asked) {
		t.Errorf("honest clients, %s: %v answered, want %.0f %%", what, h, 100*share)
	}
}

// serves has an honest client ask now.
func serves(t *testing.T) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		var h honest
		h.one(t, network, 0, inside)
		h.check(t, "after the flood, "+network, 1)
	}
}
