package fastpath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socket is one of the sockets of a group, with the goroutine that reads it.
type socket struct {
	group *Group
	conn  *net.UDPConn
	raw   syscall.RawConn
	v     *vector
	done  chan struct{} // closed when the goroutine has ended

	handler  *Handler
	observer Observer
	samples  []Sample
	missed   int
	in       int // received
	out      int // to be sent
	sent     int
	turn     time.Time     // when the goroutine last got the processor back, and
	others   time.Duration // how long others had had it
	// send is the argument of raw.Write, made once.
	send func(fd uintptr) bool
}

// socketBuffer is what the kernel is asked for to hold what arrives while a batch is worked on; it may give less
// (net.core.rmem_max).
const socketBuffer = 4 << 20

// open binds another UDP socket to an address that others have bound, with SO_REUSEPORT.
func open(addr string) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
		return errors.Join(cerr, err)
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp", addr)
	if err != nil {
		return nil, err
	}
	conn := pc.(*net.UDPConn)
	conn.SetReadBuffer(socketBuffer) // as much as we may have
	conn.SetWriteBuffer(socketBuffer)
	return conn, nil
}

// askPktinfo makes a socket tell which of the addresses it is bound to was asked. A socket bound to one address need
// not ask. It returns whether it did.
func askPktinfo(conn *net.UDPConn) (bool, error) {
	local := conn.LocalAddr().(*net.UDPAddr)
	if !local.IP.IsUnspecified() {
		return false, nil
	}
	return true, control(conn, func(fd int) error {
		if is6, err := isIPv6(fd); err != nil || is6 {
			return errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	})
}

func isIPv6(fd int) (bool, error) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return domain == unix.AF_INET6, err
}

// control calls f with a connection's descriptor.
func control(conn *net.UDPConn, f func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(cerr, err)
}

func newSocket(g *Group, conn *net.UDPConn) (*socket, error) {
	pktinfo, err := askPktinfo(conn)
	if err != nil {
		return nil, fmt.Errorf("ask for the destination of queries: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{group: g, conn: conn, raw: raw, v: newVector(pktinfo), done: make(chan struct{})}
	s.send = func(fd uintptr) bool {
		for s.sent < s.out {
			n, errno := s.v.send(fd, s.sent, s.out)
			switch errno {
			case 0:
				s.sent += n
			case unix.EAGAIN:
				return false
			case unix.EINTR:
			default: // this one cannot be sent, as to port 0
				s.sent++
			}
		}
		return true
	}
	return s, nil
}

// run answers queries until the socket is closed.
func (s *socket) run() {
	defer close(s.done)
	// All is done within one Read, so that Go's poller keeps in mind that something has arrived since the last look: a
	// batch that is not full needs no second look to tell that the socket is empty.
	s.raw.Read(func(fd uintptr) bool {
		for {
			n, errno := s.v.receive(fd)
			switch errno {
			case 0:
				s.in = n
				s.batch(fd)
				if n < batchLen && !s.group.misses.crowded.Load() {
					return false
				}
				s.yield()
			case unix.EAGAIN:
				if !s.group.misses.crowded.Load() {
					return false
				}
				runtime.Gosched() // while all processors are busy, Go's poller looks for packets every 10 ms only (sysmon)
			case unix.EINTR:
			default: // none is known that would stay
				slog.Error("cannot read queries", "address", s.group.addr, "error", errno)
				time.Sleep(time.Second)
			}
		}
	})
}

// turnShare is the part of the others' time that a socket's goroutine takes for itself while misses want all processors: with
// half of it, a flood of packets is read but to be dropped; with much less, the kernel drops those that could be answered here.
const turnShare = 4

// yield lets others have the processor: where there is one, the records' writer and the misses want to go on, too.
func (s *socket) yield() {
	if !s.group.misses.crowded.Load() {
		runtime.Gosched()
		return
	}
	before := time.Now()
	if turnShare*before.Sub(s.turn) < s.others {
		return
	}
	runtime.Gosched()
	s.turn = time.Now()
	s.others = s.turn.Sub(before)
}

// batch answers what was received, sends the answers and hands the rest on.
func (s *socket) batch(fd uintptr) {
	start := time.Now()
	if h := s.group.handler.Load(); h != s.handler {
		s.handler, s.observer = h, h.NewObserver()
	}
	s.out, s.sent, s.missed = 0, 0, 0
	s.samples = s.samples[:0]
	for next := 0; next < s.in; {
		next = s.answer(next)
	}
	if s.out > 0 && !s.send(fd) {
		s.raw.Write(s.send) // waits until the socket takes more, and fails if it is closed meanwhile
	}
	for i := range s.in {
		s.v.reset(i)
	}
	s.observer.Observe(s.samples, start, s.missed)
}

// answer works on the batch from the i-th query on. It returns at its end, or, when a query made the code panic, with
// the one behind.
func (s *socket) answer(i int) (next int) {
	defer func() {
		if r := recover(); r != nil {
			s.handler.Panicked(r)
			s.miss(i)
			next = i + 1
		}
	}()
	h := s.handler
	var q query
	for ; i < s.in; i++ {
		in := s.v.query(i)
		if !isQuery(in) {
			continue
		}
		if !q.parse(in) {
			s.miss(i)
			continue
		}
		name := in[HeaderLen : q.end-4]
		route := h.Zones.Match(name)
		if route < 0 || h.Responders[route] == nil {
			s.miss(i)
			continue
		}
		rep, ok := h.Responders[route].respond(s.v.buffer(i), in, &q)
		if !ok {
			s.miss(i)
			continue
		}
		s.v.answer(s.out, i, rep.msg)
		s.out++
		s.samples = append(s.samples, Sample{
			Name: name, Type: q.qtype, DO: q.edns && q.ednsFlags&flagDO != 0, IPv6: s.v.is6(i),
			Rcode: rep.rcode, QueryLen: len(in), ReplyLen: rep.expanded, Route: route,
		})
	}
	return i
}

// miss hands the i-th query on.
func (s *socket) miss(i int) {
	s.missed++
	s.group.misses.add(s.v.query(i), s.v.peer(i), s.v.replyControl(i), s.conn)
}
