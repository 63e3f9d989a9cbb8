package server

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	_ "github.com/coredns/coredns/plugin/shed"
)

// fastHits is how many queries fast paths of this process have answered.
func fastHits(t *testing.T) float64 {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "coredns_ropewalk_fastpath_queries_total" && m.GetLabel()[0].GetValue() == "hit" {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatal("no metric")
	return 0
}

// isFast says whether a query was answered by the fast path, and checks the answer.
func (s *server) isFast(t *testing.T) bool {
	t.Helper()
	before := fastHits(t)
	s.expect(t, "web.shop.svc.cluster.local", dns.TypeA, "NOERROR, A 10.96.0.2")
	// What a socket has answered is counted a moment later; another query to the same socket comes behind that.
	for range 20 {
		if fastHits(t) > before {
			return true
		}
		s.ask(t, "web.shop.svc.cluster.local", dns.TypeA)
	}
	return false
}

// TestFastPathIsOn holds which plugins may stand in front of ropewalk without keeping queries from the fast path.
func TestFastPathIsOn(t *testing.T) {
	dir := files(t, "web.yaml", web)
	addr := freePort(t)
	for name, corefile := range map[string]string{
		"alone": block(ropewalk(dir)),
		"as in clusters": block("errors", "health "+freePort(t), "ready "+freePort(t), "prometheus "+addr, "cache 30", "loadbalance",
			ropewalk(dir, "pods insecure", "fallthrough in-addr.arpa"), "behind"),
		"all that do not mind": block("metadata", "bufsize 1232", "nsid", "prometheus "+addr, "errors", "loadbalance round_robin", "cache",
			"transfer {\nto *\n}", ropewalk(dir)),
		"autopath":         block("autopath @ropewalk", ropewalk(dir, "pods verified")),
		"own autopath":     block(ropewalk(dir, "autopath")),
		"plugins behind":   block(ropewalk(dir, "fallthrough"), "behind"),
		"several sockets":  block("multisocket 3", ropewalk(dir, "fastpath 3")),
		"another block":    block(ropewalk(dir)) + "example.com:0 {\nbind 127.0.0.1\nlog\nbehind\n}\n",
		"everywhere":       ".:0 {\n" + ropewalk(dir) + "\n}\n",
		"IPv6":             ".:0 {\nbind ::1\n" + ropewalk(dir) + "\n}\n",
		"several keys":     "cluster.local:0 in-addr.arpa:0 {\nbind 127.0.0.1\n" + ropewalk(dir) + "\n}\n",
		"a block for each": "cluster.local:0 {\nbind 127.0.0.1\n" + ropewalk(dir) + "\n}\n.:0 {\nbind 127.0.0.1\nbehind\n}\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, corefile)
			s.udp = strings.Replace(s.udp, "[::]", "127.0.0.1", 1)
			eventually(t, "the fast path answers", func() bool { return s.isFast(t) })
			s.stop(t)
			nothingLeft(t)
		})
	}
}

// TestFastPathIsOff holds that plugins that have to see every query do, and that the log says so.
func TestFastPathIsOff(t *testing.T) {
	dir := files(t, "web.yaml", web)
	hosts := t.TempDir() + "/hosts"
	if err := os.WriteFile(hosts, []byte("192.0.2.1 a.example.com\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ corefile, log string }{
		"log":         {block("log", ropewalk(dir)), "off for . at dns://127.0.0.1:0: the plugin log has to see every query"},
		"acl":         {block("acl {\nblock net 192.0.2.0/24\n}", ropewalk(dir)), "the plugin acl has to see every query"},
		"rewrite":     {block("rewrite name exact a.cluster.local b.cluster.local", ropewalk(dir)), "the plugin rewrite has to see every query"},
		"template":    {block("template IN A example.com {\nrcode NXDOMAIN\n}", ropewalk(dir)), "the plugin template has to see every query"},
		"hosts":       {block("hosts "+hosts+" {\nfallthrough\n}", ropewalk(dir)), "the plugin hosts has to see every query"},
		"tsig":        {block("tsig {\nsecret a.key. NoTCJU+DMqFWywaPyxSijrDEA/eC3nK0xi3AMEZuPVk=\n}", ropewalk(dir)), "the plugin tsig has to see every query"},
		"view":        {block("view v {\nexpr incidr(client_ip(), '127.0.0.0/8')\n}", ropewalk(dir)), "the plugin view has to see every query"},
		"loadbalance": {block("loadbalance round_robin {\nprefer 10.0.0.0/8\n}", ropewalk(dir)), "the plugin loadbalance with a policy other than round_robin"},
		"shed":        {"example.com:0 {\nbind 127.0.0.1\nshed\nbehind\n}\n" + block(ropewalk(dir)), "another plugin, as shed, has to see every answer"},
		"shed last":   {block(ropewalk(dir)) + "example.com:0 {\nbind 127.0.0.1\nshed\nbehind\n}\n", ""},
		"shed ahead":  {block("shed", ropewalk(dir)), ""},
		"unknown":     {block("labels", "metadata", ropewalk(dir, "fallthrough")), ""},
		"by option":   {block(ropewalk(dir, "fastpath off")), ""},
	} {
		t.Run(name, func(t *testing.T) {
			mark := logged.mark()
			s := start(t, test.corefile)
			if name == "unknown" { // labels answers everything itself
				before := fastHits(t)
				s.ask(t, "web.shop.svc.cluster.local", dns.TypeA)
				if fastHits(t) != before {
					t.Error("the fast path is on")
				}
				return
			}
			if s.isFast(t) {
				t.Error("the fast path is on")
			}
			if !strings.Contains(logged.since(mark), test.log) {
				t.Errorf("the log does not say %q:\n%s", test.log, logged.since(mark))
			}
		})
	}
}

// TestFastPathRoutes asks a listener with several server blocks: each query gets to its own.
func TestFastPathRoutes(t *testing.T) {
	dir := files(t, "web.yaml", web)
	s := start(t, "cluster.local:0 {\nbind 127.0.0.1\n"+ropewalk(dir)+"\n}\n"+
		"svc.pay.svc.cluster.local:0 example.com:0 {\nbind 127.0.0.1\nbehind\n}\n"+
		"shop2.svc.cluster.local:0 {\nbind 127.0.0.1\nlog\nbehind\n}\n")
	eventually(t, "the fast path answers", func() bool { return s.isFast(t) })
	for name, passed := range map[string]bool{
		"none.shop.svc.cluster.local": false, "pay.svc.cluster.local": false, "xsvc.pay.svc.cluster.local": false,
		"svc.pay.svc.cluster.local": true, "a.SVC.pay.svc.cluster.local": true, "a.example.com": true, "a.shop2.svc.cluster.local": true,
	} {
		if got := passedOn(s.ask(t, name, dns.TypeA)); got != passed {
			t.Errorf("%s: passed on: %v, want %v", name, got, passed)
		}
	}
	if r := s.ask(t, "example.net", dns.TypeA); r.Rcode != dns.RcodeRefused {
		t.Errorf("nobody's name: %v", r)
	}
}

// TestFastPathMetrics asks the same of a server with the fast path and of one without: CoreDNS's metrics are the same
// but for the time that queries took.
func TestFastPathMetrics(t *testing.T) {
	dir := files(t, "web.yaml", web, "db.yaml", headless("db", 30), "a.yaml", alias("pay", "web.shop.svc.cluster.local"))
	counted := map[string]map[string]float64{}
	for _, mode := range []string{"off", "on"} {
		addr := freePort(t)
		s := start(t, block("prometheus "+addr, "errors", "loadbalance", ropewalk(dir, "fastpath "+mode, "pods insecure", "fallthrough in-addr.arpa"), "behind"))
		before := scrape(t, addr)
		n := 0
		for _, name := range []string{"web.shop.svc.cluster.local", "WEB.shop.svc.cluster.local", "db.shop.svc.cluster.local", "none.shop.svc.cluster.local",
			"cluster.local", "_http._tcp.web.shop.svc.cluster.local", "_sql._tcp.db.shop.svc.cluster.local", "pay.shop.svc.cluster.local",
			"2.0.96.10.in-addr.arpa", "9.9.9.10.in-addr.arpa", "10-1-2-3.shop.pod.cluster.local", "ns.dns.cluster.local", "example.com", "dns-version.cluster.local"} {
			for typ := range uint16(260) {
				if typ == dns.TypeAXFR || typ == dns.TypeIXFR || typ == dns.TypeTSIG || typ > 70 && typ < 250 && typ%8 > 0 {
					continue
				}
				q := query(name, typ)
				switch typ % 3 {
				case 1:
					q.SetEdns0(1232, false)
				case 2:
					q.SetEdns0(4096, true)
				}
				s.exchange(t, "udp", q)
				n++
			}
		}
		total := func(m map[string]float64) (sum float64) {
			for k, v := range m {
				if strings.HasPrefix(k, "coredns_dns_requests_total") {
					sum += v
				}
			}
			return sum
		}
		eventually(t, "all are counted", func() bool { return int(total(scrape(t, addr))-total(before)) == n })
		counted[mode] = map[string]float64{}
		for k, v := range scrape(t, addr) {
			if strings.HasPrefix(k, "coredns_dns_") && !strings.Contains(k, "duration_seconds_sum") && !strings.Contains(k, "duration_seconds_bucket") && v > before[k] {
				counted[mode][k] = v - before[k]
			}
		}
		s.stop(t)
	}
	if diff := cmp.Diff(counted["off"], counted["on"], cmpopts.EquateApprox(0, 0.5)); diff != "" {
		t.Errorf("without the fast path -, with it +\n%s", diff)
	}
	for _, part := range []string{`requests_total{family="1"`, `type="other"`, "do_requests_total", "request_size_bytes_sum", "response_size_bytes_bucket",
		`rcode="NXDOMAIN"`, "duration_seconds_count", `plugin="errors"`} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(counted["on"])), func(k string) bool { return strings.Contains(k, part) }) {
			t.Errorf("%s is not counted", part)
		}
	}
}

// TestFastPathReload takes the fast path through reloads that leave it no use: queries still get to whoever is there.
func TestFastPathReload(t *testing.T) {
	dir := files(t, "web.yaml", web)
	for _, bind := range []string{"bind 127.0.0.1", ""} {
		t.Run(bind, func(t *testing.T) {
			corefile := func(lines ...string) string {
				return fmt.Sprintf(".:0 {\n%s\n%s\n}\n", bind, strings.Join(lines, "\n"))
			}
			s := start(t, corefile(ropewalk(dir)))
			s.udp = strings.Replace(s.udp, "[::]", "127.0.0.1", 1)
			eventually(t, "the fast path answers", func() bool { return s.isFast(t) })
			s.restart(t, corefile(ropewalk(dir, "fastpath off")))
			eventually(t, "the fast path is off", func() bool { return !s.isFast(t) })
			s.restart(t, corefile("behind"))
			eventually(t, "another plugin answers", func() bool { return passedOn(s.ask(t, "web.shop.svc.cluster.local", dns.TypeA)) })
			s.restart(t, corefile("cache", "behind"))
			for range 5 {
				if !passedOn(s.ask(t, "web.shop.svc.cluster.local", dns.TypeA)) {
					t.Error("another plugin does not answer any more")
				}
			}
			s.restart(t, corefile(ropewalk(dir, "fastpath 2")))
			eventually(t, "the fast path answers", func() bool { return s.isFast(t) })
			s.stop(t)
			nothingLeft(t)
		})
	}
}

// TestFastPathReloadTSIG holds that a server with no use for the fast path checks signatures, and gets queries of other
// kinds, though all its queries come through sockets that the fast path has opened before.
func TestFastPathReloadTSIG(t *testing.T) {
	dir := files(t, "web.yaml", web)
	s := start(t, block(ropewalk(dir)))
	eventually(t, "the fast path answers", func() bool { return s.isFast(t) })
	const key, secret, other = "a.key.", "NoTCJU+DMqFWywaPyxSijrDEA/eC3nK0xi3AMEZuPVk=", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	for _, last := range []string{ropewalk(dir), "behind"} {
		s.restart(t, block("tsig {\nsecret "+key+" "+secret+"\nrequire all\n}", "updates", last))
		eventually(t, "signatures are asked for", func() bool {
			return s.ask(t, "web.shop.svc.cluster.local", dns.TypeTXT).Rcode == dns.RcodeRefused
		})
		for _, test := range []struct {
			name, secret string
			rcode        int
		}{{key, secret, dns.RcodeSuccess}, {key, other, dns.RcodeNotAuth}, {"b.key.", secret, dns.RcodeNotAuth}} {
			q := query("web.shop.svc.cluster.local", dns.TypeTXT)
			q.SetTsig(test.name, dns.HmacSHA256, 300, time.Now().Unix())
			c := &dns.Client{Timeout: 10 * time.Second, TsigSecret: map[string]string{test.name: test.secret}}
			r, _, err := c.Exchange(q, s.udp)
			if r == nil || r.Rcode != test.rcode || r.IsTsig() == nil || test.rcode == dns.RcodeSuccess && err != nil {
				t.Errorf("%s, %s: %v\n%v", test.name, test.secret, err, r)
			}
		}
		m := new(dns.Msg).SetUpdate("cluster.local.")
		m.SetTsig(key, dns.HmacSHA256, 300, time.Now().Unix())
		c := &dns.Client{Timeout: 10 * time.Second, TsigSecret: map[string]string{key: secret}}
		if r, _, err := c.Exchange(m, s.udp); err != nil || r.Rcode != dns.RcodeYXDomain {
			t.Errorf("update: %v\n%v", err, r)
		}
	}
}

// updates answers UPDATEs with YXDOMAIN.
type updates struct{ plugin.Handler }

func (updates) Name() string { return "updates" }

func (u updates) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if r.Opcode != dns.OpcodeUpdate {
		return plugin.NextOrFailure(u.Name(), u.Handler, ctx, w, r)
	}
	return dns.RcodeSuccess, w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeYXDomain))
}

// TestFastPathReloadWaits holds that a plugin is not told to stop while it works on a query, whoever stands ahead of it.
func TestFastPathReloadWaits(t *testing.T) {
	dir := files(t, "web.yaml", web)
	for _, test := range []struct{ now, next string }{{ropewalk(dir, "fallthrough"), ropewalk(dir)}, {ropewalk(dir, "fallthrough"), ""}, {"", ""}} {
		s := start(t, block(ropewalk(dir)))
		eventually(t, "the fast path answers", func() bool { return s.isFast(t) })
		s.restart(t, block(test.now, "slow"))
		s.settle(t)
		answer := make(chan *dns.Msg)
		go func() {
			r, _, _ := (&dns.Client{Timeout: 10 * time.Second}).Exchange(query("example.com", dns.TypeA), s.udp)
			answer <- r
		}()
		<-slowly
		s.restart(t, block(test.next, "behind"))
		s.settle(t)
		if r := <-answer; r == nil || r.Rcode != dns.RcodeSuccess {
			t.Errorf("the answer from before the reload is %v", r)
		}
		s.stop(t)
	}
}

// settle waits until CoreDNS reads the server's own socket: it cannot stop what has not begun (dnsserver.Server.Stop).
func (s *server) settle(t *testing.T) {
	t.Helper()
	eventually(t, "the server reads its socket", func() bool { return goroutines(t, "dns.(*Server).serveUDP") == 1 })
}

// TestFastPathReloadOften reloads as fast as CoreDNS can without leaving servers behind that it has not been able to stop, with
// another number of sockets each time. Nothing is left of the old ones.
func TestFastPathReloadOften(t *testing.T) {
	dir := files(t, "web.yaml", web)
	s := start(t, block(ropewalk(dir)))
	eventually(t, "the fast path answers", func() bool { return s.isFast(t) })
	before := sockets(t)
	stop := s.askThroughout(t, "web.shop.svc.cluster.local", "NOERROR, A 10.96.0.2")
	for i := range 20 {
		s.restart(t, block(ropewalk(dir, fmt.Sprintf("fastpath %d", 1+i%3))))
		s.settle(t)
	}
	s.restart(t, block(ropewalk(dir)))
	if stop() == 0 {
		t.Error("no answers")
	}
	s.settle(t)
	eventually(t, "the old sockets are closed", func() bool { return sockets(t) <= before })
	s.stop(t)
	nothingLeft(t)
}

// sockets counts those that this process has open.
func sockets(t *testing.T) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// slow takes a while for an answer, and fails if it is told to stop meanwhile. It sends to slowly when it begins.
type slow chan struct{}

var slowly = make(chan bool)

func (slow) Name() string { return "slow" }

func (s slow) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	slowly <- true
	select {
	case <-s:
		return dns.RcodeServerFailure, nil
	case <-time.After(200 * time.Millisecond):
		return dns.RcodeSuccess, w.WriteMsg(new(dns.Msg).SetReply(r))
	}
}

func init() {
	directives = slices.Insert(directives, slices.Index(directives, "tsig"), "shed")
	directives = slices.Insert(directives, slices.Index(directives, "tsig")+1, "updates")
	directives = append(directives, "slow")
	plugin.Register("slow", func(c *caddy.Controller) error {
		s := make(slow)
		c.OnShutdown(func() error {
			close(s)
			return nil
		})
		dnsserver.GetConfig(c).AddPlugin(func(plugin.Handler) plugin.Handler { return s })
		return nil
	})
	plugin.Register("updates", func(c *caddy.Controller) error {
		conf := dnsserver.GetConfig(c)
		conf.AllowOpcode(dns.OpcodeUpdate)
		conf.AddPlugin(func(next plugin.Handler) plugin.Handler { return updates{next} })
		return nil
	})
}
