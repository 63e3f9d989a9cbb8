package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cni/antispoof"
	"github.com/ropewalk-net/ropewalk/cni/collect"
	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/limited"
	"github.com/ropewalk-net/ropewalk/cni/masquerade"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/program"
)

func TestVersion(t *testing.T) {
	cmd := exec.Command(os.Getenv(program.Plugin))
	cmd.Env = []string{"CNI_COMMAND=VERSION"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ SupportedVersions []string }
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}, got.SupportedVersions); diff != "" {
		t.Error(diff)
	}
}

// TestErrors holds that an error is JSON with its code, names what is wrong, and touches nothing.
func TestErrors(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	r.pod("pod")
	r.pod("taken")
	netns.Run(t, "ip", "-n", "taken", "link", "add", ifname, "type", "bridge")
	netns.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := state(t)
	prev := map[string]any{"cniVersion": "1.1.0", "interfaces": []any{map[string]any{"name": ifname, "sandbox": "/run/netns/pod"}}}
	for _, c := range []struct {
		what string
		env  map[string]string
		conf map[string]any
		code uint
		says string
	}{
		{"version", nil, map[string]any{"cniVersion": "0.2.0"}, 1, "0.2.0"},
		{"bandwidth", nil, map[string]any{"runtimeConfig": map[string]any{"bandwidth": map[string]any{"ingressRate": 1}}}, 7, "bandwidth"},
		{"ipam", nil, map[string]any{"ipam": map[string]any{"type": "host-local"}}, 2, "ipam"},
		{"no container", map[string]string{"CNI_CONTAINERID": ""}, nil, 4, "CNI_CONTAINERID"},
		{"two missing", map[string]string{"CNI_IFNAME": "", "CNI_NETNS": ""}, nil, 4, "CNI_NETNS,CNI_IFNAME"},
		{"interface name", map[string]string{"CNI_IFNAME": "../all"}, nil, 4, "interface name"},
		{"no such namespace", map[string]string{"CNI_NETNS": "/run/netns/none"}, nil, 4, "/run/netns/none"},
		{"no namespace", map[string]string{"CNI_NETNS": plain}, nil, 4, plain},
		{"a namespace of another kind", map[string]string{"CNI_NETNS": "/proc/self/ns/uts"}, nil, 4, "CNI_NETNS"},
		{"the node's namespace", map[string]string{"CNI_NETNS": "/proc/self/ns/net"}, nil, 8, "own"},
		{"leases on a file", nil, map[string]any{"dataDir": plain}, 5, plain},
		{"ranges", nil, map[string]any{"ranges": 4}, 6, "ranges"},
		{"no ranges", nil, map[string]any{"ranges": nil}, 7, "podCIDR"},
		{"mode", nil, map[string]any{"mode": "ringed"}, 7, `"ringed"; there are "routed" and "bridge"`},
		{"wanted elsewhere", map[string]string{"CNI_ARGS": "IP=192.0.2.9"}, nil, 7, "192.0.2.9"},
		{"another's interface", nil, map[string]any{"prevResult": prev}, 7, ifname},
		{"interface exists", map[string]string{"CNI_NETNS": "/run/netns/taken"}, nil, 101, ifname},
		{"wanted but reserved", map[string]string{"CNI_ARGS": "IP=10.244.0.0"}, nil, 7, "10.244.0.0"},
	} {
		e := env("ADD", "pod")
		for k, v := range c.env {
			e[k] = v
		}
		got := run(t, r.command(e, c.conf))
		if got.exit == 0 || got.Code != c.code || !strings.Contains(got.Error.Error(), c.says) {
			t.Errorf("%s: exit %d, code %d, %v; want code %d and %q", c.what, got.exit, got.Code, got.Error.Error(), c.code, c.says)
		}
		if c.code == 1 || e["CNI_CONTAINERID"] == "" || e["CNI_IFNAME"] != ifname || c.what == "leases on a file" {
			continue // these are errors of DEL, too
		}
		e["CNI_COMMAND"] = "DEL"
		if got := run(t, r.command(e, c.conf)); got.exit != 0 {
			t.Errorf("%s: the DEL that follows: %v", c.what, got.Error.Error())
		}
	}
	if diff := cmp.Diff(before, state(t)); diff != "" {
		t.Error(diff)
	}
	if v, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); strings.TrimSpace(string(v)) != "0" {
		t.Error("forwarding was turned on")
	}
	r.empty("after errors")
}

// TestTraffic holds that packets go everywhere, in both families, at once, and up to the MTU.
func TestTraffic(t *testing.T) {
	if !enter(t) {
		return
	}
	traffic(t, newRig(t), node4, node6)
}

// traffic is between two pods and the node, which has the addresses for its pods.
func traffic(t *testing.T, r *rig, node ...string) {
	all := map[string][]string{"": node, "a": r.mustAdd("a"), "b": r.mustAdd("b")}
	for name := range all {
		serve(t, name)
	}
	for from, sources := range all {
		for to, targets := range all {
			if from == to {
				continue
			}
			for i, target := range targets {
				for _, network := range []string{"tcp", "udp"} {
					local, err := talk(t, from, network, target, 1000)
					if err != nil {
						t.Errorf("%q to %q, %s: %v", from, to, network, err)
					} else if local.String() != sources[i] {
						t.Errorf("%q to %q spoke from %s, not %s", from, to, local, sources[i])
					}
				}
				headers := []int{28, 48}[i]
				if _, err := talk(t, from, "udp", target, mtu-headers); err != nil {
					t.Errorf("%q to %q, a packet of the MTU: %v", from, to, err)
				}
			}
		}
	}
	var err error
	in(t, "a", func() { err = unfragmented(net.JoinHostPort(all["b"][0], "8080"), mtu-28+1) })
	if !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a packet larger than the MTU: %v", err)
	}
}

// unfragmented sends an IPv4 packet that may not be fragmented.
func unfragmented(to string, n int) error {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		}), err)
	}}
	c, err := d.Dial("udp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write(make([]byte, n))
	return err
}

// TestSpoof holds that a pod cannot send from another's address, in IPv4 by the kernel's own check, even where a distribution has it
// loose, in IPv6 by the rule of the daemon, which lets all else pass.
func TestSpoof(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	own, stolen := r.mustAdd("thief"), r.mustAdd("owner")
	for i, how := range []string{"/32 dev lo", "/128 dev lo nodad"} { // with DAD, nobody could use it at once, though it is lo's
		netns.Batch(t, "thief", "addr add "+stolen[i]+how+"\n")
	}
	for _, c := range []struct {
		loose, rules bool
		arrives      [2]bool // which families' do
	}{
		{false, false, [2]bool{false, true}},
		{true, false, [2]bool{false, true}},
		{true, true, [2]bool{false, false}},
	} {
		netns.Run(t, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter="+map[bool]string{false: "0", true: "2"}[c.loose])
		if c.rules {
			if _, err := antispoof.Apply(); err != nil {
				t.Fatal(err)
			}
		}
		for i, node := range []string{node4, node6} {
			heard, err := net.ListenPacket("udp", net.JoinHostPort(node, "9999"))
			if err != nil {
				t.Fatal(err)
			}
			in(t, "thief", func() {
				for _, from := range []string{stolen[i], own[i]} {
					c, err := net.ListenPacket("udp", net.JoinHostPort(from, "0"))
					if err == nil {
						_, err = c.WriteTo([]byte("x"), &net.UDPAddr{IP: net.ParseIP(node), Port: 9999})
						_ = c.Close()
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
			_ = heard.SetReadDeadline(time.Now().Add(10 * time.Second))
			var from []string
			for len(from) == 0 || from[len(from)-1] != own[i] { // which comes after
				_, a, err := heard.ReadFrom(make([]byte, 1))
				if err != nil {
					t.Fatal(err)
				}
				from = append(from, a.(*net.UDPAddr).IP.String())
			}
			if arrived := len(from) > 1; arrived != c.arrives[i] {
				t.Errorf("loose %v, rules %v: the node hears %v", c.loose, c.rules, from)
			}
			_ = heard.Close()
		}
	}
	traffic(t, r, node4, node6)
	out := netns.Run(t, "nft", "list", "table", "ip6", antispoof.Table)
	if !strings.Contains(out, "counter packets 1 ") {
		t.Error(out)
	}
}

// TestResult holds what ADD returns, in every version, and what is in the kernel.
func TestResult(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	for i, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		name := fmt.Sprintf("p%d", i)
		r.pod(name)
		out := run(t, r.command(env("ADD", name), map[string]any{"cniVersion": version})).stdout
		var got map[string]any
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%s: %v: %s", version, err, out)
		}
		if got["cniVersion"] != version {
			t.Errorf("%s: the result is of %v", version, got["cniVersion"])
		}
		res, err := r.addAs(name, version)
		if code(err) != 101 || res != nil {
			t.Errorf("%s: a second ADD: %v", version, err)
		}
	}
	r.pod("a")
	r.conf["ranges"] = []string{range6, range4} // the other family first
	res, err := r.add("a")
	if err != nil {
		t.Fatal(err)
	}
	host := res.Interfaces[0]
	podMAC := strings.Fields(netns.Run(t, "ip", "-n", "a", "-br", "link", "show", ifname))[2]
	hostLine := strings.Fields(netns.Run(t, "ip", "-br", "link", "show", host.Name))
	want := fmt.Sprintf(`{"cniVersion":"1.1.0","dns":{"nameservers":["10.96.0.10"]},"interfaces":[`+
		`{"mac":%q,"mtu":1400,"name":%q},{"mac":%q,"mtu":1400,"name":"eth0","sandbox":"/run/netns/a"}],`+
		`"ips":[{"address":"fd00:244::6/128","gateway":"fe80::1","interface":1},{"address":"10.244.0.6/32","gateway":"169.254.1.1","interface":1}],`+
		`"routes":[{"dst":"::/0","gw":"fe80::1"},{"dst":"0.0.0.0/0","gw":"169.254.1.1"}]}`,
		hostLine[2], host.Name, podMAC)
	b, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Error(diff)
	}
	if len(host.Name) != 10 || !strings.HasPrefix(host.Name, "rw") {
		t.Errorf("the node's end is %s", host.Name)
	}
	if out := netns.Run(t, "ip", "link", "show", host.Name); !strings.Contains(out, "alias ns/a") {
		t.Errorf("no alias: %s", out)
	}
	r.pod("long")
	e := env("ADD", "long")
	e["CNI_ARGS"] = "K8S_POD_NAMESPACE=" + strings.Repeat("n", 63) + ";K8S_POD_NAME=" + strings.Repeat("p", 253)
	if got := run(t, r.command(e, nil)); got.exit != 0 {
		t.Errorf("names as long as they may be: %v", got.Error.Error())
	}
	if out := netns.Run(t, "ip", "addr", "show", "dev", host.Name); strings.Contains(out, "inet") {
		t.Errorf("the node's end has an address: %s", out)
	}
	for _, where := range [][]string{{"addr", "show", "dev", host.Name}, {"-n", "a", "addr", "show", "dev", ifname}} {
		if out := netns.Run(t, "ip", where...); strings.Contains(out, "tentative") || !strings.Contains(out, "LOWER_UP") {
			t.Errorf("not ready: %s", out)
		}
	}
}

// TestLoopback holds that a pod's loopback interface is up without a plugin of its own, and that a pod where IPv6 is disabled gets it.
func TestLoopback(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	r.pod("a")
	netns.Run(t, "ip", "-n", "a", "link", "set", "lo", "down")
	netns.Run(t, "ip", "netns", "exec", "a", "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
	res, err := r.add("a")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, "a")
	for _, a := range append(addresses(res), "127.0.0.1") {
		from := ""
		if a == "127.0.0.1" {
			from = "a"
		}
		if _, err := talk(t, from, "tcp", a, 10); err != nil {
			t.Error(err)
		}
	}
}

// TestRouters holds that turning IPv6 forwarding on leaves an interface that takes a router's word with it.
func TestRouters(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	netns.Run(t, "ip", "link", "add", "uplink", "type", "bridge")
	netns.Run(t, "ip", "link", "add", "other", "type", "bridge")
	netns.Run(t, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.uplink.accept_ra=1", "net.ipv6.conf.other.accept_ra=0", "net.ipv4.ip_forward=0")
	r.mustAdd("a")
	out := netns.Run(t, "sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv6.conf.uplink.accept_ra", "net.ipv6.conf.other.accept_ra")
	if got := strings.Join(strings.Fields(out), " "); got != "1 1 2 0" {
		t.Errorf("ip_forward, forwarding and accept_ra twice are %s", got)
	}
}

// TestFailedAdd holds that an ADD that fails late leaves nothing, and that DEL succeeds then.
func TestFailedAdd(t *testing.T) {
	if !enter(t) {
		return
	}
	for _, c := range []struct {
		what   string
		break_ func(r *rig, name string) (repair func())
		full   bool
		code   uint
	}{
		{"a route that is there", func(r *rig, _ string) func() {
			netns.Run(t, "ip", "-6", "route", "add", "fd00:244::2/128", "dev", "lo")
			return func() { netns.Run(t, "ip", "-6", "route", "del", "fd00:244::2/128", "dev", "lo") }
		}, false, 103},
		{"a default route in the pod", func(r *rig, name string) func() {
			netns.Run(t, "ip", "-n", name, "-6", "route", "add", "default", "dev", "lo")
			netns.Run(t, "ip", "-n", name, "route", "add", "default", "dev", "lo")
			return func() {}
		}, false, 7},
		{"a result that cannot be written", func(*rig, string) func() { return func() {} }, true, 0},
		{"an exhausted range", func(r *rig, _ string) func() {
			r.conf["ranges"] = []string{range4, "fd00:244::/126"}
			s, err := ipam.Open(r.dir)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for _, other := range []string{"x", "y"} {
				if _, err := s.Allocate(ipam.Owner{Container: other, Interface: ifname}, []ipam.Pool{{ipam.Whole(netip.MustParsePrefix("fd00:244::/126"))}}, nil); err != nil {
					t.Fatal(err)
				}
			}
			return func() {
				s, err := ipam.Open(r.dir)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				for _, other := range []string{"x", "y"} {
					_, err = s.Release(other, ifname)
					if err != nil {
						t.Fatal(err)
					}
				}
			}
		}, false, 100},
	} {
		r := newRig(t)
		name := fmt.Sprintf("p%x", len(c.what))
		r.pod(name)
		repair := c.break_(r, name)
		cmd := r.command(env("ADD", name), nil)
		if c.full {
			f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdout = f
			if err := cmd.Run(); err == nil {
				t.Errorf("%s: it succeeds", c.what)
			}
			_ = f.Close()
		} else if got := run(t, cmd); got.exit == 0 || got.Code != c.code {
			t.Errorf("%s: exit %d, code %d: %v", c.what, got.exit, got.Code, got.Error.Error())
		}
		if out := netns.Run(t, "ip", "-n", name, "-br", "link"); strings.Contains(out, ifname) {
			t.Errorf("%s: the pod has\n%s", c.what, out)
		}
		repair()
		r.empty(c.what)
		if err := r.del(name); err != nil {
			t.Errorf("%s: DEL: %v", c.what, err)
		}
	}
}

// TestDeaf holds that nothing is left of an ADD whose runtime is gone when there is a result.
func TestDeaf(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	r.pod("a")
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	_ = reader.Close()
	cmd := r.command(env("ADD", "a"), nil)
	cmd.Stdout = writer
	if err := cmd.Run(); err == nil {
		t.Error("it succeeds")
	}
	r.empty("afterwards")
}

// TestForeign holds that an interface of somebody else's that has the name is neither used nor removed, by a failed ADD and the DEL that follows.
func TestForeign(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	r.pod("a")
	res, err := r.add("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.del("a"); err != nil {
		t.Fatal(err)
	}
	host := res.Interfaces[0].Name
	netns.Run(t, "ip", "link", "add", host, "type", "veth", "peer", "name", "other")
	if _, err := r.add("a"); code(err) != 103 || !strings.Contains(err.Error(), host) {
		t.Errorf("ADD: %v", err)
	}
	if err := r.del("a"); err != nil {
		t.Errorf("DEL: %v", err)
	}
	netns.Run(t, "ip", "link", "show", host)
	if l := r.leases(); len(l) > 0 {
		t.Error(l)
	}
}

// TestOneFamily holds that a pod has what the node has, and no more.
func TestOneFamily(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	serve(t, "")
	for name, only := range map[string]string{"v4": range4, "v6": range6} {
		r.conf["ranges"] = []string{only}
		if got := r.mustAdd(name); len(got) != 1 {
			t.Errorf("%s: addresses are %v", name, got)
		}
		if err := r.check(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for family, node := range map[string]string{"v4": node4, "v6": node6} {
			_, err := talk(t, name, "tcp", node, 10)
			if family == name && err != nil || family != name && !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("%s to %s: %v", name, node, err)
			}
		}
	}
}

// TestDel holds that DEL frees the address in every way it may be called.
func TestDel(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	if err := r.del("never"); err != nil {
		t.Errorf("what was never added: %v", err)
	}
	for i, c := range []struct {
		what string
		env  map[string]string
		conf map[string]any
		gone bool
	}{
		{what: "as ever"},
		{what: "no CNI_NETNS", env: map[string]string{"CNI_NETNS": ""}},
		{what: "no CNI_NETNS, and the namespace gone", env: map[string]string{"CNI_NETNS": ""}, gone: true},
		{what: "the namespace gone", gone: true},
		{what: "the node's own namespace", env: map[string]string{"CNI_NETNS": fmt.Sprintf("/proc/%d/ns/net", os.Getpid())}},
		{what: "no CNI_ARGS", env: map[string]string{"CNI_ARGS": ""}},
		{what: "a configuration that has become nonsense", conf: map[string]any{"ranges": "none", "mode": 7, "mtu": "large", "prevResult": 3}},
		{what: "an old version", conf: map[string]any{"cniVersion": "0.3.1"}},
	} {
		name := fmt.Sprintf("p%d", i)
		r.mustAdd(name)
		if c.gone {
			netns.Run(t, "ip", "netns", "del", name)
		}
		e := env("DEL", name)
		for k, v := range c.env {
			e[k] = v
		}
		for range 2 {
			if got := run(t, r.command(e, c.conf)); got.exit != 0 || got.stdout != "" {
				t.Errorf("%s: %s", c.what, got.stdout)
			}
			r.empty(c.what)
		}
		if !c.gone {
			if out := netns.Run(t, "ip", "-n", name, "-br", "link"); strings.Contains(out, ifname) {
				t.Errorf("%s: the pod has\n%s", c.what, out)
			}
		}
	}
}

// TestDelWithoutNftables holds that a kernel which has none has no ports of the pod's either, whereas one that does not answer may have some.
func TestDelWithoutNftables(t *testing.T) {
	if !enter(t) {
		return
	}
	netns.NeedCommand(t, "strace")
	r := newRig(t)
	for _, c := range []struct {
		errno string
		exit  int
	}{{"EINVAL", 0}, {"EOPNOTSUPP", 0}, {"EIO", 1}} {
		r.pod("a")
		if got := run(t, r.command(env("ADD", "a"), nil)); got.exit != 0 {
			t.Fatal(got.Error.Error())
		}
		if exit, times, said := r.injectOutput("DEL", "sendmsg:error="+c.errno); exit != c.exit || times == 0 {
			t.Errorf("%s: exit %d after %d calls: %s", c.errno, exit, times, said)
		}
		if n := len(r.leases()); n != c.exit {
			t.Errorf("%s: %d leases", c.errno, n)
		}
		if err := r.del("a"); err != nil {
			t.Error(err)
		}
		netns.Run(t, "ip", "netns", "del", "a")
	}
}

// TestCheck holds that CHECK finds each part that is missing.
func TestCheck(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	for i, c := range []struct{ damage, says string }{
		{"", ""},
		{"ip link del HOST", "is missing"},
		{"ip link del HOST; ip link add HOST address HOSTMAC up type bridge", "is a bridge"},
		{"ip link set HOST down", "down"},
		{"ip route del V4 dev HOST", "route to V4 is missing"},
		{"ip -6 route del V6 dev HOST", "route to V6 is missing"},
		{"ip neigh del V4 dev HOST", "neighbour V4"},
		{"ip neigh replace V4 lladdr 02:00:00:00:00:01 nud permanent dev HOST", "neighbour V4"},
		{"ip neigh replace V4 lladdr PODMAC nud reachable dev HOST", "neighbour V4"},
		{"ip -n POD neigh replace fe80::1 lladdr 02:00:00:00:00:01 nud permanent dev eth0", "neighbour fe80::1"},
		{"ip -6 neigh del V6 dev HOST", "neighbour V6"},
		{"ip -n POD link set eth0 down", "down"},
		{"ip -n POD link set eth0 address 02:00:00:00:00:01", "MAC"},
		{"ip -n POD addr del V4/32 dev eth0", "address V4/32 is missing"},
		{"ip -n POD addr del V6/128 dev eth0", "address V6/128 is missing"},
		{"ip -n POD route del default", "default route by 169.254.1.1 is missing"},
		{"ip -n POD -6 route del default", "default route by fe80::1 is missing"},
		{"ip -n POD neigh del 169.254.1.1 dev eth0", "neighbour 169.254.1.1"},
		{"ip -n POD -6 neigh del fe80::1 dev eth0", "neighbour fe80::1"},
		{"sysctl -qw net.ipv4.ip_forward=0", "ip_forward"},
		{"sysctl -qw net.ipv6.conf.all.forwarding=0", "forwarding"},
	} {
		name := fmt.Sprintf("p%d", i)
		netns.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
		r.pod(name)
		res, err := r.add(name)
		if err != nil {
			t.Fatal(err)
		}
		a := addresses(res)
		fill := strings.NewReplacer("HOSTMAC", res.Interfaces[0].Mac, "HOST", res.Interfaces[0].Name, "PODMAC", res.Interfaces[1].Mac, "POD", name, "V4", a[0], "V6", a[1])
		if c.damage == "" {
			if err := r.check(name); err != nil {
				t.Error(err)
			}
			continue
		}
		for _, line := range strings.Split(fill.Replace(c.damage), "; ") {
			cmd := strings.Fields(line)
			netns.Run(t, cmd[0], cmd[1:]...)
		}
		if err := r.check(name); code(err) != 104 || !strings.Contains(err.Error(), fill.Replace(c.says)) {
			t.Errorf("%s: %v", c.damage, err)
		}
	}
	r.mustAdd("a")
	prev := map[string]any{"prevResult": map[string]any{"cniVersion": "1.1.0", "ips": []any{map[string]any{"address": "10.244.0.1/32"}}}}
	if got := run(t, r.command(env("CHECK", "a"), prev)); got.Code != 104 || !strings.Contains(got.Details, "not in prevResult") {
		t.Errorf("another prevResult: %v", got.Error.Error())
	}
	s, err := ipam.Open(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Release("a", ifname)
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if err := r.check("a"); code(err) != 104 || !strings.Contains(err.Error(), "lease") {
		t.Errorf("without its lease: %v", err)
	}
	r.pod("never")
	if got := run(t, r.command(env("CHECK", "never"), prev)); got.Code != 3 {
		t.Errorf("what was never added: %v", got.Error.Error())
	}
	if got := run(t, r.command(env("CHECK", "p0"), nil)); got.Code != 7 {
		t.Errorf("without prevResult: %v", got.Error.Error())
	}
}

// TestCheckMasquerade holds that CHECK finds out that packets would leave the cluster with a pod's address, where the configuration says that
// they must not.
func TestCheckMasquerade(t *testing.T) {
	if !enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	r := newRig(t)
	r.mustAdd("a")
	r.conf["masquerade"] = true
	apply := func(pods ...string) {
		t.Helper()
		c := masquerade.Config{}
		for _, p := range pods {
			c.Pods = append(c.Pods, netip.MustParsePrefix(p))
		}
		if _, err := new(masquerade.Tables).Apply(c, true); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		what   string
		damage func()
		says   string
	}{
		{"all is there", func() { apply(range4, range6, "10.9.0.0/16") }, ""},
		{"other pods", func() { apply("10.243.0.0/16", "10.245.0.0/16", range6) }, "10.244.0.2"},
		{"one family", func() { apply(range4) }, "fd00:244::2"},
		{"no rule", func() {
			apply(range4, range6)
			netns.Run(t, "nft", "flush", "chain", "ip6", masquerade.Table, "postrouting")
		}, "no rule"},
		{"nothing", func() { netns.Run(t, "nft", "flush", "ruleset") }, "no rule"},
	} {
		c.damage()
		if err := r.check("a"); c.says == "" && err != nil || c.says != "" && (code(err) != 104 || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// TestForget holds that connection tracking knows nothing of a freed address, whichever end it was, and of others what it knew. With
// many entries the kernel is asked otherwise than with few.
func TestForget(t *testing.T) {
	if !enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	r := newRig(t)
	all := map[string][]string{"": {node4, node6}, "a": r.mustAdd("a"), "b": r.mustAdd("b"), "c": r.mustAdd("c")}
	netns.Run(t, "nft", "add table inet t; add chain inet t in { type nat hook prerouting priority dstnat; };"+
		"add chain inet t out { type filter hook output priority 0; }; add rule inet t out ct state new;"+
		"add rule inet t in ct state new ip daddr 192.0.2.9 dnat ip to "+all["a"][0])
	for name := range all {
		serve(t, name)
	}
	for from := range all {
		for to, targets := range all {
			for _, target := range append(targets, "192.0.2.9") {
				for _, network := range []string{"tcp", "udp"} {
					if from == to || target == "192.0.2.9" && from != "b" {
						continue
					}
					if _, err := talk(t, from, network, target, 10); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	for _, name := range []string{"a", "b"} {
		before, others := tracked(t, all[name])
		if before < 16 || others < 8 {
			t.Fatalf("of %s %d are tracked, of others %d", name, before, others)
		}
		if err := r.del(name); err != nil {
			t.Fatal(err)
		}
		if after, left := tracked(t, all[name]); after != 0 || left != others {
			t.Errorf("of %s %d are left, and of others %d of %d", name, after, left, others)
		}
		fill(t, 5000)
	}
}

// tracked counts the entries of connection tracking that are of one of the addresses, and those that are not.
func tracked(t *testing.T, addrs []string) (of, others int) {
	t.Helper()
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range flows {
			if slices.ContainsFunc([]net.IP{f.Forward.SrcIP, f.Forward.DstIP, f.Reverse.SrcIP, f.Reverse.DstIP}, func(ip net.IP) bool {
				return slices.Contains(addrs, ip.String())
			}) {
				of++
			} else {
				others++
			}
		}
	}
	return of, others
}

// fill has so many connections tracked.
func fill(t *testing.T, n int) {
	t.Helper()
	c, err := net.ListenPacket("udp4", node4+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for port := 20000; port < 20000+n; port++ {
		_, _ = c.WriteTo([]byte("x"), &net.UDPAddr{IP: net.ParseIP(node4), Port: port}) // nobody is there
	}
}

func TestStatus(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	r.conf["ranges"] = []string{"10.244.0.0/30"}
	status := func() error { return r.cni.GetStatusNetworkList(context.Background(), r.list("1.1.0")) }
	netns.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=0")
	if err := status(); err != nil {
		t.Errorf("before the first ADD: %v", err)
	}
	r.mustAdd("a")
	if err := status(); code(err) != 50 || !strings.Contains(err.Error(), "10.244.0.0/30") {
		t.Errorf("exhausted: %v", err)
	}
	r.conf["ranges"] = []string{range4}
	if err := status(); err != nil {
		t.Error(err)
	}
	netns.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=0")
	if err := status(); code(err) != 51 {
		t.Errorf("without forwarding: %v", err)
	}
	netns.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	busy, err := ipam.Open(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := status(); err != nil {
		t.Errorf("while others have the leases: %v", err)
	}
	if err := busy.Close(); err != nil {
		t.Fatal(err)
	}
	if err := limited.Write(r.dir, "no tunnel"); err != nil {
		t.Fatal(err)
	}
	if err := status(); code(err) != 51 || !strings.Contains(err.Error(), "no tunnel") {
		t.Errorf("where the daemon lacks something: %v", err)
	}
	if err := limited.Clear(r.dir); err != nil {
		t.Fatal(err)
	}
	if err := status(); err != nil {
		t.Error(err)
	}
	r.conf["ranges"] = []string{}
	if err := status(); code(err) != 50 {
		t.Errorf("without podCIDRs: %v", err)
	}
	r.conf["ranges"] = []string{range4, range6}
	netns.Tmpfs(t, "/proc/sys/net", map[string]string{"/proc/sys/net/ipv4/ip_forward": "1"}) // as a kernel that was started with ipv6.disable=1
	if err := status(); code(err) != 50 || !strings.Contains(err.Error(), "IPv6") {
		t.Errorf("without IPv6 in the kernel: %v", err)
	}
	r.conf["ranges"] = []string{range4}
	if err := status(); err != nil {
		t.Errorf("of IPv4 alone: %v", err)
	}
}

// TestStatusKernel holds that STATUS fails where the kernel lacks something, may not be asked for it, or where leases cannot be written, and
// leaves nothing.
func TestStatusKernel(t *testing.T) {
	if !enter(t) {
		return
	}
	netns.NeedCommand(t, "strace")
	netns.NeedCommand(t, "setpriv")
	r := newRig(t)
	before := netns.Run(t, "ip", "-br", "link")
	readOnly := t.TempDir()
	netns.Run(t, "mount", "-t", "tmpfs", "-o", "ro", "none", readOnly)
	defer netns.Run(t, "umount", readOnly)
	ports := map[string]any{"capabilities": map[string]bool{"portMappings": true}}
	for _, c := range []struct {
		what, under string
		conf        map[string]any
		code        uint
		says        string
	}{
		{"all is there", "", ports, 0, ""},
		{"no CAP_NET_ADMIN", "setpriv --bounding-set=-net_admin --inh-caps=-net_admin", nil, 50, "veth"},
		{"no veth", "strace -f -qq -o /dev/null -e trace=sendto -e inject=sendto:error=EOPNOTSUPP", nil, 50, "veth"},
		{"all is there for a bridge", "", map[string]any{"mode": "bridge"}, 0, ""},
		{"no bridge", "strace -f -qq -o /dev/null -e trace=sendto -e inject=sendto:error=EOPNOTSUPP:when=2", map[string]any{"mode": "bridge"}, 50, "no bridge can be made"},
		{"no nftables, and ports are passed on", "strace -f -qq -o /dev/null -e trace=sendmsg -e inject=sendmsg:error=EOPNOTSUPP", ports, 50, "nftables"},
		{"no nftables, and ports are not passed on", "strace -f -qq -o /dev/null -e trace=sendmsg -e inject=sendmsg:error=EOPNOTSUPP", nil, 0, ""},
		{"no place for leases", "", map[string]any{"dataDir": readOnly}, 50, "read-only"},
	} {
		cmd := r.command(env("STATUS", ""), c.conf)
		if c.under != "" {
			cmd.Args = append(strings.Fields(c.under), cmd.Path)
			path, err := exec.LookPath(cmd.Args[0])
			if err != nil {
				t.Fatal(err)
			}
			cmd.Path = path
		}
		if got := run(t, cmd); got.Code != c.code || (got.exit == 0) != (c.code == 0) || !strings.Contains(got.Error.Error(), c.says) {
			t.Errorf("%s: exit %d, code %d, %v", c.what, got.exit, got.Code, got.Error.Error())
		}
	}
	if diff := cmp.Diff(before, netns.Run(t, "ip", "-br", "link")); diff != "" {
		t.Error(diff)
	}
}

func TestGC(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	for _, name := range []string{"a", "b", "c"} {
		r.mustAdd(name)
	}
	netns.Run(t, "ip", "netns", "del", "c")
	if got := run(t, r.command(env("GC", ""), nil)); got.exit != 0 || len(r.leases()) != 3 { // c's is young
		t.Errorf("without a list: %v, left are %v", got.Error.Error(), r.leases())
	}
	// libcni keeps a cache of its own and would send a DEL for each: the program is on its own here.
	valid := map[string]any{"cni.dev/valid-attachments": []types.GCAttachment{{ContainerID: "b", IfName: ifname}}}
	if got := run(t, r.command(env("GC", ""), valid)); got.exit != 0 {
		t.Error(got.Error.Error())
	}
	if l := r.leases(); len(l) != 1 || l[0].Container != "b" {
		t.Errorf("left are %v", l)
	}
	if err := r.check("b"); err != nil {
		t.Error(err)
	}
	if n := strings.Count(netns.Run(t, "ip", "-br", "link"), "rw"); n != 1 {
		t.Errorf("%d interfaces are left", n)
	}
	if err := r.cni.GCNetworkList(context.Background(), r.list("1.1.0"), &libcni.GCArgs{}); err != nil {
		t.Error(err)
	}
	r.empty("after a GC of all")
}

// TestGCWithoutList holds that whoever calls GC and does not say who is valid, as cnitool, frees what is old and has no interface any more.
func TestGCWithoutList(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	for _, name := range []string{"dead", "alive", "young"} {
		r.mustAdd(name)
	}
	for _, name := range []string{"dead", "young"} {
		netns.Run(t, "ip", "-n", name, "link", "del", ifname) // as the kernel does some time after the namespace is gone
	}
	r.age("dead", "alive")
	must(t, run(t, r.command(env("GC", ""), nil)))
	var left []string
	for _, l := range r.leases() {
		left = append(left, l.Container)
	}
	if diff := cmp.Diff([]string{"alive", "young"}, sorted(left)); diff != "" {
		t.Errorf("leased are %s", diff)
	}
	if err := r.check("alive"); err != nil {
		t.Error(err)
	}
}

// age makes containers' leases an hour older.
func (r *rig) age(names ...string) {
	r.Helper()
	db, err := bbolt.Open(filepath.Join(r.dir, "ipam.db"), 0o600, &bbolt.Options{Timeout: 10 * time.Second})
	if err != nil {
		r.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		leases := tx.Bucket([]byte("leases"))
		for _, name := range names {
			key := []byte(name + "\x00" + ifname)
			var l map[string]any
			if err := json.Unmarshal(leases.Get(key), &l); err != nil {
				return err
			}
			l["Since"] = time.Now().Add(-time.Hour)
			b, err := json.Marshal(l)
			if err := errors.Join(err, leases.Put(key, b)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		r.Fatal(err)
	}
}

// TestGCErrors holds that a GC that cannot remove one attachment removes the others, and says which one is left.
func TestGCErrors(t *testing.T) {
	if !enter(t) {
		return
	}
	netns.NeedCommand(t, "strace")
	r := newRig(t)
	dead := []string{"dead1", "dead2", "dead3"}
	for _, name := range append(dead, "alive") {
		r.pod(name)
	}
	must(t, run(t, r.command(env("ADD", "alive"), nil)))
	r.conf["cni.dev/valid-attachments"] = []types.GCAttachment{{ContainerID: "alive", IfName: ifname}}
	failed := 0
	for n := 1; ; n++ {
		for i, name := range dead {
			ports := map[string]any{"portMappings": []any{map[string]any{"hostPort": 9090 + i, "containerPort": 8080}}}
			must(t, run(t, r.command(env("ADD", name), map[string]any{"runtimeConfig": ports})))
		}
		exit, times, out := r.injectOutput("GC", fmt.Sprintf("sendto:error=EIO:when=%d", n))
		left := r.leases()
		left = slices.DeleteFunc(left, func(l ipam.Lease) bool { return l.Container == "alive" })
		switch {
		case exit == 0 && len(left) > 0:
			t.Errorf("call %d: it succeeds, and leaves %v", n, left)
		case exit == 1 && times < len(dead): // calls of each thread are counted by themselves
			failed++
			if len(left) == 0 && !strings.Contains(out, "limits") || len(left) > times || strings.Count(out, "dead") != len(left) {
				t.Errorf("call %d, %d failed: left are %v: %s", n, times, left, out)
			}
			for _, l := range left {
				if !strings.Contains(out, l.Container) {
					t.Errorf("call %d: %s is left, but not named: %s", n, l.Container, out)
				}
			}
		}
		must(t, run(t, r.command(env("GC", ""), nil)))
		if l := r.leases(); len(l) != 1 || l[0].Container != "alive" {
			t.Fatalf("call %d: the next GC leaves %v", n, l)
		}
		if l, err := portmap.List(); err != nil || len(l) > 0 {
			t.Errorf("call %d: the next GC leaves ports: %v, %v", n, l, err)
		}
		if times == 0 {
			break
		}
	}
	if failed == 0 {
		t.Error("GC has never failed")
	}
	serve(t, "alive")
	if _, err := talk(t, "", "tcp", r.leases()[0].Addrs[0].String(), 10); err != nil {
		t.Error(err)
	}
}

// TestCollect holds that what pods leave that go without a DEL is freed after a while, without a list, and what others have is not.
func TestCollect(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	ports := func(port int) map[string]any {
		return map[string]any{"runtimeConfig": map[string]any{"portMappings": []any{map[string]any{"hostPort": port, "containerPort": 8080}}}}
	}
	names := []string{"before", "stays", "goes"}
	for i, name := range names {
		r.pod(name)
		if got := run(t, r.command(env("ADD", name), ports(9000+i))); got.exit != 0 {
			t.Fatal(got.Error.Error())
		}
	}
	serve(t, "stays")
	// As the kernel does some time after the namespace is gone.
	netns.Run(t, "ip", "-n", "before", "link", "del", ifname)
	c, err := collect.New(collect.Config{DataDir: r.dir, Grace: 90 * time.Millisecond, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = c.Run(ctx) })
	left := func() (names []string) {
		owners := map[string]bool{}
		for _, l := range r.leases() {
			owners[l.Container] = true
		}
		list, err := portmap.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			owners[p.Owner.Container] = true
		}
		return slices.Sorted(maps.Keys(owners))
	}
	await := func(want ...string) {
		t.Helper()
		for begun := time.Now(); !slices.Equal(left(), want); time.Sleep(5 * time.Millisecond) {
			if time.Since(begun) > 10*time.Second {
				t.Fatalf("left are %v, not %v", left(), want)
			}
		}
	}
	await("goes", "stays")
	netns.Run(t, "ip", "netns", "del", "goes")
	await("stays")
	if _, err := echo("tcp", net.JoinHostPort(node4, "9001"), 10); err != nil {
		t.Error(err)
	}
	if err := r.del("stays"); err != nil {
		t.Fatal(err)
	}
	r.empty("after all")
}

// TestStatic holds that a pod gets the addresses that it is to have, and that nobody else does.
func TestStatic(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	for _, name := range []string{"a", "b", "c"} {
		r.pod(name)
	}
	e := env("ADD", "a")
	e["CNI_ARGS"] += ";IP=fd00:244::7"
	ips := map[string]any{"runtimeConfig": map[string]any{"ips": []string{"10.244.0.77/24"}}}
	if got := run(t, r.command(e, ips)); !strings.Contains(got.stdout, "10.244.0.77/32") || !strings.Contains(got.stdout, "fd00:244::7/128") {
		t.Errorf("a has %s", got.stdout)
	}
	if got := run(t, r.command(env("ADD", "b"), ips)); got.Code != 102 || !strings.Contains(got.Error.Error(), "10.244.0.77") {
		t.Errorf("b: %v", got.Error.Error())
	}
	if err := r.del("a"); err != nil {
		t.Fatal(err)
	}
	if got := run(t, r.command(env("ADD", "c"), ips)); got.exit != 0 { // it does not have to rest
		t.Errorf("c: %v", got.Error.Error())
	}
}

// TestPorts holds that the node's ports lead to the pod that is to have them, from the node and from other pods, until its DEL.
func TestPorts(t *testing.T) {
	if !enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	r := newRig(t)
	ports := map[string]any{"runtimeConfig": map[string]any{"portMappings": []any{
		map[string]any{"hostPort": 9090, "containerPort": 8080, "protocol": "tcp"}, map[string]any{"hostPort": 9090, "containerPort": 8080, "protocol": "udp"},
	}}}
	r.mustAdd("far")
	for _, name := range []string{"a", "b"} {
		r.pod(name)
		serve(t, name)
	}
	added := run(t, r.command(env("ADD", "a"), ports))
	if added.exit != 0 {
		t.Fatal(added.Error.Error())
	}
	if got := run(t, r.command(env("ADD", "b"), ports)); got.Code != 102 || len(r.leases()) != 2 {
		t.Errorf("the same ports for another pod: %v, leases %v", got.Error.Error(), r.leases())
	}
	reach := func() (failed error) {
		for _, from := range []string{"", "far"} {
			for _, node := range []string{node4, node6} {
				for _, network := range []string{"tcp", "udp"} {
					in(t, from, func() {
						if _, err := echo(network, net.JoinHostPort(node, "9090"), 100); err != nil {
							failed = errors.Join(failed, fmt.Errorf("from %q by %s: %w", from, network, err))
						}
					})
				}
			}
		}
		return failed
	}
	if err := reach(); err != nil {
		t.Error(err)
	}
	check := maps.Clone(ports)
	check["prevResult"] = json.RawMessage(added.stdout)
	if got := run(t, r.command(env("CHECK", "a"), check)); got.exit != 0 {
		t.Error(got.Error.Error())
	}
	netns.Run(t, "nft", "flush", "ruleset")
	if got := run(t, r.command(env("CHECK", "a"), check)); got.Code != 104 || !strings.Contains(got.Error.Error(), "ports") {
		t.Errorf("CHECK without the rules: %v", got.Error.Error())
	}
	for range 2 {
		if err := r.del("a"); err != nil {
			t.Error(err)
		}
	}
	if got := run(t, r.command(env("ADD", "b"), ports)); got.exit != 0 {
		t.Errorf("the ports are free: %v", got.Error.Error())
	}
	if err := reach(); err != nil {
		t.Error(err)
	}
	if err := r.del("b"); err != nil {
		t.Error(err)
	}
	if l, err := portmap.List(); err != nil || len(l) > 0 {
		t.Errorf("left are %v, %v", l, err)
	}
}

// TestLocalhostPorts holds that ports of 127.0.0.1 lead to pods where that is asked for, that no pod gets to the node's own 127.0.0.1 by it,
// and that nothing is opened where it is not asked for.
func TestLocalhostPorts(t *testing.T) {
	if !enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	r := newRig(t)
	ports := func(port int, hostIP string) map[string]any {
		m := func(protocol string) any {
			return map[string]any{"hostPort": port, "containerPort": 8080, "protocol": protocol, "hostIP": hostIP}
		}
		return map[string]any{"runtimeConfig": map[string]any{"portMappings": []any{m("tcp"), m("udp")}}}
	}
	at := func(hostIP string, port int) (failed error) {
		for _, network := range []string{"tcp", "udp"} {
			_, err := echo(network, net.JoinHostPort(hostIP, fmt.Sprint(port)), 100)
			failed = errors.Join(failed, err)
		}
		return failed
	}
	opened := func() string {
		return strings.Join(strings.Fields(netns.Run(t, "sh", "-c", "cat /proc/sys/net/ipv4/conf/*/route_localnet")), "")
	}
	r.pod("off")
	if got := run(t, r.command(env("ADD", "off"), ports(9090, "127.0.0.1"))); got.Code != 2 || !strings.Contains(got.Error.Error(), "localhostPorts") {
		t.Errorf("without the option: %v", got.Error.Error())
	}
	if got := run(t, r.command(env("ADD", "off"), ports(9090, ""))); got.exit != 0 {
		t.Fatal(got.Error.Error())
	}
	serve(t, "off")
	if err := at(node4, 9090); err != nil {
		t.Error(err)
	}
	if err := at("127.0.0.1", 9090); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("without the option: %v", err)
	}
	r.conf["localhostPorts"] = true
	r.mustAdd("portless")
	if got := opened(); strings.Contains(got, "1") {
		t.Errorf("route_localnet is %s, and nobody has asked for it", got)
	}
	added := map[string]answer{}
	for i, name := range []string{"all", "own"} {
		r.pod(name)
		serve(t, name)
		c := ports(9091+i, []string{"", "127.0.0.1"}[i])
		got := run(t, r.command(env("ADD", name), c))
		if added[name] = got; got.exit != 0 {
			t.Fatal(got.Error.Error())
		}
		if err := at("127.0.0.1", 9091+i); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		c["prevResult"] = json.RawMessage(got.stdout)
		if got := run(t, r.command(env("CHECK", name), c)); got.exit != 0 {
			t.Errorf("%s: %v", name, got.Error.Error())
		}
		key := "net.ipv4.conf." + hostOf(t, added[name]) + ".route_localnet"
		netns.Run(t, "sysctl", "-qw", key+"=0")
		if got := run(t, r.command(env("CHECK", name), c)); got.Code != 104 || !strings.Contains(got.Error.Error(), "route_localnet") {
			t.Errorf("%s: CHECK without route_localnet: %v", name, got.Error.Error())
		}
		netns.Run(t, "sysctl", "-qw", key+"=1")
	}
	if err := at(node4, 9091); err != nil {
		t.Error(err)
	}
	if err := at(node4, 9092); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a port of 127.0.0.1 alone, at another address: %v", err)
	}
	if got := strings.Count(opened(), "1"); got != 2 {
		t.Errorf("route_localnet is on at %d interfaces", got)
	}
	r.guarded("all")
	for range 2 {
		for name := range added {
			if err := r.del(name); err != nil {
				t.Error(err)
			}
		}
	}
	if err := at("127.0.0.1", 9091); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after DEL: %v", err)
	}
}

// hostOf returns the host end of an attachment.
func hostOf(t *testing.T, added answer) string {
	t.Helper()
	var res struct{ Interfaces []struct{ Name string } }
	if err := json.Unmarshal([]byte(added.stdout), &res); err != nil || len(res.Interfaces) == 0 {
		t.Fatalf("%v: %s", err, added.stdout)
	}
	return res.Interfaces[0].Name
}

// guarded holds that packets which a pod sends to 127.0.0.1 of the node get there without the guard only.
func (r *rig) guarded(pod string) {
	r.Helper()
	node, err := net.ListenPacket("udp4", "0.0.0.0:9999")
	if err != nil {
		r.Fatal(err)
	}
	defer node.Close()
	netns.Run(r, "ip", "netns", "exec", pod, "sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
	netns.Batch(r, pod, "addr del 127.0.0.1/8 dev lo\nroute add 127.0.0.1 via 169.254.1.1 dev eth0 onlink\n")
	send := func(to, what string) {
		in(r, pod, func() {
			c, err := net.Dial("udp4", to+":9999")
			if err == nil {
				_, err = c.Write([]byte(what))
				_ = c.Close()
			}
			if err != nil {
				r.Error(err)
			}
		})
	}
	next := func(want string) {
		r.Helper()
		b := make([]byte, 100)
		_ = node.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, _, err := node.ReadFrom(b); err != nil || string(b[:n]) != want {
			r.Errorf("%q instead of %q gets to the node, %v", b[:n], want, err)
		}
	}
	send("127.0.0.1", "forced")
	send(node4, "plain")
	next("plain")
	netns.Run(r, "nft", "delete", "chain", "ip", "ropewalk-hostports", "guard")
	send("127.0.0.1", "forced")
	next("forced")
}

// TestConcurrent holds that 200 ADDs at a time give 200 addresses.
func TestConcurrent(t *testing.T) {
	if !enter(t) {
		return
	}
	const pods = 200
	r := newRig(t)
	r.pod("a")
	var b strings.Builder
	for i := range pods {
		fmt.Fprintf(&b, "netns add p%d\n", i)
	}
	netns.Batch(t, "", b.String())
	var wg sync.WaitGroup
	got := make([][]string, pods)
	for i := range pods {
		wg.Go(func() {
			res, err := r.add(fmt.Sprintf("p%d", i))
			if err != nil {
				t.Error(err)
				return
			}
			got[i] = addresses(res)
		})
	}
	wg.Wait()
	for i, r := range []string{range4, range6} { // the order of the ranges
		p, seen := netip.MustParsePrefix(r), map[netip.Addr]bool{}
		for _, addrs := range got {
			if len(addrs) != 2 {
				t.Fatalf("a pod has %v", addrs)
			}
			a := netip.MustParseAddr(addrs[i])
			if seen[a] || !p.Contains(a) {
				t.Errorf("%s is of two pods, or not of %s", a, p)
			}
			seen[a] = true
		}
	}
	for i := range pods {
		wg.Go(func() {
			if err := r.del(fmt.Sprintf("p%d", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r.empty("after all DELs")
}

// TestEveryCall goes through the system calls of ADD and DEL that change something or wait for an answer, one by one. Where one fails in
// ADD, nothing is left at once; where the program is killed in one, nothing is left after a DEL or a GC.
func TestEveryCall(t *testing.T) {
	if !enter(t) {
		return
	}
	everyCall(t, newRig(t), []injection{
		{"ADD", "error=EIO", []string{"sendto", "recvfrom", "sendmsg", "write", "fdatasync"}},
		{"ADD", "signal=KILL", []string{"sendto", "sendmsg"}},
		{"DEL", "error=EIO", []string{"sendto", "sendmsg"}},
		{"DEL", "signal=KILL", []string{"sendto", "sendmsg", "pwrite64"}},
	})
}

// injection is what is done to system calls of a command, as strace has it.
type injection struct {
	command, how string
	calls        []string
}

func everyCall(t *testing.T, r *rig, all []injection) {
	netns.NeedCommand(t, "strace")
	ports := map[string]any{"portMappings": []any{map[string]any{"hostPort": 9090, "containerPort": 8080}}}
	limits := map[string]any{"bandwidth": map[string]any{"ingressRate": 1000000, "egressRate": 1000000}}
	r.pod("a")
	must := func(command string, conf map[string]any) {
		t.Helper()
		if got := run(t, r.command(env(command, "a"), conf)); got.exit != 0 {
			t.Fatalf("%s: %v", command, got.Error.Error())
		}
	}
	clean := func(what string) {
		t.Helper()
		r.empty(what)
		if out := netns.Run(t, "ip", "-n", "a", "-br", "link"); strings.Contains(out, ifname) {
			t.Errorf("%s: the pod has\n%s", what, out)
		}
	}
	must("ADD", nil) // turns forwarding on, and makes the bridge
	must("DEL", nil)
	before := state(t)
	for _, c := range all {
		for _, call := range c.calls {
			if r.conf["runtimeConfig"] = limits; call == "sendmsg" { // by which ports are made
				r.conf["runtimeConfig"] = ports
			}
			for n := 1; ; n++ {
				what := fmt.Sprintf("%s, %s %d, %s", c.command, call, n, c.how)
				if c.command == "DEL" {
					must("ADD", nil)
				}
				exit, times := r.inject(c.command, fmt.Sprintf("%s:%s:when=%d", call, c.how, n))
				// Go's runtime ends the program with 2 if a call of its own fails. Threads are counted by themselves: where two of them
				// have come so far, taking back may have failed, too.
				if c.command == "ADD" && exit == 1 && times == 1 {
					clean(what)
				}
				if n%2 == 0 {
					must("GC", map[string]any{"cni.dev/valid-attachments": []any{}})
				} else {
					must("DEL", nil)
				}
				clean(what)
				if t.Failed() {
					return
				}
				if exit == 0 && times == 0 {
					if n == 1 {
						t.Errorf("%s: there is no such call", what)
					}
					break
				}
			}
		}
	}
	// A bridge without ports is said to be down some time after the last has gone.
	carrier := strings.NewReplacer(" linkdown", "", "NO-CARRIER,", "", ",LOWER_UP", "", "DOWN", "UP  ")
	if diff := cmp.Diff(carrier.Replace(before), carrier.Replace(state(t))); diff != "" {
		t.Error(diff)
	}
}

// inject runs a command with something done to one of its system calls, as strace has it. It returns how it ended, and how many calls
// that was done to.
func (r *rig) inject(command, what string) (exit, times int) {
	r.Helper()
	exit, times, _ = r.injectOutput(command, what)
	return exit, times
}

// injectOutput is inject, and returns what the program says, too.
func (r *rig) injectOutput(command, what string) (exit, times int, said string) {
	r.Helper()
	trace := filepath.Join(r.TempDir(), "trace")
	cmd := r.command(env(command, "a"), nil)
	call, how, _ := strings.Cut(what, ":")
	path, err := exec.LookPath("strace")
	if err != nil {
		r.Fatal(err)
	}
	cmd.Args = []string{"strace", "-f", "-qq", "-o", trace, "-e", "trace=" + call, "-e", "inject=" + call + ":" + how, cmd.Path}
	cmd.Path = path
	answer, _ := cmd.Output()
	exit = cmd.ProcessState.ExitCode()
	out, err := os.ReadFile(trace)
	if err != nil {
		r.Fatal(err)
	}
	return exit, strings.Count(string(out), "INJECTED"), string(answer)
}
