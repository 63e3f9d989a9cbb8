package nft

import (
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
)

// TableName is what the tables are called, of the families ip and ip6.
const TableName = "ropewalk"

// set is one of the maps and sets that a table has.
type set int

const (
	frontendsMap    set = iota // where to -> number of the chain that picks a backend
	internalMap                // the same, for connections of pods and the host
	variantsMap                // number of a chain -> goto it
	backendsMap                // where to, index -> backend
	slotsMap                   // where to, index -> slot of a backend, for frontends with affinity
	membersMap                 // where to, slot -> backend
	affinityMap                // client, where to -> slot. The kernel writes it
	sourcesSet                 // clients that are let in, where to
	emptySet                   // where to: rejected, for want of backends
	clusterIPsSet              // addresses of services
	serviceCIDRsSet            // ranges that such addresses are taken from
	clusterCIDRsSet            // ranges of pods' addresses
	hairpinSet                 // a pod of this node, the same again
	numSets
)

// internalOffset is the index of a frontend's first internal backend; the others begin at 0.
const internalOffset = frontends.MaxBackends + 1

// maxClients is how many clients affinity is kept for in each family; further ones are spread like those of others.
var maxClients uint32 = 1 << 18

type setSpec struct {
	name     string
	key      []nftables.SetDatatype
	data     []nftables.SetDatatype // nil for a set
	interval bool
	dynamic  bool // the kernel adds to it
}

// specs describes the sets of a family. Indices and numbers are of type mark, since that is a type of four bytes that the
// nft(8) of every distribution can print as part of a key.
func (f family) specs() [numSets]setSpec {
	proto, port, number := nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark
	where := []nftables.SetDatatype{f.addr, proto, port}
	indexed := append(where[:3:3], number)
	client := append([]nftables.SetDatatype{f.addr}, where...)
	one := func(t nftables.SetDatatype) []nftables.SetDatatype { return []nftables.SetDatatype{t} }
	backend := []nftables.SetDatatype{f.addr, port}
	return [numSets]setSpec{
		frontendsMap:    {name: "frontends", key: where, data: one(number)},
		internalMap:     {name: "internal", key: where, data: one(number)},
		variantsMap:     {name: "variants", key: one(number), data: one(nftables.TypeVerdict)},
		backendsMap:     {name: "backends", key: indexed, data: backend},
		slotsMap:        {name: "slots", key: indexed, data: one(number)},
		membersMap:      {name: "members", key: indexed, data: backend},
		affinityMap:     {name: "affinity", key: client, data: one(number), dynamic: true},
		sourcesSet:      {name: "sources", key: client, interval: true},
		emptySet:        {name: "empty", key: where},
		clusterIPsSet:   {name: "cluster-ips", key: one(f.addr)},
		serviceCIDRsSet: {name: "service-cidrs", key: one(f.addr), interval: true},
		clusterCIDRsSet: {name: "cluster-cidrs", key: one(f.addr), interval: true},
		hairpinSet:      {name: "hairpin", key: []nftables.SetDatatype{f.addr, f.addr}},
	}
}

// keySize is how many bytes of an element in a batch are its key: in a set of ranges, the first key of them and the last.
func (s setSpec) keySize() int {
	if s.interval {
		return 2 * width(s.key)
	}
	return width(s.key)
}

// size is how many bytes an element has in a batch.
func (s setSpec) size() int { return s.keySize() + width(s.data) }

// width is how many bytes fields take, each padded to four if there are several.
func width(fields []nftables.SetDatatype) int {
	n := 0
	for _, f := range fields {
		n += pad(int(f.Bytes))
	}
	return n
}

// concatType is the number that nft(8) has for a type of fields: six bits each.
func concatType(fields []nftables.SetDatatype) uint32 {
	var n uint32
	for _, f := range fields {
		n = n<<nftables.SetConcatTypeBits | f.GetNFTMagic()
	}
	return n
}

// byteOrder tells nft(8) what to print a field by. In keys of several it knows by itself.
func byteOrder(fields []nftables.SetDatatype) uint32 {
	if len(fields) == 1 && fields[0] == nftables.TypeMark {
		return hostOrder
	}
	return networkOrder
}

// variant is what a chain that picks a backend does. Frontends that need the same share the chain.
type variant struct {
	count      uint32
	internal   bool
	masquerade frontends.Masquerade
	guarded    bool
	affinity   time.Duration
}

// dropAll is the variant of frontends without backends that drop.
var dropAll = variant{}

func (v variant) chain() string {
	switch {
	case v == dropAll:
		return "drop-all"
	case v.count == 0:
		return "guarded"
	}
	name := fmt.Sprintf("pick-%d", v.count)
	switch v.masquerade {
	case frontends.Outside:
		name += "-outside"
	case frontends.Always:
		name += "-masquerade"
	}
	if v.internal {
		name += "-internal"
	}
	if v.guarded {
		name += "-guarded"
	}
	if v.affinity != 0 {
		name += fmt.Sprintf("-sticky-%ds", int(v.affinity/time.Second))
	}
	return name
}

type rule []expr.Any

// rules returns the variant's chain.
func (v variant) rules(f family, n *Node) []rule {
	var rs []rule
	if v == dropAll {
		return []rule{drop()}
	}
	if v.guarded {
		rs = append(rs, join(load(f.saddr(), f.daddr(), l4proto, dport), notIn("sources"), drop()))
	}
	if v.count == 0 { // as if no frontend had been found: it is rejected later
		return rs
	}
	switch v.masquerade {
	case frontends.Outside:
		rs = append(rs, jump("mark-outside"))
	case frontends.Always:
		rs = append(rs, n.setMark())
	}
	offset := uint32(0)
	if v.internal {
		offset = internalOffset
	}
	pick := load(f.daddr(), l4proto, dport, random(v.count, offset))
	if v.affinity == 0 {
		rs = append(rs, join(pick, through("backends"), f.dnat()))
		if v.count > 1 {
			// The count is the one of the moment before, if the sets have just changed. The first backend is always there.
			rs = append(rs, join(load(f.daddr(), l4proto, dport, random(1, offset)), through("backends"), f.dnat()))
		}
	} else {
		rs = append(rs, v.sticky(f, pick)...)
	}
	return append(rs, drop())
}

// sticky returns rules that ask for the client's slot. A slot without a backend is forgotten and another one drawn. The
// packet's priority holds what the next rule needs: nft(8) 1.0.6 can print a lookup only if its result is used at once.
func (v variant) sticky(f family, pick []expr.Any) []rule {
	client := load(f.saddr(), f.daddr(), l4proto, dport)
	reg := register(2*f.size + 8) // behind the key
	dynset := func(op uint32, timeout time.Duration) rule {
		return join(client, []expr.Any{priority.load(reg), &expr.Dynset{
			SrcRegKey: 1, SrcRegData: reg, SetName: "affinity", Operation: op, Timeout: timeout,
		}})
	}
	draw := rule(join(pick, through("slots"), setPriority()))
	keep := dynset(opUpdate, v.affinity) // an entry that is there keeps its slot and begins its time anew
	look := rule(join(client, through("affinity"), setPriority()))
	nat := rule(join(load(f.daddr(), l4proto, dport, priority), through("members"), f.dnat()))
	forget := dynset(opDelete, 0)
	return []rule{draw, keep, look, nat, forget, draw, keep, nat}
}

// chain is a chain that every table has.
type chain struct {
	name     string
	kind     nftables.ChainType // empty: called from others
	hook     *nftables.ChainHook
	priority int32
	rules    []rule
}

// chains returns the chains of a table but for those of the variants in use.
func (f family) chains(n *Node) []chain {
	where := load(f.daddr(), l4proto, dport)
	fromCluster := func(action []expr.Any) []rule {
		rs := []rule{join(load(f.saddr()), in("cluster-cidrs"), action)}
		for _, name := range n.Interfaces {
			rs = append(rs, join(equal(iifname, ifname(name)), action))
		}
		return rs
	}
	var outside []rule
	if n.knowsPods(f) {
		outside = append(fromCluster(ret()), n.setMark())
	}
	one := func(parts ...[]expr.Any) rule { return join(parts...) }
	dispatch := func(name string) []rule {
		return []rule{one(where, through(name), setPriority()), one(load(priority), vmap("variants"))}
	}
	undelivered := []rule{
		one(where, in("empty"), jump("reject")),
		one(load(f.daddr()), in("cluster-ips"), jump("reject")),
		one(load(f.daddr()), in("service-cidrs"), drop()),
	}
	isNew := []rule{one(anyBit(ctState, expr.CtStateBitNEW), jump("undelivered"))}
	// A lookup that runs while the kernel replaces the element it looks for can find neither the old nor the new one. Services
	// are looked up twice, so that such a packet is not taken for one that is meant for the node, which would reject it.
	return []chain{
		{name: "reject", rules: []rule{
			one(equal(l4proto, []byte{6}), reject(rejectTCPReset, 0)),
			one(reject(rejectUnreachable, f.portUnreachable())),
		}},
		{name: "undelivered", rules: undelivered},
		{name: "mark-outside", rules: outside},
		{name: "internal", rules: dispatch("internal")},
		{name: "services", rules: dispatch("frontends")},
		{name: "nat-prerouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting, priority: -100,
			rules: append(fromCluster(jump("internal")), jump("services"), jump("services"))},
		{name: "nat-output", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, priority: -100,
			rules: []rule{jump("internal"), jump("services"), jump("services")}},
		{name: "nat-postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: 100, rules: []rule{
			one(anyBit(ctStatus, ctStatusDNAT), setPriorityTo(0)),
			one(load(f.saddr(), f.daddr()), in("hairpin"), masquerade()),
			one(noBit(mark, n.mark()), ret()),
			setMark(^uint32(0), n.mark()), // off again: a tunnel's packets inherit it
			masquerade(),
		}},
		{name: "filter-prerouting", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: -90, rules: isNew},
		{name: "filter-output", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, priority: -90, rules: isNew},
	}
}
