package agent

import (
	"os"
	"strings"
	"testing"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

// only6 has in the place of each address of nodeObjects and service one of the other family.
var only6 = strings.NewReplacer("10.244.1.0/24", "fd00:244:0:1::/64", "10.244.2.0/24", "fd00:244:0:2::/64", "10.244.2.9", "fd00:244:0:2::9",
	"192.0.2.", "2001:db8::", "10.96.0.0/16", "fd00:96::/112", "10.96.0.7", "fd00:96::7", "addressType: IPv4", "addressType: IPv6")

// TestOneFamily holds that all parts get ready, and do what they do, on nodes of clusters that have one family and where the node has no
// address of the other, or may have none.
func TestOneFamily(t *testing.T) {
	for _, c := range []struct {
		name, overlay string
		objects       func(string) string
		network       string
		routes, conf  string
		table         string
	}{
		{"IPv4", "direct", func(s string) string { return s }, "addr add 192.0.2.1/24 dev eth0\nroute add default via 192.0.2.254\n",
			"10.244.2.0/24 via 192.0.2.2 dev eth0", `"10.244.1.0/24"`, "ip"},
		{"IPv4-tunnel", "vxlan", func(s string) string { return s }, "addr add 192.0.2.1/24 dev eth0\nroute add default via 192.0.2.254\n",
			"10.244.2.0/24 via 10.244.2.0 dev rw-vxlan", `"10.244.1.0/24"`, "ip"},
		{"IPv6", "direct", only6.Replace, "addr add 2001:db8::1/64 dev eth0 nodad\nroute add default via 2001:db8::fe\n",
			"fd00:244:0:2::/64 via 2001:db8::2 dev eth0", `"fd00:244:0:1::/64"`, "ip6"},
		{"IPv6-tunnel", "vxlan", only6.Replace, "addr add 2001:db8::1/64 dev eth0 nodad\nroute add default via 2001:db8::fe\n",
			"dev rw-vxlan", `"fd00:244:0:1::/64"`, "ip6"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !netns.Enter(t) {
				return
			}
			if c.table == "ip" {
				for _, links := range []string{"all", "default"} {
					if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+links+"/disable_ipv6", []byte("1"), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				netns.Tmpfs(t, "/proc/sys/net/ipv6", nil) // a kernel that was started with ipv6.disable=1 has none
			}
			r := newNode(t, c.network)
			r.api.Load([]byte(c.objects(nodeObjects)))
			r.api.Load([]byte(c.objects(service)))
			r.configure(0, "") // the default route, of either family, has the MTU
			text, err := os.ReadFile(r.dir + "/agent.yaml")
			if err == nil {
				err = os.WriteFile(r.dir+"/agent.yaml", []byte(strings.Replace(string(text), "overlay: direct", "overlay: "+c.overlay, 1)), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			r.start()
			r.allReady()
			if _, counts, text, _ := r.status(); counts["endpoints"] != 1 || counts["ranges of pods of other nodes"] != 1 {
				t.Errorf("it serves %s", text)
			}
			if got := netns.Run(t, "ip", map[string]string{"ip": "-4", "ip6": "-6"}[c.table], "route"); !strings.Contains(got, c.routes) {
				t.Errorf("routes are\n%s", got)
			}
			if got := netns.Run(t, "nft", "list", "map", c.table, "ropewalk", "frontends"); !strings.Contains(got, ". tcp . 80") {
				t.Errorf("services are\n%s", got)
			}
			conf, err := os.ReadFile(r.dir + "/net.d/10-ropewalk.conflist")
			if err != nil || !strings.Contains(string(conf), c.conf) || strings.Contains(r.log.String(), "level=ERROR") {
				t.Errorf("%v %s\n%s", err, conf, r.log)
			}
		})
	}
}
