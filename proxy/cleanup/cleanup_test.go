package cleanup

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

// strangers is what others have in iptables: a firewall's rules, the kubelet's chains, and some that look like kube-proxy's. ADDR is
// an address of the family. Policies have counted nothing: iptables-legacy-restore forgets that, whatever it is used for.
const strangers = `*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
[3:300] -A PREROUTING -p udp -m udp --dport 4789 -j CT --notrack
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
[7:700] -A PREROUTING -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x1/0xff
[1:60] -A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
[2:120] -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
[5:500] -A PREROUTING -p tcp -m tcp --dport 8081 -j REDIRECT --to-ports 8080
[9:900] -A POSTROUTING -s ADDR ! -o docker0 -m comment --comment "a \"quoted\" one -j KUBE-SERVICES" -j MASQUERADE
[4:400] -A DOCKER -p tcp -m multiport --dports 81,82 -j DNAT --to-destination ADDR
[0:0] -A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:MY-KUBE-SERVICES - [0:0]
[0:0] -A INPUT -j KUBE-FIREWALL
[33:3300] -A INPUT -i lo -m comment --comment KUBE-SERVICES -j ACCEPT
[34:3400] -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
[0:0] -A FORWARD -g MY-KUBE-SERVICES
[0:0] -A OUTPUT -j KUBE-FIREWALL
[0:0] -A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
[2:20] -A MY-KUBE-SERVICES -m limit --limit 5/min -j LOG --log-prefix "-j KUBE-SERVICES "
COMMIT
`

// kubeProxy is what kube-proxy adds to that; the ways into its chains are put first, as it does.
func kubeProxy() string {
	var chains, rules strings.Builder
	for i := range 2*perTransaction + 50 { // each service's chain goes to its endpoint's
		fmt.Fprintf(&chains, ":KUBE-SVC-%016d - [0:0]\n:KUBE-SEP-%016d - [0:0]\n", i, i)
		fmt.Fprintf(&rules, "-A KUBE-SERVICES -d ADDR/LEN -p tcp -m comment --comment \"shop/web:http cluster IP\" -m tcp --dport %d -j KUBE-SVC-%016d\n", i+1, i)
		fmt.Fprintf(&rules, "-A KUBE-SVC-%016d -m statistic --mode random --probability 0.5 -j KUBE-SEP-%016d\n", i, i)
		fmt.Fprintf(&rules, "-A KUBE-SEP-%016d -s ADDR/LEN -j KUBE-MARK-MASQ\n", i)
	}
	return `*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-EXT-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SVL-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-FW-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
` + chains.String() + `-I PREROUTING 1 -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT 1 -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING 1 -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A DOCKER -g KUBE-MARK-MASQ
-A KUBE-EXT-AAAAAAAAAAAAAAAA -j KUBE-SVL-AAAAAAAAAAAAAAAA
-A KUBE-FW-AAAAAAAAAAAAAAAA -j KUBE-EXT-AAAAAAAAAAAAAAAA
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
` + rules.String() + `COMMIT
*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-IPVS-FILTER - [0:0]
-I INPUT 1 -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I INPUT 1 -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-I FORWARD 1 -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I OUTPUT 1 -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
`
}

const chainsOfIt = 1 + 9 + 2*(2*perTransaction+50) + 7

// variant is one of the commands iptables and ip6tables, of one of the two kinds.
type variant struct{ command, kind, addr, length string }

var variants = []variant{
	{"iptables", "nft", "192.0.2.7", "32"}, {"ip6tables", "nft", "2001:db8::7", "128"},
	{"iptables", "legacy", "192.0.2.7", "32"}, {"ip6tables", "legacy", "2001:db8::7", "128"},
}

func (v variant) restore(t *testing.T, rules string) {
	t.Helper()
	cmd := exec.Command(v.command+"-"+v.kind+"-restore", "--noflush", "--counters")
	cmd.Stdin = strings.NewReader(strings.NewReplacer("ADDR", v.addr, "LEN", v.length).Replace(rules))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// save returns all rules, with their counters.
func (v variant) save(t *testing.T) string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(netns.Run(t, v.command+"-"+v.kind+"-save", "-c")) {
		if !strings.HasPrefix(line, "#") { // the time
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

func clean(t *testing.T) []string {
	t.Helper()
	removed, err := KubeProxy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return removed
}

// TestIptables holds that kube-proxy's rules go, in both kinds of iptables and both families, and that others' are what they were.
func TestIptables(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "iptables-nft-save")
	netns.NeedCommand(t, "iptables-legacy-save")
	netns.Tmpfs(t, "/run", nil) // the lock of iptables
	if removed := clean(t); len(removed) != 0 {
		t.Errorf("removed %q where nothing was", removed)
	}
	before := map[variant]string{}
	for _, v := range variants {
		v.restore(t, strangers)
		before[v] = v.save(t)
	}
	if removed := clean(t); len(removed) != 0 {
		t.Errorf("removed %q where nothing of kube-proxy was", removed)
	}
	for _, v := range variants {
		v.restore(t, kubeProxy())
		if !strings.Contains(v.save(t), "-j KUBE-POSTROUTING") {
			t.Fatalf("%+v: kube-proxy's rules are not there", v)
		}
	}
	removed := clean(t)
	for _, v := range variants {
		if d := cmp.Diff(before[v], v.save(t)); d != "" {
			t.Errorf("%+v: what is left, -before +after:\n%s", v, d)
		}
		prefix := fmt.Sprintf("iptables-%s chain %s ", v.kind, strings.TrimSuffix(v.command, "tables"))
		n := 0
		for _, r := range removed {
			if strings.HasPrefix(r, prefix) {
				n++
			}
		}
		if n != chainsOfIt {
			t.Errorf("%q: %d chains reported of %d", prefix, n, chainsOfIt)
		}
	}
	if removed := clean(t); len(removed) != 0 {
		t.Errorf("removed %q the second time", removed)
	}
}

// TestWithoutCommands holds that all but the older iptables is cleaned without any command.
func TestWithoutCommands(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "iptables-nft-save")
	netns.NeedCommand(t, "iptables-legacy-save")
	netns.Tmpfs(t, "/run", nil)
	for _, v := range variants {
		v.restore(t, strangers)
		v.restore(t, kubeProxy())
	}
	path := t.TempDir()
	t.Run("", func(t *testing.T) {
		t.Setenv("PATH", path)
		if n := len(clean(t)); n != 2*chainsOfIt {
			t.Errorf("removed %d chains, want %d", n, 2*chainsOfIt)
		}
	})
	if n := len(clean(t)); n != 2*chainsOfIt {
		t.Errorf("removed %d legacy chains, want %d", n, 2*chainsOfIt)
	}
}

// TestTables holds that the tables of the nftables mode go, and no others.
func TestTables(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	load := func(rules string) {
		t.Helper()
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v\n%s", err, out)
		}
	}
	load(`
		table inet kube-proxy { set s { type ipv4_addr; elements = { 192.0.2.1 }; }; }
		table ip kube-proxy-2 { chain c { type filter hook input priority 0; accept; }; }
		table ip ropewalk { map m { type ipv4_addr : mark; elements = { 192.0.2.1 : 1 }; }; }
		table ip6 filter { chain KUBE-FIREWALL { type filter hook input priority 0; jump own; }; chain own { drop; }; }
	`)
	before := netns.Run(t, "nft", "list", "ruleset")
	for _, f := range []string{"ip", "ip6"} {
		load(`table ` + f + ` kube-proxy {
			map service-ips { type inet_service : verdict; elements = { 80 : goto service-a }; }
			chain nat-prerouting { type nat hook prerouting priority dstnat; tcp dport vmap @service-ips; }
			chain service-a { numgen random mod 1 vmap { 0 : goto endpoint-a }; }
			chain endpoint-a { accept; }
		}`)
	}
	want := []string{"nftables table ip kube-proxy", "nftables table ip6 kube-proxy"}
	if d := cmp.Diff(want, clean(t)); d != "" {
		t.Error("removed, -want +got:\n" + d)
	}
	if d := cmp.Diff(before, netns.Run(t, "nft", "list", "ruleset")); d != "" {
		t.Error("what is left, -before +after:\n" + d)
	}
}

// TestIPVS holds that the link and the sets of the IPVS mode go. The kernel of the machine need not have IPVS.
func TestIPVS(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.Batch(t, "", "link add kube-ipvs0 type bridge\naddr add 10.96.0.1/32 dev kube-ipvs0\nlink add other type bridge\n")
	want := []string{"link kube-ipvs0"}
	for name, typ := range map[string]string{"KUBE-CLUSTER-IP": "hash:ip,port", "KUBE-6-LOAD-BALANCER-SOURCE-CID": "hash:ip", "KUBE-OTHER": "hash:ip"} {
		err := netlink.IpsetCreate(name, typ, netlink.IpsetCreateOptions{})
		if absent(err) {
			t.Log("the kernel has no ip sets")
			break
		}
		if err != nil {
			t.Fatal(name, err)
		}
		if name != "KUBE-OTHER" {
			want = append(want, "ip set "+name)
		}
	}
	removed := clean(t)
	slices.Sort(want)
	slices.Sort(removed)
	if d := cmp.Diff(want, removed); d != "" {
		t.Error("removed, -want +got:\n" + d)
	}
	if links := netns.Run(t, "ip", "-o", "link"); strings.Contains(links, "kube-ipvs0") || !strings.Contains(links, "other") {
		t.Errorf("links:\n%s", links)
	}
	if removed := clean(t); len(removed) != 0 {
		t.Errorf("removed %q the second time", removed)
	}
}

// TestLegacyRemoval holds what is made of a listing, for the sake of its corners.
func TestLegacyRemoval(t *testing.T) {
	input, removed := legacyRemoval(`# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-MARK-DROP - [0:0]
-A PREROUTING -m comment --comment "says \" -j KUBE-SERVICES" -j ACCEPT
-A PREROUTING -m comment --comment "a \\" -j KUBE-SERVICES
-A PREROUTING -g KUBE-SEP-A
-A PREROUTING -j KUBE-MARK-DROP
-A PREROUTING -m comment --comment x
-A KUBE-SERVICES -j KUBE-SEP-A
COMMIT
*filter
:INPUT ACCEPT [0:0]
-A INPUT -j ACCEPT
COMMIT
`)
	want := `*nat
:KUBE-SERVICES - [0:0]
:KUBE-SEP-A - [0:0]
-D PREROUTING -m comment --comment "a \\" -j KUBE-SERVICES
-D PREROUTING -g KUBE-SEP-A
-X KUBE-SERVICES
-X KUBE-SEP-A
COMMIT
`
	if d := cmp.Diff(want, input) + cmp.Diff([]string{"nat KUBE-SERVICES", "nat KUBE-SEP-A"}, removed); d != "" {
		t.Error("-want +got:\n" + d)
	}
}
