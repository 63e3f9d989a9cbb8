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
	"fmt"
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
	g.misses = newMisses(func(q *Query) { g.handler.Load().Serve(q) }, func() { g.handler.Load().Dropped() })
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

// Handle puts another handler in the place of the one that there is. Queries that are being worked on may still go to that.
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
	for g.misses.busy() && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	for _, s := range g.sockets {
		s.conn.Close()
		<-s.done
	}
}

// nobody is a port that no query comes from: tcpmux, which needs privileges and has no use over UDP.
const nobody = 1

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
		for _, peer := range unreachable(local.Addr(), is6) {
			if err = unix.Connect(fd, peer); err == nil {
				return nil
			}
		}
		return fmt.Errorf("connect the socket of %v to nobody: %w", local, err)
	})
}

// unreachable returns addresses of this machine to which a socket bound to local can be connected.
func unreachable(local netip.Addr, is6 bool) []unix.Sockaddr {
	loopbacks := []netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	if !local.IsUnspecified() {
		loopbacks = []netip.Addr{local}
	}
	var peers []unix.Sockaddr
	for _, a := range loopbacks {
		if is6 {
			sa := &unix.SockaddrInet6{Port: nobody, Addr: a.As16()}
			if z := a.Zone(); z != "" {
				sa.ZoneId = zoneIndex(z)
			}
			peers = append(peers, sa)
		} else if a.Unmap().Is4() {
			peers = append(peers, &unix.SockaddrInet4{Port: nobody, Addr: a.Unmap().As4()})
		}
	}
	return peers
}

// Drain waits until a socket that has left holds nothing to be read, no longer than deadline.
func Drain(conn *net.UDPConn, deadline time.Time) {
	// A packet may be on its way to a socket that was chosen for it before.
	const settle = 3
	for empty := 0; empty < settle && time.Now().Before(deadline); {
		waiting := 0
		if err := control(conn, func(fd int) (err error) {
			waiting, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
			return err
		}); err != nil {
			return
		}
		empty++
		if waiting > 0 {
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
