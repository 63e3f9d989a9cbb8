// Package portmap leads ports of the node to ports of its pods (hostPort), through two nftables tables, ip ropewalk-hostports and
// ip6 ropewalk-hostports. A pod is elements of maps that all share; an element's comment says whose it is, so that nothing has to be
// remembered elsewhere. Each Add looks whether the rules are right, and writes them if they are not.
//
// plan.go decides, without a kernel, which elements are needed, which go, and what is in the way; rules.go says what sets and rules there
// are; table.go makes transactions of that; conntrack.go forgets UDP flows that would go on as before.
//
// It sets no sysctls. Ports of 127.0.0.1 need route_localnet on the host's interface to the pod, and there are none of ::1, for which
// Linux has no such thing.
package portmap
