package routes

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	changes, looks, failures, wrong prometheus.Counter
	last                            prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, r *Routes) (*metrics, error) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "ropewalk", Subsystem: "routes", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	m := &metrics{
		changes:  counter("changes_total", "Routes, neighbours, devices, addresses and rules that were made, changed or taken away."),
		looks:    counter("looks_total", "Times that all routes, neighbours and forwarding entries of the kernel were listed."),
		failures: counter("failures_total", "Times that some of them could not be made as they should be."),
		wrong:    counter("wrong_nodes_total", "Times that nodes were found whose pods cannot be reached for what their objects say."),
		last:     prometheus.NewGauge(prometheus.GaugeOpts(opts("last_sync_timestamp_seconds", "When all was last known to be as it should be, as a Unix time."))),
	}
	if reg == nil {
		return m, nil
	}
	gauge := func(name, help string, of func(counts) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts(name, help)), func() float64 {
			r.mu.Lock()
			defer r.mu.Unlock()
			return float64(of(r.desired))
		})
	}
	var err error
	for _, c := range []prometheus.Collector{
		m.changes, m.looks, m.failures, m.wrong, m.last,
		gauge("nodes", "Other nodes.", func(c counts) int { return c.nodes }), gauge("routes", "Ranges of pods of other nodes that there is to be a route to.", func(c counts) int { return c.routes }),
		gauge("left_out", "Ranges of pods of other nodes that nothing leads to, for what their Node objects say, or as they are on no link.", func(c counts) int { return c.left }),
	} {
		err = errors.Join(err, reg.Register(c))
	}
	return m, err
}
