package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/bench/report"
)

// way is one from a pod to another, and what packets cost on it.
type way struct {
	name string
	from string // the namespace
	to   net.IP
	// rate is in bytes a second, and cpu what all cores did for a gigabyte; turn is a byte there and one back.
	rate       report.Samples[int64]
	cpu        times
	turn, slow times
}

// group are ways that are compared, the first with the second.
type group struct {
	title string
	ways  []*way
	part  float64 // of the second's rate that the first's is to be at least
}

// packets measures all ways in turns, so that what else the machine does hits all alike.
func packets(ctx context.Context, dir string) (string, error) {
	same, err := sameNode(ctx, dir)
	if err != nil {
		return "", err
	}
	tunnel, err := acrossNodes(ctx, dir, "tunnel", ropewalkNodes("vxlan"), flannel{tunnel: true}.nodes)
	if err != nil {
		return "", err
	}
	direct, err := acrossNodes(ctx, dir, "direct", ropewalkNodes("direct"), flannel{}.nodes)
	if err != nil {
		return "", err
	}
	groups := []group{{"On one node", same, 1}, {"Between nodes, by VXLAN", tunnel, 1}, {"Between nodes, by plain routes", direct, 1}}
	for range *rounds {
		for _, g := range groups {
			for _, w := range g.ways {
				if err := w.measure(); err != nil {
					return "", fmt.Errorf("%s: %s: %w", g.title, w.name, err)
				}
			}
		}
	}
	text := fmt.Sprintf("**Packets between pods**: a stream of TCP for %v, and a byte back and forth, %d rounds.\n", *each, *rounds)
	for _, g := range groups {
		var names []string
		for _, w := range g.ways {
			names = append(names, w.name)
		}
		rate := report.Row[*way]{Name: "stream, rate", Unit: "MB/s", Share: func(w *way, q float64) float64 { return float64(w.rate.At(q)) / 1e6 }, Part: g.part}
		text += "\n" + g.title + ":\n\n" + report.Compare(names, g.ways, []report.Row[*way]{
			rate,
			report.Took("stream, CPU time of all for 1 GB", "ms", func(w *way) times { return w.cpu }),
			report.Took("a byte there and back", "µs", func(w *way) times { return w.turn }),
			report.Took("a byte there and back, 99th percentile", "µs", func(w *way) times { return w.slow }),
		}, true)
	}
	return text, nil
}

// space makes a namespace that may be a node: it forwards, and uses addresses at once.
func space(name string) error {
	if err := errors.Join(ip("", "netns add "+name+"\n"), ip(name, "link set lo up\n")); err != nil {
		return err
	}
	return in(name, func() error {
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0),
			os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
	})
}

// in runs f in a namespace. Sockets that f opens stay there, and programs that it runs are there.
func in(name string, f func() error) error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, for it is in another namespace
		file, err := os.Open("/run/netns/" + name)
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
			_ = file.Close()
		}
		if err == nil {
			err = f()
		}
		failed <- err
	}()
	return <-failed
}

// attach makes a pod of a node and has it answer. It returns its IPv4 address.
func attach(ctx context.Context, node, pod string, list *libcni.NetworkConfigList, cni *libcni.CNIConfig) (net.IP, error) {
	if err := ip("", "netns add "+pod+"\n"); err != nil {
		return nil, err
	}
	if err := in(node, func() error { _, err := cni.AddNetworkList(ctx, list, attachment(pod, nil)); return err }); err != nil {
		return nil, err
	}
	var found net.IP
	err := in(pod, func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := eth0.Addrs()
		for _, a := range addrs {
			if n := a.(*net.IPNet); n.IP.To4() != nil {
				found = n.IP
			}
		}
		l, err2 := net.Listen("tcp4", ":8080")
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		go serve(l)
		return nil
	})
	return found, err
}

// sameNode has two pods on each of some nodes.
func sameNode(ctx context.Context, dir string) (ways []*way, err error) {
	for i, c := range []struct {
		name    string
		plugins []map[string]any
	}{
		{"Ropewalk", []map[string]any{ropewalkCNI(dir, "routed", 0)}},
		{"reference bridge", chain(dir, 1)[:1]},
		{"Ropewalk, mode bridge", []map[string]any{ropewalkCNI(dir, "bridge", 2)}},
		{"reference ptp", []map[string]any{{"type": "ptp", "ipam": hostLocal(dir, 3)}}},
	} {
		list, cni, err := libCNI(dir, fmt.Sprint("same", i), c.plugins)
		if err != nil {
			return nil, err
		}
		node := fmt.Sprint("same", i)
		if err := space(node); err != nil {
			return nil, err
		}
		if _, err := attach(ctx, node, node+"-a", list, cni); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		to, err := attach(ctx, node, node+"-b", list, cni)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		ways = append(ways, &way{name: c.name, from: node + "-a", to: to})
	}
	return ways, nil
}

// nodeNet makes two nodes, that have a link, and their networks for pods; it returns how pods get onto them.
type nodeNet func(ctx context.Context, dir string, nodes [2]string) (name string, lists [2]*libcni.NetworkConfigList, cni *libcni.CNIConfig, err error)

// acrossNodes has a pod on each of two nodes, for each of the networks.
func acrossNodes(ctx context.Context, dir, what string, networks ...nodeNet) (ways []*way, err error) {
	for i, network := range networks {
		nodes := [2]string{fmt.Sprintf("%s%d-1", what, i), fmt.Sprintf("%s%d-2", what, i)}
		for _, n := range nodes {
			if err := space(n); err != nil {
				return nil, err
			}
		}
		if err := ip("", fmt.Sprintf("link add eth0 netns %s type veth peer name eth0 netns %s\n", nodes[0], nodes[1])); err != nil {
			return nil, err
		}
		for n, node := range nodes {
			if err := ip(node, fmt.Sprintf("addr add 192.0.2.%d/24 dev eth0\nlink set eth0 up\nroute add default via 192.0.2.%d\n", n+1, 2-n)); err != nil {
				return nil, err
			}
		}
		name, lists, cni, err := network(ctx, filepath.Join(dir, nodes[0]), nodes)
		if err != nil {
			return nil, err
		}
		if _, err := attach(ctx, nodes[0], nodes[0]+"-a", lists[0], cni); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		to, err := attach(ctx, nodes[1], nodes[1]+"-b", lists[1], cni)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		w := &way{name: name, from: nodes[0] + "-a", to: to}
		if err := w.open(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		ways = append(ways, w)
	}
	return ways, nil
}

// ropewalkNodes runs the program on both nodes, for as long as the benchmark runs.
func ropewalkNodes(overlay string) nodeNet {
	return func(ctx context.Context, dir string, nodes [2]string) (name string, lists [2]*libcni.NetworkConfigList, cni *libcni.CNIConfig, err error) {
		name = "Ropewalk, " + overlay
		manifests := filepath.Join(dir, "manifests")
		if err := os.MkdirAll(manifests, 0o755); err != nil {
			return name, lists, nil, err
		}
		for i, node := range nodes {
			text := fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDRs: [10.244.%d.0/24]}\nstatus:\n  addresses:\n  - {type: InternalIP, address: 192.0.2.%d}\n",
				node, i+1, i+1)
			if err := os.WriteFile(filepath.Join(manifests, node+".yaml"), []byte(text), 0o644); err != nil {
				return name, lists, nil, err
			}
		}
		for i, node := range nodes {
			conf := filepath.Join(dir, node)
			cmd := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+node, filepath.Join(*ours, "ropewalk"), "routes", "--node-name", node,
				"--manifests", manifests, "--overlay", overlay, "--conf-dir", conf, "--data-dir", filepath.Join(conf, "data"), "--metrics", "")
			log, err := os.Create(filepath.Join(dir, node+".log"))
			if err != nil {
				return name, lists, nil, err
			}
			cmd.Stderr = log
			if err := cmd.Start(); err != nil { // the kernel ends it with the namespaces
				return name, lists, nil, err
			}
			file := filepath.Join(conf, "10-ropewalk.conflist")
			for lists[i] == nil {
				if lists[i], err = libcni.ConfListFromFile(file); err == nil {
					break
				}
				select {
				case <-ctx.Done():
					return name, lists, nil, errors.Join(err, ctx.Err())
				case <-time.After(10 * time.Millisecond):
				}
			}
		}
		return name, lists, libcni.NewCNIConfigWithCacheDir([]string{*ours}, filepath.Join(dir, "cache"), nil), nil
	}
}

// flannel is what flannel makes on a node, made by hand: pods on a bridge, and a tunnel or a route for each other node, and rules that
// leave packets between pods alone.
type flannel struct{ tunnel bool }

func (f flannel) nodes(ctx context.Context, dir string, nodes [2]string) (name string, lists [2]*libcni.NetworkConfigList, cni *libcni.CNIConfig, err error) {
	name, mtu := "flannel's host-gw", 1500
	if f.tunnel {
		name, mtu = "flannel's VXLAN", 1450
	}
	for i, node := range nodes {
		ipam := map[string]any{"type": "host-local", "dataDir": filepath.Join(dir, node), "ranges": [][]map[string]any{{{"subnet": fmt.Sprintf("10.244.%d.0/24", i+1)}}}}
		lists[i], cni, err = libCNI(dir, "flannel", []map[string]any{{"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "mtu": mtu, "ipam": ipam}})
		if err != nil {
			return name, lists, cni, err
		}
		other, mac, theirs := 2-i, "02:00:00:00:00:0%d", 2-i
		commands := fmt.Sprintf("route add 10.244.%d.0/24 via 192.0.2.%d\n", other, other)
		if f.tunnel {
			commands = fmt.Sprintf("link add flannel.1 address "+mac+" mtu 1450 type vxlan id 1 local 192.0.2.%d dev eth0 dstport 8472 nolearning\n"+
				"addr add 10.244.%d.0/32 dev flannel.1\nlink set flannel.1 up\nneigh add 10.244.%d.0 dev flannel.1 lladdr "+mac+" nud permanent\n"+
				"route add 10.244.%d.0/24 via 10.244.%d.0 dev flannel.1 onlink\n", i+1, i+1, i+1, other, theirs, other, other)
		}
		if err := ip(node, commands); err != nil {
			return name, lists, cni, err
		}
		if f.tunnel {
			cmd := exec.CommandContext(ctx, "bridge", "-n", node, "fdb", "add", fmt.Sprintf(mac, theirs), "dev", "flannel.1", "dst", fmt.Sprintf("192.0.2.%d", other))
			if out, err := cmd.CombinedOutput(); err != nil {
				return name, lists, cni, fmt.Errorf("bridge: %w: %s", err, out)
			}
		}
		if err := in(node, func() error {
			cmd := exec.CommandContext(ctx, "nft", "-f", "-")
			cmd.Stdin = strings.NewReader(fmt.Sprintf("table ip flannel-ipv4 {\n chain postrtg {\n type nat hook postrouting priority srcnat;\n meta mark 0x4000 return\n"+
				" ip saddr 10.244.%[1]d.0/24 ip daddr 10.244.0.0/16 return\n ip saddr 10.244.0.0/16 ip daddr 10.244.%[1]d.0/24 return\n"+
				" ip saddr != 10.244.%[1]d.0/24 ip daddr 10.244.0.0/16 return\n ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random\n }\n}\n", i+1))
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("nft: %w: %s", err, out)
			}
			return nil
		}); err != nil {
			return name, lists, cni, err
		}
	}
	return name, lists, cni, nil
}

// What a connection is for is its first byte.
const (
	sink = 's' // all is read, and how much it was is the answer
	echo = 'e' // each byte comes back
)

func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			kind := make([]byte, 1)
			if _, err := io.ReadFull(c, kind); err != nil {
				return
			}
			if kind[0] == echo {
				for {
					if _, err := io.ReadFull(c, kind); err != nil {
						return
					}
					if _, err := c.Write(kind); err != nil {
						return
					}
				}
			}
			n, _ := io.CopyBuffer(io.Discard, struct{ io.Reader }{c}, make([]byte, 256<<10))
			_ = binary.Write(c, binary.BigEndian, n)
		}()
	}
}

func (w *way) dial(kind byte) (c *net.TCPConn, err error) {
	err = in(w.from, func() error {
		d, err := net.DialTimeout("tcp4", net.JoinHostPort(w.to.String(), "8080"), 2*time.Second)
		if err != nil {
			return err
		}
		c = d.(*net.TCPConn)
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		_, err = c.Write([]byte{kind})
		return err
	})
	return c, err
}

// open waits until packets get there.
func (w *way) open(ctx context.Context) error {
	for {
		c, err := w.dial(echo)
		if err == nil {
			return c.Close()
		}
		if ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		time.Sleep(50 * time.Millisecond) // it is the kernel's to notice that links are up
	}
}

// turns is how many bytes go back and forth in a round.
const turns = 4000

func (w *way) measure() error {
	if err := w.stream(); err != nil {
		return err
	}
	c, err := w.dial(echo)
	if err != nil {
		return err
	}
	defer c.Close()
	var took times
	b := make([]byte, 1)
	for range turns {
		start := time.Now()
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		took.Add(time.Since(start))
	}
	w.turn.Add(took.At(0.5))
	w.slow.Add(took.At(0.99))
	return nil
}

func (w *way) stream() error {
	c, err := w.dial(sink)
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 256<<10)
	used, err := busy()
	if err != nil {
		return err
	}
	start := time.Now()
	for time.Since(start) < *each {
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	var n int64
	if err := binary.Read(c, binary.BigEndian, &n); err != nil {
		return err
	}
	took := time.Since(start)
	after, err := busy()
	w.rate.Add(int64(float64(n) / took.Seconds()))
	w.cpu.Add(time.Duration(float64(after-used) / float64(n) * 1e9))
	return err
}

// busy is how long all cores have not been idle for (proc_stat(5)). Most of the work on packets is no process's.
func busy() (time.Duration, error) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return 0, err
	}
	var user, nice, system, idle, wait, irq, softirq int64
	if _, err := fmt.Sscanf(line, "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq, &softirq); err != nil {
		return 0, fmt.Errorf("/proc/stat: %q: %w", line, err)
	}
	const tick = 10 * time.Millisecond // USER_HZ
	return time.Duration(user+nice+system+irq+softirq) * tick, nil
}
