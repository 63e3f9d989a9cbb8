package zone

import "hash/maphash"

// seen finds the records of a message by what is in them. Slices of a service may repeat each other's addresses and
// names, and have them in an order that says nothing; a record is answered once (RFC 2181 section 5).
type seen struct {
	slots []seenAt // open addressing; a power of two of them
	n     int
	// repeats counts the records that were there already, which no limit of the message ends.
	repeats int
}

// seenAt is where a record starts, and its hash. No record starts at 0.
type seenAt struct{ at, hash uint32 }

// fewSeen is room for more records than a message of 1,232 octets can hold, on the stack of whoever needs it.
type fewSeen [128]seenAt

// maxRepeats bounds the work for a service whose slices repeat each other: more than that, and its answer is cut.
const maxRepeats = 1 << 14

// once appends rec, a record as it stands on the wire, to the message, unless it is there already. It returns false if
// there is no more to be written to that section.
func (a *answer) once(section int, rec []byte, s *seen) bool {
	hash := uint32(maphash.Bytes(a.v.seed, rec))
	mask := uint32(len(s.slots) - 1)
	i := hash & mask
	for ; s.slots[i].at != 0; i = (i + 1) & mask {
		if at := int(s.slots[i].at); s.slots[i].hash == hash && at+len(rec) <= len(a.msg) && string(a.msg[at:at+len(rec)]) == string(rec) {
			s.repeats++
			if s.repeats > maxRepeats && section != sectionAdditional {
				a.tc = true
			}
			return s.repeats <= maxRepeats
		}
	}
	if !a.room(section, len(rec)) {
		return false
	}
	s.slots[i] = seenAt{uint32(len(a.msg)), hash}
	if s.n++; s.n > len(s.slots)*3/4 {
		s.grow()
	}
	a.msg = append(a.msg, rec...)
	a.counts[section]++
	return true
}

func (s *seen) grow() {
	old := s.slots
	s.slots = make([]seenAt, 4*len(old))
	mask := uint32(len(s.slots) - 1)
	for _, o := range old {
		i := o.hash & mask
		for ; s.slots[i].at != 0; i = (i + 1) & mask {
		}
		if o.at != 0 {
			s.slots[i] = o
		}
	}
}
