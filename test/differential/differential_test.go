// Package differential holds Ropewalk's answers to those of CoreDNS's kubernetes plugin. Both run in the test's process,
// in CoreDNS servers that are configured alike, get the same objects from the API stand-in, and are asked the same
// questions, right and wrong ones. Whatever they answer differently has to be one of the deliberate differences of
// docs/dns-differences.md, and each of those has to be seen.
package differential

import (
	"flag"
	"fmt"
	"iter"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

// serverAddr is an address of the test's namespace that is no loopback address to CoreDNS.
const serverAddr = "192.0.2.53"

// config is how both sides are configured.
type config struct {
	name string
	// zones are those of the plugins' stanzas, options the lines in them; around are further lines of the server block.
	zones, options, around []string
	bind                   string
	// noFastPath says that a plugin is in the way of the fast path.
	noFastPath bool
	// every thins the questions out: one of so many is asked. about picks the names that the configuration is about.
	every uint32
	about func(name string) bool
	// transfers are zones to be transferred.
	transfers []string
	// silent are questions that stock does not answer at all, beside those that it never does. They are not asked but for
	// one of them.
	silent func(question) bool
	// api prepares an API server of the configuration's own.
	api func(*standin.Server)
}

// way is one of Ropewalk's ways to answer: further lines in its stanza, which stock does not have.
type way struct {
	name  string
	lines []string
}

// list is for people who work on the document.
var list = flag.String("list", "", "write all differences to this file, one a line")

// ways are held to the same answers of stock. Those behind the first differ from it over UDP only.
var ways = []way{
	{"chain", []string{"fastpath off"}},
	{"fast path", []string{"fastpath on"}},
	{"fast path with 4 sockets", []string{"fastpath 4"}},
}

var (
	cluster = []string{"cluster.local", "in-addr.arpa", "ip6.arpa"}

	// upstream answers for what aliases point to, in a server block of its own: the plugin template would keep the fast path
	// from being used in the one that it stands in.
	upstreamZones = []string{"ok.example.com", "nodata.example.com", "cname.example.com", "back.example.com", "nx.example.com",
		"fail.example.com", "refused.example.com"}
	upstream = []string{
		"template IN A ok.example.com {\n  answer \"{{ .Name }} 60 IN A 192.0.2.1\"\n  answer \"{{ .Name }} 60 IN A 192.0.2.2\"\n}",
		"template IN AAAA ok.example.com {\n  answer \"{{ .Name }} 60 IN AAAA 2001:db8::1\"\n}",
		"template IN TXT ok.example.com {\n  answer \"{{ .Name }} 60 IN TXT hello\"\n}",
		"template IN ANY ok.example.com nodata.example.com {\n  rcode NOERROR\n  authority \"example.com. 60 IN SOA ns.example.com. root.example.com. 1 2 3 4 5\"\n}",
		"template IN ANY cname.example.com {\n  answer \"{{ .Name }} 60 IN CNAME ok.example.com.\"\n}",
		"template IN ANY back.example.com {\n  answer \"{{ .Name }} 60 IN CNAME web.shop.svc.cluster.local.\"\n}",
		"template IN ANY nx.example.com {\n  rcode NXDOMAIN\n  authority \"example.com. 60 IN SOA ns.example.com. root.example.com. 1 2 3 4 5\"\n}",
		"template IN ANY fail.example.com {\n  rcode SERVFAIL\n}",
		"template IN ANY refused.example.com {\n  rcode REFUSED\n}",
	}
	transferOut = []string{"transfer {\n  to *\n}"}
)

// containing picks names with one of parts in them.
func containing(parts ...string) func(string) bool {
	return func(name string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(strings.ToLower(name), p) })
	}
}

// configs are all that are compared.
func configs() []*config {
	pods := containing(".pod.")
	return []*config{
		{name: "plain", zones: cluster, around: upstream, every: 1},
		{name: "no upstream", zones: cluster, about: containing(".alias."), every: 1},
		{name: "pods disabled", zones: cluster, options: []string{"pods disabled"}, about: pods, every: 2},
		{name: "pods insecure", zones: cluster, options: []string{"pods insecure"}, around: upstream, about: containing(".pod.", "in-pod", "svc.", "arpa."), every: 2},
		{name: "pods verified", zones: cluster, options: []string{"pods verified"}, around: upstream, about: containing(".pod.", "in-pod"), every: 1},
		{name: "endpoint_pod_names", zones: cluster, options: []string{"endpoint_pod_names"}, about: containing(".shop.svc", "arpa."), every: 3},
		{name: "noendpoints", zones: cluster, options: []string{"noendpoints"}, every: 8},
		{name: "ignore empty_service", zones: cluster, options: []string{"ignore empty_service"}, every: 8},
		{name: "ttl 30", zones: cluster, options: []string{"ttl 30"}, every: 16},
		{name: "ttl 0", zones: cluster, options: []string{"ttl 0"}, every: 16},
		{name: "ttl 3600", zones: cluster, options: []string{"ttl 3600"}, every: 16},
		{name: "namespaces", zones: cluster, options: []string{"namespaces shop pay gone"}, around: upstream, every: 6},
		{name: "namespace_labels", zones: cluster, options: []string{"namespace_labels team=a"}, around: upstream, every: 6},
		{name: "labels", zones: cluster, options: []string{"labels tier=front", "pods verified"}, every: 8},
		{name: "fallthrough", zones: cluster, options: []string{"fallthrough"}, around: append(upstream, "behind"), every: 4},
		{name: "forward", zones: cluster, around: []string{"forward example.org 127.0.0.1:9"}, every: 16},
		{name: "fallthrough zones", zones: cluster, options: []string{"fallthrough in-addr.arpa ip6.arpa", "pods verified"}, around: []string{"behind"}, every: 4},
		{name: "multicluster", zones: append(cluster, "clusterset.local"), options: []string{"multicluster clusterset.local"}, around: append(upstream, transferOut...), every: 1,
			about: containing(".clusterset.", "imported"), transfers: []string{"clusterset.local."}},
		{name: "zonal", zones: cluster, options: []string{"zonal"}, about: containing("_zone", ".db.shop."), every: 1},
		{name: "zonal multicluster", zones: append(cluster, "clusterset.local"), options: []string{"zonal", "multicluster clusterset.local"}, about: containing("_zone"), every: 4},
		{name: "root", zones: []string{"."}, around: upstream, every: 8, silent: isReversePTR},
		{name: "several zones", zones: []string{"cluster.local", "foo.local", "10.in-addr.arpa"}, around: upstream, every: 4},
		{name: "nested zones", zones: []string{"foo.cluster.local", "cluster.local", "96.10.in-addr.arpa", "in-addr.arpa"}, every: 8},
		{name: "transfer", zones: []string{"cluster.local", "in-addr.arpa", "ip6.arpa", "96.10.in-addr.arpa"}, options: []string{"pods verified"}, around: transferOut, every: 64,
			transfers: []string{"cluster.local.", "in-addr.arpa.", "ip6.arpa.", "96.10.in-addr.arpa."}},
		{name: "unsynced", zones: cluster, options: []string{"startup_timeout 1s"}, api: noServices, every: 16},
		{name: "unsynced fallthrough", zones: cluster, options: []string{"startup_timeout 1s", "fallthrough"}, around: []string{"behind"}, api: noServices, every: 16},
		{name: "everywhere", zones: cluster, bind: everywhere, about: shortNames, around: transferOut, every: 1, transfers: []string{"cluster.local.", "in-addr.arpa."}},
		{name: "everywhere as a service", zones: cluster, bind: everywhere, about: shortNames, api: asService(headless), every: 1},
		{name: "everywhere as kube-dns", zones: cluster, bind: everywhere, about: shortNames, api: asService(ips("10.96.0.99", "fd00:10:96::99")), every: 1},
		{name: "one address", zones: cluster, bind: oneAddress, about: shortNames, every: 1},
	}
}

// What a configuration is bound to, if it is not 127.0.0.1.
const (
	everywhere = "everywhere"
	oneAddress = "one address"
)

// isReversePTR picks those that stock tries to answer with a name that ends in two dots where the zone is the root.
func isReversePTR(q question) bool {
	return q.typ == dns.TypePTR && strings.HasSuffix(strings.ToLower(q.name), ".arpa.")
}

// shortNames picks those around the apex.
func shortNames(name string) bool { return dns.CountLabel(name) < 5 }

// noServices makes an API server that does not hand out services.
func noServices(api *standin.Server) { api.Refuse("Service", 500) }

// asService makes this machine an endpoint of a service.
func asService(clusterIPs []string) func(*standin.Server) {
	return func(api *standin.Server) {
		port := udp("dns", 53)
		of := slice("kube-system/this", discoveryv1.AddressTypeIPv4, port, at(serverAddr), at("10.244.40.1", host("other")))
		of.Name = "this"
		api.Apply(service("kube-system", "this", clusterIPs, port), of)
	}
}

// TestSameAsStock asks both.
func TestSameAsStock(t *testing.T) {
	if !netns.Enter(t, serverAddr+"/32", "2001:db8::53/128") {
		return
	}
	entries, err := readEntries()
	if err != nil {
		t.Fatal(err)
	}
	objs := objects()
	api := standin.New(t)
	api.Apply(objs...)
	kubeconfig := api.Kubeconfig(t.TempDir())
	all := &report{}
	var ran []string
	left := len(configs())
	for _, c := range configs() {
		if raceDetector && len(ran) > 0 {
			break // klog, which stock sets up at each start, is not safe to set up again while stock's watches run
		}
		t.Run(c.name, func(t *testing.T) {
			left--
			if c.bind == oneAddress {
				c.bind = serverAddr
			}
			ran = append(ran, c.name)
			from := kubeconfig
			if c.api != nil {
				api := standin.New(t)
				api.Apply(objs...)
				c.api(api)
				from = api.Kubeconfig(t.TempDir())
			}
			stock := start(t, corefile(c, "kubernetes", from, nil))
			var ours []*server
			for _, w := range ways {
				ours = append(ours, start(t, corefile(c, "ropewalk", from, w.lines)))
			}
			r := &report{config: c.name}
			before := fastHits(t)
			r.run(t, stock, ours, c.questions(objs))
			if fast := fastHits(t) > before; fast == c.noFastPath {
				t.Errorf("the fast path has answered: %v, want %v", fast, !c.noFastPath)
			}
			r.hush(t, stock, ours[0], c)
			for _, z := range c.transfers {
				r.transfer(t, stock, ours[0], z)
			}
			for _, s := range r.torn[:min(len(r.torn), 5)] {
				t.Error(s)
			}
			t.Logf("%d questions, %d answered differently", r.asked, len(r.found))
			all.found = append(all.found, r.found...)
		})
	}
	t.Run("serial", func(t *testing.T) {
		if raceDetector {
			t.Skip("klog, as above")
		}
		ran = append(ran, "serial")
		r := &report{config: "serial"}
		r.serial(t)
		all.found = append(all.found, r.found...)
	})
	if left > 0 {
		ran = nil // by hand, with a part of the configurations: too few to tell what is stale
	}
	judge(t, all.found, entries, ran)
	if *list != "" {
		if err := os.WriteFile(*list, listing(all.found, entries), 0o600); err != nil {
			t.Error(err)
		}
	}
}

// listing has a line for each difference, with the lines of the document where its entries are.
func listing(found []*difference, entries []*entry) []byte {
	var b strings.Builder
	for _, d := range found {
		for _, e := range entries {
			if e.covers(d) {
				fmt.Fprintf(&b, "%d ", e.line)
			}
		}
		fmt.Fprintf(&b, "\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.config, d.q.name, dns.Type(d.q.typ), dns.Class(d.q.class), d.q.via,
			d.stock, d.ours, d.beyond, strings.Join(d.records[:min(len(d.records), 8)], "; "))
	}
	return []byte(b.String())
}

// questions are those of a configuration.
func (c *config) questions(objs []runtime.Object) iter.Seq[question] {
	zones := []string{"cluster.local."}
	for _, z := range c.zones {
		if z = strings.TrimSuffix(z, ".") + "."; !slices.Contains(zones, z) {
			zones = append(zones, z)
		}
	}
	names := namesOf(objs, zones)
	if c.about != nil {
		names = slices.DeleteFunc(names, func(n string) bool { return !c.about(n) })
	}
	return func(yield func(question) bool) {
		for q := range questions(names, c.every) {
			if !c.isSilent(q) && !yield(q) {
				return
			}
		}
	}
}

// isSilent tells questions to which stock's reply would have a name with an empty label in it, which cannot be sent.
func (c *config) isSilent(q question) bool {
	return c.silent != nil && c.silent(q) || q.typ == dns.TypePTR && ofNoService.MatchString(q.name)
}

// ofNoService are the addresses of slices that do not say which service they belong to.
var ofNoService = regexp.MustCompile(`(?i)^(1\.20\.244\.10|\d+\.\d+\.24[56]\.10)\.in-addr\.arpa\.$`)

// hush asks some of the questions that stock is silent about. What differs is that it is.
func (r *report) hush(t *testing.T, stock, ours *server, c *config) {
	for _, n := range []string{"1.20.244.10.in-addr.arpa.", "1.1.245.10.in-addr.arpa.", "2.0.96.10.in-addr.arpa."} {
		q := question{n, dns.TypePTR, dns.ClassINET, via{tcp: true}}
		if !c.isSilent(q) || c.name != "plain" && c.silent == nil {
			continue
		}
		a, b := newClient(stock), newClient(ours)
		defer a.Close()
		defer b.Close()
		mine, err := b.ask([]question{q})
		if err != nil {
			t.Fatal(err)
		}
		if silent, err := a.isSilent(q); err != nil || !silent {
			t.Fatalf("%v: stock does answer: %v", q, err)
		}
		r.asked++
		r.found = append(r.found, &difference{config: r.config, q: q, stock: "SILENCE", ours: outcome(mine[0]),
			records: unlike(nil, records(mine[0])), replies: [2]string{"SILENCE", brief(mine[0])}})
	}
}

// report is what came of a configuration.
type report struct {
	config string
	mu     sync.Mutex
	asked  int
	found  []*difference
	// exists is what our side said of each name, in lower case, that exists by itself and not as an alias.
	exists map[string]existence
	// torn are names of which it said now this and now that.
	torn []string
}

type existence struct {
	ok bool
	q  question
}

// note holds our side to its own answers: whether a name exists depends neither on the type that is asked for nor on
// upper and lower case (RFC 2308 section 2, RFC 4343). Stock does not keep to that.
func (r *report) note(q question, m *dns.Msg) {
	alias := slices.ContainsFunc(m.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeCNAME })
	if alias || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return
	}
	now := existence{m.Rcode == dns.RcodeSuccess && !passed(m), q}
	name := strings.ToLower(q.name)
	if r.exists == nil {
		r.exists = map[string]existence{}
	}
	if before, seen := r.exists[name]; !seen {
		r.exists[name] = now
	} else if before.ok != now.ok {
		r.torn = append(r.torn, fmt.Sprintf("[%s] %v: exists: %t, but %v: exists: %t", r.config, before.q, before.ok, q, now.ok))
	}
}

// batch is how many questions a worker takes at a time.
const batch = 512

// run asks both sides all questions.
func (r *report) run(t *testing.T, stock *server, ours []*server, questions iter.Seq[question]) {
	work := make(chan []question)
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			a := newClient(stock)
			defer a.Close()
			var b []*client
			for _, o := range ours {
				b = append(b, newClient(o))
				defer b[len(b)-1].Close()
			}
			for qs := range work {
				if err := r.ask(a, b, qs); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for qs := range chunks(questions, batch) {
		work <- qs
	}
	close(work)
	workers.Wait()
}

func chunks(questions iter.Seq[question], n int) iter.Seq[[]question] {
	return func(yield func([]question) bool) {
		var qs []question
		for q := range questions {
			if qs = append(qs, q); len(qs) == n {
				if !yield(qs) {
					return
				}
				qs = nil
			}
		}
		if len(qs) > 0 {
			yield(qs)
		}
	}
}

// ask asks everybody the same questions, over TCP only the first of ours: the ways differ over UDP.
func (r *report) ask(stock *client, ours []*client, qs []question) error {
	theirs, err := stock.ask(qs)
	if err != nil {
		return fmt.Errorf("stock: %w", err)
	}
	for k, c := range ours {
		if k == 1 {
			qs, theirs = overUDP(qs, theirs)
		}
		mine, err := c.ask(qs)
		if err != nil {
			return fmt.Errorf("%s: %w", ways[k].name, err)
		}
		var found []*difference
		for i, q := range qs {
			if d := compare(q, theirs[i], mine[i]); d != nil {
				d.config = r.config
				found = append(found, d)
			}
		}
		r.mu.Lock()
		for i, q := range qs {
			r.note(q, mine[i])
		}
		r.asked += len(qs)
		r.found = append(r.found, found...)
		r.mu.Unlock()
	}
	return nil
}

func overUDP(qs []question, replies []*dns.Msg) (udp []question, theirs []*dns.Msg) {
	for i, q := range qs {
		if !q.via.tcp {
			udp, theirs = append(udp, q), append(theirs, replies[i])
		}
	}
	return udp, theirs
}

// fastHits is how many queries the fast paths of this process have answered.
func fastHits(t *testing.T) (n float64) {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "coredns_ropewalk_fastpath_queries_total" && m.GetLabel()[0].GetValue() == "hit" {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// judge fails the test for differences that the document does not know, or knows twice, and for entries of the document
// that no difference was seen of, unless their configuration did not run.
func judge(t *testing.T, found []*difference, entries []*entry, ran []string) {
	t.Helper()
	var unknown []*difference
	for _, d := range found {
		var by []*entry
		for _, e := range entries {
			if e.covers(d) {
				by = append(by, e)
				e.seen++
			}
		}
		switch {
		case len(by) == 0:
			unknown = append(unknown, d)
		case len(by) > 1:
			t.Errorf("more than one entry is about it: %v\n%v", by, d)
		}
	}
	const perGroup, most = 3, 50
	printed := 0
	for _, g := range group(unknown) {
		if printed >= most {
			break
		}
		t.Errorf("%d times %s", len(g), g[0].category())
		for _, d := range g[:min(len(g), perGroup)] {
			printed++
			t.Errorf("%v", d)
		}
	}
	if len(unknown) > 0 {
		t.Errorf("%d differences of %d are in none of the entries", len(unknown), len(found))
	}
	for _, e := range entries {
		if e.seen == 0 && e.runsIn(ran) {
			t.Errorf("%v was not seen: the sides agree by now, or nothing asks for it", e)
		}
	}
}
