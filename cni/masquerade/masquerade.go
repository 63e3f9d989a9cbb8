// Package masquerade gives packets that pods send out of the cluster the node's address, since nobody out there has a route to a pod: what
// ip-masq-agent does. It has nftables tables of its own, of one rule each, and touches no others.
package masquerade

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
)

// Table is what the tables are called, of the families ip and ip6.
const Table = "ropewalk-masquerade"

// Config says whose packets are meant.
type Config struct {
	// Pods are the ranges that this node's pods have addresses from.
	Pods []netip.Prefix
	// Inside are destinations that see the pods' own addresses: the cluster's pods, services and nodes, and what the operator names. Link-local
	// addresses and groups are always inside.
	Inside []netip.Prefix
}

// always are destinations that a node does not forward to, or that have no single receiver.
var always = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// Apply makes the tables of the network namespace of the calling thread what a Config says, in one transaction for both families:
// packets see the tables of before, or those of after.
func Apply(c Config) error {
	conn, err := nftables.New(nftables.WithSockOptions(roomy))
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	for _, f := range families {
		if err := f.add(conn, c); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables transaction: %w", err)
	}
	return nil
}

// roomy has a socket take a transaction for thousands of nodes at once; the kernel takes no more than what has room in its buffer.
func roomy(s *netlink.Conn) error { return s.SetWriteBuffer(16 << 20) }

// Remove takes the tables away. It is no error that there are none.
func Remove() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	for _, f := range families {
		table := conn.AddTable(&nftables.Table{Name: Table, Family: f.id}) // so that there is one to delete
		conn.DelTable(table)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables transaction: %w", err)
	}
	return nil
}

// family is what is different in the tables of IPv4 and IPv6.
type family struct {
	id       nftables.TableFamily
	addr     nftables.SetDatatype
	src, dst uint32 // where in the IP header
}

var families = []family{
	{nftables.TableFamilyIPv4, nftables.TypeIPAddr, 12, 16}, {nftables.TableFamilyIPv6, nftables.TypeIP6Addr, 8, 24},
}

func (f family) add(conn *nftables.Conn, c Config) error {
	table := &nftables.Table{Name: Table, Family: f.id}
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	pods, inside := f.set(table, "pods"), f.set(table, "inside")
	err := errors.Join(fill(conn, pods, f.elements(c.Pods)), fill(conn, inside, f.elements(slices.Concat(always, c.Pods, c.Inside))))
	if err != nil {
		return fmt.Errorf("sets: %w", err)
	}
	chain := conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	in := func(offset uint32, set *nftables.Set, not bool) []expr.Any {
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addr.Bytes},
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: not},
		}
	}
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(
		in(f.src, pods, false), in(f.dst, inside, true),
		[]expr.Any{&expr.Masq{FullyRandom: true}}, // two pods' connections from the same port do not get in each other's way (kernel doc: nf_nat)
	)})
	return nil
}

// perMessage is how many elements a message has at most: they are one attribute, whose length is a number of 16 bits.
const perMessage = 400

func fill(conn *nftables.Conn, set *nftables.Set, elements []nftables.SetElement) error {
	err := conn.AddSet(set, nil)
	for chunk := range slices.Chunk(elements, perMessage) {
		err = errors.Join(err, conn.SetAddElements(set, chunk))
	}
	return err
}

func (f family) set(table *nftables.Table, name string) *nftables.Set {
	return &nftables.Set{Table: table, Name: name, KeyType: f.addr, Interval: true, KeyByteOrder: binaryutil.BigEndian}
}

// elements returns those of a family: the first address of each range and the one behind it, ranges that overlap or touch made one.
func (f family) elements(ps []netip.Prefix) []nftables.SetElement {
	var own []netip.Prefix
	for _, p := range ps {
		if p.IsValid() && p.Addr().BitLen() == int(f.addr.Bytes)*8 {
			own = append(own, p.Masked())
		}
	}
	slices.SortFunc(own, netip.Prefix.Compare)
	var out []nftables.SetElement
	var end netip.Addr // behind the range that is open
	open := false
	for _, p := range own {
		if open && (!end.IsValid() || p.Addr().Compare(end) <= 0) {
			if next := behind(p); end.IsValid() && (!next.IsValid() || next.Compare(end) > 0) {
				end = next
			}
			continue
		}
		if open {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
		out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		end, open = behind(p), true
	}
	if open && end.IsValid() {
		out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
	}
	return out
}

// behind returns the address that follows a range, the zero Addr if there is none.
func behind(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a.Next()
}

// There reports whether the tables are there, as far as their rules are: that nobody has flushed them.
func There() bool {
	conn, err := nftables.New()
	if err != nil {
		return false
	}
	for _, f := range families {
		table := &nftables.Table{Name: Table, Family: f.id}
		rules, err := conn.GetRules(table, &nftables.Chain{Name: "postrouting", Table: table})
		if err != nil || len(rules) != 1 {
			return false
		}
	}
	return true
}
