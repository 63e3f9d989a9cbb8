package masquerade

import (
	"encoding/binary"
	"errors"
	"reflect"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// generation returns the number that the kernel gives to the rules of a network namespace. Each transaction, of anybody, makes another.
func generation() (uint32, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	answer, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   make([]byte, 4), // struct nfgenmsg
	})
	if err != nil {
		return 0, err
	}
	for _, m := range answer {
		attributes, err := netlink.NewAttributeDecoder(m.Data[min(4, len(m.Data)):])
		if err != nil {
			return 0, err
		}
		attributes.ByteOrder = binary.BigEndian
		for attributes.Next() {
			if attributes.Type() == unix.NFTA_GEN_ID {
				return attributes.Uint32(), attributes.Err()
			}
		}
	}
	return 0, errors.New("the kernel does not tell the generation of its rules")
}

// read returns the elements of the sets and the generation of the rules, 0 if that changes meanwhile. It returns false if the tables are not
// there, or are not as they are made here.
func read() (s sets, g uint32, ok bool) {
	conn, err := nftables.New()
	if err != nil {
		return s, 0, false
	}
	before, err := generation()
	if err != nil {
		return s, 0, false
	}
	for i, f := range families {
		if !f.made(conn) {
			return s, 0, false
		}
		for j, name := range setNames {
			list, err := conn.GetSetElements(f.set(f.table(), name))
			if err != nil {
				return s, 0, false
			}
			if s[i][j], ok = spansOf(list); !ok {
				return s, 0, false
			}
		}
	}
	if after, err := generation(); err == nil && after == before {
		g = after
	}
	return s, g, true
}

// made reports whether the table, the chain and the rule are those that make makes.
func (f family) made(conn *nftables.Conn) bool {
	table := f.table()
	have, err := conn.ListTableOfFamily(Table, f.id)
	if err != nil || have.Flags != 0 { // dormant, say
		return false
	}
	want := f.chain(table)
	chain, err := conn.ListChain(table, want.Name)
	if err != nil || chain.Type != want.Type || chain.Hooknum == nil || *chain.Hooknum != *want.Hooknum || chain.Priority == nil || *chain.Priority != *want.Priority ||
		chain.Policy == nil || *chain.Policy != nftables.ChainPolicyAccept {
		return false
	}
	rules, err := conn.GetRules(table, want)
	return err == nil && len(rules) == 1 && reflect.DeepEqual(rules[0].Exprs, f.rule(f.set(table, setNames[0]), f.set(table, setNames[1])))
}
