package cni

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

type conf = map[string]any

// list is a network whose plugins libcni calls one after the other.
type list struct {
	*libcni.CNIConfig
	*libcni.NetworkConfigList
	*libcni.RuntimeConf
}

func (n *node) list(plugins ...conf) list {
	n.Helper()
	l, err := libcni.ConfListFromFile(n.write("rope", plugins...))
	if err != nil {
		n.Fatal(err)
	}
	return list{
		libcni.NewCNIConfigWithCacheDir(path(), filepath.Join(n.TempDir(), "cache"), nil), l,
		&libcni.RuntimeConf{ContainerID: "web", NetNS: "/run/netns/pod", IfName: "eth0",
			CapabilityArgs: map[string]any{"portMappings": []any{conf{"hostPort": 9090, "containerPort": 8080, "protocol": "tcp"}}}},
	}
}

func (l list) add() (*current.Result, error) {
	r, err := l.AddNetworkList(context.Background(), l.NetworkConfigList, l.RuntimeConf)
	if err != nil {
		return nil, err
	}
	return current.NewResultFromResult(r)
}

func (l list) check() error {
	return l.CheckNetworkList(context.Background(), l.NetworkConfigList, l.RuntimeConf)
}

func (l list) del() error {
	return l.DelNetworkList(context.Background(), l.NetworkConfigList, l.RuntimeConf)
}

// TestChain has reference plugins work on what this one makes, and this one behind another.
func TestChain(t *testing.T) {
	if !enter(t) {
		return
	}
	netns.NeedCommand(t, "iptables")
	netns.NeedCommand(t, "nft")
	n := newNode(t)
	ours := n.ours()
	delete(ours, "capabilities")
	for _, c := range []struct {
		what    string
		plugins []conf
		// does says why what the other plugin is there for is not there.
		does func() string
	}{
		{"portmap", []conf{ours, {"type": "portmap", "snat": true, "capabilities": map[string]bool{"portMappings": true}}}, func() string {
			stop := clusternet.Serve(t, "pod", first4+":8080")
			defer stop()
			server, _, err := clusternet.Ask(t, "", "tcp", node4+":9090")
			return without(server == "pod" && err == nil, server)
		}},
		{"portmap with nftables", []conf{ours, {"type": "portmap", "backend": "nftables", "snat": true, "capabilities": map[string]bool{"portMappings": true}}}, func() string {
			stop := clusternet.Serve(t, "pod", first4+":8080")
			defer stop()
			server, _, err := clusternet.Ask(t, "", "tcp", node4+":9090")
			return without(server == "pod" && err == nil, server)
		}},
		{"bandwidth", []conf{ours, {"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000}}, func() string {
			out := netns.Run(t, "tc", "qdisc")
			return without(strings.Contains(out, "tbf"), out)
		}},
		{"tuning", []conf{ours, {"type": "tuning", "sysctl": conf{"net.core.somaxconn": "500"}, "mtu": 1300}}, func() string {
			out := netns.Run(t, "ip", "netns", "exec", "pod", "sh", "-c", "cat /proc/sys/net/core/somaxconn /sys/class/net/eth0/mtu")
			return without(out == "500\n1300\n", out)
		}},
		{"firewall", []conf{ours, {"type": "firewall", "backend": "iptables"}}, func() string {
			out := netns.Run(t, "iptables", "-S")
			return without(strings.Contains(out, "-d "+first4+"/32"), out)
		}},
		{"behind loopback", []conf{{"type": "loopback"}, ours}, func() string { return "" }},
		{"between", []conf{{"type": "loopback"}, ours, {"type": "tuning", "sysctl": conf{"net.core.somaxconn": "501"}}}, func() string { return "" }},
	} {
		l := n.list(c.plugins...)
		r, err := l.add()
		if err != nil {
			t.Errorf("%s: ADD: %v", c.what, err)
			_ = l.del()
			continue
		}
		a := addresses(r, "eth0")
		if len(a) != 2 {
			t.Errorf("%s: the result is %v", c.what, r)
			continue
		}
		if c.plugins[0]["type"] == "loopback" && (r.Interfaces[0].Name != "lo" || len(addresses(r, "lo")) == 0) {
			t.Errorf("%s: what was there is not passed on: %v", c.what, r)
		}
		if err := l.check(); err != nil {
			t.Errorf("%s: CHECK: %v", c.what, err)
		}
		n.talk(a...)
		if wrong := c.does(); wrong != "" {
			t.Errorf("%s: %s", c.what, wrong)
		}
		netns.Run(t, "ip", "-n", "pod", "route", "del", "default")
		if err := l.check(); err == nil || !strings.Contains(err.Error(), "169.254.1.1") {
			t.Errorf("%s: CHECK without the route: %v", c.what, err)
		}
		for range 2 {
			if err := l.del(); err != nil {
				t.Errorf("%s: DEL: %v", c.what, err)
			}
		}
		netns.Run(t, "ip", "-n", "pod", "link", "set", "lo", "up") // loopback's DEL
		n.empty("after " + c.what)
		if err := os.RemoveAll(n.dataDir); err != nil { // addresses rest
			t.Fatal(err)
		}
	}
}

// TestChainOfMakers holds that no second plugin of a list makes the pod's interface.
func TestChainOfMakers(t *testing.T) {
	if !enter(t) {
		return
	}
	n := newNode(t)
	l := n.list(conf{"type": "bridge", "bridge": "br0", "ipam": conf{"type": "host-local", "subnet": "10.9.0.0/24", "dataDir": t.TempDir()}}, n.ours())
	var e *types.Error
	if _, err := l.add(); !errors.As(err, &e) || e.Code != types.ErrInvalidNetworkConfig || !strings.Contains(e.Msg, "eth0") {
		t.Errorf("ADD: %v", err)
	}
	if err := l.del(); err != nil {
		t.Errorf("DEL: %v", err)
	}
	netns.Run(t, "ip", "link", "del", "br0")
	n.empty("then")
}

func without(there bool, instead string) string {
	if there {
		return ""
	}
	return "it does not do its work: " + instead
}

// addresses returns those of the pod's interface.
func addresses(r *current.Result, name string) (out []string) {
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil && r.Interfaces[*i].Name == name && r.Interfaces[*i].Sandbox != "" {
			out = append(out, ip.Address.IP.String())
		}
	}
	return out
}
