package nft

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
)

// Keys of more than one field have each padded to four bytes, as the kernel's registers have them. Numbers are in the machine's
// byte order, since that is what its random numbers are in.

func putAddr(b []byte, a netip.Addr) []byte { return append(b, a.AsSlice()...) }

func putPort(b []byte, p uint16) []byte { return append(b, byte(p>>8), byte(p), 0, 0) }

func putNumber(b []byte, n uint32) []byte { return binary.NativeEndian.AppendUint32(b, n) }

func appendWhere(b []byte, a netip.Addr, k frontends.Key) []byte {
	return putPort(append(putAddr(b, a), byte(k.Protocol), 0, 0, 0), k.Port)
}

// changeElement deletes and adds what is needed to have an element as it is to be.
func changeElement(b *batch, in set, key []byte, was, is bool, old, new []byte) {
	if was && is && bytes.Equal(old, new) {
		return
	}
	if was {
		b.delete[in] = append(b.delete[in], key...)
	}
	if is {
		b.add[in] = append(append(b.add[in], key...), new...)
	}
}

// changeList changes the elements of a list of backends, whose keys are at and the index.
func changeList(b *batch, in set, at []byte, offset uint32, oldSlots, newSlots map[netip.AddrPort]uint32, old, new []netip.AddrPort) {
	for i := range max(len(old), len(new)) {
		if i < len(old) && i < len(new) && old[i] == new[i] && oldSlots[old[i]] == newSlots[new[i]] {
			continue
		}
		if i < len(old) {
			b.delete[in] = putNumber(append(b.delete[in], at...), offset+uint32(i))
		}
		if i < len(new) {
			list := putNumber(append(b.add[in], at...), offset+uint32(i))
			if in == slotsMap {
				list = putNumber(list, newSlots[new[i]])
			} else {
				list = putBackend(list, new[i])
			}
			b.add[in] = list
		}
	}
}

func putBackend(b []byte, a netip.AddrPort) []byte { return putPort(putAddr(b, a.Addr()), a.Port()) }

// changeMembers changes the backends of slots, which have the slot for an index.
func changeMembers(b *batch, at []byte, old, new map[netip.AddrPort]uint32) {
	for a, n := range old {
		if m, ok := new[a]; !ok || m != n {
			b.delete[membersMap] = putNumber(append(b.delete[membersMap], at...), n)
		}
	}
	for a, n := range new {
		if m, ok := old[a]; !ok || m != n {
			b.add[membersMap] = putBackend(putNumber(append(b.add[membersMap], at...), n), a)
		}
	}
}

// changeSources changes the clients that are let in to at.
func changeSources(b *batch, at []byte, old, new []netip.Prefix) {
	if slices.Equal(old, new) {
		return
	}
	size := 2 * (len(at) - 8 + len(at)) // a range's first key and its last; at is an address and 8 bytes
	keys := func(ps []netip.Prefix) ordered {
		var list []byte
		for _, p := range outermost(ps) {
			list = append(putAddr(list, p.Addr()), at...)
			list = append(putAddr(list, last(p)), at...)
		}
		return inOrder(list, size, size)
	}
	del, add, _ := difference(keys(old), keys(new))
	b.delete[sourcesSet], b.add[sourcesSet] = append(b.delete[sourcesSet], del...), append(b.add[sourcesSet], add...)
}

// arrange returns want in an order that leaves as many as it can at the index they have in have.
func arrange(have, want []netip.AddrPort) []netip.AddrPort {
	if len(have) == 0 || slices.Equal(have, want) {
		return want
	}
	left := make(map[netip.AddrPort]int, len(want)) // counts, so that a backend that is there twice does no harm
	for _, w := range want {
		left[w]++
	}
	out := make([]netip.AddrPort, len(want))
	for i, h := range have {
		if i < len(out) && left[h] > 0 {
			out[i] = h
			left[h]--
		}
	}
	i := 0
	for _, w := range want {
		if left[w] == 0 {
			continue
		}
		left[w]--
		for out[i].IsValid() {
			i++
		}
		out[i] = w
	}
	return out
}

// slots gives each backend a number. It follows from the backend alone, so that clients find theirs after a restart, unless two
// happen to get the same.
func slots(have map[netip.AddrPort]uint32, lists ...[]netip.AddrPort) map[netip.AddrPort]uint32 {
	out, taken := map[netip.AddrPort]uint32{}, map[uint32]bool{}
	all := slices.Concat(lists...)
	for _, b := range all {
		if n, ok := have[b]; ok {
			out[b], taken[n] = n, true
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	for _, b := range all {
		if _, ok := out[b]; ok {
			continue
		}
		n := hash(b)
		for taken[n] {
			n++
		}
		out[b], taken[n] = n, true
	}
	return out
}

func hash(b netip.AddrPort) uint32 {
	h := fnv.New32a()
	_, _ = h.Write(putBackend(nil, b))
	return h.Sum32()
}

// outermost returns ps masked and in order, without those that lie in others: the kernel takes no ranges that overlap.
func outermost(ps []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		out = append(out, p.Masked())
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	n := 0
	for _, p := range out {
		if n > 0 && out[n-1].Overlaps(p) {
			if p.Bits() < out[n-1].Bits() {
				out[n-1] = p
			}
			continue
		}
		out[n] = p
		n++
	}
	return out[:n]
}

// last returns the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// ranges returns the elements of a set of ranges of single addresses: the first and the last of each. Ranges that touch are made one.
func (s *state) ranges(ps []netip.Prefix) []byte {
	var own []netip.Prefix
	for _, p := range ps {
		if p.Addr().Is4() == s.is4() {
			own = append(own, p)
		}
	}
	var out []byte
	for _, p := range outermost(own) {
		if n := len(out) - s.size; n > 0 {
			before, _ := netip.AddrFromSlice(out[n:])
			if before.Next() == p.Addr() {
				copy(out[n:], last(p).AsSlice())
				continue
			}
		}
		out = putAddr(putAddr(out, p.Addr()), last(p))
	}
	return out
}

// changeRanges changes a set of ranges of single addresses.
func (s *state) changeRanges(b *batch, in set, old, new []netip.Prefix) {
	size := 2 * s.size
	b.delete[in], b.add[in], _ = difference(inOrder(s.ranges(old), size, size), inOrder(s.ranges(new), size, size))
}
