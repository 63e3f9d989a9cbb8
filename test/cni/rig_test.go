// Package cni holds the tests of the CNI plugin with real packets: the program, driven through libcni as a runtime does it, and pods that
// are network namespaces.
package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/program"
)

const (
	node4, node6 = "192.0.2.1", "2001:db8::1"
	range4       = "10.244.0.0/24"
	range6       = "fd00:244::/64"
	mtu          = 1400
	ifname       = "eth0"
)

func TestMain(m *testing.M) { os.Exit(program.Run(m.Run, program.Plugin)) }

// enter is netns.Enter with the node's addresses.
func enter(t *testing.T) bool { return netns.Enter(t, node4+"/32", node6+"/128") }

// rig is a node: the test's own namespace.
type rig struct {
	*testing.T
	cni  *libcni.CNIConfig
	dir  string
	conf map[string]any // of the plugin
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{
		T:   t,
		cni: libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(os.Getenv(program.Plugin))}, filepath.Join(dir, "cache"), nil),
		dir: filepath.Join(dir, "leases"),
	}
	r.conf = map[string]any{
		"type": "ropewalk-cni", "mode": "routed", "mtu": mtu, "ranges": []string{range4, range6}, "dataDir": r.dir,
		"dns": map[string]any{"nameservers": []string{"10.96.0.10"}}, "somebodyElses": map[string]any{"field": 1},
	}
	return r
}

// pod makes the namespace of a pod.
func (r *rig) pod(name string) string {
	r.Helper()
	netns.Add(r, name)
	return "/run/netns/" + name
}

func (r *rig) list(version string) *libcni.NetworkConfigList {
	r.Helper()
	b, err := json.Marshal(map[string]any{"cniVersion": version, "name": "rope", "plugins": []any{r.conf}})
	if err != nil {
		r.Fatal(err)
	}
	l, err := libcni.NetworkConfFromBytes(b)
	if err != nil {
		r.Fatal(err)
	}
	return l
}

// runtime is what a runtime knows of the pod whose namespace has the name; its container has it, too.
func runtime(name string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: name, NetNS: "/run/netns/" + name, IfName: ifname,
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "ns"}, {"K8S_POD_NAME", name}},
	}
}

func (r *rig) add(name string) (*current.Result, error) { return r.addAs(name, "1.1.0") }

func (r *rig) addAs(name, version string) (*current.Result, error) {
	res, err := r.cni.AddNetworkList(context.Background(), r.list(version), runtime(name))
	if err != nil {
		return nil, err
	}
	return current.NewResultFromResult(res)
}

// mustAdd makes a pod and attaches it; it returns the pod's addresses.
func (r *rig) mustAdd(name string) []string {
	r.Helper()
	r.pod(name)
	res, err := r.add(name)
	if err != nil {
		r.Fatal(err)
	}
	return addresses(res)
}

func addresses(res *current.Result) []string {
	var out []string
	for _, ip := range res.IPs {
		out = append(out, ip.Address.IP.String())
	}
	return out
}

func (r *rig) del(name string) error {
	return r.cni.DelNetworkList(context.Background(), r.list("1.1.0"), runtime(name))
}

func (r *rig) check(name string) error {
	return r.cni.CheckNetworkList(context.Background(), r.list("1.1.0"), runtime(name))
}

// answer is what the program says by itself.
type answer struct {
	exit   int
	stdout string
	types.Error
}

// command prepares the program with the plugin's own configuration. Empty variables are not set.
func (r *rig) command(env map[string]string, change map[string]any) *exec.Cmd {
	conf := maps.Clone(r.conf)
	maps.Copy(conf, map[string]any{"cniVersion": "1.1.0", "name": "rope"})
	maps.Copy(conf, change)
	b, err := json.Marshal(conf)
	if err != nil {
		r.Error(err)
	}
	cmd := exec.Command(os.Getenv(program.Plugin))
	cmd.Stdin = bytes.NewReader(b)
	cmd.Env = []string{"CNI_PATH=/opt/cni/bin"}
	for k, v := range env {
		if v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	return cmd
}

func run(t *testing.T, cmd *exec.Cmd) answer {
	t.Helper()
	out, err := cmd.Output()
	a := answer{stdout: string(out)}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		a.exit = exit.ExitCode()
		if err := json.Unmarshal(out, &a.Error); err != nil {
			t.Errorf("no error as JSON on stdout: %q, %s", out, exit.Stderr)
		}
	case err != nil:
		t.Fatal(err)
	}
	return a
}

func env(command, name string) map[string]string {
	return map[string]string{
		"CNI_COMMAND": command, "CNI_CONTAINERID": name, "CNI_NETNS": "/run/netns/" + name, "CNI_IFNAME": ifname,
		"CNI_ARGS": "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=" + name,
	}
}

// leases returns what is leased.
func (r *rig) leases() []ipam.Lease {
	r.Helper()
	s, err := ipam.Open(r.dir)
	if err != nil {
		r.Fatal(err)
	}
	defer s.Close()
	l, err := s.List()
	if err != nil {
		r.Fatal(err)
	}
	return l
}

// state is everything on the node that an attachment may touch, but for leases.
func state(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, args := range []string{"-br link", "-br addr", "route show table all", "-6 route show table all", "neigh show nud permanent", "-6 neigh show nud permanent"} {
		fmt.Fprintf(&b, "ip %s\n%s", args, netns.Run(t, "ip", strings.Fields(args)...))
	}
	return b.String()
}

// empty says that nothing of any attachment is on the node.
func (r *rig) empty(when string) {
	r.Helper()
	if s := state(r); strings.Contains(s, "rw") || strings.Contains(s, "\nri") {
		r.Errorf("%s: the node has\n%s", when, s)
	}
	if l := r.leases(); len(l) > 0 {
		r.Errorf("%s: leased are %v", when, l)
	}
	if l, err := portmap.List(); err != nil || len(l) > 0 {
		r.Errorf("%s: ports are %v, %v", when, l, err)
	}
}

// in runs f in a pod, or on the node if the name is empty.
func in(t testing.TB, name string, f func()) {
	t.Helper()
	if name == "" {
		f()
		return
	}
	netns.In(t, name, f)
}

// serve echoes, over TCP and UDP, at port 8080 of the namespace's addresses.
func serve(t testing.TB, name string) {
	t.Helper()
	in(t, name, func() {
		l, err := net.Listen("tcp", ":8080")
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}
		}()
		for _, a := range []string{"0.0.0.0:8080", "[::]:8080"} {
			network := "udp6"
			if a[0] == '0' {
				network = "udp4"
			}
			p, err := net.ListenPacket(network, a)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { p.Close() })
			go func() {
				b := make([]byte, 65536)
				for {
					n, from, err := p.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = p.WriteTo(b[:n], from)
				}
			}()
		}
	})
}

// talk sends n bytes to the address and expects them back. It returns the address it has spoken from.
func talk(t testing.TB, from, network, to string, n int) (netip.Addr, error) {
	t.Helper()
	var local netip.Addr
	var err error
	in(t, from, func() { local, err = echo(network, net.JoinHostPort(to, "8080"), n) })
	return local, err
}

func echo(network, to string, n int) (netip.Addr, error) {
	return echoWithin(5*time.Second, network, to, n)
}

func echoWithin(patience time.Duration, network, to string, n int) (netip.Addr, error) {
	c, err := net.DialTimeout(network, to, patience)
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	local := netip.MustParseAddrPort(c.LocalAddr().String()).Addr()
	_ = c.SetDeadline(time.Now().Add(patience))
	sent, got := bytes.Repeat([]byte("rope"), n/4+1)[:n], make([]byte, n)
	if _, err := c.Write(sent); err != nil {
		return local, err
	}
	if _, err := io.ReadFull(c, got); err != nil {
		return local, err
	}
	if !bytes.Equal(sent, got) {
		return local, fmt.Errorf("%d other bytes came back", n)
	}
	return local, nil
}

// code returns the code of an error that libcni brings.
func code(err error) uint {
	var e *types.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

func sorted(s []string) []string { slices.Sort(s); return s }
