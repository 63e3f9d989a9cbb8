package fastpath

import (
	"encoding/binary"

	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

// Responder answers the queries for one server block. It never changes.
type Responder struct {
	// View returns the records as they are.
	View func() *zone.View
	// Query is what queries are answered with, but for type, limit and rotation.
	Query zone.Query
	// Fallthrough are the zones in which a name that does not exist is left to others.
	Fallthrough *Suffixes
	// PositiveOnly leaves all answers without records to others: plugins that complete search paths.
	PositiveOnly bool
	// UDPSize bounds what clients may ask for in an OPT record (plugin bufsize); 0 does not.
	UDPSize uint16
	// EchoesOptions says that the server copies cookies or padding to its answers.
	EchoesOptions bool
}

// EDNS options that a server without support for them ignores, whatever they hold (RFC 7873, RFC 7830). Others have
// contents that can be wrong.
const (
	optionCookie  = 10
	optionPadding = 12
)

func harmless(option uint16) bool { return option == optionCookie || option == optionPadding }

// reply is an answer and what metrics want to know of it.
type reply struct {
	msg   []byte
	rcode int
	// expanded is how long the message is without compression and OPT record, in octets.
	expanded int
}

// respond writes the answer to q, which in holds, to buf, whose capacity bounds it. If not ok, the server should answer.
func (r *Responder) respond(buf, in []byte, q *query) (rep reply, ok bool) {
	limit := 512
	echo := uint16(0)
	opt := 0
	if q.edns {
		if q.optionsLen > 0 && (r.EchoesOptions || !q.eachOption(harmless)) {
			return reply{}, false
		}
		echo = q.udpSize
		if r.UDPSize != 0 && echo > r.UDPSize {
			echo = r.UDPSize
		}
		opt = optLen
		limit = max(limit, int(echo)) - optLen - q.optionsLen
	}
	room := min(limit, cap(buf)-opt)

	buf = append(buf[:0], in[:q.end]...)
	// Of the flags, only RD and CD go back, as in CoreDNS.
	buf[2] &= flagRD
	buf[3] &= flagCD
	zq := r.Query
	zq.Type, zq.Limit, zq.Rotate = q.qtype, room, uint32(binary.BigEndian.Uint16(in))
	msg, res := r.View().Answer(buf, zq)
	switch {
	case res.Status != zone.Answered:
		return reply{}, false
	case room < limit && msg[2]&flagTC != 0: // the buffer was too small, not the client's
		return reply{}, false
	case res.Rcode == zone.RcodeNameError && !res.Aliased && r.Fallthrough.Match(in[HeaderLen:q.end-4]) >= 0:
		return reply{}, false
	case r.PositiveOnly && (res.Rcode != zone.RcodeSuccess || msg[6] == 0 && msg[7] == 0):
		return reply{}, false
	}
	rep = reply{rcode: res.Rcode, expanded: expandedLen(msg, q.end)}
	if q.edns {
		msg[11]++
		if msg[11] == 0 {
			msg[10]++
		}
		msg = append(msg, 0, 0, typeOPT, byte(echo>>8), byte(echo), 0, 0, byte(q.ednsFlags>>8), 0, 0, 0)
	}
	rep.msg = msg
	return rep, true
}
