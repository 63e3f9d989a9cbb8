package main

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// printed is what dnsperf 2.10 prints with -v.
const printed = `DNS Performance Testing Tool
Version 2.10.0

[Status] Command line: dnsperf -v -s 127.0.0.1
[Status] Sending queries (to 127.0.0.1:5301)
> NOERROR svc-1.team-1.svc.cluster.local. A 0.000250
> NXDOMAIN www.example.com.cluster.local. AAAA 0.000100
> T svc-2.team-2.svc.cluster.local. A
> NOERROR svc-3.team-3.svc.cluster.local. A 0.001000
[Status] Testing complete (time limit)

Statistics:

  Queries sent:         4
  Queries completed:    3 (75.00%)
  Queries lost:         1 (25.00%)

  Response codes:       NOERROR 2 (66.67%), NXDOMAIN 1 (33.33%)
  Average packet size:  request 45, response 61
  Run time (s):         0.500000
  Queries per second:   6.000000

  Average Latency (s):  0.000450 (min 0.000100, max 0.001000)
`

func TestParse(t *testing.T) {
	got, err := parse(printed)
	if err != nil {
		t.Fatal(err)
	}
	want := run{
		completed: 3, lost: 1, took: 500 * time.Millisecond, codes: []string{"NOERROR", "NXDOMAIN"},
		latencies: []time.Duration{100 * time.Microsecond, 250 * time.Microsecond, time.Millisecond},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(run{})); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	for _, without := range []string{"Queries completed", "Queries lost", "Run time"} {
		if _, err := parse(strings.Replace(printed, without, "Else", 1)); err == nil {
			t.Errorf("no error without %q", without)
		}
	}
}

func TestFigure(t *testing.T) {
	r := run{completed: 1000, lost: 2, took: 2 * time.Second, client: time.Second, codes: []string{"NOERROR"}}
	got, err := figure(r, 10*time.Millisecond, 500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if want := (figures{rate: 500, cost: 10 * time.Microsecond, server: 0.005, client: 0.5, others: 0.245, lost: 2}); got != want {
		t.Errorf("%+v", got)
	}
	r.codes = []string{"NOERROR", "SERVFAIL"}
	if _, err := figure(r, time.Second, 0); err == nil {
		t.Error("SERVFAIL is no error")
	}
	if _, err := figure(run{took: time.Second}, time.Second, 0); err == nil {
		t.Error("no answers are no error")
	}
}

func TestSection(t *testing.T) {
	us := func(cost ...int) (runs []figures) {
		for i, c := range cost {
			runs = append(runs, figures{rate: float64(40_000 + i), cost: time.Duration(c) * time.Microsecond, server: 0.994, client: 0.25, lost: i})
		}
		return runs
	}
	results := []*result{
		{name: chainName, runs: us(12, 10, 11), rate: 20_000, latencies: []time.Duration{time.Millisecond, 2 * time.Millisecond}},
		{name: "Peer 1.2", runs: us(30, 20, 22), rate: 20_000},
	}
	if rate := sharedRate(results); rate != 20_000 {
		t.Errorf("half of 40,001 is %d", rate)
	}
	results[1].runs[1].others, results[1].runs[2].others = 0.3, 0.2
	got := section(&workload{name: "w", what: "questions"}, 7, results)
	want := "**w**: questions; 7 services, medians of 5 runs of 3s each; latencies at 20000 questions/s." +
		" Other programs used up to 20 % of the servers' core meanwhile.\n\n" +
		`| server                 | answers/s | CPU µs/answer |   (of runs) | busy | client | p50 µs | p99 µs | lost | plugin chain ÷ it |
|------------------------|----------:|--------------:|------------:|-----:|-------:|-------:|-------:|-----:|------------------:|
| Ropewalk, plugin chain |     40001 |         11.00 | 10.00–12.00 | 99 % |   25 % |   1000 |   1000 |    3 |              1.00 |
| Peer 1.2               |     40001 |         22.00 | 20.00–30.00 | 99 % |   25 % |      - |      - |    3 |              0.50 |
`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestSessionOf(t *testing.T) {
	pid, session, err := sessionOf([]byte("12 (a) b) R 1 12 34 0 -1"))
	if pid != 12 || session != 34 || err != nil {
		t.Errorf("%d %d %v", pid, session, err)
	}
	if _, _, err := sessionOf([]byte("12 (a) R")); err == nil {
		t.Error("no error")
	}
	raw, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	if pid, _, err := sessionOf(raw); pid != os.Getpid() || err != nil {
		t.Errorf("own process: %d %v", pid, err)
	}
}

func TestCoreTime(t *testing.T) {
	const stat = "cpu  1 1 1 1 1 1 1 1 0 0\ncpu0 10 20 30 9000 9000 40 50 60 70 80\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 1\n"
	if got, err := coreTime(stat, "0"); got != 2100*time.Millisecond || err != nil {
		t.Errorf("%s %v", got, err)
	}
	if _, err := coreTime(stat, "2"); err == nil {
		t.Error("no error")
	}
}

func TestCanonical(t *testing.T) {
	message := func(rcode int, rrs ...string) *dns.Msg {
		m := &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: rcode}}
		for _, s := range rrs {
			rr, err := dns.NewRR(s)
			if err != nil {
				t.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		return m
	}
	one := canonical(message(0, "a. 5 IN A 10.0.0.1", "a. 5 IN A 10.0.0.2"))
	if other := canonical(message(0, "A. 4 IN A 10.0.0.2", "a. 4 IN A 10.0.0.1")); one != other {
		t.Errorf("%s\nis not\n%s", one, other)
	}
	for _, m := range []*dns.Msg{
		message(0, "a. 5 IN A 10.0.0.1"), message(3, "a. 5 IN A 10.0.0.1", "a. 5 IN A 10.0.0.2"),
		message(0, "a. 5 IN A 10.0.0.1", "a. 5 IN A 10.0.0.3"), message(0, "a. 5 IN A 10.0.0.1", "a. 5 IN A 10.0.0.2", "a. 5 IN A 10.0.0.2"),
	} {
		if other := canonical(m); one == other {
			t.Errorf("%s\nis\n%s", one, other)
		}
	}
}

// TestCluster holds that no address is given twice, and that all that is asked lies in a zone that is served.
func TestCluster(t *testing.T) {
	const services = 1000
	owner, count := map[netip.Addr]string{}, map[string]int{}
	take := func(addr, name string) {
		a := netip.MustParseAddr(addr)
		if owner[a] != "" {
			t.Errorf("%s: of %s and %s", a, owner[a], name)
		}
		owner[a] = name
	}
	for _, o := range objects(services) {
		switch o := o.(type) {
		case *corev1.Service:
			count[strings.Join(o.Spec.ClusterIPs, " ")[:3]]++
			for _, a := range o.Spec.ClusterIPs {
				if a != corev1.ClusterIPNone {
					take(a, o.Name)
				}
			}
		case *discoveryv1.EndpointSlice:
			count["slice"]++
			for _, e := range o.Endpoints {
				take(e.Addresses[0], o.Name)
			}
		}
	}
	if want := map[string]int{"10.": 800, "Non": 200, "slice": 200}; !cmp.Equal(count, want) {
		t.Error(count)
	}
	if len(owner) != 800+200+200*perHeadless {
		t.Errorf("%d addresses", len(owner))
	}
	asked := map[uint16]int{}
	for _, q := range append(hits(services), mix(services, 2000)...) {
		asked[q.qtype]++
		if !slices.ContainsFunc(zones, func(z string) bool { return dns.IsSubDomain(z, q.name) }) {
			t.Errorf("%s is in no zone", q)
		}
	}
	if asked[dns.TypeA] < 800+900 || asked[dns.TypeAAAA] < 200 || asked[dns.TypeSRV] != 100 || asked[dns.TypePTR] != 100 {
		t.Error(asked)
	}
}
