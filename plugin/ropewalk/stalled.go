package ropewalk

import (
	"errors"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"golang.org/x/sys/unix"
)

// boundWrites makes a server's TCP connections end when a client has taken nothing of an answer for WriteTimeout (plugin
// timeouts; 5 s). CoreDNS hands that to miekg/dns, which has no use for it in servers: whoever reads nothing would hold a
// connection, a goroutine and an answer for good. Connections inherit TCP_USER_TIMEOUT from the socket that accepts
// them (tcp(7)), and it ends those without a window, too (Linux, tcp_probe_timer). Sockets of Go's for Multipath TCP do
// not have it, which is why cmd/coredns turns that off.
func boundWrites(inst *caddy.Instance, s *dnsserver.Server) error {
	l, err := serverListener(inst, s)
	if err != nil {
		return err
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(s.WriteTimeout.Milliseconds()))
	})
	return errors.Join(cerr, err)
}
