package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cmd/ropewalk/parts"
	"github.com/ropewalk-net/ropewalk/proxy/health"
)

// agent is what a command that runs on has in common with others: a log, metrics, and parts that end together.
type agent struct {
	logFlags
	address string

	log      *slog.Logger
	registry *prometheus.Registry
	errors   *prometheus.CounterVec
	parts    []func(context.Context) error
	paths    []path
	// gatherers have metrics besides the registry's.
	gatherers prometheus.Gatherers
}

// path is something more to serve at --metrics.
type path struct {
	pattern string
	handler http.Handler
}

func (a *agent) add(cmd *cobra.Command, address string) {
	a.logFlags.add(cmd)
	cmd.Flags().StringVar(&a.address, "metrics", address, `address to serve /metrics, /healthz and /readyz at; "" for none`)
}

// setup makes the log and the registry.
func (a *agent) setup(cmd *cobra.Command) (err error) {
	if a.log, err = a.logger(cmd.ErrOrStderr()); err != nil {
		return err
	}
	slog.SetDefault(a.log)
	a.registry = prometheus.NewRegistry()
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ropewalk_build_info", Help: "1, with the version as a label.", ConstLabels: prometheus.Labels{"version": buildVersion()},
	})
	info.Set(1)
	a.errors = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ropewalk_source_errors_total", Help: "Requests to the API server that failed, and objects of its that are wrong and left out or mended, by kind.",
	}, []string{"kind"})
	a.registry.MustRegister(info, a.errors)
	return nil
}

// age serves for how long a source has been out of touch.
func (a *agent) age(of func() time.Duration) {
	a.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ropewalk_source_age_seconds", Help: "For how long the cluster has not been heard of; 0 while what is known is current.",
	}, func() float64 { return of().Seconds() }))
}

// source returns what to read the cluster from. Its failures are counted, and its age is served.
func (a *agent) source(f *sourceFlags) (cluster.Source, error) {
	s, err := f.open(a.log, a.sourceError)
	if err == nil {
		a.age(s.Age)
	}
	return s, err
}

// sourceError counts a failure of a source.
func (a *agent) sourceError(k cluster.Kind, _ error) { a.errors.WithLabelValues(k.String()).Inc() }

// handle adds a path, with its method, to those served at --metrics.
func (a *agent) handle(pattern string, h http.Handler) { a.paths = append(a.paths, path{pattern, h}) }

// also adds a part.
func (a *agent) also(part func(context.Context) error) { a.parts = append(a.parts, part) }

// grace is for how long parts may take to end. It is more than a parts.Supervisor gives, and less than the 10 s after which deploy/ has an agent killed.
const grace = 8 * time.Second

// run runs all parts until ctx ends or one of them fails, which ends the others, and returns its error. ready is what /readyz says. Parts that do not end
// in time are left behind, for the process to end.
func (a *agent) run(ctx context.Context, ready func() error) error {
	if a.address != "" {
		listener, err := net.Listen("tcp", a.address)
		if err != nil {
			return fmt.Errorf("%w; --metrics takes another address", err)
		}
		a.log.Info("serving /metrics, /healthz and /readyz", "address", listener.Addr().String())
		a.also(func(ctx context.Context) error { return a.serve(ctx, listener, ready) })
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, len(a.parts))
	for _, part := range a.parts {
		go func() {
			err := part(ctx)
			if err != nil {
				cancel(err)
			}
			ended <- err
		}()
	}
	done, late := ctx.Done(), (<-chan time.Time)(nil)
	for left := len(a.parts); left > 0; {
		select {
		case err := <-ended:
			if left--; errors.Is(err, parts.ErrStuck) {
				return err
			}
		case <-done:
			done, late = nil, time.After(grace)
		case <-late:
			a.log.Error("the process ends with parts that do not", "goroutines", parts.Goroutines())
			return fmt.Errorf("not all parts have ended within %v", grace)
		}
	}
	if err := context.Cause(ctx); ctx.Err() == nil || errors.Is(err, context.Canceled) {
		a.log.Info("stopped")
		return nil
	} else {
		return err
	}
}

func (a *agent) serve(ctx context.Context, listener net.Listener, ready func() error) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(append(prometheus.Gatherers{a.registry}, a.gatherers...), promhttp.HandlerOpts{
		MaxRequestsInFlight: 4,
		ErrorHandling:       promhttp.ContinueOnError, // what is wrong with one metric is no reason to be without all others
		ErrorLog:            slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	for _, p := range a.paths {
		mux.Handle(p.pattern, p.handler)
	}
	return a.serveHandler(ctx, listener, mux)
}

// serveHandler serves h until ctx ends.
func (a *agent) serveHandler(ctx context.Context, listener net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler: h, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	health.Few(server)
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
