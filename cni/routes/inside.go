package routes

import (
	"net/netip"
	"slices"

	"github.com/ropewalk-net/ropewalk/cni/overlay"
)

// inside are the ranges of other nodes' pods and their own addresses, in order: nodes that change cost no sorting.
type inside struct {
	of   map[string][]netip.Prefix // by nodes' names
	list []netip.Prefix
}

func prefixesOf(n overlay.Node) (out []netip.Prefix) {
	for _, p := range n.PodCIDRs {
		out = append(out, p.Masked())
	}
	for _, a := range n.Addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

func (x *inside) reset(nodes []overlay.Node) {
	*x = inside{of: make(map[string][]netip.Prefix, len(nodes))}
	for _, n := range nodes {
		x.of[n.Name] = prefixesOf(n)
		x.list = append(x.list, x.of[n.Name]...)
	}
	slices.SortFunc(x.list, netip.Prefix.Compare)
}

// change takes nodes that have come, changed, or gone, which have no Node then.
func (x *inside) change(nodes map[string]overlay.Node) {
	for name, n := range nodes {
		for _, p := range x.of[name] {
			if i, ok := slices.BinarySearchFunc(x.list, p, netip.Prefix.Compare); ok {
				x.list = slices.Delete(x.list, i, i+1)
			}
		}
		delete(x.of, name)
		if n.Name == "" {
			continue
		}
		x.of[name] = prefixesOf(n)
		x.list = insert(x.list, x.of[name])
	}
}

// with returns the list and others, in order.
func (x *inside) with(others []netip.Prefix) []netip.Prefix {
	return insert(slices.Grow(slices.Clone(x.list), len(others)), others)
}

func insert(list, what []netip.Prefix) []netip.Prefix {
	for _, p := range what {
		i, _ := slices.BinarySearchFunc(list, p.Masked(), netip.Prefix.Compare)
		list = slices.Insert(list, i, p.Masked())
	}
	return list
}
