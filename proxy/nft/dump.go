package nft

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
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
