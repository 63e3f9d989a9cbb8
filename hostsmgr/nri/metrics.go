package nri

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	connected                 prometheus.Gauge
	aliases, files, variables prometheus.Counter
	errors                    prometheus.Counter
}

// register makes the metrics, and has r, unless it is nil, know them.
func (m *metrics) register(r prometheus.Registerer) error {
	m.connected = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ropewalk_nri_connected", Help: "1 while the container runtime asks the plugin.",
	})
	containers := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ropewalk_nri_containers_total",
		Help: "Containers that were given something: aliases in the kubelet's file, a file of the plugin's own, variables.",
	}, []string{"given"})
	m.aliases, m.files, m.variables = containers.WithLabelValues("aliases"), containers.WithLabelValues("file"), containers.WithLabelValues("variables")
	m.errors = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "ropewalk_nri_errors_total", Help: "Containers that were created without some of what they should have been given.",
	})
	if r == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{m.connected, containers, m.errors} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
