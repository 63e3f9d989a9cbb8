package fastpath

import (
	"net"
	"net/netip"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"
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
	// maxReady bounds, for each processor, how many goroutines may wait for one when a query is begun. If all queries that may
	// be with the server wanted to run, the sockets' goroutines would have their turn a second late, while the kernel drops what
	// comes.
	maxReady = 4
	// usherEvery is how often it is looked whether queries that wait can be begun.
	usherEvery = time.Millisecond
)

// misses hands queries to the server, each in a goroutine, a bounded number at a time.
type misses struct {
	serve   func(*Query)
	dropped func()
	ready   int // maxReady for all processors

	// crowded says that queries wait for processors.
	crowded atomic.Bool

	mu       sync.Mutex
	runnable []metrics.Sample // how many goroutines wait for a processor
	serving  int
	ushering bool
	waiting  []*Query // a ring, allocated at its first use
	first    int
	n        int
}

func newMisses(serve func(*Query), dropped func()) *misses {
	return &misses{
		serve:    serve,
		dropped:  dropped,
		ready:    maxReady * runtime.GOMAXPROCS(0),
		runnable: []metrics.Sample{{Name: "/sched/goroutines/runnable:goroutines"}},
	}
}

// add takes in a copy of a query.
func (m *misses) add(msg []byte, from netip.AddrPort, control []byte, conn *net.UDPConn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := new(Query)
	if m.n == maxWaiting {
		q = m.take() // its memory is of use
		m.dropped()
	}
	q.Msg, q.control = append(q.Msg[:0], msg...), append(q.control[:0], control...)
	q.From, q.conn = from, conn
	if m.n == 0 && m.room() > 0 {
		m.begin(q)
		return
	}
	if m.waiting == nil {
		m.waiting = make([]*Query, maxWaiting)
	}
	m.waiting[(m.first+m.n)%maxWaiting] = q
	m.n++
	if !m.ushering {
		m.ushering = true
		go m.usher()
	}
}

// room returns how many queries can be begun. The caller holds m.mu.
func (m *misses) room() int {
	if m.serving < m.ready {
		return m.ready - m.serving
	}
	metrics.Read(m.runnable)
	return min(m.ready-int(m.runnable[0].Value.Uint64()), maxServing-m.serving)
}

// begin serves a query in a goroutine of its own. The caller holds m.mu.
func (m *misses) begin(q *Query) {
	m.serving++
	go m.work(q)
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
		runtime.Gosched() // the sockets' turn
	}
}

// next returns the query to serve next; nil ends a worker.
func (m *misses) next() *Query {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.serving--
	if m.n == 0 || m.room() <= 0 {
		return nil
	}
	m.serving++
	return m.take()
}

// usher begins queries that wait, when there are processors for them, until none are left.
func (m *misses) usher() {
	for more := true; more; {
		time.Sleep(usherEvery)
		more = m.admit()
	}
}

// admit begins as many as there is room for of the queries that wait, and says whether any are left.
func (m *misses) admit() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for room := m.room(); room > 0 && m.n > 0; room-- {
		m.begin(m.take())
	}
	m.ushering = m.n > 0
	m.crowded.Store(m.n > 0 && m.serving < maxServing)
	return m.ushering
}

// busy says whether queries are being served.
func (m *misses) busy() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.serving > 0
}
