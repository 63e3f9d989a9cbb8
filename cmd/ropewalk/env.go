package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/env"
	"github.com/ropewalk-net/ropewalk/hostsmgr/links"
)

func newEnv() *cobra.Command {
	var source once
	var format string
	var noLinks bool
	cmd := &cobra.Command{
		Use:   "env NAMESPACE",
		Short: "Print the variables of services that a namespace's containers have",
		Long: `env prints the environment variables by which containers of a namespace find services, as the kubelet sets
them: for each service with a ClusterIP of the namespace, and for default/kubernetes. It does not print what
pods bring along.

The forms are shell (export NAME='value', to be read by eval), dotenv (NAME=value, for docker's --env-file and
for .env files) and json (one object). All have the variables in the kubelet's order.

From an API server it needs the right to list and watch services.`,
		Example: `  ropewalk env shop --kubeconfig /etc/kubernetes/ropewalk.conf
  ropewalk env shop --manifests /etc/ropewalk/cluster --format dotenv
  ropewalk env shop --manifests /etc/ropewalk/cluster --no-service-links
  eval "$(ropewalk env shop --manifests /etc/ropewalk/cluster)"`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("of which namespace? One name is needed, as in: ropewalk env default; see %s --help", cmd.CommandPath())
			}
			if _, err := env.ParseNamespaces(args[0]); err != nil {
				return err
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := env.Format(nil, format); err != nil {
				return fmt.Errorf("--format: %w", err)
			}
			table := links.New(nil, cluster.KindService)
			err := source.read(cmd.Context(), links.Services(), table, func(ctx context.Context) error {
				select {
				case <-table.Synced():
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
			if err != nil {
				return err
			}
			text, err := env.Format(table.Variables(args[0], !noLinks), format)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	source.add(cmd)
	cmd.Flags().StringVar(&format, "format", env.Shell, "shell, dotenv or json")
	cmd.Flags().BoolVar(&noLinks, "no-service-links", false, "as for a pod with enableServiceLinks: false: default/kubernetes only")
	complete(cmd, "format", env.Shell, env.Dotenv, env.JSON)
	return cmd
}
