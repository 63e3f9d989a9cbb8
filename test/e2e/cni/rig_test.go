// Package cni drives the CNI plugin as others do: by cnitool, by the library that containerd calls plugins with, and in lists
// with the reference plugins.
package cni

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/coredns"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

const (
	node4, node6 = clusternet.Node4, clusternet.Node6
	range4       = clusternet.PodCIDR4
	range6       = clusternet.PodCIDR6
	// The first pod gets these.
	first4, first6 = "10.244.0.2", "fd00:244::2"
)

// binaryEnv names the program, which make builds; peersEnv the directory with those of others.
const (
	binaryEnv = "ROPEWALK_TEST_CNI"
	peersEnv  = "ROPEWALK_TEST_CNI_PEERS"
)

func TestMain(m *testing.M) { os.Exit(withPrograms(m.Run)) }

// withPrograms builds what is not there, once for all the processes of a test.
func withPrograms(run func() int) int {
	if os.Getenv(peersEnv) != "" {
		return run()
	}
	dir, err := os.MkdirTemp("", "ropewalk-peers")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	const reference = "github.com/containernetworking/plugins/plugins/"
	build := [][]string{{"build", "-o", dir + "/", "github.com/containernetworking/cni/cnitool", reference + "ipam/host-local",
		reference + "main/bridge", reference + "main/loopback", reference + "meta/bandwidth", reference + "meta/firewall",
		reference + "meta/portmap", reference + "meta/sbr", reference + "meta/tuning"}}
	if os.Getenv(binaryEnv) == "" {
		os.Setenv(binaryEnv, filepath.Join(dir, "ropewalk-cni"))
		build = append(build, []string{"build", "-C", coredns.Root(), "-o", os.Getenv(binaryEnv), "./cmd/ropewalk-cni"})
	}
	for _, args := range build {
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go %q: %v\n%s", args, err, out)
			return 1
		}
	}
	os.Setenv(peersEnv, dir)
	return run()
}

// enter is netns.Enter with the node's addresses.
func enter(t *testing.T) bool { return netns.Enter(t, node4+"/32", node6+"/128") }

// path is where a runtime looks for plugins.
func path() []string { return []string{filepath.Dir(os.Getenv(binaryEnv)), os.Getenv(peersEnv)} }

// node is what there is on the node: where configurations are, and leases.
type node struct {
	*testing.T
	confDir, dataDir string
	before           string
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	netns.Add(t, "pod") // /run is the test's own from now on
	n := &node{T: t, confDir: filepath.Join(dir, "net.d"), dataDir: filepath.Join(dir, "leases")}
	n.before = n.state()
	return n
}

// ours is the plugin's configuration, as "ropewalk routes" writes it, and with what runtimes may pass on besides.
func (n *node) ours() map[string]any {
	return map[string]any{
		"type": "ropewalk-cni", "mode": "routed", "mtu": 1400, "ranges": []string{range4, range6}, "dataDir": n.dataDir,
		"capabilities": map[string]bool{"portMappings": true, "bandwidth": true, "ipRanges": true, "dns": true, "io.kubernetes.cri.pod-annotations": true},
	}
}

// write writes a list of plugins, and returns its file.
func (n *node) write(name string, plugins ...map[string]any) string {
	n.Helper()
	b, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "name": name, "plugins": plugins})
	if err == nil {
		err = os.MkdirAll(n.confDir, 0o755)
	}
	file := filepath.Join(n.confDir, name+".conflist")
	if err == nil {
		err = os.WriteFile(file, b, 0o644)
	}
	if err != nil {
		n.Fatal(err)
	}
	return file
}

// state is everything on the node and in the pod that a plugin may touch, but for leases.
func (n *node) state() string {
	n.Helper()
	var b strings.Builder
	for _, where := range [][]string{nil, {"-n", "pod"}} {
		for _, args := range []string{"-br link", "-br addr", "route show table all", "-6 route show table all", "neigh show nud permanent",
			"-6 neigh show nud permanent", "rule", "-6 rule"} {
			args := append(where, strings.Fields(args)...)
			fmt.Fprintf(&b, "ip %q\n%s", args, netns.Run(n, "ip", args...))
		}
	}
	return b.String()
}

// leases returns what is leased.
func (n *node) leases() []ipam.Lease {
	n.Helper()
	s, err := ipam.Open(n.dataDir)
	if err != nil {
		n.Fatal(err)
	}
	defer s.Close()
	l, err := s.List()
	if err != nil {
		n.Fatal(err)
	}
	return l
}

// empty says that nothing of the attachment is left.
func (n *node) empty(when string) {
	n.Helper()
	if s := n.state(); s != n.before {
		n.Errorf("%s there was\n%s\nthere is\n%s", when, n.before, s)
	}
	if l := n.leases(); len(l) > 0 {
		n.Errorf("%s leased are %v", when, l)
	}
	if l, err := portmap.List(); err != nil || len(l) > 0 {
		n.Errorf("%s ports are %v, %v", when, l, err)
	}
}

// talk has the pod and the node reach each other, in both families.
func (n *node) talk(addrs ...string) {
	n.Helper()
	for _, a := range addrs {
		own := node4
		if strings.Contains(a, ":") {
			own, a = node6, "["+a+"]"
		}
		stop := clusternet.Serve(n, "pod", a+":8080")
		if server, client, err := clusternet.Ask(n, "", "tcp", a+":8080"); err != nil || server != "pod" || client != own {
			n.Errorf("the node asks %s: %q answers %q, %v", a, server, client, err)
		}
		stop()
	}
}
