package proxy

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	duration, latency          prometheus.Histogram
	rivals, refused            prometheus.Counter
	deleted, conntrackFailures prometheus.Counter
	last                       prometheus.Gauge
}

// newMetrics makes the metrics and registers them, unless r is nil.
func newMetrics(r prometheus.Registerer, p *Proxy) (*metrics, error) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "ropewalk", Subsystem: "proxy", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "ropewalk", Subsystem: "proxy", Name: name, Help: help, Buckets: buckets, NativeHistogramBucketFactor: 1.1,
		})
	}
	m := &metrics{
		duration: histogram("sync_duration_seconds", "Time from taking what has changed to the kernel's commit.",
			prometheus.ExponentialBuckets(0.0001, 4, 10)),
		latency: histogram("network_programming_seconds",
			"Time from the change that led to a service's endpoints (annotation endpoints.kubernetes.io/last-change-trigger-time) to the kernel's commit.",
			prometheus.ExponentialBuckets(0.01, 2.5, 12)),
		rivals:            counter("rivals_total", "Services that asked for an address and port that another one has."),
		refused:           counter("refused_total", "Addresses and ports of services that no rules could be made for."),
		deleted:           counter("conntrack_deleted_total", "Entries of UDP deleted since they led where no service leads any more."),
		conntrackFailures: counter("conntrack_failures_total", "Failures to delete such entries."),
		last: prometheus.NewGauge(prometheus.GaugeOpts(opts("last_sync_timestamp_seconds",
			"When the last transaction succeeded, as a Unix time."))),
	}
	if r == nil {
		return m, nil
	}
	var err error
	for _, c := range []prometheus.Collector{m.duration, m.latency, m.rivals, m.refused, m.deleted, m.conntrackFailures, m.last, &collector{p: p}} {
		err = errors.Join(err, r.Register(c))
	}
	return m, err
}

// pass notes a transaction. Triggers from before the agent started say nothing about it.
func (m *metrics) pass(took time.Duration, err error, triggers []time.Time, started time.Time) {
	if err != nil {
		return
	}
	m.duration.Observe(took.Seconds())
	m.last.SetToCurrentTime()
	for _, t := range triggers {
		if t.After(started) {
			m.latency.Observe(time.Since(t).Seconds())
		}
	}
}

// collector tells what there is at the moment that somebody asks.
type collector struct{ p *Proxy }

var (
	pendingDesc      = prometheus.NewDesc("ropewalk_proxy_pending_services", "Services with changes that are not in the kernel yet.", nil, nil)
	frontendsDesc    = prometheus.NewDesc("ropewalk_proxy_frontends", "Addresses and ports of services; a node port counts once.", nil, nil)
	servicesDesc     = prometheus.NewDesc("ropewalk_proxy_services", "Services, and names that have endpoints only.", nil, nil)
	endpointsDesc    = prometheus.NewDesc("ropewalk_proxy_endpoints", "Endpoints that answer, as their slices have them.", nil, nil)
	elementsDesc     = prometheus.NewDesc("ropewalk_proxy_elements", "Elements of the tables' maps and sets.", []string{"set"}, nil)
	transactionsDesc = prometheus.NewDesc("ropewalk_proxy_transactions_total", "Transactions that the kernel took.", nil, nil)
	healthDesc       = prometheus.NewDesc("ropewalk_proxy_health_failures_total", "Failures to listen at a healthCheckNodePort.", nil, nil)
	repairsDesc      = prometheus.NewDesc("ropewalk_proxy_repairs_total", "Times that the rules were not what they should have been, and were mended.", nil, nil)
	failuresDesc     = prometheus.NewDesc("ropewalk_proxy_transaction_failures_total", "Transactions that the kernel refused.", nil, nil)
)

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{pendingDesc, frontendsDesc, servicesDesc, endpointsDesc, elementsDesc, transactionsDesc, failuresDesc, repairsDesc, healthDesc} {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	c.p.mu.Lock()
	n, pending := c.p.builder.Counts(), c.p.builder.Pending()+c.p.unwritten
	c.p.mu.Unlock()
	stats := c.p.tables.Stats()
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	gauge(pendingDesc, pending)
	gauge(frontendsDesc, n.Frontends)
	gauge(servicesDesc, n.Services)
	gauge(endpointsDesc, n.Endpoints)
	for set, n := range stats.Elements {
		gauge(elementsDesc, n, set)
	}
	counter := func(d *prometheus.Desc, v int) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	counter(transactionsDesc, stats.Transactions)
	counter(failuresDesc, stats.Failures)
	counter(repairsDesc, stats.Repairs)
	counter(healthDesc, int(c.p.servers.Failures()))
}
