// Command ropewalk is the node agent and the command line of Ropewalk: services, hosts files and environment on a node. It wires
// packages together and decides nothing; what it can do, `ropewalk --help` says.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The exit codes are those of diff(1).
const (
	exitDone = iota
	exitDifferent
	exitError
)

// errDifferent ends a command whose output has said all there is to say.
var errDifferent = errors.New("files differ")

// version is set by the build.
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	switch err := root.ExecuteContext(ctx); {
	case err == nil:
		return exitDone
	case errors.Is(err, errDifferent):
		return exitDifferent
	default:
		fmt.Fprintf(errOut, "ropewalk: %v\n", err)
		return exitError
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "ropewalk",
		Short: "Services, hosts files and environment on a Kubernetes node",
		Long: `ropewalk leads connections to services to their endpoints on a Kubernetes node, keeps the hosts files of the
node's pods right while they run, gives containers variables by which they find services, and shows what the kubelet would
make of both.

It reads the cluster from an API server, or from a directory of ordinary Kubernetes YAML.

Exit codes: 0 for success, 1 if "hosts check" finds differences or "status" a part that is not ready, 2 for an error, which
is the last line on standard error.`,
		Example: `  ropewalk proxy --node-name "$NODE_NAME"
  ropewalk hosts run --node-name "$NODE_NAME"
  ropewalk hosts check --node-name worker-1 --kubeconfig /etc/kubernetes/ropewalk.conf
  ropewalk env shop --manifests /etc/ropewalk/cluster`,
		SilenceErrors: true, // run says it, once
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(newAgent(), newStatus(), newProxy(), newRoutes(), newCleanup(), newHosts(), newEnv(), newVersion())
	group(root)
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Long:    "version prints the version of this program, as it was built.",
		Example: "  ropewalk version",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "ropewalk", buildVersion())
			return err
		},
	}
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// group makes cmd one that has commands and is none: by itself it prints its help, and what it does not know is an error.
func group(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		cmd.SuggestionsMinimumDistance = 2
		return fmt.Errorf("unknown command %q for %q%s; see %s --help", args[0], cmd.CommandPath(), didYouMean(cmd.SuggestionsFor(args[0]), ""), cmd.CommandPath())
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// flagError adds to an error of flags what would have been right.
func flagError(cmd *cobra.Command, err error) error {
	hint := ""
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		// cobra knows what is similar for commands only.
		flags := &cobra.Command{SuggestionsMinimumDistance: 3}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			flags.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
		})
		hint = didYouMean(flags.SuggestionsFor(unknown.GetSpecifiedName()), "--")
	}
	return fmt.Errorf("%w%s; see %s --help", err, hint, cmd.CommandPath())
}

func didYouMean(names []string, prefix string) string {
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s%s?)", prefix, strings.Join(names, " or "+prefix))
}

// required returns an error if a flag that has to be there is not.
func required(cmd *cobra.Command, name, value, hint string) error {
	if value != "" {
		return nil
	}
	return fmt.Errorf("--%s is missing: %s; see %s --help", name, hint, cmd.CommandPath())
}
