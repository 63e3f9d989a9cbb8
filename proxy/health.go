package proxy

import (
	"net/http"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/proxy/health"
)

// late is for how long changes may wait to be in the kernel before the node is not healthy: kube-proxy's, twice its sync period.
const late = time.Minute

// Health serves /healthz and /livez.
func (p *Proxy) Health() http.Handler { return p.healthNode().Handler() }

func (p *Proxy) healthNode() health.Node {
	return health.Node{Late: max(late, 2*p.config.MinSync), State: func() health.State {
		p.mu.Lock()
		defer p.mu.Unlock()
		s := health.State{Updated: p.synced, Pending: p.behind()}
		if n := p.builder.Node(); n != nil && n.Net != nil {
			s.Leaving = n.Net.Leaving
		}
		if !p.builder.Synced() { // what waits is to come from the API server
			s.Pending = time.Time{}
		}
		return s
	}}
}

// tellHealth tells the servers of healthCheckNodePorts what is different: what they say is what the kernel does.
func (p *Proxy) tellHealth() {
	p.servers.SetAddresses(p.node.Addresses)
	if len(p.checks) == 0 {
		return
	}
	put := map[cluster.Key]health.Check{}
	var gone []cluster.Key
	for k, h := range p.checks {
		if h.Port == 0 {
			gone = append(gone, k)
		} else {
			put[k] = health.Check{Port: h.Port, LocalEndpoints: h.Local}
		}
	}
	p.servers.Update(put, gone)
	clear(p.checks)
}
