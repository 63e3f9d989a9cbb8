package fastpath

// Suffixes is a set of zones to be matched with names in wire format. Make one with NewSuffixes; the zero value and nil match nothing.
type Suffixes struct {
	zones [][]byte // lower case, wire format with root label
}

// NewSuffixes returns the set of zones, which are in wire format and in lower case. Their indexes are what Match returns.
func NewSuffixes(zones ...[]byte) *Suffixes { return &Suffixes{zones: zones} }

// Match returns the index of the longest of the zones that a name in wire format is in, or -1.
func (s *Suffixes) Match(name []byte) int {
	if s == nil {
		return -1
	}
	best, bestLen := -1, 0
	for i, z := range s.zones {
		if len(z) > bestLen && hasSuffix(name, z) {
			best, bestLen = i, len(z)
		}
	}
	return best
}

// hasSuffix says whether name is zone or below it, whatever the case of name.
func hasSuffix(name, zone []byte) bool {
	if len(zone) == 1 { // the root
		return true
	}
	at := len(name) - len(zone)
	if at < 0 {
		return false
	}
	for i, c := range zone {
		if lower(name[at+i]) != c {
			return false
		}
	}
	// The octets are the zone's; they are its labels only if one of the name's begins there.
	off := 0
	for off < at {
		off += 1 + int(name[off])
	}
	return off == at
}

func lower(c byte) byte {
	if c-'A' < 26 {
		return c + ('a' - 'A')
	}
	return c
}
