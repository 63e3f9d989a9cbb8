package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/stub"
)

const (
	// firstPause and lastPause are between attempts to reach the runtime.
	firstPause, lastPause = 100 * time.Millisecond, 5 * time.Second
	// registerWithin bounds how long a runtime may take to take the plugin in.
	registerWithin = 10 * time.Second
)

// ErrNotConnected says that the plugin waits for the runtime.
var ErrNotConnected = errors.New("not connected to the runtime")

// connection is true while a runtime has the plugin.
type connection struct{ atomic.Bool }

// Ready returns nil while a runtime asks the plugin, else an error that wraps ErrNotConnected.
func (p *Plugin) Ready() error {
	if p.state.Load() {
		return nil
	}
	return fmt.Errorf("%w at %s", ErrNotConnected, p.Socket)
}

// Run serves the runtime until ctx ends, and connects again whenever the connection is lost. It returns nil.
func (p *Plugin) Run(ctx context.Context) error {
	pause, told := firstPause, ""
	for ctx.Err() == nil {
		served, err := p.serve(ctx)
		if ctx.Err() != nil {
			break
		}
		if served {
			pause, told = firstPause, ""
			p.Log.Warn("the runtime has ended the connection: containers start as they are until it is back", "socket", p.Socket, "error", err)
		} else if err.Error() != told {
			told = err.Error()
			p.Log.Error("no connection to the runtime, trying on", "socket", p.Socket, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
	return nil
}

// serve holds one connection for as long as it lasts. served says that it was one.
func (p *Plugin) serve(ctx context.Context) (served bool, err error) {
	conn, err := net.Dial("unix", p.Socket)
	if err != nil {
		return false, fmt.Errorf("%w; is NRI on in the runtime's configuration, and its socket there?", err)
	}
	defer conn.Close()
	s := &session{Plugin: p}
	defer p.disconnected()
	st, err := stub.New(s, stub.WithPluginName("ropewalk"), stub.WithPluginIdx(p.Index), stub.WithConnection(conn),
		stub.WithLogger(logger{p.Log}), stub.WithFailurePolicy(&api.FailurePolicy{KeepConnected: true}))
	if err != nil {
		return false, err
	}
	if err := s.start(ctx, st, conn); err != nil {
		return false, err
	}
	p.Log.Info("connected to the runtime", "socket", p.Socket)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		st.Wait()
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	st.Stop()
	<-ended
	return true, errors.New("connection closed")
}

func (p *Plugin) disconnected() {
	p.state.Store(false)
	p.metrics.connected.Set(0)
}

// session is what a runtime calls, in one connection.
type session struct {
	*Plugin
	ended atomic.Bool
}

// start registers the plugin. The stub then waits without end for the runtime to configure it, so that it is us who tell it
// that a runtime is gone, or does not.
func (s *session) start(ctx context.Context, st stub.Stub, conn net.Conn) error {
	started := make(chan error, 1)
	go func() { started <- st.Start(ctx) }()
	timer := time.NewTimer(registerWithin)
	defer timer.Stop()
	select {
	case err := <-started:
		return err
	case <-ctx.Done():
	case <-timer.C:
	}
	s.ended.Store(true)
	conn.Close()
	select {
	case <-started:
	case <-time.After(time.Second): // it is past what a closed connection ends
		st.(api.PluginService).Configure(context.WithoutCancel(ctx), &api.ConfigureRequest{})
		<-started
	}
	return errors.New("the runtime takes connections, but does not register plugins")
}

// Configure implements stub.ConfigureInterface.
func (s *session) Configure(_ context.Context, _, runtime, version string) (api.EventMask, error) {
	if s.ended.Load() {
		return 0, errors.New("the connection is over")
	}
	s.Log.Info("the runtime takes the plugin", "runtime", runtime, "version", version)
	return 0, nil // all that session has methods for
}

// Synchronize implements stub.SynchronizeInterface: these are all pods that there are.
func (s *session) Synchronize(_ context.Context, pods []*api.PodSandbox, _ []*api.Container) ([]*api.ContainerUpdate, error) {
	known := map[string]bool{}
	for _, pod := range pods {
		known[pod.GetId()] = true
	}
	if err := s.keepOnly(known); err != nil {
		s.Log.Warn("hosts files of pods that are gone stay", "error", err)
	}
	s.state.Store(true)
	s.metrics.connected.Set(1)
	return nil, nil
}

// CreateContainer implements stub.CreateContainerInterface. An error of it would keep the container from being created.
func (s *session) CreateContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	return s.create(ctx, pod, container), nil, nil
}

// RemovePodSandbox implements stub.RemovePodInterface.
func (s *session) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	if err := s.forget(pod.GetId()); err != nil {
		s.Log.Warn("the hosts file of a pod that is gone stays", "namespace", pod.GetNamespace(), "pod", pod.GetName(), "error", err)
	}
	return nil
}

// logger hands the stub's log on. What it has to say at every connection is for those who look for it.
type logger struct{ log *slog.Logger }

var _ nrilog.Logger = logger{}

func (l logger) Debugf(_ context.Context, format string, args ...any) {
	l.say(slog.LevelDebug, format, args)
}
func (l logger) Infof(_ context.Context, format string, args ...any) {
	l.say(slog.LevelDebug, format, args)
}
func (l logger) Warnf(_ context.Context, format string, args ...any) {
	l.say(slog.LevelWarn, format, args)
}
func (l logger) Errorf(_ context.Context, format string, args ...any) {
	l.say(slog.LevelError, format, args)
}

func (l logger) say(level slog.Level, format string, args []any) {
	if ctx := context.Background(); l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, "nri: "+fmt.Sprintf(format, args...))
	}
}
