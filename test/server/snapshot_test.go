package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/test/standin"
)

func fromAPI(kubeconfig, snapshot string, options ...string) string {
	return fmt.Sprintf("ropewalk cluster.local in-addr.arpa {\nkubeconfig %s\nsnapshot %s\n%s\n}", kubeconfig, snapshot, strings.Join(options, "\n"))
}

// TestReloadWithSnapshot: a snapshot is loaded once for a feed, and is one feed's at a time.
func TestReloadWithSnapshot(t *testing.T) {
	api := standin.New(t)
	api.Load([]byte(web))
	path, kubeconfig := filepath.Join(t.TempDir(), "s"), api.Kubeconfig(t.TempDir())
	const name = "web.shop.svc.cluster.local"
	corefile := func(options ...string) string { return block(fromAPI(kubeconfig, path, options...)) }
	mark := logged.mark()
	s := start(t, corefile())
	s.expect(t, name, dns.TypeA, "NOERROR, A 10.96.0.2")
	eventually(t, "a snapshot", func() bool { _, err := os.Stat(path); return err == nil })
	asked := len(api.Requests())
	for range 3 {
		s.restart(t, corefile("fallthrough"))
		s.restart(t, corefile())
	}
	if n := len(api.Requests()); n != asked {
		t.Errorf("%d requests more", n-asked)
	}
	if n := goroutines(t, "ropewalk.(*keeper).run"); n != 1 {
		t.Errorf("%d keepers, want one", n)
	}

	// Another TTL needs another feed, which can use the same snapshot, and has it.
	stop := s.askThroughout(t, name, "NOERROR, A 10.96.0.2")
	s.restart(t, corefile("ttl 7"))
	if n := stop(); n == 0 {
		t.Error("no answers while the server reloaded")
	}
	if got := s.ask(t, name, dns.TypeA).Answer[0].Header().Ttl; got != 7 {
		t.Errorf("TTL %d, want 7", got)
	}
	if n := goroutines(t, "ropewalk.(*keeper).run"); n != 1 {
		t.Errorf("%d keepers, want the new one only", n)
	}
	if l := logged.since(mark); strings.Contains(l, "snapshot") {
		t.Errorf("the API server was there all the time:\n%s", l)
	}

	// With the API away, another feed serves what the one before it has seen.
	api.Load([]byte(strings.Replace(web, "10.96.0.2", "10.96.0.3", 1)))
	eventually(t, "the change is served", func() bool { return summary(s.ask(t, name, dns.TypeA)) == "NOERROR, A 10.96.0.3" })
	s.stop(t)
	api.Down()
	nothingLeft(t)
	s = start(t, corefile("startup_timeout 1h"))
	s.expect(t, name, dns.TypeA, "NOERROR, A 10.96.0.3")
	s.expect(t, "none.shop.svc.cluster.local", dns.TypeA, "NXDOMAIN")
	s.stop(t)
	nothingLeft(t)
}

// TestSnapshotOfTwo: two server blocks share a file if they share a feed.
func TestSnapshotOfTwo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	same := fromAPI(away(t), path, "startup_timeout 0s")
	start(t, block(same)+strings.Replace(block(same), ".:0", "org:0", 1))
	_, err := caddy.Start(input(block(same) + strings.Replace(block(strings.Replace(same, "startup_timeout 0s", "zonal", 1)), ".:0", "org:0", 1)))
	for _, w := range []string{"Corefile:13: ", "snapshot " + path, "Corefile:5", "name another file"} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("no %q in %v", w, err)
		}
	}
}
