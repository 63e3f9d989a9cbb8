// Package links keeps what a source says about services, for the variables by which pods find them (Kubernetes calls them service
// links). What the variables are is cluster/env's part.
package links

import (
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/env"
)

// Services returns what to ask a source for, to know the variables that the kubelet sets.
func Services() cluster.Interest {
	return cluster.Interest{Kinds: cluster.KindsOf(cluster.KindService)}
}

// OfNode returns what to ask sources for, to know the variables in more of a node's pods. The second one comes from a source of
// its own, since its labels would select services, too: of slices, those of headless services are enough.
func OfNode(node string) [2]cluster.Interest {
	return [2]cluster.Interest{
		{Kinds: cluster.KindsOf(cluster.KindService, cluster.KindPod), PodHosts: true, NodeName: node},
		{Kinds: cluster.KindsOf(cluster.KindSlice), Labels: "service.kubernetes.io/headless"},
	}
}

// Table is a cluster.Sink that keeps services, slices and pods. It is safe for use by several goroutines. Make it with New.
type Table struct {
	// allowed are the namespaces that pods of others may ask for; nil means all.
	allowed []string
	synced  chan struct{}

	mu      sync.Mutex
	waiting cluster.Kinds
	kinds   map[cluster.Kind]*kind
}

// kind is all objects of a kind, by namespace and name.
type kind struct {
	objects map[string]map[string]cluster.Object
	// seen are those of a listing that is not complete; nil if there is none.
	seen map[cluster.Key]bool
}

// New returns a Table that is synced once all of these kinds are. Pods may ask for services of the allowed namespaces, nil means
// all, besides their own.
func New(allowed []string, kinds ...cluster.Kind) *Table {
	t := &Table{allowed: allowed, synced: make(chan struct{}), waiting: cluster.KindsOf(kinds...), kinds: map[cluster.Kind]*kind{}}
	for _, k := range kinds {
		t.kinds[k] = &kind{objects: map[string]map[string]cluster.Object{}}
	}
	return t
}

// Synced is closed once everything has been delivered.
func (t *Table) Synced() <-chan struct{} { return t.synced }

// Apply implements cluster.Sink.
func (t *Table) Apply(c cluster.Change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.kinds[c.Kind]
	if k == nil {
		return
	}
	switch c.Op {
	case cluster.Upsert:
		if k.objects[c.Key.Namespace] == nil {
			k.objects[c.Key.Namespace] = map[string]cluster.Object{}
		}
		k.objects[c.Key.Namespace][c.Key.Name] = c.Object
		if k.seen != nil {
			k.seen[c.Key] = true
		}
	case cluster.Delete:
		k.drop(c.Key)
	case cluster.Replace:
		k.seen = map[cluster.Key]bool{}
	case cluster.Synced:
		k.sweep()
		if was := t.waiting; was.Has(c.Kind) {
			if t.waiting &^= cluster.KindsOf(c.Kind); t.waiting == 0 {
				close(t.synced)
			}
		}
	}
}

func (k *kind) drop(key cluster.Key) {
	delete(k.objects[key.Namespace], key.Name)
	if len(k.objects[key.Namespace]) == 0 {
		delete(k.objects, key.Namespace)
	}
}

// sweep ends a listing: what it did not name is gone.
func (k *kind) sweep() {
	if k.seen == nil {
		return
	}
	for namespace, objects := range k.objects {
		for name := range objects {
			if key := (cluster.Key{Namespace: namespace, Name: name}); !k.seen[key] {
				k.drop(key)
			}
		}
	}
	k.seen = nil
}

// Variables returns what the kubelet sets for pods of a namespace, as "NAME=value"; links is spec.enableServiceLinks.
func (t *Table) Variables(namespace string, links bool) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return env.Variables(of[*cluster.Service](t, cluster.KindService, []string{namespace, "default"}), namespace, links)
}

// Extra returns variables that the kubelet leaves out, for a pod that asks for those of namespaces. Those of its own namespace are
// left aside as long as the pod is not known, and so not whether it wants service links. left counts what was too large.
func (t *Table) Extra(pod cluster.Key, namespaces []string) (vars []string, left int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	links := false
	if p, ok := t.get(cluster.KindPod, pod).(*cluster.Pod); ok {
		links = p.Hosts != nil && !p.Hosts.NoServiceLinks
	}
	more := slices.DeleteFunc(slices.Clone(namespaces), func(n string) bool {
		return t.allowed != nil && n != pod.Namespace && !slices.Contains(t.allowed, n)
	})
	all := append([]string{pod.Namespace, "default"}, more...)
	return env.Extra(of[*cluster.Service](t, cluster.KindService, all), of[*cluster.Slice](t, cluster.KindSlice, all), pod.Namespace, links, more)
}

func (t *Table) get(k cluster.Kind, key cluster.Key) cluster.Object {
	if t.kinds[k] == nil {
		return nil
	}
	return t.kinds[k].objects[key.Namespace][key.Name]
}

// of returns the objects of a kind in namespaces, each once. The caller holds t.mu.
func of[T cluster.Object](t *Table, k cluster.Kind, namespaces []string) iter.Seq[T] {
	return func(yield func(T) bool) {
		if t.kinds[k] == nil {
			return
		}
		for _, n := range slices.Compact(slices.Sorted(slices.Values(namespaces))) {
			for o := range maps.Values(t.kinds[k].objects[n]) {
				if v, ok := o.(T); ok && !yield(v) {
					return
				}
			}
		}
	}
}
