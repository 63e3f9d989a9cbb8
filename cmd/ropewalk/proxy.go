package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ropewalk-net/ropewalk/proxy"
	"github.com/ropewalk-net/ropewalk/proxy/cleanup"
	"github.com/ropewalk-net/ropewalk/proxy/health"
	"github.com/ropewalk-net/ropewalk/proxy/nft"
)

func newProxy() *cobra.Command {
	var source sourceFlags
	var f proxyFlags
	var a agent
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Lead connections to services to their endpoints, on this node",
		Long: `proxy leads connections to the addresses of services to their endpoints, as kube-proxy does, until it gets SIGTERM or
SIGINT. It keeps two nftables tables, "ip ropewalk" and "ip6 ropewalk", and touches no other: what the cluster says is
elements of a few maps, so that a change costs what it changes, and a packet the same with one service as with 50,000.

The rules stay when it ends, and it finds them when it starts again: what is right is not written a second time, and
nothing is lost. "ropewalk cleanup proxy" takes them away. Do not run it beside kube-proxy on the same node: run
"ropewalk cleanup proxy --kube-proxy" once kube-proxy has ended.

It needs to be root in the node's network namespace (CAP_NET_ADMIN), nf_tables in the kernel (it is tested on Linux 6.18),
and the rights to list and watch services, endpointslices, servicecidrs and its node. nft(8) need not be installed.

/healthz and /livez at --healthz are for load balancers and the kubelet and answer as kube-proxy's do; a service's
healthCheckNodePort is served at the node's addresses. /readyz at --metrics says when all services are in the kernel.
While the API server is away the kernel goes on with what was last known; ropewalk_source_age_seconds says since when.`,
		Example: `  ropewalk proxy --node-name worker-1 --cluster-cidr 10.244.0.0/16,fd00:244::/56
  ropewalk proxy --node-name worker-1 --kubeconfig /etc/kubernetes/ropewalk.conf --pod-interface "veth*"
  ropewalk proxy --node-name worker-1 --manifests /etc/ropewalk/cluster --metrics "" --healthz ""`,
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
			release, err := holdNetwork("proxy", cmd.CommandPath())(a.log)
			if err != nil {
				return err
			}
			defer release()
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(gcPercent)
			}
			config.Log, config.Registerer = a.log, a.registry
			p, err := proxy.New(config)
			if err != nil {
				return err
			}
			s, err := a.source(&source)
			if err != nil {
				return err
			}
			a.handle("GET /proxyMode", health.Mode())
			if err := f.health(&a, p); err != nil {
				return err
			}
			a.also(p.Run)
			a.also(delivery(s, proxy.Interest(f.NodeName), p))
			return a.run(cmd.Context(), p.Ready)
		},
	}
	source.add(cmd)
	f.add(cmd)
	a.add(cmd, "127.0.0.1:10249")
	return cmd
}

// gcPercent is what the heap may grow by between two collections. A large cluster's services are some 70 MB that stay, and changes leave
// little behind: one collection in 20 s where 100 endpoints a second change.
const gcPercent = 25

// proxyFlags are those of a proxy.Config.
type proxyFlags struct {
	proxy.Config
	clusterCIDRs, nodePorts []string
	bit                     uint8
	healthz                 string
}

func (f *proxyFlags) add(cmd *cobra.Command) {
	addNodeName(cmd, &f.NodeName)
	flags := cmd.Flags()
	flags.StringSliceVar(&f.clusterCIDRs, "cluster-cidr", nil, "ranges of pods' addresses; connections from elsewhere come from outside (default: the node's podCIDRs)")
	flags.StringSliceVar(&f.Interfaces, "pod-interface", nil, `interfaces that pods' connections come in at, besides or in place of --cluster-cidr: "cni0", "veth*"`)
	flags.StringSliceVar(&f.nodePorts, "nodeport-addresses", []string{"primary"}, "ranges of the node's addresses that take node ports, or primary: the node's own in the API")
	flags.BoolVar(&f.MasqueradeAll, "masquerade-all", false, "give connections to ClusterIPs the node's address, those of pods, too")
	flags.Uint8Var(&f.bit, "masquerade-bit", 14, "bit of packets' marks that says from one hook to the next what to masquerade")
	flags.DurationVar(&f.MinSync, "min-sync-period", 0, "shortest time from one transaction to the next")
	flags.StringVar(&f.healthz, "healthz", "0.0.0.0:10256", `address to serve /healthz and /livez at; "" for none`)
}

// config returns what the flags say.
func (f *proxyFlags) config() (proxy.Config, error) {
	c := f.Config
	var err error
	if c.ClusterCIDRs, err = prefixes("cluster-cidr", f.clusterCIDRs); err != nil {
		return c, err
	}
	if len(f.nodePorts) != 1 || f.nodePorts[0] != "primary" {
		if c.NodePortCIDRs, err = prefixes("nodeport-addresses", f.nodePorts); err != nil {
			return c, err
		}
	}
	if f.bit > 31 {
		return c, fmt.Errorf("--masquerade-bit %d: marks have the bits 0 to 31", f.bit)
	}
	c.Mark = 1 << f.bit
	if c.MinSync < 0 {
		return c, errors.New("--min-sync-period is negative; 0 is the shortest")
	}
	return c, nil
}

// prefixes parses the ranges of a flag.
func prefixes(flag string, texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, t := range texts {
		p, err := netip.ParsePrefix(strings.TrimSpace(t))
		if err != nil {
			return nil, fmt.Errorf("--%s: %q is no range; write it as 10.244.0.0/16 or fd00:244::/56", flag, t)
		}
		if p.Masked() != p {
			return nil, fmt.Errorf("--%s: %s has bits behind its length; is %s meant?", flag, p, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}

// health has /healthz and /livez served.
func (f *proxyFlags) health(a *agent, p *proxy.Proxy) error {
	if f.healthz == "" {
		return nil
	}
	l, err := net.Listen("tcp", f.healthz)
	if err != nil {
		return fmt.Errorf("%w; --healthz takes another address", err)
	}
	a.also(func(ctx context.Context) error { return a.serveHandler(ctx, l, p.Health()) })
	return nil
}

func newCleanup() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Take away what a part of Ropewalk has left on this node",
		Long: `cleanup has the commands that take away what stays on a node on purpose when a part of Ropewalk ends: rules that go on
leading connections while an agent is replaced by another.`,
		Example: "  ropewalk cleanup proxy",
	}
	cmd.AddCommand(newCleanupProxy(), newCleanupRoutes())
	group(cmd)
	return cmd
}

func newCleanupProxy() *cobra.Command {
	var kubeProxy bool
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Take the rules of services out of the kernel",
		Long: `proxy removes the nftables tables "ip ropewalk" and "ip6 ropewalk". Services cannot be reached from this node any more,
but connections that are there go on. Run it when "ropewalk proxy" has ended for good, or the agent: while one runs it is
refused, as all would be made again. It is no error that there is nothing to remove.

With --kube-proxy it removes what kube-proxy has left, and nothing of ours: its nftables tables, its chains of iptables and
the rules that lead there, its virtual servers of IPVS. Run that when kube-proxy has ended; what is not kube-proxy's stays.

What is removed is printed, a line each.`,
		Example: `  ropewalk cleanup proxy
  ropewalk cleanup proxy --kube-proxy`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kubeProxy {
				return cleanupKubeProxy(cmd)
			}
			release, err := holdNetwork("proxy", cmd.CommandPath())(slog.Default())
			if err != nil {
				return err
			}
			defer release()
			if err := nft.Remove(); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "tables ip ropewalk and ip6 ropewalk")
			return err
		},
	}
	cmd.Flags().BoolVar(&kubeProxy, "kube-proxy", false, "remove what kube-proxy has left instead")
	return cmd
}

// cleanupKubeProxy prints what it removes, also if it cannot remove all.
func cleanupKubeProxy(cmd *cobra.Command) error {
	removed, err := cleanup.KubeProxy(cmd.Context())
	for _, r := range removed {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), r); err != nil {
			return err
		}
	}
	return err
}
