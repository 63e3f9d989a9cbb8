package nft

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// during runs step again and again, 20 times at least, while a client outside connects to addr, until it has connected as often as
// told. None may fail, and packets may not be lost time and again.
func during(t *testing.T, addr string, connections int64, step func(i int)) {
	t.Helper()
	stop, failed := make(chan struct{}), make(chan error, 1)
	var asked, slow atomic.Int64
	clients := func() {
		for {
			select {
			case <-stop:
				failed <- nil
				return
			default:
			}
			begun := time.Now()
			if err := connect(addr); err != nil {
				failed <- fmt.Errorf("after %d connections: %w", asked.Load(), err)
				return
			}
			if time.Since(begun) > clusternet.Slow {
				slow.Add(1)
			}
			asked.Add(1)
		}
	}
	go netns.In(t, "outside", clients)
	i := 0
	for ; (asked.Load() < connections || i < 20) && len(failed) == 0; i++ {
		step(i)
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Errorf("%v, after %d steps", err, i)
	}
	t.Logf("%d connections, %d of them slow, %d steps", asked.Load(), slow.Load(), i)
	if n := slow.Load(); n > 3 && n > asked.Load()/100 {
		t.Errorf("%d of %d connections lost a packet, or the machine stood still", n, asked.Load())
	}
}

func connect(addr string) error {
	c, err := net.DialTimeout("tcp", addr, clusternet.Patience)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(clusternet.Patience)); err != nil {
		return err
	}
	_, err = io.ReadAll(c)
	return err
}

// TestTraffic changes all that can be changed, starts other agents, and lets strangers spoil what does not matter, while clients
// connect to a service: none may fail, and a connection of before goes on.
func TestTraffic(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	maxIdle = 0 // variants are taken out as soon as they can be
	x := started(t, 4)
	echo, said := stream(t)
	service := func(is ...int) *frontends.Frontend {
		return &frontends.Frontend{Key: key(frontends.TCP, "10.96.0.10", 80), ClusterIP: true, Backends: pods(false, is...)}
	}
	var others []*frontends.Frontend
	for i := range 200 {
		others = append(others, &frontends.Frontend{Key: key(frontends.TCP, "10.96.1.1", uint16(i+1)), Backends: pods(false, 0, 1, 2)[:i%4]})
	}
	others = append(others, &frontends.Frontend{Key: key(frontends.TCP, "0.0.0.0", 30080), Backends: pods(false, 0, 1)},
		&frontends.Frontend{Key: key(frontends.TCP, "10.96.0.10", 9), ClusterIP: true, Backends: []netip.AddrPort{netip.MustParseAddrPort(echo)}})
	all := append(others, service(0, 1, 2, 3))
	apply(t, x, Change{Put: all})
	talk := said(t, "10.96.0.10:9")

	lists := [][]int{{0}, {3, 2}, {1, 0, 2}, {2}, {0, 1, 2, 3}}
	during(t, "10.96.0.10:80", 1000, func(i int) {
		apply(t, x, Change{Put: []*frontends.Frontend{service(lists[i%len(lists)]...)}})
	})
	apply(t, x, Change{Put: []*frontends.Frontend{all[len(all)-1]}})
	talk()

	before := generation(t)
	during(t, "10.96.0.10:80", 1000, func(int) {
		x.Close()
		x = New(testNode())
		apply(t, x, Change{Put: all})
	})
	t.Cleanup(func() { x.Close() })
	if n := generation(t) - before; n > 1 { // variants that are no longer used go
		t.Errorf("%d transactions of agents that started", n)
	}
	talk()

	addrs := testNode().Addresses
	during(t, "10.96.0.10:80", 1000, func(i int) {
		n := testNode()
		n.Addresses = addrs[:i%3]
		n.Interfaces = [][]string{nil, {"cni0"}}[i%2]
		n.Mark = []uint32{0, 0, 0x80}[i%3]
		n.ClusterCIDRs = append(n.ClusterCIDRs, []netip.Prefix{netip.MustParsePrefix("10.245.0.0/24")}[:i%2]...)
		n.ServiceCIDRs = append(n.ServiceCIDRs, []netip.Prefix{netip.MustParsePrefix("10.97.0.0/24")}[:i/2%2]...)
		apply(t, x, Change{Node: &n})
	})
	n := testNode()
	apply(t, x, Change{Node: &n})
	talk()

	harmless := []string{
		"add rule ip ropewalk services return",
		"add element ip ropewalk frontends { 1.2.3.4 . tcp . 5 : 7 }",
		"delete element ip ropewalk empty { 10.96.1.1 . tcp . 1 }",
		"add chain ip ropewalk mine; add rule ip ropewalk mine drop; insert rule ip ropewalk undelivered counter",
		"flush set ip ropewalk cluster-cidrs",
	}
	during(t, "10.96.0.10:80", 1000, func(i int) {
		spoil(t, harmless[i%len(harmless)])
		if repaired, err := x.Check(); err != nil || !repaired {
			t.Errorf("repaired %v, %v", repaired, err)
		}
	})
	talk()
}

// stream starts a server in pod0 that gives back what it gets, and returns its address. said connects to it, and returns a function
// that holds that the connection goes on.
func stream(t *testing.T) (addr string, said func(t *testing.T, addr string) func()) {
	t.Helper()
	var l net.Listener
	var err error
	netns.In(t, "pod0", func() { l, err = net.Listen("tcp", net.JoinHostPort(clusternet.Pod4(0), "9")) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }()
		}
	}()
	return l.Addr().String(), func(t *testing.T, addr string) func() {
		var c net.Conn
		var err error
		netns.In(t, "outside", func() { c, err = net.DialTimeout("tcp", addr, time.Second) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		r := bufio.NewReader(c)
		return func() {
			t.Helper()
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, err := io.WriteString(c, "on\n")
			if line, err2 := r.ReadString('\n'); err != nil || err2 != nil || line != "on\n" {
				t.Errorf("a connection of before: %q, %v", line, errors.Join(err, err2))
			}
		}
	}
}

// TestKilled kills an agent at any moment. Its table is then one of before or after a change, in which connections succeed, and
// the next agent makes of it what it should be.
func TestKilled(t *testing.T) {
	const child = "ROPEWALK_TEST_KILLED"
	if os.Getenv(child) != "" {
		killed(t)
		return
	}
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	x := started(t, 2)
	final := killedFrontends(0)
	apply(t, x, Change{Put: final})
	want := contents(t)
	for i := range 60 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(out)
		for range 1 + rand.IntN(20) { // a line for each change
			if _, err := r.ReadString('\n'); err != nil {
				t.Fatalf("the agent's output: %v", err)
			}
		}
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond) // any moment of the next change
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for range 3 {
			expectOne(t, "outside", "10.96.0.10:80")
		}
		x.Close()
		x = New(testNode())
		apply(t, x, Change{Put: final})
		if diff := cmp.Diff(want, contents(t)); diff != "" {
			t.Fatalf("after %d were killed: %s", i+1, diff)
		}
	}
	x.Close()
}

// expectOne holds that a connection succeeds.
func expectOne(t *testing.T, ns, addr string) {
	t.Helper()
	if server, _, err := clusternet.Ask(t, ns, "tcp", addr); err != nil {
		t.Fatalf("%s: %q %v", addr, server, err)
	}
}

func killedFrontends(i int) []*frontends.Frontend {
	fs := []*frontends.Frontend{{Key: key(frontends.TCP, "10.96.0.10", 80), ClusterIP: true, Backends: pods(false, 0, 1)[:1+(i+1)%2]}}
	for j := range 300 {
		fs = append(fs, &frontends.Frontend{Key: key(frontends.TCP, "10.96.2.1", uint16(j+1)), Backends: pods(false, 0, 1, 2, 3, 4)[(i+j)%5:]})
	}
	return fs
}

// killed changes the table until it is killed.
func killed(t *testing.T) {
	x := New(testNode())
	for i := 0; ; i++ {
		apply(t, x, Change{Put: killedFrontends(i)})
		fmt.Println(i)
	}
}
