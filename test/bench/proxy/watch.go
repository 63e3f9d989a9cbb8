package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// watch tells when the kernel has an address in its rules. It reads the notifications of nf_tables, which come after each
// commit to whoever listens, and looks for the bytes of the addresses, whatever they are part of: an element of a map
// or an expression of a rule. So it is the same for every proxy, and a transaction cannot be seen before it counts.
type watch struct {
	fd int

	// mu guards what follows.
	mu sync.Mutex
	// awaited has the addresses of which there is no notification yet, each with when the API server had it.
	awaited map[[4]byte]time.Time
	took    times
	err     error
	// seen has a token when something has been seen or failed, done is closed when it reads no more.
	seen, done chan struct{}
}

// watched is how the addresses begin that are waited for.
var watched = [2]byte{10, 240}

// newWatch listens in the namespace of the calling thread.
func newWatch() (*watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	limit := unix.NsecToTimeval(int64(50 * time.Millisecond))
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listening to nf_tables: %w", err), unix.Close(fd))
	}
	w := &watch{fd: fd, awaited: map[[4]byte]time.Time{}, seen: make(chan struct{}, 1), done: make(chan struct{})}
	go w.read()
	return w, nil
}

func (w *watch) read() {
	defer close(w.done)
	b := make([]byte, 1<<20)
	for {
		n, err := unix.Read(w.fd, b)
		now := time.Now()
		switch {
		case err == nil:
			w.look(b[:n], now)
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			w.mu.Lock()
			ended := w.awaited == nil
			w.mu.Unlock()
			if ended {
				return
			}
		default: // ENOBUFS: some are lost
			w.mu.Lock()
			w.err = fmt.Errorf("notifications of nf_tables: %w", err)
			w.mu.Unlock()
			w.tell()
			return
		}
	}
}

func (w *watch) look(b []byte, now time.Time) {
	w.mu.Lock()
	before := len(w.took)
	for {
		i := bytes.Index(b, watched[:])
		if i < 0 || i+4 > len(b) {
			break
		}
		addr := [4]byte(b[i:])
		if since, ok := w.awaited[addr]; ok {
			w.took.Add(now.Sub(since))
			delete(w.awaited, addr)
		}
		b = b[i+2:]
	}
	more := len(w.took) > before
	w.mu.Unlock()
	if more {
		w.tell()
	}
}

func (w *watch) tell() {
	select {
	case w.seen <- struct{}{}:
	default:
	}
}

// expect begins to wait for an address.
func (w *watch) expect(addr [4]byte) {
	w.mu.Lock()
	w.awaited[addr] = time.Now()
	w.mu.Unlock()
}

// drain waits until everything that is expected has come. It is an error if ctx ends before that; then some is missing.
func (w *watch) drain(ctx context.Context) (missing int, err error) {
	for {
		w.mu.Lock()
		missing, err = len(w.awaited), w.err
		w.mu.Unlock()
		if missing == 0 || err != nil {
			return missing, err
		}
		select {
		case <-w.seen:
		case <-ctx.Done():
			return missing, context.Cause(ctx)
		}
	}
}

// close ends the listening and returns the time from the API server to the kernel of each address that has come.
func (w *watch) close() (times, error) {
	w.mu.Lock()
	w.awaited = nil
	w.mu.Unlock()
	<-w.done
	return w.took, errors.Join(w.err, unix.Close(w.fd))
}
