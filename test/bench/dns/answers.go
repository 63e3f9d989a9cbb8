package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// same asks two servers the same questions and returns an error for the first that they answer differently: with another
// code, or another set of answer records. Their order, and the TTL, which counts down in a cache, are left aside.
func same(a, b string, qs []question) error {
	for _, q := range qs {
		one, err := answer(a, q)
		if err != nil {
			return err
		}
		two, err := answer(b, q)
		if err != nil {
			return err
		}
		if one != two {
			return fmt.Errorf("%s is\n%s\nand should be\n%s", q, two, one)
		}
	}
	return nil
}

// answer is what a server says, in a form that can be compared.
func answer(addr string, q question) (string, error) {
	c := &dns.Client{Timeout: 2 * time.Second}
	m, _, err := c.Exchange(new(dns.Msg).SetQuestion(q.name, q.qtype), addr)
	if err != nil {
		return "", fmt.Errorf("%s: %w", q, err)
	}
	return canonical(m), nil
}

func canonical(m *dns.Msg) string {
	lines := []string{fmt.Sprintf("%s, truncated: %t", dns.RcodeToString[m.Rcode], m.Truncated)}
	for _, rr := range m.Answer {
		rr.Header().Ttl = 0
		lines = append(lines, strings.ToLower(rr.String()))
	}
	slices.Sort(lines[1:])
	return strings.Join(lines, "\n")
}

// fetch transfers the zones from a server and writes each into a file of dir.
func fetch(addr, dir string) error {
	for _, z := range zones {
		answers, err := new(dns.Transfer).In(new(dns.Msg).SetAxfr(z), addr)
		if err != nil {
			return fmt.Errorf("transfer of %s: %w", z, err)
		}
		var text strings.Builder
		records := 0
		for a := range answers {
			if a.Error != nil {
				return fmt.Errorf("transfer of %s: %w", z, a.Error)
			}
			for _, rr := range a.RR {
				if _, soa := rr.(*dns.SOA); !soa || records == 0 { // the zone ends with a second SOA
					fmt.Fprintln(&text, rr)
				}
				records++
			}
		}
		if err := os.WriteFile(filepath.Join(dir, z), []byte(text.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
