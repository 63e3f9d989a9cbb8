package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
)

const (
	// DefaultDataDir is forgotten with a boot, as the pods are.
	DefaultDataDir = "/run/ropewalk"

	routed     = "routed"
	defaultMTU = 1500
)

// The kernel's bounds of a veth's MTU; the lower ones are of the protocols (RFC 791, RFC 8200).
const (
	minMTU4 = 68
	minMTU6 = 1280
	maxMTU  = 65535
)

// Config is what ADD, CHECK and STATUS need of an entry of a network configuration list, checked.
type Config struct {
	Version string
	MTU     int
	// Ranges are the node's pod ranges, the family that the node has first first.
	Ranges  []netip.Prefix
	DataDir string
	DNS     types.DNS
	// Static are the addresses that the runtime wants, by runtimeConfig.ips. None is the ordinary case.
	Static []netip.Addr
	// Ports are the node's that lead to the pod.
	Ports []portmap.Mapping
	// Previous is prevResult: what the plugins before this one have made, or at CHECK all of them. Nil if there is none.
	Previous *current.Result
}

// entry is a configuration as it is written. Fields that are not here are somebody else's.
type entry struct {
	types.PluginConf
	Mode          string   `json:"mode"`
	MTU           int      `json:"mtu"`
	Ranges        []string `json:"ranges"`
	RuntimeConfig struct {
		IPs          []string          `json:"ips"`
		PortMappings []json.RawMessage `json:"portMappings"`
		Bandwidth    json.RawMessage   `json:"bandwidth"`
		IPRanges     json.RawMessage   `json:"ipRanges"`
		MAC          string            `json:"mac"`
	} `json:"runtimeConfig"`
}

// ParseConfig reads what the runtime gives on standard input. Errors are of type *types.Error: what cannot be decoded, is not
// supported, or is wrong, and what would be right.
func ParseConfig(stdin []byte) (Config, error) {
	var e entry
	if err := json.Unmarshal(stdin, &e); err != nil {
		return Config{}, types.NewError(types.ErrDecodingFailure, "the configuration cannot be read", err.Error())
	}
	if err := e.supported(); err != nil {
		return Config{}, err
	}
	dir, err := dataDir(stdin)
	if err != nil {
		return Config{}, err
	}
	ranges, err := parseRanges(e.Ranges)
	if err != nil {
		return Config{}, err
	}
	mtu, err := parseMTU(e.MTU, ranges)
	if err != nil {
		return Config{}, err
	}
	static, err := parseStatic(e.RuntimeConfig.IPs)
	if err != nil {
		return Config{}, err
	}
	ports, err := parsePorts(e.RuntimeConfig.PortMappings)
	if err != nil {
		return Config{}, err
	}
	c := Config{Version: e.CNIVersion, MTU: mtu, Ranges: ranges, DataDir: dir, DNS: e.DNS, Static: static, Ports: ports}
	c.Previous, err = previous(&e.PluginConf)
	return c, err
}

// supported refuses what would silently not be done.
func (e *entry) supported() error {
	rc := e.RuntimeConfig
	switch {
	case e.Mode != "" && e.Mode != routed:
		return wrong("mode", e.Mode, "there is %q", routed)
	case e.IPAM.Type != "":
		return unsupported("ipam", "addresses come from ranges")
	case isSet(rc.Bandwidth):
		return unsupported("runtimeConfig.bandwidth", "chain the bandwidth plugin behind this one")
	case isSet(rc.IPRanges):
		return unsupported("runtimeConfig.ipRanges", "addresses come from ranges")
	case rc.MAC != "":
		return unsupported("runtimeConfig.mac", "the MAC is a hash of the container's id and the interface's name")
	}
	return nil
}

func isSet(m json.RawMessage) bool {
	switch string(m) {
	case "", "null", "{}", "[]":
		return false
	}
	return true
}

// dataDir returns where the leases are. It looks at nothing else: DEL and GC free an address whatever the rest has become.
func dataDir(stdin []byte) (string, error) {
	var e struct {
		DataDir string `json:"dataDir"`
	}
	if err := json.Unmarshal(stdin, &e); err != nil {
		return "", types.NewError(types.ErrDecodingFailure, "the configuration cannot be read", err.Error())
	}
	switch dir := e.DataDir; {
	case dir == "":
		return DefaultDataDir, nil
	case !filepath.IsAbs(dir) || strings.ContainsRune(dir, 0):
		return "", wrong("dataDir", dir, "it is an absolute path, as in %s", DefaultDataDir)
	default:
		return filepath.Clean(dir), nil
	}
}

func parseRanges(all []string) ([]netip.Prefix, error) {
	if len(all) == 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "ranges is missing",
			`it has the node's podCIDRs, as in ["10.244.0.0/24", "fd00:244::/64"]`)
	}
	var out []netip.Prefix
	for _, s := range all {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			return nil, wrong("ranges", s, "a range is an address and a length, as in 10.244.0.0/24")
		case p != p.Masked():
			return nil, wrong("ranges", s, "there are bits beyond its length: %s", p.Masked())
		case p.Addr().Is4In6():
			return nil, wrong("ranges", s, "it is an IPv4 range in IPv6: %s", p.Addr().Unmap())
		case !assignable(p.Addr()):
			return nil, wrong("ranges", s, "these are no addresses for pods")
		case p.Addr().BitLen()-p.Bits() < 2:
			return nil, wrong("ranges", s, "the first and last address are not used, so there is none: /%d is the smallest", p.Addr().BitLen()-2)
		}
		for _, other := range out {
			if other.Addr().Is4() == p.Addr().Is4() {
				return nil, wrong("ranges", s, "%s is of the same family: there is one a family", other)
			}
		}
		out = append(out, p)
	}
	return out, nil
}

func assignable(a netip.Addr) bool {
	return !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && !a.IsUnspecified()
}

func parseMTU(mtu int, ranges []netip.Prefix) (int, error) {
	if mtu == 0 {
		return defaultMTU, nil
	}
	low := minMTU4
	if slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Addr().Is6() }) {
		low = minMTU6
	}
	if mtu < low || mtu > maxMTU {
		return 0, wrong("mtu", fmt.Sprint(mtu), "it is from %d to %d, or 0 for %d", low, maxMTU, defaultMTU)
	}
	return mtu, nil
}

// parseStatic reads addresses with or without a length, which does not matter: a pod has the address alone.
func parseStatic(all []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range all {
		plain, _, _ := strings.Cut(s, "/")
		a, err := netip.ParseAddr(plain)
		if err != nil || a.Zone() != "" || a.Is4In6() || !assignable(a) {
			return nil, wrong("the wanted address", s, "it is of one of the ranges, as in 10.244.0.9")
		}
		out = append(out, a)
	}
	return out, nil
}

// checkStatic refuses wanted addresses that no pod can have.
func checkStatic(static []netip.Addr, ranges []netip.Prefix) error {
	taken := map[netip.Prefix]bool{}
	for _, a := range static {
		i := slices.IndexFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) })
		if i < 0 {
			return wrong("the wanted address", a.String(), "it is of one of %v", ranges)
		}
		switch r := ranges[i]; {
		case a == r.Addr() || a == ipam.Gateway(r) || a.Is4() && !r.Contains(a.Next()):
			return wrong("the wanted address", a.String(), "the first two addresses and an IPv4 range's last are no pod's")
		case taken[r]:
			return wrong("the wanted address", a.String(), "there is another of %s: a pod has one a range", r)
		default:
			taken[r] = true
		}
	}
	return nil
}

// maxPodName is that of a namespace (RFC 1123 label), a slash and a pod (RFC 1123 subdomain).
const maxPodName = 63 + 1 + 253

// wanted returns what CNI_ARGS says: the pod as namespace/name, and addresses, by IP. What is not known is not ours.
func wanted(args string) (pod string, static []netip.Addr, err error) {
	var namespace, name string
	for _, pair := range strings.Split(args, ";") {
		switch key, value, _ := strings.Cut(pair, "="); key {
		case "K8S_POD_NAMESPACE":
			namespace = value
		case "K8S_POD_NAME":
			name = value
		case "IP":
			if static, err = parseStatic(strings.Split(value, ",")); err != nil {
				return "", nil, err
			}
		}
	}
	// It is shown to people, and says nothing to machines: what Kubernetes would not name a pod is dropped.
	if pod = namespace + "/" + name; namespace == "" || name == "" || len(pod) > maxPodName || strings.ContainsFunc(pod, notInPodNames) {
		pod = ""
	}
	return pod, static, nil
}

func notInPodNames(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '/')
}

// attachments returns what is valid at a GC, nil if there is no list, which is not the same as an empty one. An early libcni had its name wrong.
func attachments(stdin []byte) (map[types.GCAttachment]bool, error) {
	var e struct {
		Valid json.RawMessage `json:"cni.dev/valid-attachments"`
		Early json.RawMessage `json:"cni.dev/attachments"`
	}
	var list []types.GCAttachment
	err := json.Unmarshal(stdin, &e)
	if len(e.Valid) == 0 {
		e.Valid = e.Early
	}
	if err == nil && len(e.Valid) == 0 {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(e.Valid, &list)
	}
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "cni.dev/valid-attachments cannot be read", err.Error())
	}
	valid := map[types.GCAttachment]bool{}
	for _, a := range list {
		valid[a] = true
	}
	return valid, nil
}

func wrong(field, value, right string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%s %q", field, value), fmt.Sprintf(right, args...))
}

func unsupported(field, instead string) error {
	return types.NewError(types.ErrUnsupportedField, field+" is not supported", instead)
}
