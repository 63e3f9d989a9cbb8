package containerd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/coredns"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

const (
	node4, node6 = clusternet.Node4, clusternet.Node6
	// nodeObject is a node that has not been given podCIDRs.
	nodeObject = `apiVersion: v1
kind: Node
metadata: {name: node-1}
status: {addresses: [{type: InternalIP, address: ` + node4 + `}, {type: InternalIP, address: "` + node6 + `"}]}
`
	podCIDRs = "spec: {podCIDRs: [" + clusternet.PodCIDR4 + ", \"" + clusternet.PodCIDR6 + "\"]}\n"
)

// TestNetwork has a kubelet's calls to the runtime attach pods with the configuration that "ropewalk routes" writes.
func TestNetwork(t *testing.T) {
	program, plugin := ropewalk(t), ropewalkCNI(t)
	if !netns.Enter(t, node4+"/32", node6+"/128") {
		return
	}
	netns.Tmpfs(t, "/run", nil)
	netns.Tmpfs(t, "/var/lib", nil) // libcni's cache
	r := Start(t)
	if err := os.MkdirAll(r.BinDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(plugin, filepath.Join(r.BinDir, "ropewalk-cni")); err != nil {
		t.Fatal(err)
	}
	r.networkReady(t, false)
	manifests := t.TempDir()
	write(t, filepath.Join(manifests, "node.yaml"), nodeObject+podCIDRs)
	run(t, program, "127.0.0.1:9156", "routes", "--manifests", manifests, "--node-name", "node-1", "--conf-dir", r.ConfDir, "--overlay", "direct", "--mtu", "1400")
	r.networkReady(t, true)
	before := kernel(t)

	config := r.sandbox("shop", "web", uid)
	config.PortMappings = []*cri.PortMapping{{ContainerPort: 8080, HostPort: 9090}, {ContainerPort: 8081}}
	config.Annotations = map[string]string{"some": "annotation"}
	config.DnsConfig = &cri.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"svc.cluster.local"}}
	p, err := r.run(t, "", config)
	if err != nil {
		t.Fatal(err)
	}
	status, err := r.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	n := status.Status.Network
	if n.GetIp() != "10.244.0.2" || len(n.AdditionalIps) != 1 || n.AdditionalIps[0].Ip != "fd00:244::2" {
		t.Fatalf("the pod's addresses are %v", n)
	}
	id := p.Container(t, "main", nil, nil, "serve", ":8080")
	for _, to := range []string{"10.244.0.2:8080", "[fd00:244::2]:8080", node4 + ":9090", "[" + node6 + "]:9090"} {
		answers(t, to, "tool")
	}
	clusternet.Serve(t, "", node4+":7070")
	clusternet.Serve(t, "", "["+node6+"]:7070")
	for to, own := range map[string]string{node4: n.Ip, "[" + node6 + "]": n.AdditionalIps[0].Ip} {
		if got := r.Tool(t, id, "ask", to+":7070"); got != " "+own {
			t.Errorf("the node saw the pod as %q", got)
		}
	}

	// A second pod that wants the same port does not start, and is not in the way of a third.
	config = r.sandbox("shop", "other", "5a1f9c2e-0000-4000-8000-000000000002")
	config.PortMappings = []*cri.PortMapping{{ContainerPort: 8080, HostPort: 9090}}
	if _, err := r.run(t, "", config); err == nil || !strings.Contains(err.Error(), "9090") {
		t.Errorf("a port that is taken: %v", err)
	}
	if l := leases(t); len(l) != 1 || l[0].Pod != "shop/web" {
		t.Errorf("leased are %v", l)
	}

	// The runtime is told when the node has no podCIDRs, and again when it has some.
	write(t, filepath.Join(manifests, "node.yaml"), nodeObject)
	r.networkReady(t, false)
	answers(t, "10.244.0.2:8080", "tool")
	write(t, filepath.Join(manifests, "node.yaml"), nodeObject+podCIDRs)
	r.networkReady(t, true)

	for range 2 {
		if _, err := r.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Error(err)
	}
	if after := kernel(t); after != before {
		t.Errorf("before there was\n%s\nafter there is\n%s", before, after)
	}
	if l := leases(t); len(l) > 0 {
		t.Errorf("leased are %v", l)
	}
	if l, err := portmap.List(); err != nil || len(l) > 0 {
		t.Errorf("ports are %v, %v", l, err)
	}
}

func answers(t *testing.T, addr, want string) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) { // the program has just been started
		var server string
		if server, _, err = clusternet.Ask(t, "", "tcp", addr); server == want {
			return
		}
	}
	t.Errorf("%s does not answer: %v", addr, err)
}

// networkReady waits until the runtime says so, or not so.
func (r *Runtime) networkReady(t *testing.T, want bool) {
	t.Helper()
	var c *cri.RuntimeCondition
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		s, err := r.Status(t.Context(), &cri.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c = range s.Status.Conditions {
			if c.Type == cri.NetworkReady && c.Status == want {
				return
			}
		}
	}
	t.Fatalf("the network's condition is %v", c)
}

// kernel is what a pod may leave on its node.
func kernel(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, args := range []string{"-br link", "-br addr", "route show table all", "-6 route show table all", "neigh show nud permanent", "-6 neigh show nud permanent"} {
		b.WriteString(netns.Run(t, "ip", strings.Fields(args)...))
	}
	return b.String()
}

func leases(t *testing.T) []ipam.Lease {
	t.Helper()
	s, err := ipam.Open("/run/ropewalk")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ropewalkCNI returns the path of bin/ropewalk-cni, built if need be.
func ropewalkCNI(t *testing.T) string {
	t.Helper()
	const variable = "ROPEWALK_TEST_CNI"
	path := os.Getenv(variable)
	if path == "" {
		path = filepath.Join(t.TempDir(), "ropewalk-cni")
		cmd := exec.Command("go", "build", "-o", path, "./cmd/ropewalk-cni")
		cmd.Dir = coredns.Root()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Setenv(variable, path) // for the test's second process
	}
	return path
}
