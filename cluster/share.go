package cluster

import (
	"errors"
	"fmt"
)

// Consumer is a Sink, and what it wants to hear of.
type Consumer struct {
	Interest Interest
	Sink     Sink
}

// Share has consumers hear of a cluster from one source, so that each kind is watched once: it returns the interest and the sink of all of
// them together, for a Source's Run. Each hears of what it would hear of by itself; objects may have details that another has asked for. It
// is an error if consumers select differently from what they have in common; but of nodes some may want one, and some all.
func Share(consumers ...Consumer) (Interest, Sink, error) {
	var all Interest
	selected := map[string]bool{}
	nodes := false
	for _, c := range consumers {
		i := c.Interest
		has := func(kinds ...Kind) bool { return i.Kinds&KindsOf(kinds...) != 0 }
		for _, s := range []struct {
			what     string
			matters  bool
			have     *string
			selector string
		}{
			{"Labels", has(KindService, KindSlice, KindPod), &all.Labels, i.Labels},
			{"NamespaceLabels", has(KindNamespace), &all.NamespaceLabels, i.NamespaceLabels},
			{"ServiceLabels", has(KindService), &all.ServiceLabels, i.ServiceLabels},
			{"SliceLabels", has(KindSlice), &all.SliceLabels, i.SliceLabels},
			{"ConfigMapLabels", has(KindConfigMap), &all.ConfigMapLabels, i.ConfigMapLabels},
			{"NodeName", has(KindPod) || i.OneNode, &all.NodeName, i.NodeName},
		} {
			if !s.matters {
				continue
			}
			if selected[s.what] && *s.have != s.selector {
				return Interest{}, nil, fmt.Errorf("consumers have different %s: %q and %q", s.what, *s.have, s.selector)
			}
			*s.have, selected[s.what] = s.selector, true
		}
		if has(KindService) && all.Kinds.Has(KindService) && all.NoHeadless != i.NoHeadless {
			return Interest{}, nil, errors.New("some consumers want headless services, and others do not")
		}
		all.NoHeadless = all.NoHeadless || i.NoHeadless
		all.PodLabels, all.PodHosts = all.PodLabels || i.PodLabels, all.PodHosts || i.PodHosts
		all.Proxy, all.NodeNet = all.Proxy || i.Proxy, all.NodeNet || i.NodeNet
		if has(KindNode) {
			all.OneNode, nodes = i.OneNode && (all.OneNode || !nodes), true
		}
		all.Kinds |= i.Kinds
	}
	return all, shared(consumers), nil
}

// shared hands on to each what is of its kinds.
type shared []Consumer

// Apply implements Sink.
func (s shared) Apply(c Change) {
	for _, to := range s {
		i := to.Interest
		another := c.Kind == KindNode && i.OneNode && (c.Op == Upsert || c.Op == Delete) && c.Key.Name != i.NodeName
		if i.Kinds.Has(c.Kind) && !another {
			to.Sink.Apply(c)
		}
	}
}
