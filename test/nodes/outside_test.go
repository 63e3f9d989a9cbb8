package nodes

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestMasquerade holds whose address servers see: the node's outside of the cluster, and the pod's inside, where inside follows the operator's
// flag and file and the cluster's objects, at once.
func TestMasquerade(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	file := filepath.Join(t.TempDir(), "config")
	named4, named6 := "192.0.2.200", "2001:db8::200"
	c, nodes := start(t, Spec{Flags: []string{"--masquerade-config", file, "--non-masquerade-cidr", named4 + "/32," + named6 + "/128"}}, 2, false)
	netns.Batch(t, Outside, "addr add "+named4+"/32 dev eth0\naddr add "+named6+"/128 dev eth0\n")
	pod := serving(nodes[0], "a")
	other := serving(nodes[1], "a")
	hosts := map[string][]string{Outside: {Outside4, Outside6, named4, named6}, nodes[0].Name: nodes[0].Addrs, nodes[1].Name: nodes[1].Addrs}
	for host, addrs := range hosts {
		for _, a := range addrs {
			clusternet.Serve(t, host, net.JoinHostPort(a, "80"))
		}
	}
	// sees are probes of the pod's, whose address the host is to see, or the node's.
	sees := func(host string, own bool, addrs ...string) (out []probe) {
		for _, a := range addrs {
			client := nodes[0].Addr(a)
			if own {
				client = pod.Addr(a)
			}
			out = append(out, probe{from: pod.Name, to: net.JoinHostPort(a, "80"), want: host, client: client})
		}
		return out
	}
	always := append(pairs([]*Pod{pod, other}), sees(nodes[0].Name, true, nodes[0].Addrs...)...)
	always = append(always, sees(nodes[1].Name, true, nodes[1].Addrs...)...)
	always = append(always, sees(Outside, true, named4, named6)...)
	for _, step := range []struct {
		what string
		do   func()
		own  bool
	}{
		{what: "at first"},
		{what: "a range of services", own: true, do: func() {
			c.Put("services", "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata:\n  name: more\nspec:\n  cidrs: ["+Outside4+"/32, \""+Outside6+"/128\"]\n")
		}},
		{what: "without it", do: func() { c.Put("services", "") }},
		{what: "a file", own: true, do: func() {
			if err := os.WriteFile(file, []byte("nonMasqueradeCIDRs:\n- "+Outside4+"/31\n- "+Outside6+"/127\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			nodes[0].look()
		}},
		{what: "without it", do: func() {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			nodes[0].look()
		}},
	} {
		if step.do != nil {
			step.do()
		}
		t.Log(step.what)
		see(t, append(sees(Outside, step.own, Outside4, Outside6), always...)...)
	}
	// Connections from the same port of two pods do not get into each other's way, and the ports outside cannot be foretold.
	second := serving(nodes[0], "b")
	for _, a := range []string{Outside4, Outside6} {
		same := 0
		for _, p := range []*Pod{pod, second} {
			port, err := sourcePort(t, p, a)
			if err != nil {
				t.Fatal(err)
			}
			if port == 4444 {
				same++
			}
		}
		if same == 2 {
			t.Errorf("%s: both connections come from the pods' port", a)
		}
	}
}

// look has a node's agent look at all it keeps, as it does each minute: it misses a route.
func (n *Node) look() {
	n.T.Helper()
	netns.Run(n.T, "ip", "-n", n.Name, "route", "flush", "proto", "82")
}

// sourcePort connects from a pod's port 4444 to an address of the outside and returns what port it comes from there.
func sourcePort(t *testing.T, p *Pod, to string) (int, error) {
	t.Helper()
	var l, c net.Conn
	var server net.Listener
	var err error
	netns.In(t, Outside, func() { server, err = net.Listen("tcp", net.JoinHostPort(to, "0")) })
	if err != nil {
		return 0, err
	}
	defer server.Close()
	netns.In(t, p.Name, func() {
		d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(p.Addr(to)), Port: 4444}}
		c, err = d.Dial("tcp", server.Addr().String())
	})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if l, err = server.Accept(); err != nil {
		return 0, err
	}
	defer l.Close()
	return l.RemoteAddr().(*net.TCPAddr).Port, nil
}

// TestPorts holds that ports of a node lead to its pod from everywhere: from outside, from other nodes and their pods, from pods of the same
// node, from the pod itself and from the node; and that they end with the pod.
func TestPorts(t *testing.T) {
	for name, spec := range map[string]Spec{"vxlan": {}, "bridge": {Flags: []string{"--cni-mode", "bridge"}}, "direct": {Flags: []string{"--overlay", "direct"}}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !netns.Enter(t) {
				return
			}
			testPorts(t, spec)
		})
	}
}

func testPorts(t *testing.T, spec Spec) {
	_, nodes := start(t, spec, 2, false)
	node := nodes[0]
	second := []string{"192.0.2.101", "2001:db8::101"} // the node has two addresses of a family
	netns.Batch(t, node.Name, "addr add "+second[0]+"/24 dev eth0\naddr add "+second[1]+"/64 dev eth0 nodad\n")
	port := func(host int, protocol, ip string) map[string]any {
		return map[string]any{"hostPort": host, "containerPort": 80, "protocol": protocol, "hostIP": ip}
	}
	pod := serving(node, "a", port(8001, "tcp", ""), port(8001, "udp", ""),
		port(8002, "tcp", node.Addrs[0]), port(8002, "udp", node.Addrs[0]), port(8002, "tcp", node.Addrs[1]), port(8002, "udp", node.Addrs[1]))
	near, far := serving(node, "b"), serving(nodes[1], "a")
	var probes, gone []probe
	for _, at := range node.Addrs {
		neighbour := near.Addr(at)
		if slices.Contains(spec.Flags, "bridge") { // whose pods would be answered past the node, and so come from the node's address
			neighbour = ""
		}
		for _, from := range []struct{ name, client string }{
			{Outside, ofFamily([]string{Outside4, Outside6}, at)}, {nodes[1].Name, nodes[1].Addr(at)}, {far.Name, far.Addr(at)},
			{near.Name, neighbour}, {pod.Name, ""}, {node.Name, ""},
		} {
			for _, p := range []string{"8001", "8002"} {
				probes = append(probes, probe{from: from.name, to: net.JoinHostPort(at, p), want: pod.Name, client: from.client})
				if from.name == pod.Name {
					continue // it has no network then
				}
				gone = append(gone, probe{from: from.name, to: net.JoinHostPort(at, p), want: "refused"})
			}
		}
	}
	for _, at := range second {
		probes = append(probes, probe{from: Outside, to: net.JoinHostPort(at, "8001"), want: pod.Name, client: ofFamily([]string{Outside4, Outside6}, at)},
			probe{from: Outside, to: net.JoinHostPort(at, "8002"), want: "refused"})
	}
	see(t, probes...)
	var flows []*flow
	for _, p := range probes {
		if strings.HasSuffix(p.to, ":8001") && p.from != pod.Name {
			flows = append(flows, newFlow(t, p))
		}
	}
	answered(t, pod, flows)
	pod.Del()
	see(t, gone...)
	for _, f := range flows {
		_, _ = f.Write([]byte("?")) // to nobody
	}
	// The next pod has them, also for those who have just spoken with the last one.
	again := serving(node, "c", port(8001, "tcp", ""), port(8001, "udp", ""))
	var next []probe
	for _, p := range probes {
		if strings.HasSuffix(p.to, ":8001") && p.from != pod.Name {
			p.want = again.Name
			next = append(next, p)
		}
	}
	answered(t, again, flows)
	see(t, next...)
}

// flow is a socket of UDP: its packets are, for the kernel, one connection for minutes.
type flow struct {
	net.Conn
	what string
}

func newFlow(t *testing.T, p probe) *flow {
	t.Helper()
	f := &flow{what: p.String()}
	var err error
	netns.In(t, p.from, func() { f.Conn, err = net.Dial("udp", p.to) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// answered fails unless a pod answers on all flows.
func answered(t *testing.T, by *Pod, flows []*flow) {
	t.Helper()
	for _, f := range flows {
		Soon(t, func() error {
			b := make([]byte, 100)
			_ = f.SetDeadline(time.Now().Add(time.Second))
			_, err := f.Write([]byte("?"))
			n := 0
			if err == nil {
				n, err = f.Read(b)
			}
			if name, _, _ := strings.Cut(string(b[:n]), " "); err != nil || name != by.Name {
				return fmt.Errorf("%s: %q, %v; want %s", f.what, name, err, by.Name)
			}
			return nil
		})
	}
}
