package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

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

// deleteRules deletes all rules of the table.
func (m *message) deleteRules() {
	m.begin(unix.NFT_MSG_DELRULE, 0)
	m.text(unix.NFTA_RULE_TABLE, TableName)
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
	}
	m.end()
}

func (m *message) newRules(chain string, rs []rule) {
	for _, r := range rs {
		m.begin(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
		m.text(unix.NFTA_RULE_TABLE, TableName)
		m.text(unix.NFTA_RULE_CHAIN, chain)
		list := m.nest(unix.NFTA_RULE_EXPRESSIONS)
		for _, e := range r {
			b, err := expr.Marshal(byte(m.family.id), e)
			m.err = errors.Join(m.err, err)
			m.bytes(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, b)
		}
		m.close(list)
		m.end()
	}
}

// Attributes and flags that golang.org/x/sys/unix does not name.
const (
	setConcat         = 0x80 // NFT_SET_CONCAT
	descConcat        = 2    // NFTA_SET_DESC_CONCAT
	fieldLen          = 1    // NFTA_SET_FIELD_LEN
	elemKeyEnd        = 10   // NFTA_SET_ELEM_KEY_END
	typeVerdict       = 0xffffff00
	userKeyByteOrder  = 0 // NFTNL_UDATA_SET_KEYBYTEORDER, of libnftnl, for nft(8) to print by
	userDataByteOrder = 1
	hostOrder         = 1
	networkOrder      = 2
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
	key, data := width(s.key), width(s.data)
	size := key + data
	switch {
	case id == sourcesSet:
		size = 2 * key
	case s.interval:
		size = key + 1
	case del:
		size = key
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
			case id == sourcesSet:
				m.value(elemKeyEnd, rest)
			case s.interval:
				if rest[0] != 0 {
					m.number(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
				}
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

// socket is a netlink socket for transactions.
type socket struct{ fd int }

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	// A transaction leaves in one piece, as it must. This is a limit; nothing is allocated.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<29); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("netlink socket's buffer: %w", err)
	}
	return &socket{fd}, nil
}

func (s *socket) close() { _ = unix.Close(s.fd) }

// errNoAnswer says that the kernel did not say how a transaction went.
var errNoAnswer = errors.New("no answer from nftables")

// commit sends what write puts into a batch, as one transaction. The kernel has done it, or has not, when it returns.
func (s *socket) commit(f family, size int, write func(*message) error) error {
	m := &message{family: f, buf: make([]byte, 0, size)}
	m.raw(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, batchSubsystem)
	m.end()
	if err := errors.Join(write(m), m.err); err != nil {
		return err
	}
	// The last one's answer is enough, since answers of those that fail come unasked.
	binary.NativeEndian.PutUint16(m.buf[m.at+6:], binary.NativeEndian.Uint16(m.buf[m.at+6:])|unix.NLM_F_ACK)
	last := m.seq
	m.raw(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, batchSubsystem)
	m.end()
	if err := unix.Sendto(s.fd, m.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("sending %d bytes: %w", len(m.buf), err)
	}
	return s.answers(last)
}

// answers reads what the kernel has said of a batch, all of which waits there when it is sent.
func (s *socket) answers(last uint32) error {
	buf := make([]byte, 1<<14)
	done := errNoAnswer
	var failed error
	for {
		n, _, err := unix.Recvfrom(s.fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			return errors.Join(failed, done)
		}
		if err != nil {
			return fmt.Errorf("reading answers: %w", err)
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN+4; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN+4 || size > len(b) {
				break
			}
			if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
				errno := -int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:]))
				seq := binary.NativeEndian.Uint32(b[8:])
				if errno != 0 && failed == nil {
					failed = fmt.Errorf("message %d: %w", seq, unix.Errno(errno))
				}
				if seq == last {
					done = nil
				}
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}
