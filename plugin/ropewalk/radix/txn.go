package radix

import (
	"iter"
	"slices"
)

// Txn makes a new Tree out of an old one. It belongs to one goroutine. Keys that it is given are copied.
type Txn[V any] struct {
	t Tree[V]
}

// Txn starts a transaction on t. Its changes show in what Commit returns, never in t.
func (t Tree[V]) Txn() *Txn[V] {
	t.gen++
	return &Txn[V]{t}
}

// Commit returns the tree with all changes so far. The transaction can go on from there.
func (x *Txn[V]) Commit() Tree[V] {
	t := x.t
	x.t.gen++
	return t
}

// Get is Tree.Get, changes so far included.
func (x *Txn[V]) Get(key []byte) *V { return x.t.Get(key) }

// Walk is Tree.Walk, changes so far included.
func (x *Txn[V]) Walk(key []byte) Match[V] { return x.t.Walk(key) }

// Values is Tree.Values, changes so far included. Nothing may be changed while it yields.
func (x *Txn[V]) Values(prefix []byte) iter.Seq[*V] { return x.t.Values(prefix) }

// Set gives key the value v and returns the value it had, nil if it had none. It panics if v is nil, which could not be
// told from a key that is not there, or if the key is longer than MaxKey.
func (x *Txn[V]) Set(key []byte, v *V) (old *V) {
	if v == nil || len(key) > MaxKey {
		panic("radix: nil value or oversized key")
	}
	x.t.root, old = x.set(x.t.root, key, v)
	if old == nil {
		x.t.size++
	}
	return old
}

// Delete removes key and returns the value it had, nil if it had none.
func (x *Txn[V]) Delete(key []byte) (old *V) {
	if old = x.Get(key); old == nil { // so that a miss copies nothing
		return nil
	}
	x.t.root = x.delete(x.t.root, key)
	x.t.size--
	return old
}

func (x *Txn[V]) set(s slot[V], key []byte, v *V) (_ slot[V], old *V) {
	switch {
	case s.page != nil:
		return x.setInPage(s.page, key, v)
	case s.node == nil:
		return leaf(x.t.gen, key, v), nil
	}
	n := s.node
	common := commonPrefix(n.prefix, key)
	if common < len(n.prefix) {
		return x.fork(n, common, key, v), nil
	}
	n = x.own(n)
	rest := key[common:]
	if len(rest) == 0 {
		old, n.val = n.val, v
		return slot[V]{node: n}, old
	}
	i := n.find(rest[0])
	if i >= 0 && n.slots[i].node != nil && n.keys[i] == rest[0] {
		n.slots[i], old = x.set(n.slots[i], rest[1:], v)
		return slot[V]{node: n}, old
	}
	if i < 0 || n.slots[i].page == nil {
		if i++; i == len(n.slots) || n.slots[i].page == nil {
			n.insert(i, rest[0], leaf(x.t.gen, rest, v))
			return slot[V]{node: n}, nil
		}
		n.keys[i] = rest[0] // the page behind has room for it
	}
	p := n.slots[i].page
	at, found := p.search(rest)
	if !found && p.n == pageSize {
		x.divide(n, i, at, slices.Insert(p.items(""), at, item[V]{string(rest), v}))
	} else {
		n.slots[i].page, old = x.put(p, at, found, rest, v)
	}
	return slot[V]{node: n}, old
}

func (x *Txn[V]) setInPage(p *page[V], key []byte, v *V) (_ slot[V], old *V) {
	i, found := p.search(key)
	if !found && p.n == pageSize {
		return slot[V]{node: x.split(i, slices.Insert(p.items(""), i, item[V]{string(key), v}))}, nil
	}
	p, old = x.put(p, i, found, key, v)
	return slot[V]{page: p}, old
}

// put gives suffix, which stands or would stand at i, the value v.
func (x *Txn[V]) put(p *page[V], i int, found bool, suffix []byte, v *V) (_ *page[V], old *V) {
	p = p.own(x.t.gen)
	if found {
		old, p.vals[i] = p.vals[i], v
	} else {
		p.insert(i, suffix, v)
	}
	return p, old
}

// split makes a node of more items than a page can hold. They are sorted and differ; the at-th is new.
func (x *Txn[V]) split(at int, items []item[V]) *node[V] {
	common := commonPrefix(items[0].suffix, []byte(items[len(items)-1].suffix))
	n := &node[V]{gen: x.t.gen, prefix: items[0].suffix[:common]}
	for i := range items {
		items[i].suffix = items[i].suffix[common:]
	}
	if items[0].suffix == "" {
		n.val, items, at = items[0].val, items[1:], at-1
	}
	n.insert(0, items[0].suffix[0], slot[V]{})
	x.divide(n, 0, at, items)
	return n
}

// divide puts items in the place of the i-th child of n: in a page if there is room, else in two if they differ in their
// first octets, else in a node. The at-th item is new; if it is the last, more may follow in order, and the first page is
// left full.
func (x *Txn[V]) divide(n *node[V], i, at int, items []item[V]) {
	first, last := items[0].suffix[0], items[len(items)-1].suffix[0]
	switch {
	case len(items) <= pageSize:
		n.slots[i] = slot[V]{page: newPage(x.t.gen, items)}
		return
	case first == last:
		for j := range items {
			items[j].suffix = items[j].suffix[1:]
		}
		n.keys[i], n.slots[i] = first, slot[V]{node: x.split(at, items)}
		return
	}
	middle := len(items) / 2
	if at == len(items)-1 {
		middle = at
	}
	// The nearest place to the middle where the octet changes.
	cut := 0
	for j := 1; j < len(items); j++ {
		if items[j-1].suffix[0] != items[j].suffix[0] && (cut == 0 || abs(j-middle) < abs(cut-middle)) {
			cut = j
		}
	}
	n.slots[i] = slot[V]{page: newPage(x.t.gen, items[:cut])}
	n.insert(i+1, items[cut].suffix[0], slot[V]{page: newPage(x.t.gen, items[cut:])})
}

func abs(n int) int { return max(n, -n) }

// fork puts a node for the first common octets of n's prefix above n, and v at key, below that node or in it.
func (x *Txn[V]) fork(n *node[V], common int, key []byte, v *V) slot[V] {
	low := x.own(n)
	top := &node[V]{gen: x.t.gen, prefix: n.prefix[:common]}
	top.insert(0, n.prefix[common], slot[V]{node: low})
	low.prefix = low.prefix[common+1:]
	if len(key) == common {
		top.val = v
		return slot[V]{node: top}
	}
	top.insert(1+top.find(key[common]), key[common], leaf(x.t.gen, key[common:], v))
	return slot[V]{node: top}
}

// delete removes key, which is there.
func (x *Txn[V]) delete(s slot[V], key []byte) slot[V] {
	if p := s.page; p != nil {
		if p.n == 1 {
			return slot[V]{}
		}
		i, _ := p.search(key)
		p = p.own(x.t.gen)
		p.remove(i)
		return slot[V]{page: p}
	}
	rest := key[len(s.node.prefix):]
	if len(rest) == 0 {
		n := x.own(s.node)
		n.val = nil
		return n.tidy()
	}
	n := x.own(s.node)
	i := n.find(rest[0])
	if c := n.slots[i]; c.page != nil {
		n.slots[i] = x.delete(c, rest)
	} else if c = x.delete(c, rest[1:]); c.page != nil {
		n.slots[i].node, n.slots[i].page = nil, newPage(x.t.gen, c.page.items(string(rest[:1])))
	} else {
		n.slots[i] = c
	}
	if n.slots[i] == (slot[V]{}) {
		n.keys, n.slots = slices.Delete(n.keys, i, i+1), slices.Delete(n.slots, i, i+1)
	} else if !n.join(i) && i > 0 {
		n.join(i - 1)
	}
	return n.tidy()
}

// own returns a node that this transaction may write to: n itself or a copy.
func (x *Txn[V]) own(n *node[V]) *node[V] {
	if n.gen == x.t.gen {
		return n
	}
	c := *n
	c.gen, c.keys, c.slots = x.t.gen, slices.Clone(n.keys), slices.Clone(n.slots)
	return &c
}

// join makes one page of the i-th child of n and the next if they are pages and together fill half of one.
func (n *node[V]) join(i int) bool {
	if i+1 >= len(n.slots) || n.slots[i].page == nil || n.slots[i+1].page == nil {
		return false
	}
	a, b := n.slots[i].page, n.slots[i+1].page
	if a.n+b.n > pageSize/2 {
		return false
	}
	n.slots[i].page = newPage(n.gen, append(a.items(""), b.items("")...))
	n.keys, n.slots = slices.Delete(n.keys, i+1, i+2), slices.Delete(n.slots, i+1, i+2)
	return true
}

// tidy returns what should stand in the place of n after something was taken from it: a node that does not branch any
// more is joined with what is left. n must be the transaction's own.
func (n *node[V]) tidy() slot[V] {
	switch {
	case len(n.slots) == 0 && n.val == nil:
		return slot[V]{}
	case len(n.slots) == 0:
		return leaf(n.gen, []byte(n.prefix), n.val)
	case len(n.slots) > 1:
		return slot[V]{node: n}
	}
	if p := n.slots[0].page; p != nil {
		items := p.items(n.prefix)
		if n.val != nil {
			items = slices.Insert(items, 0, item[V]{n.prefix, n.val})
		}
		if len(items) > pageSize {
			return slot[V]{node: n}
		}
		return slot[V]{page: newPage(n.gen, items)}
	}
	if n.val != nil {
		return slot[V]{node: n}
	}
	c := *n.slots[0].node
	c.prefix = n.prefix + string(n.keys) + c.prefix
	// The copy shares keys and slots with a node that may still be reached: nobody may write to them.
	c.gen = 0
	return slot[V]{node: &c}
}

// insert makes c the i-th child of n.
func (n *node[V]) insert(i int, octet byte, c slot[V]) {
	if len(n.slots) == cap(n.slots) {
		// Grow by a quarter: most nodes stop growing, and doubling would leave half of them empty.
		n.slots = slices.Grow(slices.Clip(n.slots), 1+len(n.slots)/4)
	}
	n.keys = slices.Insert(n.keys, i, octet)
	n.slots = slices.Insert(n.slots, i, c)
}

func leaf[V any](gen uint64, suffix []byte, v *V) slot[V] {
	return slot[V]{page: newPage(gen, []item[V]{{string(suffix), v}})}
}
