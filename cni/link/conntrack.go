package link

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"

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

// few is how many entries the kernel gives in the time that it takes to go through its table twice more.
const few = 4096

// question is what the kernel is asked for: entries of a family, or those only that have an address for the source of a tuple.
type question struct {
	family uint8
	tuple  int // 0 for all
	source netip.Addr
}

// Forget deletes what the node's connection tracking knows of addresses that are nobody's any more: the connections that they have begun,
// and those that lead to them, whatever they were translated from. The next pod with the address would otherwise get packets of
// the last one's. A node that tracks no connections is left as it is.
func Forget(addrs []netip.Addr) error {
	text, err := read("netfilter/nf_conntrack_count")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	count, bad := strconv.Atoi(text)
	if err := errors.Join(err, bad); err != nil || count == 0 {
		return err
	}
	var errs []error
	for _, q := range questions(addrs, count) {
		got, err := whole(func() ([][]byte, error) { return q.request().Execute(unix.NETLINK_NETFILTER, 0) })
		errs = append(errs, err, forget(got, addrs))
	}
	return errors.Join(errs...)
}

// questions returns how the entries of addresses are found in a table of so many. The kernel goes through all of the table for each.
func questions(addrs []netip.Addr, count int) (out []question) {
	if count <= few {
		return []question{{family: unix.AF_UNSPEC}}
	}
	for _, a := range addrs {
		if a.Is4() {
			out = append(out, question{unix.AF_INET, nl.CTA_TUPLE_ORIG, a}, question{unix.AF_INET, nl.CTA_TUPLE_REPLY, a})
		} else {
			// Asked for an IPv6 address, the kernel gives all others (ctnetlink_filter_match_tuple, in 6.18 at least).
			out = append(out, question{family: unix.AF_INET6})
		}
	}
	return out
}

// forget deletes the entries that have one of the addresses for the source of one of their tuples. It looks at each, since kernels
// before 5.8 give more than they are asked for.
func forget(entries [][]byte, addrs []netip.Addr) error {
	var errs []error
	for _, e := range entries {
		if len(e) < nl.SizeofNfgenmsg {
			continue
		}
		// An entry as the kernel gives it names itself: its family, its tuples, its zone and its number.
		family, attrs := e[0], e[nl.SizeofNfgenmsg:]
		if !slices.Contains(addrs, source(attrs, nl.CTA_TUPLE_ORIG)) && !slices.Contains(addrs, source(attrs, nl.CTA_TUPLE_REPLY)) {
			continue
		}
		req := conntrack(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, family)
		req.AddRawData(attrs)
		if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (q question) request() *nl.NetlinkRequest {
	req := conntrack(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, q.family)
	if q.tuple == 0 {
		return req
	}
	t := nl.NewRtAttr(q.tuple|unix.NLA_F_NESTED, nil)
	t.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil).AddRtAttr(sourceAttr(q.source.Is4()), q.source.AsSlice())
	req.AddData(t)
	flags := map[int]uint32{q.tuple: filterSource}
	f := nl.NewRtAttr(ctaFilter|unix.NLA_F_NESTED, nil)
	f.AddRtAttr(ctaFilterOrigFlags, nl.Uint32Attr(flags[nl.CTA_TUPLE_ORIG]))
	f.AddRtAttr(ctaFilterReplyFlags, nl.Uint32Attr(flags[nl.CTA_TUPLE_REPLY]))
	req.AddData(f)
	return req
}

func conntrack(operation, flags int, family uint8) *nl.NetlinkRequest {
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
