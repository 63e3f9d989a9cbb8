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

// Len returns how many keys there are, changes so far included.
func (x *Txn[V]) Len() int { return x.t.size }

// Walk is Tree.Walk, changes so far included.
func (x *Txn[V]) Walk(key []byte) Match[V] { return x.t.Walk(key) }

// Get is Tree.Get, changes so far included.
func (x *Txn[V]) Get(key []byte) *V { return x.t.Get(key) }

// Set gives key the value v, which must not be nil, and returns the value it had, nil if it had none.
func (x *Txn[V]) Set(key []byte, v *V) (old *V) {
	if v == nil {
		panic("radix: nil value")
	}
	x.t.root, old = x.set(x.t.root, key, v)
	if old == nil {
		x.t.size++
	}
	return old
}

// Delete removes key and returns the value it had, nil if it had none.
func (x *Txn[V]) Delete(key []byte) (old *V) {
	if x.Get(key) == nil { // so that a miss copies nothing
		return nil
	}
	x.t.root, old = x.delete(x.t.root, key)
	x.t.size--
	return old
}

// DeletePrefix removes every key that starts with prefix, prefix itself included, and returns how many there were. Its
// cost is that of one Delete, plus counting.
func (x *Txn[V]) DeletePrefix(prefix []byte) int {
	var gone int
	x.t.root, gone = x.deletePrefix(x.t.root, prefix)
	x.t.size -= gone
	return gone
}

func (x *Txn[V]) set(n *node[V], key []byte, v *V) (_ *node[V], old *V) {
	if n == nil {
		return leaf(key, v), nil
	}
	common := commonPrefix(n.prefix, key)
	if common < len(n.prefix) {
		return x.split(n, common, key, v), nil
	}
	n = x.own(n)
	rest := key[common:]
	if len(rest) == 0 {
		old, n.val = n.val, v
		return n, old
	}
	i, found := n.find(rest[0])
	if !found {
		x.insertKid(n, i, rest[0], leaf(rest[1:], v))
		return n, nil
	}
	n.kids.nodes[i], old = x.set(n.kids.nodes[i], rest[1:], v)
	return n, old
}

// split puts a node for the first common octets of n's prefix above n, and v at key below that node or in it.
func (x *Txn[V]) split(n *node[V], common int, key []byte, v *V) *node[V] {
	low := &node[V]{prefix: tail(n.prefix, common+1), val: n.val, kids: n.kids}
	top := &node[V]{
		prefix: n.prefix[:common],
		kids:   &kids[V]{gen: x.t.gen, keys: []byte{n.prefix[common]}, nodes: []*node[V]{low}},
	}
	if len(key) == common {
		top.val = v
		return top
	}
	i, _ := top.find(key[common])
	x.insertKid(top, i, key[common], leaf(key[common+1:], v))
	return top
}

func (x *Txn[V]) delete(n *node[V], key []byte) (_ *node[V], old *V) {
	rest := key[len(n.prefix):]
	if len(rest) == 0 {
		old = n.val
		if n.kids == nil {
			return nil, old
		}
		n = x.own(n)
		n.val = nil
		return merge(n), old
	}
	i, _ := n.find(rest[0])
	c, old := x.delete(n.kids.nodes[i], rest[1:])
	return x.replaceKid(n, i, c), old
}

func (x *Txn[V]) deletePrefix(n *node[V], prefix []byte) (_ *node[V], gone int) {
	if n == nil {
		return nil, 0
	}
	if len(prefix) <= len(n.prefix) {
		if n.prefix[:len(prefix)] != string(prefix) {
			return n, 0
		}
		return nil, n.count()
	}
	if string(prefix[:len(n.prefix)]) != n.prefix {
		return n, 0
	}
	rest := prefix[len(n.prefix):]
	i, found := n.find(rest[0])
	if !found {
		return n, 0
	}
	c, gone := x.deletePrefix(n.kids.nodes[i], rest[1:])
	if gone == 0 {
		return n, 0
	}
	return x.replaceKid(n, i, c), gone
}

// own returns a node that this transaction may write to: n itself or a copy.
func (x *Txn[V]) own(n *node[V]) *node[V] {
	if n.kids != nil && n.kids.gen == x.t.gen {
		return n
	}
	c := *n
	if n.kids != nil {
		c.kids = &kids[V]{gen: x.t.gen, keys: slices.Clone(n.kids.keys), nodes: slices.Clone(n.kids.nodes)}
	}
	return &c
}

// replaceKid puts c in the place of the i-th child of n, or takes the child away if c is nil.
func (x *Txn[V]) replaceKid(n *node[V], i int, c *node[V]) *node[V] {
	n = x.own(n)
	if c != nil {
		n.kids.nodes[i] = c
		return n
	}
	k := n.kids
	k.keys = slices.Delete(k.keys, i, i+1)
	k.nodes = slices.Delete(k.nodes, i, i+1)
	if len(k.nodes) == 0 {
		n.kids = nil
		if n.val == nil {
			return nil
		}
	}
	return merge(n)
}

// merge joins n with its child if n holds no value and the child is its only one. n must be the caller's to give up.
func merge[V any](n *node[V]) *node[V] {
	if n.val != nil || n.kids == nil || len(n.kids.nodes) > 1 {
		return n
	}
	c := *n.kids.nodes[0]
	c.prefix = n.prefix + string(n.kids.keys[:1]) + c.prefix
	return &c
}

// insertKid makes c the i-th child of n, which must be the transaction's own.
func (x *Txn[V]) insertKid(n *node[V], i int, octet byte, c *node[V]) {
	if n.kids == nil {
		n.kids = &kids[V]{gen: x.t.gen}
	}
	k := n.kids
	if len(k.nodes) == cap(k.nodes) {
		// Grow by a quarter: most nodes are small and never grow again, and doubling would waste half of them.
		grow := 1 + len(k.nodes)/4
		k.nodes = append(make([]*node[V], 0, len(k.nodes)+grow), k.nodes...)
		k.keys = append(make([]byte, 0, len(k.keys)+grow), k.keys...)
	}
	k.keys = slices.Insert(k.keys, i, octet)
	k.nodes = slices.Insert(k.nodes, i, c)
}

// find returns the index of the child that octet leads to, or where it would stand.
func (n *node[V]) find(octet byte) (int, bool) {
	if n.kids == nil {
		return 0, false
	}
	return slices.BinarySearch(n.kids.keys, octet)
}

func (n *node[V]) count() int {
	c := 0
	if n.val != nil {
		c = 1
	}
	if n.kids != nil {
		for _, k := range n.kids.nodes {
			c += k.count()
		}
	}
	return c
}

func leaf[V any](prefix []byte, v *V) *node[V] {
	return &node[V]{prefix: string(prefix), val: v}
}

// tail returns s[from:], without holding on to s where nothing is left.
func tail(s string, from int) string {
	if from >= len(s) {
		return ""
	}
	return s[from:]
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
