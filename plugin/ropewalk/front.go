package ropewalk

import (
	"net"
	"os"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/fastpath"
)

// front is what stands at an address that servers with ropewalk listen on: those servers (two while the Corefile is
// reloaded, more with the plugin multisocket), and the sockets of the fast path, which they share one after the other.
type front struct {
	group *fastpath.Group // nil: servers read their own sockets
	users []*user
}

// user is a server at a front.
type user struct {
	inst *caddy.Instance
	// conn is the server's own socket. It is a copy, since it may have to be given back to another server, after a reload
	// that took ropewalk out of the Corefile.
	conn *net.UDPConn
}

// frontage holds the fronts by the address that their sockets are bound to. CoreDNS gives instances of a plugin no other place to meet.
type frontage struct {
	mu     sync.Mutex
	fronts map[string]*front
}

var fronts = &frontage{fronts: map[string]*front{}}

// drainPatience is for how long queries that the plugin chain works on are waited for, as CoreDNS does at its end.
const drainPatience = 5 * time.Second

// decorate is dnsserver.Config.UDPDecorateWriterFunc: it is called when a server begins to serve queries over UDP. It does
// not decorate anything.
func decorate(s *dnsserver.Server) dns.DecorateWriter {
	inst, conn, err := serverSocket(s)
	if err != nil {
		log.Infof("fastpath is off at %s: %v", s.Addr, err)
		return nil
	}
	conn, err = duplicate(conn)
	if err != nil {
		log.Warningf("fastpath is off at %s: %v", s.Addr, err)
		return nil
	}
	h, mode := fastHandler(s)
	fronts.join(conn.LocalAddr().String(), &user{inst: inst, conn: conn}, h, mode.count())
	return nil
}

// duplicate returns another connection for the same socket.
func duplicate(conn *net.UDPConn) (*net.UDPConn, error) {
	f, err := conn.File()
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	defer f.Close()
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return pc.(*net.UDPConn), nil
}

// join makes u a user of the front at addr. Without a handler the front gets, or keeps, no fast path.
func (r *frontage) join(addr string, u *user, h *fastpath.Handler, sockets int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.fronts[addr]
	if f == nil {
		f = &front{}
		r.fronts[addr] = f
	}
	f.users = append(f.users, u)
	old := f.group
	switch {
	case h == nil:
		f.group = nil
	case old != nil && old.Len() == sockets:
		old.Handle(h)
	default:
		g, err := fastpath.Open(addr, sockets, h)
		if err != nil {
			log.Warningf("fastpath is off at %s: %v", addr, err)
		}
		f.group = g
	}
	if f.group != nil {
		if err := fastpath.Leave(u.conn); err != nil {
			log.Warningf("some queries to %s do not take the fast path: %v", addr, err)
		}
	} else if old != nil {
		giveBack(addr, f.users)
	}
	if old != nil && old != f.group {
		go old.Close(drainPatience)
	}
}

// giveBack lets servers read their own sockets.
func giveBack(addr string, users []*user) {
	for _, u := range users {
		if err := fastpath.Return(u.conn); err != nil {
			log.Errorf("the server at %s gets no queries: %v", addr, err)
		}
	}
}

// leave is for an instance of CoreDNS that has been replaced. Where its successor has not taken the fast path over, it ends.
func (r *frontage) leave(h *Ropewalk) {
	r.each(h, func(addr string, f *front, left []*user) {
		if len(f.users) > 0 || f.group == nil {
			return
		}
		giveBack(addr, left) // the socket may be another server's by now, that of one without ropewalk
		f.group.Close(drainPatience)
		f.group = nil
	})
}

// finish is for an instance of CoreDNS that is about to stop for good. Queries that it has are answered; those to come go to
// other processes that have bound the address.
func (r *frontage) finish(h *Ropewalk) {
	r.each(h, func(addr string, f *front, left []*user) {
		for _, u := range left {
			fastpath.Leave(u.conn)
		}
		if f.group != nil && len(f.users) == 0 {
			f.group.Close(drainPatience)
			f.group = nil
		}
		for _, u := range left {
			fastpath.Drain(u.conn, time.Now().Add(drainPatience))
		}
	})
}

// each takes the users that are of h's instance of CoreDNS out of their fronts, calls fn with them, and lets go of them.
func (r *frontage) each(h *Ropewalk, fn func(addr string, f *front, left []*user)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for addr, f := range r.fronts {
		var left, stay []*user
		for _, u := range f.users {
			if h.isPartOf(u.inst) {
				left = append(left, u)
			} else {
				stay = append(stay, u)
			}
		}
		if len(left) == 0 {
			continue
		}
		f.users = stay
		fn(addr, f, left)
		for _, u := range left {
			u.conn.Close()
		}
		if len(f.users) == 0 {
			delete(r.fronts, addr)
		}
	}
}
