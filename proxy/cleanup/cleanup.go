// Package cleanup takes away what another service proxy has left in a network namespace, so that it does not stand in the way
// of this one. What is not that proxy's stays, the kubelet's chains among it.
//
// Ropewalk's own tables are removed by proxy/nft.
package cleanup

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// KubeProxy removes what kube-proxy has left in the network namespace of the calling thread, in whichever mode it ran:
//
//   - the nftables tables ip kube-proxy and ip6 kube-proxy;
//   - its chains in iptables' tables of both families, and the rules that go to them. Those of iptables-nft are removed through
//     netlink. Those of the older iptables need the commands iptables-legacy-save and iptables-legacy-restore;
//   - the link kube-ipvs0, IPVS virtual servers that have one of its addresses, and ip sets.
//
// It returns what it has removed, a line each, with an error, too. kube-proxy must not be running. It is no error that
// there is nothing, that the kernel lacks one of these, or that there is no iptables-legacy-save.
//
// IPVS virtual servers at the node's own addresses (node ports) stay, for others may have made them: new connections do not come to
// them where a proxy translates them before. kube-proxy --cleanup removes all virtual servers, whoever's they are.
func KubeProxy(ctx context.Context) (removed []string, err error) {
	for _, part := range []func(context.Context) ([]string, error){tables, iptablesNFT, iptablesLegacy, ipvsServers, ipsets} {
		if ctx.Err() != nil {
			return removed, errors.Join(err, ctx.Err())
		}
		names, failed := part(ctx)
		removed, err = append(removed, names...), errors.Join(err, failed)
	}
	return removed, err
}

// families are nftables' families by iptables' names.
var families = []struct {
	id   nftables.TableFamily
	name string
}{{nftables.TableFamilyIPv4, "ip"}, {nftables.TableFamilyIPv6, "ip6"}}

// tables removes the tables of kube-proxy's nftables mode.
func tables(context.Context) (removed []string, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	for _, f := range families {
		list, err := listTables(conn, f.id)
		if err != nil {
			return removed, err
		}
		for _, t := range list {
			if t.Name != "kube-proxy" {
				continue
			}
			conn.DelTable(t)
			if err := conn.Flush(); err != nil {
				return removed, fmt.Errorf("nftables: removing table %s kube-proxy: %w", f.name, err)
			}
			removed = append(removed, "nftables table "+f.name+" kube-proxy")
		}
	}
	return removed, nil
}

// listTables returns the tables of a family, none if the kernel has no nftables.
func listTables(conn *nftables.Conn, family nftables.TableFamily) ([]*nftables.Table, error) {
	list, err := conn.ListTablesOfFamily(family)
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("nftables: listing tables: %w", err)
	}
	return list, nil
}

// absent reports whether an error is what netlink says where the kernel lacks something.
func absent(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.EAFNOSUPPORT)
}
