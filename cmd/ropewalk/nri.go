package main

import (
	"errors"
	"io"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/links"
	"github.com/ropewalk-net/ropewalk/hostsmgr/nri"
)

func newNRI() *cobra.Command {
	var source sourceFlags
	var config nri.Config
	var a agent
	var node string
	var allowed []string
	cmd := &cobra.Command{
		Use:   "nri",
		Short: "Give containers their aliases and variables as they are created, as an NRI plugin",
		Long: `nri connects to the container runtime (containerd 1.7 or later, CRI-O 1.26 or later, with NRI on) and is asked about each
container that is created, until it gets SIGTERM or SIGINT. It connects again when the runtime restarts.

A container then has, from its first instruction on:
  - the aliases of its pod's annotation ropewalk.dev/host-aliases;
  - a hosts file, in --state-dir, if it would have none, or one of the runtime's without those aliases;
  - variables of services that the kubelet makes none of: ready addresses of the namespace's headless services, unless
    the pod has enableServiceLinks: false, and services of the namespaces that the pod's annotation
    ropewalk.dev/env-from-namespaces names ("shop, batch"). What a container has of its own stays.

For variables it reads the cluster: from an API server it needs the rights to list and watch services,
endpointslices and pods. Without --kubeconfig and --manifests, and outside of a cluster, there are none.

It never fails a container and holds none up for more than a second: what is not known in time is left out, said in the
log and counted. What changes later is the business of "ropewalk hosts run".`,
		Example: `  ropewalk hosts nri
  ropewalk hosts nri --node-name worker-1 --manifests /etc/ropewalk/cluster --env-namespaces shop,batch`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.setup(cmd); err != nil {
				return err
			}
			logrus.SetOutput(io.Discard) // what ttrpc says there of a connection, the plugin says, too
			config.Log, config.Registerer = a.log, a.registry
			ready := func() error { return nil }
			if source.given() {
				if err := required(cmd, "node-name", node, nodeNameHint); err != nil {
					return err
				}
				var err error
				if ready, err = a.variables(&source, &config, node, allowed); err != nil {
					return err
				}
			} else {
				a.log.Info("no variables of services: neither --kubeconfig nor --manifests is given, and this is not a pod")
			}
			p, err := nri.New(config)
			if err != nil {
				return err
			}
			a.also(p.Run)
			return a.run(cmd.Context(), func() error { return errors.Join(p.Ready(), ready()) })
		},
	}
	source.add(cmd)
	addNodeName(cmd, &node)
	addFiles(cmd, &config.KubeletDir, &config.ClusterDomain, &config.NodeHostsFile, &config.MaxSize)
	cmd.Flags().StringVar(&config.Socket, "socket", api.DefaultSocketPath, "the runtime's NRI socket")
	cmd.Flags().StringVar(&config.Index, "index", "50", "two digits by which the runtime orders its plugins")
	cmd.Flags().StringVar(&config.StateDir, "state-dir", "/run/ropewalk/nri", `directory of hosts files that are made, which the runtime sees by the same path; "" for none`)
	cmd.Flags().StringSliceVar(&allowed, "env-namespaces", nil, "namespaces whose services pods of others may ask for (default: all)")
	a.add(cmd, "127.0.0.1:9155")
	return cmd
}

// variables has config know variables of services, from sources that run as parts of a. ready says whether they have told all.
func (a *agent) variables(flags *sourceFlags, config *nri.Config, node string, allowed []string) (ready func() error, err error) {
	table := links.New(allowed, cluster.KindService, cluster.KindPod, cluster.KindSlice)
	var sources []cluster.Source
	for _, interest := range links.OfNode(node) {
		s, err := flags.open(a.log, a.sourceError)
		if err != nil {
			return nil, err
		}
		sources = append(sources, s)
		a.also(delivery(s, interest, table))
	}
	a.age(func() (age time.Duration) {
		for _, s := range sources {
			age = max(age, s.Age())
		}
		return age
	})
	config.Variables = table.Extra
	return func() error {
		select {
		case <-table.Synced():
			return nil
		default:
			return errors.New("not everything about services is known yet")
		}
	}, nil
}
