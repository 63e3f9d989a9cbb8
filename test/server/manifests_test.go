package server

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func contains(log, what string) bool { return strings.Contains(log, what) }

// TestLiveManifests holds that an edited file is served, that a broken one is told and changes nothing, and that
// mending it is enough.
func TestLiveManifests(t *testing.T) {
	dir := files(t, "web.yaml", web, "db.yaml", headless("db", 1))
	addr := freePort(t)
	s := start(t, block("prometheus "+addr, ropewalk(dir)))
	path := filepath.Join(dir, "web.yaml")
	const name = "web.shop.svc.cluster.local"
	answer := func() string { return summary(s.ask(t, name, dns.TypeA)) }
	age := func() float64 {
		return scrape(t, addr)[`coredns_ropewalk_sync_age_seconds{zone="cluster.local."}`]
	}
	serial := func() uint32 { return s.ask(t, "cluster.local", dns.TypeSOA).Answer[0].(*dns.SOA).Serial }
	s.expect(t, name, dns.TypeA, "NOERROR, A 10.96.0.2")
	old := serial()

	write(t, path, strings.Replace(web, "10.96.0.2", "10.96.0.3", 1))
	eventually(t, "the edit is served", func() bool { return answer() == "NOERROR, A 10.96.0.3" })
	s.expect(t, "2.0.96.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN")
	s.expect(t, "3.0.96.10.in-addr.arpa", dns.TypePTR, "NOERROR, PTR "+name+".")
	if serial() == old {
		t.Error("the serial is what it was")
	}

	mark := logged.mark()
	write(t, path, "# broken\n"+strings.Replace(web, "10.96.0.2", "10.96.0.300", 1))
	eventually(t, "the log names file and line", func() bool { return contains(logged.since(mark), path+":11") })
	if l := logged.since(mark); !contains(l, "[ERROR] plugin/ropewalk: ") || !contains(l, "spec.clusterIP") {
		t.Errorf("the log should say what is wrong:\n%s", l)
	}
	s.expect(t, name, dns.TypeA, "NOERROR, A 10.96.0.3")
	if age() <= 0 {
		t.Error("the metrics say that the records are current")
	}
	write(t, filepath.Join(dir, "db.yaml"), headless("db", 2))
	eventually(t, "other files are served all the same", func() bool {
		return len(s.ask(t, "db.shop.svc.cluster.local", dns.TypeA).Answer) == 2
	})
	s.expect(t, name, dns.TypeA, "NOERROR, A 10.96.0.3")

	write(t, path, strings.Replace(web, "10.96.0.2", "10.96.0.4", 1))
	eventually(t, "the mended file is served", func() bool { return answer() == "NOERROR, A 10.96.0.4" })
	eventually(t, "the records are current again", func() bool { return age() == 0 })
}
