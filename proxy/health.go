package proxy

import (
	"net/http"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/proxy/frontends"
	"github.com/ropewalk-net/ropewalk/proxy/health"
)

// late is for how long changes may wait to be in the kernel before the node is not healthy: kube-proxy's, twice its sync period.
const late = time.Minute

// Health serves /healthz and /livez.
func (p *Proxy) Health() http.Handler { return p.healthNode().Handler() }

func (p *Proxy) healthNode() health.Node {
	return health.Node{Late: late, State: func() health.State {
		p.mu.Lock()
		defer p.mu.Unlock()
		s := health.State{Updated: p.synced, Pending: p.waiting}
		if !p.builder.Synced() { // what waits is to come from the API server
			s.Pending = time.Time{}
		}
		return s
	}}
}

// tellHealth tells the servers of healthCheckNodePorts what is different.
func (p *Proxy) tellHealth(d frontends.Diff) {
	p.servers.SetAddresses(p.node.Addresses)
	if len(d.Health) == 0 {
		return
	}
	put := map[cluster.Key]health.Check{}
	var gone []cluster.Key
	for k, h := range d.Health {
		if h.Port == 0 {
			gone = append(gone, k)
		} else {
			put[k] = health.Check{Port: h.Port, LocalEndpoints: h.Local}
		}
	}
	p.servers.Update(put, gone)
}
