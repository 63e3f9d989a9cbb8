package nft

import (
	"bytes"
	"encoding/binary"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
)

// numbers returns the numbers of chains by their names, and all numbers that are in use.
func (h *held) numbers() (found map[string]uint32, taken map[uint32]bool) {
	found, taken = map[string]uint32{}, map[uint32]bool{}
	for _, n := range slices.Sorted(maps.Keys(h.variants)) {
		taken[n] = true
		name := h.variants[n]
		if _, ok := found[name]; !ok && n >= variantBase && n < variantEnd {
			found[name] = n
		}
	}
	return found, taken
}

// placed returns where the kernel has the backends of a frontend. What is not there, or makes no sense, is left out.
func (h *held) placed(s *state, f *frontends.Frontend) *placed {
	addrs := s.addrs(f.Key)
	if len(addrs) == 0 {
		return absent
	}
	p := &placed{backends: make([]netip.AddrPort, len(f.Backends)), internal: make([]netip.AddrPort, len(f.Internal))}
	at := appendWhere(nil, addrs[0], f.Key)
	list, members := h.sorted[backendsMap], map[uint32]netip.AddrPort(nil)
	if f.Affinity != 0 {
		list, members, p.slots = h.sorted[slotsMap], map[uint32]netip.AddrPort{}, map[netip.AddrPort]uint32{}
		for e := range h.sorted[membersMap].beginning(at) {
			b := backendOf(e[len(at)+4:], s.size)
			members[binary.NativeEndian.Uint32(e[len(at):])] = b
			p.slots[b] = binary.NativeEndian.Uint32(e[len(at):])
		}
	}
	for e := range list.beginning(at) {
		i, data := int64(binary.NativeEndian.Uint32(e[len(at):])), e[len(at)+4:]
		to := p.backends
		if i >= internalOffset {
			i, to = i-internalOffset, p.internal
		}
		switch {
		case i >= int64(len(to)):
		case f.Affinity != 0:
			to[i] = members[binary.NativeEndian.Uint32(data)]
		default:
			to[i] = backendOf(data, s.size)
		}
	}
	return p
}

// backendOf returns the backend that putBackend has put.
func backendOf(b []byte, size int) netip.AddrPort {
	a, _ := netip.AddrFromSlice(b[:size])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[size:]))
}

// differ keeps of a batch that fills an empty table what the kernel does not hold already, and adds what it holds too much. It
// returns false if the kernel lists an element twice, which it does when it rearranges a set meanwhile: then another is missing.
func (s *state) differ(b *batch, h *held) bool {
	for i, spec := range s.specs() {
		if set(i) == affinityMap {
			continue
		}
		want := inOrder(b.add[i], spec.keySize(), spec.size())
		var ok bool
		if b.delete[i], b.add[i], ok = difference(h.sorted[i], want); !ok {
			return false
		}
	}
	ours := map[string]bool{}
	for _, spec := range s.specs() {
		ours[spec.name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(h.sets)) {
		if !ours[name] {
			b.dropSets = append(b.dropSets, name)
		}
	}
	s.differInChains(b, h)
	return true
}

func (s *state) differInChains(b *batch, h *held) {
	var missing []chain
	wanted := map[string]bool{}
	for _, c := range b.make {
		wanted[c.name] = true
		have := h.chains[c.name]
		switch {
		case have == nil:
			missing = append(missing, c)
		case have.base != s.base(c):
			b.drop = append(b.drop, c.name)
			missing = append(missing, c)
		case !slices.Equal(have.rules, s.digests(c)):
			b.fill = append(b.fill, c)
		}
	}
	b.make = missing
	for _, name := range slices.Sorted(maps.Keys(h.chains)) {
		if !wanted[name] {
			b.drop = append(b.drop, name)
		}
	}
}

// base is what chainAttributes returns for the chain as the kernel lists it.
func (f family) base(c chain) string {
	m := &message{family: f}
	m.newChain(c)
	return chainAttributes(m.buf[unix.NLMSG_HDRLEN+4:])
}

// sameSets reports whether the kernel's sets are ours: all there, and of this version's making.
func (f family) sameSets(h *held) bool {
	for i := range numSets {
		if !f.sameSet(h, i) {
			return false
		}
	}
	return true
}

func (f family) sameSet(h *held, id set) bool {
	m, spec := &message{family: f}, f.specs()[id]
	m.newSet(id, spec)
	return h.sets[spec.name] == setAttributes(m.buf[unix.NLMSG_HDRLEN+4:])
}

// ordered are elements of a set, one behind the other, and their order by keys.
type ordered struct {
	list      []byte
	order     []uint32
	key, size int
}

func inOrder(list []byte, key, size int) ordered {
	e := ordered{list, make([]uint32, len(list)/size), key, size}
	for i := range e.order {
		e.order[i] = uint32(i)
	}
	slices.SortFunc(e.order, func(a, b uint32) int {
		return bytes.Compare(list[int(a)*size:][:key], list[int(b)*size:][:key])
	})
	return e
}

// at returns the i-th element.
func (e ordered) at(i int) []byte { return e.list[int(e.order[i])*e.size:][:e.size] }

// beginning returns the elements whose keys begin so.
func (e ordered) beginning(prefix []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		i := sort.Search(len(e.order), func(i int) bool { return bytes.Compare(e.at(i), prefix) >= 0 })
		for ; i < len(e.order) && bytes.HasPrefix(e.at(i), prefix) && yield(e.at(i)); i++ {
		}
	}
}

// difference returns the keys to delete and the elements to add, to make have into want. It returns false if have has a key twice.
func difference(have, want ordered) (del, add []byte, ok bool) {
	key := have.key
	for i := 1; i < len(have.order); i++ {
		if bytes.Equal(have.at(i - 1)[:key], have.at(i)[:key]) {
			return nil, nil, false
		}
	}
	h, w := 0, 0
	for h < len(have.order) || w < len(want.order) {
		c := 0
		switch {
		case h == len(have.order):
			c = 1
		case w == len(want.order):
			c = -1
		default:
			c = bytes.Compare(have.at(h)[:key], want.at(w)[:key])
		}
		if c == 0 && bytes.Equal(have.at(h), want.at(w)) {
			h++
			w++
			continue
		}
		if c <= 0 {
			del = append(del, have.at(h)[:key]...)
			h++
		}
		if c >= 0 {
			add = append(add, want.at(w)...)
			w++
		}
	}
	return del, add, true
}
