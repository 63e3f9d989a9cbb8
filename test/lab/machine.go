package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/nftables"
	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/wait"
)

// path is where programs are, for pods.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// patience is how long anything may take to get ready, on a machine that is busy.
const patience = time.Minute

// newMachine is the command of the lab's first process, whose network namespace is that of the link between the nodes, and of what is outside
// of the cluster.
func newMachine() *cobra.Command {
	return &cobra.Command{Use: "machine", Hidden: true, Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		if err := runMachine(); err != nil {
			fmt.Println(err)
			return err
		}
		// Who has started this may have given up. Then nobody hears, and that ends it, too.
		if _, err := io.WriteString(os.Stdout, ready); err != nil {
			return err
		}
		if err := os.Stdout.Close(); err != nil {
			return err
		}
		untilEnded()
		return nil
	}}
}

type machine struct {
	*plan
	exe string // this program; others are in the same folder
}

// inherited is the lock of who has started this.
const inherited = 3

func runMachine() error {
	own, err := unix.Open(filepath.Join(state, "machine"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644) // it stays open
	if err != nil {
		return err
	}
	if err := errors.Join(unix.FcntlFlock(uintptr(own), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}), unix.Close(inherited)); err != nil {
		return err
	}
	if err := errors.Join(
		unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), // what is mounted here is not to show outside
		unix.Mount("proc", "/proc", "proc", 0, ""),
		// Programs cannot be run from /run on most machines, but nodes have their CNI plugins there.
		unix.Mount(state, state, "", unix.MS_BIND, ""),
		unix.Mount("", state, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID|unix.MS_NODEV, ""),
	); err != nil {
		return err
	}
	m := &machine{}
	if m.exe, err = self(); err != nil {
		return err
	}
	if m.plan, err = read(filepath.Join(state, "manifests")); err != nil {
		return err
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(state, "Corefile"), []byte(corefile), 0o644),
		os.WriteFile(nss, []byte("hosts: files dns\n"), 0o644),
	); err != nil {
		return err
	}
	if err := possible(); err != nil {
		return err
	}
	if err := m.link(); err != nil {
		return fmt.Errorf("the nodes' link: %w", err)
	}
	errs := make([]error, len(m.nodes))
	var wg sync.WaitGroup
	for i, n := range m.nodes {
		wg.Go(func() {
			if err := m.node(i, n); err != nil {
				errs[i] = fmt.Errorf("node %s: %w", n.name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// possible returns an error that names what this machine lacks, for which agents and pods would wait.
func possible() error {
	probe := netlink.LinkAttrs{Name: "probe"}
	link := func(l netlink.Link) func() error {
		return func() error {
			if err := netlink.LinkAdd(l); err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}
	}
	file := func(path string) func() error {
		return func() error {
			_, err := os.Stat(path)
			return err
		}
	}
	var errs []error
	for _, need := range []struct {
		what string
		try  func() error
	}{
		{"a kernel with IPv6", func() error { return sysctls() }},
		{"a kernel with bridge", link(&netlink.Bridge{LinkAttrs: probe})},
		{"a kernel with veth", link(&netlink.Veth{LinkAttrs: probe, PeerName: "peer"})},
		{"a kernel with vxlan", link(&netlink.Vxlan{LinkAttrs: probe, VxlanId: 1, Port: 8472})},
		{"a kernel with nftables (nf_tables)", func() error {
			c, err := nftables.New()
			if err == nil {
				_, err = c.ListTables()
			}
			return err
		}},
		{"a file where pods have theirs", file("/etc/hosts")},
		{"a file where pods have theirs", file("/etc/resolv.conf")},
	} {
		if err := need.try(); err != nil {
			errs = append(errs, fmt.Errorf("it needs %s: %w", need.what, err))
		}
	}
	return errors.Join(errs...)
}

// nss is the pods' /etc/nsswitch.conf. By the machine's own, names may be asked of a daemon of the machine, which knows nothing of the cluster.
const nss = state + "/nsswitch.conf"

// corefile is that of the pods behind the cluster's DNS.
const corefile = `.:53 {
    errors
    ropewalk cluster.local in-addr.arpa ip6.arpa {
        manifests ` + state + `/manifests
        pods verified
    }
    prometheus :9153
    loadbalance
}
`

func (m *machine) binary(name string) string { return filepath.Join(filepath.Dir(m.exe), name) }

// sysctls are for a namespace with links: an address can be used at once.
func sysctls(more ...string) error {
	for _, name := range append(more, "ipv6/conf/default/accept_dad=0") {
		name, value, _ := strings.Cut(name, "=")
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// bridge is the device that is the nodes' link.
const bridge = "link"

// link makes what nodes are connected to, and who is there besides: a router at each of their networks' first address, and what is outside of
// the cluster.
func (m *machine) link() error {
	if err := sysctls("ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1"); err != nil {
		return err
	}
	snooping := false
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(br); err != nil {
		return err
	}
	if err := setUp("lo", bridge); err != nil {
		return err
	}
	here := map[netip.Prefix]bool{}
	for _, n := range m.nodes {
		for _, a := range n.addrs {
			here[netip.PrefixFrom(gateway(a), network(a).Bits())] = true
		}
	}
	for a := range m.outside {
		here[netip.PrefixFrom(a, a.BitLen())] = true
	}
	for p := range here {
		if err := addAddr(bridge, p); err != nil {
			return err
		}
	}
	for a, ports := range m.outside {
		for port := range ports {
			if err := serve(netip.AddrPortFrom(a, uint16(port)).String(), a.String()+" outside"); err != nil {
				return err
			}
		}
	}
	return nil
}

// network returns the network that a node's address is of.
func network(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 24
	}
	return netip.PrefixFrom(a, bits).Masked()
}

func gateway(node netip.Addr) netip.Addr { return network(node).Addr().Next() }

func setUp(names ...string) error {
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func addAddr(name string, p netip.Prefix) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	ip := net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
	if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &ip}); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return nil
}

// sandbox is a process in namespaces of its own that waits with what it is for.
type sandbox struct {
	dir string
	pid int
	in  io.Closer
}

// proceed lets it begin.
func (s *sandbox) proceed() error { return s.in.Close() }

// sandbox starts one, with a directory for what there is to know of it.
func (m *machine) sandbox(dir string, env []string, args ...string) (*sandbox, error) {
	dir = filepath.Join(state, dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(m.exe, append([]string{"sandbox"}, args...)...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", env, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = cmd.Wait() }() // its log says why
	return &sandbox{dir, cmd.Process.Pid, in}, errors.Join(
		os.WriteFile(filepath.Join(dir, "env"), []byte(strings.Join(env, "\n")), 0o644),
		os.WriteFile(filepath.Join(dir, "pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644))
}

// within runs f in the network namespace of a process, on a thread that ends with it.
func within(pid int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			_ = ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// node makes a node with its agent and pods, and returns when they answer.
func (m *machine) node(i int, n *node) error {
	dir := filepath.Join(state, "nodes", n.name)
	for _, d := range n.pods { // the kubelet's part, which the agent then fills
		file := d.hostsFile(n)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o644)); err != nil {
			return err
		}
	}
	config := fmt.Sprintf("apiVersion: ropewalk.dev/v1alpha1\nkind: AgentConfiguration\nhosts:\n  kubelet-dir: %[1]s/kubelet\n"+
		"routes:\n  conf-dir: %[1]s/net.d\n  data-dir: %[1]s/data\ncni:\n  plugin: %[2]s\n  bin-dir: %[1]s/bin\n", dir, m.binary("ropewalk-cni"))
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "agent.yaml"), []byte(config), 0o644)); err != nil {
		return err
	}
	env := []string{"PATH=" + filepath.Dir(m.exe) + ":" + path, "HOME=/root"}
	s, err := m.sandbox(filepath.Join("nodes", n.name), env, "--hostname", n.name, "--again", "--",
		m.binary("ropewalk"), "agent", "--node-name", n.name, "--manifests", filepath.Join(state, "manifests"), "--config", filepath.Join(dir, "agent.yaml"))
	if err != nil {
		return err
	}
	if err := m.plug(fmt.Sprintf("port%d", i), s.pid, n.addrs); err != nil {
		return err
	}
	if err := s.proceed(); err != nil {
		return err
	}
	return within(s.pid, func() error {
		for _, d := range n.pods {
			if err := m.pod(n, d); err != nil {
				return fmt.Errorf("pod %s/%s: %w", d.namespace, d.name, err)
			}
		}
		return m.answers(n)
	})
}

// plug connects a node to the link.
func (m *machine) plug(port string, pid int, addrs []netip.Addr) error {
	if err := within(pid, func() error { return sysctls() }); err != nil {
		return err
	}
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, MasterIndex: br.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	if err := setUp(port); err != nil {
		return err
	}
	return within(pid, func() error {
		if err := setUp("eth0"); err != nil {
			return err
		}
		for _, a := range addrs {
			if err := addAddr("eth0", netip.PrefixFrom(a, network(a).Bits())); err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{Gw: gateway(a).AsSlice()}); err != nil {
				return fmt.Errorf("the route by way of %s: %w", gateway(a), err)
			}
		}
		return nil
	})
}

func (d *pod) hostsFile(n *node) string {
	return filepath.Join(state, "nodes", n.name, "kubelet/pods", d.uid, "etc-hosts")
}

// pod makes a pod, as the kubelet and a container runtime do: a sandbox, the network, the files, then what is in it. It is called in the node's
// network namespace.
func (m *machine) pod(n *node, d *pod) error {
	dir := filepath.Join("pods", d.namespace, d.name)
	resolv := filepath.Join(state, dir, "resolv.conf")
	text := fmt.Sprintf("search %s.svc.cluster.local svc.cluster.local cluster.local\nnameserver %s\noptions ndots:5\n", d.namespace, m.dns)
	if err := errors.Join(os.MkdirAll(filepath.Dir(resolv), 0o755), os.WriteFile(resolv, []byte(text), 0o644)); err != nil {
		return err
	}
	args := []string{"--hostname", d.hostname, "--hosts", d.hostsFile(n), "--resolv", resolv, "--nss", nss}
	if d.dns {
		args = append(args, "--", m.binary("coredns"), "-conf", filepath.Join(state, "Corefile"))
	} else {
		args = append(args, "--name", fmt.Sprintf("%s/%s on %s", d.namespace, d.name, n.name))
		for _, port := range d.ports.sorted() {
			args = append(args, "--port", strconv.Itoa(int(port)))
		}
	}
	s, err := m.sandbox(dir, d.env, args...)
	if err != nil {
		return err
	}
	if err := m.attach(n, d, s.pid); err != nil {
		return err
	}
	if err := wait.Until(patience, func() error {
		switch i, err := os.Stat(d.hostsFile(n)); {
		case err != nil:
			return err
		case i.Size() == 0:
			return errors.New("its hosts file is empty")
		}
		return nil
	}); err != nil {
		return err
	}
	return s.proceed()
}

// attach has the plugin that the agent has installed attach a pod, with the addresses that its object has.
func (m *machine) attach(n *node, d *pod, pid int) error {
	dir := filepath.Join(state, "nodes", n.name)
	plugins, conf := filepath.Join(dir, "bin"), filepath.Join(dir, "net.d", "10-ropewalk.conflist")
	if err := wait.Until(patience, func() error {
		_, err := os.Stat(filepath.Join(plugins, "ropewalk-cni"))
		_, err2 := os.Stat(conf)
		return errors.Join(err, err2)
	}); err != nil {
		return err
	}
	list, err := libcni.ConfListFromFile(conf)
	if err != nil {
		return err
	}
	var ips []string
	for _, a := range d.addrs {
		ips = append(ips, a.String())
	}
	_, err = libcni.NewCNIConfigWithCacheDir([]string{plugins}, filepath.Join(dir, "cache"), nil).AddNetworkList(context.Background(), list, &libcni.RuntimeConf{
		ContainerID: d.uid, NetNS: fmt.Sprintf("/proc/%d/ns/net", pid), IfName: "eth0", CapabilityArgs: map[string]any{"ips": ips},
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", d.namespace}, {"K8S_POD_NAME", d.name}},
	})
	return err
}

// answers waits until the agent says that all its parts are ready, and the node reaches its pods and the cluster's DNS. It is called in the
// node's network namespace.
func (m *machine) answers(n *node) error {
	if err := wait.Until(patience, func() error {
		out, err := exec.Command(m.binary("ropewalk"), "status").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("ropewalk status: %w\n%s", err, out)
		}
		return err
	}); err != nil {
		return err
	}
	at := []netip.AddrPort{netip.AddrPortFrom(m.dns, 53)}
	for _, d := range n.pods {
		for port := range d.ports {
			for _, a := range d.addrs {
				at = append(at, netip.AddrPortFrom(a, uint16(port)))
			}
		}
	}
	for _, a := range at {
		if err := wait.Until(patience, func() error {
			c, err := net.DialTimeout("tcp", a.String(), time.Second)
			if err == nil {
				err = c.Close()
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}
