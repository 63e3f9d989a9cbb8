package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/ropewalk-net/ropewalk/hostsmgr/hook"
)

func newHook() *cobra.Command {
	var config hook.Config
	var strict bool
	cmd := &cobra.Command{
		Use:   "hook",
		Short: "Add a pod's aliases as an OCI hook",
		Long: `hook is for a container runtime to call, as an OCI hook of the stage createRuntime or createContainer. It reads the state
of the container that is being made from standard input, finds the hosts file of the pod among the container's mounts,
and adds the aliases of the pod's annotation ropewalk.dev/host-aliases to it, so that they are there from the container's
first instruction on.

It sees what the runtime hands on. CRI-O hands on the annotations of pods; containerd those that pod_annotations in the
runtime's configuration names ("ropewalk.dev/*"). It writes to hosts files of pods beneath --kubelet-dir only, and
appends to them. Aliases of ConfigMaps, and what changes later, are the business of "ropewalk hosts run".

What goes wrong is said on standard error, and the container starts all the same, unless --strict is given. Exit
codes: 0, or 2 with --strict or for flags that are wrong.`,
		Example: `  ropewalk hosts hook < state.json
  ropewalk hosts hook --strict --kubelet-dir /var/lib/kubelet < state.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			defer func() {
				// Whatever it is: a node on which no container starts any more is worse than one without aliases.
				if r := recover(); r != nil {
					err = fmt.Errorf("a mistake in the hook itself: %v", r)
				}
				if err != nil && !strict {
					log.Error("the container starts without the aliases of its pod's annotation", "error", err)
					err = nil
				}
			}()
			r, err := config.Run(cmd.InOrStdin())
			if r.Changed {
				log.Info("added the aliases of the pod's annotation", "uid", r.UID, "aliases", r.Aliases)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&config.KubeletDir, "kubelet-dir", "/var/lib/kubelet", "the kubelet's --root-dir")
	cmd.Flags().IntVar(&config.MaxSize, "max-size", 1<<20, "bytes that no hosts file grows beyond")
	cmd.Flags().BoolVar(&strict, "strict", false, "have a container not start if something is wrong")
	_ = cmd.MarkFlagDirname("kubelet-dir") // fails for flags that are not there
	return cmd
}
