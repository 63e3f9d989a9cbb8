package ropewalk

import (
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metrics"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/coredns/coredns/plugin/pkg/rcode"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/fastpath"
)

var (
	fastQueries = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "fastpath_queries_total",
		Help: "Queries that came to the fast path's sockets: result hit was answered there, miss was handed to the plugin " +
			"chain, dropped was given up since too many misses were being worked on.",
	}, []string{"result"})

	fastHits    = fastQueries.WithLabelValues("hit")
	fastMisses  = fastQueries.WithLabelValues("miss")
	fastDropped = fastQueries.WithLabelValues("dropped")
)

// observer counts the answers of one socket of the fast path in the metrics of CoreDNS's prometheus plugin, for server
// blocks that have it.
type observer struct {
	server string
	routes []*routeMetrics // nil without prometheus
}

// routeMetrics are those of one zone of the server.
type routeMetrics struct {
	// next is the plugin behind prometheus, which is what it takes for the one that answered.
	next   string
	labels []string // the zones that prometheus knows
	zones  *fastpath.Suffixes
	series []*series // by the index in labels, and one for no zone
}

// series are the metrics with one value of the label zone, looked up once.
type series struct {
	server, zone, plugin                string
	requests                            [2][256]prometheus.Counter // by family and type
	rcodes                              [16]prometheus.Counter
	do                                  prometheus.Counter
	duration, requestSize, responseSize prometheus.Observer
}

// newObserver returns the observer for a server whose zones have these configurations.
func newObserver(server string, routes []*dnsserver.Config) *observer {
	o := &observer{server: server, routes: make([]*routeMetrics, len(routes))}
	for i, c := range routes {
		m, ok := c.Handler("prometheus").(*metrics.Metrics)
		if !ok || m.Next == nil {
			continue
		}
		r := &routeMetrics{next: m.Next.Name(), labels: m.ZoneNames()}
		wires := make([][]byte, len(r.labels))
		for k, z := range r.labels {
			wires[k] = wireZone(z)
		}
		r.zones = fastpath.NewSuffixes(wires...)
		r.series = make([]*series, len(r.labels)+1)
		o.routes[i] = r
	}
	return o
}

// Observe implements fastpath.Observer.
func (o *observer) Observe(samples []fastpath.Sample, received time.Time, missed int) {
	if missed > 0 {
		fastMisses.Add(float64(missed))
	}
	if len(samples) == 0 {
		return
	}
	fastHits.Add(float64(len(samples)))
	seconds := time.Since(received).Seconds()
	for i := range samples {
		s := &samples[i]
		if r := o.routes[s.Route]; r != nil {
			r.of(o.server, s.Name).observe(s, seconds)
		}
	}
}

// of returns the metrics for a name.
func (r *routeMetrics) of(server string, name []byte) *series {
	i := 0
	if len(r.labels) != 1 || r.labels[0] != "." {
		i = r.zones.Match(name)
	}
	label := "."
	if i >= 0 {
		label = r.labels[i]
	} else {
		i = len(r.labels)
	}
	if r.series[i] == nil {
		r.series[i] = &series{
			server: server, zone: label, plugin: r.next,
			duration:     vars.RequestDuration.WithLabelValues(server, label, ""),
			requestSize:  vars.RequestSize.WithLabelValues(server, label, "", "udp"),
			responseSize: vars.ResponseSize.WithLabelValues(server, label, "", "udp"),
		}
	}
	return r.series[i]
}

// observe is vars.Report.
func (m *series) observe(s *fastpath.Sample, seconds float64) {
	fam, family := 0, "1"
	if s.IPv6 {
		fam, family = 1, "2"
	}
	t := s.Type
	if t > 255 {
		t = 0
	}
	if m.requests[fam][t] == nil {
		m.requests[fam][t] = vars.RequestCount.WithLabelValues(m.server, m.zone, "", "udp", family, typeLabel(t))
	}
	if m.rcodes[s.Rcode] == nil {
		m.rcodes[s.Rcode] = vars.ResponseRcode.WithLabelValues(m.server, m.zone, "", rcode.ToString(s.Rcode), m.plugin)
	}
	if s.DO {
		if m.do == nil {
			m.do = vars.RequestDo.WithLabelValues(m.server, m.zone, "")
		}
		m.do.Inc()
	}
	m.requests[fam][t].Inc()
	m.rcodes[s.Rcode].Inc()
	m.duration.Observe(seconds)
	m.responseSize.Observe(float64(s.ReplyLen))
	m.requestSize.Observe(float64(s.QueryLen))
}

// typeLabel is the label that vars.Report gives to a type.
func typeLabel(t uint16) string {
	switch t {
	case dns.TypeAAAA, dns.TypeA, dns.TypeCNAME, dns.TypeDNSKEY, dns.TypeDS, dns.TypeMX, dns.TypeNSEC3, dns.TypeNSEC, dns.TypeNS,
		dns.TypePTR, dns.TypeRRSIG, dns.TypeSOA, dns.TypeSRV, dns.TypeTXT, dns.TypeHTTPS, dns.TypeSVCB:
		return dns.Type(t).String()
	}
	return "other"
}
