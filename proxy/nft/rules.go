package nft

import (
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// family is what differs between the tables of IPv4 and IPv6.
type family struct {
	id   nftables.TableFamily
	addr nftables.SetDatatype
	size int    // of an address, in bytes
	src  uint32 // offset of the source address in the IP header
}

var (
	ipv4 = family{nftables.TableFamilyIPv4, nftables.TypeIPAddr, 4, 12}
	ipv6 = family{nftables.TableFamilyIPv6, nftables.TypeIP6Addr, 16, 8}
)

// field is a part of a packet, or of what the kernel knows of it, that is loaded into a register.
type field struct {
	size int
	load func(reg uint32) expr.Any
}

func (f family) saddr() field { return payload(expr.PayloadBaseNetworkHeader, f.src, f.size) }
func (f family) daddr() field {
	return payload(expr.PayloadBaseNetworkHeader, f.src+uint32(f.size), f.size)
}

var (
	dport    = payload(expr.PayloadBaseTransportHeader, 2, 2)
	l4proto  = field{1, func(reg uint32) expr.Any { return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg} }}
	mark     = field{4, func(reg uint32) expr.Any { return &expr.Meta{Key: expr.MetaKeyMARK, Register: reg} }}
	iifname  = field{16, func(reg uint32) expr.Any { return &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg} }}
	ctState  = field{4, func(reg uint32) expr.Any { return &expr.Ct{Key: expr.CtKeySTATE, Register: reg} }}
	ctStatus = field{4, func(reg uint32) expr.Any { return &expr.Ct{Key: expr.CtKeySTATUS, Register: reg} }}
	// The packet's priority, which is the place for what one rule tells the next: it means nothing before the packet is
	// routed (forwarding sets it anew in IPv4), and chains of the type nat see a connection's first packet only.
	priority = field{4, func(reg uint32) expr.Any { return &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg} }}
)

// What google/nftables has no names for (include/uapi/linux/netfilter).
const (
	opUpdate          = 1
	opDelete          = 2
	ctStatusDNAT      = 1 << 5
	rejectUnreachable = 0
	rejectTCPReset    = 1
)

// portUnreachable is the code of that ICMP message.
func (f family) portUnreachable() uint8 {
	if f.size == 4 {
		return 3
	}
	return 4
}

func payload(base expr.PayloadBase, offset uint32, size int) field {
	return field{size, func(reg uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: uint32(size)}
	}}
}

// random is a number from offset to offset+n-1.
func random(n, offset uint32) field {
	return field{4, func(reg uint32) expr.Any {
		return &expr.Numgen{Register: reg, Modulus: n, Type: unix.NFT_NG_RANDOM, Offset: offset}
	}}
}

// register is the number of the register that holds what lies offset bytes behind the beginning of the first. nft(8) prints
// only rules that call the first quarter of a 16-byte register by the number of the whole.
func register(offset int) uint32 {
	if offset%16 == 0 {
		return unix.NFT_REG_1 + uint32(offset/16)
	}
	return unix.NFT_REG32_00 + uint32(offset/4)
}

func pad(size int) int { return (size + 3) &^ 3 }

// load puts fields one behind the other, as keys of concatenated types are.
func load(fields ...field) []expr.Any {
	var es []expr.Any
	offset := 0
	for _, f := range fields {
		es = append(es, f.load(register(offset)))
		offset += pad(f.size)
	}
	return es
}

func join(parts ...[]expr.Any) []expr.Any {
	var es []expr.Any
	for _, p := range parts {
		es = append(es, p...)
	}
	return es
}

func in(set string) []expr.Any { return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: set}} }

func notIn(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: set, Invert: true}}
}

// through replaces what is in the registers by what a map has for it; the rule ends if it has nothing.
func through(name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: name}}
}

// vmap does what a map of verdicts says.
func vmap(name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: name}}
}

func (f family) dnat() []expr.Any {
	return []expr.Any{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(f.id),
		RegAddrMin: register(0), RegProtoMin: register(f.size),
	}}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{FullyRandom: true}} }

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

func drop() []expr.Any             { return verdict(expr.VerdictDrop, "") }
func ret() []expr.Any              { return verdict(expr.VerdictReturn, "") }
func jump(chain string) []expr.Any { return verdict(expr.VerdictJump, chain) }
func reject(typ uint32, code uint8) []expr.Any {
	return []expr.Any{&expr.Reject{Type: typ, Code: code}}
}

func equal(f field, value []byte) []expr.Any {
	return append(load(f), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value})
}

// anyBit holds if f has one of bits, noBit if it has none.
func anyBit(f field, bits uint32) []expr.Any { return bitTest(f, bits, expr.CmpOpNeq) }
func noBit(f field, bits uint32) []expr.Any  { return bitTest(f, bits, expr.CmpOpEq) }

func bitTest(f field, bits uint32, op expr.CmpOp) []expr.Any {
	return append(load(f), bitwise(bits, 0), &expr.Cmp{Op: op, Register: 1, Data: make([]byte, 4)})
}

func bitwise(mask, xor uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(mask), Xor: native(xor)}
}

// setMark changes the packet's mark: first what is in mask is kept, then xor is applied.
func setMark(mask, xor uint32) []expr.Any {
	return append(load(mark), bitwise(mask, xor), &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
}

func setPriority() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1}}
}

func setPriorityTo(v uint32) []expr.Any {
	return append([]expr.Any{&expr.Immediate{Register: 1, Data: native(v)}}, setPriority()...)
}

// ifname is an interface's name as the kernel compares it; one that ends in * stands for all that begin so.
func ifname(name string) []byte {
	if prefix, ok := strings.CutSuffix(name, "*"); ok {
		return []byte(prefix)
	}
	return append([]byte(name), make([]byte, 16-len(name))...)
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }
