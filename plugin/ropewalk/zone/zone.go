// Package zone turns cluster values into the records of a cluster's DNS zones and answers queries from them.
//
// A Zone is a cluster.Sink with one writer (Run) and any number of readers (View). The writer keeps the truth it was
// told in compact form, puts what is to be served into persistent trees, and publishes a new View with one atomic store
// for everything that arrived together. The work for a change follows the change: one service, one slice, one pod.
//
// What a View answers is set down in the Kubernetes DNS-Based Service Discovery specification 1.1.0 and, where that is
// silent, by CoreDNS's kubernetes plugin. The package knows nothing of CoreDNS, of sockets and of the Kubernetes API.
package zone

import (
	"context"
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/radix"
)

// PodMode says which names below pod.<zone> answer.
type PodMode uint8

// The modes of the option pods.
const (
	// PodsDisabled answers none of them.
	PodsDisabled PodMode = iota
	// PodsInsecure answers with the address in the name, whether or not a pod has it.
	PodsInsecure
	// PodsVerified answers where a pod of that namespace has the address.
	PodsVerified
)

// Options says what is served and how. It holds nothing that differs between two zones of one plugin.
type Options struct {
	// TTL is that of all records, in seconds.
	TTL uint32
	// Pods is the mode of pod names. WatchPods asks for the pods even where the mode does not need them (autopath).
	Pods      PodMode
	WatchPods bool
	// EndpointPodNames names an endpoint after its pod where it has no hostname.
	EndpointPodNames bool
	// NoEndpoints leaves slices out altogether.
	NoEndpoints bool
	// IgnoreEmpty hides services with a ClusterIP that have no ready endpoint.
	IgnoreEmpty bool
	// Zonal serves <topology zone>.pin|prefer._zone.<service>… of headless services.
	Zonal bool
	// Env serves the _env names.
	Env bool
	// MultiCluster asks for ServiceImports.
	MultiCluster bool
	// FollowReverse asks for ServiceCIDRs and Nodes and makes their ranges reverse zones of their own.
	FollowReverse bool
	// Namespaces are the only ones to be served; empty serves all.
	Namespaces []string
	// Settle is for how long an answer outlives endpoints that vanish from a slice without having been marked not ready,
	// if a name would vanish with them: time for the other half of a move between slices to arrive. 0 means 100 ms; less
	// than 0 means none.
	Settle time.Duration
	// Served, if set, is called by the writer for each change that has just become visible to queries.
	Served func(c cluster.Change, at time.Time)
}

const defaultSettle = 100 * time.Millisecond

// Interest returns the kinds of objects that a Zone with these options needs.
func (o *Options) Interest() cluster.Kinds {
	k := cluster.KindsOf(cluster.KindNamespace, cluster.KindService)
	if !o.NoEndpoints {
		k |= cluster.KindsOf(cluster.KindSlice)
	}
	if o.Pods == PodsVerified || o.WatchPods {
		k |= cluster.KindsOf(cluster.KindPod)
	}
	if o.FollowReverse {
		k |= cluster.KindsOf(cluster.KindServiceCIDR, cluster.KindNode)
	}
	if o.MultiCluster {
		k |= cluster.KindsOf(cluster.KindServiceImport)
	}
	return k
}

// Zone holds the records of a cluster. Make one with New; its Run must be running for changes to be taken in.
type Zone struct {
	opts  Options
	queue chan cluster.Change
	done  chan struct{} // closed when Run ends
	ready chan struct{} // closed at the first full sync
	view  atomic.Pointer[View]
}

// queueLen bounds how many changes wait for the writer. A source that is faster blocks in Apply.
const queueLen = 4096

// New returns an empty Zone. It answers nothing but what needs no cluster until Run has taken in a full sync.
func New(opts Options) *Zone {
	if opts.Settle == 0 {
		opts.Settle = defaultSettle
	}
	z := &Zone{
		opts:  opts,
		queue: make(chan cluster.Change, queueLen),
		done:  make(chan struct{}),
		ready: make(chan struct{}),
	}
	z.view.Store(&View{opts: &z.opts, serial: [2]uint32{nextSerial(0), nextSerial(0)}, seed: maphash.MakeSeed()})
	return z
}

// View returns the newest state. It stays as it is; ask again for a newer one.
func (z *Zone) View() *View { return z.view.Load() }

// Ready is closed once everything has been delivered and is served.
func (z *Zone) Ready() <-chan struct{} { return z.ready }

// Apply implements cluster.Sink. It blocks while the writer is behind and drops changes once Run has ended.
func (z *Zone) Apply(c cluster.Change) {
	select {
	case z.queue <- c:
	case <-z.done:
	}
}

// Run is the writer. It takes in changes until ctx ends. It must be called once.
func (z *Zone) Run(ctx context.Context) {
	defer close(z.done)
	w := newWriter(z)
	settle := time.NewTimer(time.Hour)
	defer settle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-z.queue:
			w.take(c)
			w.drain(z.queue)
		case <-settle.C:
		}
		w.release(time.Now())
		w.publish()
		if at, ok := w.nextRelease(); ok {
			settle.Reset(time.Until(at))
		}
	}
}

// View is one state of the records. It never changes and is safe for any number of readers.
type View struct {
	opts *Options
	// services and imports are keyed by namespace and service, as in "\x04shop\x03web". A namespace that is served has
	// an entry of its own, "\x04shop".
	services, imports radix.Tree[entry]
	// addrs tells what is served under an address, pods which pods have it; both are keyed by addrKey. Where an address
	// has several owners, their keys follow it.
	addrs radix.Tree[owner]
	pods  radix.Tree[podList]
	// reverse holds the apexes of the reverse zones that follow the cluster, keyed by radix.NameKey.
	reverse radix.Tree[apex]
	// serial holds the SOA serials of the cluster's zones and of the clusterset's.
	serial [2]uint32
	synced bool
	counts [2]Counts
	// seed keeps others from choosing what collides.
	seed maphash.Seed
}

// Synced says whether everything had been delivered at least once.
func (v *View) Synced() bool { return v.synced }

// Counts is how many records of each type there are, without the pod names and those that are made up from the
// question. PTR records are counted by the family of their address.
type Counts struct{ A, AAAA, SRV, CNAME, PTR4, PTR6 int }

// Counts returns the number of records of the cluster's zones (false) or of the clusterset's (true, without PTR).
func (v *View) Counts(multi bool) Counts {
	if multi {
		return v.counts[1]
	}
	return v.counts[0]
}

// Pod is what is known of the pod behind an address.
type Pod struct {
	Namespace, Name string
	Labels          map[string]string
	ips             []netip.Addr
}

type podList []*Pod

// PodAt returns the pod that has addr, nil if none is known. Of several, as on the host's network, it is the first by
// namespace and name.
func (v *View) PodAt(addr netip.Addr) *Pod {
	var buf [17]byte
	if l := v.pods.Get(addrKey(buf[:0], addr)); l != nil {
		return (*l)[0]
	}
	return nil
}

// addrKey appends the key of an address: 4 or 6, then its octets.
func addrKey(dst []byte, a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return append(append(dst, 4), b[:]...)
	}
	b := a.As16()
	return append(append(dst, 6), b[:]...)
}

// keyAddr returns the address that key, in View.addrs, starts with.
func keyAddr(key []byte) netip.Addr {
	if key[0] == familyOctet[v4] {
		return netip.AddrFrom4([4]byte(key[1:5]))
	}
	return netip.AddrFrom16([16]byte(key[1:17]))
}

// nextSerial returns the SOA serial that follows s: seconds since 1970 as CoreDNS has it, but rising with every change
// even where several come in one second (RFC 1982 arithmetic).
func nextSerial(s uint32) uint32 {
	now := uint32(time.Now().Unix())
	if s == 0 || int32(now-s) > 0 {
		return now
	}
	return s + 1
}
