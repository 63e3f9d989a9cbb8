package radix

import "bytes"

// pageSize is how many keys lie in a page before it becomes a node with pages below it.
const pageSize = 32

// page is a sorted run of suffixes, what is left of keys at this place of the tree, and their values. gen is that of a
// node: a transaction may write to the pages that it has made.
//
// Looking for one key, which is what happens all the time, takes the cache line of tags, those with its value and its
// end, and the one with its suffix. They are in one piece so that the processor need not wait for one to fetch the next.
type page[V any] struct {
	// text holds the suffixes one after the other; ends[i] is where the i-th ends. tags[i] is its tag.
	text string
	gen  uint64
	n    int
	tags [pageSize]uint8
	ends [pageSize]uint16
	vals [pageSize]*V
}

// tag is an octet that tells most suffixes of a page apart. It goes by their ends, where names that are much alike differ.
func tag[S string | []byte](suffix S) uint8 {
	h := uint32(len(suffix))
	for i := max(len(suffix)-6, 0); i < len(suffix); i++ {
		h = h*31 + uint32(suffix[i])
	}
	return uint8(h * 0x9E3779B1 >> 24) // Fibonacci hashing
}

// item is a suffix and its value on the way into a page.
type item[V any] struct {
	suffix string
	val    *V
}

// newPage makes a page of sorted items, pageSize at most and at least one, for the transaction of gen.
func newPage[V any](gen uint64, items []item[V]) *page[V] {
	size := 0
	for _, it := range items {
		size += len(it.suffix)
	}
	p, text := &page[V]{gen: gen, n: len(items)}, make([]byte, 0, size)
	for i, it := range items {
		text = append(text, it.suffix...)
		p.vals[i], p.ends[i], p.tags[i] = it.val, uint16(len(text)), tag(it.suffix)
	}
	p.text = string(text)
	return p
}

func (p *page[V]) start(i int) int {
	if i == 0 {
		return 0
	}
	return int(p.ends[i-1])
}

func (p *page[V]) suffix(i int) string { return p.text[p.start(i):p.ends[i]] }

// get returns the value of suffix, nil if the page does not hold it.
func (p *page[V]) get(suffix []byte) *V {
	t := tag(suffix)
	for i := 0; i < p.n; i++ {
		next := bytes.IndexByte(p.tags[i:p.n], t)
		if next < 0 {
			return nil
		}
		if i += next; p.suffix(i) == string(suffix) {
			return p.vals[i]
		}
	}
	return nil
}

// search returns the index of suffix, or where it would stand.
func (p *page[V]) search(suffix []byte) (int, bool) {
	lo, hi := 0, p.n
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if p.suffix(mid) < string(suffix) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < p.n && p.suffix(lo) == string(suffix)
}

// walk is Tree.Walk from off on.
func (p *page[V]) walk(key []byte, off int, m *Match[V]) {
	rest := key[off:]
	i, found := p.search(rest)
	above := i
	if found {
		m.Value, m.Len = p.vals[i], len(key)
		above++
	}
	m.Below = above < p.n && hasPrefix(p.suffix(above), rest)
	// A suffix that rest starts with sorts before rest, and everything in between starts with it, too: so it is a prefix
	// of what rest has in common with the one before it.
	for !found && i > 0 {
		if c := commonPrefix(p.suffix(i-1), rest); c == len(p.suffix(i-1)) {
			m.Value, m.Len = p.vals[i-1], off+c
			return
		} else {
			rest = rest[:c]
		}
		if i, found = p.search(rest); found {
			m.Value, m.Len = p.vals[i], off+len(rest)
		}
	}
}

// prefixed returns the range of suffixes that start with prefix.
func (p *page[V]) prefixed(prefix []byte) (from, to int) {
	from, _ = p.search(prefix)
	to = from
	for to < p.n && hasPrefix(p.suffix(to), prefix) {
		to++
	}
	return from, to
}

// items returns the page's items, each with lead in front of its suffix.
func (p *page[V]) items(lead string) []item[V] {
	items := make([]item[V], p.n, p.n+1)
	for i := range items {
		items[i] = item[V]{lead + p.suffix(i), p.vals[i]}
	}
	return items
}

// own returns a page that the transaction of gen may write to: p itself or a copy.
func (p *page[V]) own(gen uint64) *page[V] {
	if p.gen == gen {
		return p
	}
	c := *p
	c.gen = gen
	return &c
}

// insert makes suffix the i-th item. The page must not be full.
func (p *page[V]) insert(i int, suffix []byte, v *V) {
	at := p.start(i)
	p.text = p.text[:at] + string(suffix) + p.text[at:]
	copy(p.tags[i+1:], p.tags[i:p.n])
	copy(p.vals[i+1:], p.vals[i:p.n])
	for j := p.n; j > i; j-- {
		p.ends[j] = p.ends[j-1] + uint16(len(suffix))
	}
	p.tags[i], p.vals[i], p.ends[i] = tag(suffix), v, uint16(at+len(suffix))
	p.n++
}

// remove takes out the i-th item.
func (p *page[V]) remove(i int) {
	at, end := p.start(i), int(p.ends[i])
	p.text = p.text[:at] + p.text[end:]
	p.n--
	copy(p.tags[i:p.n], p.tags[i+1:])
	copy(p.vals[i:p.n], p.vals[i+1:])
	p.vals[p.n] = nil
	for j := i; j < p.n; j++ {
		p.ends[j] = p.ends[j+1] - uint16(end-at)
	}
}

func hasPrefix(s string, prefix []byte) bool {
	return len(s) >= len(prefix) && s[:len(prefix)] == string(prefix)
}

func commonPrefix(a string, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
