package nodes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

// stockEnv names the directory with flanneld and the reference plugins, which make builds.
const stockEnv = "ROPEWALK_TEST_STOCK"

// flannel is the network of a cluster that is to move to ours: upstream's flanneld on each node, with the manifest's arguments, and pods that
// the reference plugins attach.
type flannel struct {
	t       *testing.T
	cluster *Cluster
	api     *standin.Server
	config  string // the file that flanneld calls net-conf.json
	stock   string
	running map[*Node]func()
}

func newFlannel(t *testing.T, families, backend string, flags ...string) *flannel {
	t.Helper()
	f := &flannel{t: t, api: standin.New(t), stock: os.Getenv(stockEnv), running: map[*Node]func(){}}
	netns.Need(t, f.stock != "", stockEnv+" is not set: run make test")
	netns.NeedCommand(t, "iptables-nft-save")
	f.cluster = New(t, Spec{Ropewalk: os.Getenv("ROPEWALK_TEST_ROPEWALK"), Plugin: os.Getenv("ROPEWALK_TEST_CNI"), Dir: t.TempDir(), Addrs: families, Pods: families, Flags: flags})
	f.config = filepath.Join(f.cluster.Dir, "net-conf.json")
	f.configure(backend)
	return f
}

// configure has flannel have a backend from its next start on.
func (f *flannel) configure(backend string) {
	f.t.Helper()
	if err := os.WriteFile(f.config, fmt.Appendf(nil, `{"Network": "10.244.0.0/16", "EnableIPv6": %t, "IPv6Network": "fd00:244::/48", "Backend": %s}`, f.cluster.Pods == "46", backend), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// add makes the i-th node, known to both.
func (f *flannel) add(i int) *Node {
	f.t.Helper()
	n := f.cluster.Add(i, false)
	f.loopback(n)
	object := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Annotations: map[string]string{"node.alpha.kubernetes.io/ttl": "0"}}, // flanneld cannot be without any
		Spec:       corev1.NodeSpec{PodCIDR: n.CIDRs[0], PodCIDRs: n.CIDRs},
	}
	for _, a := range n.Addrs {
		object.Status.Addresses = append(object.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	f.api.Apply(object)
	return n
}

// loopback has the API server answer on the node's loopback, too, until the test ends.
func (f *flannel) loopback(n *Node) {
	f.t.Helper()
	u, err := url.Parse(f.api.URL())
	if err != nil {
		f.t.Fatal(err)
	}
	var l net.Listener
	netns.In(f.t, n.Name, func() { l, err = net.Listen("tcp", u.Host) })
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer near.Close()
				far, err := net.Dial("tcp", u.Host)
				if err != nil {
					return
				}
				defer far.Close()
				go func() {
					_, _ = io.Copy(far, near)
					_ = far.Close()
				}()
				_, _ = io.Copy(near, far)
			}()
		}
	}()
}

// start starts flanneld on a node, waits until it is ready, and gives the runtime the list that flannel's own plugin makes of what it says.
func (f *flannel) start(n *Node) {
	f.t.Helper()
	env := n.dir("subnet.env")
	if err := os.RemoveAll(env); err != nil {
		f.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(f.stock, "flanneld"), "--ip-masq", "--kube-subnet-mgr", "--kubeconfig-file", f.api.Kubeconfig(f.cluster.Dir),
		"--net-config-path", f.config, "--subnet-file", env)
	cmd.Env = append(os.Environ(), "NODE_NAME="+n.Object)
	cmd.Stdout, cmd.Stderr = n.log, n.log
	ended := n.run(cmd)
	f.running[n] = func() {
		_ = cmd.Process.Kill()
		<-ended
		delete(f.running, n)
	}
	f.t.Cleanup(func() {
		if stop := f.running[n]; stop != nil {
			stop()
		}
	})
	var said []byte
	Soon(f.t, func() (err error) {
		said, err = os.ReadFile(env)
		return err
	})
	is := map[string]string{}
	for line := range strings.Lines(string(said)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		is[name] = value
	}
	var ranges, routes []string
	for _, c := range n.CIDRs {
		network := is["FLANNEL_NETWORK"]
		if !Is4(c) {
			network = is["FLANNEL_IPV6_NETWORK"]
		}
		ranges, routes = append(ranges, fmt.Sprintf(`[{"subnet": %q}]`, c)), append(routes, fmt.Sprintf(`{"dst": %q}`, network))
	}
	list := fmt.Sprintf(`{"name": "cbr0", "cniVersion": "1.0.0", "plugins": [
  {"type": "bridge", "mtu": %s, "ipMasq": false, "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
    "ipam": {"type": "host-local", "dataDir": %q, "ranges": [%s], "routes": [%s]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`, is["FLANNEL_MTU"], n.dir("host-local"), strings.Join(ranges, ", "), strings.Join(routes, ", "))
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{f.stock}, n.dir("cache"), nil)
	if err := errors.Join(os.MkdirAll(filepath.Dir(n.Conflist()), 0o755), os.WriteFile(n.Conflist(), []byte(list), 0o644)); err != nil {
		f.t.Fatal(err)
	}
}

// reboot ends all that a node runs, and has it come back with nothing in its kernel, nor in its files. Its network card is the same.
func (f *flannel) reboot(n *Node, i int, pods ...*Pod) *Node {
	f.t.Helper()
	if stop := f.running[n]; stop != nil {
		stop()
	}
	n.Stop(syscall.SIGKILL)
	var card netlink.Link
	var err error
	netns.In(f.t, n.Name, func() { card, err = netlink.LinkByName("eth0") })
	if err != nil {
		f.t.Fatal(err)
	}
	netns.Run(f.t, "ip", "-n", links, "link", "del", "n-"+n.Name)
	for _, p := range pods {
		netns.Run(f.t, "ip", "netns", "del", p.Name)
	}
	netns.Run(f.t, "ip", "netns", "del", n.Name)
	if err := os.RemoveAll(filepath.Join(n.Dir, n.Name)); err != nil {
		f.t.Fatal(err)
	}
	n = f.cluster.Add(i, false)
	netns.Batch(f.t, n.Name, fmt.Sprintf("link set eth0 address %s\n", card.Attrs().HardwareAddr))
	f.loopback(n)
	return n
}

// TestFromFlannelDirect holds that pods of nodes with flannel's routes and of nodes with ours reach each other while a cluster moves, node
// by node, and back.
func TestFromFlannelDirect(t *testing.T) {
	for _, backend := range []string{"host-gw", "vxlan"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			if netns.Enter(t) {
				testFromFlannelDirect(t, backend)
			}
		})
	}
}

func testFromFlannelDirect(t *testing.T, backend string) {
	f := newFlannel(t, "46", fmt.Sprintf(`{"Type": %q}`, backend), "--overlay", "direct")
	n1, n2 := f.add(1), f.add(2)
	f.start(n1)
	f.start(n2)
	stay, goes := serving(n1, "a"), serving(n2, "a")
	f.see(stay, goes)
	if backend == "vxlan" { // it gets routes without tunnels, by a new start
		f.configure(`{"Type": "vxlan", "DirectRouting": true}`)
		for _, n := range []*Node{n1, n2} {
			f.running[n]()
			f.start(n)
		}
		for i, n := range []*Node{n1, n2} {
			Soon(t, func() error {
				routes := netns.Run(t, "ip", "-n", n.Name, "route") + netns.Run(t, "ip", "-n", n.Name, "-6", "route")
				for _, a := range []*Node{n2, n1}[i].Addrs {
					if !strings.Contains(routes, " via "+a+" dev eth0") {
						return errors.New(routes)
					}
				}
				return nil
			})
		}
		f.see(stay, goes)
	}

	n2 = f.reboot(n2, 2, goes)
	n2.Start()
	n2.Ready()
	moved := serving(n2, "b")
	f.see(stay, moved)

	// Others' flannel may start anew meanwhile: what it has told the API of the node that has moved is still there.
	f.running[n1]()
	f.start(n1)
	f.see(stay, moved, serving(n1, "b"))

	if backend == "host-gw" {
		f.newcomer(stay, moved)
	}

	n1 = f.reboot(n1, 1, stay)
	n1.Start()
	n1.Ready()
	stay = serving(n1, "c")
	f.see(stay, moved)

	n2 = f.reboot(n2, 2, moved)
	f.start(n2)
	f.see(stay, serving(n2, "c"))
}

// newcomer holds that a node that has never had flannel is known to those that have, if it is made known by flannel's annotations.
func (f *flannel) newcomer(stay, moved *Pod) {
	n := f.add(3)
	n.Start()
	n.Ready()
	fresh := serving(n, "a")
	f.see(moved, fresh)
	for _, a := range stay.Addrs {
		if err := (probe{from: fresh.Name, to: net.JoinHostPort(a, "80"), want: "timeout", only: "udp"}).run(f.t, 500*time.Millisecond); err != nil {
			f.t.Errorf("without annotations: %v", err)
		}
	}
	f.annotate(n, documented(f.t, "kubectl annotate node worker-1 flannel", "10.0.0.11", n.Addr("0.0.0.0"), "fd00:10::11", n.Addr("::")))
	f.see(stay, moved, fresh)
}

// TestFromFlannelTunnels holds what docs/migrate.md says of tunnels: flannel's and ours do not understand each other by themselves, and for
// IPv4 they do when flannel's have the hardware addresses that ours know them by.
func TestFromFlannelTunnels(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	f := newFlannel(t, "4", `{"Type": "vxlan"}`, "--overlay", "vxlan", "--vxlan-id", "1")
	n1, n2, n3 := f.add(1), f.add(2), f.add(3)
	for _, n := range []*Node{n1, n2, n3} {
		f.start(n)
	}
	stay, goes2, goes3 := serving(n1, "a"), serving(n2, "a"), serving(n3, "a")
	f.see(stay, goes2, goes3)

	n2, n3 = f.reboot(n2, 2, goes2), f.reboot(n3, 3, goes3)
	n2.Start()
	n3.Start()
	n2.Ready()
	n3.Ready()
	moved, other := serving(n2, "b"), serving(n3, "b")
	f.see(moved, other)
	near, far, out := net.JoinHostPort(n2.Addrs[0], "80"), net.JoinHostPort(n1.Addrs[0], "80"), net.JoinHostPort(Outside4, "80")
	clusternet.Serve(t, n2.Name, near)
	clusternet.Serve(t, n1.Name, far)
	clusternet.Serve(t, Outside, out)
	see(t, probe{from: moved.Name, to: out, want: Outside}, probe{from: n1.Name, to: near, want: n2.Name}, probe{from: n2.Name, to: far, want: n1.Name},
		probe{from: stay.Name, to: near, want: n2.Name})
	stayed, gone := net.JoinHostPort(stay.Addrs[0], "80"), net.JoinHostPort(moved.Addrs[0], "80")
	mixed := []probe{{from: stay.Name, to: gone, want: moved.Name}, {from: moved.Name, to: stayed, want: stay.Name},
		{from: n1.Name, to: gone, want: moved.Name}, {from: n2.Name, to: stayed, want: stay.Name}, {from: moved.Name, to: far, want: n1.Name}}
	for _, p := range mixed {
		p.want, p.only = "timeout", "udp"
		if err := p.run(t, 500*time.Millisecond); err != nil {
			t.Error(err)
		}
	}

	// Flannel's tunnels get the addresses by which those that have moved know them, and are told those of ours.
	const known, own = "0a:b3:7b:07:b5:58", "0a:b3:7e:07:b5:58" // in the document
	neigh := netns.Run(t, "ip", "netns", "exec", n2.Name, "sh", "-c", documented(t, "ip neigh"))
	line := regexp.MustCompile(`(?m)^` + strings.TrimSuffix(n1.CIDRs[0], "/24") + ` lladdr (\S+)`).FindStringSubmatch(neigh)
	if line == nil {
		t.Fatal(neigh)
	}
	netns.Run(t, "ip", "netns", "exec", n1.Name, "sh", "-c", documented(t, "ip link set", known, line[1]))
	netns.Run(t, "ip", "netns", "exec", n1.Name, "sh", "-c", documented(t, "sysctl"))
	f.running[n1]()
	f.start(n1)
	for _, n := range []*Node{n2, n3} {
		f.annotate(n, documented(t, "kubectl annotate node worker-1 --overwrite", own, n.address()))
	}
	see(t, mixed...)
	f.see(stay, moved, other)
}

// address returns the hardware address of the node's tunnel.
func (n *Node) address() (mac string) {
	n.T.Helper()
	netns.In(n.T, n.Name, func() {
		link, err := netlink.LinkByName(Device)
		if err != nil {
			n.T.Error(err)
			return
		}
		mac = link.Attrs().HardwareAddr.String()
	})
	return mac
}

// documented returns the command of docs/migrate.md that begins so, with values of the cluster in the place of the document's.
func documented(t *testing.T, begin string, instead ...string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/migrate.md")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^    (` + regexp.QuoteMeta(begin) + `.*)$`).FindStringSubmatch(string(text))
	if line == nil {
		t.Fatalf("no command %s", begin)
	}
	return strings.NewReplacer(instead...).Replace(line[1])
}

// annotate does to the node's object what a command of kubectl's says.
func (f *flannel) annotate(n *Node, command string) {
	f.t.Helper()
	annotations := map[string]string{}
	for _, word := range strings.Fields(command) {
		if name, value, ok := strings.Cut(word, "="); ok {
			annotations[name] = strings.Trim(value, "'")
		}
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		f.t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPatch, f.api.URL()+"/api/v1/nodes/"+n.Object, bytes.NewReader(patch))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Content-Type", string(types.StrategicMergePatchType))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		f.t.Fatal(resp.Status)
	}
}

// see holds that all pods reach each other, and their nodes as well.
func (f *flannel) see(pods ...*Pod) {
	f.t.Helper()
	probes := pairs(pods)
	for _, to := range pods {
		for _, from := range pods {
			for _, a := range to.Addrs {
				probes = append(probes, probe{from: from.Node.Name, to: net.JoinHostPort(a, "80"), want: to.Name})
			}
		}
	}
	see(f.t, probes...)
}
