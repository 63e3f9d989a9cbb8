package fastpath

import (
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is the kernel's struct mmsghdr (recvmmsg(2)).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

const (
	// batchLen is how many datagrams are received, and sent, at once.
	batchLen = 32
	// querySize bounds queries. What is longer arrives cut off, and fails to parse. CoreDNS cuts off at 512 octets, and so
	// finds padded queries malformed that RFC 6891 and RFC 7830 allow.
	querySize = 4096
	// replySize bounds answers given here. Longer ones are the server's.
	replySize = 4096
	// controlSize is the room for one struct in6_pktinfo, which is the larger of the two, with its header.
	controlSize = 40
)

// slot is a datagram with what the kernel tells of it.
type slot struct {
	iov     unix.Iovec
	control [controlSize]byte     // aligned as a pointer, for a struct cmsghdr
	name    unix.RawSockaddrInet6 // or, with its first octets, a RawSockaddrInet4
	query   [querySize]byte
	reply   [replySize]byte
}

// vector is a batch of datagrams for recvmmsg and sendmmsg. Its memory is allocated once and stays where it is.
type vector struct {
	in, out [batchLen]mmsghdr
	outIov  [batchLen]unix.Iovec
	slots   [batchLen]slot
	control bool // whether to ask for control messages
}

func newVector(control bool) *vector {
	v := &vector{control: control}
	for i := range v.slots {
		s := &v.slots[i]
		s.iov.Base = &s.query[0]
		s.iov.SetLen(len(s.query))
		h := &v.in[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&s.name))
		h.Iov = &s.iov
		h.SetIovlen(1)
		if control {
			h.Control = &s.control[0]
		}
		v.reset(i)
		v.out[i].hdr.Iov = &v.outIov[i]
		v.out[i].hdr.SetIovlen(1)
	}
	return v
}

// reset makes a received slot ready to be received into.
func (v *vector) reset(i int) {
	h := &v.in[i].hdr
	h.Namelen = uint32(unsafe.Sizeof(v.slots[i].name))
	if v.control {
		h.SetControllen(controlSize)
	}
}

// receive fills the vector with what waits at the socket. It does not block.
func (v *vector) receive(fd uintptr) (int, unix.Errno) {
	// A call that cannot block need not tell Go's scheduler.
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&v.in[0])), batchLen, unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// send sends the out messages from i up to n. It does not block.
func (v *vector) send(fd uintptr, i, n int) (int, unix.Errno) {
	sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&v.out[i])), uintptr(n-i), unix.MSG_DONTWAIT, 0, 0)
	return int(sent), errno
}

// query returns the i-th datagram received.
func (v *vector) query(i int) []byte { return v.slots[i].query[:v.in[i].len] }

// buffer returns the room for the answer to the i-th datagram.
func (v *vector) buffer(i int) []byte { return v.slots[i].reply[:0] }

// answer makes the j-th message to be sent the answer to the i-th received.
func (v *vector) answer(j, i int, msg []byte) {
	in, out := &v.in[i].hdr, &v.out[j].hdr
	out.Name, out.Namelen = in.Name, in.Namelen
	v.outIov[j].Base = &msg[0]
	v.outIov[j].SetLen(len(msg))
	if c := v.replyControl(i); len(c) > 0 {
		out.Control = &c[0]
		out.SetControllen(len(c))
	} else {
		out.Control = nil
		out.SetControllen(0)
	}
}

// replyControl returns the control messages for the answer to the i-th query.
func (v *vector) replyControl(i int) []byte {
	if !v.control {
		return nil
	}
	b := v.slots[i].control[:min(v.in[i].hdr.Controllen, controlSize)]
	return b[:replyControl(b)]
}

// replyControl turns the control messages of a query into those of its answer, in place, and returns their length: the
// address that was asked answers (ip(7), IP_PKTINFO; RFC 3542 section 6.1), whatever interface the way back is through.
func replyControl(b []byte) int {
	const header = unix.SizeofCmsghdr
	if len(b) < header {
		return 0
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	switch {
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(b) >= header+unix.SizeofInet4Pktinfo:
		(*unix.Inet4Pktinfo)(unsafe.Pointer(&b[header])).Ifindex = 0
		return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(b) >= header+unix.SizeofInet6Pktinfo:
		p := (*unix.Inet6Pktinfo)(unsafe.Pointer(&b[header]))
		if !netip.AddrFrom16(p.Addr).IsLinkLocalUnicast() { // these mean nothing without their interface
			p.Ifindex = 0
		}
		return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
	}
	return 0
}

// peer returns who sent the i-th datagram. IPv4 addresses are such even where the socket is for both.
func (v *vector) peer(i int) netip.AddrPort {
	return addrPort(&v.slots[i].name)
}

// is6 says whether the i-th datagram came over IPv6.
func (v *vector) is6(i int) bool {
	sa := &v.slots[i].name
	return sa.Family == unix.AF_INET6 && !netip.AddrFrom16(sa.Addr).Is4In6()
}

func addrPort(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := func(p *uint16) uint16 { // network byte order
		b := (*[2]byte)(unsafe.Pointer(p))
		return uint16(b[0])<<8 | uint16(b[1])
	}
	if sa.Family == unix.AF_INET {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(sa4.Addr), port(&sa4.Port))
	}
	a := netip.AddrFrom16(sa.Addr).Unmap()
	if sa.Scope_id != 0 && a.Is6() {
		a = a.WithZone(strconv.Itoa(int(sa.Scope_id)))
	}
	return netip.AddrPortFrom(a, port(&sa.Port))
}
