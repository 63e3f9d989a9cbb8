package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// message writes a transaction's netlink messages into one buffer. google/nftables could do that, but for the elements: it makes
// some ten objects of each, which is 1 s and 140 MB for 250,000, and has no room in its transactions for others' messages.
// Formats are those of include/uapi/linux/netfilter/nf_tables.h.
type message struct {
	buf    []byte
	family family
	seq    uint32
	at     int // where the last message begins
	err    error
}

const batchSubsystem = unix.NFNL_SUBSYS_NFTABLES

func (m *message) begin(typ uint16, flags uint16) {
	m.raw(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, byte(m.family.id), 0)
}

func (m *message) raw(typ, flags uint16, family byte, resource uint16) {
	m.seq++
	m.at = len(m.buf)
	m.buf = binary.NativeEndian.AppendUint32(m.buf, 0) // length, see end
	m.buf = binary.NativeEndian.AppendUint16(m.buf, typ)
	m.buf = binary.NativeEndian.AppendUint16(m.buf, unix.NLM_F_REQUEST|flags)
	m.buf = binary.NativeEndian.AppendUint32(m.buf, m.seq)
	m.buf = binary.NativeEndian.AppendUint32(m.buf, 0)
	m.buf = append(m.buf, family, 0)
	m.buf = binary.BigEndian.AppendUint16(m.buf, resource)
}

func (m *message) end() { binary.NativeEndian.PutUint32(m.buf[m.at:], uint32(len(m.buf)-m.at)) }

func (m *message) bytes(typ uint16, b []byte) {
	m.buf = binary.NativeEndian.AppendUint16(m.buf, uint16(4+len(b)))
	m.buf = binary.NativeEndian.AppendUint16(m.buf, typ)
	m.buf = append(m.buf, b...)
	for len(m.buf)%4 != 0 {
		m.buf = append(m.buf, 0)
	}
}

func (m *message) text(typ uint16, s string) { m.bytes(typ, append([]byte(s), 0)) }

func (m *message) number(typ uint16, n uint32) {
	m.bytes(typ, binary.BigEndian.AppendUint32(make([]byte, 0, 4), n))
}

// nest begins an attribute of attributes, until close of what it returns.
func (m *message) nest(typ uint16) int {
	at := len(m.buf)
	m.bytes(typ|unix.NLA_F_NESTED, nil)
	return at
}

func (m *message) close(at int) {
	n := len(m.buf) - at
	if n > 1<<16-1 {
		m.err = errors.Join(m.err, fmt.Errorf("attribute of %d bytes", n))
	}
	binary.NativeEndian.PutUint16(m.buf[at:], uint16(n))
}

func (m *message) newTable() {
	m.begin(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	m.text(unix.NFTA_TABLE_NAME, TableName)
	m.number(unix.NFTA_TABLE_FLAGS, 0)
	m.end()
}

func (m *message) deleteTable() {
	m.begin(unix.NFT_MSG_DELTABLE, 0)
	m.text(unix.NFTA_TABLE_NAME, TableName)
	m.end()
}

// deleteRules deletes all rules of a chain, or of the table if there is no name.
func (m *message) deleteRules(chain string) {
	m.begin(unix.NFT_MSG_DELRULE, 0)
	m.text(unix.NFTA_RULE_TABLE, TableName)
	if chain != "" {
		m.text(unix.NFTA_RULE_CHAIN, chain)
	}
	m.end()
}

func (m *message) deleteSet(name string) {
	m.begin(unix.NFT_MSG_DELSET, 0)
	m.text(unix.NFTA_SET_TABLE, TableName)
	m.text(unix.NFTA_SET_NAME, name)
	m.end()
}

func (m *message) deleteChain(name string) {
	m.begin(unix.NFT_MSG_DELCHAIN, 0)
	m.text(unix.NFTA_CHAIN_TABLE, TableName)
	m.text(unix.NFTA_CHAIN_NAME, name)
	m.end()
}

func (m *message) newChain(c chain) {
	m.begin(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	m.text(unix.NFTA_CHAIN_TABLE, TableName)
	m.text(unix.NFTA_CHAIN_NAME, c.name)
	if c.kind != "" {
		hook := m.nest(unix.NFTA_CHAIN_HOOK)
		m.number(unix.NFTA_HOOK_HOOKNUM, uint32(*c.hook))
		m.number(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))
		m.close(hook)
		m.text(unix.NFTA_CHAIN_TYPE, string(c.kind))
		m.number(unix.NFTA_CHAIN_POLICY, acceptPolicy)
	}
	m.end()
}

// newRules appends rules to a chain. Each carries a digest of itself, by which it is known when the kernel is read back: how the
// kernel lists a rule is not how it was written. nft(8) does not print it.
func (m *message) newRules(c chain) {
	for _, r := range c.rules {
		es, err := m.family.encode(r)
		m.err = errors.Join(m.err, err)
		m.begin(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
		m.text(unix.NFTA_RULE_TABLE, TableName)
		m.text(unix.NFTA_RULE_CHAIN, c.name)
		m.bytes(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, es)
		m.bytes(unix.NFTA_RULE_USERDATA, append([]byte{userDigest, digestSize}, digest(es)...))
		m.end()
	}
}

// encode returns a rule's expressions as netlink has them.
func (f family) encode(r rule) ([]byte, error) {
	m := &message{}
	for _, e := range r {
		b, err := expr.Marshal(byte(f.id), e)
		m.err = errors.Join(m.err, err)
		m.bytes(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, b)
	}
	return m.buf, m.err
}

func digest(encoded []byte) []byte {
	h := fnv.New64a()
	_, _ = h.Write(encoded)
	return h.Sum(nil)
}

// digests returns what the rules of a chain are known by.
func (f family) digests(c chain) []string {
	var out []string
	for _, r := range c.rules {
		es, _ := f.encode(r) // newRules says what is wrong with it
		out = append(out, string(digest(es)))
	}
	return out
}

// Attributes and flags that golang.org/x/sys/unix does not name.
const (
	setConcat         = 0x80 // NFT_SET_CONCAT
	descConcat        = 2    // NFTA_SET_DESC_CONCAT
	fieldLen          = 1    // NFTA_SET_FIELD_LEN
	elemKeyEnd        = 10   // NFTA_SET_ELEM_KEY_END
	setExpr           = 17   // NFTA_SET_EXPR
	setExpressions    = 18   // NFTA_SET_EXPRESSIONS
	typeVerdict       = 0xffffff00
	userKeyByteOrder  = 0 // NFTNL_UDATA_SET_KEYBYTEORDER, of libnftnl, for nft(8) to print by
	userDataByteOrder = 1
	hostOrder         = 1
	networkOrder      = 2
	userDigest        = 0x52 // in the user data of rules, where libnftnl has types of its own from 0 on, and skips others
	digestSize        = 8
	acceptPolicy      = 1 // NF_ACCEPT
)

func (m *message) newSet(id set, s setSpec) {
	var flags uint32
	key, data := width(s.key), width(s.data)
	if s.data != nil {
		flags |= unix.NFT_SET_MAP
	}
	if s.interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if len(s.key) > 1 {
		flags |= setConcat
	}
	if s.dynamic {
		flags |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
	}
	m.begin(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE)
	m.text(unix.NFTA_SET_TABLE, TableName)
	m.text(unix.NFTA_SET_NAME, s.name)
	m.number(unix.NFTA_SET_FLAGS, flags)
	m.number(unix.NFTA_SET_KEY_TYPE, concatType(s.key))
	m.number(unix.NFTA_SET_KEY_LEN, uint32(key))
	if s.data != nil {
		typ := concatType(s.data)
		if id == variantsMap {
			typ = typeVerdict
		}
		m.number(unix.NFTA_SET_DATA_TYPE, typ)
		m.number(unix.NFTA_SET_DATA_LEN, uint32(data))
	}
	m.number(unix.NFTA_SET_ID, uint32(id)+1)
	m.description(s)
	user := []byte{userKeyByteOrder, 4}
	user = append(user, native(byteOrder(s.key))...)
	if s.data != nil {
		user = append(append(user, userDataByteOrder, 4), native(byteOrder(s.data))...)
	}
	m.bytes(unix.NFTA_SET_USERDATA, user)
	m.end()
}

func (m *message) description(s setSpec) {
	desc := m.nest(unix.NFTA_SET_DESC)
	if s.dynamic {
		m.number(unix.NFTA_SET_DESC_SIZE, maxClients)
	}
	if len(s.key) > 1 {
		list := m.nest(descConcat)
		for _, k := range s.key {
			field := m.nest(unix.NFTA_LIST_ELEM)
			m.number(fieldLen, k.Bytes)
			m.close(field)
		}
		m.close(list)
	}
	m.close(desc)
}

// perMessage is how many elements a message has at most: their length is told in 16 bits.
const perMessage = 400

// elements adds or deletes elements, which lie one behind the other.
func (m *message) elements(id set, s setSpec, list []byte, del bool, chains map[uint32]string) {
	key, size := width(s.key), s.size()
	if del {
		size = s.keySize()
	}
	typ, flags := uint16(unix.NFT_MSG_NEWSETELEM), uint16(unix.NLM_F_CREATE)
	if del {
		typ, flags = unix.NFT_MSG_DELSETELEM, 0
	}
	for len(list) > 0 {
		m.begin(typ, flags)
		m.text(unix.NFTA_SET_ELEM_LIST_TABLE, TableName)
		m.text(unix.NFTA_SET_ELEM_LIST_SET, s.name)
		m.number(unix.NFTA_SET_ELEM_LIST_SET_ID, uint32(id)+1)
		all := m.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		for i := 0; i < perMessage && len(list) > 0; i++ {
			e := m.nest(unix.NFTA_LIST_ELEM)
			m.value(unix.NFTA_SET_ELEM_KEY, list[:key])
			switch rest := list[key:size]; {
			case s.interval && len(s.key) == 1:
				m.close(e)
				m.rangeEnd(rest)
				list = list[size:]
				continue
			case s.interval:
				m.value(elemKeyEnd, rest)
			case id == variantsMap && !del:
				m.gotoChain(chains[binary.NativeEndian.Uint32(list)])
			case len(rest) > 0:
				m.value(unix.NFTA_SET_ELEM_DATA, rest)
			}
			m.close(e)
			list = list[size:]
		}
		m.close(all)
		m.end()
	}
}

// rangeEnd is the element behind the last address of a range, of which there is none at the very end.
func (m *message) rangeEnd(last []byte) {
	a, _ := netip.AddrFromSlice(last)
	if a = a.Next(); !a.IsValid() {
		return
	}
	e := m.nest(unix.NFTA_LIST_ELEM)
	m.value(unix.NFTA_SET_ELEM_KEY, a.AsSlice())
	m.number(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
	m.close(e)
}

func (m *message) value(typ uint16, b []byte) {
	at := m.nest(typ)
	m.bytes(unix.NFTA_DATA_VALUE, b)
	m.close(at)
}

func (m *message) gotoChain(name string) {
	data := m.nest(unix.NFTA_SET_ELEM_DATA)
	verdict := m.nest(unix.NFTA_DATA_VERDICT)
	kind := int32(unix.NFT_GOTO)
	m.number(unix.NFTA_VERDICT_CODE, uint32(kind))
	m.text(unix.NFTA_VERDICT_CHAIN, name)
	m.close(verdict)
	m.close(data)
}
