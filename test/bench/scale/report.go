package main

import (
	"fmt"
	"time"

	"github.com/ropewalk-net/ropewalk/test/bench/report"
)

type (
	times = report.Samples[time.Duration]
	sizes = report.Samples[int64]
)

// result is what was measured of one candidate in one scenario: a sample for each start. What was not is empty.
type result struct {
	name string

	start, startCPU    times // to ready
	resident, peak     sizes // bytes at rest, and at most until then
	churned            sizes // bytes at most under changes
	p50, p99           times // from a change to its answer
	changeCPU          times // of a change
	flip100, flip10000 times // CPU time of a change in a service of that size
}

var rows = []report.Row[*result]{
	report.Took("start to ready", "s", func(r *result) times { return r.start }).Within(2.5, 0.4),
	report.Took("CPU time of that", "s", func(r *result) times { return r.startCPU }),
	report.Size("resident at rest", func(r *result) sizes { return r.resident }).Within(150, 0.3),
	report.Size("resident at most until then", func(r *result) sizes { return r.peak }),
	report.Size("resident at most under changes", func(r *result) sizes { return r.churned }),
	report.Took("change to answer, p50", "ms", func(r *result) times { return r.p50 }),
	report.Took("change to answer, p99", "ms", func(r *result) times { return r.p99 }).Within(5, 0),
	report.Took("CPU time of a change", "µs", func(r *result) times { return r.changeCPU }),
	report.Took("CPU time of a change in a service of 100", "µs", func(r *result) times { return r.flip100 }),
	report.Took("CPU time of a change in a service of 10,000", "µs", func(r *result) times { return r.flip10000 }),
	{Name: "the latter ÷ the former", Share: func(r *result, q float64) float64 {
		if len(r.flip100) == 0 {
			return 0
		}
		return float64(r.flip10000.At(q)) / float64(r.flip100.At(q))
	}, Most: 2},
}

// section renders the results of a scenario: the first is Ropewalk's, compared with the second, if there is one.
func (s scenario) section(results []*result) string {
	var names []string
	for _, r := range results {
		names = append(names, r.name)
	}
	return fmt.Sprintf("**%s**; %d runs each.\n\n%s", s.name, *runs, report.Compare(names, results, rows, s.changes))
}
