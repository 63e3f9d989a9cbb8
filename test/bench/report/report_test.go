package report

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTable(t *testing.T) {
	got := Table([]string{"server", "µs", "lost"}, [][]string{{"a", "12.5", "0"}, {"a longer one", "-"}})
	want := `| server       |   µs | lost |
|--------------|-----:|-----:|
| a            | 12.5 |    0 |
| a longer one |    - |      |
`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestStamp(t *testing.T) {
	got := Stamp("make bench", time.Date(2026, 3, 4, 23, 0, 0, 0, time.UTC))
	if !regexp.MustCompile("^`make bench`, 2026-03-04, .+, [1-9]\\d* cores, Linux \\d+\\.\\S+, go1\\.\\S+\\.\n$").MatchString(got) {
		t.Errorf("%q", got)
	}
}

func TestSave(t *testing.T) {
	const before = "# Title\n<!-- a -->\nold\n\n<!-- /a -->\nbetween\n<!-- ab -->\n<!-- /ab -->\n"
	file := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(file, []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "ab", "a"} { // a second time changes nothing
		if err := Save(file, name, "new "+name+"\n\n"); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const after = "# Title\n<!-- a -->\nnew a\n<!-- /a -->\nbetween\n<!-- ab -->\nnew ab\n<!-- /ab -->\n"
	if d := cmp.Diff(after, string(got)); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestPutRefuses(t *testing.T) {
	for name, doc := range map[string]string{
		"none":      "text\n",
		"no end":    "<!-- a -->\nold\n",
		"reversed":  "<!-- /a -->\n<!-- a -->\n",
		"two begin": "<!-- a -->\n<!-- /a -->\n<!-- a -->\n",
		"two ends":  "<!-- a -->\n<!-- /a -->\n<!-- /a -->\n",
	} {
		if got, err := put(doc, "a", "new"); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestCompare(t *testing.T) {
	type result struct {
		took Samples[time.Duration]
		size Samples[int64]
	}
	rows := []Row[result]{
		Took("sync", "s", func(r result) Samples[time.Duration] { return r.took }).Within(2, 0.5),
		Size("resident", func(r result) Samples[int64] { return r.size }).Within(10, 0),
		Took("never", "ms", func(result) Samples[time.Duration] { return nil }),
	}
	a := result{Samples[time.Duration]{3 * time.Second, time.Second, 2 * time.Second}, Samples[int64]{5e6}}
	b := result{Samples[time.Duration]{1234 * time.Second}, nil}
	const want = `| median   |    a | (of runs) |      b | (of runs) |  ratio |   budget |
|----------|-----:|----------:|-------:|----------:|-------:|---------:|
| sync     |  2 s |       1–3 | 1234 s |           | 0.0016 | 2 s, 0.5 |
| resident | 5 MB |           |        |           |        |    10 MB |
`
	if got := Compare([]string{"a", "b"}, []result{a, b}, rows, true); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
