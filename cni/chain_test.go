package cni

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/cni/link"
)

// own is an attachment of this plugin's, as ADD describes it.
func own(dns types.DNS) *current.Result {
	spec := link.New("c", "eth0", "", 1400, []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00:244::2")})
	spec.HostMAC, spec.PodMAC, spec.Host = net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}, "rw01"
	return result(Config{DNS: dns}, spec, "/run/netns/c")
}

const ours = `{"name":"rw01","mac":"02:00:00:00:00:01","mtu":1400},{"name":"eth0","mac":"02:00:00:00:00:02","mtu":1400,"sandbox":"/run/netns/c"}`

func TestChain(t *testing.T) {
	for _, c := range []struct {
		version, before string
		dns             types.DNS
		want            string
	}{
		{"1.1.0", `{"interfaces":[{"name":"lo","sandbox":"/run/netns/c","socketPath":"/s","pciID":"p"},{"name":"x"}],"ips":[{"interface":0,"address":"127.0.0.1/8"},
				{"address":"10.9.0.1/24","gateway":"10.9.0.254"}],"routes":[{"dst":"10.9.0.0/16","gw":"10.9.0.254","mtu":1300,"table":7,"priority":3,"scope":0}],
				"dns":{"nameservers":["10.9.0.53"],"search":["x"]}}`, types.DNS{},
			`{"cniVersion":"1.1.0","interfaces":[{"name":"lo","sandbox":"/run/netns/c","socketPath":"/s","pciID":"p"},{"name":"x"},` + ours + `],
				"ips":[{"interface":0,"address":"127.0.0.1/8"},{"address":"10.9.0.1/24","gateway":"10.9.0.254"},
				{"interface":3,"address":"10.244.0.2/32","gateway":"169.254.1.1"},{"interface":3,"address":"fd00:244::2/128","gateway":"fe80::1"}],
				"routes":[{"dst":"10.9.0.0/16","gw":"10.9.0.254","mtu":1300,"table":7,"priority":3,"scope":0},
				{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"::/0","gw":"fe80::1"}],"dns":{"nameservers":["10.9.0.53"],"search":["x"]}}`},
		{"0.4.0", `{"ips":[{"version":"6","address":"fd09::1/64"}],"dns":{"nameservers":["10.9.0.53"]}}`, types.DNS{Nameservers: []string{"10.96.0.10"}},
			`{"cniVersion":"0.4.0","interfaces":[{"name":"rw01","mac":"02:00:00:00:00:01"},{"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"/run/netns/c"}],
				"ips":[{"version":"6","address":"fd09::1/64"},{"version":"4","interface":1,"address":"10.244.0.2/32","gateway":"169.254.1.1"},
				{"version":"6","interface":1,"address":"fd00:244::2/128","gateway":"fe80::1"}],
				"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"::/0","gw":"fe80::1"}],"dns":{"nameservers":["10.96.0.10"]}}`},
	} {
		before, err := parsePrevious(c.version, []byte(c.before))
		if err != nil {
			t.Fatal(err)
		}
		if err := checkPrevious(before, "eth0"); err != nil {
			t.Error(err)
		}
		all := chain(before, own(c.dns))
		for addr, want := range map[string]bool{"10.244.0.2": true, "fd00:244::2": true, "10.244.0.3": false} {
			if got := includes(all, netip.MustParseAddr(addr)); got != want {
				t.Errorf("%s is in it: %v", addr, got)
			}
		}
		if diff := cmp.Diff(decode(t, []byte(c.want)), decode(t, printed(t, all, c.version))); diff != "" {
			t.Error(diff)
		}
	}
}

func TestCheckPrevious(t *testing.T) {
	for _, c := range []struct {
		before string
		code   uint
	}{
		{`{"interfaces":[{"name":"eth0"}]}`, 0}, // the node's
		{`{"interfaces":[{"name":"eth1","sandbox":"/n"}]}`, 0},
		{`{"interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/n"}]}`, 7},
	} {
		before, err := parsePrevious("1.1.0", []byte(c.before))
		if err != nil {
			t.Fatal(err)
		}
		if err := checkPrevious(before, "eth0"); codeOf(err) != c.code {
			t.Errorf("%s: %v", c.before, err)
		}
	}
	if err := checkPrevious(nil, "eth0"); err != nil {
		t.Error(err)
	}
}

// FuzzPrevious holds that nothing that may be in prevResult makes the plugin panic, and that what is taken can be passed on.
func FuzzPrevious(f *testing.F) {
	for i, before := range []string{
		`{"interfaces":[{"name":"lo","sandbox":"/n"}],"ips":[{"interface":9,"address":"127.0.0.1/8"},{"version":"6","address":"::1/128"}],"routes":[{"dst":"::/0"}]}`,
		`{"ips":[null],"interfaces":[null],"routes":[null]}`,
		`{"ip4":{"ip":"10.0.0.1/24","gateway":"10.0.0.254","routes":[{"dst":"0.0.0.0/0"}]},"ip6":null,"dns":{"nameservers":null}}`,
		`{"cniVersion":"0.1.0","ips":{},"routes":[{"dst":null,"gw":"x"}]}`,
	} {
		f.Add(uint8(i), []byte(before))
	}
	f.Fuzz(func(t *testing.T, i uint8, before []byte) {
		v := version.All.SupportedVersions()
		r, err := parsePrevious(v[int(i)%len(v)], before)
		if err != nil {
			if codeOf(err) != types.ErrDecodingFailure {
				t.Errorf("an error of code %d: %v", codeOf(err), err)
			}
			return
		}
		_ = checkPrevious(r, "eth0")
		n := len(r.IPs)
		all := chain(r, own(types.DNS{}))
		if len(all.IPs) != n+2 || *all.IPs[n].Interface != len(all.Interfaces)-1 || all.Interfaces[len(all.Interfaces)-1].Name != "eth0" {
			t.Errorf("%s: %v", before, all)
		}
		for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
			if out := printed(t, all, v); !json.Valid(out) {
				t.Errorf("%s: %s", before, out)
			}
		}
	})
}

func parsePrevious(v string, before []byte) (*current.Result, error) {
	c := types.PluginConf{CNIVersion: v}
	if err := json.Unmarshal(before, &c.RawPrevResult); err != nil || c.RawPrevResult == nil {
		return nil, types.NewError(types.ErrDecodingFailure, "no object", "")
	}
	c.RawPrevResult["cniVersion"] = v
	return previous(&c)
}

func printed(t *testing.T, r *current.Result, v string) []byte {
	t.Helper()
	as, err := r.GetAsVersion(v)
	var b bytes.Buffer
	if err == nil {
		err = as.PrintTo(&b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func decode(t *testing.T, b []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return v
}
