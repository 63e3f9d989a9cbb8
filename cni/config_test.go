package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
)

const plain = `{"cniVersion":"1.1.0","name":"rope","type":"ropewalk-cni","mode":"routed","mtu":1450,
	"ranges":["10.244.0.0/24","fd00:244::/64"],"dataDir":"/run/ropewalk","other":{"x":[1]}}`

func pools(subnets ...string) (out []ipam.Pool) {
	for _, s := range subnets {
		out = append(out, ipam.Pool{ipam.Whole(netip.MustParsePrefix(s))})
	}
	return out
}

func TestParseConfig(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Config
	}{
		{plain, Config{Version: "1.1.0", MTU: 1450, DataDir: "/run/ropewalk",
			Pools: pools("10.244.0.0/24", "fd00:244::/64")}},
		{`{"cniVersion":"0.3.1","name":"rope","ranges":["fd00::/112"],"dataDir":"/a/../b/","dns":{"domain":"x"},"runtimeConfig":{"ips":["fd00::9/64"],
			"portMappings":[{"hostPort":0,"containerPort":1},{"hostPort":80,"containerPort":8080,"protocol":"UDP","hostIP":"::"}]},
			"prevResult":{"cniVersion":"0.3.1","dns":{"domain":"y"}}}`,
			Config{Version: "0.3.1", MTU: 1500, DataDir: "/b", Pools: pools("fd00::/112"),
				DNS: types.DNS{Domain: "x"}, Static: []netip.Addr{netip.MustParseAddr("fd00::9")},
				Ports:    []portmap.Mapping{{HostIP: netip.IPv6Unspecified(), HostPort: 80, ContainerPort: 8080, Protocol: portmap.UDP}},
				Previous: &current.Result{CNIVersion: "1.1.0", DNS: types.DNS{Domain: "y"}}}},
		{`{"ranges":["10.0.0.0/30"],"masquerade":true,"runtimeConfig":{"portMappings":[],"bandwidth":{},"ipRanges":null,
			"io.kubernetes.cri.pod-annotations":{"ropewalk.dev/ips":"","ropewalk.dev/mac":""}}}`,
			Config{MTU: 1500, DataDir: DefaultDataDir, Masquerade: true, Pools: pools("10.0.0.0/30")}},
		{`{"runtimeConfig":{"ipRanges":[{"Subnet":"10.1.0.0/24","RangeStart":"","RangeEnd":"","Gateway":""},[{"subnet":"fd00::/112"}]]}}`,
			Config{MTU: 1500, DataDir: DefaultDataDir, Pools: pools("10.1.0.0/24", "fd00::/112")}},
		{`{"mode":"bridge","ranges":["10.0.0.0/24"]}`, Config{MTU: 1500, DataDir: DefaultDataDir, Pools: pools("10.0.0.0/24"), Bridge: &link.Bridge{Name: "rw0", Hairpin: true}}},
		{`{"mode":"bridge","ranges":["10.0.0.0/24"],"isDefaultGateway":false}`, Config{MTU: 1500, DataDir: DefaultDataDir, Pools: pools("10.0.0.0/24"), Bridge: &link.Bridge{Name: "rw0", Hairpin: true, NoDefault: true}}},
		{`{"mode":"bridge","bridge":"br7","hairpinMode":false,"macspoofchk":true,"args":{"cni":{"ips":["10.0.0.9"],"mac":"02:00:00:00:00:01"}},
			"runtimeConfig":{"ipRanges":[[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.5","gateway":"10.1.0.254"},{"subnet":"10.2.0.0/24","rangeEnd":"10.2.0.9"}],[]],
			"io.kubernetes.cri.pod-annotations":{"ropewalk.dev/ips":"10.1.0.7, fd00::7","ropewalk.dev/mac":"02:00:00:00:00:03"},"mac":"02:00:00:00:00:02"}}`,
			Config{MTU: 1500, DataDir: DefaultDataDir, Bridge: &link.Bridge{Name: "br7", SpoofCheck: true}, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2},
				Static: []netip.Addr{netip.MustParseAddr("10.0.0.9")}, Asked: []netip.Addr{netip.MustParseAddr("10.1.0.7"), netip.MustParseAddr("fd00::7")},
				Pools: []ipam.Pool{{
					{Subnet: netip.MustParsePrefix("10.1.0.0/24"), First: netip.MustParseAddr("10.1.0.5"), Gateway: netip.MustParseAddr("10.1.0.254")},
					{Subnet: netip.MustParsePrefix("10.2.0.0/24"), Last: netip.MustParseAddr("10.2.0.9")}}}}},
	} {
		got, err := ParseConfig([]byte(c.in), "")
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
		}
		if diff := cmp.Diff(c.want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
	}
}

func TestParseConfigRefuses(t *testing.T) {
	for _, c := range []struct {
		change string // of the configuration's fields
		code   uint
		says   string
	}{
		{`"mtu":"x"`, 6, "mtu"},
		{`"mtu":1279`, 7, "from 1280 to 65535"},
		{`"mtu":65536`, 7, "from 1280"},
		{`"mtu":67,"ranges":["10.0.0.0/24"]`, 7, "from 68"},
		{`"mode":"bridged"`, 7, `"bridge"`},
		{`"bridge":"br0"`, 7, `for mode "bridge"`},
		{`"macspoofchk":true`, 7, `for mode "bridge"`},
		{`"mode":"bridge","bridge":"../../x"`, 7, "no slashes"},
		{`"mode":"bridge","bridge":"a23456789012345x"`, 7, "15 characters"},
		{`"mode":"bridge","bridge":"all"`, 7, "another meaning"},
		{`"mode":"bridge","bridge":"rw0123abcd"`, 7, "another meaning"},
		{`"dataDir":"run"`, 7, "absolute"},
		{`"ranges":[]`, 7, "podCIDRs"},
		{`"ranges":["10.244.0.5/24"]`, 7, "10.244.0.0/24"},
		{`"ranges":["10.244.0.0"]`, 7, "length"},
		{`"ranges":["10.244.0.0/31"]`, 7, "/30 is the smallest"},
		{`"ranges":["fd00::/127"]`, 7, "/126 is the smallest"},
		{`"ranges":["::ffff:10.0.0.0/120"]`, 7, "10.0.0.0"},
		{`"ranges":["0.0.0.0/0"]`, 7, "no addresses"},
		{`"ranges":["::/64"]`, 7, "no addresses"},
		{`"ranges":["127.0.0.0/8"]`, 7, "no addresses"},
		{`"ranges":["224.0.0.0/8"]`, 7, "no addresses"},
		{`"ranges":["fe80::/64"]`, 7, "no addresses"},
		{`"ranges":["10.0.0.0/24","10.0.1.0/24"]`, 7, "one a family"},
		{`"ipam":{"type":"host-local"}`, 2, "ranges"},
		{`"runtimeConfig":{"portMappings":[{"hostPort":80}]}`, 7, "containerPort"},
		{`"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"icmp"}]}`, 7, "sctp"},
		{`"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"hostIP":"x"}]}`, 7, "hostIP"},
		{`"runtimeConfig":{"portMappings":[{"hostPort":65536,"containerPort":80}]}`, 6, "portMappings"},
		{`"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"hostIP":"127.0.0.1"}]}`, 2, "localhostPorts"},
		{`"localhostPorts":true,"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"hostIP":"::1"}]}`, 2, "127.0.0.1"},
		{`"localhostPorts":1`, 6, "localhostPorts"},
		{`"runtimeConfig":{"portMappings":[3]}`, 6, "portMappings"},
		{`"runtimeConfig":{"bandwidth":{"ingressRate":1}}`, 7, "bits per second"},
		{`"runtimeConfig":{"bandwidth":{"ingressRate":-1}}`, 6, "bandwidth"},
		{`"runtimeConfig":{"ipRanges":[[{}]]}`, 7, "an address and a length"},
		{`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.5"}]]}`, 7, "not in 10.0.0.0/24"},
		{`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}]]}`, 7, "after"},
		{`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/24","gateway":"x"}]]}`, 7, "address of 10.0.0.0/24"},
		{`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]]}`, 7, "one family or of the other"},
		{`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.0.1.0/24"}]]}`, 7, "one a family"},
		{`"runtimeConfig":{"ipRanges":3}`, 6, "ipRanges"},
		{`"runtimeConfig":{"mac":"01:00:00:00:00:01"}`, 7, "one interface"},
		{`"runtimeConfig":{"mac":"00:00:00:00:00:00"}`, 7, "one interface"},
		{`"runtimeConfig":{"mac":"02:00:00:00:00:00:00:01"}`, 7, "one interface"},
		{`"args":{"cni":{"mac":"x"}}`, 7, "one interface"},
		{`"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"ropewalk.dev/ips":"10.0.0.256"}}`, 7, "10.0.0.256"},
		{`"runtimeConfig":{"ips":["fe80::1%eth0"]}`, 7, "fe80::1%eth0"},
		{`"prevResult":{"ips":3}`, 6, "prevResult"},
		{`"prevResult":3`, 6, "prevResult"},
		{`"prevResult":{"cniVersion":"1.1.0","ips":[null]}`, 6, "null"},
		{`"prevResult":{"cniVersion":"1.1.0","IPS":[{"address":"10.0.0.1/24"},null]}`, 6, "null"},
	} {
		in := strings.TrimSuffix(plain, "}") + "," + c.change + "}" // the last of two fields counts
		_, err := ParseConfig([]byte(in), "")
		var e *types.Error
		if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Error(), c.says) {
			t.Errorf("%s: %v; want code %d and %q", c.change, err, c.code, c.says)
		}
	}
}

func TestArgs(t *testing.T) {
	for _, c := range []struct{ in, pod, static, mac string }{
		{"", "", "", ""},
		{"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=a.b-1;K8S_POD_INFRA_CONTAINER_ID=7", "ns/a.b-1", "", ""},
		{"K8S_POD_NAME=a", "", "", ""},
		{"K8S_POD_NAMESPACE=n;K8S_POD_NAME=" + strings.Repeat("a", 400), "", "", ""},
		{"K8S_POD_NAMESPACE=n\x1b[2J;K8S_POD_NAME=a", "", "", ""},
		{";;=;IP=10.0.0.1/24,fd00::1;MAC=02:00:00:00:00:01", "", "10.0.0.1 fd00::1", "02:00:00:00:00:01"},
		{"IP=", "error", "", ""},
		{"IP=10.0.0.256", "error", "", ""},
		{"IP=224.0.0.1", "error", "", ""},
		{"MAC=ff:ff:ff:ff:ff:ff", "error", "", ""},
	} {
		got, err := ParseConfig([]byte(plain), c.in)
		pod := podName(c.in)
		var list []string
		for _, a := range got.Static {
			list = append(list, a.String())
		}
		if err != nil {
			pod = "error"
		}
		if pod != c.pod || strings.Join(list, " ") != c.static || got.MAC.String() != c.mac {
			t.Errorf("%q: %q, %v, %v, %v", c.in, pod, list, got.MAC, err)
		}
	}
}

func TestAttachments(t *testing.T) {
	for in, want := range map[string]int{
		`{}`: -1, `{"cni.dev/attachments":[{"containerID":"a","ifname":"b"},{"containerID":"c","ifname":"b"}]}`: 2,
		`{"cni.dev/attachments":[{}],"cni.dev/valid-attachments":[]}`: 0, `[]`: -6, `{"cni.dev/valid-attachments":3}`: -6, `{"cni.dev/valid-attachments":null}`: 0, `{"cni.dev/valid-attachments":[]}`: 0,
		`{"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]}`: 1,
	} {
		got, err := attachments([]byte(in))
		n := len(got)
		if got == nil {
			n = -1
		}
		var e *types.Error
		if errors.As(err, &e) {
			n = -int(e.Code)
		}
		if n != want {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
}

// FuzzConfig holds that nothing that is read makes the plugin panic, that what is taken is sound, and that errors have a code.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(plain), "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=a;IP=10.244.0.9")
	f.Add([]byte(`{"cniVersion":"1.0.0","ranges":["10.0.0.0/30"],"prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/24"}]}}`), "IP=::1")
	f.Add([]byte(`{"ranges":["fd00::/64"],"runtimeConfig":{"ips":["fd00::2"],"portMappings":[{}]},"cni.dev/valid-attachments":[{"containerID":"a"}]}`), ";")
	f.Fuzz(func(t *testing.T, conf []byte, args string) {
		coded := func(err error) {
			var e *types.Error
			if err != nil && (!errors.As(err, &e) || e.Code == 0 || e.Msg == "") {
				t.Errorf("an error without a code: %v", err)
			}
		}
		_, err := attachments(conf)
		coded(err)
		dir, err := dataDir(conf)
		coded(err)
		if err == nil && !filepath.IsAbs(dir) {
			t.Errorf("leases in %q", dir)
		}
		if pod := podName(args); strings.ContainsFunc(pod, notInPodNames) {
			t.Errorf("a pod %q", pod)
		}
		c, err := ParseConfig(conf, args)
		coded(err)
		if err != nil {
			return
		}
		families := map[bool]bool{}
		for _, p := range c.Pools {
			for _, r := range p {
				if err := r.Validate(); err != nil || r.Subnet.Addr().Is4() != p[0].Subnet.Addr().Is4() {
					t.Errorf("ranges %v: %v", c.Pools, err)
				}
			}
			if is4 := p[0].Subnet.Addr().Is4(); families[is4] {
				t.Errorf("ranges %v", c.Pools)
			} else {
				families[is4] = true
			}
		}
		if len(c.Pools) == 0 || c.MTU < minMTU4 || c.MTU > maxMTU || c.DataDir != dir {
			t.Errorf("%+v", c)
		}
		if !json.Valid(conf) || bytes.TrimSpace(conf)[0] != '{' {
			t.Errorf("%q is taken", conf)
		}
	})
}
