package radix

import "slices"

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
		return leaf(key, v), nil
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
	i, found := slices.BinarySearch(n.keys, rest[0])
	if !found {
		n.insert(i, rest[0], leaf(rest[1:], v))
		return slot[V]{node: n}, nil
	}
	n.slots[i], old = x.set(n.slots[i], rest[1:], v)
	return slot[V]{node: n}, old
}

func (x *Txn[V]) setInPage(p *page[V], key []byte, v *V) (_ slot[V], old *V) {
	i, found := p.search(key)
	switch {
	case found:
		return slot[V]{page: p.with(i, v)}, p.vals[i]
	case len(p.vals) < pageSize:
		return slot[V]{page: p.insert(i, key, v)}, nil
	}
	return slot[V]{node: x.split(slices.Insert(p.items(""), i, item[V]{string(key), v}))}, nil
}

// split makes a node of more items than a page can hold. They are sorted and differ.
func (x *Txn[V]) split(items []item[V]) *node[V] {
	common := commonPrefix(items[0].suffix, []byte(items[len(items)-1].suffix))
	n := &node[V]{gen: x.t.gen, prefix: items[0].suffix[:common]}
	if len(items[0].suffix) == common {
		n.val, items = items[0].val, items[1:]
	}
	for len(items) > 0 {
		octet, end := items[0].suffix[common], 0
		for end < len(items) && items[end].suffix[common] == octet {
			items[end].suffix = items[end].suffix[common+1:]
			end++
		}
		n.insert(len(n.keys), octet, slot[V]{page: newPage(items[:end])})
		items = items[end:]
	}
	return n
}

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
	i, _ := slices.BinarySearch(top.keys, key[common])
	top.insert(i, key[common], leaf(key[common+1:], v))
	return slot[V]{node: top}
}

// delete removes key, which is there.
func (x *Txn[V]) delete(s slot[V], key []byte) slot[V] {
	if p := s.page; p != nil {
		i, _ := p.search(key)
		return slot[V]{page: p.remove(i)}
	}
	rest := key[len(s.node.prefix):]
	if len(rest) == 0 {
		n := x.own(s.node)
		n.val = nil
		return n.tidy()
	}
	i, _ := slices.BinarySearch(s.node.keys, rest[0])
	return x.replace(s.node, i, x.delete(s.node.slots[i], rest[1:]))
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

// replace puts c in the place of the i-th child of n, or takes the child away if c is empty.
func (x *Txn[V]) replace(n *node[V], i int, c slot[V]) slot[V] {
	n = x.own(n)
	n.slots[i] = c
	if c.node == nil && c.page == nil {
		n.keys, n.slots = slices.Delete(n.keys, i, i+1), slices.Delete(n.slots, i, i+1)
	}
	return n.tidy()
}

// tidy returns what should stand in the place of n after something was taken from it: a node that does not branch any
// more is joined with what is left. n must be the transaction's own.
func (n *node[V]) tidy() slot[V] {
	switch {
	case len(n.slots) == 0 && n.val == nil:
		return slot[V]{}
	case len(n.slots) == 0:
		return leaf([]byte(n.prefix), n.val)
	case len(n.slots) > 1 || n.val != nil:
		return slot[V]{node: n}
	}
	lead := n.prefix + string(n.keys)
	if p := n.slots[0].page; p != nil {
		return slot[V]{page: newPage(p.items(lead))}
	}
	c := *n.slots[0].node
	c.prefix = lead + c.prefix
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

func leaf[V any](suffix []byte, v *V) slot[V] {
	return slot[V]{page: newPage([]item[V]{{string(suffix), v}})}
}
