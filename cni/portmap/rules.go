package portmap

import (
	"hash/fnv"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TableName is what the tables are called, of the families ip and ip6.
const TableName = "ropewalk-hostports"

// set is one of a table's maps and sets.
type set int

const (
	addressesMap set = iota // address, protocol, port -> pod, port
	portsMap                // protocol, port, of any of the node's addresses -> pod, port
	hairpinSet              // who has to be masqueraded on the way to a pod, pod
	numSets
)

// family is what differs between the tables of IPv4 and IPv6.
type family struct {
	id   nftables.TableFamily
	addr nftables.SetDatatype
	size int    // of an address, in bytes
	src  uint32 // offset of the source address in the IP header
}

var families = []*family{
	{nftables.TableFamilyIPv4, nftables.TypeIPAddr, 4, 12},
	{nftables.TableFamilyIPv6, nftables.TypeIP6Addr, 16, 8},
}

func (f *family) is4() bool { return f.size == 4 }

func (f *family) table() *nftables.Table { return &nftables.Table{Name: TableName, Family: f.id} }

// maxPorts is how many ports a map has room for. The kernel takes a table of a fixed size for it, about 12 bytes a port: one that it
// resizes while it is listed may show elements twice, or not at all.
const maxPorts = 8192

// sets are in the order of their numbers.
func (f *family) sets(t *nftables.Table) [numSets]*nftables.Set {
	concat := nftables.MustConcatSetType
	pod := concat(f.addr, nftables.TypeInetService)
	sets := [numSets]*nftables.Set{
		{Table: t, Name: "addresses", Size: maxPorts, IsMap: true, Concatenation: true, DataType: pod,
			KeyType: concat(f.addr, nftables.TypeInetProto, nftables.TypeInetService)},
		{Table: t, Name: "ports", Size: maxPorts, IsMap: true, Concatenation: true, DataType: pod,
			KeyType: concat(nftables.TypeInetProto, nftables.TypeInetService)},
		{Table: t, Name: "hairpin", Interval: true, Concatenation: true, KeyType: concat(f.addr, f.addr)},
	}
	for i, s := range sets {
		s.ID = uint32(i) + 1 // within a transaction. The library's own numbers are not for several goroutines
	}
	return sets
}

type rule []expr.Any

// digest is the user data of a rule, by which it is told from others. Its type is one that nft(8) skips.
func (r rule) digest(f *family) ([]byte, error) {
	h := fnv.New64a()
	for _, e := range r {
		b, err := expr.Marshal(byte(f.id), e)
		if err != nil {
			return nil, err
		}
		_, _ = h.Write(b) // never fails
	}
	return h.Sum([]byte{0x52, 8}), nil
}

type chain struct {
	name     string
	kind     nftables.ChainType // none: a chain that others jump to
	hook     *nftables.ChainHook
	priority int32
	rules    []rule
}

// chains are in an order in which those that are jumped to come first. Services' node ports, at priority -100, come before ports of pods.
func (f *family) chains() []chain {
	local := join(f.fibType(unix.RTN_LOCAL), verdict(expr.VerdictJump, "hostports"))
	out := []chain{
		{name: "hostports", rules: []rule{
			join(load(f.daddr(), l4proto, dport), f.dnat("addresses")),
			join(load(l4proto, dport), f.dnat("ports")),
		}},
		{name: "loopback", rules: []rule{
			join(load(f.daddr(), l4proto, dport), f.dnat("addresses")),
		}},
		{name: "prerouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting, priority: -95, rules: []rule{local}},
		{name: "output", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, priority: -95, rules: []rule{
			// Ports of all addresses are not those of 127.0.0.1, unless there is an element for it.
			join(f.loopback(f.daddr()), verdict(expr.VerdictGoto, "loopback")),
			local,
		}},
		{name: "postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: 100, rules: []rule{
			join(translated(), load(f.saddr(), f.daddr()), rule{&expr.Lookup{SourceRegister: 1, SetName: "hairpin"}, &expr.Masq{}}),
		}},
	}
	if f.is4() {
		// route_localnet, which ports of 127.0.0.1 need, would let pods and neighbours reach what listens there.
		out = append(out, chain{name: "guard", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: -300, rules: []rule{
			join(notFrom("lo"), f.loopback(f.daddr()), verdict(expr.VerdictDrop, "")),
		}})
	}
	return out
}

// field is a part of a packet that is loaded into a register.
type field struct {
	size int
	load func(reg uint32) expr.Any
}

func payload(base expr.PayloadBase, offset uint32, size int) field {
	return field{size, func(reg uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: uint32(size)}
	}}
}

func (f *family) saddr() field { return payload(expr.PayloadBaseNetworkHeader, f.src, f.size) }
func (f *family) daddr() field {
	return payload(expr.PayloadBaseNetworkHeader, f.src+uint32(f.size), f.size)
}

var (
	dport   = payload(expr.PayloadBaseTransportHeader, 2, 2)
	l4proto = field{1, func(reg uint32) expr.Any { return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg} }}
)

func join(parts ...rule) rule {
	var r rule
	for _, p := range parts {
		r = append(r, p...)
	}
	return r
}

// register is the number of the register that holds what lies offset bytes behind the beginning of the first. nft(8) prints
// only rules that call the first quarter of a 16-byte register by the number of the whole.
func register(offset int) uint32 {
	if offset%16 == 0 {
		return unix.NFT_REG_1 + uint32(offset/16)
	}
	return unix.NFT_REG32_00 + uint32(offset/4)
}

// load puts fields one behind the other, as keys of concatenated types are.
func load(fields ...field) rule {
	var r rule
	offset := 0
	for _, f := range fields {
		r = append(r, f.load(register(offset)))
		offset += (f.size + 3) &^ 3
	}
	return r
}

// dnat leads to where a map says.
func (f *family) dnat(name string) rule {
	return rule{
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.id), RegAddrMin: register(0), RegProtoMin: register(f.size)},
	}
}

func (f *family) fibType(t uint32) rule {
	return rule{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native(t)}}
}

// loopback holds for 127.0.0.0/8, or ::1.
func (f *family) loopback(of field) rule {
	if f.is4() {
		return join(load(of), rule{
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{255, 0, 0, 0}, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{127, 0, 0, 0}},
		})
	}
	return join(load(of), rule{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append(make([]byte, 15), 1)}})
}

// translated holds for connections whose destination was changed.
func translated() rule {
	return rule{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(1 << 5), Xor: make([]byte, 4)}, // IPS_DST_NAT
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func notFrom(ifname string) rule {
	return rule{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: append([]byte(ifname), make([]byte, 16-len(ifname))...)}}
}

func verdict(kind expr.VerdictKind, chain string) rule {
	return rule{&expr.Verdict{Kind: kind, Chain: chain}}
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }
