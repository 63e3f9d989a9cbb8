package fastpath

import (
	"bytes"
	"net"
	"net/netip"
	"sync"
)

// Query is a query that the sockets do not answer themselves. It belongs to whoever gets it, for as long as they like:
// plugins look at who asks, and may answer, after they have returned.
type Query struct {
	// Msg is the message as it came.
	Msg []byte
	// From is who asks.
	From netip.AddrPort

	conn    *net.UDPConn
	control []byte // for the answer
}

// Reply sends a message to who asked, from the address that was asked.
func (q *Query) Reply(msg []byte) error {
	_, _, err := q.conn.WriteMsgUDPAddrPort(msg, q.control, q.From)
	return err
}

// LocalAddr is the address of the socket.
func (q *Query) LocalAddr() net.Addr { return q.conn.LocalAddr() }

const (
	// maxServing bounds how many queries are with the server at a time, most of which wait for an upstream. While one is away,
	// each takes forward's 5 s, so that all others wait from 400 new ones a second on; where forward's max_concurrent is
	// less, as the 1000 that clusters come with, it refuses what is too much, and nothing waits.
	maxServing = 2048
	// maxWaiting bounds how many wait for their turn. Of more, the oldest are dropped: whoever sent them has waited
	// longest and is most likely to have given up or asked again.
	maxWaiting = 2048
)

// misses hands queries to the server, each in a goroutine, a bounded number at a time.
type misses struct {
	serve   func(*Query)
	dropped func()

	mu      sync.Mutex
	serving int
	waiting []*Query // a ring, allocated at its first use
	first   int
	n       int
}

func newMisses(serve func(*Query), dropped func()) *misses {
	return &misses{serve: serve, dropped: dropped}
}

// add takes in a copy of a query.
func (m *misses) add(msg []byte, from netip.AddrPort, control []byte, conn *net.UDPConn) {
	q := &Query{Msg: bytes.Clone(msg), From: from, conn: conn, control: bytes.Clone(control)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.serving < maxServing {
		m.serving++
		go m.work(q)
		return
	}
	if m.waiting == nil {
		m.waiting = make([]*Query, maxWaiting)
	}
	if m.n == maxWaiting {
		m.take()
		m.dropped()
	}
	m.waiting[(m.first+m.n)%maxWaiting] = q
	m.n++
}

// take removes the oldest query that waits. The caller holds m.mu.
func (m *misses) take() *Query {
	q := m.waiting[m.first]
	m.waiting[m.first] = nil
	m.first = (m.first + 1) % maxWaiting
	m.n--
	return q
}

// work serves q and then whatever waits.
func (m *misses) work(q *Query) {
	for q != nil {
		m.serve(q)
		q = m.next()
	}
}

// next returns the query to serve next; nil ends a worker.
func (m *misses) next() *Query {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.n > 0 {
		return m.take()
	}
	m.serving--
	return nil
}

// busy says whether queries are being served.
func (m *misses) busy() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.serving > 0
}
