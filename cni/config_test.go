package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
)

const plain = `{"cniVersion":"1.1.0","name":"rope","type":"ropewalk-cni","mode":"routed","mtu":1450,
	"ranges":["10.244.0.0/24","fd00:244::/64"],"dataDir":"/run/ropewalk","other":{"x":[1]}}`

func TestParseConfig(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Config
	}{
		{plain, Config{Version: "1.1.0", MTU: 1450, DataDir: "/run/ropewalk",
			Ranges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:244::/64")}}},
		{`{"cniVersion":"0.3.1","name":"rope","ranges":["fd00::/112"],"dataDir":"/a/../b/","dns":{"domain":"x"},"runtimeConfig":{"ips":["fd00::9/64"],
			"portMappings":[{"hostPort":0,"containerPort":1},{"hostPort":80,"containerPort":8080,"protocol":"UDP","hostIP":"::"}]},
			"prevResult":{"cniVersion":"0.3.1","dns":{"domain":"y"}}}`,
			Config{Version: "0.3.1", MTU: 1500, DataDir: "/b", Ranges: []netip.Prefix{netip.MustParsePrefix("fd00::/112")},
				DNS: types.DNS{Domain: "x"}, Static: []netip.Addr{netip.MustParseAddr("fd00::9")},
				Ports:    []portmap.Mapping{{HostIP: netip.IPv6Unspecified(), HostPort: 80, ContainerPort: 8080, Protocol: portmap.UDP}},
				Previous: &current.Result{CNIVersion: "1.1.0", DNS: types.DNS{Domain: "y"}}}},
		{`{"ranges":["10.0.0.0/30"],"runtimeConfig":{"portMappings":[],"bandwidth":{},"ipRanges":null}}`,
			Config{MTU: 1500, DataDir: DefaultDataDir, Ranges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/30")}}},
	} {
		got, err := ParseConfig([]byte(c.in))
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
		{`"mode":"bridge"`, 7, `there is "routed"`},
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
		{`"runtimeConfig":{"portMappings":[3]}`, 6, "portMappings"},
		{`"runtimeConfig":{"bandwidth":{"ingressRate":1}}`, 2, "bandwidth"},
		{`"runtimeConfig":{"ipRanges":[[{}]]}`, 2, "ranges"},
		{`"runtimeConfig":{"mac":"02:00:00:00:00:01"}`, 2, "hash"},
		{`"runtimeConfig":{"ips":["fe80::1%eth0"]}`, 7, "fe80::1%eth0"},
		{`"prevResult":{"ips":3}`, 6, "prevResult"},
		{`"prevResult":3`, 6, "prevResult"},
		{`"prevResult":{"cniVersion":"1.1.0","ips":[null]}`, 6, "null"},
		{`"prevResult":{"cniVersion":"1.1.0","IPS":[{"address":"10.0.0.1/24"},null]}`, 6, "null"},
	} {
		in := strings.TrimSuffix(plain, "}") + "," + c.change + "}" // the last of two fields counts
		_, err := ParseConfig([]byte(in))
		var e *types.Error
		if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Error(), c.says) {
			t.Errorf("%s: %v; want code %d and %q", c.change, err, c.code, c.says)
		}
	}
}

func TestWanted(t *testing.T) {
	for _, c := range []struct{ in, pod, static string }{
		{"", "", ""},
		{"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=a.b-1;K8S_POD_INFRA_CONTAINER_ID=7", "ns/a.b-1", ""},
		{"K8S_POD_NAME=a", "", ""},
		{"K8S_POD_NAMESPACE=n;K8S_POD_NAME=" + strings.Repeat("a", 400), "", ""},
		{"K8S_POD_NAMESPACE=n\x1b[2J;K8S_POD_NAME=a", "", ""},
		{";;=;IP=10.0.0.1/24,fd00::1", "", "10.0.0.1 fd00::1"},
		{"IP=", "error", ""},
		{"IP=10.0.0.256", "error", ""},
		{"IP=224.0.0.1", "error", ""},
	} {
		pod, static, err := wanted(c.in)
		var list []string
		for _, a := range static {
			list = append(list, a.String())
		}
		if err != nil {
			pod = "error"
		}
		if pod != c.pod || strings.Join(list, " ") != c.static {
			t.Errorf("%q: %q, %v, %v", c.in, pod, list, err)
		}
	}
}

// TestCheckStatic holds that what is taken here is what the leases take.
func TestCheckStatic(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/29"), netip.MustParsePrefix("fd00::/125")}
	var wanted [][]netip.Addr
	for _, r := range ranges {
		for a := r.Addr().Prev(); a.Less(r.Addr()) || r.Contains(a.Prev()); a = a.Next() {
			wanted = append(wanted, []netip.Addr{a})
		}
	}
	both := netip.MustParseAddr("fd00::3")
	wanted = append(wanted, nil, []netip.Addr{both, both.Next()}, []netip.Addr{both, netip.MustParseAddr("10.0.0.3")})
	for i, static := range wanted {
		s, err := ipam.Open(filepath.Join(t.TempDir(), "leases"))
		if err != nil {
			t.Fatal(err)
		}
		_, want := s.Allocate(ipam.Owner{Container: "c", Interface: "eth0"}, ranges, static)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if got := checkStatic(static, ranges); (got == nil) != (want == nil) {
			t.Errorf("%d: %v: %v, the leases: %v", i, static, got, want)
		}
	}
}

func TestFull(t *testing.T) {
	leases := func(addrs ...string) (out []ipam.Lease) {
		for _, a := range addrs {
			out = append(out, ipam.Lease{Addrs: []netip.Addr{netip.MustParseAddr(a)}})
		}
		return out
	}
	for _, c := range []struct {
		r    string
		in   []ipam.Lease
		want bool
	}{
		{"10.0.0.0/30", nil, false},
		{"10.0.0.0/30", leases("10.0.1.2"), false},
		{"10.0.0.0/30", leases("10.0.0.2"), true},
		{"fd00::/126", leases("fd00::2"), false},
		{"fd00::/126", leases("fd00::2", "fd00::3"), true},
		{"fd00::/64", leases("fd00::2"), false},
	} {
		if got := full(netip.MustParsePrefix(c.r), c.in); got != c.want {
			t.Errorf("%s with %v: %v", c.r, c.in, got)
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
		pod, _, err := wanted(args)
		coded(err)
		if strings.ContainsFunc(pod, notInPodNames) {
			t.Errorf("a pod %q", pod)
		}
		c, err := ParseConfig(conf)
		coded(err)
		if err != nil {
			return
		}
		families := map[bool]bool{}
		for _, r := range c.Ranges {
			if r != r.Masked() || r.Addr().BitLen()-r.Bits() < 2 || families[r.Addr().Is4()] {
				t.Errorf("ranges %v", c.Ranges)
			}
			families[r.Addr().Is4()] = true
		}
		if len(c.Ranges) == 0 || c.MTU < minMTU4 || c.MTU > maxMTU || c.DataDir != dir {
			t.Errorf("%+v", c)
		}
		if !json.Valid(conf) || bytes.TrimSpace(conf)[0] != '{' {
			t.Errorf("%q is taken", conf)
		}
	})
}
