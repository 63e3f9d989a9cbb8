package fastpath

import "encoding/binary"

// Types whose data has names in it that may be compressed (RFC 3597 section 4).
const (
	typeNS    = 2
	typeCNAME = 5
	typeSOA   = 6
	typePTR   = 12
)

// expandedLen returns how long an answer of package zone would be without compression, whose question ends at end. That is
// how CoreDNS's metrics count.
func expandedLen(msg []byte, end int) int {
	n := len(msg)
	records := int(binary.BigEndian.Uint16(msg[6:])) + int(binary.BigEndian.Uint16(msg[8:])) + int(binary.BigEndian.Uint16(msg[10:]))
	question := end - 4 - HeaderLen
	off := end
	for range records {
		if msg[off] == 0xC0 && msg[off+1] == HeaderLen { // nearly always
			off += 2
			n += question - 2
		} else {
			var more int
			off, more = skipName(msg, off)
			n += more
		}
		t := binary.BigEndian.Uint16(msg[off:])
		data := off + 10
		off = data + int(binary.BigEndian.Uint16(msg[off+8:]))
		names := 0
		switch t {
		case typeNS, typeCNAME, typePTR:
			names = 1
		case typeSOA:
			names = 2
		}
		for range names {
			var more int
			data, more = skipName(msg, data)
			n += more
		}
	}
	return n
}

// skipName returns the offset behind a name, and by how much compression has made it shorter.
func skipName(msg []byte, off int) (next, more int) {
	for {
		l := int(msg[off])
		switch {
		case l == 0:
			return off + 1, 0
		case l < 64:
			off += 1 + l
		default:
			target := int(binary.BigEndian.Uint16(msg[off:]) & 0x3FFF)
			return off + 2, nameLen(msg, target) - 2
		}
	}
}

// nameLen returns how long the name at off is without compression.
func nameLen(msg []byte, off int) (n int) {
	for {
		l := int(msg[off])
		switch {
		case l == 0:
			return n + 1
		case l < 64:
			off, n = off+1+l, n+1+l
		default:
			off = int(binary.BigEndian.Uint16(msg[off:]) & 0x3FFF)
		}
	}
}
