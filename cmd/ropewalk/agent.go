package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cmd/ropewalk/parts"
	"github.com/ropewalk-net/ropewalk/cni/collect"
	"github.com/ropewalk-net/ropewalk/cni/install"
	"github.com/ropewalk-net/ropewalk/cni/mend"
	"github.com/ropewalk-net/ropewalk/cni/routes"
	"github.com/ropewalk-net/ropewalk/hostsmgr"
	"github.com/ropewalk-net/ropewalk/proxy"
	"github.com/ropewalk-net/ropewalk/proxy/health"
)

// agentAddress is where an agent serves what it has to say, and where status asks for it.
const agentAddress = "127.0.0.1:9150"

func newAgent() *cobra.Command {
	var source sourceFlags
	var a agent
	var node, file string
	var printConfig bool
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Do all that Ropewalk does on a node, in one process",
		Long: `agent does what "hosts run", "proxy" and "routes" do, and puts the CNI plugin where the container runtime looks for it,
until it gets SIGTERM or SIGINT. It watches each kind of object once for all of them. What it has put into the kernel and
into files stays when it ends, so that pods and services go on while it is replaced.

--config names a file that says which parts there are to be, and how they are to be; --print-config prints it with all that
there is, and what it means. Its keys are the flags of the commands that do the parts alone. The file is read again when it
changes, and at SIGHUP: parts whose configuration is another are started anew, and others are left alone. A file that is
wrong is refused at the start; later it is told in the log and in ropewalk_agent_config_good, and the last good one holds.

A part that fails is started again, after a pause that grows to a minute; others go on. /readyz at --metrics says which
parts are not ready, and why; "ropewalk status" shows the same.

It needs to be root in the node's network namespace, and the rights that the parts need.`,
		Example: `  ropewalk agent --node-name worker-1
  ropewalk agent --node-name worker-1 --kubeconfig /etc/kubernetes/ropewalk.conf --config /etc/ropewalk/agent.yaml
  ropewalk agent --print-config`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := agentConfig{file: file, node: node}
			if printConfig {
				f, _, err := c.read()
				if err == nil {
					_, err = (&agentConfig{file: file, node: cmp.Or(node, "node")}).parts() // what is wrong for any node
				}
				if err != nil {
					return err
				}
				_, err = fmt.Fprint(cmd.OutOrStdout(), f.text())
				return err
			}
			if err := required(cmd, "node-name", node, thisNodeHint); err != nil {
				return err
			}
			wanted, err := c.parts()
			if err != nil {
				return err
			}
			if err := a.setup(cmd); err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(gcPercent)
			}
			s, err := a.source(&source)
			if err != nil {
				return err
			}
			return a.supervise(cmd.Context(), &c, wanted, s)
		},
	}
	source.add(cmd)
	addNodeName(cmd, &node)
	cmd.Flags().StringVar(&file, "config", "", "file that says what the parts are like (default: all of them, with their defaults)")
	cmd.Flags().BoolVar(&printConfig, "print-config", false, "print the configuration, with what it means, and end")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
	a.add(cmd, agentAddress)
	return cmd
}

// supervise runs the parts that are wanted, and those that the file says later.
func (a *agent) supervise(ctx context.Context, c *agentConfig, wanted []parts.Part, s cluster.Source) error {
	supervisor := &parts.Supervisor{Source: s, Log: a.log}
	good := prometheus.NewGauge(prometheus.GaugeOpts{Name: "ropewalk_agent_config_good", Help: "1 if the configuration file was right when it was last read, 0 if one of before holds."})
	good.Set(1)
	a.registry.MustRegister(supervisor, good)
	a.gatherers = append(a.gatherers, supervisor)
	configs := make(chan []parts.Part)
	a.also(func(ctx context.Context) error { return supervisor.Run(ctx, configs) })
	a.also(func(ctx context.Context) error {
		changed, stop := c.watch(ctx, a.log)
		defer stop()
		told := ""
		if now, err := c.parts(); err == nil { // it may have changed before it was watched
			wanted = now
		}
		for {
			select {
			case <-ctx.Done():
				return nil
			case configs <- wanted:
			}
			for next := []parts.Part(nil); next == nil; {
				select {
				case <-ctx.Done():
					return nil
				case <-changed:
				}
				var err error
				if next, err = c.parts(); err != nil {
					if good.Set(0); err.Error() != told {
						a.log.Error("the configuration is refused, and the last one that was right holds", "error", err)
					}
					told = err.Error()
					continue
				}
				good.Set(1)
				wanted, told = next, ""
			}
		}
	})
	a.handle("GET /status", a.status(c.node, supervisor, s))
	a.handle("GET /readyz/{part}", partReady(supervisor))
	a.handle("GET /proxyMode", health.Mode())
	return a.run(ctx, supervisor.Ready)
}

// partReady is /readyz for a part alone.
func partReady(s *parts.Supervisor) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, st := range s.States() {
			switch {
			case st.Name != r.PathValue("part"):
				continue
			case st.Ready:
				fmt.Fprintln(w, "ok")
			default:
				http.Error(w, st.Error, http.StatusServiceUnavailable)
			}
			return
		}
		http.Error(w, "there is no such part, or it is turned off", http.StatusNotFound)
	})
}

// agentConfig is where an agent's configuration is, and what it does not say.
type agentConfig struct{ file, node string }

// partFlags are those of all parts.
type partFlags struct {
	hosts  managerFlags
	proxy  proxyFlags
	routes routesFlags
	plugin install.Config
}

// read returns the sections as the file has them, and with defaults.
func (c *agentConfig) read() (*agentFile, *partFlags, error) {
	p := &partFlags{}
	f := &agentFile{name: c.file, sections: []*section{
		newSection("hosts", "The hosts files of pods, as ropewalk hosts run keeps them.", p.hosts.add),
		newSection("proxy", "Services, as ropewalk proxy leads connections to them.", p.proxy.add),
		newSection("routes", "Pods of this node and of others, as ropewalk routes leads packets to them.", p.routes.add),
		newSection("cni", "The CNI plugin, where the container runtime looks for it.", func(cmd *cobra.Command) {
			cmd.Flags().StringVar(&p.plugin.Plugin, "plugin", besides(install.Name), "the plugin's program")
			cmd.Flags().StringVar(&p.plugin.Dir, "bin-dir", "/opt/cni/bin", "where the runtime looks for plugins")
		}),
	}}
	for _, s := range f.sections {
		own := pflag.NewFlagSet(s.name, pflag.ContinueOnError)
		s.flags.VisitAll(func(flag *pflag.Flag) {
			if flag.Name != "node-name" {
				own.AddFlag(flag)
			}
		})
		s.flags = own
	}
	p.hosts.NodeName, p.proxy.NodeName, p.routes.NodeName = c.node, c.node, c.node
	if c.file == "" {
		return f, p, nil
	}
	return f, p, f.read()
}

// besides returns the path of a file in this program's own folder.
func besides(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}

// parts returns what the file wants. What is wrong in it is an error.
func (c *agentConfig) parts() ([]parts.Part, error) {
	f, p, err := c.read()
	if err != nil {
		return nil, err
	}
	// What the parts themselves refuse is refused here, so that it is not they who fail by it.
	if _, err := hostsmgr.New(p.hosts.config()); err != nil {
		return nil, f.refused("hosts", err)
	}
	proxyConfig, err := p.proxy.config()
	if err == nil {
		_, err = proxy.New(proxyConfig)
	}
	if err != nil {
		return nil, f.refused("proxy", err)
	}
	routesConfig, err := p.routes.config()
	if err != nil {
		return nil, f.refused("routes", err)
	}
	all := map[string]starts{
		"hosts": alone(holdHosts(p.hosts.config()), func(l *slog.Logger, r prometheus.Registerer) (parts.Running, error) {
			return hostsPart(p.hosts.config(), l, r)
		}),
		"proxy": alone(holdNetwork("proxy", "ropewalk agent"), func(l *slog.Logger, r prometheus.Registerer) (parts.Running, error) {
			return proxyPart(proxyConfig, p.proxy.healthz, l, r)
		}),
		"routes": alone(holdNetwork("routes", "ropewalk agent"), func(l *slog.Logger, r prometheus.Registerer) (parts.Running, error) {
			return routesPart(routesConfig, l, r)
		}),
		"cni": alone(holdPlugins(p.plugin.Dir), func(l *slog.Logger, _ prometheus.Registerer) (parts.Running, error) {
			return pluginPart(p.plugin, l)
		}),
	}
	var out []parts.Part
	for _, s := range f.sections {
		if s.enabled {
			out = append(out, parts.Part{Name: s.name, Config: s.own(), Start: all[s.name]})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: all parts are turned off", c.file)
	}
	return out, nil
}

func hostsPart(c hostsmgr.Config, log *slog.Logger, reg prometheus.Registerer) (parts.Running, error) {
	c.Log, c.Registerer = log, reg
	m, err := hostsmgr.New(c)
	if err != nil {
		return parts.Running{}, err
	}
	return parts.Running{Run: m.Run, Ready: m.Ready, Consumer: cluster.Consumer{Interest: hostsmgr.Interest(c.NodeName), Sink: m}}, nil
}

func proxyPart(c proxy.Config, healthz string, log *slog.Logger, reg prometheus.Registerer) (parts.Running, error) {
	c.Log, c.Registerer = log, reg
	p, err := proxy.New(c)
	if err != nil {
		return parts.Running{}, err
	}
	run := []func(context.Context) error{p.Run}
	if healthz != "" {
		l, err := net.Listen("tcp", healthz)
		if err != nil {
			return parts.Running{}, fmt.Errorf("%w; proxy.healthz takes another address", err)
		}
		run = append(run, func(ctx context.Context) error { return (&agent{log: log}).serveHandler(ctx, l, p.Health()) })
	}
	return parts.Running{Run: together(run...), Ready: p.Ready, Consumer: cluster.Consumer{Interest: proxy.Interest(c.NodeName), Sink: p}}, nil
}

func routesPart(c routes.Config, log *slog.Logger, reg prometheus.Registerer) (parts.Running, error) {
	r, run, err := newRoutesParts(c, log, reg)
	if err != nil {
		return parts.Running{}, err
	}
	return parts.Running{Run: together(run...), Ready: r.Ready, Degraded: r.Degraded, Consumer: cluster.Consumer{Interest: routes.Interest(), Sink: r}}, nil
}

// newRoutesParts returns what leads packets to pods, and all that runs for it.
func newRoutesParts(c routes.Config, log *slog.Logger, reg prometheus.Registerer) (*routes.Routes, []func(context.Context) error, error) {
	c.Log, c.Registerer = log, reg
	r, err := routes.New(c)
	if err != nil {
		return nil, nil, err
	}
	left, err := collect.New(collect.Config{DataDir: c.DataDir, Ranges: r.Ranges, Log: log, Registerer: reg})
	if err != nil {
		return nil, nil, err
	}
	whole, err := mend.New(mend.Config{Plugin: r.Plugin, Log: log, Registerer: reg})
	if err != nil {
		return nil, nil, err
	}
	return r, []func(context.Context) error{r.Run, left.Run, whole.Run}, nil
}

func pluginPart(c install.Config, log *slog.Logger) (parts.Running, error) {
	c.Log = log
	i, err := install.New(c)
	if err != nil {
		return parts.Running{}, err
	}
	return parts.Running{Run: i.Run, Ready: i.Ready}, nil
}

// together runs all until the context ends or one of them does, which ends the others. It returns the first error.
func together(all ...func(context.Context) error) func(context.Context) error {
	return func(outer context.Context) error {
		ctx, cancel := context.WithCancelCause(outer)
		defer cancel(nil)
		var wg sync.WaitGroup
		for _, f := range all {
			wg.Go(func() { cancel(f(ctx)) })
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			wg.Wait()
		}()
		<-ctx.Done()
		late := time.After(grace)
		if outer.Err() != nil { // whoever has ended it knows how long to wait
			late = nil
		}
		err := context.Cause(ctx)
		if errors.Is(err, context.Canceled) {
			err = nil
		}
		select {
		case <-ended:
			return err
		case <-late:
			return errors.Join(err, fmt.Errorf("what is to end with it: %w", parts.ErrStuck))
		}
	}
}

// reread is for how long changes of the file are gathered: some editors, and the kubelet, make it in steps.
const reread = 200 * time.Millisecond

// watch tells when the file may have changed, and at SIGHUP.
func (c *agentConfig) watch(ctx context.Context, log *slog.Logger) (changed <-chan struct{}, stop func()) {
	out := make(chan struct{})
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	var events chan fsnotify.Event
	closeWatcher := func() error { return nil }
	if c.file != "" {
		w, err := fsnotify.NewWatcher()
		if err == nil {
			// Not of the file: what is put in its place would not be seen, as the kubelet does with ConfigMaps.
			err = w.Add(filepath.Dir(c.file))
			events, closeWatcher = w.Events, w.Close
			go func() {
				for range w.Errors { // what is lost is read at the next change, or at SIGHUP
				}
			}()
		}
		if err != nil {
			log.Warn("the configuration file is not watched: send SIGHUP when it has changed", "error", err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
			case _, ok := <-events:
				if !ok {
					events = nil
					continue
				}
				select {
				case <-ctx.Done():
				case <-time.After(reread):
				}
			}
			select {
			case <-ctx.Done():
				return
			case out <- struct{}{}:
			}
		}
	}()
	return out, func() {
		signal.Stop(hangup)
		_ = closeWatcher()
		<-done
	}
}

// status serves what the agent is doing, as JSON.
func (a *agent) status(node string, s *parts.Supervisor, source cluster.Source) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		st := agentStatus{Version: buildVersion(), Node: node, SourceAge: source.Age().Seconds(), Parts: []parts.State{}, Kernel: kernelVersion()}
		st.Parts = append(st.Parts, s.States()...) // none, and not null, while it begins
		families, _ := s.Gather()                  // what is wrong with some is logged where all are served
		st.Counts = counts(families)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(st) // to somebody who may have gone
	})
}

// refused says of an error of a part's flags where in the file they are.
func (f *agentFile) refused(part string, err error) error {
	name, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "--"), ":")
	name, _, _ = strings.Cut(name, " ")
	if line := f.lines[part+"."+name]; line != 0 {
		return fmt.Errorf("%s:%d: %s: %w", f.name, line, part, err)
	}
	return fmt.Errorf("%s: %s: %w", f.name, part, err)
}
