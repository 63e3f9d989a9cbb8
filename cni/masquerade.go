package cni

import (
	"bytes"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
)

// masqueradeTable is what package masquerade makes for the node, as far as it is looked at here: a table of each family, with a chain that has a
// rule, and a set of the ranges that it is for.
const (
	masqueradeTable = "ropewalk-masquerade"
	masqueradeChain = "postrouting"
	masqueradeSet   = "pods"
)

// checkMasquerade says for which of a pod's addresses packets that leave the cluster would not get the node's.
func checkMasquerade(addrs []netip.Addr) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	for _, a := range addrs {
		table, kind := &nftables.Table{Name: masqueradeTable, Family: nftables.TableFamilyIPv6}, nftables.TypeIP6Addr
		if a.Is4() {
			table.Family, kind = nftables.TableFamilyIPv4, nftables.TypeIPAddr
		}
		rules, err := conn.GetRules(table, &nftables.Chain{Name: masqueradeChain, Table: table})
		if err != nil || len(rules) == 0 {
			return fmt.Errorf("masquerade of %s: there is no rule in table %s, which ropewalk routes makes", a, masqueradeTable)
		}
		pods, err := conn.GetSetElements(&nftables.Set{Table: table, Name: masqueradeSet, KeyType: kind})
		if err != nil || !covered(pods, a) {
			return fmt.Errorf("masquerade of %s: it is not among the pods of table %s", a, masqueradeTable)
		}
	}
	return nil
}

// covered says whether an address is in one of the intervals, which do not overlap.
func covered(elements []nftables.SetElement, a netip.Addr) bool {
	open := 0
	for _, e := range elements {
		switch {
		case bytes.Compare(e.Key, a.AsSlice()) > 0:
		case e.IntervalEnd:
			open--
		default:
			open++
		}
	}
	return open > 0
}
