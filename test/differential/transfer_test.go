package differential

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// transfer compares a zone as both sides hand it out. Each record that one side alone has is a difference of its own,
// under the record's name and with AXFR for a type.
func (r *report) transfer(t *testing.T, stock, ours *server, zone string) {
	t.Helper()
	a, b := newClient(stock), newClient(ours)
	defer a.Close()
	defer b.Close()
	theirs, err := a.transfer(zone)
	if err != nil {
		t.Fatalf("stock: %v", err)
	}
	mine, err := b.transfer(zone)
	if err != nil {
		t.Fatalf("ours: %v", err)
	}
	r.asked++
	for _, d := range unlike(asMap(theirs), asMap(mine)) {
		rr, side := d[1:], [2]string{"present", "absent"}
		if d[0] == '+' {
			side = [2]string{"absent", "present"}
		}
		r.found = append(r.found, &difference{
			config: r.config, q: question{owner(rr), dns.TypeAXFR, dns.ClassINET, via{tcp: true}},
			stock: side[0], ours: side[1], records: []string{d}, replies: side,
		})
	}
	for rr, n := range asMap(mine[:max(len(mine)-1, 0)]) {
		if n > 1 {
			t.Errorf("transfer of %s: %d times %s", zone, n, rr)
		}
	}
	b.matches(t, mine)
}

// matches holds the records of a transfer to what the server answers when it is asked for them.
func (c *client) matches(t *testing.T, rrs []dns.RR) {
	t.Helper()
	sets := map[question]map[string]int{}
	for _, rr := range rrs {
		h := rr.Header()
		q := question{h.Name, h.Rrtype, dns.ClassINET, via{tcp: true}}
		if sets[q] == nil {
			sets[q] = map[string]int{}
		}
		sets[q][text(rr)] = 1
	}
	for qs := range slices.Chunk(slices.Collect(maps.Keys(sets)), batch) {
		replies, err := c.ask(qs)
		if err != nil {
			t.Fatal(err)
		}
		for i, q := range qs {
			if d := cmp.Diff(asMap(replies[i].Answer), sets[q]); d != "" && q.typ != dns.TypeSOA {
				t.Errorf("%v: answered (-) and transferred (+)\n%s", q, d)
			}
		}
	}
}

func asMap(rrs []dns.RR) map[string]int {
	m := map[string]int{}
	for _, rr := range rrs {
		m[text(rr)]++
	}
	return m
}

func owner(text string) string {
	rr, err := dns.NewRR(text)
	if err != nil || rr == nil {
		return text
	}
	return rr.Header().Name
}
