package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

const bridgeName = "cni0"

// newBridge is a rig of mode bridge.
func newBridge(t *testing.T) *rig {
	r := newRig(t)
	r.conf["mode"], r.conf["bridge"] = "bridge", bridgeName
	return r
}

// TestBridge holds that packets go everywhere in mode bridge, too, at once, and what ADD returns then.
func TestBridge(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newBridge(t)
	traffic(t, r, "10.244.0.1", "fd00:244::1")
	r.pod("c")
	res, err := r.add("c")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range res.Interfaces {
		names = append(names, i.Name)
	}
	b, err := json.Marshal([]any{names, res.IPs, res.Routes})
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`[["cni0",%q,"eth0"],[{"interface":2,"address":"10.244.0.4/24","gateway":"10.244.0.1"},{"interface":2,"address":"fd00:244::4/64","gateway":"fd00:244::1"}],`+
		`[{"dst":"0.0.0.0/0","gw":"10.244.0.1"},{"dst":"::/0","gw":"fd00:244::1"}]]`, names[1])
	if string(b) != want {
		t.Errorf("%s; want %s", b, want)
	}
	if err := r.check("c"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"a", "b", "c", "c"} {
		if err := r.del(name); err != nil {
			t.Error(err)
		}
	}
	r.empty("after DEL")
}

// TestSecondNetwork holds that a pod can be on a further network besides that of its default route, as Multus attaches it, and that an attachment that
// would need a second default route is refused, with what to do, and leaves nothing.
func TestSecondNetwork(t *testing.T) {
	if !enter(t) {
		return
	}
	first, second := newRig(t), newBridge(t)
	second.conf["ranges"] = []string{"10.9.0.0/24", "fd00:9::/64"}
	net1 := func(name string) *libcni.RuntimeConf {
		c := runtime(name)
		c.IfName = "net1"
		return c
	}
	attach := func(name string) (*current.Result, error) {
		res, err := second.cni.AddNetworkList(t.Context(), second.list("1.1.0"), net1(name))
		if err != nil {
			return nil, err
		}
		return current.NewResultFromResult(res)
	}
	own := first.mustAdd("a")
	first.mustAdd("b")
	for _, mode := range []string{"bridge", "routed"} {
		if second.conf["mode"] = mode; mode == "routed" {
			delete(second.conf, "bridge")
		}
		var e *types.Error
		if _, err := attach("a"); !errors.As(err, &e) || e.Code != types.ErrInvalidNetworkConfig || !strings.Contains(e.Error(), `"isDefaultGateway": false`) {
			t.Errorf("%s: %v", mode, err)
		}
		if l := second.leases(); len(l) != 0 {
			t.Errorf("%s: leased are %v", mode, l)
		}
	}
	second.conf["mode"], second.conf["bridge"], second.conf["isDefaultGateway"] = "bridge", bridgeName, false
	var there []string // b's addresses
	for _, name := range []string{"a", "b"} {
		res, err := attach(name)
		if err != nil || len(res.Routes) != 0 {
			t.Fatal(res, err)
		}
		there = addresses(res)
		if err := second.cni.CheckNetworkList(t.Context(), second.list("1.1.0"), net1(name)); err != nil {
			t.Error(err)
		}
	}
	serve(t, "b")
	for i, to := range there {
		if from, err := talk(t, "a", "tcp", to, 100); err != nil || !netip.MustParsePrefix(second.conf["ranges"].([]string)[i]).Contains(from) {
			t.Errorf("%s: from %s, %v", to, from, err)
		}
	}
	serve(t, "")
	if from, err := talk(t, "a", "tcp", node4, 100); err != nil || from.String() != own[0] {
		t.Errorf("by the default route: from %s, %v", from, err)
	}
	for _, name := range []string{"a", "b"} {
		if err := errors.Join(second.cni.DelNetworkList(t.Context(), second.list("1.1.0"), net1(name)), first.del(name)); err != nil {
			t.Error(err)
		}
	}
	first.empty("after DEL")
	second.empty("after DEL")
}

// TestBridgePorts holds that ports of the node lead to a pod from wherever it is asked: from its own bridge, from itself (hairpin), from the node.
func TestBridgePorts(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newBridge(t)
	r.mustAdd("far")
	r.pod("a")
	serve(t, "a")
	ports := map[string]any{"runtimeConfig": map[string]any{"portMappings": []any{
		map[string]any{"hostPort": 9090, "containerPort": 8080, "protocol": "tcp"}, map[string]any{"hostPort": 9090, "containerPort": 8080, "protocol": "udp"},
	}}}
	added := run(t, r.command(env("ADD", "a"), ports))
	if added.exit != 0 {
		t.Fatal(added.Error.Error())
	}
	_, err := os.Stat("/proc/sys/net/bridge")
	netns.Need(t, err == nil, "the kernel has no br_netfilter")
	for _, filtered := range []string{"1", "0"} { // whether the node has all bridges' packets pass its rules, or only those that ask for it
		for _, name := range []string{"iptables", "ip6tables"} {
			if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte(filtered), 0); err != nil {
				t.Fatal(err)
			}
		}
		for _, from := range []string{"", "far", "a"} {
			for _, node := range []string{node4, node6} {
				for _, network := range []string{"tcp", "udp"} {
					in(t, from, func() {
						if _, err := echo(network, net.JoinHostPort(node, "9090"), 100); err != nil {
							t.Errorf("from %q by %s to %s, filtered %s: %v", from, network, node, filtered, err)
						}
					})
				}
			}
		}
	}
	check := maps.Clone(ports)
	check["prevResult"] = json.RawMessage(added.stdout)
	if got := run(t, r.command(env("CHECK", "a"), check)); got.exit != 0 {
		t.Error(got.Error.Error())
	}
	if err := r.del("a"); err != nil {
		t.Error(err)
	}
}

// TestBridgeSpoof holds that a pod that pretends to have another hardware address is not heard, if that is asked for; neither the node nor
// another pod, whose address it may be, hears it.
func TestBridgeSpoof(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newBridge(t)
	serve(t, "")
	for _, checked := range []bool{false, true} {
		r.conf["macspoofchk"] = checked
		name := fmt.Sprintf("spoof%v", checked)
		r.pod(name)
		res, err := r.add(name)
		if err != nil {
			t.Fatal(err)
		}
		other := r.mustAdd("other" + name)[0]
		serve(t, "other"+name)
		if err := r.check(name); err != nil {
			t.Error(err)
		}
		if _, err := talk(t, name, "tcp", other, 1); err != nil {
			t.Error(err)
		}
		host := res.Interfaces[1].Name
		netns.Run(t, "ip", "-n", name, "link", "set", "eth0", "address", "02:00:00:00:00:77")
		netns.Run(t, "ip", "neigh", "flush", "dev", bridgeName)
		netns.Run(t, "ip", "-n", "other"+name, "neigh", "flush", "dev", "eth0")
		for _, to := range []string{other, "10.244.0.1"} {
			var err error
			in(t, name, func() { _, err = echoWithin(time.Second, "tcp", net.JoinHostPort(to, "8080"), 1) })
			if checked == (err == nil) {
				t.Errorf("checked %v, to %s: %v\n%s", checked, to, err, netns.Run(t, "bridge", "-d", "link", "show", "dev", host))
			}
		}
		netns.Run(t, "ip", "-n", name, "link", "set", "eth0", "address", res.Interfaces[2].Mac)
		if _, err := talk(t, name, "tcp", other, 1); err != nil {
			t.Errorf("with its own hardware address again: %v", err)
		}
		if err := errors.Join(r.del(name), r.del("other"+name)); err != nil {
			t.Error(err)
		}
	}
}

// TestBridgeCheck holds that CHECK finds each part that is missing.
func TestBridgeCheck(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newBridge(t)
	r.conf["macspoofchk"] = true
	for i, c := range []struct{ damage, says string }{
		{"ip link set cni0 down", "bridge cni0 is down"},
		{"ip addr del 10.244.0.1/24 dev cni0", "address 10.244.0.1/24 is missing"},
		{"ip addr del fd00:244::1/64 dev cni0", "address fd00:244::1/64 is missing"},
		{"ip link set HOST nomaster", "no port of cni0"},
		{"bridge link set dev HOST hairpin off", "hairpin false"},
		{"bridge link set dev HOST learning on", "learning true"},
		{"bridge link set dev HOST locked off", "locked false"},
		{"bridge fdb del MAC dev HOST master", "does not know that MAC is there"},
		{"ip link del HOST", "is missing"},
		{"ip -n POD addr del V4/24 dev eth0", "address V4/24 is missing"},
		{"ip -n POD addr del V6/64 dev eth0", "address V6/64 is missing"},
		{"ip -n POD route del default", "default route by 10.244.0.1 is missing"},
		{"ip -n POD -6 route del default", "default route by fd00:244::1 is missing"},
		{"ip link del cni0", "bridge cni0 is missing"},
	} {
		name := fmt.Sprintf("p%d", i)
		r.pod(name)
		res, err := r.add(name)
		if err != nil {
			t.Fatalf("%s: %v", c.damage, err) // what the last one damaged of the bridge, an ADD has made again
		}
		if err := r.check(name); err != nil {
			t.Error(err)
		}
		a := addresses(res)
		fill := strings.NewReplacer("HOST", res.Interfaces[1].Name, "POD", name, "V4", a[0], "V6", a[1], "MAC", res.Interfaces[2].Mac)
		cmd := strings.Fields(fill.Replace(c.damage))
		netns.Run(t, cmd[0], cmd[1:]...)
		if err := r.check(name); code(err) != 104 || !strings.Contains(err.Error(), fill.Replace(c.says)) {
			t.Errorf("%s: %v", c.damage, err)
		}
		if err := r.del(name); err != nil {
			t.Error(err)
		}
	}
	r.empty("in the end")
}

// TestBridgeMadeOnce holds that pods that come at the same time to a node without a bridge are on one, that works.
func TestBridgeMadeOnce(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newBridge(t)
	const pods = 20
	for i := range pods {
		r.pod(fmt.Sprintf("p%d", i))
	}
	for range 3 {
		var wg sync.WaitGroup
		for i := range pods {
			wg.Go(func() {
				name := fmt.Sprintf("p%d", i)
				if _, err := r.add(name); err != nil {
					t.Error(err)
				} else if err := r.check(name); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for i := range pods {
			wg.Go(func() {
				if err := r.del(fmt.Sprintf("p%d", i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		netns.Run(t, "ip", "link", "del", bridgeName)
	}
	r.empty("after all DELs")
}

// TestBridgeForeign holds that what is no bridge is left alone.
func TestBridgeForeign(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newBridge(t)
	netns.Run(t, "ip", "link", "add", bridgeName, "type", "veth", "peer", "name", "other")
	r.pod("a")
	if _, err := r.add("a"); code(err) != 103 || !strings.Contains(err.Error(), "there is a veth of that name") {
		t.Error(err)
	}
	netns.Run(t, "ip", "link", "show", bridgeName)
	r.empty("after an error")
}

func TestBridgeEveryCall(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newBridge(t)
	r.conf["macspoofchk"] = true
	everyCall(t, r, []injection{
		{"ADD", "error=EIO", []string{"sendto", "write"}},
		{"ADD", "signal=KILL", []string{"sendto"}},
	})
}

// TestWishes holds that a pod gets the hardware address that it is to have, addresses of the runtime's ranges, and of those that it asks for by
// an annotation one that nobody has, and that nobody had a moment ago.
func TestWishes(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	const mac = "02:00:00:00:00:09"
	add := func(name string, runtimeConfig map[string]any) answer {
		r.pod(name)
		return run(t, r.command(env("ADD", name), map[string]any{"runtimeConfig": runtimeConfig}))
	}
	subnet := func(s, from, to string) []any {
		return []any{map[string]any{"subnet": s, "rangeStart": from, "rangeEnd": to}}
	}
	ranges := []any{subnet("fd00:9::/64", "fd00:9::5", "fd00:9::5"), subnet("10.9.0.0/24", "10.9.0.7", "10.9.0.8")}
	got := add("a", map[string]any{"mac": mac, "ipRanges": ranges})
	if got.exit != 0 || !strings.Contains(got.stdout, "fd00:9::5/128") || !strings.Contains(got.stdout, "10.9.0.7/32") || !strings.Contains(got.stdout, mac) {
		t.Error(got.stdout, got.Error.Error())
	}
	if out := netns.Run(t, "ip", "-n", "a", "link", "show", "eth0"); !strings.Contains(out, mac) {
		t.Error(out)
	}
	serve(t, "a")
	if _, err := talk(t, "", "tcp", "10.9.0.7", 1); err != nil {
		t.Error(err)
	}
	check := map[string]any{"runtimeConfig": map[string]any{"mac": mac, "ipRanges": ranges}, "prevResult": json.RawMessage(got.stdout)}
	if got := run(t, r.command(env("CHECK", "a"), check)); got.exit != 0 {
		t.Error(got.Error.Error())
	}
	if got := add("b", map[string]any{"ipRanges": ranges}); got.Code != 100 || !strings.Contains(got.Msg, "fd00:9::5") {
		t.Errorf("a range that has no more: %v", got.Error.Error())
	}
	annotated := func(ips string) map[string]any {
		return map[string]any{"io.kubernetes.cri.pod-annotations": map[string]any{"ropewalk.dev/ips": ips, "other": "x"}}
	}
	if got := add("c", annotated("10.244.0.70")); got.exit != 0 || !strings.Contains(got.stdout, "10.244.0.70/32") {
		t.Error(got.stdout, got.Error.Error())
	}
	if got := add("d", annotated("10.244.0.70")); got.Code != 102 {
		t.Errorf("another's address: %v", got.Error.Error())
	}
	if got := add("e", annotated("10.1.1.1")); got.Code != 7 {
		t.Errorf("an address of elsewhere: %v", got.Error.Error())
	}
	if err := r.del("c"); err != nil {
		t.Fatal(err)
	}
	if got := add("f", annotated("10.244.0.70")); got.Code != 11 {
		t.Errorf("what was another pod's a moment ago: %v", got.Error.Error())
	}
	// In mode bridge two of one hardware address would be one.
	r.conf["mode"], r.conf["bridge"] = "bridge", bridgeName
	if got = add("g", map[string]any{"mac": mac}); got.exit != 0 {
		t.Error(got.Error.Error())
	}
	if got := add("h", map[string]any{"mac": mac}); got.Code != 102 || !strings.Contains(got.Error.Error(), mac) {
		t.Errorf("another's hardware address: %v", got.Error.Error())
	}
	for i, whose := range []string{bridgeName, hostOf(t, got)} { // the bridge's own, and that of the other pod's end on the node
		name := fmt.Sprintf("thief%d", i)
		if got := add(name, map[string]any{"mac": hardwareOf(t, whose)}); got.Code != 102 {
			t.Errorf("the hardware address of %s: %v", whose, got.Error.Error())
		}
	}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		if err := r.del(name); err != nil {
			t.Error(err)
		}
	}
	r.empty("after DEL")
}
