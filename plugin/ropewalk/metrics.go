package ropewalk

import (
	"strings"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

// Package-level metrics are what CoreDNS's prometheus plugin collects.
var (
	programmingDuration = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "programming_duration_seconds",
		Help: "Time until a change was served: kind watch_to_served from its arrival here, kind object_to_served from the " +
			"time that the object itself gives for its change.",
		Buckets:                     prometheus.ExponentialBuckets(0.0001, 4, 10),
		NativeHistogramBucketFactor: plugin.NativeHistogramBucketFactor,
	}, []string{"kind"})

	updates = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "updates_total",
		Help:      "Changes taken in, by kind of object.",
	}, []string{"kind"})

	apiErrors = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "api_errors_total",
		Help:      "Failed requests, broken watches and objects that could not be used, by kind of object.",
	}, []string{"kind"})

	snapshotErrors = promauto.NewCounterVec(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "snapshot_errors_total",
		Help:      "Snapshots that could not be written, or not be used at start, by file.",
	}, []string{"file"})

	autopathSuccess = promauto.NewCounter(prometheus.CounterOpts{
		Namespace: plugin.Namespace,
		Subsystem: pluginName,
		Name:      "autopath_success_total",
		Help:      "Queries answered with what a later step of the asker's search path led to.",
	})

	recordsDesc = prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, pluginName, "records"),
		"Records served, by zone and type, without those that are made up from the question.", []string{"zone", "type"}, nil)
	ageDesc = prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, pluginName, "sync_age_seconds"),
		"For how long the source of records has been out of touch; 0 while the records are current.", []string{"zone"}, nil)
	snapshotTimeDesc = prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, pluginName, "snapshot_timestamp_seconds"),
		"When the snapshot that is in the file was taken, in seconds since 1970.", []string{"file"}, nil)
	snapshotSizeDesc = prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, pluginName, "snapshot_size_bytes"),
		"Size of the snapshot that is in the file.", []string{"file"}, nil)
)

// observe is zone.Options.Served.
func observe(c cluster.Change, at time.Time) {
	updates.WithLabelValues(c.Kind.String()).Inc()
	if !c.Received.IsZero() {
		programmingDuration.WithLabelValues("watch_to_served").Observe(at.Sub(c.Received).Seconds())
	}
	if s, ok := c.Object.(*cluster.Slice); ok && !s.Triggered.IsZero() && at.After(s.Triggered) {
		programmingDuration.WithLabelValues("object_to_served").Observe(at.Sub(s.Triggered).Seconds())
	}
}

// Describe implements prometheus.Collector.
func (r *registry) Describe(ch chan<- *prometheus.Desc) {
	ch <- recordsDesc
	ch <- ageDesc
	ch <- snapshotTimeDesc
	ch <- snapshotSizeDesc
}

// Collect implements prometheus.Collector. It reads what is served at the time of the scrape.
func (r *registry) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := map[string]bool{}
	for _, f := range r.feeds {
		view := newest(f.zone, f.keeper)
		if f.keeper != nil {
			f.keeper.collect(ch)
		}
		for _, h := range f.users {
			for _, z := range h.zones {
				if !seen[z] {
					seen[z] = true
					h.collect(ch, z, view, f.age())
				}
			}
		}
	}
}

func (h *Ropewalk) collect(ch chan<- prometheus.Metric, z string, view *zone.View, age time.Duration) {
	ch <- prometheus.MustNewConstMetric(ageDesc, prometheus.GaugeValue, age.Seconds(), z)
	gauge := func(typ string, n int) {
		ch <- prometheus.MustNewConstMetric(recordsDesc, prometheus.GaugeValue, float64(n), z, typ)
	}
	c := view.Counts(h.isMulti(z))
	if zone.IsReverse(z) {
		// Of the whole family: a reverse zone that covers a part of it may have fewer.
		if strings.HasSuffix(z, "ip6.arpa.") {
			gauge("PTR", c.PTR6)
		} else {
			gauge("PTR", c.PTR4)
		}
		return
	}
	gauge("A", c.A)
	gauge("AAAA", c.AAAA)
	gauge("SRV", c.SRV)
	gauge("CNAME", c.CNAME)
}
