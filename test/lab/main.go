// Command lab runs a cluster on this machine without Kubernetes: nodes and pods are namespaces, and what runs on them are the programs that
// ship: `ropewalk agent` on each node, ropewalk-cni for each pod, coredns behind the address of kube-dns. Nodes, pods and services are those
// of a directory of manifests. `make lab` starts it.
//
// It plays the kubelet and the container runtime, and that badly: a pod is a process that says who it is, and the pods of the start are all
// that there ever are. Services, slices, aliases and names follow the manifests while it runs.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

func main() {
	root := &cobra.Command{Use: "lab", Short: "A cluster on this machine, without Kubernetes", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(newUp(), newDown(), newShell(), newMachine(), newSandbox())
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// self is this program's file.
func self() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

func newUp() *cobra.Command {
	return &cobra.Command{
		Use: "up MANIFESTS", Short: "Start the lab", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			already, err := up(args[0])
			if err != nil {
				return err
			}
			said := "The lab is up."
			if already {
				said = "The lab runs already, as it was; make lab-down ends it."
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n\n%s", said, guide())
			return err
		},
	}
}

func newDown() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "End the lab, and take away all that it has made", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return down() },
	}
}

func newShell() *cobra.Command {
	var pod, node, command string
	cmd := &cobra.Command{
		Use: "shell", Short: "Run a shell, or a command, in a pod or on a node", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return shell(pod, node, command) },
	}
	cmd.Flags().StringVar(&pod, "pod", "", "namespace/name of a pod, or what it begins with")
	cmd.Flags().StringVar(&node, "node", "", "a node, in place of a pod")
	cmd.Flags().StringVar(&command, "command", "", "what to run (default: a shell)")
	return cmd
}
