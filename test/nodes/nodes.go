// Package nodes makes clusters out of network namespaces, for tests that send packets between pods of different nodes: each node runs
// the real `ropewalk routes`, and its pods are attached by the real ropewalk-cni, through libcni, with the very configuration that the
// former has written. Nodes differ in nothing from machines but that they share a kernel and its file systems. Who answers and who asks
// is package clusternet's: goroutines with sockets in namespaces.
package nodes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/program"
)

// Outside is the namespace of a host that is not of the cluster. It is on the nodes' link, and knows by which node the pods are reached.
const (
	Outside  = "outside"
	Outside4 = "192.0.2.253"
	Outside6 = "2001:db8::fd"
)

const (
	links  = "links"  // the namespace of the links between nodes, which are bridges
	router = "router" // what joins them
)

// Spec says what a cluster is like.
type Spec struct {
	// Ropewalk and Plugin are the paths of the programs.
	Ropewalk, Plugin string
	// Dir is for what programs write.
	Dir string
	// MTU of the links between nodes; 0 means 1500.
	MTU int
	// Addrs are the families of nodes' addresses, and Pods those of their podCIDRs, in order: "4", "6", "46", "64". Empty means "46".
	Addrs, Pods string
	// Flags are those of `ropewalk routes`, besides what the rig needs.
	Flags []string
}

// Cluster is a network of nodes.
type Cluster struct {
	T testing.TB
	Spec
}

// Node is a machine of a cluster. Its name is that of its namespace, and Object what the cluster calls it: the same, at first.
type Node struct {
	*Cluster
	Name, Object string
	// CIDRs are the node's podCIDRs, and Addrs its own addresses, both in the order in which its object has them.
	CIDRs, Addrs []string
	cni          *libcni.CNIConfig
	agent        *exec.Cmd
	ended        chan struct{}
	log          *program.Log
}

// Pod is a pod of a node. Its name is also that of its namespace.
type Pod struct {
	Node  *Node
	Name  string
	Addrs []string // in the order of its node's podCIDRs
	args  map[string]any
}

// New makes the links, the router and the outside. It is for tests that netns.Enter has put into namespaces of their own.
func New(t testing.TB, s Spec) *Cluster {
	t.Helper()
	if s.MTU == 0 {
		s.MTU = 1500
	}
	if s.Addrs == "" {
		s.Addrs = "46"
	}
	if s.Pods == "" {
		s.Pods = "46"
	}
	c := &Cluster{t, s}
	c.namespace(links)
	netns.Batch(t, links, "link add near type bridge mcast_snooping 0\nlink add far type bridge mcast_snooping 0\nlink set near up\nlink set far up\n")
	c.namespace(router)
	c.plug(router, "near", "near", "192.0.2.254/24", "2001:db8::fe/64")
	c.plug(router, "far", "far", "198.51.100.254/24", "2001:db8:0:1::fe/64")
	c.forward(router)
	c.namespace(Outside)
	c.plug(Outside, "eth0", "near", Outside4+"/24", Outside6+"/64")
	netns.Batch(t, Outside, "route add default via 192.0.2.254\nroute add default via 2001:db8::fe\n")
	if err := os.MkdirAll(c.manifests(), 0o755); err != nil {
		t.Fatal(err)
	}
	return c
}

// namespace makes one whose addresses can be used at once.
func (c *Cluster) namespace(name string) {
	c.T.Helper()
	netns.Add(c.T, name)
	netns.In(c.T, name, func() {
		c.sysctl("ipv6/conf/default/accept_dad", "0")
		c.sysctl("ipv4/conf/default/rp_filter", "1") // as strict as some distributions are
	})
}

// sysctl writes one of the calling thread's namespace.
func (c *Cluster) sysctl(name, value string) {
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644); err != nil {
		c.T.Error(err)
	}
}

func (c *Cluster) forward(name string) {
	netns.In(c.T, name, func() {
		c.sysctl("ipv4/ip_forward", "1")
		c.sysctl("ipv6/conf/all/forwarding", "1")
	})
}

// plug connects an interface of a namespace to a link.
func (c *Cluster) plug(name, ifname, link string, addrs ...string) {
	c.T.Helper()
	port := link[:1] + "-" + name
	netns.Batch(c.T, links, fmt.Sprintf("link add %[1]s mtu %[2]d type veth peer name %[3]s mtu %[2]d netns %[4]s\nlink set %[1]s master %[5]s\nlink set %[1]s up\n",
		port, c.MTU, ifname, name, link))
	own := fmt.Sprintf("link set %s up\n", ifname)
	for _, a := range addrs {
		own += fmt.Sprintf("addr add %s dev %s\n", a, ifname)
	}
	netns.Batch(c.T, name, own)
}

func (c *Cluster) manifests() string { return filepath.Join(c.Dir, "manifests") }

// Put writes a file of objects that all nodes read, whole at once; without text the file goes.
func (c *Cluster) Put(file, text string) {
	c.T.Helper()
	path := filepath.Join(c.manifests(), file+".yaml")
	if text == "" {
		if err := os.Remove(path); err != nil {
			c.T.Fatal(err)
		}
		return
	}
	unfinished := filepath.Join(c.Dir, file+".new")
	if err := errors.Join(os.WriteFile(unfinished, []byte(text), 0o644), os.Rename(unfinished, path)); err != nil {
		c.T.Fatal(err)
	}
}

// Add makes the i-th node, from 1, with its object. It has no agent yet. One that is far is on another link than others, behind a router.
func (c *Cluster) Add(i int, far bool) *Node {
	c.T.Helper()
	n := &Node{Cluster: c, Name: fmt.Sprintf("n%d", i), log: &program.Log{}}
	n.Object = n.Name
	link, net4, net6 := "near", "192.0.2.", "2001:db8::"
	if far {
		link, net4, net6 = "far", "198.51.100.", "2001:db8:0:1::"
	}
	c.namespace(n.Name)
	var plugged []string
	var routes string
	for _, family := range c.Addrs {
		if family == '4' {
			n.Addrs = append(n.Addrs, fmt.Sprintf("%s%d", net4, i))
			plugged = append(plugged, n.Addrs[len(n.Addrs)-1]+"/24")
			routes += "route add default via " + net4 + "254\n"
		} else {
			n.Addrs = append(n.Addrs, fmt.Sprintf("%s%x", net6, i))
			plugged = append(plugged, n.Addrs[len(n.Addrs)-1]+"/64")
			routes += "route add default via " + net6 + "fe\n"
		}
	}
	c.plug(n.Name, "eth0", link, plugged...)
	netns.Batch(c.T, n.Name, routes)
	for _, family := range c.Pods {
		n.CIDRs = append(n.CIDRs, map[rune]string{'4': fmt.Sprintf("10.244.%d.0/24", i), '6': fmt.Sprintf("fd00:244:0:%x::/64", i)}[family])
	}
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(c.Plugin)}, n.dir("cache"), nil)
	n.Join()
	c.T.Cleanup(func() {
		if c.T.Failed() {
			c.T.Logf("routes of %s said:\n%s", n.Name, n.log)
		}
	})
	return n
}

func (n *Node) dir(name string) string { return filepath.Join(n.Dir, n.Name, name) }

// Conflist is the file by which the node's runtime finds the plugin.
func (n *Node) Conflist() string { return filepath.Join(n.dir("net.d"), "10-ropewalk.conflist") }

// Join puts the node's object, as it stands, where all nodes see it, and has the outside know by which node its pods are reached.
func (n *Node) Join() {
	n.T.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Node\nmetadata:\n  name: %s\nspec:\n  podCIDRs: [%q", n.Object, n.CIDRs[0])
	for _, p := range n.CIDRs[1:] {
		fmt.Fprintf(&b, ", %q", p)
	}
	b.WriteString("]\nstatus:\n  addresses:\n")
	for _, a := range n.Addrs {
		fmt.Fprintf(&b, "  - {type: InternalIP, address: %q}\n", a)
	}
	n.Put(n.Object, b.String())
	var routes strings.Builder
	for _, p := range n.CIDRs {
		for _, a := range n.Addrs {
			if Is4(p) == Is4(a) && !strings.HasPrefix(a, "198.51.100.") && !strings.HasPrefix(a, "2001:db8:0:1:") {
				fmt.Fprintf(&routes, "route replace %s via %s\n", p, a)
			}
		}
	}
	netns.Batch(n.T, Outside, routes.String())
}

// Leave takes the node's object away.
func (n *Node) Leave() { n.T.Helper(); n.Put(n.Object, "") }

// Is4 reports whether an address or range is of IPv4.
func Is4(a string) bool { return !strings.Contains(a, ":") }

// Start starts the node's agent.
func (n *Node) Start() {
	n.T.Helper()
	n.agent = exec.Command(n.Ropewalk, append([]string{"routes", "--node-name", n.Object, "--manifests", n.manifests(),
		"--conf-dir", n.dir("net.d"), "--data-dir", n.dir("data")}, n.Flags...)...)
	n.agent.Stderr = n.log
	n.ended = n.run(n.agent)
	n.T.Cleanup(func() { n.Stop(syscall.SIGKILL) })
}

// run starts a program on the node, which goes with the test, and returns what is closed when it has ended.
func (n *Node) run(cmd *exec.Cmd) (ended chan struct{}) {
	n.T.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() { // it stays until the program has ended: the signal comes when the thread ends that has started it
		defer close(ended)
		runtime.LockOSThread()
		err := enter(n.Name)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		n.T.Fatal(err)
	}
	return ended
}

// enter has the calling thread, which must be locked, be in a namespace.
func enter(name string) error {
	f, err := os.Open("/run/netns/" + name)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
}

// Stop ends the node's agent, which may have ended.
func (n *Node) Stop(with syscall.Signal) {
	if n.agent == nil {
		return
	}
	_ = n.agent.Process.Signal(with)
	<-n.ended
	n.agent = nil
}

// Resident returns the agent's memory, in bytes.
func (n *Node) Resident() int {
	n.T.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", n.agent.Process.Pid))
	if err != nil {
		n.T.Fatal(err)
	}
	var kB int
	for line := range strings.Lines(string(b)) {
		if _, err := fmt.Sscanf(line, "Pss: %d kB", &kB); err == nil {
			return kB << 10
		}
	}
	n.T.Fatalf("no Pss: %s", b)
	return 0
}

// Get asks the agent's HTTP server.
func (n *Node) Get(path string) (code int, body string) {
	n.T.Helper()
	var conn net.Conn
	var err error
	netns.In(n.T, n.Name, func() { conn, err = net.DialTimeout("tcp", "127.0.0.1:9156", patience) })
	if err != nil {
		return 0, err.Error()
	}
	defer conn.Close()
	already := func(context.Context, string, string) (net.Conn, error) { return conn, nil } // net/http would dial in another thread
	c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: already}}
	resp, err := c.Get("http://agent" + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// Metric returns the value of a metric without labels.
func (n *Node) Metric(name string) (value float64) {
	n.T.Helper()
	_, body := n.Get("/metrics")
	for line := range strings.Lines(body) {
		if _, err := fmt.Sscanf(line, name+" %g", &value); err == nil {
			return value
		}
	}
	n.T.Fatalf("no %s:\n%s", name, body)
	return 0
}

// Ready waits until the agent says that the kernel is right.
func (n *Node) Ready() {
	n.T.Helper()
	Soon(n.T, func() error {
		if code, body := n.Get("/readyz"); code != http.StatusOK {
			return fmt.Errorf("%s: %d %s", n.Name, code, body)
		}
		return nil
	})
}

// Pod makes a pod and attaches it. Ports are what a runtime asks for by the capability portMappings.
func (n *Node) Pod(name string, ports ...map[string]any) *Pod {
	n.T.Helper()
	p := &Pod{Node: n, Name: n.Name + "-" + name}
	if len(ports) > 0 {
		p.args = map[string]any{"portMappings": ports}
	}
	netns.Add(n.T, p.Name)
	var err error
	netns.In(n.T, n.Name, func() {
		var list *libcni.NetworkConfigList
		if list, err = libcni.ConfListFromFile(n.Conflist()); err != nil {
			return
		}
		res, e := n.cni.AddNetworkList(context.Background(), list, p.runtime())
		if err = e; err != nil {
			return
		}
		var r *current.Result
		if r, err = current.NewResultFromResult(res); err != nil {
			return
		}
		for _, ip := range r.IPs {
			p.Addrs = append(p.Addrs, ip.Address.IP.String())
		}
	})
	if err != nil {
		n.T.Fatalf("%s: ADD: %v", p.Name, err)
	}
	return p
}

// Del detaches the pod.
func (p *Pod) Del() {
	p.Node.T.Helper()
	var err error
	netns.In(p.Node.T, p.Node.Name, func() {
		var list *libcni.NetworkConfigList
		if list, err = libcni.ConfListFromFile(p.Node.Conflist()); err == nil {
			err = p.Node.cni.DelNetworkList(context.Background(), list, p.runtime())
		}
	})
	if err != nil {
		p.Node.T.Fatalf("%s: DEL: %v", p.Name, err)
	}
}

func (p *Pod) runtime() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: p.Name, NetNS: "/run/netns/" + p.Name, IfName: "eth0", CapabilityArgs: p.args,
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "ns"}, {"K8S_POD_NAME", p.Name}},
	}
}

// Addr returns the pod's address of the family that another address is of.
func (p *Pod) Addr(like string) string { return ofFamily(p.Addrs, like) }

// Addr returns the node's address of the family that another address is of; none is empty.
func (n *Node) Addr(like string) string { return ofFamily(n.Addrs, like) }

func ofFamily(addrs []string, like string) string {
	i := slices.IndexFunc(addrs, func(a string) bool { return Is4(a) == Is4(like) })
	if i < 0 {
		return ""
	}
	return addrs[i]
}

// Kernel returns what the node's kernel knows of others: routes of ours, neighbours and forwarding entries of the tunnel.
func (n *Node) Kernel() string {
	n.T.Helper()
	out := netns.Run(n.T, "ip", "-n", n.Name, "route", "show", "proto", "82") + netns.Run(n.T, "ip", "-n", n.Name, "-6", "route", "show", "proto", "82")
	if _, err := exec.Command("ip", "-n", n.Name, "link", "show", Device).Output(); err == nil {
		out += netns.Run(n.T, "ip", "-n", n.Name, "neigh", "show", "dev", Device) + netns.Run(n.T, "ip", "-n", n.Name, "-6", "neigh", "show", "dev", Device) +
			netns.Run(n.T, "bridge", "-n", n.Name, "fdb", "show", "dev", Device)
	}
	return out
}

// Device is the tunnel's.
const Device = "rw-vxlan"

// patience is how long to wait for what must come: long, since machines that run tests are busy.
const patience = 20 * time.Second

// Soon waits until is returns nil.
func Soon(t testing.TB, is func() error) {
	t.Helper()
	var err error
	for begun := time.Now(); time.Since(begun) < patience; time.Sleep(5 * time.Millisecond) {
		if err = is(); err == nil {
			return
		}
	}
	t.Fatal(err)
}
