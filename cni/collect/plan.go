package collect

import (
	"net/netip"
	"slices"
	"time"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
)

// node is what was found at a look.
type node struct {
	leases []ipam.Lease
	hosts  map[string]bool // host ends
	ports  []portmap.Entry
}

type kind string

const (
	// aLease has no host end. A veth's ends go together, so that the pod has no network any more, whether its namespace is still there or not.
	aLease kind = "lease"
	// somePorts lead to an address that their owner has no lease of.
	somePorts kind = "ports"
	// anIFB has no host end. Nothing that is made anew can be taken for one, so that it goes at once (bandwidth.Collect).
	anIFB kind = "ifb"
	// anEnd has no lease. It leads to a namespace that is still there, or it would be gone: it may be of a pod that runs, and stays.
	anEnd kind = "interface"
)

// orphan is something that nothing seems to need.
type orphan struct {
	kind              kind
	container, ifname string     // of a lease and of ports
	since             int64      // of a lease: that of a later ADD is another one
	name              string     // of a lease: its pod's, as a note
	pod               netip.Addr // where ports lead
	host              string     // of a host end
}

func hostOf(container, ifname string) string { return link.New(container, ifname, "", 0, nil).Host }

// orphans returns what is alone at the moment. An ADD or a DEL that is under way leaves such things for a moment, too.
func orphans(n node) (found []orphan) {
	leased := map[portmap.Owner]ipam.Lease{}
	ends := map[string]bool{}
	for _, l := range n.leases {
		host := hostOf(l.Container, l.Interface)
		leased[portmap.Owner{Container: l.Container, Interface: l.Interface}], ends[host] = l, true
		if !n.hosts[host] {
			found = append(found, orphan{kind: aLease, container: l.Container, ifname: l.Interface, since: l.Since.UnixNano(), name: l.Pod})
		}
	}
	for _, p := range n.ports {
		if p.Owner.Container == "" || p.Owner.Interface == "" {
			continue // added by hand
		}
		l, there := leased[p.Owner]
		if needed(l, there, p.Pod, func() bool { return n.hosts[hostOf(p.Owner.Container, p.Owner.Interface)] }) {
			continue
		}
		o := orphan{kind: somePorts, container: p.Owner.Container, ifname: p.Owner.Interface, pod: p.Pod}
		if !slices.Contains(found, o) { // there is an entry a port
			found = append(found, o)
		}
	}
	for host := range n.hosts {
		if !ends[host] {
			found = append(found, orphan{kind: anEnd, host: host})
		}
	}
	return found
}

// needed says whether ports may lead to an address: their owner has it, or leases were lost and a pod is still there.
func needed(l ipam.Lease, leased bool, pod netip.Addr, attached func() bool) bool {
	if leased {
		return slices.Contains(l.Addrs, pod)
	}
	return attached()
}

// memory is since when orphans are known. Times are this process's own, so that nobody's setting of the clock shortens the grace.
type memory map[orphan]time.Time

// old is how old a lease is, by the clock that people set, whose ADD has surely ended. The first look gives it no grace: where this program is
// started again and again, there would be no other.
const old = time.Hour

// ripe returns the orphans that were found at each look for the time of grace, and what to remember of all.
func (m memory) ripe(found []orphan, now time.Time, grace time.Duration) (ripe []orphan, next memory) {
	next = memory{}
	for _, o := range found {
		first, known := m[o]
		if !known {
			first = now
		}
		aged := m == nil && o.kind == aLease && now.Sub(time.Unix(0, o.since)) >= old
		if next[o] = first; aged || now.Sub(first) >= grace {
			ripe = append(ripe, o)
		}
	}
	return ripe, next
}

// due returns when the next orphan will be ripe; none is never. Those that are ripe already were looked at.
func (m memory) due(now time.Time, grace time.Duration) (at time.Time, any bool) {
	for _, first := range m {
		if t := first.Add(grace); t.After(now) && (!any || t.Before(at)) {
			at, any = t, true
		}
	}
	return at, any
}
