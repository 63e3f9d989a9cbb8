// Package radix is a persistent, path-compressed radix tree over byte strings.
//
// A Tree never changes: a Txn makes a new one that shares with the old all that it did not touch. A reader that has a
// Tree needs no lock and sees one state for as long as it likes; publishing a new Tree is one atomic store, which is
// the caller's business, as is having one writer at a time.
//
// The tree branches only as long as there are many keys: up to pageSize keys that share a prefix lie together in a
// page, sorted, and where there are more, neighbours still share a page as in a B-tree. A node for each key would be
// simpler, and several times larger and slower: what a lookup costs is the cache lines that it touches, and most of them
// would be those of the last few levels.
//
// Names of the DNS become keys root label first, each label behind its length octet (NameKey): so a prefix of a key
// that ends where a label ends is an ancestor's key, "everything below a name" is "everything that starts with its
// key", and a label may hold any octet. The tree itself knows nothing of names and takes any bytes.
package radix

import (
	"bytes"
	"iter"
)

// MaxKey is how long a key may be, in octets. Keys of names have 254 at most.
const MaxKey = 1024

// Tree is an immutable map from byte strings to non-nil values. The zero Tree is empty and ready to use.
type Tree[V any] struct {
	root slot[V]
	size int
	gen  uint64
}

// slot is what an octet leads to: a node, a page, or nothing.
type slot[V any] struct {
	node *node[V]
	page *page[V]
}

// node is a place where the tree branches. prefix is what all keys below it go on with. keys rise, and slots[i] is for the
// keys whose next octet is keys[i] or more, but less than keys[i+1]. A page holds that octet too; a node is for keys[i]
// alone and does not: it stands in its parent.
//
// gen is the transaction that made the node. A transaction that finds its own gen may write to the node, since no
// committed tree can reach it.
type node[V any] struct {
	prefix string
	keys   []byte
	slots  []slot[V]
	val    *V
	gen    uint64
}

// find returns the last i with keys[i] <= octet, -1 if there is none.
func (n *node[V]) find(octet byte) int {
	lo, hi := 0, len(n.keys)
	for lo < hi {
		if mid := int(uint(lo+hi) / 2); n.keys[mid] <= octet {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// down returns where the key goes on whose rest, after the node's prefix, is rest, and how many of its octets are behind.
func (n *node[V]) down(rest []byte) (s slot[V], behind int) {
	// Most nodes lead to nodes, by the octet itself, which is found without a branch to be mispredicted.
	i := bytes.IndexByte(n.keys, rest[0])
	if i >= 0 && n.slots[i].node != nil {
		return n.slots[i], 1
	}
	if i < 0 {
		if i = n.find(rest[0]); i < 0 {
			return slot[V]{}, 0
		}
	}
	return slot[V]{page: n.slots[i].page}, 0
}

// Match is what Walk found.
type Match[V any] struct {
	// Value belongs to the longest key in the tree that the key asked for starts with; nil if there is none.
	Value *V
	// Len is that key's length. The key asked for is itself in the tree if Value is set and Len is its own length.
	Len int
	// Below says that the tree holds longer keys that start with the key asked for.
	Below bool
}

// Len returns how many keys the tree holds.
func (t Tree[V]) Len() int { return t.size }

// Walk goes down the tree along key. It does not allocate.
func (t Tree[V]) Walk(key []byte) (m Match[V]) {
	off := 0
	s := t.root
	for s.node != nil {
		n := s.node
		rest, p := key[off:], n.prefix
		if len(rest) < len(p) {
			m.Below = p[:len(rest)] == string(rest)
			return m
		}
		if string(rest[:len(p)]) != p {
			return m
		}
		off += len(p)
		if n.val != nil {
			m.Value, m.Len = n.val, off
		}
		if off == len(key) {
			m.Below = true // a node has children
			return m
		}
		var behind int
		s, behind = n.down(key[off:])
		off += behind
	}
	if s.page != nil {
		s.page.walk(key, off, &m)
	}
	return m
}

// Get returns the value of key, nil if the tree does not hold it. It does not allocate.
func (t Tree[V]) Get(key []byte) *V {
	rest := key
	s := t.root
	for s.node != nil {
		n := s.node
		if len(rest) < len(n.prefix) || string(rest[:len(n.prefix)]) != n.prefix {
			return nil
		}
		rest = rest[len(n.prefix):]
		if len(rest) == 0 {
			return n.val
		}
		var behind int
		s, behind = n.down(rest)
		rest = rest[behind:]
	}
	if s.page != nil {
		return s.page.get(rest)
	}
	return nil
}

// Prefixed yields the keys that start with prefix, and their values, in rising order of the keys. The key is valid only
// until the next one is yielded.
func (t Tree[V]) Prefixed(prefix []byte) iter.Seq2[[]byte, *V] {
	return func(yield func([]byte, *V) bool) {
		path := append(make([]byte, 0, 256), prefix...)
		s, off := t.root.prefixed(prefix)
		if p := s.page; p != nil {
			from, to := p.prefixed(prefix[off:])
			for i := from; i < to; i++ {
				if !yield(append(path[:off], p.suffix(i)...), p.vals[i]) {
					return
				}
			}
		} else if s.node != nil {
			s.each(path[:off], yield)
		}
	}
}

// Values yields what Prefixed does, but for the keys. It does not allocate.
func (t Tree[V]) Values(prefix []byte) iter.Seq[*V] {
	return func(yield func(*V) bool) {
		s, off := t.root.prefixed(prefix)
		if p := s.page; p != nil {
			from, to := p.prefixed(prefix[off:])
			for _, v := range p.vals[from:to] {
				if !yield(v) {
					return
				}
			}
		} else if s.node != nil {
			s.values(yield)
		}
	}
}

// prefixed returns what holds the keys below s that start with prefix: a node for nothing else, or a page for others, too;
// and how many octets of prefix are behind.
func (s slot[V]) prefixed(prefix []byte) (_ slot[V], off int) {
	for s.node != nil {
		n, rest := s.node, prefix[off:]
		common := min(len(rest), len(n.prefix))
		if n.prefix[:common] != string(rest[:common]) {
			return slot[V]{}, 0
		}
		if len(rest) <= len(n.prefix) {
			break
		}
		var behind int
		s, behind = n.down(rest[common:])
		off += common + behind
	}
	return s, off
}

// each yields what is in s, whose keys start with path.
func (s slot[V]) each(path []byte, yield func([]byte, *V) bool) bool {
	if p := s.page; p != nil {
		for i, v := range p.vals[:p.n] {
			if !yield(append(path, p.suffix(i)...), v) {
				return false
			}
		}
		return true
	}
	n := s.node
	path = append(path, n.prefix...)
	if n.val != nil && !yield(path, n.val) {
		return false
	}
	for i, c := range n.slots {
		lead := path
		if c.node != nil {
			lead = append(path, n.keys[i])
		}
		if !c.each(lead, yield) {
			return false
		}
	}
	return true
}

// values is each without keys.
func (s slot[V]) values(yield func(*V) bool) bool {
	if s.page != nil {
		for _, v := range s.page.vals[:s.page.n] {
			if !yield(v) {
				return false
			}
		}
		return true
	}
	if v := s.node.val; v != nil && !yield(v) {
		return false
	}
	for _, c := range s.node.slots {
		if !c.values(yield) {
			return false
		}
	}
	return true
}
