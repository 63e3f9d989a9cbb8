package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Messages and attributes of include/uapi/linux/netfilter/nfnetlink_conntrack.h, and a status bit of nf_conntrack_common.h.
const (
	ctNew    = 0 // IPCTNL_MSG_CT_NEW
	ctGet    = 1
	ctDelete = 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaID         = 12
	ctaZone       = 18
	ctaFilter     = 25

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2
	filterProtoNum      = 1 << 3 // CTA_FILTER_F_CTA_PROTO_NUM, of net/netfilter/nf_internals.h

	ipsDstNAT = 1 << 5
)

const (
	headerLen = unix.NLMSG_HDRLEN + 4 // with struct nfgenmsg
	attrLen   = 4                     // struct nlattr
)

var errShort = errors.New("message from the kernel is cut off")

// message is one of the kernel's, in the buffer it was read into.
type message struct {
	typ, flags uint16
	seq        uint32
	body       []byte
}

// nextMessage returns the first message of b, and what follows it.
func nextMessage(b []byte) (m message, rest []byte, err error) {
	if len(b) < unix.NLMSG_HDRLEN {
		return m, nil, errShort
	}
	size := binary.NativeEndian.Uint32(b)
	if size < unix.NLMSG_HDRLEN || uint64(size) > uint64(len(b)) {
		return m, nil, errShort
	}
	m = message{
		typ:   binary.NativeEndian.Uint16(b[4:]),
		flags: binary.NativeEndian.Uint16(b[6:]),
		seq:   binary.NativeEndian.Uint32(b[8:]),
		body:  b[unix.NLMSG_HDRLEN:size],
	}
	return m, b[min(len(b), int(size+3)&^3):], nil
}

func countMessages(b []byte) (n int) {
	for err := error(nil); len(b) > 0 && err == nil; n++ {
		_, b, err = nextMessage(b)
	}
	return n
}

// errno returns the error that a message of type NLMSG_ERROR or NLMSG_DONE tells, nil for none.
func (m message) errno() error {
	if len(m.body) < 4 {
		return errShort
	}
	if n := int32(binary.NativeEndian.Uint32(m.body)); n != 0 {
		return unix.Errno(-n)
	}
	return nil
}

// nextAttr returns the first attribute of b and what follows it; ok is false at the end, and where b is not well formed.
func nextAttr(b []byte) (typ uint16, value, rest []byte, ok bool) {
	if len(b) < attrLen {
		return 0, nil, nil, false
	}
	size := int(binary.NativeEndian.Uint16(b))
	if size < attrLen || size > len(b) {
		return 0, nil, nil, false
	}
	return binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER),
		b[attrLen:size], b[min(len(b), (size+3)&^3):], true
}

// entry is one entry of the table. Its bytes are the kernel's, and are those that name it for a deletion.
type entry struct {
	flow     Flow
	original []byte // CTA_TUPLE_ORIG, with the zone if it is one of this direction only
	id       []byte
	zone     []byte // nil if it is in none
}

// parse reads the body of a message. ok is false if it is no UDP entry, or lacks something.
func (e *entry) parse(body []byte) (ok bool) {
	*e = entry{}
	var origSrc, origDst, replySrc netip.AddrPort
	if len(body) < headerLen-unix.NLMSG_HDRLEN {
		return false
	}
	for b := body[headerLen-unix.NLMSG_HDRLEN:]; ; {
		typ, value, rest, more := nextAttr(b)
		if !more {
			break
		}
		b = rest
		switch typ {
		case ctaTupleOrig:
			e.original = value
			origSrc, origDst = parseTuple(value)
		case ctaTupleReply:
			replySrc, _ = parseTuple(value)
		case ctaStatus:
			if len(value) != 4 {
				return false
			}
			e.flow.DNAT = binary.BigEndian.Uint32(value)&ipsDstNAT != 0
		case ctaID:
			e.id = value
		case ctaZone:
			e.zone = value
		}
	}
	e.flow.Client, e.flow.Dest, e.flow.Backend = origSrc, origDst, replySrc
	return origSrc.IsValid() && origDst.IsValid() && replySrc.IsValid() && len(e.id) == 4
}

// parseTuple reads a tuple. It returns none if it is not of UDP.
func parseTuple(b []byte) (src, dst netip.AddrPort) {
	var srcAddr, dstAddr netip.Addr
	var srcPort, dstPort uint16
	udp := false
	for {
		typ, value, rest, more := nextAttr(b)
		if !more {
			break
		}
		b = rest
		switch typ {
		case ctaTupleIP:
			srcAddr, dstAddr = parseAddrs(value)
		case ctaTupleProto:
			udp, srcPort, dstPort = parsePorts(value)
		}
	}
	if !udp || !srcAddr.IsValid() || !dstAddr.IsValid() {
		return netip.AddrPort{}, netip.AddrPort{}
	}
	return netip.AddrPortFrom(srcAddr, srcPort), netip.AddrPortFrom(dstAddr, dstPort)
}

func parseAddrs(b []byte) (src, dst netip.Addr) {
	for {
		typ, value, rest, more := nextAttr(b)
		if !more {
			return src, dst
		}
		b = rest
		switch typ {
		case ctaIPv4Src, ctaIPv6Src:
			src, _ = netip.AddrFromSlice(value)
		case ctaIPv4Dst, ctaIPv6Dst:
			dst, _ = netip.AddrFromSlice(value)
		}
	}
}

func parsePorts(b []byte) (udp bool, src, dst uint16) {
	for {
		typ, value, rest, more := nextAttr(b)
		if !more {
			return udp, src, dst
		}
		b = rest
		switch {
		case typ == ctaProtoNum && len(value) == 1:
			udp = value[0] == unix.IPPROTO_UDP
		case typ == ctaProtoSrcPort && len(value) == 2:
			src = binary.BigEndian.Uint16(value)
		case typ == ctaProtoDstPort && len(value) == 2:
			dst = binary.BigEndian.Uint16(value)
		}
	}
}

// appendDump appends the request for the entries of a family, for those of UDP only if the kernel is to filter (Linux 5.8;
// older ones do not know the attribute and pass over it).
func appendDump(b []byte, seq uint32, family byte, filter bool) []byte {
	at := len(b)
	b = appendHeader(b, ctGet, unix.NLM_F_DUMP, seq, family)
	if filter {
		orig := len(b)
		b = appendAttr(b, ctaTupleOrig|unix.NLA_F_NESTED, nil)
		proto := len(b)
		b = appendAttr(b, ctaTupleProto|unix.NLA_F_NESTED, nil)
		b = appendAttr(b, ctaProtoNum, []byte{unix.IPPROTO_UDP})
		closeAttr(b, proto)
		closeAttr(b, orig)
		flags := len(b)
		b = appendAttr(b, ctaFilter|unix.NLA_F_NESTED, nil)
		b = appendAttr(b, ctaFilterOrigFlags, binary.NativeEndian.AppendUint32(nil, filterProtoNum))
		b = appendAttr(b, ctaFilterReplyFlags, binary.NativeEndian.AppendUint32(nil, 0))
		closeAttr(b, flags)
	}
	binary.NativeEndian.PutUint32(b[at:], uint32(len(b)-at))
	return b
}

// appendDelete appends the message that deletes an entry: this one, and not one that has its place by now (CTA_ID).
func appendDelete(b []byte, seq uint32, family byte, e *entry) []byte {
	at := len(b)
	b = appendHeader(b, ctDelete, 0, seq, family)
	b = appendAttr(b, ctaTupleOrig|unix.NLA_F_NESTED, e.original)
	b = appendAttr(b, ctaID, e.id)
	if e.zone != nil {
		b = appendAttr(b, ctaZone, e.zone)
	}
	binary.NativeEndian.PutUint32(b[at:], uint32(len(b)-at))
	return b
}

func appendHeader(b []byte, typ, flags uint16, seq uint32, family byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, 0) // length, when it is known
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_CTNETLINK<<8|typ)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	return append(b, family, unix.NFNETLINK_V0, 0, 0)
}

func appendAttr(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrLen+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// closeAttr sets the length of the attribute at a place to all that follows it.
func closeAttr(b []byte, at int) { binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at)) }
