package hostsmgr

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
)

func blockOf(aliases []cluster.HostAlias) []byte { return makeBlock(hostsfile.Lines(aliases)) }

func TestBlock(t *testing.T) {
	one, two := []cluster.HostAlias{alias("10.9.0.1", "a", "b")}, []cluster.HostAlias{alias("10.9.0.1", "a", "b"), alias("10.9.0.2", "c")}
	const block = "# BEGIN ropewalk\n# Kept by ropewalk, written: yes\n10.9.0.1\ta\tb\n# END ropewalk\n"
	const larger = "# BEGIN ropewalk\n# Kept by ropewalk, written: yes\n10.9.0.1\ta\tb\n10.9.0.2\tc\n# END ropewalk\n"
	for name, test := range map[string]struct {
		hosts   string
		aliases []cluster.HostAlias
		want    string
	}{
		"none, none":                {"1.1.1.1 x\n", nil, "1.1.1.1 x\n"},
		"empty":                     {"", one, block},
		"none":                      {"1.1.1.1 x\n", one, "1.1.1.1 x\n" + block},
		"no newline at the end":     {"1.1.1.1 x", one, "1.1.1.1 x\n" + block},
		"no newline, no block":      {"1.1.1.1 x", nil, "1.1.1.1 x"},
		"the same":                  {"1.1.1.1 x\n" + block, one, "1.1.1.1 x\n" + block},
		"the same, something after": {block + "1.1.1.1 x", one, block + "1.1.1.1 x"},
		"larger":                    {"1.1.1.1 x\n" + block, two, "1.1.1.1 x\n" + larger},
		"larger, something after":   {"1.1.1.1 x\n" + block + "2.2.2.2 y\n", two, "1.1.1.1 x\n2.2.2.2 y\n" + larger},
		"smaller":                   {"1.1.1.1 x\n" + larger, one, "1.1.1.1 x\n" + block},
		"gone":                      {"1.1.1.1 x\n" + block + "\n2.2.2.2 y", nil, "1.1.1.1 x\n\n2.2.2.2 y"},
		"cut off":                   {"1.1.1.1 x\n# BEGIN ropewalk\n# Kept by ropewalk, written: no \n10.9.0.1\ta\n10.9.0.", one, "1.1.1.1 x\n" + block},
		"made by hand":              {"# BEGIN ropewalk\n10.9.0.1\ta\tb\n# END ropewalk\n2.2.2.2 y\n", one, "2.2.2.2 y\n" + block},
		"white space at a marker":   {"  # BEGIN ropewalk\r\n6.6.6.6 x\r\n# END ropewalk", one, block},
	} {
		got, err := withBlock([]byte(test.hosts), hostsfile.Lines(test.aliases))
		if err != nil || string(got) != test.want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, test.want)
		}
	}
	for name, hosts := range map[string]string{
		"BEGIN alone": "x\n# BEGIN ropewalk\ny\n",
		"END alone":   "x\n# END ropewalk\ny\n",
		"twice":       block + block,
		"nested":      "# BEGIN ropewalk\n# BEGIN ropewalk\n# END ropewalk\n",
		"turned":      "# END ropewalk\n# BEGIN ropewalk\n",
	} {
		_, err := withBlock([]byte(hosts), hostsfile.Lines(one))
		_, err2 := WithoutBlock([]byte(hosts))
		if !errors.Is(err, ErrMarkers) || !errors.Is(err2, ErrMarkers) || !strings.Contains(err.Error(), "in lines [") {
			t.Errorf("%s: %v, %v", name, err, err2)
		}
	}
}

// TestBlockIsKilled holds that however far the writing of a block comes, no line of somebody else's is lost, and that the next
// start makes of it what was meant. Where somebody had put lines behind the block, it may find some of them twice.
func TestBlockIsKilled(t *testing.T) {
	few, many := []cluster.HostAlias{alias("10.9.0.1", "a")}, []cluster.HostAlias{alias("10.9.0.1", "a"), alias("10.9.0.2", "b"), alias("10.9.0.3", "c")}
	for _, after := range []string{"", "2.2.2.2 after.one\n3.3.3.3 after.two\n4.4.4.4 after.three\n"} {
		for _, from := range [][]cluster.HostAlias{few, many} {
			for _, to := range [][]cluster.HostAlias{few, many, nil} {
				old := []byte("1.1.1.1 before\n" + string(blockOf(from)) + after)
				want, err := withBlock(old, hostsfile.Lines(to))
				ok(t, err)
				for _, now := range states(t, old, want) {
					for line := range strings.Lines("1.1.1.1 before\n" + after) {
						if !bytes.Contains(now, []byte(line)) {
							t.Fatalf("from %d to %d aliases, %q is lost:\n%s", len(from), len(to), line, now)
						}
					}
					if after != "" {
						continue
					}
					next, err := withBlock(now, hostsfile.Lines(to))
					if !bytes.Equal(next, want) {
						t.Fatalf("from %d to %d aliases, killed at\n%s\nis made\n%s\nand not\n%s%v", len(from), len(to), now, next, want, err)
					}
				}
			}
		}
	}
}

// states returns what a file may hold while putBlock brings it from old to want, and is killed after any byte.
func states(t *testing.T, old, want []byte) [][]byte {
	f := &recorder{text: old, all: [][]byte{old}}
	_, err := putBlock(f, old, want)
	ok(t, err)
	if !bytes.Equal(f.text, want) {
		t.Fatalf("putBlock makes\n%s\nand not\n%s", f.text, want)
	}
	return f.all
}

// recorder is a blockFile that remembers all that it ever held.
type recorder struct {
	text []byte
	all  [][]byte
}

func (f *recorder) now(text []byte) {
	f.text = text
	f.all = append(f.all, text)
}

// Replace does not stop before the end of the line that says whether the block is written: that one is written with what is before
// it, within a page but for bad luck.
func (f *recorder) Replace(old, want []byte) (int, error) {
	if bytes.HasPrefix(old, want) {
		f.now(want)
		return 0, nil
	}
	const line = beginBlock + "\n" + writtenBlock
	padded := append(bytes.Clone(want), bytes.Repeat([]byte{'\n'}, max(0, len(old)-len(want)))...)
	at := bytes.LastIndex(want, []byte(line)) + len(line)
	first := at + len(unwritten)
	if !bytes.HasPrefix(old, want[:at]) {
		first = 0 // the lines behind the block move; old markers are overwritten
	}
	for n := first; n <= len(padded); n++ {
		f.now(append(bytes.Clone(padded[:n]), old[min(n, len(old)):]...))
	}
	f.now(want)
	return len(want), nil
}

func (f *recorder) WriteAt(b []byte, at int) (int, error) {
	text := bytes.Clone(f.text)
	f.now(append(text[:at], append(bytes.Clone(b), f.text[at+len(b):]...)...))
	return len(b), nil
}

func (f *recorder) Truncate(size int) error {
	f.now(bytes.Clone(f.text[:size]))
	return nil
}

func FuzzBlock(f *testing.F) {
	f.Add([]byte("1.1.1.1 x\n# BEGIN ropewalk\n# END ropewalk\nx"))
	f.Add([]byte("1.1.1.1 x"))
	aliases := []byte("10.9.0.1\ta\n")
	f.Fuzz(func(t *testing.T, hosts []byte) {
		before := bytes.Clone(hosts)
		with, err := withBlock(hosts, aliases)
		if err != nil {
			return
		}
		rest, err := WithoutBlock(hosts)
		ok(t, err)
		again, err := withBlock(with, aliases)
		if err != nil || !bytes.Equal(again, with) {
			t.Errorf("a second time: %q, %v; want %q", again, err, with)
		}
		gone, err := withBlock(with, nil)
		if err != nil || strings.TrimSuffix(string(gone), "\n") != strings.TrimSuffix(string(rest), "\n") {
			t.Errorf("without the block again: %q, %v; want %q", gone, err, rest)
		}
		if !bytes.Equal(hosts, before) {
			t.Error("the input was written to")
		}
	})
}
