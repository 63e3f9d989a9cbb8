package nft

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
)

// errMalformed says that a dump has in it what this package does not write. The table is then made anew.
var errMalformed = errors.New("not understood")

// held is what the kernel holds of a table, as it tells when it is asked. Affinity is its own affair.
type held struct {
	// generation is that of the rules; 0 if it was not the same all the time.
	generation uint32

	flags    uint32            // of the table, which is not to have any
	sets     map[string]string // names, and attributes that make a set what it is
	chains   map[string]*heldChain
	elements [numSets][]byte
	sorted   [numSets]ordered  // the same, when all are there
	variants map[uint32]string // the names of chains by their numbers
}

// heldChain is a chain that the kernel has.
type heldChain struct {
	base  string   // attributes that make it what it is; empty for one that is called from others
	rules []string // digests; empty for a rule that is not ours
}

func newHeld() *held {
	return &held{sets: map[string]string{}, chains: map[string]*heldChain{}, variants: map[uint32]string{}}
}

// attributes goes through netlink attributes.
type attributes struct {
	rest  []byte
	typ   uint16
	value []byte
	bad   bool
}

const attributeType = 0x3fff // without the flags for nesting and byte order

func (a *attributes) next() bool {
	if len(a.rest) == 0 {
		return false
	}
	n := 0
	if len(a.rest) >= 4 {
		n = int(binary.NativeEndian.Uint16(a.rest))
	}
	if n < 4 || n > len(a.rest) {
		a.bad = true
		return false
	}
	a.typ, a.value = binary.NativeEndian.Uint16(a.rest[2:])&attributeType, a.rest[4:n]
	a.rest = a.rest[min(len(a.rest), pad(n)):]
	return true
}

// find returns the first attribute of a type, nil if there is none.
func find(b []byte, typ uint16) []byte {
	for a := (attributes{rest: b}); a.next(); {
		if a.typ == typ {
			return a.value
		}
	}
	return nil
}

func findText(b []byte, typ uint16) string { return text(find(b, typ)) }

func text(b []byte) string { return string(bytes.TrimSuffix(b, []byte{0})) }

func findNumber(b []byte, typ uint16) uint32 { return bigEndian(find(b, typ)) }

// bigEndian returns a number of four bytes, 0 if it is not one.
func bigEndian(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// choose returns the attributes of some types as they can be compared: in order, without flags, and without those that are 0, which
// the kernel leaves out at times.
func choose(b []byte, types ...uint16) string {
	var out []byte
	for _, typ := range types {
		if v := find(b, typ); len(bytes.Trim(v, "\x00")) > 0 {
			out = binary.NativeEndian.AppendUint16(out, typ)
			out = binary.NativeEndian.AppendUint16(out, uint16(len(v)))
			out = append(out, v...)
		}
	}
	return string(out)
}

// takeTable, takeSet, takeChain, takeRule and takeElements take a message of a dump, from behind its header.

func (h *held) takeTable(b []byte) error {
	if findText(b, unix.NFTA_TABLE_NAME) == TableName {
		h.flags = findNumber(b, unix.NFTA_TABLE_FLAGS)
	}
	return nil
}

func (h *held) takeSet(b []byte) error {
	anonymous := findNumber(b, unix.NFTA_SET_FLAGS)&unix.NFT_SET_ANONYMOUS != 0 // it goes with the rule that it is for
	if findText(b, unix.NFTA_SET_TABLE) == TableName && !anonymous {
		h.sets[findText(b, unix.NFTA_SET_NAME)] = setAttributes(b)
	}
	return nil
}

// setAttributes returns what makes a set of a message that lists or makes one what it is.
func setAttributes(b []byte) string {
	desc, dataLen := find(b, unix.NFTA_SET_DESC), uint16(unix.NFTA_SET_DATA_LEN)
	if findNumber(b, unix.NFTA_SET_DATA_TYPE) == typeVerdict {
		dataLen = unix.NFTA_SET_PAD // the kernel's own affair
	}
	var fields []byte
	for a := (attributes{rest: find(desc, descConcat)}); a.next(); {
		fields = append(fields, find(a.value, fieldLen)...)
	}
	return choose(b, unix.NFTA_SET_FLAGS, unix.NFTA_SET_KEY_TYPE, unix.NFTA_SET_KEY_LEN, unix.NFTA_SET_DATA_TYPE, dataLen,
		unix.NFTA_SET_POLICY, unix.NFTA_SET_TIMEOUT, unix.NFTA_SET_GC_INTERVAL, unix.NFTA_SET_USERDATA, unix.NFTA_SET_OBJ_TYPE, setExpr, setExpressions) +
		choose(desc, unix.NFTA_SET_DESC_SIZE) + string(fields)
}

func (h *held) takeChain(b []byte) error {
	if findText(b, unix.NFTA_CHAIN_TABLE) == TableName {
		h.chains[findText(b, unix.NFTA_CHAIN_NAME)] = &heldChain{base: chainAttributes(b)}
	}
	return nil
}

func chainAttributes(b []byte) string {
	hook := find(b, unix.NFTA_CHAIN_HOOK)
	if hook == nil {
		return ""
	}
	return choose(hook, unix.NFTA_HOOK_HOOKNUM, unix.NFTA_HOOK_PRIORITY, unix.NFTA_HOOK_DEV) +
		choose(b, unix.NFTA_CHAIN_TYPE, unix.NFTA_CHAIN_POLICY)
}

func (h *held) takeRule(b []byte) error {
	c := h.chains[findText(b, unix.NFTA_RULE_CHAIN)]
	if c == nil || findText(b, unix.NFTA_RULE_TABLE) != TableName {
		return nil // it is newer than the list of chains
	}
	var digest string
	if u := find(b, unix.NFTA_RULE_USERDATA); len(u) == 2+digestSize && u[0] == userDigest && u[1] == digestSize {
		digest = string(u[2:])
	}
	c.rules = append(c.rules, digest)
	return nil
}

// takeElements appends the elements of a message to those of a set, in the form that a batch has them in.
func (h *held) takeElements(id set, s setSpec, b []byte) error {
	if findText(b, unix.NFTA_SET_ELEM_LIST_SET) != s.name {
		return errMalformed
	}
	key, data, list := width(s.key), width(s.data), h.elements[id]
	all := attributes{rest: find(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS)}
	for all.next() {
		e, err := parseElement(all.value)
		switch {
		case err != nil:
			return err
		case len(e.key) != key, len(e.data) != data, !s.interval && e.flags != 0:
			return errMalformed
		case len(e.end) != 0 && (len(e.end) != key || len(s.key) == 1 || !s.interval), len(e.end) == 0 && len(s.key) > 1 && s.interval:
			return errMalformed
		case (e.chain != "") != (id == variantsMap):
			return errMalformed
		}
		list = append(append(append(list, e.key...), e.end...), e.data...)
		if s.interval && len(s.key) == 1 {
			list = append(list, byte(e.flags&unix.NFT_SET_ELEM_INTERVAL_END))
		}
		if id == variantsMap {
			h.variants[binary.NativeEndian.Uint32(e.key)] = e.chain
		}
	}
	h.elements[id] = list
	if all.bad {
		return errMalformed
	}
	return nil
}

// finish brings the elements of all sets into order, once they are all there.
func (h *held) finish(f family) error {
	for i, spec := range f.specs() {
		if spec.interval && len(spec.key) == 1 {
			var err error
			if h.elements[i], err = pairRanges(h.elements[i], f.size); err != nil {
				return fmt.Errorf("ranges of %s: %w", spec.name, err)
			}
		}
		h.sorted[i] = inOrder(h.elements[i], spec.keySize(), spec.size())
	}
	return nil
}

// element is one of a set, as the kernel lists it.
type element struct {
	key, end, data []byte
	flags          uint32
	chain          string
}

func parseElement(b []byte) (element, error) {
	var e element
	a := attributes{rest: b}
	for a.next() {
		switch a.typ {
		case unix.NFTA_SET_ELEM_KEY:
			e.key = find(a.value, unix.NFTA_DATA_VALUE)
		case elemKeyEnd:
			e.end = find(a.value, unix.NFTA_DATA_VALUE)
		case unix.NFTA_SET_ELEM_DATA:
			if v := find(a.value, unix.NFTA_DATA_VERDICT); v != nil {
				if int32(findNumber(v, unix.NFTA_VERDICT_CODE)) == unix.NFT_GOTO {
					e.chain = findText(v, unix.NFTA_VERDICT_CHAIN)
				} else {
					e.chain = "?" // no chain is called that
				}
				break
			}
			e.data = find(a.value, unix.NFTA_DATA_VALUE)
		case unix.NFTA_SET_ELEM_FLAGS:
			e.flags = bigEndian(a.value)
		case unix.NFTA_SET_ELEM_USERDATA, unix.NFTA_SET_ELEM_PAD: // somebody's comment
		default:
			return e, errMalformed
		}
	}
	if a.bad {
		return e, errMalformed
	}
	return e, nil
}

// numbers returns the numbers of chains by their names, and all numbers that are in use.
func (h *held) numbers() (found map[string]uint32, taken map[uint32]bool) {
	found, taken = map[string]uint32{}, map[uint32]bool{}
	for _, n := range slices.Sorted(maps.Keys(h.variants)) {
		taken[n] = true
		name := h.variants[n]
		if _, ok := found[name]; !ok && n>>16 == variantBase>>16 {
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

// pairRanges makes ranges, as a batch has them, of the elements of a set of single addresses: each begins one, or ends one before
// it, which a byte behind it tells.
func pairRanges(list []byte, size int) ([]byte, error) {
	es := slices.Collect(slices.Chunk(list, size+1))
	slices.SortFunc(es, func(a, b []byte) int {
		return cmp.Or(bytes.Compare(a[:size], b[:size]), cmp.Compare(b[size], a[size])) // an end first
	})
	var out []byte
	open := false
	for _, e := range es {
		end := e[size] != 0
		if end != open {
			return nil, errMalformed
		}
		open = !open
		a, _ := netip.AddrFromSlice(e[:size])
		if end {
			a = a.Prev()
			if !a.IsValid() {
				return nil, errMalformed
			}
		}
		out = putAddr(out, a)
	}
	if open { // to the last address that there is
		out = append(out, bytes.Repeat([]byte{0xff}, size)...)
	}
	return out, nil
}
