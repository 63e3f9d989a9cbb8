package radix

// NameKey appends the key of a DNS name to dst and returns it: the labels from the root's side to the leaf's, each
// behind its length octet, ASCII letters in lower case (RFC 4343). wire is the name in uncompressed wire format (RFC
// 1035 section 3.1) and may lack the closing root octet. It must be well formed, as a parser of messages has made sure:
// labels of 1 to 63 octets, 255 octets in all.
func NameKey(dst, wire []byte) []byte {
	var starts [128]uint8 // 127 labels of one octet are the most that 255 octets can hold
	n := 0
	for off := 0; off < len(wire) && wire[off] != 0; off += 1 + int(wire[off]) {
		starts[n] = uint8(off)
		n++
	}
	for n--; n >= 0; n-- {
		s := int(starts[n])
		dst = append(dst, wire[s])
		for _, c := range wire[s+1 : s+1+int(wire[s])] {
			if 'A' <= c && c <= 'Z' {
				c |= 0x20
			}
			dst = append(dst, c)
		}
	}
	return dst
}
