package differential

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// difference is what two replies to one question do not have in common.
type difference struct {
	config string
	q      question
	// stock and ours sum the replies up: see outcome.
	stock, ours string
	// records are those that one reply has and the other one has not, as in "-an …" (stock alone) and "+ar …" (ours
	// alone). It is empty where both replies are truncated, since records are in no order.
	records []string
	// beyond is what differs besides, which is never right.
	beyond string
	// replies are both in full, for people.
	replies [2]string
}

// outcome sums a reply up, as in
//
//	ANSWER aa an=CNAME*1,A*2
//	SERVFAIL aa
//	NXDOMAIN
//
// where ANSWER and NODATA are NOERROR with and without answers. OPT records do not count. NODATA and NXDOMAIN alone are
// what they should be, aa ns=SOA*1, and PASSED is the answer of the plugin behind. SRV records that are cut are not
// counted: how many fit depends on which come first.
func outcome(m *dns.Msg) string {
	if passed(m) {
		return "PASSED"
	}
	s := inFull(m)
	for _, short := range []string{"NODATA", "NXDOMAIN"} {
		if s == short+" aa ns=SOA*1" {
			return short
		}
	}
	return s
}

// passed tells the answer of the plugin behind.
func passed(m *dns.Msg) bool {
	return !m.Authoritative && len(m.Answer) == 1 && strings.Contains(text(m.Answer[0]), passedOn)
}

func inFull(m *dns.Msg) string {
	var b strings.Builder
	switch {
	case m.Rcode != dns.RcodeSuccess:
		b.WriteString(dns.RcodeToString[m.Rcode])
	case len(m.Answer) > 0:
		b.WriteString("ANSWER")
	default:
		b.WriteString("NODATA")
	}
	if m.Authoritative {
		b.WriteString(" aa")
	}
	if m.Truncated {
		b.WriteString(" tc")
	}
	for _, s := range sections(m) {
		counts := map[uint16]int{}
		for _, rr := range s.rrs {
			counts[rr.Header().Rrtype]++
		}
		sep := " " + s.name + "="
		for _, t := range slices.Sorted(maps.Keys(counts)) {
			n := fmt.Sprint(counts[t])
			if m.Truncated && t == dns.TypeSRV {
				n = "some"
			}
			fmt.Fprintf(&b, "%s%s*%s", sep, dns.Type(t), n)
			sep = ","
		}
	}
	return b.String()
}

type section struct {
	name string
	rrs  []dns.RR
}

// sections returns a reply's sections without OPT records.
func sections(m *dns.Msg) [3]section {
	extra := slices.DeleteFunc(slices.Clone(m.Extra), func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	return [3]section{{"an", m.Answer}, {"ns", m.Ns}, {"ar", extra}}
}

// text is a record as it is compared: names in lower case, and an SOA record without the serial, which is a time.
func text(rr dns.RR) string {
	if soa, ok := rr.(*dns.SOA); ok {
		soa = dns.Copy(soa).(*dns.SOA)
		soa.Serial = 0
		rr = soa
	}
	return strings.ToLower(strings.ReplaceAll(rr.String(), "\t", " "))
}

// records returns the records of a reply by section, each as often as it is there; none of what was passed on.
func records(m *dns.Msg) map[string]int {
	found := map[string]int{}
	if passed(m) {
		return found
	}
	for _, s := range sections(m) {
		for _, rr := range s.rrs {
			found[s.name+" "+text(rr)]++
		}
	}
	return found
}

// compare returns how ours differs from stock, nil if it does not.
func compare(q question, stock, ours *dns.Msg) *difference {
	d := &difference{q: q, stock: outcome(stock), ours: outcome(ours)}
	if !stock.Truncated || !ours.Truncated {
		d.records = unlike(records(stock), records(ours))
	}
	if s, o := frame(stock), frame(ours); s != o {
		d.beyond = fmt.Sprintf("stock has %s, ours %s", s, o)
	}
	if want := (dns.Question{Name: q.name, Qtype: q.typ, Qclass: q.class}); len(ours.Question) != 1 || ours.Question[0] != want {
		d.beyond += fmt.Sprintf(" the question is echoed as %v", ours.Question)
	}
	if rr := repeated(ours); rr != "" {
		d.beyond += " ours has twice: " + rr
	}
	if d.stock == d.ours && len(d.records) == 0 && d.beyond == "" {
		return nil
	}
	d.replies = [2]string{brief(stock), brief(ours)}
	return d
}

// frame is what must be alike whatever the records are.
func frame(m *dns.Msg) string {
	s := fmt.Sprintf("%s qr=%t rd=%t ra=%t ad=%t cd=%t", dns.OpcodeToString[m.Opcode], m.Response, m.RecursionDesired,
		m.RecursionAvailable, m.AuthenticatedData, m.CheckingDisabled)
	if opt := m.IsEdns0(); opt != nil {
		s += fmt.Sprintf(" opt(version=%d size=%d do=%t options=%d)", opt.Version(), opt.UDPSize(), opt.Do(), len(opt.Option))
	}
	return s
}

func repeated(m *dns.Msg) string {
	for rr, n := range records(m) {
		if n > 1 {
			return rr
		}
	}
	return ""
}

// unlike returns what one side has and the other one has not, sorted. How often it is there does not count.
func unlike(stock, ours map[string]int) (records []string) {
	for rr := range stock {
		if ours[rr] == 0 {
			records = append(records, "-"+rr)
		}
	}
	for rr := range ours {
		if stock[rr] == 0 {
			records = append(records, "+"+rr)
		}
	}
	slices.Sort(records)
	return records
}

// brief is a reply for people: not all of its records if there are many.
func brief(m *dns.Msg) string {
	var b strings.Builder
	b.WriteString(outcome(m))
	const enough = 6
	for _, s := range sections(m) {
		for i, rr := range s.rrs {
			if i == enough {
				fmt.Fprintf(&b, "\n      %s … %d more", s.name, len(s.rrs)-enough)
				break
			}
			fmt.Fprintf(&b, "\n      %s %s", s.name, strings.ReplaceAll(rr.String(), "\t", " "))
		}
	}
	return b.String()
}

func (d *difference) String() string {
	s := fmt.Sprintf("[%s] %v", d.config, d.q)
	if d.beyond != "" {
		s += "\n    " + d.beyond
	}
	s += fmt.Sprintf("\n    stock: %s\n    ours:  %s", d.replies[0], d.replies[1])
	for i, rr := range d.records {
		if i == 4 {
			s += fmt.Sprintf("\n    … %d more", len(d.records)-i)
			break
		}
		s += "\n    " + rr
	}
	return s
}

// category puts differences together that look alike.
func (d *difference) category() string {
	kind := "records"
	switch {
	case d.beyond != "":
		kind = d.beyond
	case len(d.records) == 0:
		kind = "header"
	}
	return fmt.Sprintf("%s: %s instead of %s, %s", dns.Type(d.q.typ), noCounts(d.ours), noCounts(d.stock), kind)
}

// noCounts leaves the numbers out of an outcome.
func noCounts(outcome string) string {
	return strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return -1
		}
		return r
	}, outcome)
}

// group returns differences by category, the largest one first.
func group(ds []*difference) (groups [][]*difference) {
	by := map[string][]*difference{}
	for _, d := range ds {
		by[d.category()] = append(by[d.category()], d)
	}
	return slices.SortedFunc(maps.Values(by), func(a, b []*difference) int {
		return cmp.Or(len(b)-len(a), strings.Compare(a[0].category(), b[0].category()))
	})
}
