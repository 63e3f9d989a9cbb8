package differential

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// document is where the deliberate differences are listed.
const document = "../../docs/dns-differences.md"

// entry is a block of the document: it allows for differences that look as it says. A pattern has to match all of its
// text; those that a block leaves out match anything, but records must not differ if no pattern says how they may. The
// SOA record of a negative answer goes without saying where the other answer is not negative.
type entry struct {
	title string
	line  int
	// config and via say where the entry applies; name is compared in lower case.
	config, via, name, typ, class *regexp.Regexp
	stock, ours                   *regexp.Regexp
	records                       []*regexp.Regexp
	seen                          int
}

var (
	anything = regexp.MustCompile("")
	negative = regexp.MustCompile(`^[-+]ns \S+ \d+ in soa `)
)

// readEntries reads the document.
func readEntries() ([]*entry, error) {
	raw, err := os.ReadFile(document)
	if err != nil {
		return nil, err
	}
	return parseEntries(string(raw))
}

// parseEntries finds the blocks in text. Every section must have one.
func parseEntries(text string) (entries []*entry, err error) {
	var e *entry
	title, titleLine, before := "", 0, 0
	for i, line := range strings.Split(text, "\n") {
		switch {
		case e == nil && strings.HasPrefix(line, "## "):
			if title != "" && len(entries) == before {
				return nil, fmt.Errorf("line %d: the section %q has no block", titleLine, title)
			}
			title, titleLine, before = strings.TrimPrefix(line, "## "), i+1, len(entries)
		case line == "```differs":
			e = &entry{title: title, line: i + 1, config: anything, via: anything, name: anything, typ: anything, class: anything}
		case e != nil && line == "```":
			if e.stock == nil || e.ours == nil {
				return nil, fmt.Errorf("line %d: a block needs stock and ours", e.line)
			}
			entries, e = append(entries, e), nil
		case e != nil:
			if err := e.set(line); err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
		}
	}
	if title != "" && len(entries) == before {
		return nil, fmt.Errorf("line %d: the section %q has no block", titleLine, title)
	}
	return entries, nil
}

// set reads a line of a block: KEY: PATTERN.
func (e *entry) set(line string) error {
	key, pattern, _ := strings.Cut(line, ":")
	re, err := regexp.Compile("^(?:" + strings.TrimSpace(pattern) + ")$")
	if err != nil {
		return err
	}
	to, ok := map[string]**regexp.Regexp{
		"config": &e.config, "via": &e.via, "name": &e.name, "type": &e.typ, "class": &e.class, "stock": &e.stock, "ours": &e.ours,
	}[key]
	switch {
	case key == "records":
		e.records = append(e.records, re)
	case ok:
		*to = re
	default:
		return fmt.Errorf("a block has no %q", key)
	}
	return nil
}

// covers says whether e allows for d.
func (e *entry) covers(d *difference) bool {
	if d.beyond != "" || !e.config.MatchString(d.config) || !e.via.MatchString(d.q.via.String()) ||
		!e.name.MatchString(strings.ToLower(d.q.name)) || !e.typ.MatchString(dns.Type(d.q.typ).String()) ||
		!e.class.MatchString(dns.Class(d.q.class).String()) || !e.stock.MatchString(d.stock) || !e.ours.MatchString(d.ours) {
		return false
	}
	for _, rr := range d.records {
		ok := d.stock != d.ours && negative.MatchString(rr)
		for _, re := range e.records {
			ok = ok || re.MatchString(rr)
		}
		if !ok {
			return false
		}
	}
	return true
}

// runsIn says whether one of the configurations is one that the entry is about.
func (e *entry) runsIn(configs []string) bool {
	for _, c := range configs {
		if e.config.MatchString(c) {
			return true
		}
	}
	return false
}

func (e *entry) String() string { return fmt.Sprintf("%s:%d (%s)", document, e.line, e.title) }

func TestParseEntries(t *testing.T) {
	const good = "# Title\n## One\ntext\n```differs\nname: a\\..*\ntype: A|AAAA\nstock: NXDOMAIN\nours: ANSWER aa an=A\\*1\nrecords: \\+an .* a .*\n```\n"
	for _, c := range []struct{ name, text, err string }{
		{"good", good, ""},
		{"section without a block", good + "## Two\ntext\n", `line 11: the section "Two" has no block`},
		{"unknown key", "## One\n```differs\nnames: x\n```\n", `line 3: a block has no "names"`},
		{"no outcome", "## One\n```differs\nname: x\nstock: y\n```\n", "line 2: a block needs stock and ours"},
		{"bad pattern", "## One\n```differs\nname: (\n```\n", "line 3: error parsing regexp"},
	} {
		_, err := parseEntries(c.text)
		if got := fmt.Sprint(err); err == nil && c.err != "" || err != nil && (c.err == "" || !strings.HasPrefix(got, c.err)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
		}
	}
}

// TestCovers holds that an entry covers what it says and nothing that is a little different.
func TestCovers(t *testing.T) {
	entries, err := parseEntries("## One\n```differs\nconfig: plain\nname: a\\.b\\.\ntype: A\nstock: NXDOMAIN\nours: ANSWER aa an=A\\*1\nrecords: \\+an .* a .*\n```\n")
	if err != nil {
		t.Fatal(err)
	}
	like := func(change func(*difference)) *difference {
		d := &difference{config: "plain", q: question{"A.b.", dns.TypeA, dns.ClassINET, via{}}, stock: "NXDOMAIN", ours: "ANSWER aa an=A*1",
			records: []string{"+an a.b. 5 in a 10.0.0.1", "-ns b. 5 in soa ns.dns.b. hostmaster.b. 0 7200 1800 86400 5"}}
		change(d)
		return d
	}
	for i, c := range []struct {
		change func(*difference)
		want   bool
	}{
		{func(*difference) {}, true},
		{func(d *difference) { d.config = "plainer" }, false},
		{func(d *difference) { d.q.name = "a.b.c." }, false},
		{func(d *difference) { d.q.typ = dns.TypeAAAA }, false},
		{func(d *difference) { d.stock = "NODATA" }, false},
		{func(d *difference) { d.ours = "ANSWER aa tc an=A*1" }, false},
		{func(d *difference) { d.beyond = "the question is echoed as nothing" }, false},
		{func(d *difference) { d.records = append(d.records, "-an a.b. 5 in a 10.0.0.2") }, false},
	} {
		if d := like(c.change); entries[0].covers(d) != c.want {
			t.Errorf("%d: covers %v: %t", i, d, !c.want)
		}
	}
}
