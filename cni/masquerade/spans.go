package masquerade

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/google/nftables"
)

// span is a range of addresses as the kernel's sets have it: the first, and the one behind the last, which is no Addr if there is none.
type span struct{ first, behind netip.Addr }

// spans returns those of addresses of a length, in order: ranges that overlap or touch are made one. Lists that are in order take less time.
func spans(bits int, lists ...[]netip.Prefix) []span {
	var own []netip.Prefix
	for _, list := range lists {
		before := len(own)
		own = slices.Grow(own, len(list))
		for _, p := range list {
			if p.IsValid() && p.Addr().BitLen() == bits {
				own = append(own, p.Masked())
			}
		}
		if more := own[before:]; !slices.IsSortedFunc(more, netip.Prefix.Compare) {
			slices.SortFunc(more, netip.Prefix.Compare)
		}
		own = merge(own[:before], own[before:])
	}
	var out []span
	for _, p := range own {
		next := behind(p)
		if len(out) == 0 {
			out = append(out, span{p.Addr(), next})
			continue
		}
		switch open := &out[len(out)-1]; {
		case open.behind.IsValid() && p.Addr().Compare(open.behind) > 0:
			out = append(out, span{p.Addr(), next})
		case open.behind.IsValid() && (!next.IsValid() || next.Compare(open.behind) > 0):
			open.behind = next
		}
	}
	return out
}

// merge returns two lists that are in order as one.
func merge(a, b []netip.Prefix) []netip.Prefix {
	if len(a) == 0 || len(b) == 0 {
		return append(a, b...)
	}
	out := make([]netip.Prefix, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0].Compare(b[0]) <= 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// behind returns the address that follows a range, the zero Addr if there is none.
func behind(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a.Next()
}

// differ returns what is to be taken out of a set, and put into it, that it has want and not have. Both are in order.
func differ(have, want []span) (del, add []span) {
	for len(have) > 0 || len(want) > 0 {
		switch {
		case len(want) == 0 || len(have) > 0 && have[0].first.Less(want[0].first):
			del, have = append(del, have[0]), have[1:]
		case len(have) == 0 || want[0].first.Less(have[0].first):
			add, want = append(add, want[0]), want[1:]
		default:
			if have[0] != want[0] {
				del, add = append(del, have[0]), append(add, want[0])
			}
			have, want = have[1:], want[1:]
		}
	}
	return del, add
}

// elements returns those of a set: two for a span, one if nothing is behind it.
func elements(list []span) []nftables.SetElement {
	var out []nftables.SetElement
	for _, s := range list {
		out = append(out, nftables.SetElement{Key: s.first.AsSlice()})
		if s.behind.IsValid() {
			out = append(out, nftables.SetElement{Key: s.behind.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// spansOf is the reverse of elements, in whatever order a kernel lists them. It returns false for what elements does not return.
func spansOf(list []nftables.SetElement) ([]span, bool) {
	slices.SortFunc(list, func(a, b nftables.SetElement) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 || a.IntervalEnd == b.IntervalEnd {
			return c
		}
		if a.IntervalEnd {
			return -1
		}
		return 1
	})
	var out []span
	for _, e := range list {
		a, ok := netip.AddrFromSlice(e.Key)
		open := len(out) > 0 && !out[len(out)-1].behind.IsValid()
		if !ok || e.IntervalEnd != open {
			return nil, false
		}
		if open {
			out[len(out)-1].behind = a
		} else {
			out = append(out, span{first: a})
		}
	}
	return out, true
}
