// Package antispoof drops what pods in routed mode send from IPv6 addresses that are not theirs: what a pod may send from is what the node
// has a route to by the pod's interface. For IPv4 the kernel does the same by itself (rp_filter, which is strict where an interface has no
// address, even if it is loose).
//
// It has an nftables table of its own, and touches no others. Pods on a bridge are not meant: there one address is as good as another.
package antispoof

import (
	"fmt"
	"reflect"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/ropewalk-net/ropewalk/cni/link"
)

// Table is what the table is called, of the family ip6.
const Table = "ropewalk-antispoof"

// metaIIFKind is NFT_META_IIFKIND (include/uapi/linux/netfilter/nf_tables.h), of Linux 5.1, which the library has no name for.
const metaIIFKind expr.MetaKey = 26

// Apply makes the table what it is to be, in the network namespace of the calling thread, and reports whether there was anything to change.
// A kernel that cannot look routes up in rules (nft_fib) refuses it.
func Apply() (changed bool, err error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("netlink socket: %w", err)
	}
	table, chain := layout()
	if made(conn, table, chain) {
		return false, nil
	}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	conn.AddTable(table)
	conn.AddChain(chain)
	for _, r := range rules() {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r})
	}
	if err := conn.Flush(); err != nil {
		return false, fmt.Errorf("nftables transaction: %w", err)
	}
	return true, nil
}

// Remove takes the table away. It is no error that there is none.
func Remove() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	table, _ := layout()
	if _, err := conn.ListTableOfFamily(Table, table.Family); err != nil {
		return nil // nor is there one where the kernel has no nftables
	}
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables transaction: %w", err)
	}
	return nil
}

// layout returns the table and its chain, which is ahead of connection tracking: what is dropped is not tracked.
func layout() (*nftables.Table, *nftables.Chain) {
	t := &nftables.Table{Name: Table, Family: nftables.TableFamilyIPv6}
	return t, &nftables.Chain{Name: "prerouting", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw}
}

// rules let pass what is not of a pod's interface, and what is said on a link before there is an address, or from one that is of the link
// alone: it is never forwarded (RFC 4291, sections 2.5.2 and 2.5.6). What else has no route back to where it comes from is dropped, and counted.
func rules() [][]expr.Any {
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	source := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16}
	first := func(b ...byte) []byte { return append(b, make([]byte, 16-len(b))...) }
	return [][]expr.Any{
		{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte(link.Prefix)}, accept},
		{&expr.Meta{Key: metaIIFKind, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: first([]byte("veth")...)}, accept}, // a bridge, the tunnel
		{
			source, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: first(0xff, 0xc0), Xor: first()},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: first(0xfe, 0x80)}, accept,
		},
		{source, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: first()}, accept},
		{
			&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true, ResultOIF: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
			&expr.Counter{},
			&expr.Verdict{Kind: expr.VerdictDrop},
		},
	}
}

// made reports whether the table, the chain and the rules are as they are made here.
func made(conn *nftables.Conn, table *nftables.Table, want *nftables.Chain) bool {
	have, err := conn.ListTableOfFamily(Table, table.Family)
	if err != nil || have.Flags != 0 { // dormant, say
		return false
	}
	chain, err := conn.ListChain(table, want.Name)
	if err != nil || chain.Type != want.Type || chain.Hooknum == nil || *chain.Hooknum != *want.Hooknum || chain.Priority == nil || *chain.Priority != *want.Priority ||
		chain.Policy == nil || *chain.Policy != nftables.ChainPolicyAccept {
		return false
	}
	got, err := conn.GetRules(table, want)
	wanted := rules()
	if err != nil || len(got) != len(wanted) {
		return false
	}
	for i, r := range got {
		for j, e := range r.Exprs {
			if _, ok := e.(*expr.Counter); ok {
				r.Exprs[j] = &expr.Counter{}
			}
		}
		if !reflect.DeepEqual(r.Exprs, wanted[i]) {
			return false
		}
	}
	return true
}
