package fastpath

import "encoding/binary"

// query is what there is to know of a plain query, the kind that nearly all of them are.
type query struct {
	// end is where the question ends in the message.
	end        int
	qtype      uint16
	edns       bool
	udpSize    uint16 // as the OPT record has it
	ednsFlags  uint16
	optionsLen int
	options    []byte
}

// HeaderLen is the length of a header in octets. No Query is shorter.
const HeaderLen = 12

const (
	// optLen is the length of an OPT record without options (RFC 6891 section 6.1.2).
	optLen  = 11
	typeOPT = 41
	typeDS  = 43
	classIN = 1

	flagDO = 0x8000
)

// The octets of a header (RFC 1035 section 4.1.1).
const (
	flagQR, maskOpcode, flagAA, flagTC, flagRD = 0x80, 0x78, 0x04, 0x02, 0x01 // the third
	flagCD                                     = 0x10                         // the fourth
)

// isQuery says whether a message may be a query at all. What is not gets no answer from anybody, since that might go
// round for ever.
func isQuery(b []byte) bool { return len(b) >= HeaderLen && b[2]&flagQR == 0 }

// parse reads a plain query: opcode QUERY, one question of class IN with an uncompressed name and a type that stands for
// data, and at most an OPT record of version 0 behind it. All else is left to a complete parser.
func (q *query) parse(b []byte) bool {
	if len(b) < HeaderLen+5 || b[2]&(flagQR|maskOpcode|flagAA|flagTC) != 0 {
		return false
	}
	// QDCOUNT, ANCOUNT and NSCOUNT at once.
	if binary.BigEndian.Uint32(b[4:]) != 1<<16 || binary.BigEndian.Uint16(b[8:]) != 0 {
		return false
	}
	off := HeaderLen
	for {
		if off >= len(b) || off-HeaderLen > 254 {
			return false
		}
		l := int(b[off])
		off++
		if l == 0 {
			break
		}
		if l > 63 {
			return false
		}
		off += l
	}
	if off+4 > len(b) {
		return false
	}
	q.qtype = binary.BigEndian.Uint16(b[off:])
	if binary.BigEndian.Uint16(b[off+2:]) != classIN || !isData(q.qtype) {
		return false
	}
	q.end = off + 4
	q.edns = false
	switch binary.BigEndian.Uint16(b[10:]) {
	case 0:
		return q.end == len(b)
	case 1:
		return q.parseOPT(b[q.end:])
	}
	return false
}

// parseOPT reads the only record that may follow.
func (q *query) parseOPT(b []byte) bool {
	if len(b) < optLen || b[0] != 0 || binary.BigEndian.Uint16(b[1:]) != typeOPT || b[5] != 0 || b[6] != 0 {
		return false
	}
	q.optionsLen = int(binary.BigEndian.Uint16(b[9:]))
	if len(b) != optLen+q.optionsLen {
		return false
	}
	q.edns = true
	q.udpSize = binary.BigEndian.Uint16(b[3:])
	q.ednsFlags = binary.BigEndian.Uint16(b[7:])
	q.options = b[optLen:]
	return true
}

// isData says whether t is a type that a zone can have data of and that the server does not treat differently: not OPT,
// not DS (which belongs to the zone above), none of the meta types and QTYPEs (RFC 6895 section 3.1).
func isData(t uint16) bool {
	return t != 0 && t != typeOPT && t != typeDS && (t < 128 || t > 255)
}

// eachOption calls f with the codes of the options until f returns false. It returns false if f did, or if the options
// are malformed.
func (q *query) eachOption(f func(code uint16) bool) bool {
	for b := q.options; len(b) > 0; {
		if len(b) < 4 {
			return false
		}
		n := 4 + int(binary.BigEndian.Uint16(b[2:]))
		if n > len(b) || !f(binary.BigEndian.Uint16(b)) {
			return false
		}
		b = b[n:]
	}
	return true
}
