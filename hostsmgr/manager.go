// Package hostsmgr keeps the hosts files of a node's pods right while the pods run: the kubelet writes them when a container
// starts, and this package whenever something that belongs in them changes, and again after somebody else has written to
// them.
//
// state decides what belongs in a file, podfile reads and writes what may be in the hands of a hostile pod, worker brings them
// together. The bytes are hostsfile's. The package never makes a file or directory, and never deletes one: a pod's directory
// is the kubelet's, which makes the file before it starts a container and has to find the directory empty when it removes it.
// A file that is not there is one that no container has mounted.
package hostsmgr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

// Config says what a Manager keeps, and where. Empty fields stand for the kubelet's defaults.
type Config struct {
	// KubeletDir is the kubelet's --root-dir, absolute; /var/lib/kubelet if empty. Pods' files are in pods/ below it.
	KubeletDir string
	// NodeName is for the log.
	NodeName string
	// ClusterDomain is the kubelet's clusterDomain; cluster.local if empty.
	ClusterDomain string
	// NodeHostsFile is what pods on the node's network have; /etc/hosts if empty. In a container, mount the directory that it is
	// in: of a mounted file, one only sees what it was before an editor put another in its place.
	NodeHostsFile string
	// MaxSize is the size in bytes that no hosts file grows beyond, and that no larger one is read of; 1 MiB if 0.
	MaxSize int
	// NodeBlock asks for the aliases of the cluster in a marked block of NodeHostsFile. The block stays when Run ends.
	NodeBlock bool
	// ClusterNamespaces are the namespaces whose ConfigMaps may be meant for the cluster; nil means all. Whoever may write such a
	// ConfigMap decides what names mean in every pod.
	ClusterNamespaces []string
	// Log is slog.Default() if nil.
	Log *slog.Logger
	// Registerer takes the metrics, ropewalk_hosts_*; nil for none.
	Registerer prometheus.Registerer
}

// queueLen is how many changes wait for the worker before Apply does.
const queueLen = 256

// ErrUsed says that a Manager was to run, or to check, a second time.
var ErrUsed = errors.New("a Manager runs or checks once")

// Manager keeps hosts files. It is a cluster.Sink.
type Manager struct {
	config  Config
	metrics *metrics
	changes chan cluster.Change
	done    chan struct{} // closed when nobody takes changes any more
	used    atomic.Bool
	notYet  atomic.Pointer[string] // what Ready says; nil when ready
}

// New checks config and returns a Manager that does nothing before Run or Check.
func New(config Config) (*Manager, error) {
	c := config
	defaults := []struct {
		field *string
		value string
	}{
		{&c.KubeletDir, "/var/lib/kubelet"}, {&c.ClusterDomain, "cluster.local"}, {&c.NodeHostsFile, "/etc/hosts"},
	}
	for _, d := range defaults {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	c.ClusterDomain = strings.TrimSuffix(c.ClusterDomain, ".")
	for _, path := range []*string{&c.KubeletDir, &c.NodeHostsFile} {
		if !filepath.IsAbs(*path) {
			return nil, fmt.Errorf("%q: want an absolute path", *path)
		}
		*path = filepath.Clean(*path)
	}
	if c.MaxSize == 0 {
		c.MaxSize = podfile.DefaultMaxSize
	}
	if c.MaxSize < 4096 {
		return nil, fmt.Errorf("a limit of %d bytes is too small for hosts files; want 4096 or more", c.MaxSize)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.NodeName != "" {
		c.Log = c.Log.With("node", c.NodeName)
	}
	metrics, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	m := &Manager{config: c, metrics: metrics, changes: make(chan cluster.Change, queueLen), done: make(chan struct{})}
	m.notReady("not started")
	return m, nil
}

// Interest returns what a Manager for the node wants to hear of: the node's pods, and all ConfigMaps with aliases.
func Interest(nodeName string) cluster.Interest {
	return cluster.Interest{
		Kinds:           kinds,
		PodHosts:        true,
		NodeName:        nodeName,
		ConfigMapLabels: hostsfile.AliasesKey,
	}
}

// Apply implements cluster.Sink. It blocks while the worker is behind, or not started, and drops changes once Run has ended or
// Check has seen all.
func (m *Manager) Apply(c cluster.Change) {
	select {
	case m.changes <- c:
	case <-m.done:
	}
}

// Ready returns nil when every pod of the first listing has been seen to: its file is right, or not there yet, or failed, which
// the log and the metrics tell. One hostile pod does not make a node unready.
func (m *Manager) Ready() error {
	if s := m.notYet.Load(); s != nil {
		return errors.New(*s)
	}
	return nil
}

func (m *Manager) notReady(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	m.notYet.Store(&s)
}

// Run keeps the files until ctx ends, and returns nil then. It fails if it cannot start. It works in one goroutine, besides
// inotify's: all files are on the file system of the kubelet's directory, and nothing in it makes an open wait, so there
// is nothing that several would help against.
func (m *Manager) Run(ctx context.Context) error {
	if m.used.Swap(true) {
		return ErrUsed
	}
	defer close(m.done)
	return newWorker(m).run(ctx)
}

func (m *Manager) podsDir() string { return filepath.Join(m.config.KubeletDir, "pods") }
