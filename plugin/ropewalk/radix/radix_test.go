package radix

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// oracle is the slow and obvious map that the tree must agree with.
type oracle map[string]*int

func (o oracle) walk(key string) (m Match[int]) {
	for k, v := range o {
		if strings.HasPrefix(key, k) && (m.Value == nil || len(k) > m.Len) {
			m.Value, m.Len = v, len(k)
		}
		if len(k) > len(key) && strings.HasPrefix(k, key) {
			m.Below = true
		}
	}
	return m
}

func (o oracle) prefixed(prefix string) (keys []string) {
	for k := range o {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func collect(t Tree[int], prefix string) (keys []string) {
	for k, v := range t.Prefixed([]byte(prefix)) {
		if v == nil {
			panic("nil value yielded")
		}
		keys = append(keys, string(k))
	}
	return keys
}

// check compares tree and oracle on everything a reader can ask about the probes.
func check(t *testing.T, tree Tree[int], o oracle, probes []string) {
	t.Helper()
	if tree.Len() != len(o) {
		t.Fatalf("Len() = %d, want %d", tree.Len(), len(o))
	}
	if d := cmp.Diff(o.prefixed(""), collect(tree, "")); d != "" {
		t.Fatalf("all keys (-want +got):\n%s", d)
	}
	for _, p := range probes {
		if got, want := tree.Walk([]byte(p)), o.walk(p); got != want {
			t.Fatalf("Walk(%q) = %+v, want %+v", p, got, want)
		}
		if got, want := tree.Get([]byte(p)), o[p]; got != want {
			t.Fatalf("Get(%q) = %p, want %p", p, got, want)
		}
		if d := cmp.Diff(o.prefixed(p), collect(tree, p)); d != "" {
			t.Fatalf("Prefixed(%q) (-want +got):\n%s", p, d)
		}
		var vals []*int
		for _, v := range tree.Prefixed([]byte(p)) {
			vals = append(vals, v)
		}
		if got := slices.Collect(tree.Values([]byte(p))); !slices.Equal(got, vals) {
			t.Fatalf("Values(%q) = %v, want %v", p, got, vals)
		}
	}
	checkShape(t, tree.root)
}

// checkShape holds the tree to its own rules: keys rise, pages are neither empty nor too full, and no node is there
// that does not branch.
func checkShape(t *testing.T, s slot[int]) {
	t.Helper()
	if p := s.page; p != nil {
		if s.node != nil || p.n == 0 || p.n > pageSize || len(p.text) != int(p.ends[p.n-1]) {
			t.Fatalf("a page of %d keys and %d octets", p.n, len(p.text))
		}
		for i := range p.n - 1 {
			if p.suffix(i) >= p.suffix(i+1) {
				t.Fatalf("%q before %q", p.suffix(i), p.suffix(i+1))
			}
		}
		return
	}
	n := s.node
	if n == nil {
		return
	}
	if len(n.keys) != len(n.slots) || !slices.IsSorted(n.keys) || len(slices.Compact(slices.Clone(n.keys))) != len(n.keys) {
		t.Fatalf("keys %q for %d children", n.keys, len(n.slots))
	}
	if len(n.slots) == 0 || len(n.slots) == 1 && n.val == nil {
		t.Fatalf("a node with %d children, value %v", len(n.slots), n.val)
	}
	for i, c := range n.slots {
		if c.node == nil && c.page == nil {
			t.Fatal("an empty child")
		}
		if p := c.page; p != nil {
			low, high := p.suffix(0), p.suffix(p.n-1)
			if low == "" || low[0] < n.keys[i] || i+1 < len(n.keys) && high[0] >= n.keys[i+1] {
				t.Fatalf("%q to %q between %q", low, high, n.keys[i:])
			}
		}
		checkShape(t, c)
	}
}

// run interprets program as a sequence of changes over a small alphabet of keys, and checks tree against oracle, old
// trees included, as it goes.
func run(t *testing.T, program []byte) {
	var (
		tree Tree[int]
		o    = oracle{}
		old  []struct {
			tree Tree[int]
			o    oracle
		}
		probes = []string{""}
		txn    = tree.Txn()
	)
	key := func() []byte {
		if len(program) == 0 {
			return nil
		}
		n := min(int(program[0]%6), len(program)-1)
		k := slices.Clone(program[1 : 1+n])
		program = program[1+n:]
		for i := range k {
			k[i] = "abc\x00"[k[i]%4]
		}
		probes = append(probes, string(k))
		return k
	}
	for steps := 0; len(program) > 0 && steps < 200; steps++ {
		op := program[0]
		program = program[1:]
		k := key()
		switch op % 7 {
		case 0, 1, 2, 3:
			v := new(int)
			if got := txn.Set(k, v); got != o[string(k)] {
				t.Fatalf("Set(%q) returned %p, want %p", k, got, o[string(k)])
			}
			o[string(k)] = v
		case 4, 5:
			if got := txn.Delete(k); got != o[string(k)] {
				t.Fatalf("Delete(%q) returned %p, want %p", k, got, o[string(k)])
			}
			delete(o, string(k))
		case 6:
			tree = txn.Commit()
			if op&8 != 0 {
				txn = tree.Txn()
			}
			old = append(old, struct {
				tree Tree[int]
				o    oracle
			}{tree, maps.Clone(o)})
		}
		for i := range k { // changed octets are always somebody's, as a caller that reuses its buffer would have it
			k[i] = 'z'
		}
	}
	check(t, txn.Commit(), o, probes)
	for _, v := range old {
		check(t, v.tree, v.o, probes)
	}
}

func TestAgainstOracle(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		program := make([]byte, r.IntN(400))
		for i := range program {
			program[i] = byte(r.Uint32())
		}
		run(t, program)
	}
}

func FuzzTree(f *testing.F) {
	f.Add([]byte("\x00\x03abc\x00\x02ab\x07\x00\x04\x02ab\x06\x01a"))
	f.Fuzz(run)
}

// TestManyKeys is TestAgainstOracle with enough keys for pages to fill up, split and empty again.
func TestManyKeys(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 20 {
		o, txn := oracle{}, Tree[int]{}.Txn()
		key := func() string {
			k := make([]byte, r.IntN(7))
			for i := range k {
				k[i] = byte('a' + r.IntN(2+round%4))
			}
			return string(k)
		}
		var old Tree[int]
		var oldO oracle
		for i := range 3000 {
			k := key()
			grow := i < 1500
			switch {
			case (r.IntN(10) < 8) == grow:
				o[k] = new(int)
				txn.Set([]byte(k), o[k])
			default:
				if got := txn.Delete([]byte(k)); got != o[k] {
					t.Fatalf("Delete(%q) = %p, want %p", k, got, o[k])
				}
				delete(o, k)
			}
			if i == 1500 {
				old, oldO = txn.Commit(), maps.Clone(o)
			}
		}
		var probes []string
		for range 100 {
			probes = append(probes, key())
		}
		check(t, txn.Commit(), o, probes)
		check(t, old, oldO, probes)
	}
}

func TestNameKey(t *testing.T) {
	for _, c := range []struct{ wire, key string }{
		{"", ""},
		{"\x00", ""},
		{"\x03WeB\x04shop\x03svc\x00", "\x03svc\x04shop\x03web"},
		{"\x03web\x04shop", "\x04shop\x03web"},
		{"\x02a.\x02\x00Z\x00", "\x02\x00z\x02a."},
	} {
		if got := NameKey(nil, []byte(c.wire)); string(got) != c.key {
			t.Errorf("NameKey(%q) = %q, want %q", c.wire, got, c.key)
		}
	}
	longest := bytes.Repeat([]byte{1, 'x'}, 127)
	if got := NameKey(nil, longest); !bytes.Equal(got, longest) {
		t.Errorf("NameKey of 127 labels: %q", got)
	}
}

func TestReadersSeeOneState(t *testing.T) {
	var root atomic.Pointer[Tree[int]]
	root.Store(&Tree[int]{})
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				tree := *root.Load()
				n := 0
				for range tree.Prefixed(nil) {
					n++
				}
				// The writer adds and removes keys ten at a time.
				if n != tree.Len() || n%10 != 0 {
					t.Errorf("a reader saw %d keys of %d", n, tree.Len())
					return
				}
			}
		})
	}
	txn := Tree[int]{}.Txn()
	v := new(int)
	for i := range 300 {
		for j := range 10 {
			key := fmt.Appendf(nil, "%d/%d", i%30, j)
			if i/30%2 == 0 {
				txn.Set(key, v)
			} else {
				txn.Delete(key)
			}
		}
		tree := txn.Commit()
		root.Store(&tree)
	}
	stop.Store(true)
	wg.Wait()
}

func TestWalkDoesNotAllocate(t *testing.T) {
	tree, keys := serviceTree(1000)
	if n := testing.AllocsPerRun(100, func() {
		for _, k := range keys[:10] {
			if tree.Get(k) == nil {
				t.Fatal("lost a key")
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func serviceTree(n int) (Tree[int], [][]byte) {
	txn := Tree[int]{}.Txn()
	keys := make([][]byte, n)
	for i := range keys {
		wire := fmt.Sprintf("%c%s%c%s\x03svc", len(fmt.Sprintf("service-%d", i)), fmt.Sprintf("service-%d", i),
			len(fmt.Sprintf("team-%d", i%97)), fmt.Sprintf("team-%d", i%97))
		keys[i] = NameKey(nil, []byte(wire))
		txn.Set(keys[i], new(int))
	}
	return txn.Commit(), keys
}

func BenchmarkWalk(b *testing.B) {
	for _, n := range []int{1_000, 100_000, 1_000_000} {
		tree, keys := serviceTree(n)
		rand.Shuffle(n, func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if tree.Walk(keys[i%n]).Value == nil {
					b.Fatal("lost a key")
				}
			}
		})
	}
}

func BenchmarkSetOne(b *testing.B) {
	for _, n := range []int{1_000, 100_000, 1_000_000} {
		tree, keys := serviceTree(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			v := new(int)
			for i := 0; b.Loop(); i++ {
				txn := tree.Txn()
				txn.Set(keys[i%n], v)
				tree = txn.Commit()
			}
		})
	}
}
