package link

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/netfilter/nfnetlink_conntrack.h and net/netfilter/nf_internals.h; the library has no names for them.
const (
	ctaFilter           = 25
	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2
	filterSource        = 1 << 0 // CTA_FILTER_F_CTA_IP_SRC
)

// Forget deletes what the node's connection tracking knows of an address that is nobody's any more: the connections that it has begun, and
// those that lead to it, whatever they were translated from. The next pod with the address would otherwise get packets of the
// last one's. It needs the kernel's nf_conntrack_netlink.
func Forget(a netip.Addr) error {
	tuples := []int{nl.CTA_TUPLE_ORIG, nl.CTA_TUPLE_REPLY}
	if a.Is6() {
		// The kernel's filter gives all entries but those of an IPv6 address (ctnetlink_filter_match_tuple, up to 6.18 at least).
		tuples = []int{0}
	}
	var errs []error
	for _, tuple := range tuples {
		errs = append(errs, forget(a, tuple))
	}
	return errors.Join(errs...)
}

// forget deletes the entries that have the address for the source of one of their tuples. It looks at those whose tuple of that
// type has, or at all with 0. What the kernel gives is looked at again, since kernels before 5.8 do not know the filter.
func forget(a netip.Addr, tuple int) error {
	got, err := whole(func() ([][]byte, error) { return entries(a, tuple).Execute(unix.NETLINK_NETFILTER, 0) })
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range got {
		if len(e) < nl.SizeofNfgenmsg {
			continue
		}
		// An entry as the kernel gives it names itself: its tuples, its zone and its number.
		attrs := e[nl.SizeofNfgenmsg:]
		if source(attrs, nl.CTA_TUPLE_ORIG) != a && source(attrs, nl.CTA_TUPLE_REPLY) != a {
			continue
		}
		req := conntrack(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, a)
		req.AddRawData(attrs)
		if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// entries asks for all of the address's family, or for those that have it for the source of a tuple.
func entries(a netip.Addr, tuple int) *nl.NetlinkRequest {
	req := conntrack(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, a)
	if tuple == 0 {
		return req
	}
	t := nl.NewRtAttr(tuple|unix.NLA_F_NESTED, nil)
	t.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil).AddRtAttr(sourceAttr(a.Is4()), a.AsSlice())
	req.AddData(t)
	flags := map[int]uint32{tuple: filterSource}
	f := nl.NewRtAttr(ctaFilter|unix.NLA_F_NESTED, nil)
	f.AddRtAttr(ctaFilterOrigFlags, nl.Uint32Attr(flags[nl.CTA_TUPLE_ORIG]))
	f.AddRtAttr(ctaFilterReplyFlags, nl.Uint32Attr(flags[nl.CTA_TUPLE_REPLY]))
	req.AddData(f)
	return req
}

func conntrack(operation, flags int, a netip.Addr) *nl.NetlinkRequest {
	family := uint8(unix.AF_INET6)
	if a.Is4() {
		family = unix.AF_INET
	}
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return req
}

func sourceAttr(ipv4 bool) int {
	if ipv4 {
		return nl.CTA_IP_V4_SRC
	}
	return nl.CTA_IP_V6_SRC
}

// source returns the source of a tuple of an entry, or no address.
func source(attrs []byte, tuple int) netip.Addr {
	ip := attr(attr(attrs, tuple), nl.CTA_TUPLE_IP)
	for _, ipv4 := range []bool{true, false} {
		if a, ok := netip.AddrFromSlice(attr(ip, sourceAttr(ipv4))); ok {
			return a
		}
	}
	return netip.Addr{}
}

// attr returns the value of the first attribute of a type, or nil.
func attr(attrs []byte, typ int) []byte {
	for len(attrs) >= unix.NLA_HDRLEN {
		n := int(binary.NativeEndian.Uint16(attrs))
		if n < unix.NLA_HDRLEN || n > len(attrs) {
			return nil
		}
		if int(binary.NativeEndian.Uint16(attrs[2:])&nl.NLA_TYPE_MASK) == typ {
			return attrs[unix.NLA_HDRLEN:n]
		}
		attrs = attrs[min((n+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(attrs)):]
	}
	return nil
}
