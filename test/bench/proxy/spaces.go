package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// space is a network namespace, with a thread of its own in it. It goes when it is closed, or with this process.
type space struct {
	tid  int
	work chan func()
}

// newSpace makes a namespace with its loopback up.
func newSpace() (*space, error) {
	s := &space{work: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, for it is in another namespace
		s.tid = unix.Gettid()
		err := unix.Unshare(unix.CLONE_NEWNET)
		made <- err
		if err != nil {
			return
		}
		for f := range s.work {
			f()
		}
	}()
	if err := <-made; err != nil {
		return nil, fmt.Errorf("new network namespace: %w", err)
	}
	return s, s.ip("link set lo up")
}

// do runs f in the namespace, one at a time. Sockets that f opens stay there.
func (s *space) do(f func()) {
	done := make(chan struct{})
	s.work <- func() {
		defer close(done)
		f()
	}
	<-done
}

// close lets the namespace go, once nothing else is in it.
func (s *space) close() { close(s.work) }

// ip gives ip(8) commands, one a line, in the namespace.
func (s *space) ip(commands string) (err error) {
	s.do(func() { err = ip(commands) })
	return err
}

// ip gives ip(8) commands, one a line, in the namespace of the calling thread.
func ip(commands string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -batch: %w: %s", err, out)
	}
	return nil
}

// The addresses of the node and, behind a veth pair each, of the pods in which there is traffic.
const (
	nodeAddr   = "192.0.2.1"
	clientAddr = "10.254.1.2"
)

// backendAddrs are those of the backends that answer, each with its number.
var backendAddrs = [2]string{"10.254.2.2", "10.254.2.3"}

// network is a node, which is the namespace that the program is in, and two pods.
type network struct{ client, backend *space }

func newNetwork() (n network, err error) {
	if n.client, err = newSpace(); err != nil {
		return n, err
	}
	if n.backend, err = newSpace(); err != nil {
		return n, err
	}
	// What conntrack knows of a connection goes soon after it: the tables of all namespaces together are bounded.
	for name, value := range map[string]string{
		"ipv4/ip_forward":                          "1",
		"netfilter/nf_conntrack_tcp_timeout_close": "1", "netfilter/nf_conntrack_tcp_timeout_close_wait": "1",
		"netfilter/nf_conntrack_tcp_timeout_time_wait": "1", "netfilter/nf_conntrack_udp_timeout": "1",
	} {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644); err != nil {
			return n, err
		}
	}
	// Where there is no rule for a service yet, the node itself is asked, and refuses at once.
	if err := ip(fmt.Sprintf(`
addr add %s/32 dev lo
route add local %s dev lo
link add c0 type veth peer name eth0 netns %d
link add b0 type veth peer name eth0 netns %d
addr add 10.254.1.1/24 dev c0
addr add 10.254.2.1/24 dev b0
link set c0 up
link set b0 up
`, nodeAddr, serviceCIDR, n.client.tid, n.backend.tid)); err != nil {
		return n, err
	}
	if err := n.client.ip("addr add " + clientAddr + "/24 dev eth0\nlink set eth0 up\nroute add default via 10.254.1.1\n"); err != nil {
		return n, err
	}
	return n, n.backend.ip(fmt.Sprintf("addr add %s/24 dev eth0\naddr add %s/24 dev eth0\nlink set eth0 up\nroute add default via 10.254.2.1\n",
		backendAddrs[0], backendAddrs[1]))
}

func (n network) close() {
	for _, s := range []*space{n.client, n.backend} {
		if s != nil {
			s.close()
		}
	}
}
