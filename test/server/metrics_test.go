package server

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// scrape returns the series of CoreDNS's metrics, as in `name{label="value"}`, and their values.
func scrape(t *testing.T, addr string) map[string]float64 {
	t.Helper()
	code, body := get(t, "http://"+addr+"/metrics")
	if code != 200 {
		t.Fatalf("scrape: %d %s", code, body)
	}
	series := map[string]float64{}
	for l := range strings.Lines(body) {
		l = strings.TrimSpace(l)
		if i := strings.LastIndexByte(l, ' '); i > 0 && !strings.HasPrefix(l, "#") {
			v, err := strconv.ParseFloat(l[i+1:], 64)
			if err != nil {
				t.Fatal(err)
			}
			series[l[:i]] = v
		}
	}
	return series
}

// responses counts the responses by code.
func responses(t *testing.T, addr string) map[string]float64 {
	t.Helper()
	codes := map[string]float64{}
	for k, v := range scrape(t, addr) {
		if m := responseCode.FindStringSubmatch(k); m != nil {
			codes[m[1]] += v
		}
	}
	return codes
}

var responseCode = regexp.MustCompile(`^coredns_dns_responses_total\{.*rcode="(.*?)".*zone="\."`)

// TestMetricsAndLogTellTheCode holds that what is counted and logged is what the client got.
func TestMetricsAndLogTellTheCode(t *testing.T) {
	dir := files(t, "web.yaml", web, "more.yaml", alias("dangling", "gone.shop.svc.cluster.local")+alias("loop", "loop.shop.svc.cluster.local"))
	addr := freePort(t)
	s := start(t, block("prometheus "+addr, "log . \"{name} {type} {rcode}\"", ropewalk(dir)))
	tests := []struct {
		q    *dns.Msg
		code string
	}{
		{query("web.shop.svc.cluster.local", dns.TypeA), "NOERROR"},
		{query("web.shop.svc.cluster.local", dns.TypeAAAA), "NOERROR"},
		{query("none.shop.svc.cluster.local", dns.TypeA), "NXDOMAIN"},
		{query("dangling.shop.svc.cluster.local", dns.TypeA), "NXDOMAIN"},
		{query("loop.shop.svc.cluster.local", dns.TypeA).SetEdns0(1232, false), "SERVFAIL"},
		{query("cluster.local", dns.TypeAXFR), "REFUSED"},
	}
	for _, test := range tests {
		name, typ := test.q.Question[0].Name, dns.TypeToString[test.q.Question[0].Qtype]
		t.Run(name+typ, func(t *testing.T) {
			counted, mark := responses(t, addr), logged.mark()
			if got := dns.RcodeToString[s.exchange(t, "udp", test.q).Rcode]; got != test.code {
				t.Fatalf("got %s, want %s", got, test.code)
			}
			want := fmt.Sprintf("[INFO] %s %s %s\n", name, typ, test.code)
			eventually(t, "the log says "+want, func() bool { return strings.Contains(logged.since(mark), want) })
			counted[test.code]++
			eventually(t, "the response is counted as "+test.code, func() bool { return cmp.Equal(counted, responses(t, addr)) })
		})
	}
}

func TestRopewalkMetrics(t *testing.T) {
	dir := files(t, "web.yaml", web, "db.yaml", headless("db", 3), "alias.yaml", alias("payments", "example.com"))
	updates := func(m map[string]float64) map[string]float64 {
		found := map[string]float64{}
		for k, v := range m {
			if strings.HasPrefix(k, "coredns_ropewalk_updates_total") {
				found[k] = v
			}
		}
		return found
	}
	addr := freePort(t)
	probe := start(t, block("prometheus "+addr))
	before := scrape(t, addr)
	probe.stop(t)

	addr = freePort(t)
	s := start(t, block("prometheus "+addr, ropewalk(dir)))
	s.expect(t, "web.shop.svc.cluster.local", dns.TypeA, "NOERROR, A 10.96.0.2")
	after := scrape(t, addr)

	want := map[string]float64{
		`coredns_ropewalk_records{type="A",zone="cluster.local."}`:     8, // kubernetes, which every cluster has; web; db and its 3 names
		`coredns_ropewalk_records{type="AAAA",zone="cluster.local."}`:  0,
		`coredns_ropewalk_records{type="SRV",zone="cluster.local."}`:   5,
		`coredns_ropewalk_records{type="CNAME",zone="cluster.local."}`: 1,
		`coredns_ropewalk_records{type="PTR",zone="in-addr.arpa."}`:    5,
		`coredns_ropewalk_sync_age_seconds{zone="cluster.local."}`:     0,
		`coredns_ropewalk_sync_age_seconds{zone="in-addr.arpa."}`:      0,
	}
	got := map[string]float64{}
	for k, v := range after {
		if strings.HasPrefix(k, "coredns_ropewalk_records") || strings.HasPrefix(k, "coredns_ropewalk_sync_age") {
			got[k] = v
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
	was := updates(before)
	for kind, n := range map[string]float64{"Namespace": 5, "Service": 4, "EndpointSlice": 1} {
		k := fmt.Sprintf(`coredns_ropewalk_updates_total{kind="%s"}`, kind)
		if got := after[k] - was[k]; got != n {
			t.Errorf("%s rose by %v, want %v", k, got, n)
		}
	}
	for kind, n := range map[string]float64{"watch_to_served": 10, "object_to_served": 1} { // one object says when it changed
		served := fmt.Sprintf(`coredns_ropewalk_programming_duration_seconds_count{kind="%s"}`, kind)
		if got := after[served] - before[served]; got != n {
			t.Errorf("%s rose by %v, want %v", served, got, n)
		}
		if sum := strings.Replace(served, "_count", "_sum", 1); after[sum] <= before[sum] {
			t.Errorf("%s did not rise: %v", sum, after[sum])
		}
	}
	s.stop(t)

	// What is no longer served is no longer told.
	addr = freePort(t)
	start(t, block("prometheus "+addr))
	for k := range scrape(t, addr) {
		if strings.HasPrefix(k, "coredns_ropewalk_records") {
			t.Errorf("left behind: %s", k)
		}
	}
}
