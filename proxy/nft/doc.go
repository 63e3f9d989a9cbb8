// Package nft puts frontends into the kernel: two nftables tables, ip ropewalk and ip6 ropewalk, whose chains are the same for
// every service and whose maps are written through netlink, a transaction for all that changed. docs/proxy-rules.md shows them
// and what a packet passes.
//
// state.go decides, without a kernel, what a change means for the elements of the sets, and compare.go what is to be changed in a
// table that was found; layout.go says what sets and chains there are; dump.go understands what the kernel lists, and message.go
// writes what it is told; socket.go carries both. table.go makes transactions of that.
//
// What an operator sees is part of the interface: nft list ruleset prints every rule, with the nft(8) 1.0.6 of Debian 12, too.
//
// It does not choose backends, watch the node, or delete conntrack entries of UDP backends that are gone: established flows stay
// with theirs. Frontends with Affinity keep it each for itself, so that a client of a service's ClusterIP and of its node port
// may have two backends. Two agents that write at the same time undo each other's work.
package nft
