package overlay

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// watchRetry is the pause after a subscription has ended: the kernel ends those whose reader is too slow.
const watchRetry = time.Second

// Watch calls doubt whenever the kernel tells that it has not what it is to have, or what that follows from has changed; and when it may not have
// told all: at first, and when it has ended a subscription. It is for the network namespace of the calling thread, and ends with ctx.
func (x *Keeper) Watch(ctx context.Context, doubt func()) {
	for ctx.Err() == nil {
		x.watch(ctx, doubt)
		doubt()
		select {
		case <-ctx.Done():
		case <-time.After(watchRetry):
		}
	}
}

// room is for what the kernel tells of thousands of nodes at once, in bytes. It is a limit; nothing is allocated.
const room = 4 << 20

// watch ends with ctx, or with a subscription.
func (x *Keeper) watch(ctx context.Context, doubt func()) {
	done := make(chan struct{})
	events := make(chan struct{}, 1)
	var open []<-chan struct{} // closed when a subscription has ended
	var errs []error
	add := func(ended <-chan struct{}, err error) {
		if errs = append(errs, err); err == nil {
			open = append(open, ended)
		}
	}
	routes := func(to chan<- netlink.RouteUpdate, done <-chan struct{}) error {
		return netlink.RouteSubscribeWithOptions(to, done, netlink.RouteSubscribeOptions{ReceiveBufferSize: room, ReceiveBufferForceSize: true})
	}
	neighbors := func(to chan<- netlink.NeighUpdate, done <-chan struct{}) error {
		return netlink.NeighSubscribeWithOptions(to, done, netlink.NeighSubscribeOptions{ReceiveBufferSize: room, ReceiveBufferForceSize: true})
	}
	add(subscribe(x, netlink.LinkSubscribe, done, events, (*wanted).linkNews))
	add(subscribe(x, routes, done, events, (*wanted).routeNews))
	add(subscribe(x, netlink.AddrSubscribe, done, events, (*wanted).addrNews))
	add(subscribe(x, neighbors, done, events, (*wanted).neighNews))
	defer func() {
		close(done)
		for _, ended := range open {
			<-ended
		}
	}()
	if errors.Join(errs...) != nil {
		return
	}
	for {
		doubt()
		select {
		case <-ctx.Done():
			return
		case <-open[0]:
			return
		case <-open[1]:
			return
		case <-open[2]:
			return
		case <-open[3]:
			return
		case <-events:
		}
	}
}

// podLink is what the CNI plugin calls the node's ends of pods' links, and the interfaces by which it limits what they send.
var podLink = regexp.MustCompile("^r[wi][0-9a-f]{8}$")

// The following report whether what the kernel tells is a reason to list what it has: not where it tells that it has what it is to have,
// which is what it tells of each change of ours. What it told of a plan of before, which is read late, may be taken for one.

// linkNews is true for all links but pods'. With one that goes down, or away, the kernel forgets routes without a word.
func (w *wanted) linkNews(u netlink.LinkUpdate) bool {
	name := u.Attrs().Name
	if podLink.MatchString(name) {
		return false
	}
	if t := w.plan.Tunnel; t != nil && name == w.kernel.Device && u.Header.Type == unix.RTM_NEWLINK {
		return w.device != u.Attrs().Index || !w.kernel.right(u.Link, t)
	}
	return true
}

// routeNews is about routes of ours, those in their way, and those that lead to nodes, or that the MTU is from.
func (w *wanted) routeNews(u netlink.RouteUpdate) bool {
	if u.Table != unix.RT_TABLE_MAIN {
		return false
	}
	dst := prefixOf(u.Dst)
	want, ok := w.plan.Routes[dst]
	switch {
	case ok && u.Protocol == Protocol && u.Type == unix.RTM_NEWROUTE:
		return !want.is(u.Route, w.device)
	case ok:
		return true
	case u.Protocol == Protocol:
		return u.Type == unix.RTM_NEWROUTE
	}
	return !dst.IsValid() || dst.Bits() == 0 || w.plan.near && !dst.IsSingleIP() // those to pods are single ones
}

// addrNews is about addresses of the tunnel's device and, as the kernel forgets routes with them without a word, all that go. Not about the
// address that a node has towards its pods.
func (w *wanted) addrNews(u netlink.AddrUpdate) bool {
	a := addrOf(u.LinkAddress.IP)
	if a.IsLinkLocalUnicast() {
		return false
	}
	if w.device == 0 || u.LinkIndex != w.device {
		return !u.NewAddr || w.plan.near
	}
	ones, bits := u.LinkAddress.Mask.Size()
	return u.NewAddr != (ones == bits && slices.Contains(w.plan.Tunnel.Addrs, a))
}

// neighNews is about the tunnel's device: on other links neighbours come and go all the time. So do, on any, those that the kernel asks for.
func (w *wanted) neighNews(u netlink.NeighUpdate) bool {
	t := w.plan.Tunnel
	if w.device == 0 || u.LinkIndex != w.device || t == nil {
		return false
	}
	_, ok := t.Neighbors[addrOf(u.IP)]
	if u.Family == unix.AF_BRIDGE {
		_, ok = t.Forward[macIn(u.Neigh)]
	}
	if u.Type == unix.RTM_DELNEIGH {
		return ok
	}
	return !t.knows(u.Neigh) && (ok || u.Family == unix.AF_BRIDGE || u.State&netlink.NUD_PERMANENT != 0)
}

// subscribe has events get one for what a subscription tells and is news, until done or until it ends.
func subscribe[T any](x *Keeper, begin func(chan<- T, <-chan struct{}) error, done <-chan struct{}, events chan<- struct{}, news func(*wanted, T) bool) (<-chan struct{}, error) {
	updates, ended := make(chan T, 16), make(chan struct{})
	if err := begin(updates, done); err != nil {
		return nil, err
	}
	go func() {
		defer close(ended)
		for u := range updates {
			x.mu.Lock()
			ok := news(&x.want, u)
			x.mu.Unlock()
			if !ok {
				continue
			}
			select {
			case events <- struct{}{}:
			default:
			}
		}
	}()
	return ended, nil
}
