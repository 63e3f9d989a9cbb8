package hostsfile

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func alias(ip string, names ...string) cluster.HostAlias {
	return cluster.HostAlias{IP: ip, Hostnames: names}
}

func TestParse(t *testing.T) {
	foo := []cluster.HostAlias{alias("10.1.2.3", "foo")}
	for _, c := range []struct {
		name, text string
		want       []cluster.HostAlias
		errs       []string // a part of each
	}{
		{name: "nothing"},
		{name: "lines", text: "10.1.2.3 foo bar\n2001:db8::4\tfoo.local\n", want: []cluster.HostAlias{
			alias("10.1.2.3", "foo", "bar"), alias("2001:db8::4", "foo.local")}},
		{name: "no last newline", text: "10.1.2.3 foo", want: foo},
		{name: "blanks and tabs", text: " \t10.1.2.3 \t foo\t \n \t\n", want: foo},
		{name: "comments", text: "# all\n10.1.2.3 foo#bar\n #10.1.2.4 foo\n", want: foo},
		{name: "a comment may hold anything", text: "10.1.2.3 foo # \x00\xff\x1b[2J\n", want: foo},
		{name: "CR LF", text: "10.1.2.3 foo\r\n\r\n# all\r\n10.1.2.4 bar\r\n", want: append(foo, alias("10.1.2.4", "bar"))},
		{name: "CR CR LF", text: "10.1.2.3 foo\r\r\n", want: foo},
		{name: "twice is twice", text: "10.1.2.3 foo\n10.1.2.3 foo\n", want: append(foo, foo...)},
		{name: "in any order", text: "10.9.9.9 z a\n10.1.2.3 foo", want: append([]cluster.HostAlias{alias("10.9.9.9", "z", "a")}, foo...)},
		{name: "addresses stay as they are written", text: "2001:DB8:0:0::4 foo", want: []cluster.HostAlias{alias("2001:DB8:0:0::4", "foo")}},

		{name: "the rest of a text counts", text: "foo\n10.1.2.3 foo\n10.1.2.3\n", want: foo, errs: []string{"line 1: ", `line 3: "10.1.2.3" has no names`}},
		{name: "one wrong name takes its line along", text: "10.1.2.3 foo b_r", errs: []string{`name "b_r"`}},
		{name: "upper case", text: "10.1.2.3 Foo", errs: []string{"lower case"}},
		{name: "a dot at the end", text: "10.1.2.3 foo.", errs: []string{`name "foo."`}},
		{name: "a name of 254", text: "10.1.2.3 " + strings.Repeat("a.", 126) + "aa", errs: []string{"253"}},
		{name: "a label of 64 is what the API takes", text: "10.1.2.3 " + strings.Repeat("a", 64),
			want: []cluster.HostAlias{alias("10.1.2.3", strings.Repeat("a", 64))}},
		{name: "a dash at an end of a label", text: "10.1.2.3 a.-b\n10.1.2.3 a-.b\n10.1.2.3 -a\n10.1.2.3 a-", errs: []string{
			`"a.-b"`, `"a-.b"`, `"-a"`, `"a-"`}},
		{name: "dashes within", text: "10.1.2.3 a--b.c-d", want: []cluster.HostAlias{alias("10.1.2.3", "a--b.c-d")}},
		{name: "an empty label", text: "10.1.2.3 a..b\n10.1.2.3 .a\n10.1.2.3 .", errs: []string{`"a..b"`, `".a"`, `"."`}},
		{name: "no name service but ASCII", text: "10.1.2.3 bücher", errs: []string{"name"}},
		{name: "no UTF-8", text: "10.1.2.3 f\xffo", errs: []string{`name "f\xffo"`}},
		{name: "NUL", text: "10.1.2.3 f\x00o", errs: []string{`name "f\x00o"`}},
		{name: "escape", text: "10.1.2.3 \x1b[2J", errs: []string{`name "\x1b[2J"`}},
		{name: "CR alone ends no line and is no blank", text: "10.1.2.3 foo\r10.1.2.4 bar\r", errs: []string{`"foo\r10.1.2.4"`}},
		{name: "nor is any other space", text: "10.1.2.3 a\vb\n10.1.2.3 a\fb\n10.1.2.3 a\u00a0b\n10.1.2.3 a\u2028b", errs: []string{
			"line 1: ", "line 2: ", "line 3: ", "line 4: "}},
		{name: "a byte order mark", text: "\ufeff10.1.2.3 foo", errs: []string{"address"}},
		{name: "leading zeros", text: "010.1.2.3 foo", errs: []string{"address"}},
		{name: "IPv4-mapped", text: "::ffff:10.1.2.3 foo", errs: []string{"IPv6 clothes"}},
		{name: "a zone", text: "fe80::1%eth0 foo", errs: []string{"address"}},
		{name: "a prefix", text: "10.0.0.0/8 foo", errs: []string{"address"}},
		{name: "a number", text: "167772161 foo", errs: []string{"address"}},
		{name: "a long address", text: strings.Repeat("1", 1000) + " foo", errs: []string{strings.Repeat("1", 100) + `…" is not an address`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, errs := Parse(c.text)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if len(errs) != len(c.errs) {
				t.Fatalf("errors %v, want %q", errs, c.errs)
			}
			for i, err := range errs {
				if !strings.Contains(err.Error(), c.errs[i]) {
					t.Errorf("error %q, want %q in it", err, c.errs[i])
				}
			}
		})
	}
}

// TestParseHasLimits: what a stranger can write costs a log and memory little.
func TestParseHasLimits(t *testing.T) {
	line := "10.1.2.3 foo\n"
	fit := strings.Repeat(line, maxText/len(line))
	if got, errs := Parse(fit); len(got) != maxText/len(line) || errs != nil {
		t.Errorf("of a text that fits: %d aliases, errors %v", len(got), errs)
	}
	if got, errs := Parse(fit + line); got != nil || len(errs) != 1 {
		t.Errorf("of a text that is too long: %d aliases, errors %v", len(got), errs)
	}
	_, errs := Parse(strings.Repeat("x\n", 1000))
	if want := fmt.Sprint(1000-maxErrors, " more lines are wrong"); len(errs) != maxErrors+1 || errs[maxErrors].Error() != want {
		t.Errorf("of 1000 wrong lines: %d errors, the last %q", len(errs), errs[len(errs)-1])
	}
}

func TestParseAnnotation(t *testing.T) {
	foo := []cluster.HostAlias{alias("10.1.2.3", "foo")}
	for _, c := range []struct {
		name, value string
		want        []cluster.HostAlias
		err         string // a part of the error; empty for none
	}{
		{name: "a list", value: `[{"ip":"10.1.2.3","hostnames":["foo","bar"]},{"ip":"2001:db8::4","hostnames":["foo.local"]}]`,
			want: []cluster.HostAlias{alias("10.1.2.3", "foo", "bar"), alias("2001:db8::4", "foo.local")}},
		{name: "an empty list", value: " [] \n", want: []cluster.HostAlias{}},
		{name: "null", value: "null"},
		{name: "over lines", value: "[\n\t{\"ip\": \"10.1.2.3\",\r\n\"hostnames\": [\"foo\"]}\n]\n", want: foo},
		{name: "nothing", value: "", err: "want a list"},
		{name: "an object", value: `{"ip":"10.1.2.3","hostnames":["foo"]}`, err: "want a list"},
		{name: "YAML", value: "- ip: 10.1.2.3", err: "want a list"},
		{name: "more behind it", value: `[{"ip":"10.1.2.3","hostnames":["foo"]}] []`, err: "after top-level value"},
		{name: "a bracket behind it", value: `[] ]`, err: "after top-level value"},
		{name: "an unknown field", value: `[{"ip":"10.1.2.3","hostnames":["foo"],"x":1}]`, err: "unknown field"},
		{name: "a field in other case", value: `[{"IP":"10.1.2.3","hostnames":["foo"]}]`, err: "unknown field"},
		{name: "a field twice", value: `[{"ip":"10.1.2.3","ip":"10.1.2.4","hostnames":["foo"]}]`, err: "duplicate field"},
		{name: "one wrong entry is enough", value: `[{"ip":"10.1.2.3","hostnames":["foo"]},{"ip":"x","hostnames":["foo"]}]`, err: `entry 1: "x"`},
		{name: "a null entry", value: `[null]`, err: "entry 0: "},
		{name: "no names", value: `[{"ip":"10.1.2.3"}]`, err: "no names"},
		{name: "an empty name", value: `[{"ip":"10.1.2.3","hostnames":["foo",""]}]`, err: `name ""`},
		{name: "a line's end in a name", value: `[{"ip":"10.1.2.3","hostnames":["foo\n10.1.2.4 bar"]}]`, err: "name"},
		{name: "a line's end in an address", value: `[{"ip":"10.1.2.3\n","hostnames":["foo"]}]`, err: "address"},
		{name: "NUL", value: `[{"ip":"10.1.2.3","hostnames":["f\u0000o"]}]`, err: "name"},
		{name: "no UTF-8", value: "[{\"ip\":\"10.1.2.3\",\"hostnames\":[\"f\xffo\"]}]", err: "name"},
		{name: "upper case", value: `[{"ip":"10.1.2.3","hostnames":["Foo"]}]`, err: "lower case"},
		{name: "leading zeros", value: `[{"ip":"10.1.2.03","hostnames":["foo"]}]`, err: "address"},
		{name: "IPv4-mapped", value: `[{"ip":"::ffff:10.1.2.3","hostnames":["foo"]}]`, err: "IPv6 clothes"},
		{name: "a zone", value: `[{"ip":"fe80::1%eth0","hostnames":["foo"]}]`, err: "address"},
		{name: "deep", value: strings.Repeat("[", 100_000), err: "want a list"},
		{name: "long", value: "[" + strings.Repeat(" ", maxAnnotation-2) + "]x", err: "bytes"},
		{name: "a long key", value: `[{"` + strings.Repeat("x", 10_000) + `":1}]`, err: "…"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseAnnotation(c.value)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			switch {
			case (err == nil) != (c.err == ""), err != nil && !strings.Contains(err.Error(), c.err):
				t.Errorf("error %v, want one with %q", err, c.err)
			case err != nil && len(err.Error()) > 500:
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"10.1.2.3 foo bar # x\n2001:db8::4\tfoo.local\r\n", "10.1.2.3 a\r10.1.2.4 b\n", "::ffff:1.2.3.4 a\n01.2.3.4 a\nx\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		aliases, errs := Parse(text)
		if len(errs) > maxErrors+1 {
			t.Errorf("%d errors", len(errs))
		}
		for _, err := range errs {
			if len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		}
		readBack(t, aliases)
	})
}

func FuzzParseAnnotation(f *testing.F) {
	for _, s := range []string{`[{"ip":"10.1.2.3","hostnames":["foo","bar"]}]`, `[{"ip":"::1%lo","hostnames":["a\nb"]}]`, `[null]`, `[{"ip":"","IP":""}] ]`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		aliases, err := ParseAnnotation(value)
		if err == nil {
			readBack(t, aliases)
		} else if len(err.Error()) > 1000 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}

// FuzzIsSubdomain holds our check of names to Kubernetes' own.
func FuzzIsSubdomain(f *testing.F) {
	for _, s := range []string{"", "a", "a.b-c.9", "-a", "a-", "a..b", "a.-b", "A", "a_b", "a\n", ".", "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if want := len(validation.IsDNS1123Subdomain(name)) == 0; len(name) <= validation.DNS1123SubdomainMaxLength && isSubdomain(name) != want {
			t.Errorf("%q: %v, Kubernetes says %v", name, !want, want)
		}
	})
}

// readBack holds that aliases that passed make one line each in a pod's file, with nothing in it that is not theirs.
func readBack(t *testing.T, aliases []cluster.HostAlias) {
	t.Helper()
	b, err := Render(&cluster.Pod{Name: "web", Hosts: &cluster.PodHosts{HostNetwork: true}}, Node{}, aliases...)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(b), "\n"); len(aliases) > 0 && lines != len(aliases)+3 {
		t.Errorf("%d lines for %d aliases", lines, len(aliases))
	}
	got, errs := Parse(string(b))
	if len(errs) > 0 {
		t.Errorf("read back: %v", errs)
	}
	if len(got)+len(aliases) > 0 {
		if d := cmp.Diff(aliases, got); d != "" {
			t.Errorf("read back (-passed +read)\n%s", d)
		}
	}
}
