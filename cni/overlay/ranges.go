package overlay

import (
	"fmt"
	"iter"
	"net/netip"
)

// ranges are those that are taken. Nodes' ranges are of few lengths, so that all that have to do with another are found by asking for each.
type ranges struct {
	lengths map[int]bool // of all nodes' ranges, of both families
	taken   map[netip.Prefix]bool
	within  map[netip.Prefix]some[netip.Prefix] // ranges that are taken, by those around them
	nodes   map[netip.Prefix]some[netip.Addr]   // nodes' addresses, by the ranges around them
}

// some are n things, one of which was the first.
type some[T any] struct {
	n     int
	first T
}

func more[K comparable, T any](m map[K]some[T], k K, t T) {
	s, ok := m[k]
	if !ok {
		s.first = t
	}
	s.n++
	m[k] = s
}

func less[K comparable, T any](m map[K]some[T], k K) {
	s := m[k]
	if s.n--; s.n > 0 {
		m[k] = s
	} else {
		delete(m, k)
	}
}

func newRanges(self Node, others []Node) ranges {
	all := append([]Node{self}, others...)
	r := ranges{map[int]bool{}, make(map[netip.Prefix]bool, 2*len(all)), map[netip.Prefix]some[netip.Prefix]{}, map[netip.Prefix]some[netip.Addr]{}}
	for _, n := range all {
		for _, p := range n.PodCIDRs {
			r.lengths[p.Bits()] = true
		}
	}
	for _, n := range all {
		for _, a := range n.Addrs {
			for around := range r.around(a, a.BitLen()) {
				more(r.nodes, around, a)
			}
		}
	}
	return r
}

// around returns the ranges that an address is in, of the lengths that nodes' ranges have, and of so many bits at most.
func (r *ranges) around(a netip.Addr, bits int) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for n := range r.lengths {
			if n > bits {
				continue
			}
			if p, err := a.Prefix(n); err == nil && !yield(p) {
				return
			}
		}
	}
}

func (r *ranges) add(p netip.Prefix) {
	r.taken[p] = true
	for around := range r.around(p.Addr(), p.Bits()-1) {
		more(r.within, around, p)
	}
}

// forget takes out a node, whose ranges are all taken by it.
func (r *ranges) forget(n Node) {
	for _, p := range n.PodCIDRs {
		p = p.Masked()
		delete(r.taken, p)
		for around := range r.around(p.Addr(), p.Bits()-1) {
			less(r.within, around)
		}
	}
	for _, a := range n.Addrs {
		for around := range r.around(a, a.BitLen()) {
			less(r.nodes, around)
		}
	}
}

// admit takes in a node. It returns false if anything of it is in the way of another's, or of a length that is not known.
func (r *ranges) admit(n Node) bool {
	for _, a := range n.Addrs {
		for around := range r.around(a, a.BitLen()) {
			if r.taken[around] {
				return false
			}
			more(r.nodes, around, a)
		}
	}
	for _, p := range n.PodCIDRs {
		p = p.Masked()
		if !r.lengths[p.Bits()] || r.check(p) != nil {
			return false
		}
		r.add(p)
	}
	return true
}

// check returns why a range cannot be a node's.
func (r *ranges) check(p netip.Prefix) error {
	inner, ok := r.within[p]
	other := inner.first
	for around := range r.around(p.Addr(), p.Bits()) {
		if r.taken[around] {
			other, ok = around, true
		}
	}
	if ok {
		return fmt.Errorf("it overlaps with %s", other)
	}
	if in, ok := r.nodes[p]; ok {
		return fmt.Errorf("a node's address, %s, is in it", in.first)
	}
	return nil
}
