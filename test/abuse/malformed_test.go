package abuse

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/miekg/dns"
)

// malformed returns messages that are no queries.
func malformed(t *testing.T) (ms [][]byte) {
	good := query(t, "svc-1.a.svc.cluster.local.", dns.TypeA, 4096)
	bare := query(t, "svc-1.a.svc.cluster.local.", dns.TypeA, 0)
	end := len(bare)
	change := func(b []byte, f func(b []byte)) []byte {
		b = bytes.Clone(b)
		f(b)
		return b
	}
	counts := func(b []byte, at int, n uint16) []byte {
		return change(b, func(b []byte) { binary.BigEndian.PutUint16(b[at:], n) })
	}
	raw := func(question string, n uint16) []byte { // a message of n questions
		b := make([]byte, 12, 12+len(question))
		b[2] = 1 // RD
		binary.BigEndian.PutUint16(b[4:], n)
		return append(b, question...)
	}
	for n := range len(good) { // truncated anywhere
		if n != 0 && n != end {
			ms = append(ms, good[:n:n])
		}
	}
	for at := 4; at < 12; at += 2 { // counts that are not so
		for _, n := range []uint16{2, 3, 255, 65535} {
			ms = append(ms, counts(good, at, n), counts(bare, at, n))
		}
	}
	ms = append(ms,
		counts(good, 4, 0), counts(bare, 4, 0),
		raw("\xc0\x0c\x00\x01\x00\x01", 1),         // a name that is itself
		raw("\xc0\x0e\xc0\x0c\x00\x01\x00\x01", 1), // two that are each other
		raw("\x01a\xc0\x0c\x00\x01\x00\x01", 1),
		raw("\xff\xff\x00\x01\x00\x01", 1),  // behind the message
		raw("\x40a\x00\x00\x01\x00\x01", 1), // label types that there are not
		raw("\x80a\x00\x00\x01\x00\x01", 1),
		raw(string(bytes.Repeat([]byte("\x3fxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"), 4))+"\x00\x00\x01\x00\x01", 1), // 257 octets
		raw(string(bytes.Repeat([]byte("\x01a"), 2000))+"\x00\x00\x01\x00\x01", 1),
		// A bad OPT record: its length too large and too small, an option that does not fit, two of them, of another version.
		change(good, func(b []byte) { b[len(b)-1] = 9 }),
		append(change(good, func(b []byte) { b[len(b)-1] = 3 }), 0, 10, 0),
		append(change(good, func(b []byte) { b[len(b)-1] = 4 }), 0, 10, 255, 255),
		append(counts(good, 10, 2), good[end:]...),
		change(good, func(b []byte) { b[end+6] = 1 }),
		change(good, func(b []byte) { b[end] = 0xc0 }),
		// No opcode that is served, and no class.
		change(good, func(b []byte) { b[2] |= 2 << 3 }),
		change(good, func(b []byte) { b[2] |= 5 << 3 }),
		change(good, func(b []byte) { b[2] |= 15 << 3 }),
		change(bare, func(b []byte) { b[end-1] = 3 }),
		change(bare, func(b []byte) { b[end-1] = 77 }),
		// Responses.
		change(good, func(b []byte) { b[2] |= 0x80 }),
		change(bare, func(b []byte) { b[2] |= 0x80 }),
		change(bare[:12], func(b []byte) { b[2] |= 0x80 }),
		make([]byte, 12), make([]byte, 512), make([]byte, 4096), make([]byte, 9000),
		folded(), questions(100), questions(600),
	)
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		b := make([]byte, 12+r.IntN(200))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		ms = append(ms, b)
	}
	return ms
}

// folded is a query whose name uses the same octets again and again: each pointer leads into what was the text of a label.
func folded() []byte {
	b := make([]byte, 12, 100)
	b[5] = 1
	name := bytes.Repeat([]byte("x"), 64)
	name[0], name[1], name[2], name[3] = 63, 60, 57, 54
	copy(name[62:], "\xc0\x0e") // where the second label ends
	copy(name[60:], "\xc0\x0f") // the third
	name[58] = 0                // the fourth
	return append(append(append(b, name...), 0xc0, 13), 0, 1, 0, 1)
}

// questions is a message with n questions for the name of the first, which is long.
func questions(n int) []byte {
	b := make([]byte, 12)
	binary.BigEndian.PutUint16(b[4:], uint16(n))
	for range 3 {
		b = append(b, "\x3fxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"...)
	}
	b = append(b, 0, 0, 1, 0, 1)
	for range n - 1 {
		b = append(b, 0xc0, 12, 0, 1, 0, 1)
	}
	return b
}
