package portmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// forget deletes the UDP flows that conntrack would go on with as before: those that were led to a pod by a mapping that is gone,
// and those to a port of the node itself that is a pod's from now on. A client that keeps sending from one port would never notice else.
func forget(begun, gone []Entry) error {
	var errs []error
	for _, f := range families {
		m := flows{gone: map[flow]bool{}, begun: map[netip.AddrPort]bool{}}
		ports := map[uint16]bool{}
		for _, e := range gone {
			if e.Protocol == UDP && e.Pod.Is4() == f.is4() {
				m.gone[flow{e.HostPort, netip.AddrPortFrom(e.Pod, e.ContainerPort)}] = true
				ports[e.HostPort] = true
			}
		}
		for _, e := range begun {
			if e.Protocol == UDP && e.Pod.Is4() == f.is4() {
				m.begun[netip.AddrPortFrom(e.HostIP, e.HostPort)] = true
				ports[e.HostPort] = true
			}
		}
		if len(ports) == 0 {
			continue
		}
		var err error
		if m.own, err = addresses(); err != nil {
			return err
		}
		for _, q := range questions(f, ports) {
			if err := q.forget(m); err != nil {
				errs = append(errs, fmt.Errorf("deleting UDP flows: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// flow is the node's port, and where it led.
type flow struct {
	hostPort uint16
	pod      netip.AddrPort
}

type flows struct {
	gone  map[flow]bool
	begun map[netip.AddrPort]bool // with no address for all
	own   map[netip.Addr]bool     // the node's addresses
}

// match says whether a flow goes: to is where its packets were sent, from is whose answers it has.
func (m flows) match(to, from netip.AddrPort) bool {
	if m.gone[flow{to.Port(), from}] {
		return true
	}
	return to.Addr() == from.Addr() && m.own[to.Addr()] && (m.begun[to] || m.begun[netip.AddrPortFrom(netip.Addr{}, to.Port())])
}

func addresses() (map[netip.Addr]bool, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("the node's addresses: %w", err)
	}
	own := map[netip.Addr]bool{}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			a, _ := netip.AddrFromSlice(n.IP)
			own[a.Unmap()] = true
		}
	}
	return own, nil
}

// Of include/uapi/linux/netfilter/nfnetlink_conntrack.h and net/netfilter/nf_internals.h; the library has no names for them.
const (
	ctaFilter           = 25
	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2
	filterProtocol      = 1 << 3 // CTA_FILTER_F_CTA_PROTO_NUM
	filterPort          = 1 << 5 // CTA_FILTER_F_CTA_PROTO_DST_PORT
)

// question is what the kernel is asked for: UDP flows of a family, to a port. Kernels before 5.8 give all flows.
type question struct {
	family uint8
	port   uint16 // 0 for all
}

// few is for how many ports the kernel goes through its table for each, which takes it less time than giving all UDP flows.
const few = 8

func questions(f *family, ports map[uint16]bool) (out []question) {
	if len(ports) > few {
		return []question{{family: uint8(f.id)}}
	}
	for p := range ports {
		out = append(out, question{uint8(f.id), p})
	}
	return out
}

func (q question) request() *nl.NetlinkRequest {
	req := conntrack(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, q.family)
	tuple := nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, nil)
	proto := tuple.AddRtAttr(nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{byte(UDP)})
	flags := uint32(filterProtocol)
	if q.port != 0 {
		proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, q.port))
		flags |= filterPort
	}
	req.AddData(tuple)
	filter := nl.NewRtAttr(ctaFilter|unix.NLA_F_NESTED, nil)
	filter.AddRtAttr(ctaFilterOrigFlags, nl.Uint32Attr(flags))
	filter.AddRtAttr(ctaFilterReplyFlags, nl.Uint32Attr(0))
	req.AddData(filter)
	return req
}

func conntrack(operation, flags int, family uint8) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return req
}

func (q question) forget(m flows) (err error) {
	var got [][]byte
	for range attempts {
		if got, err = q.request().Execute(unix.NETLINK_NETFILTER, 0); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if without(err) { // nobody can ask such a kernel: a flow ends when its client pauses
		return nil
	}
	errs := []error{err}
	for _, e := range got {
		if len(e) < nl.SizeofNfgenmsg {
			continue
		}
		attrs := e[nl.SizeofNfgenmsg:] // by which the flow is named, too
		sent, answered := attr(attrs, nl.CTA_TUPLE_ORIG), attr(attrs, nl.CTA_TUPLE_REPLY)
		if p := attr(attr(sent, nl.CTA_TUPLE_PROTO), nl.CTA_PROTO_NUM); len(p) != 1 || Protocol(p[0]) != UDP {
			continue
		}
		if !m.match(end(sent, nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST, nl.CTA_PROTO_DST_PORT), end(answered, nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC, nl.CTA_PROTO_SRC_PORT)) {
			continue
		}
		req := conntrack(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, q.family)
		req.AddRawData(attrs)
		if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// end returns an address and a port of a tuple.
func end(tuple []byte, v4, v6, port int) netip.AddrPort {
	ip, p := attr(tuple, nl.CTA_TUPLE_IP), attr(attr(tuple, nl.CTA_TUPLE_PROTO), port)
	a, ok := netip.AddrFromSlice(attr(ip, v4))
	if !ok {
		a, ok = netip.AddrFromSlice(attr(ip, v6))
	}
	if !ok || len(p) != 2 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(p))
}

// attr returns the value of the first attribute of a type, or nil.
func attr(attrs []byte, typ int) []byte {
	list, err := nl.ParseRouteAttr(attrs)
	if err != nil {
		return nil
	}
	for _, a := range list {
		if int(a.Attr.Type&nl.NLA_TYPE_MASK) == typ {
			return a.Value
		}
	}
	return nil
}
