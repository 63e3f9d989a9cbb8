package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/bench/report"
)

type (
	times = report.Samples[time.Duration]
	sizes = report.Samples[int64]
)

// backendPort is where the backends answer, on TCP and on UDP.
const backendPort = 8080

// serve answers every connection and datagram on the backends' addresses with one byte, the backend's number, until the
// listeners that it returns are closed.
func serve(backend *space) (closers []func() error, err error) {
	backend.do(func() {
		for i, a := range backendAddrs {
			at := netip.AddrPortFrom(netip.MustParseAddr(a), backendPort)
			l, e := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
			if e != nil {
				err = errors.Join(err, e)
				continue
			}
			u, e := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
			if e != nil {
				err = errors.Join(err, e)
				continue
			}
			closers = append(closers, l.Close, u.Close)
			go serveTCP(l, byte(i))
			go serveUDP(u, byte(i))
		}
	})
	return closers, err
}

func serveTCP(l *net.TCPListener, name byte) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		// Whoever asked may have gone.
		_, _ = c.Write([]byte{name})
		_ = c.Close()
	}
}

func serveUDP(u *net.UDPConn, name byte) {
	var b [1]byte
	for {
		_, from, err := u.ReadFromUDPAddrPort(b[:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		_, _ = u.WriteToUDPAddrPort([]byte{name}, from)
	}
}

// exchange opens a connection of the type (unix.SOCK_STREAM or SOCK_DGRAM) from a port that the kernel chooses, and returns the
// answer and how long it took: for TCP, until the connection stood; for UDP, until the answer was there. Each step may take
// as long as patience. It runs in the namespace of the calling thread. System calls and not package net: what is measured is
// the kernel.
func exchange(kind int, to netip.AddrPort, patience time.Duration) (answer byte, took time.Duration, err error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(int64(patience))
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit), // of connect, too
	)
	if kind == unix.SOCK_STREAM {
		// It ends with a reset: the port is free again at once.
		err = errors.Join(err, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	}
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	err = uninterrupted(func() error {
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	})
	took = time.Since(begin)
	b := []byte{255}
	if err == nil && kind == unix.SOCK_DGRAM {
		_, err = unix.Write(fd, b)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("connect to %s: %w", to, err)
	}
	n := 0
	err = uninterrupted(func() error {
		n, err = unix.Read(fd, b)
		return err
	})
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return 0, 0, fmt.Errorf("answer of %s: %w", to, err)
	}
	if kind == unix.SOCK_DGRAM {
		took = time.Since(begin)
	}
	return b[0], took, nil
}

// uninterrupted repeats f while signals interrupt it, of which Go's scheduler sends some.
func uninterrupted(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// asked is how often a service was asked, how often nobody answered, and what was the last reason.
type asked struct {
	tried, failed int
	why           error
}

// await asks an address from a pod until a backend answers there. Nobody answers who does not for as long as patience.
func await(ctx context.Context, from *space, to netip.AddrPort, backend byte, patience time.Duration) (a asked, err error) {
	from.do(func() {
		for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
			a.tried++
			got, _, e := exchange(unix.SOCK_STREAM, to, patience)
			switch {
			case e != nil:
				a.failed++
				a.why = e
			case got == backend:
				return
			}
		}
		err = fmt.Errorf("no answer of backend %d: %w", backend, errors.Join(context.Cause(ctx), a.why))
	})
	return a, err
}

// path is what connections along one way to a backend were like.
type path struct {
	took times // each
	// cpu is the client's time for one, in each round: most of the kernel's work on the way is in it, for that is done where the
	// packet was sent. perSec is how many there were a second, one after the other.
	cpu    times
	perSec sizes
}

// measure adds a round of n connections.
func (p *path) measure(kind int, to netip.AddrPort, n int) error {
	begin, used := time.Now(), threadTime()
	for range n {
		_, took, err := exchange(kind, to, 10*time.Second)
		if err != nil {
			return err
		}
		p.took.Add(took)
	}
	p.cpu.Add((threadTime() - used) / time.Duration(n))
	p.perSec.Add(int64(float64(n) / time.Since(begin).Seconds()))
	return nil
}

// threadTime is how long the calling thread has run for.
func threadTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) // fails for a bad pointer only
	return time.Duration(ts.Nano())
}

// traffic is what connections from a pod to another took, straight and through a service.
type traffic struct {
	tcp, udp struct{ direct, service path }
}

// measure makes rounds of n connections each way, in turns: few at a time, so that what else the machine does hits all alike.
func (t *traffic) measure(from *space, rounds, n int) (err error) {
	direct := netip.AddrPortFrom(netip.MustParseAddr(backendAddrs[0]), backendPort)
	from.do(func() {
		for range rounds {
			err = errors.Join(
				t.tcp.direct.measure(unix.SOCK_STREAM, direct, n), t.tcp.service.measure(unix.SOCK_STREAM, probeVIP, n),
				t.udp.direct.measure(unix.SOCK_DGRAM, direct, n), t.udp.service.measure(unix.SOCK_DGRAM, probeVIP, n),
			)
			if err != nil {
				return
			}
		}
	})
	return err
}
