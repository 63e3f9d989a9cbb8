package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	plugin "github.com/ropewalk-net/ropewalk/cni"
	"github.com/ropewalk-net/ropewalk/cni/link"
	"github.com/ropewalk-net/ropewalk/cni/mend"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestMend holds that pods get back what somebody has taken from their node's ends, in both modes, and that nothing is done to pods that
// are right, that are being attached, or that are gone.
func TestMend(t *testing.T) {
	if !enter(t) {
		return
	}
	for _, c := range []struct {
		rig     func(*testing.T) *rig
		mac     string
		damages []string
	}{
		{newRig, "", []string{"ip route del V4", "ip -6 route del V6", "ip neigh del V4 dev HOST", "ip -6 neigh del V6 dev HOST", "ip link set HOST down",
			"ip neigh replace V4 lladdr 02:00:00:00:00:99 dev HOST nud permanent", "ip route flush root 10.244.0.0/16"}},
		{newRig, "02:00:00:00:00:08", []string{"ip neigh del V4 dev HOST"}},
		{newBridge, "", []string{"ip link set HOST nomaster", "ip link del cni0", "ip link set cni0 down", "ip link set HOST down", "ip addr flush dev cni0", "ip addr del fd00:244::1/64 dev cni0"}},
	} {
		r := c.rig(t)
		r.conf["cniVersion"], r.conf["name"] = "1.1.0", "rope"
		conf, err := json.Marshal(r.conf)
		if err != nil {
			t.Fatal(err)
		}
		if c.mac != "" {
			r.conf["args"] = map[string]any{"cni": map[string]any{"mac": c.mac}}
		}
		name := fmt.Sprint(r.conf["mode"], c.mac[:len(c.mac)/9])
		r.pod(name)
		res, err := r.add(name)
		if err != nil {
			t.Fatal(err)
		}
		serve(t, name)
		a := addresses(res)
		host := res.Interfaces[len(res.Interfaces)-2].Name
		fill := strings.NewReplacer("HOST", host, "V4", a[0], "V6", a[1])
		if n, err := plugin.Mend(conf, 0); n != 0 || err != nil {
			t.Errorf("%s: %d things were made again of what is right: %v", name, n, err)
		}
		gateway := hardwareOf(t, res.Interfaces[0].Name)
		for _, damage := range c.damages {
			cmd := strings.Fields(fill.Replace(damage))
			netns.Run(t, cmd[0], cmd[1:]...)
			if n, err := plugin.Mend(conf, time.Hour); n != 0 || err != nil {
				t.Errorf("%s, %s: %d things were made again of a pod that is young: %v", name, damage, n, err)
			}
			if n, err := plugin.Mend(conf, 0); n == 0 || err != nil {
				t.Errorf("%s, %s: %d things were made again: %v", name, damage, n, err)
			}
			if err := r.check(name); err != nil {
				t.Errorf("%s, %s: %v", name, damage, err)
			}
			for _, to := range a {
				if _, err := talk(t, "", "tcp", to, 100); err != nil {
					t.Errorf("%s, %s: %v", name, damage, err)
				}
			}
			if n, err := plugin.Mend(conf, 0); n != 0 || err != nil {
				t.Errorf("%s, %s: %d things were made once more: %v", name, damage, n, err)
			}
			if now := hardwareOf(t, res.Interfaces[0].Name); now != gateway {
				t.Errorf("%s, %s: what the pod knows to be at %s is at %s", name, damage, gateway, now)
			}
		}
		// The mode was changed under a pod of before.
		r.conf["mode"] = map[any]string{"routed": "bridge", "bridge": "routed"}[r.conf["mode"]]
		delete(r.conf, "bridge")
		if conf, err = json.Marshal(r.conf); err != nil {
			t.Fatal(err)
		}
		if n, err := plugin.Mend(conf, 0); n != 0 || err != nil {
			t.Errorf("%s: %d things were made of a pod of the other mode: %v", name, n, err)
		}
		if err := r.check(name); r.conf["mode"] == "bridge" && err != nil || r.conf["mode"] == "routed" && (code(err) != 104 || !strings.Contains(err.Error(), "it is on bridge cni0")) {
			t.Errorf("%s: after a change of the mode: %v", name, err)
		}
		netns.Run(t, "ip", "link", "del", host)
		if n, err := plugin.Mend(conf, 0); n != 0 || err != nil {
			t.Errorf("%s: %d things were made for a pod that is gone: %v", name, n, err)
		}
		if err := r.del(name); err != nil {
			t.Error(err)
		}
	}
}

// TestMendFormer holds that a bridge keeps the gateways of ranges that the node had before for as long as a pod has an address of them, and no
// address of others' is taken off it.
func TestMendFormer(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newBridge(t)
	r.conf["cniVersion"], r.conf["name"] = "1.1.0", "rope"
	mended := func(want ...string) {
		t.Helper()
		conf, err := json.Marshal(r.conf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := plugin.Mend(conf, 0); err != nil {
			t.Error(err)
		}
		l, err := netlink.LinkByName(bridgeName)
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range addrs {
			if !a.IP.IsLinkLocalUnicast() {
				got = append(got, a.IPNet.String())
			}
		}
		if strings.Join(sorted(got), " ") != strings.Join(sorted(want), " ") {
			t.Errorf("the bridge has %v, not %v", got, want)
		}
	}
	r.mustAdd("before")
	netns.Run(t, "ip", "addr", "add", "10.7.7.1/24", "dev", bridgeName) // an operator's
	r.conf["ranges"] = []string{"10.245.0.0/24", "fd00:245::/64"}
	r.mustAdd("after")
	now := []string{"10.245.0.1/24", "fd00:245::1/64", "10.7.7.1/24"}
	mended(append([]string{"10.244.0.1/24", "fd00:244::1/64"}, now...)...)
	if err := r.del("before"); err != nil {
		t.Fatal(err)
	}
	mended(now...)
	if err := r.del("after"); err != nil {
		t.Fatal(err)
	}
	mended(now...)
	// An IPv6 address can be there once only, whatever its length.
	r.conf["ranges"] = []string{"10.245.0.0/24", "fd00:245::/80"}
	mended("10.245.0.1/24", "10.7.7.1/24")
	r.mustAdd("longer")
	now = []string{"10.245.0.1/24", "fd00:245::1/80", "10.7.7.1/24"}
	mended(now...)
	if err := r.del("longer"); err != nil {
		t.Fatal(err)
	}
	// Who has another hardware address was not made here.
	r.conf["ranges"] = []string{range4, range6}
	netns.Run(t, "ip", "link", "set", bridgeName, "address", "02:00:00:00:00:05")
	mended(now...)
	r.empty("after DEL")
}

// hardwareOf returns a link's hardware address.
func hardwareOf(t *testing.T, name string) string {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().HardwareAddr.String()
}

// TestMender holds that pods get back what was taken from them when the kernel tells of it, and not by somebody's looking again and again.
func TestMender(t *testing.T) {
	if !enter(t) {
		return
	}
	for _, c := range []struct {
		rig     func(*testing.T) *rig
		damages []string
	}{
		{newRig, []string{"ip route del V4", "ip -6 route del V6", "ip neigh del V4 dev HOST", "ip link set HOST down"}},
		{newBridge, []string{"ip link set HOST nomaster", "ip link del cni0", "ip link set cni0 down", "ip addr flush dev cni0"}},
	} {
		r := c.rig(t)
		name := r.conf["mode"].(string)
		r.mustAdd(name)
		r.conf["cniVersion"], r.conf["name"] = "1.1.0", "rope"
		conf, err := json.Marshal(r.conf)
		if err != nil {
			t.Fatal(err)
		}
		m, err := mend.New(mend.Config{Plugin: func() []byte { return conf }, Grace: time.Nanosecond, Settle: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- m.Run(ctx) }()
		l := r.leases()[0]
		host := link.New(name, ifname, "", 0, nil).Host
		fill := strings.NewReplacer("HOST", host, "V4", l.Addrs[0].String(), "V6", l.Addrs[1].String())
		for _, damage := range c.damages {
			cmd := strings.Fields(fill.Replace(damage))
			netns.Run(t, cmd[0], cmd[1:]...)
			for begun := time.Now(); ; time.Sleep(time.Millisecond) {
				err := r.check(name)
				if err == nil {
					break
				}
				if time.Since(begun) > 20*time.Second {
					t.Fatalf("%s: %v", damage, err)
				}
			}
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := r.del(name); err != nil {
			t.Error(err)
		}
	}
}

// TestMendPorts holds that ports lead to pods again after somebody has flushed the node's rules, or some of ours, and that a DEL leaves none.
func TestMendPorts(t *testing.T) {
	if !enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	for i, newRig := range []func(*testing.T) *rig{newRig, newBridge} {
		r := newRig(t)
		r.conf["cniVersion"], r.conf["name"] = "1.1.0", "rope"
		conf, err := json.Marshal(r.conf)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for j := range 2 {
			name := fmt.Sprintf("p%d-%d", i, j)
			names = append(names, name)
			r.pod(name)
			serve(t, name)
			ports := map[string]any{"portMappings": []any{map[string]any{"hostPort": 9090 + j, "containerPort": 8080}}}
			must(t, run(t, r.command(env("ADD", name), map[string]any{"runtimeConfig": ports})))
		}
		reached := func(what string) {
			t.Helper()
			for _, node := range []string{node4, node6} {
				for j := range names {
					if _, err := echo("tcp", net.JoinHostPort(node, fmt.Sprint(9090+j)), 10); err != nil {
						t.Errorf("%s: %v", what, err)
					}
				}
			}
		}
		reached("at first")
		if n, err := plugin.Mend(conf, 0); n != 0 || err != nil {
			t.Errorf("%d things were made again of what is right: %v", n, err)
		}
		for _, damage := range []string{"flush ruleset", "delete table ip ropewalk-hostports", "flush table ip6 ropewalk-hostports"} {
			netns.Run(t, "nft", damage)
			if n, err := plugin.Mend(conf, 0); n == 0 || err != nil {
				t.Errorf("%s: %d things were made again: %v", damage, n, err)
			}
			reached(damage)
		}
		for _, name := range names {
			if err := r.del(name); err != nil {
				t.Error(err)
			}
		}
		if l, err := portmap.List(); err != nil || len(l) > 0 {
			t.Errorf("left are %v, %v", l, err)
		}
	}
}
