// Package nri is a plugin of container runtimes (NRI: containerd 1.7 and later, CRI-O 1.26 and later) that gives containers, as they
// are created, what the kubelet leaves out: the aliases of the pod's annotation from the first instruction on, a hosts file where
// nobody has made one, and variables of services that the kubelet makes none of.
//
// It never fails a container's creation and never holds it up for long: what is not known in time is left out, said and counted. It
// keeps nothing up to date afterwards; that is the manager's part.
package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/env"
	"github.com/ropewalk-net/ropewalk/hostsmgr/amend"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

const (
	// answerWithin bounds the work for a container; the runtime waits 2 s (api.DefaultPluginRequestTimeout) for all that the
	// request takes.
	answerWithin = time.Second
	// atOnce bounds the containers that are worked on: those that a dead disk holds up are not to be more and more.
	atOnce = 32
)

// Config says what a plugin works with.
type Config struct {
	// Socket is the runtime's, Index is the plugin's place among others, of two digits; empty for NRI's own place and "50".
	Socket, Index string
	// KubeletDir is the kubelet's root directory.
	KubeletDir string
	// StateDir is where hosts files of the plugin's own are kept, by the same path as the runtime sees; empty for none of them.
	StateDir string
	// ClusterDomain, and NodeHostsFile, which pods on the node's network get, are as for the kubelet.
	ClusterDomain, NodeHostsFile string
	// MaxSize bounds a hosts file, in bytes; 0 is podfile.DefaultMaxSize.
	MaxSize int
	// Variables, if set, returns variables as "NAME=value" for a pod that asks for those of namespaces, and how many there are
	// besides that no environment has room for. It must not wait for anything.
	Variables func(pod cluster.Key, namespaces []string) (vars []string, left int)
	// Log defaults to slog.Default(), Registerer to none.
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Plugin is made by New.
type Plugin struct {
	Config
	metrics metrics
	working chan struct{}
	state   connection
}

// New checks c. It connects to nobody.
func New(c Config) (*Plugin, error) {
	if c.Socket == "" {
		c.Socket = api.DefaultSocketPath
	}
	if c.Index == "" {
		c.Index = "50"
	}
	if err := api.CheckPluginIndex(c.Index); err != nil {
		return nil, fmt.Errorf("index %q: want two digits as 50, by which the runtime orders its plugins", c.Index)
	}
	for what, path := range map[string]string{"kubelet directory": c.KubeletDir, "state directory": c.StateDir} {
		if path != "" && !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%s %q: want an absolute path, which is the runtime's, too", what, path)
		}
	}
	if c.MaxSize <= 0 {
		c.MaxSize = podfile.DefaultMaxSize
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	p := &Plugin{Config: c, working: make(chan struct{}, atOnce)}
	return p, p.metrics.register(c.Registerer)
}

// create works out what to change about a container, within the time that there is for it. It returns nil for nothing.
func (p *Plugin) create(ctx context.Context, pod *api.PodSandbox, container *api.Container) *api.ContainerAdjustment {
	log := p.Log.With("namespace", pod.GetNamespace(), "pod", pod.GetName(), "container", container.GetName())
	select {
	case p.working <- struct{}{}:
	default:
		p.metrics.errors.Inc()
		log.Error("the container starts as it is: too many before it are held up")
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	done := make(chan *api.ContainerAdjustment, 1)
	go func() { // files may be on a disk that does not answer
		defer func() { <-p.working }()
		a, err := p.adjust(pod, container)
		if err != nil {
			p.metrics.errors.Inc()
			log.Error("the container starts without some of what it should have", "error", err)
		}
		done <- a
	}()
	select {
	case a := <-done:
		return a
	case <-ctx.Done():
		p.metrics.errors.Inc()
		log.Error("the container starts as it is: what it should have was not there in time", "within", answerWithin)
		return nil
	}
}

// adjust does what there is to do for a container. An error does not keep the rest from being done.
func (p *Plugin) adjust(pod *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, error) {
	a := &api.ContainerAdjustment{}
	hostsErr := p.hosts(a, pod, container)
	envErr := p.environment(a, pod, container)
	if len(a.Mounts) == 0 && len(a.Env) == 0 {
		a = nil
	}
	return a, errors.Join(hostsErr, envErr)
}

// place says whose a container's hosts file is.
type place int

const (
	// foreign is the pod's author's, or nobody's that we know.
	foreign place = iota
	kubelets
	runtimes
	missing
)

// placeOf looks at the mount that a container sees at /etc/hosts. uid is the pod's, for kubelets.
func placeOf(kubeletDir, sandbox string, mounts []*api.Mount) (where place, uid string) {
	where = missing
	for _, m := range mounts {
		if filepath.Clean(m.GetDestination()) != "/etc/hosts" {
			continue
		}
		source := filepath.Clean(m.GetSource())
		if of, ok := podfile.UID(kubeletDir, source); ok {
			where, uid = kubelets, of
		} else if sandbox != "" && slices.Contains(strings.Split(source, "/"), sandbox) {
			where = runtimes
		} else {
			where = foreign
		}
	}
	return where, uid
}

// hosts sees to the container's hosts file.
func (p *Plugin) hosts(a *api.ContainerAdjustment, pod *api.PodSandbox, container *api.Container) error {
	aliases, err := annotated(pod.GetAnnotations())
	if err != nil {
		return err
	}
	switch where, uid := placeOf(p.KubeletDir, pod.GetId(), container.GetMounts()); {
	case where == kubelets && uid == pod.GetUid():
		changed, err := amend.File(p.KubeletDir, uid, aliases, p.MaxSize)
		if changed {
			p.metrics.aliases.Inc()
		}
		return err
	case where == kubelets:
		return fmt.Errorf("it has the hosts file of pod %q, which stays as it is", uid)
	case where == missing, where == runtimes && len(aliases) > 0:
		return p.mount(a, pod, aliases, where == runtimes)
	}
	return nil
}

// mount has the container see a file of ours at /etc/hosts.
func (p *Plugin) mount(a *api.ContainerAdjustment, pod *api.PodSandbox, aliases []cluster.HostAlias, instead bool) error {
	if p.StateDir == "" {
		return nil
	}
	path, err := p.writeOwn(pod, aliases)
	if errors.Is(err, hostsfile.ErrNoAddress) && len(aliases) == 0 {
		return nil // nothing is lost: it would have had no file, either
	} else if err != nil {
		return err
	}
	if instead {
		a.RemoveMount("/etc/hosts")
	}
	// As the kubelet mounts it: a container may write to it.
	a.AddMount(&api.Mount{Destination: "/etc/hosts", Type: "bind", Source: path, Options: []string{"rbind", "rprivate", "rw"}})
	p.metrics.files.Inc()
	return nil
}

// annotated returns the aliases that a pod's annotation has.
func annotated(annotations map[string]string) ([]cluster.HostAlias, error) {
	value, ok := annotations[hostsfile.AliasesKey]
	if !ok {
		return nil, nil
	}
	aliases, err := hostsfile.ParseAnnotation(value)
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", hostsfile.AliasesKey, err)
	}
	return aliases, nil
}

// environment adds variables. Those that the container has, from its image, its pod or the kubelet, stay.
func (p *Plugin) environment(a *api.ContainerAdjustment, pod *api.PodSandbox, container *api.Container) error {
	if p.Variables == nil {
		return nil
	}
	namespaces, err := env.ParseNamespaces(pod.GetAnnotations()[env.NamespacesKey])
	if err != nil {
		err = fmt.Errorf("annotation %s: %w", env.NamespacesKey, err)
	}
	has := map[string]bool{}
	for _, v := range container.GetEnv() {
		name, _, _ := strings.Cut(v, "=")
		has[name] = true
	}
	vars, left := p.Variables(cluster.Key{Namespace: pod.GetNamespace(), Name: pod.GetName()}, namespaces)
	if left > 0 {
		err = errors.Join(err, fmt.Errorf("%d variables are too large: name fewer namespaces in %s", left, env.NamespacesKey))
	}
	for _, v := range vars {
		if name, value, ok := strings.Cut(v, "="); ok && !has[name] {
			a.AddEnv(name, value)
		}
	}
	if len(a.Env) > 0 {
		p.metrics.variables.Inc()
	}
	return err
}
