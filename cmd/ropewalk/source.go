package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/apiserver"
	"github.com/ropewalk-net/ropewalk/cluster/manifests"
)

// sourceFlags say where a command reads the cluster from.
type sourceFlags struct {
	kubeconfig, context, manifests string
}

func (f *sourceFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.kubeconfig, "kubeconfig", "", "file that says where the API server is (default: that of the cluster this runs in)")
	cmd.Flags().StringVar(&f.context, "context", "", "context of the kubeconfig (default: its current one)")
	cmd.Flags().StringVar(&f.manifests, "manifests", "", "directory of Kubernetes YAML to read instead of an API server")
	cmd.MarkFlagsMutuallyExclusive("kubeconfig", "manifests")
	cmd.MarkFlagsMutuallyExclusive("context", "manifests")
	_ = cmd.MarkFlagDirname("manifests") // fails for flags that are not there
}

// given says that there is something to read from: flags say so, or this is a pod.
func (f *sourceFlags) given() bool {
	return f.kubeconfig != "" || f.manifests != "" || os.Getenv("KUBERNETES_SERVICE_HOST") != ""
}

// open returns a source. onError hears of its failures, those of single objects included, from several goroutines.
func (f *sourceFlags) open(log *slog.Logger, onError func(cluster.Kind, error)) (cluster.Source, error) {
	if f.manifests != "" {
		return manifests.New(f.manifests, log)
	}
	s, err := apiserver.New(apiserver.Config{
		Kubeconfig: f.kubeconfig, Context: f.context, UserAgent: "ropewalk/" + buildVersion(), Log: log,
		OnError: onError,
	})
	if err != nil && f.kubeconfig == "" {
		return nil, fmt.Errorf("%w; give --kubeconfig FILE or --manifests DIR", err)
	}
	return s, err
}

// once is a source that is read until somebody has heard enough.
type once struct {
	sourceFlags
	timeout time.Duration
}

func (o *once) add(cmd *cobra.Command) {
	o.sourceFlags.add(cmd)
	cmd.Flags().DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to wait for the API server")
}

// read delivers what interest names to sink while use runs, whose context ends with the timeout. If use fails then, the source's
// last failure is told as the reason.
func (o *once) read(ctx context.Context, interest cluster.Interest, sink cluster.Sink, use func(context.Context) error) error {
	var mu sync.Mutex
	var last error
	quiet := slog.New(slog.DiscardHandler) // it is the error that tells
	source, err := o.open(quiet, func(_ cluster.Kind, err error) {
		mu.Lock()
		defer mu.Unlock()
		last = err
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx, interest, sink) }()
	err = use(ctx)
	late := errors.Is(ctx.Err(), context.DeadlineExceeded)
	cancel()
	if runErr := <-done; runErr != nil {
		return runErr
	}
	mu.Lock()
	defer mu.Unlock()
	if err != nil && late {
		return fmt.Errorf("the cluster has not told all within %v: %w", o.timeout, cmp.Or(last, err))
	}
	return err
}

// delivery returns a part of an agent that has source deliver to sink.
func delivery(source cluster.Source, interest cluster.Interest, sink cluster.Sink) func(context.Context) error {
	return func(ctx context.Context) error { return source.Run(ctx, interest, sink) }
}
