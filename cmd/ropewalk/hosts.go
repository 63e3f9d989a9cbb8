package main

import (
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/ropewalk-net/ropewalk/hostsmgr"
)

func newHosts() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hosts",
		Short: "Hosts files of pods",
		Long: `hosts has the commands for the hosts files of a node's pods, /etc/hosts in their containers.

"hosts run" keeps them right, "hosts check" says which are not, "hosts render" shows what one should be.
"hosts nri" and "hosts hook" are called by the container runtime: with them aliases are there from a container's
first instruction on, instead of a moment later.

Aliases come from three places, in this order: the annotation ropewalk.dev/host-aliases of the pod, JSON of the shape
of spec.hostAliases; ConfigMaps of the pod's namespace with the label ropewalk.dev/host-aliases: namespace; and
ConfigMaps of --cluster-namespaces with the label ropewalk.dev/host-aliases: cluster. A ConfigMap's data is in the
syntax of hosts(5).`,
		Example: `  ropewalk hosts run --node-name "$NODE_NAME"
  ropewalk hosts render -f pod.yaml`,
	}
	cmd.AddCommand(newRun(), newCheck(), newRender(), newHook(), newNRI())
	group(cmd)
	return cmd
}

// managerFlags are those of a hostsmgr.Config.
type managerFlags struct {
	hostsmgr.Config
	wide namespaces
}

func (f *managerFlags) add(cmd *cobra.Command) {
	addNodeName(cmd, &f.NodeName)
	addFiles(cmd, &f.KubeletDir, &f.ClusterDomain, &f.NodeHostsFile, &f.MaxSize)
	cmd.Flags().BoolVar(&f.NodeBlock, "node-block", false, "keep the cluster's aliases in a marked block of the node's own hosts file, too")
	f.wide.add(cmd)
}

// config returns what the flags say.
func (f *managerFlags) config() hostsmgr.Config {
	c := f.Config
	c.ClusterNamespaces = f.wide.names()
	return c
}

// namespaces are those whose ConfigMaps may be meant for the whole cluster.
type namespaces struct{ flag []string }

func (n *namespaces) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&n.flag, "cluster-namespaces", []string{"kube-system"},
		`namespaces whose ConfigMaps may be meant for the whole cluster; "*" for all, "" for none`)
}

// names returns them as a hostsmgr.Config has them.
func (n *namespaces) names() []string {
	if slices.Contains(n.flag, "*") {
		return nil
	}
	return n.flag
}

func addNodeName(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "node-name", os.Getenv("NODE_NAME"), "the node, as the API calls it (default: NODE_NAME of the environment)")
}

func addFiles(cmd *cobra.Command, kubeletDir, clusterDomain, nodeHosts *string, maxSize *int) {
	cmd.Flags().StringVar(kubeletDir, "kubelet-dir", "/var/lib/kubelet", "the kubelet's --root-dir")
	cmd.Flags().StringVar(clusterDomain, "cluster-domain", "cluster.local", "the kubelet's clusterDomain")
	cmd.Flags().StringVar(nodeHosts, "node-hosts", "/etc/hosts", "the node's own hosts file, which pods on the node's network have")
	cmd.Flags().IntVar(maxSize, "max-size", 1<<20, "bytes that no hosts file grows beyond")
	_ = cmd.MarkFlagDirname("kubelet-dir") // fails for flags that are not there
}

const (
	nodeNameHint = "which node's pods? Give its name as in `kubectl get nodes`, or set NODE_NAME"
	thisNodeHint = "which node is this? Give its name as in `kubectl get nodes`, or set NODE_NAME"
)

func newRun() *cobra.Command {
	var source sourceFlags
	var manager managerFlags
	var a agent
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Keep the hosts files of a node's pods right",
		Long: `run keeps the hosts files of a node's pods right until it gets SIGTERM or SIGINT: it writes them in place when a pod's
addresses, its annotation or a ConfigMap with aliases change, when the node's own file changes (for pods on the node's
network), and again after the kubelet or a container has written to them. The bytes are the kubelet's, with the
aliases in more at the end.

It needs to be root, to see the kubelet's directory by its own path, and the rights to list and watch pods and
ConfigMaps. Linux 5.6 or later.

/readyz at the address of --metrics says when all files have been seen to. While the API server is away files stay
as they should be by what was last known; ropewalk_source_age_seconds says since when.`,
		Example: `  ropewalk hosts run --node-name worker-1
  ropewalk hosts run --node-name worker-1 --kubeconfig /etc/kubernetes/ropewalk.conf --metrics 127.0.0.1:9254
  ropewalk hosts run --node-name worker-1 --manifests /etc/ropewalk/cluster --metrics "" --log-format json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "node-name", manager.NodeName, nodeNameHint); err != nil {
				return err
			}
			if err := a.setup(cmd); err != nil {
				return err
			}
			release, err := holdHosts(manager.Config)(a.log)
			if err != nil {
				return err
			}
			defer release()
			manager.Log, manager.Registerer = a.log, a.registry
			m, err := hostsmgr.New(manager.config())
			if err != nil {
				return err
			}
			s, err := a.source(&source)
			if err != nil {
				return err
			}
			a.also(m.Run)
			a.also(delivery(s, hostsmgr.Interest(manager.NodeName), m))
			return a.run(cmd.Context(), m.Ready)
		},
	}
	source.add(cmd)
	manager.add(cmd)
	a.add(cmd, "127.0.0.1:9154")
	return cmd
}

func newCheck() *cobra.Command {
	var source once
	var manager managerFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say which hosts files of a node's pods are not what they should be",
		Long: `check compares the hosts files of a node's pods with what they should be, and prints what differs as a unified
diff: lines with - are in the file, lines with + should be. It writes to no file. A file that does not exist is
none that differs, since the kubelet makes it when a container needs it.

What pods have written into their files is printed with control characters escaped.

Exit codes: 0 if all files are right, 1 if any differs, 2 if that cannot be told.`,
		Example: `  ropewalk hosts check --node-name worker-1 --manifests /etc/ropewalk/cluster
  ropewalk hosts check --node-name worker-1 --kubeconfig /etc/kubernetes/ropewalk.conf --timeout 10s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := required(cmd, "node-name", manager.NodeName, nodeNameHint); err != nil {
				return err
			}
			return check(cmd, manager.config(), &source)
		},
	}
	source.add(cmd)
	manager.add(cmd)
	return cmd
}
