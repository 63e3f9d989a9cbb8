package server

import (
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"
)

func namespaceUpdates(t *testing.T, addr string) float64 {
	t.Helper()
	return scrape(t, addr)[`coredns_ropewalk_updates_total{kind="Namespace"}`]
}

// askThroughout asks over UDP from a few clients until stop is called, which returns how many answers there were. An
// answer that is not one of want fails the test; none at all is what a client of UDP has to live with.
func (s *server) askThroughout(t *testing.T, name string, want ...string) (stop func() int64) {
	var wg sync.WaitGroup
	var answers atomic.Int64
	end := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			c := &dns.Client{Timeout: 2 * time.Second}
			for {
				select {
				case <-end:
					return
				default:
				}
				m, _, err := c.Exchange(query(name, dns.TypeA), s.udp)
				var timeout net.Error
				switch {
				case errors.As(err, &timeout) && timeout.Timeout():
				case err != nil:
					t.Errorf("%v", err)
					return
				default:
					answers.Add(1)
					if got := summary(m); !strings.Contains("|"+strings.Join(want, "|")+"|", "|"+got+"|") {
						t.Errorf("%s, want %q", got, want)
						return
					}
				}
			}
		})
	}
	return func() int64 {
		close(end)
		wg.Wait()
		return answers.Load()
	}
}

func TestReload(t *testing.T) {
	dir := files(t, "web.yaml", web)
	addr := freePort(t)
	corefile := func(options ...string) string { return block("prometheus "+addr, ropewalk(dir, options...)) }
	const name = "web.shop.svc.cluster.local"
	s := start(t, corefile())
	s.expect(t, name, dns.TypeA, "NOERROR, A 10.96.0.2")
	listed := namespaceUpdates(t, addr)
	serial := s.ask(t, "cluster.local", dns.TypeSOA).Answer[0].(*dns.SOA).Serial

	stop := s.askThroughout(t, name, "NOERROR, A 10.96.0.2")
	for range 5 {
		s.restart(t, corefile())
		s.restart(t, corefile("fallthrough")) // is no matter of the records
	}
	if n := stop(); n == 0 {
		t.Error("no answers while the server reloaded")
	}
	if got := namespaceUpdates(t, addr); got != listed {
		t.Errorf("%v namespaces were delivered again", got-listed)
	}
	if got := s.ask(t, "cluster.local", dns.TypeSOA).Answer[0].(*dns.SOA).Serial; got != serial {
		t.Errorf("the serial went from %d to %d", serial, got)
	}
	if n := goroutines(t, "manifests.(*Source).Run"); n != 1 {
		t.Errorf("%d sources run, want 1", n)
	}

	stop = s.askThroughout(t, name, "NOERROR, A 10.96.0.2")
	s.restart(t, corefile("ttl 7"))
	if n := stop(); n == 0 {
		t.Error("no answers while the server reloaded")
	}
	if got := s.ask(t, name, dns.TypeA).Answer[0].Header().Ttl; got != 7 {
		t.Errorf("TTL %d, want 7", got)
	}
	if got := namespaceUpdates(t, addr); got != listed+5 {
		t.Errorf("%v namespaces were delivered, want the 5 there are", got-listed)
	}
	if n := goroutines(t, "manifests.(*Source).Run"); n != 1 {
		t.Errorf("%d sources run, want the new one only", n)
	}
	if n := goroutines(t, "zone.(*Zone).Run"); n != 1 {
		t.Errorf("%d zones run, want the new one only", n)
	}

	// Edits are still seen after reloads.
	write(t, dir+"/web.yaml", strings.Replace(web, "10.96.0.2", "10.96.0.3", 1))
	eventually(t, "the edit is served", func() bool { return summary(s.ask(t, name, dns.TypeA)) == "NOERROR, A 10.96.0.3" })

	s.stop(t)
	nothingLeft(t)
}

// goroutines counts those that have a function in their stack.
func goroutines(t *testing.T, function string) int {
	t.Helper()
	return strings.Count(stacks(), function+"(")
}

// TestFailedReload holds that a Corefile which cannot be started leaves the old server as it was, and nothing behind.
func TestFailedReload(t *testing.T) {
	dir := files(t, "web.yaml", web)
	const name = "web.shop.svc.cluster.local"
	s := start(t, block(ropewalk(dir)))
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for _, test := range []struct{ what, corefile string }{
		{"a bad option", block(ropewalk(dir, "ttl x"))},
		{"a directory that is not there", block(ropewalk(dir + "/none"))},
		{"an address in use by another plugin's part", block(ropewalk(dir, "ttl 7"), "health "+busy.Addr().String())},
		{"an address in use by a server", block(ropewalk(dir, "ttl 7")) + "other.local:" + port(busy.Addr().String()) + " {\nbind 127.0.0.1\nerrors\n}\n"},
		{"an unchanged stanza", block(ropewalk(dir)) + "other.local:" + port(busy.Addr().String()) + " {\nbind 127.0.0.1\nerrors\n}\n"},
	} {
		what, corefile := test.what, test.corefile
		if _, err := s.Restart(input(corefile)); err == nil {
			t.Fatalf("%s: reloaded", what)
		}
		m := s.ask(t, name, dns.TypeA)
		if got := summary(m); got != "NOERROR, A 10.96.0.2" || m.Answer[0].Header().Ttl != 5 {
			t.Errorf("%s: %s", what, m)
		}
		if n := goroutines(t, "manifests.(*Source).Run"); n != 1 {
			t.Errorf("%s: %d sources run, want 1", what, n)
		}
	}
	s.restart(t, block(ropewalk(dir)))
	s.expect(t, name, dns.TypeA, "NOERROR, A 10.96.0.2")
	s.stop(t)
	nothingLeft(t)
}

// TestFailedStart holds that what a server that did not come up leaves behind goes with the next start.
func TestFailedStart(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	used := "other.local:" + port(busy.Addr().String()) + " {\nbind 127.0.0.1\nerrors\n}\n"
	if _, err = caddy.Start(input(block(ropewalk(files(t, "web.yaml", web))) + used)); err == nil {
		t.Fatal("started")
	}
	s := start(t, block(ropewalk(files(t, "web.yaml", web))))
	if n := goroutines(t, "manifests.(*Source).Run"); n != 1 {
		t.Errorf("%d sources run, want 1", n)
	}
	s.stop(t)
	nothingLeft(t)
}

// TestTwoBlocks holds that stanzas which are alike share one source, and that stopping takes all.
func TestTwoBlocks(t *testing.T) {
	dir := files(t, "web.yaml", web)
	s := start(t, "cluster.local:0 {\nbind 127.0.0.1\n"+stanza("cluster.local", dir)+"\n}\nother.local:0 {\nbind 127.0.0.1\n"+stanza("other.local", dir)+"\n}\n")
	s.expect(t, "web.shop.svc.cluster.local", dns.TypeA, "NOERROR, A 10.96.0.2")
	s.expect(t, "web.shop.svc.other.local", dns.TypeA, "NOERROR, A 10.96.0.2")
	if n := goroutines(t, "manifests.(*Source).Run"); n != 1 {
		t.Errorf("%d sources run, want 1", n)
	}
	s.stop(t)
	nothingLeft(t)
}

// TestExampleCluster serves the directory that ships.
func TestExampleCluster(t *testing.T) {
	const example = "../../corefile/example"
	if _, err := os.Stat(example); err != nil {
		t.Fatal(err)
	}
	s := start(t, block(ropewalk(example, "pods verified", "env", "zonal")))
	s.expect(t, "web.shop.svc.cluster.local", dns.TypeA, "NOERROR, A 10.96.12.34")
	s.expect(t, "34.12.96.10.in-addr.arpa", dns.TypePTR, "NOERROR, PTR web.shop.svc.cluster.local.")
	s.expect(t, "db-0.db.shop.svc.cluster.local", dns.TypeAAAA, "NOERROR, AAAA fd00:10:244:1::30")
}
