package abuse

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/coredns"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// crowd is a kind of abuse over TCP: a number of connections, on each of which strangers do the same.
type crowd struct {
	name     string
	n        int
	corefile string // more lines
	do       func(ctx context.Context, c net.Conn)
	each     float64 // what a connection may cost, in MiB
	files    uint64  // how many descriptors the server may have; 0 leaves it as it is
}

// dial connects strangers of many addresses, so that ports suffice.
func (cr *crowd) dial(ctx context.Context, t *testing.T) (conns []net.Conn) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	const dialers = 16
	for k := range dialers {
		wg.Go(func() {
			for i := k; i < cr.n; i += dialers {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%200))}, Control: smallBuffer}
				c, err := d.DialContext(ctx, "tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				conns = append(conns, c)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return conns
}

// smallBuffer makes a socket take little before it stops the sender.
func smallBuffer(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
	return errors.Join(cerr, err)
}

// What a connection may cost, in MiB.
const (
	// connection is a goroutine's stack and buffers of a few octets.
	connection = 10 * kib
	// announced is the room for a message of the length that was announced.
	announced = connection + 64*kib
	// stalled is an answer of 64 KiB that waits to be sent, twice, and as records.
	stalled = connection + 2*64*kib + 250*kib
)

func TestTCP(t *testing.T) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	netns.Need(t, files.Max > 12000, "a process may have too few files open for 10,000 connections")
	coredns.Binary(t)
	if !netns.Enter(t) {
		return
	}
	// The kernel keeps little for who does not read, so that the server feels it at once.
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_wmem", []byte("4096 16384 65536"), 0o644); err != nil {
		t.Fatal(err)
	}
	manifests := cluster(t)
	small := framed(query(t, "svc-1.a.svc.cluster.local.", dns.TypeA, 0))
	big := framed(query(t, "_http._tcp.big.a.svc.cluster.local.", dns.TypeSRV, 0))
	const timeouts = "timeouts {\n read 1s\n write 1s\n idle 1s\n }"
	for _, cr := range []crowd{
		{name: "idle", n: 10000, do: send(nil), each: connection},
		{name: "idle, few descriptors", n: 3000, files: 1000, do: send(nil), corefile: timeouts, each: connection},
		{name: "an octet at a time", n: 500, do: dribble(small), corefile: timeouts, each: connection},
		{name: "announce", n: 2000, do: send([]byte{0xff, 0xff, 0}), corefile: timeouts, each: announced},
		{name: "pipeline", n: 50, do: send(bytes.Repeat(small, 1<<15)), corefile: timeouts, each: connection},
		{name: "read nothing of large answers", n: 200, do: send(bytes.Repeat(big, 4)), corefile: timeouts, each: stalled},
	} {
		cr.try(t, manifests)
	}
}

// send sends b, as much of it as is taken during a flood.
func send(b []byte) func(context.Context, net.Conn) {
	return func(_ context.Context, c net.Conn) {
		c.SetWriteDeadline(time.Now().Add(*duration))
		c.Write(b)
	}
}

// framed puts a message's length ahead of it (RFC 1035 section 4.2.2).
func framed(m []byte) []byte { return append([]byte{byte(len(m) >> 8), byte(len(m))}, m...) }

// dribble sends a query an octet at a time.
func dribble(q []byte) func(context.Context, net.Conn) {
	return func(ctx context.Context, c net.Conn) {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for i := range q {
			if _, err := c.Write(q[i : i+1]); err != nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

// try has strangers do it and looks at the server and at honest clients meanwhile. The strangers hold on to their
// connections until the server has got rid of them.
func (cr crowd) try(t *testing.T, manifests string) {
	if !regexp.MustCompile(*kinds).MatchString(cr.name) {
		return
	}
	t.Run(cr.name, func(t *testing.T) {
		s := start(t, manifests, "on", cr.corefile)
		things := cr.n
		if cr.files > 0 {
			if err := unix.Prlimit(s.pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: cr.files, Max: cr.files}, nil); err != nil {
				t.Fatal(err)
			}
			things = int(cr.files)
		}
		var conns []net.Conn
		r := s.during(t, false, func(ctx context.Context) {
			conns = cr.dial(t.Context(), t)
			var wg sync.WaitGroup
			for _, c := range conns {
				wg.Go(func() { cr.do(ctx, c) })
			}
			wg.Wait()
			<-ctx.Done()
		})
		defer func() {
			for _, c := range conns {
				c.Close()
			}
		}()
		t.Logf("%d of %d connections", len(conns), cr.n)
		r.log(t, s)
		r.check(t, s, slack+garbage*float64(things)*cr.each, things)
		r.udp.check(t, "UDP", 0.9)
		if cr.files == 0 {
			r.tcp.check(t, "TCP", 0.9)
		}
		s.fallsBack(t)
		serves(t)
	})
}
