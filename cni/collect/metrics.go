package collect

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
)

type metrics struct {
	collected *prometheus.CounterVec
	failures  prometheus.Counter
	unleased  prometheus.Gauge
}

func newMetrics(c Config) (*metrics, error) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "ropewalk", Subsystem: "cni", Name: name, Help: help}
	}
	m := &metrics{
		collected: prometheus.NewCounterVec(prometheus.CounterOpts(opts("collected_total", "What was freed that pods had left which were gone, by kind.")), []string{"kind"}),
		failures:  prometheus.NewCounter(prometheus.CounterOpts(opts("collect_failures_total", "Times that this could not be looked for, or not be freed."))),
		unleased:  prometheus.NewGauge(prometheus.GaugeOpts(opts("interfaces_without_lease", "Interfaces of pods whose addresses are not leased."))),
	}
	for _, k := range []kind{aLease, somePorts, anIFB} {
		m.collected.WithLabelValues(string(k))
	}
	if c.Registerer == nil {
		return m, nil
	}
	u := &usage{
		config:    c,
		leases:    prometheus.NewDesc("ropewalk_cni_leases", "Addresses of a range that pods have.", []string{"range"}, nil),
		addresses: prometheus.NewDesc("ropewalk_cni_addresses", "Addresses of a range that pods may have.", []string{"range"}, nil),
	}
	var err error
	for _, x := range []prometheus.Collector{m.collected, m.failures, m.unleased, u} {
		err = errors.Join(err, c.Registerer.Register(x))
	}
	return m, err
}

// fresh is for how long what was read of leases is good enough for a scrape: ADDs wait while it is read.
const fresh = 5 * time.Second

// usage counts the leases when somebody asks.
type usage struct {
	config            Config
	leases, addresses *prometheus.Desc

	mu   sync.Mutex
	at   time.Time
	last []ipam.Lease
}

// Describe implements prometheus.Collector.
func (u *usage) Describe(ch chan<- *prometheus.Desc) {
	ch <- u.leases
	ch <- u.addresses
}

// Collect implements prometheus.Collector. A range whose leases have never been read has none of their number.
func (u *usage) Collect(ch chan<- prometheus.Metric) {
	leases, known := u.read()
	for _, r := range u.config.Ranges() {
		ch <- prometheus.MustNewConstMetric(u.addresses, prometheus.GaugeValue, ipam.Capacity(r), r.String())
		if !known {
			continue
		}
		n := 0
		for _, l := range leases {
			for _, a := range l.Addrs {
				if r.Contains(a) {
					n++
				}
			}
		}
		ch <- prometheus.MustNewConstMetric(u.leases, prometheus.GaugeValue, float64(n), r.String())
	}
}

func (u *usage) read() (leases []ipam.Lease, known bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.at.IsZero() || time.Since(u.at) > fresh {
		if leases, err := list(u.config.DataDir); err == nil {
			u.last, u.at = leases, time.Now()
		}
	}
	return u.last, !u.at.IsZero()
}
