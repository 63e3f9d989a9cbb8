package nodes

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

// mostResident is what an agent among fifty may need of memory for itself, in bytes.
const mostResident = 40 << 20

// TestMany holds that the pods of fifty nodes reach each other, and go on to when ten leave and five come.
func TestMany(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	t.Setenv("GOMAXPROCS", "1") // for the agents, which all run on this machine
	c, nodes := start(t, Spec{}, 50, false)
	pods := map[*Node]*Pod{}
	for _, n := range nodes {
		pods[n] = serving(n, "a")
	}
	see(t, ring(nodes, pods)...)
	for _, n := range nodes {
		if r := n.Resident(); r > mostResident {
			t.Errorf("%s: %d bytes resident", n.Name, r)
		}
	}
	var left []string
	for _, n := range nodes[10:20] {
		n.Leave()
		n.Stop(syscall.SIGKILL)
		left = slices.Concat(left, words(n.Addrs[:1]), n.CIDRs)
	}
	all := slices.Concat(nodes[:10], nodes[20:])
	for i := range 5 {
		n := c.Add(100+i, i == 4)
		n.Start()
		all = slices.Insert(all, 9*i, n)
	}
	for _, n := range all {
		n.Ready()
		if pods[n] == nil {
			pods[n] = serving(n, "a")
		}
	}
	see(t, ring(all, pods)...)
	for _, n := range all {
		Soon(t, func() error {
			kernel := n.Kernel()
			for _, w := range left {
				if strings.Contains(kernel, w) {
					return fmt.Errorf("%s has %s, which is gone:\n%s", n.Name, w, kernel)
				}
			}
			if got := strings.Count(kernel, " dst "); got != len(all)-1 {
				return fmt.Errorf("%s has %d forwarding entries, not %d", n.Name, got, len(all)-1)
			}
			return nil
		})
	}
	if got := all[1].Metric("ropewalk_routes_failures_total"); got != 0 {
		t.Errorf("%v failures", got)
	}
}

// ring are probes from each node's pod to those of the next and of one farther away. Not of all to all: namespaces share the kernel's table of
// those neighbours that it has asked for, whose size is that of one machine's (gc_thresh3, arp(7)).
func ring(nodes []*Node, pods map[*Node]*Pod) (out []probe) {
	for i, n := range nodes {
		for _, far := range []int{1, 17} {
			from, to := pods[n], pods[nodes[(i+far)%len(nodes)]]
			for _, a := range to.Addrs {
				out = append(out, probe{from: from.Name, to: net.JoinHostPort(a, "80"), want: to.Name, client: from.Addr(a)})
			}
		}
	}
	return out
}
