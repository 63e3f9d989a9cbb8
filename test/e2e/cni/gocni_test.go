package cni

import (
	"context"
	"errors"
	"strings"
	"testing"

	gocni "github.com/containerd/go-cni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestGoCNI attaches a pod as containerd does, with all that it passes on.
func TestGoCNI(t *testing.T) {
	if !enter(t) {
		return
	}
	n := newNode(t)
	netns.Tmpfs(t, "/var/lib", nil) // libcni's cache
	ctx := context.Background()
	network := load(t, n.write("rope", n.ours()))
	if err := network.Status(); err != nil {
		t.Fatal(err)
	}
	ports := gocni.WithCapabilityPortMap([]gocni.PortMapping{{HostPort: 9090, ContainerPort: 8080, Protocol: "tcp"},
		{HostPort: 9090, ContainerPort: 8080, Protocol: "udp", HostIP: node6}})
	opts := []gocni.NamespaceOpts{
		gocni.WithLabels(map[string]string{"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "ns", "K8S_POD_NAME": "web", "K8S_POD_UID": "u", "K8S_POD_INFRA_CONTAINER_ID": "web"}),
		gocni.WithCapability("io.kubernetes.cri.pod-annotations", map[string]string{"a": "b"}),
		gocni.WithCapabilityDNS(gocni.DNS{Servers: []string{"10.96.0.10"}, Searches: []string{"svc"}}),
		gocni.WithCapabilityCgroupPath("/pods"),
		ports,
	}
	const netnsPath = "/run/netns/pod"
	added, err := network.Setup(ctx, "web", netnsPath, opts...)
	if err != nil {
		t.Fatal(err)
	}
	eth := added.Interfaces["eth0"]
	if eth == nil || eth.Sandbox != netnsPath || len(eth.IPConfigs) != 2 || eth.IPConfigs[0].IP.String() != first4 || eth.IPConfigs[1].IP.String() != first6 {
		t.Fatalf("interfaces are %v", added.Interfaces)
	}
	if l := n.leases(); len(l) != 1 || l[0].Container != "web" || l[0].Pod != "ns/web" {
		t.Errorf("leased are %v", l)
	}
	if err := network.Check(ctx, "web", netnsPath, opts...); err != nil {
		t.Error(err)
	}
	n.talk(first4, first6)
	clusternet.Serve(t, "pod", first4+":8080")
	clusternet.Serve(t, "pod", "["+first6+"]:8080")
	for _, to := range [][2]string{{"tcp", node4}, {"tcp", "[" + node6 + "]"}, {"udp", "[" + node6 + "]"}} {
		if server, _, err := clusternet.Ask(t, "", to[0], to[1]+":9090"); err != nil || server != "pod" {
			t.Errorf("port of %v: %q, %v", to, server, err)
		}
	}
	if err := network.Status(); err != nil {
		t.Error(err)
	}
	for range 2 { // the runtime tries again until it has heard that it worked
		if err := network.Remove(ctx, "web", netnsPath, opts...); err != nil {
			t.Error(err)
		}
	}
	if err := network.Remove(ctx, "web", "", opts...); err != nil {
		t.Errorf("without a namespace: %v", err)
	}
	n.empty("after Remove")

	// Each of these is done, and taken back; or refused by its name.
	for _, c := range []struct {
		what string
		opt  gocni.NamespaceOpts
		does func(addr string) bool
	}{
		{"bandwidth", gocni.WithCapabilityBandWidth(gocni.BandWidth{IngressRate: 8_000_000, IngressBurst: 800_000, EgressRate: 8_000_000, EgressBurst: 800_000}),
			func(string) bool { return strings.Count(netns.Run(t, "tc", "qdisc"), "qdisc tbf") == 2 }},
		{"ipRanges", gocni.WithCapabilityIPRanges([]gocni.IPRanges{{Subnet: "10.9.0.0/24", RangeStart: "10.9.0.7"}}),
			func(addr string) bool { return addr == "10.9.0.7" }},
		{"annotations", gocni.WithCapability("io.kubernetes.cri.pod-annotations", map[string]string{"ropewalk.dev/ips": "10.244.0.77"}),
			func(addr string) bool { return addr == "10.244.0.77" }},
	} {
		added, err := network.Setup(ctx, "web", netnsPath, c.opt)
		var e *types.Error
		if err != nil {
			if !errors.As(err, &e) || e.Code != types.ErrUnsupportedField || !strings.Contains(e.Msg, c.what) {
				t.Errorf("%s: %v", c.what, err)
			}
			n.empty("without " + c.what)
			continue
		}
		if addr := added.Interfaces["eth0"].IPConfigs[0].IP.String(); !c.does(addr) {
			t.Errorf("%s is not done: %s", c.what, addr)
		}
		if err := network.Check(ctx, "web", netnsPath, c.opt); err != nil {
			t.Errorf("%s, CHECK: %v", c.what, err)
		}
		if err := network.Remove(ctx, "web", netnsPath, c.opt); err != nil {
			t.Errorf("%s, Remove: %v", c.what, err)
		}
		n.empty("after " + c.what)
	}
}

// load returns what containerd would have read a list by.
func load(t *testing.T, list string) gocni.CNI {
	t.Helper()
	c, err := gocni.New(gocni.WithPluginDir(path()))
	if err == nil {
		err = c.Load(gocni.WithConfListFile(list))
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestGoCNIStatus holds that a runtime says that the network is not ready while no pod can be attached.
func TestGoCNIStatus(t *testing.T) {
	if !enter(t) {
		return
	}
	n := newNode(t)
	ours := n.ours()
	ours["ranges"] = []string{}
	if err := load(t, n.write("rope", ours)).Status(); err == nil || !strings.Contains(err.Error(), "podCIDR") {
		t.Errorf("without ranges: %v", err)
	}
}
