package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// addresses follows the addresses of the host's interfaces.
type addresses struct {
	wake func() // called when they are different

	mu   sync.Mutex // guards what follows
	list []netip.Addr
	read bool // the list is one
}

func (a *addresses) known() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.read
}

func (a *addresses) now() []netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]netip.Addr(nil), a.list...)
}

// addressRetry is the pause after a failure. The kernel ends a subscription whose reader is too slow.
const addressRetry = time.Second

// follow keeps the list right until ctx ends.
func (a *addresses) follow(ctx context.Context, log *slog.Logger) {
	for {
		if err := a.subscribe(ctx); err != nil {
			log.Error("the host's addresses cannot be followed", "error", err, "again in", addressRetry)
		}
		if !sleep(ctx, addressRetry) {
			return
		}
	}
}

// subscribe follows until the subscription ends, or ctx.
func (a *addresses) subscribe(ctx context.Context) error {
	updates := make(chan netlink.AddrUpdate, 16)
	done := make(chan struct{})
	defer func() {
		close(done)
		for range updates { // until the subscription has ended
		}
	}()
	if err := netlink.AddrSubscribe(updates, done); err != nil {
		close(updates)
		return err
	}
	for {
		if err := a.update(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-updates:
			if !ok {
				return nil
			}
		}
	}
}

// update reads the addresses of all interfaces.
func (a *addresses) update() error {
	found, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	var list []netip.Addr
	for _, f := range found {
		if ip, ok := netip.AddrFromSlice(f.IP); ok && !ip.Unmap().IsLoopback() && !ip.IsLinkLocalUnicast() {
			list = append(list, ip.Unmap())
		}
	}
	a.mu.Lock()
	a.list, a.read = list, true
	a.mu.Unlock()
	a.wake()
	return nil
}
