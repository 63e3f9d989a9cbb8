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
	within  map[netip.Prefix]some // ranges that are taken, by those around them
	nodes   map[netip.Prefix]int  // how many addresses of others are in a range
	own     []netip.Addr          // of this node
}

// some are n ranges, one of which was the first.
type some struct {
	n     int
	first netip.Prefix
}

func newRanges(self Node, others []Node) ranges {
	all := append([]Node{self}, others...)
	r := ranges{map[int]bool{}, make(map[netip.Prefix]bool, 2*len(all)), map[netip.Prefix]some{}, map[netip.Prefix]int{}, self.Addrs}
	for _, n := range all {
		for _, p := range n.PodCIDRs {
			r.lengths[p.Bits()] = true
		}
	}
	for _, n := range others {
		r.locate(n, 1)
	}
	return r
}

// locate notes where a node's addresses are, or with -1 that they are there no more.
func (r *ranges) locate(n Node, count int) {
	for _, a := range n.first() {
		for around := range r.around(a, a.BitLen()) {
			if r.nodes[around] += count; r.nodes[around] == 0 {
				delete(r.nodes, around)
			}
		}
	}
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
		s, ok := r.within[around]
		if !ok {
			s.first = p
		}
		s.n++
		r.within[around] = s
	}
}

// forget takes out a node, whose ranges are all taken by it.
func (r *ranges) forget(n Node) {
	for _, p := range n.PodCIDRs {
		p = p.Masked()
		delete(r.taken, p)
		for around := range r.around(p.Addr(), p.Bits()-1) {
			s := r.within[around]
			if s.n--; s.n > 0 {
				r.within[around] = s
			} else {
				delete(r.within, around)
			}
		}
	}
	r.locate(n, -1)
}

// admit takes in a node. It returns false if a range of it is in the way of another's, or has another's address in it, or is of a length that is not known.
func (r *ranges) admit(n Node) bool {
	r.locate(n, 1)
	for _, p := range n.PodCIDRs {
		p = p.Masked()
		if !r.lengths[p.Bits()] || r.nodes[p] > 0 || r.check(p) != nil {
			return false
		}
		r.add(p)
	}
	return true
}

// of returns the range that is taken and has an address in it.
func (r *ranges) of(a netip.Addr) (netip.Prefix, bool) {
	for p := range r.around(a, a.BitLen()) {
		if r.taken[p] {
			return p, true
		}
	}
	return netip.Prefix{}, false
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
	for _, a := range r.own {
		if p.Contains(a) {
			return fmt.Errorf("this node's address %s is in it", a)
		}
	}
	return nil
}
