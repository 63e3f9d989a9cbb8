// Package fastpath answers DNS queries over UDP ahead of a server: sockets of its own, bound to the server's address with
// SO_REUSEPORT, receive and send in batches (recvmmsg(2), sendmmsg(2)) and answer from the records of package zone
// without allocating. What they cannot answer alone they hand on.
//
// The kernel spreads what arrives at an address over all sockets bound to it that are not connected (Linux,
// reuseport_select_sock_by_hash). So a socket is taken out of its group, with nothing lost, by connecting it to an
// address that nobody sends from: what it has received stays to be read, and nothing more comes. That is how a server's
// own socket leaves the queries to a Group, and how a Group ends. It needs no privilege and, unlike a program at the
// group (SO_ATTACH_REUSEPORT_CBPF), no knowledge of which other sockets there are, another process's among them.
package fastpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Handler is what a Group does with queries. It is not changed once a Group has it.
type Handler struct {
	// Zones are the zones of the server, in wire format and lower case. A query belongs to the longest that its name is in.
	Zones *Suffixes
	// Responders answer for the zone with their index; nil for those that are the server's alone.
	Responders []*Responder
	// Serve answers what the sockets do not. It is called in many goroutines at a time.
	Serve func(*Query)
	// NewObserver returns what counts the answers of one socket.
	NewObserver func() Observer
	// Dropped is called for each query that is given up since too many are with Serve, Panicked when code panics over a
	// query (which is then for Serve).
	Dropped  func()
	Panicked func(reason any)

	serving atomic.Int64
}

// Settle waits until no query is with Serve, no longer than patience. It is for a Handler that has been replaced.
func (h *Handler) Settle(patience time.Duration) {
	for deadline := time.Now().Add(patience); h.serving.Load() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
}

func (h *Handler) serve(q *Query) {
	h.serving.Add(1)
	defer h.serving.Add(-1)
	h.Serve(q)
}

// Observer is told what a socket has answered.
type Observer interface {
	// Observe gets the answers to a batch of queries, the time that it was received at, and how many others of the batch
	// were handed on. It must not keep samples.
	Observe(samples []Sample, received time.Time, missed int)
}

// Sample is a query and its answer.
type Sample struct {
	// Name is the name that was asked for, in wire format.
	Name  []byte
	Type  uint16
	DO    bool
	IPv6  bool
	Rcode int
	// QueryLen and ReplyLen are in octets; the latter without compression and OPT record, as CoreDNS counts.
	QueryLen, ReplyLen int
	// Route is the index of the zone that the query belongs to.
	Route int
}

// Group is a number of sockets bound to one address. Make one with Open.
type Group struct {
	addr    string
	sockets []*socket
	handler atomic.Pointer[Handler]
	misses  *misses
}

// Open binds n sockets to an address (host:port), which others that set SO_REUSEPORT may have bound, and answers queries.
func Open(addr string, n int, h *Handler) (*Group, error) {
	g := &Group{addr: addr}
	g.misses = newMisses(func(q *Query) { g.handler.Load().serve(q) }, func() { g.handler.Load().Dropped() })
	g.handler.Store(h)
	for range n {
		conn, err := open(addr)
		if err == nil {
			var s *socket
			if s, err = newSocket(g, conn); err == nil {
				g.sockets = append(g.sockets, s)
				continue
			}
			conn.Close()
		}
		for _, s := range g.sockets {
			s.conn.Close()
		}
		return nil, fmt.Errorf("fast path at %s: %w", addr, err)
	}
	for _, s := range g.sockets {
		go s.run()
	}
	return g, nil
}

// Len returns the number of sockets.
func (g *Group) Len() int { return len(g.sockets) }

// Handle puts another handler in the place of the one that there is, to which a query may still go that is being read.
func (g *Group) Handle(h *Handler) { g.handler.Store(h) }

// Close takes the sockets out of the address's group, answers what they have received, and closes them. It waits for
// queries that are with the server, no longer than patience.
func (g *Group) Close(patience time.Duration) {
	deadline := time.Now().Add(patience)
	for _, s := range g.sockets {
		Leave(s.conn) // or else what comes until it is closed is lost
	}
	for _, s := range g.sockets {
		Drain(s.conn, deadline)
	}
	for _, s := range g.sockets {
		// What has been read is answered before the socket is closed.
		s.conn.SetWriteDeadline(deadline)
		s.conn.SetReadDeadline(time.Unix(1, 0))
		<-s.done
	}
	for g.misses.busy() && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	for _, s := range g.sockets {
		s.conn.Close()
	}
}

// Leave makes the kernel send what arrives at a socket's address to the other sockets that are bound to it. What the
// socket holds already can still be read from it, and it can still send. There is no way back: when a socket for IPv6 is
// disconnected, Linux keeps the peer's address and goes on taking packets from there alone (__udp_disconnect).
func Leave(conn *net.UDPConn) error {
	return control(conn, func(fd int) error {
		local := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		is6, err := isIPv6(fd)
		if err != nil {
			return err
		}
		for _, peer := range nobodies(local.Addr(), is6) {
			if err = unix.Connect(fd, peer); err == nil {
				return nil
			}
		}
		return fmt.Errorf("connect the socket of %v to nobody: %w", local, err)
	})
}

// HasLeft says whether a socket has left the group of its address, in this process or in one that it is inherited from.
func HasLeft(conn *net.UDPConn) bool {
	return control(conn, func(fd int) error {
		_, err := unix.Getpeername(fd)
		return err
	}) == nil
}

// nobodies returns addresses that nobody sends from, one of which a socket bound to local can be connected to. They are
// different each time, and the best come first: whoever knows one can send an ICMP error that seems to come from there,
// which the kernel hands to the socket's reader. CoreDNS's own gives up then, and takes its socket from the next reload.
func nobodies(local netip.Addr, is6 bool) []unix.Sockaddr {
	port := 1 + rand.IntN(1023) // needs privileges, and is no Kubernetes node port
	loopback := [4]byte{127, 1 + byte(rand.IntN(254)), byte(rand.Uint32()), byte(rand.Uint32())}
	if !is6 {
		return []unix.Sockaddr{&unix.SockaddrInet4{Port: port, Addr: loopback}}
	}
	own := &unix.SockaddrInet6{Port: port, Addr: local.As16(), ZoneId: zoneIndex(local.Zone())}
	if local.IsUnspecified() {
		own.Addr = netip.IPv6Loopback().As16()
	}
	discard := [16]byte{0: 0x01} // 100::/64 (RFC 6666)
	binary.BigEndian.PutUint64(discard[8:], rand.Uint64())
	return []unix.Sockaddr{
		&unix.SockaddrInet6{Port: port, Addr: netip.AddrFrom4(loopback).As16()}, // where the socket is for IPv4, too
		&unix.SockaddrInet6{Port: port, Addr: discard},                          // where there is a route
		own,
	}
}

// Drain waits until a socket that has left holds nothing to be read, no longer than deadline.
func Drain(conn *net.UDPConn, deadline time.Time) {
	// A packet may be on its way to a socket that was chosen for it before.
	const settle = 3
	for empty := 0; empty < settle && time.Now().Before(deadline); {
		fds := []unix.PollFd{{Events: unix.POLLIN}}
		if err := control(conn, func(fd int) error {
			fds[0].Fd = int32(fd)
			_, err := unix.Poll(fds, 0) // SIOCINQ would not tell of what is behind an empty datagram
			return err
		}); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		empty++
		if fds[0].Revents&unix.POLLIN != 0 {
			empty = 0
		}
		time.Sleep(time.Millisecond)
	}
}

func zoneIndex(name string) uint32 {
	if ifi, err := net.InterfaceByName(name); err == nil {
		return uint32(ifi.Index)
	}
	n, _ := strconv.Atoi(name)
	return uint32(n)
}
