package radix

import "slices"

// pageSize is how many keys lie in a page before it becomes a node with pages below it.
const pageSize = 32

// page is a sorted run of suffixes, what is left of keys at this place of the tree, and their values. It never changes.
type page[V any] struct {
	// text holds the suffixes one after the other; ends[i] is where the i-th ends. vals has their number.
	text string
	vals []*V
	ends [pageSize]uint16
}

// item is a suffix and its value on the way into a page.
type item[V any] struct {
	suffix string
	val    *V
}

// newPage makes a page of sorted items, pageSize at most and at least one.
func newPage[V any](items []item[V]) *page[V] {
	n := 0
	for _, it := range items {
		n += len(it.suffix)
	}
	p, text := &page[V]{vals: make([]*V, len(items))}, make([]byte, 0, n)
	for i, it := range items {
		text = append(text, it.suffix...)
		p.vals[i], p.ends[i] = it.val, uint16(len(text))
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

// search returns the index of suffix, or where it would stand.
func (p *page[V]) search(suffix []byte) (int, bool) {
	lo, hi := 0, len(p.vals)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if p.suffix(mid) < string(suffix) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < len(p.vals) && p.suffix(lo) == string(suffix)
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
	m.Below = above < len(p.vals) && hasPrefix(p.suffix(above), rest)
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
	for to < len(p.vals) && hasPrefix(p.suffix(to), prefix) {
		to++
	}
	return from, to
}

// items returns the page's items, each with lead in front of its suffix.
func (p *page[V]) items(lead string) []item[V] {
	items := make([]item[V], len(p.vals), len(p.vals)+1)
	for i, v := range p.vals {
		items[i] = item[V]{lead + p.suffix(i), v}
	}
	return items
}

// with returns the page with v as the i-th value.
func (p *page[V]) with(i int, v *V) *page[V] {
	c := *p
	c.vals = slices.Clone(p.vals)
	c.vals[i] = v
	return &c
}

// insert returns the page with suffix as its i-th item. The page must not be full.
func (p *page[V]) insert(i int, suffix []byte, v *V) *page[V] {
	at := p.start(i)
	text := make([]byte, 0, len(p.text)+len(suffix))
	text = append(append(append(text, p.text[:at]...), suffix...), p.text[at:]...)
	c := &page[V]{text: string(text), vals: make([]*V, len(p.vals)+1), ends: p.ends}
	copy(c.vals, p.vals[:i])
	c.vals[i] = v
	copy(c.vals[i+1:], p.vals[i:])
	c.ends[i] = uint16(at + len(suffix))
	for j := i + 1; j < len(c.vals); j++ {
		c.ends[j] = p.ends[j-1] + uint16(len(suffix))
	}
	return c
}

// remove returns the page without the i-th item, nil if none is left.
func (p *page[V]) remove(i int) *page[V] {
	if len(p.vals) == 1 {
		return nil
	}
	return newPage(slices.Delete(p.items(""), i, i+1))
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
