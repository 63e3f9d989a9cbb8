package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ropewalk-net/ropewalk/cni/antispoof"
	"github.com/ropewalk-net/ropewalk/cni/limited"
	"github.com/ropewalk-net/ropewalk/cni/link"
	"github.com/ropewalk-net/ropewalk/cni/masquerade"
	"github.com/ropewalk-net/ropewalk/cni/overlay"
	"github.com/ropewalk-net/ropewalk/cni/routes"
)

func newRoutes() *cobra.Command {
	var source sourceFlags
	var f routesFlags
	var a agent
	cmd := &cobra.Command{
		Use:   "routes",
		Short: "Lead packets to the pods of other nodes, and out of the cluster",
		Long: `routes keeps what this node must know of the others for its pods' sake, until it gets SIGTERM or SIGINT: a route, or an
end of a tunnel, for the pods of each other node; the rule by which packets of pods that leave the cluster get the node's
address; and the file by which the container runtime calls the plugin ropewalk-cni, once the node has podCIDRs. It frees
the addresses and ports of pods that are gone and that the runtime has not detached.

--overlay says how packets get to other nodes. direct: by a route by way of the node's own address; all nodes are on one
link. vxlan: in packets of UDP from node to node, on any network that leads them. cloud: somebody else makes the routes.

What somebody deletes comes back. What is not ours stays: our routes have the protocol 82 (ip route), the tunnel's
device is called rw-vxlan, the tables of nftables are called ropewalk-masquerade and ropewalk-antispoof. All of it stays
when routes ends, so that pods go on to talk; "ropewalk cleanup routes" takes it away.

It needs to be root in the node's network namespace (CAP_NET_ADMIN), and the rights to list and watch nodes and
servicecidrs.`,
		Example: `  ropewalk routes --node-name worker-1
  ropewalk routes --node-name worker-1 --overlay direct --kubeconfig /etc/kubernetes/ropewalk.conf
  ropewalk routes --node-name worker-1 --manifests /etc/ropewalk/cluster --conf-dir "" --metrics ""`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "node-name", f.NodeName, thisNodeHint); err != nil {
				return err
			}
			config, err := f.config()
			if err != nil {
				return err
			}
			if err := a.setup(cmd); err != nil {
				return err
			}
			release, err := holdNetwork("routes", cmd.CommandPath())(a.log)
			if err != nil {
				return err
			}
			defer release()
			r, run, err := newRoutesParts(config, a.log, a.registry)
			if err != nil {
				return err
			}
			s, err := a.source(&source)
			if err != nil {
				return err
			}
			for _, part := range run {
				a.also(part)
			}
			a.also(delivery(s, routes.Interest(), r))
			return a.run(cmd.Context(), r.Ready)
		},
	}
	source.add(cmd)
	f.add(cmd)
	a.add(cmd, "127.0.0.1:9156")
	return cmd
}

// routesFlags are those of a routes.Config.
type routesFlags struct {
	routes.Config
	overlay string
	inside  []string
}

func (f *routesFlags) add(cmd *cobra.Command) {
	addNodeName(cmd, &f.NodeName)
	flags := cmd.Flags()
	flags.StringVar(&f.overlay, "overlay", "vxlan", "how packets get to other nodes: "+strings.Join(slices.Sorted(maps.Keys(overlay.Modes)), ", "))
	flags.BoolVar(&f.NearDirect, "direct-where-near", false, "with --overlay vxlan, no tunnel to nodes on a link of this one's")
	flags.IntVar(&f.Kernel.MTU, "mtu", 0, "MTU of pods (default: that of the default route's link, less what a tunnel needs)")
	flags.IntVar(&f.Kernel.VNI, "vxlan-id", 4242, "the tunnel's network identifier")
	flags.IntVar(&f.Kernel.Port, "vxlan-port", 8472, "the tunnel's port of UDP, which firewalls between nodes must let through")
	flags.BoolVar(&f.Masquerade, "masquerade", true, "give packets of pods that leave the cluster the node's address")
	flags.StringSliceVar(&f.inside, "non-masquerade-cidr", nil, "ranges that see pods' own addresses, besides the cluster's")
	flags.StringVar(&f.InsideFile, "masquerade-config", "", "file of ip-masq-agent's: more such ranges, and masqLinkLocal; read again each minute")
	flags.BoolVar(&f.Antispoof, "antispoof", true, "with --cni-mode routed, drop what pods send from IPv6 addresses that are not theirs")
	flags.StringVar(&f.CNIMode, "cni-mode", "routed", "how pods are attached to their node: "+strings.Join(cniModes, ", "))
	flags.StringVar(&f.Bridge, "bridge", "", "with --cni-mode bridge, what the bridge is called (default: rw0)")
	flags.BoolVar(&f.SpoofCheck, "mac-spoof-check", false, "with --cni-mode bridge, drop what pods send from others' hardware addresses (Linux 5.18)")
	flags.BoolVar(&f.LocalhostPorts, "localhost-ports", false, "hostPorts of new pods are ports of 127.0.0.1, too (route_localnet at their interfaces)")
	flags.StringVar(&f.ConfDir, "conf-dir", "/etc/cni/net.d", `where the runtime looks for CNI configurations; "" for none`)
	flags.StringVar(&f.DataDir, "data-dir", dataDir, "where ropewalk-cni keeps which addresses pods have")
	_ = cmd.MarkFlagDirname("conf-dir") // fails for flags that are not there
	_ = cmd.RegisterFlagCompletionFunc("cni-mode", cobra.FixedCompletions(cniModes, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("overlay", cobra.FixedCompletions(slices.Sorted(maps.Keys(overlay.Modes)), cobra.ShellCompDirectiveNoFileComp))
}

var cniModes = []string{"bridge", "routed"}

// dataDir is the plugin's, if it is not told another.
const dataDir = "/run/ropewalk"

// tunnelDevice is what the tunnel's device is called.
const tunnelDevice = "rw-vxlan"

// config returns what the flags say.
func (f *routesFlags) config() (routes.Config, error) {
	c := f.Config
	c.Kernel.Device = tunnelDevice
	mode, ok := overlay.Modes[f.overlay]
	if !ok {
		return c, fmt.Errorf("--overlay: %q is none; it can be %s", f.overlay, strings.Join(slices.Sorted(maps.Keys(overlay.Modes)), ", "))
	}
	c.Mode = mode
	var err error
	if c.Inside, err = prefixes("non-masquerade-cidr", f.inside); err != nil {
		return c, err
	}
	if c.Bridge != "" {
		if err := link.CheckBridgeName(c.Bridge); err != nil {
			return c, fmt.Errorf("--bridge %q: %w; rw0 is one that can be", c.Bridge, err)
		}
	}
	switch k := c.Kernel; {
	case !filepath.IsAbs(c.DataDir):
		return c, fmt.Errorf("--data-dir %q: it is an absolute path, as in %s", c.DataDir, dataDir)
	case !slices.Contains(cniModes, c.CNIMode):
		return c, fmt.Errorf("--cni-mode: %q is none; it can be %s", c.CNIMode, strings.Join(cniModes, ", "))
	case c.CNIMode != "bridge" && (c.Bridge != "" || c.SpoofCheck):
		return c, errors.New("--bridge and --mac-spoof-check are for --cni-mode bridge")
	case k.VNI < 1 || k.VNI >= 1<<24:
		return c, fmt.Errorf("--vxlan-id %d: it is from 1 to 16777215", k.VNI)
	case k.Port < 1 || k.Port > 65535:
		return c, fmt.Errorf("--vxlan-port %d: it is from 1 to 65535", k.Port)
	case k.MTU != 0 && (k.MTU < 1280 || k.MTU > 65535):
		return c, fmt.Errorf("--mtu %d: it is from 1280, which IPv6 needs, to 65535", k.MTU)
	}
	return c, nil
}

func newCleanupRoutes() *cobra.Command {
	return &cobra.Command{
		Use:   "routes",
		Short: "Take the routes to other nodes' pods, the tunnel and the masquerading away",
		Long: `routes removes the routes of the protocol 82, the device rw-vxlan and the nftables tables ropewalk-masquerade and
ropewalk-antispoof. Pods of this node and others do not reach each other any more. Run it when "ropewalk routes" has
ended for good, or the agent: while one runs it is refused, as all would be made again. It is no error that there is
nothing to remove. What "ropewalk routes" has said to be missing (/run/ropewalk/limited) goes, too.`,
		Example: "  ropewalk cleanup routes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			release, err := holdNetwork("routes", cmd.CommandPath())(slog.Default())
			if err != nil {
				return err
			}
			defer release()
			k := overlay.Kernel{Device: tunnelDevice}
			if err := k.Remove(); err != nil {
				return err
			}
			return errors.Join(masquerade.Remove(), antispoof.Remove(), limited.Clear(dataDir))
		},
	}
}
