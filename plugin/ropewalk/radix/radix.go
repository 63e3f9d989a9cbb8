// Package radix is a persistent, path-compressed radix tree over byte strings.
//
// A Tree never changes: a Txn makes a new one that shares with the old all that it did not touch. A reader that has a
// Tree needs no lock and sees one state for as long as it likes; publishing a new Tree is one atomic store, which is
// the caller's business, as is having one writer at a time.
//
// Names of the DNS become keys root label first, each label behind its length octet (NameKey): so a prefix of a key
// that ends where a label ends is an ancestor's key, "everything below a name" is "everything that starts with its
// key", and a label may hold any octet. The tree itself knows nothing of names and takes any bytes.
package radix

import (
	"bytes"
	"iter"
)

// Tree is an immutable map from byte strings to non-nil values. The zero Tree is empty and ready to use.
type Tree[V any] struct {
	root *node[V]
	size int
	gen  uint64
}

// node is one edge and what hangs below it. The octet that leads to it stands in its parent's kids, prefix is what
// follows that octet.
type node[V any] struct {
	prefix string
	val    *V
	kids   *kids[V]
}

// kids are the children of a node: nodes[i] is reached by the octet keys[i], and keys rise.
//
// gen is the transaction that made it. A transaction that finds its own gen may write to the kids and to the node that
// holds them, since no committed tree can reach either.
type kids[V any] struct {
	gen   uint64
	keys  []byte
	nodes []*node[V]
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
	for n := t.root; n != nil; {
		rest := key[off:]
		p := n.prefix
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
			m.Below = n.kids != nil
			return m
		}
		n = n.child(key[off])
		off++
	}
	return m
}

// Get returns the value of key, nil if the tree does not hold it. It does not allocate.
func (t Tree[V]) Get(key []byte) *V {
	if m := t.Walk(key); m.Len == len(key) {
		return m.Value
	}
	return nil
}

func (n *node[V]) child(octet byte) *node[V] {
	if n.kids == nil {
		return nil
	}
	if i := bytes.IndexByte(n.kids.keys, octet); i >= 0 {
		return n.kids.nodes[i]
	}
	return nil
}

// Prefixed yields the keys that start with prefix, and their values, in rising order of the keys. The key is valid only
// until the next one is yielded.
func (t Tree[V]) Prefixed(prefix []byte) iter.Seq2[[]byte, *V] {
	return func(yield func([]byte, *V) bool) {
		n, path := t.root, append(make([]byte, 0, 256), prefix...)
		off := 0
		for n != nil {
			rest := prefix[off:]
			if len(rest) <= len(n.prefix) {
				if n.prefix[:len(rest)] == string(rest) {
					n.each(append(path[:off], n.prefix...), yield)
				}
				return
			}
			if string(rest[:len(n.prefix)]) != n.prefix {
				return
			}
			off += len(n.prefix)
			n = n.child(prefix[off])
			off++
		}
	}
}

// each yields what is at and below n, whose key is path.
func (n *node[V]) each(path []byte, yield func([]byte, *V) bool) bool {
	if n.val != nil && !yield(path, n.val) {
		return false
	}
	if n.kids == nil {
		return true
	}
	for i, c := range n.kids.nodes {
		if !c.each(append(append(path, n.kids.keys[i]), c.prefix...), yield) {
			return false
		}
	}
	return true
}
