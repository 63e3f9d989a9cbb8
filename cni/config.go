package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ropewalk-net/ropewalk/cni/bandwidth"
	"github.com/ropewalk-net/ropewalk/cni/ipam"
	"github.com/ropewalk-net/ropewalk/cni/link"
	"github.com/ropewalk-net/ropewalk/cni/portmap"
)

const (
	// DefaultDataDir is forgotten with a boot, as the pods are.
	DefaultDataDir = "/run/ropewalk"

	routed        = "routed"
	bridged       = "bridge"
	defaultBridge = "rw0"
	defaultMTU    = 1500
)

// The annotations of a pod that say what it wants to have, if the runtime passes them on (capability io.kubernetes.cri.pod-annotations).
const (
	addressesAnnotation = "ropewalk.dev/ips" // one a family, separated by commas
	macAnnotation       = "ropewalk.dev/mac"
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
	// Pools are what a pod has an address each of, the family that the node has first first.
	Pools   []ipam.Pool
	DataDir string
	DNS     types.DNS
	// Bridge is what pods are on in mode bridge; nil in mode routed. Its Gateways are each pod's matter.
	Bridge *link.Bridge
	// Static are the addresses that the runtime wants. None is the ordinary case.
	Static []netip.Addr
	// Asked are those that the pod itself asks for, by an annotation.
	Asked []netip.Addr
	// MAC is the hardware address that the pod is to have; nil for one that follows from its name.
	MAC net.HardwareAddr
	// Ports are the node's that lead to the pod.
	Ports []portmap.Mapping
	// Bandwidth are the pod's limits.
	Bandwidth bandwidth.Limits
	// LocalhostPorts has ports of all of the node's addresses be those of 127.0.0.1, too, and lets pods ask for some of 127.0.0.0/8 alone.
	LocalhostPorts bool
	// TakesPorts says that the runtime passes ports on (capability portMappings).
	TakesPorts bool
	// Masquerade says that there are to be rules by which packets that leave the cluster get the node's address: CHECK looks for them.
	Masquerade bool
	// Previous is prevResult: what the plugins before this one have made, or at CHECK all of them. Nil if there is none.
	Previous *current.Result
}

// entry is a configuration as it is written. Fields that are not here are somebody else's.
type entry struct {
	types.PluginConf
	Mode           string   `json:"mode"`
	Bridge         string   `json:"bridge"`
	HairpinMode    *bool    `json:"hairpinMode"`
	MACSpoofCheck  bool     `json:"macspoofchk"`
	DefaultGateway *bool    `json:"isDefaultGateway"`
	MTU            int      `json:"mtu"`
	Ranges         []string `json:"ranges"`
	LocalhostPorts bool     `json:"localhostPorts"`
	Masquerade     bool     `json:"masquerade"`
	Args           struct {
		CNI struct {
			IPs []string `json:"ips"`
			MAC string   `json:"mac"`
		} `json:"cni"`
	} `json:"args"`
	RuntimeConfig struct {
		IPs          []string          `json:"ips"`
		PortMappings []json.RawMessage `json:"portMappings"`
		Bandwidth    json.RawMessage   `json:"bandwidth"`
		IPRanges     []ipRanges        `json:"ipRanges"`
		MAC          string            `json:"mac"`
		Annotations  map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"runtimeConfig"`
}

// ipRange is one as the runtime has it (CONVENTIONS.md of containernetworking/cni, ipRanges).
type ipRange struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

// ipRanges are those that a pod has one address of. One may stand for itself, as containerd's go-cni writes it.
type ipRanges []ipRange

func (r *ipRanges) UnmarshalJSON(b []byte) error {
	if bytes.HasPrefix(b, []byte("{")) {
		*r = make(ipRanges, 1)
		return json.Unmarshal(b, &(*r)[0])
	}
	return json.Unmarshal(b, (*[]ipRange)(r))
}

// ParseConfig reads what the runtime gives on standard input and in CNI_ARGS. Errors are of type *types.Error: what cannot be decoded, is not
// supported, or is wrong, and what would be right.
func ParseConfig(stdin []byte, args string) (Config, error) {
	var e entry
	if err := json.Unmarshal(stdin, &e); err != nil {
		return Config{}, types.NewError(types.ErrDecodingFailure, "the configuration cannot be read", err.Error())
	}
	dir, err := dataDir(stdin)
	if err != nil {
		return Config{}, err
	}
	c := Config{Version: e.CNIVersion, DataDir: dir, DNS: e.DNS, Masquerade: e.Masquerade,
		TakesPorts: e.Capabilities["portMappings"], LocalhostPorts: e.LocalhostPorts}
	for _, read := range []func() error{
		e.supported,
		func() (err error) { c.Bridge, err = e.bridge(); return err },
		func() (err error) { c.Pools, err = e.pools(); return err },
		func() (err error) { c.MTU, err = parseMTU(e.MTU, c.Pools); return err },
		func() error { return e.wishes(&c, parseArgs(args)) },
		func() (err error) {
			c.Ports, err = parsePorts(e.RuntimeConfig.PortMappings, e.LocalhostPorts)
			return err
		},
		func() (err error) { c.Bandwidth, err = parseLimits(e.RuntimeConfig.Bandwidth); return err },
		func() (err error) { c.Previous, err = previous(&e.PluginConf); return err },
	} {
		if err := read(); err != nil {
			return Config{}, err
		}
	}
	return c, nil
}

// supported refuses what would silently not be done.
func (e *entry) supported() error {
	if e.IPAM.Type != "" {
		return unsupported("ipam", "addresses come from ranges")
	}
	return nil
}

// bridge returns what mode bridge makes pods ports of.
func (e *entry) bridge() (*link.Bridge, error) {
	switch e.Mode {
	case bridged:
	case "", routed:
		if e.Bridge != "" {
			return nil, wrong("bridge", e.Bridge, "that is for mode %q: this is mode %q", bridged, routed)
		}
		if e.MACSpoofCheck {
			return nil, wrong("macspoofchk", "true", "that is for mode %q: in mode %q no pod is heard by others on its link", bridged, routed)
		}
		if e.DefaultGateway != nil && !*e.DefaultGateway {
			return nil, wrong("isDefaultGateway", "false", "that is for mode %q: in mode %q a pod has no other route", bridged, routed)
		}
		return nil, nil
	default:
		return nil, wrong("mode", e.Mode, "there are %q and %q", routed, bridged)
	}
	b := &link.Bridge{Name: e.Bridge, Hairpin: e.HairpinMode == nil || *e.HairpinMode, SpoofCheck: e.MACSpoofCheck,
		NoDefault: e.DefaultGateway != nil && !*e.DefaultGateway}
	if b.Name == "" {
		b.Name = defaultBridge
	}
	if err := link.CheckBridgeName(b.Name); err != nil {
		return nil, wrong("bridge", b.Name, "%v; %s is one that can be", err, defaultBridge)
	}
	return b, nil
}

func parseLimits(raw json.RawMessage) (bandwidth.Limits, error) {
	l, err := bandwidth.Parse(raw)
	switch {
	case errors.Is(err, bandwidth.ErrInvalid):
		return l, types.NewError(types.ErrInvalidNetworkConfig, "runtimeConfig.bandwidth", err.Error())
	case err != nil:
		return l, types.NewError(types.ErrDecodingFailure, "runtimeConfig.bandwidth cannot be read", err.Error())
	}
	return l, nil
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

// pools are of the runtime's ranges, if there are such, and of the node's.
func (e *entry) pools() ([]ipam.Pool, error) {
	var out []ipam.Pool
	for _, set := range e.RuntimeConfig.IPRanges {
		var p ipam.Pool
		for _, r := range set {
			parsed, err := r.parse()
			if err != nil {
				return nil, err
			}
			p = append(p, parsed)
		}
		if len(p) > 0 {
			out = append(out, p)
		}
	}
	if len(out) > 0 {
		return out, families(out, "runtimeConfig.ipRanges")
	}
	if len(e.Ranges) == 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "ranges is missing",
			`it has the node's podCIDRs, as in ["10.244.0.0/24", "fd00:244::/64"]`)
	}
	for _, s := range e.Ranges {
		p, err := parseSubnet("ranges", s)
		if err != nil {
			return nil, err
		}
		out = append(out, ipam.Pool{ipam.Whole(p)})
	}
	return out, families(out, "ranges")
}

// families refuses two addresses of a family for a pod.
func families(pools []ipam.Pool, field string) error {
	seen := map[bool]ipam.Pool{}
	for _, p := range pools {
		is4 := p[0].Subnet.Addr().Is4()
		if other, ok := seen[is4]; ok {
			return wrong(field, p.String(), "%s is of the same family: there is one a family", other)
		}
		if slices.ContainsFunc(p, func(r ipam.Range) bool { return r.Subnet.Addr().Is4() != is4 }) {
			return wrong(field, p.String(), "an address is of one family or of the other")
		}
		seen[is4] = p
	}
	return nil
}

func parseSubnet(field, s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, wrong(field, s, "a range is an address and a length, as in 10.244.0.0/24")
	case p != p.Masked():
		return p, wrong(field, s, "there are bits beyond its length: %s", p.Masked())
	case p.Addr().Is4In6():
		return p, wrong(field, s, "it is an IPv4 range in IPv6: %s", p.Addr().Unmap())
	case !assignable(p.Addr()):
		return p, wrong(field, s, "these are no addresses for pods")
	case p.Addr().BitLen()-p.Bits() < 2:
		return p, wrong(field, s, "the first and last address are not used, so there is none: /%d is the smallest", p.Addr().BitLen()-2)
	}
	return p, nil
}

func (r ipRange) parse() (ipam.Range, error) {
	const field = "runtimeConfig.ipRanges"
	subnet, err := parseSubnet(field, r.Subnet)
	if err != nil {
		return ipam.Range{}, err
	}
	out := ipam.Range{Subnet: subnet}
	for a, s := range map[*netip.Addr]string{&out.First: r.RangeStart, &out.Last: r.RangeEnd, &out.Gateway: r.Gateway} {
		if s == "" {
			continue
		}
		if *a, err = netip.ParseAddr(s); err != nil {
			return out, wrong(field, s, "it is an address of %s", subnet)
		}
	}
	if err := out.Validate(); err != nil {
		return out, wrong(field, out.String(), "%v", err)
	}
	return out, nil
}

func assignable(a netip.Addr) bool {
	return !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && !a.IsUnspecified()
}

func parseMTU(mtu int, pools []ipam.Pool) (int, error) {
	if mtu == 0 {
		return defaultMTU, nil
	}
	low := minMTU4
	if slices.ContainsFunc(pools, func(p ipam.Pool) bool { return p[0].Subnet.Addr().Is6() }) {
		low = minMTU6
	}
	if mtu < low || mtu > maxMTU {
		return 0, wrong("mtu", fmt.Sprint(mtu), "it is from %d to %d, or 0 for %d", low, maxMTU, defaultMTU)
	}
	return mtu, nil
}

// parseStatic reads addresses with or without a length, which does not matter: the ranges have one.
func parseStatic(all []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range all {
		plain, _, _ := strings.Cut(strings.TrimSpace(s), "/")
		a, err := netip.ParseAddr(plain)
		if err != nil || a.Zone() != "" || a.Is4In6() || !assignable(a) {
			return nil, wrong("the wanted address", s, "it is of one of the ranges, as in 10.244.0.9")
		}
		out = append(out, a)
	}
	return out, nil
}

// parseMAC reads what a pod can have for a hardware address.
func parseMAC(s string) (net.HardwareAddr, error) {
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 || m[0]&1 != 0 || bytes.Equal(m, make([]byte, 6)) {
		return nil, wrong("the wanted hardware address", s, "it is of one interface, as in 02:00:00:00:00:01")
	}
	return m, nil
}

// wishes sets what the runtime and the pod want to have: addresses that are added up, and a hardware address. The later a source is here, the more it
// counts, as with the reference plugins.
func (e *entry) wishes(c *Config, args map[string]string) (err error) {
	annotations := e.RuntimeConfig.Annotations
	for _, mac := range []string{annotations[macAnnotation], args["MAC"], e.Args.CNI.MAC, e.RuntimeConfig.MAC} {
		if mac == "" {
			continue
		}
		if c.MAC, err = parseMAC(mac); err != nil {
			return err
		}
	}
	if ips, ok := args["IP"]; ok {
		if c.Static, err = parseStatic(strings.Split(ips, ",")); err != nil {
			return err
		}
	}
	more, err := parseStatic(slices.Concat(e.Args.CNI.IPs, e.RuntimeConfig.IPs))
	if err != nil {
		return err
	}
	c.Static = append(c.Static, more...)
	if ips := annotations[addressesAnnotation]; ips != "" { // as templates write one that nobody has filled in
		c.Asked, err = parseStatic(strings.Split(ips, ","))
	}
	return err
}

// parseArgs reads CNI_ARGS. What is not known there is not ours.
func parseArgs(args string) map[string]string {
	out := map[string]string{}
	for _, pair := range strings.Split(args, ";") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			out[key] = value
		}
	}
	return out
}

// maxPodName is that of a namespace (RFC 1123 label), a slash and a pod (RFC 1123 subdomain).
const maxPodName = 63 + 1 + 253

// podName returns what CNI_ARGS say the pod is called, as namespace/name. It is shown to people, and says nothing to machines: what Kubernetes
// would not name a pod is dropped.
func podName(args string) string {
	all := parseArgs(args)
	namespace, name := all["K8S_POD_NAMESPACE"], all["K8S_POD_NAME"]
	if pod := namespace + "/" + name; namespace != "" && name != "" && len(pod) <= maxPodName && !strings.ContainsFunc(pod, notInPodNames) {
		return pod
	}
	return ""
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

// spec returns what connects a pod with these addresses, which are of the pools.
func (c Config) spec(args *skel.CmdArgs, addrs []netip.Addr) (link.Spec, error) {
	s := link.New(args.ContainerID, args.IfName, podName(args.Args), c.MTU, addrs)
	if c.MAC != nil {
		s.PodMAC = c.MAC
	}
	if c.Bridge == nil {
		return s, nil
	}
	b := *c.Bridge
	for _, a := range addrs {
		r, ok := c.rangeOf(a)
		if !ok {
			return s, fmt.Errorf("%w: address %s is of none of the ranges %v", errOther, a, c.Pools)
		}
		b.Gateways = append(b.Gateways, gateway(r))
	}
	s.Bridge = &b
	return s, nil
}

// errOther says that a pod was attached by another configuration, which is not known any more.
var errOther = errors.New("the configuration was another when it was attached")

// attached returns what connects a pod that has a lease, as it was attached: the mode may have been changed since.
func (c Config) attached(args *skel.CmdArgs, l ipam.Lease) (link.Spec, error) {
	if l.Bridge == "" {
		c.Bridge = nil
	} else if c.Bridge == nil || c.Bridge.Name != l.Bridge {
		return link.Spec{}, fmt.Errorf("%w: it is on bridge %s", errOther, l.Bridge)
	}
	if l.MAC != "" {
		var err error
		if c.MAC, err = parseMAC(l.MAC); err != nil {
			return link.Spec{}, err
		}
	}
	return c.spec(args, l.Addrs)
}

// gateway returns a range's, with the length of its network, as a bridge has it.
func gateway(r ipam.Range) netip.Prefix { return netip.PrefixFrom(r.Router(), r.Subnet.Bits()) }

func (c Config) rangeOf(a netip.Addr) (ipam.Range, bool) {
	for _, p := range c.Pools {
		if r, ok := p.Of(a); ok {
			return r, true
		}
	}
	return ipam.Range{}, false
}

func wrong(field, value, right string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%s %q", field, value), fmt.Sprintf(right, args...))
}

func unsupported(field, instead string) error {
	return types.NewError(types.ErrUnsupportedField, field+" is not supported", instead)
}
