package hostsmgr

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

// Render returns what belongs in a pod's hosts file when these are all ConfigMaps that there are. Of c, it looks at ClusterDomain,
// ClusterNamespaces and MaxSize. node is the node's hosts file, for pods on its network. report is told of what cannot be used and is
// left out. It fails as hostsfile.Render does, and with ErrMarkers.
func Render(c Config, p *cluster.Pod, maps []*cluster.ConfigMap, node []byte, report func(error)) ([]byte, error) {
	s := newState(strings.TrimSuffix(c.ClusterDomain, "."), c.ClusterNamespaces, cmp.Or(c.MaxSize, podfile.DefaultMaxSize))
	var last error
	s.report = func(kind cluster.Kind, key cluster.Key, err error) {
		last = fmt.Errorf("%s %s: %w", kind, key, err)
		report(last)
	}
	for _, m := range maps {
		s.take(cluster.Upserted(m, time.Time{}))
	}
	s.take(cluster.Upserted(p, time.Time{}))
	if s.pods[p.Key()] == nil {
		return nil, last
	}
	rest, err := WithoutBlock(node)
	if err != nil {
		return nil, err
	}
	s.setNode(rest)
	return s.want(s.pods[p.Key()])
}
