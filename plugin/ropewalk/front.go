package ropewalk

import (
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/fastpath"
)

// front is what stands at an address that servers with ropewalk listen on: those servers (two while the Corefile is
// reloaded, more with the plugin multisocket), and the sockets of the fast path, which they share one after the other.
//
// Once the fast path's sockets have taken over from a server's own, it stays like that, since a socket that has left its
// group cannot come back, and a reload hands the same one to the next server. If that has no use for the fast path, it
// still gets its queries through it, all of them.
type front struct {
	addr  string
	group *fastpath.Group // nil: servers read their own sockets
	users []*user
	// sockets are those of servers that have left the group of the address. They are told by their inodes: a socket that
	// has left is bound to another address to all appearances.
	sockets map[uint64]bool
}

// user is a server at a front.
type user struct {
	inst    *caddy.Instance
	conn    *net.UDPConn // the server's own socket
	handler *fastpath.Handler
}

// frontage holds the fronts. CoreDNS gives instances of a plugin no other place to meet.
type frontage struct {
	mu     sync.Mutex
	fronts []*front
}

var fronts = &frontage{}

// drainPatience is for how long queries that the plugin chain works on are waited for, as CoreDNS does at its end.
const drainPatience = 5 * time.Second

// decorate is dnsserver.Config.UDPDecorateWriterFunc: it is called when a server begins to serve queries over UDP. It does
// not decorate anything, but leaves that to another plugin, if there is one, and then the fast path is off. That it is where
// the plugin meets the server also serves TCP.
func (h *Ropewalk) decorate(s *dnsserver.Server) dns.DecorateWriter {
	if err := boundWrites(h.inst, s); err != nil {
		log.Infof("TCP clients of %s that do not read their answers are not cut off: %v", s.Addr, err)
	}
	if in, err := serverInternals(s); err == nil {
		if decorator := in.otherDecorator(); decorator != nil {
			log.Infof("fastpath is off at %s: another plugin, as shed, has to see every answer", s.Addr)
			return decorator(s)
		}
	}
	conn, err := serverSocket(h.inst, s)
	if err != nil {
		log.Infof("fastpath is off at %s: %v", s.Addr, err)
		return nil
	}
	handler, on, sockets := fastHandler(s)
	fronts.join(h, conn, boundTo(conn, s), handler, on, sockets)
	return nil
}

// boundTo returns the address that a server's socket is, or once was, bound to.
func boundTo(conn *net.UDPConn, s *dnsserver.Server) string {
	if !fastpath.HasLeft(conn) {
		return conn.LocalAddr().String()
	}
	addr := strings.TrimPrefix(s.Addr, "dns://")
	if strings.HasPrefix(addr, ":") {
		addr = "[::]" + addr
	}
	return addr
}

// join makes a server of the instance of CoreDNS that by is part of a user of the front at the address of its socket, and h
// what the fast path does there. Where there is none yet, there will be one only if on says so, or if the socket has left its
// group in the process that this one has taken over from (caddy.Upgrade).
func (r *frontage) join(by *Ropewalk, conn *net.UDPConn, addr string, h *fastpath.Handler, on bool, sockets int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if by.gone {
		// The server begins to serve in a goroutine of its own. Where that is late, CoreDNS has not been able to stop it.
		conn.Close()
		return
	}
	u := &user{inst: by.inst, conn: conn, handler: h}
	f := r.at(conn, addr)
	f.users = append(f.users, u)
	if f.group != nil {
		f.group.Handle(h)
	}
	if f.group == nil && fastpath.HasLeft(conn) {
		on, sockets = true, max(sockets, 1)
	}
	if on && (f.group == nil || f.group.Len() != sockets) {
		g, err := fastpath.Open(f.addr, sockets, h)
		if err != nil {
			log.Warningf("fastpath: %v", err)
		} else {
			if f.group != nil {
				go f.group.Close(drainPatience)
			}
			f.group = g
		}
	}
	if f.group != nil {
		if err := fastpath.Leave(u.conn); err != nil {
			log.Warningf("some queries to %s do not take the fast path: %v", f.addr, err)
		}
		f.sockets[inode(u.conn)] = true
	}
}

// at returns the front of the address that a socket is, or once was, bound to.
func (r *frontage) at(conn *net.UDPConn, addr string) *front {
	ino := inode(conn)
	i := slices.IndexFunc(r.fronts, func(f *front) bool { return f.sockets[ino] })
	if i < 0 {
		i = slices.IndexFunc(r.fronts, func(f *front) bool { return f.addr == addr })
	}
	if i < 0 {
		i = len(r.fronts)
		r.fronts = append(r.fronts, &front{addr: addr, sockets: map[uint64]bool{}})
	}
	return r.fronts[i]
}

// leave is for an instance of CoreDNS that has been replaced. If its successor has no ropewalk at an address any more, all
// that the fast path does there is to hand queries on. Queries that the instance's plugins work on are waited for, as CoreDNS
// waits for those of its own sockets, since plugins that stop answer with errors.
func (r *frontage) leave(inst *caddy.Instance) {
	var gone []*user
	r.each(inst, func(f *front, left []*user) {
		gone = append(gone, left...)
		if len(f.users) > 0 || f.group == nil {
			return
		}
		next, s, conn := serverWith(f.sockets)
		if s == nil {
			go f.group.Close(drainPatience)
			f.group = nil
			return
		}
		h := relayHandler(s)
		f.group.Handle(h)
		f.users = []*user{{inst: next, conn: conn, handler: h}}
		// Nothing of ropewalk is in that instance to tell of its end, which has to come before that of its plugins.
		restarting := false
		next.OnRestart = append(next.OnRestart, func() error {
			restarting = true
			return nil
		})
		next.OnRestartFailed = append(next.OnRestartFailed, func() error {
			restarting = false
			return nil
		})
		next.OnShutdown = slices.Insert(next.OnShutdown, 0, func() error {
			if restarting {
				r.leave(next)
			}
			return nil
		})
		next.OnFinalShutdown = append(next.OnFinalShutdown, func() error {
			r.finish(next)
			return nil
		})
	})
	for _, u := range gone {
		u.handler.Settle(drainPatience)
	}
}

// finish is for an instance of CoreDNS that is about to stop for good. Queries that it has are answered; those to come go to
// other processes that have bound the address.
func (r *frontage) finish(inst *caddy.Instance) {
	r.each(inst, func(f *front, left []*user) {
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

// bar keeps servers of h from joining from now on.
func (r *frontage) bar(h *Ropewalk) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h.gone = true
}

// each takes the users that are of an instance of CoreDNS out of their fronts and calls fn with them.
func (r *frontage) each(inst *caddy.Instance, fn func(f *front, left []*user)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range slices.Clone(r.fronts) {
		var left, stay []*user
		for _, u := range f.users {
			if u.inst == inst {
				left = append(left, u)
			} else {
				stay = append(stay, u)
			}
		}
		if len(left) == 0 {
			continue
		}
		f.users = stay
		fn(f, left)
		if len(f.users) == 0 && f.group == nil {
			r.fronts = slices.DeleteFunc(r.fronts, func(o *front) bool { return o == f })
		}
	}
}

// inode identifies a socket, through whichever descriptor; 0 if it is closed.
func inode(conn *net.UDPConn) uint64 {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	var st unix.Stat_t
	raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) })
	if err != nil {
		return 0
	}
	return st.Ino
}
