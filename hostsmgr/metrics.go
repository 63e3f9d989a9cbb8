package hostsmgr

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

type metrics struct {
	writes, skips, repairs, bytes prometheus.Counter
	failures                      *prometheus.CounterVec
	latency                       prometheus.Histogram
	files, unwatched              prometheus.Gauge
}

// newMetrics makes the metrics and registers them, unless r is nil.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "ropewalk", Subsystem: "hosts", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts(opts(name, help)))
	}
	m := &metrics{
		writes:  counter("writes_total", "Hosts files written because they were not as they should be."),
		skips:   counter("skips_total", "Hosts files that were looked at and found right."),
		repairs: counter("repairs_total", "Writes to files that had been right: somebody else had written to them, as the kubelet does when a container starts."),
		bytes:   counter("written_bytes_total", "Bytes written to hosts files; what a file had already is not written."),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts(opts("failures_total",
			"Hosts files that could not be made right, and aliases that could not be read (pod, configmap), by reason.")), []string{"reason"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "ropewalk", Subsystem: "hosts", Name: "change_to_written_seconds",
			Help:    "Time from the arrival of a change to the end of the write of a file that it changed.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10), NativeHistogramBucketFactor: 1.1,
		}),
		files:     gauge("files", "Hosts files of pods on this node that exist and are kept right."),
		unwatched: gauge("unwatched_files", "Pods whose files are looked at from time to time only, since inotify gives no more watches."),
	}
	if r == nil {
		return m, nil
	}
	var err error
	for _, c := range []prometheus.Collector{m.writes, m.skips, m.repairs, m.bytes, m.failures, m.latency, m.files, m.unwatched} {
		err = errors.Join(err, r.Register(c))
	}
	return m, err
}

// reason returns the label that failures with err are counted by.
func reason(err error) string {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.label
		}
	}
	return "other"
}

var reasons = []struct {
	err   error
	label string
}{
	{unix.ENOSPC, "full"},
	{unix.EDQUOT, "full"},
	{unix.EFBIG, "full"},
	{unix.ELOOP, "symlink"},
	{podfile.ErrNotRegular, "not_regular"},
	{unix.ENOTDIR, "not_regular"},
	{podfile.ErrLinked, "linked"},
	{podfile.ErrMoved, "moved"},
	{unix.EXDEV, "other_filesystem"},
	{unix.EAGAIN, "leased"},
	{unix.ETXTBSY, "busy"},
	{unix.EACCES, "denied"},
	{unix.EPERM, "denied"},
	{unix.EROFS, "denied"},
	{podfile.ErrTooLarge, "too_large"},
	{ErrMarkers, "markers"},
	{errNodeFile, "node_file"},
	{errPod, "pod"},
}
