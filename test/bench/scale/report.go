package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/ropewalk-net/ropewalk/test/bench/report"
)

// result is what was measured of one candidate in one scenario: a sample for each start. What was not is empty.
type result struct {
	name string

	start, startCPU    samples[time.Duration] // to ready
	resident, peak     samples[int64]         // bytes at rest, and at most until then
	churned            samples[int64]         // bytes at most under changes
	p50, p99           samples[time.Duration] // from a change to its answer
	changeCPU          samples[time.Duration] // of a change
	flip100, flip10000 samples[time.Duration] // CPU time of a change in a service of that size
}

// samples are measurements of one thing.
type samples[T cmp.Ordered] []T

func (s *samples[T]) add(v T) { *s = append(*s, v) }

// at returns the sample below which the share q of all lie, the zero value of none.
func (s samples[T]) at(q float64) (v T) {
	if len(s) == 0 {
		return v
	}
	s = slices.Sorted(slices.Values(s))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// row is a line of a table: what is compared, in a unit. A budget of 0 is none.
type row struct {
	name, unit string
	// share returns the sample at a share of all, in the unit.
	share func(r *result, q float64) float64
	// most is Ropewalk's budget, part that of what it may be in relation to the peer.
	most, part float64
}

func took(name, unit string, of func(*result) samples[time.Duration]) row {
	in := map[string]time.Duration{"s": time.Second, "ms": time.Millisecond, "µs": time.Microsecond}[unit]
	return row{name: name, unit: unit, share: func(r *result, q float64) float64 { return float64(of(r).at(q)) / float64(in) }}
}

func size(name string, of func(*result) samples[int64]) row {
	return row{name: name, unit: "MB", share: func(r *result, q float64) float64 { return float64(of(r).at(q)) / 1e6 }}
}

func (r row) within(most, part float64) row {
	r.most, r.part = most, part
	return r
}

func (r row) of(res *result) float64 { return r.share(res, 0.5) }

var rows = []row{
	took("start to ready", "s", func(r *result) samples[time.Duration] { return r.start }).within(2.5, 0.4),
	took("CPU time of that", "s", func(r *result) samples[time.Duration] { return r.startCPU }),
	size("resident at rest", func(r *result) samples[int64] { return r.resident }).within(150, 0.3),
	size("resident at most until then", func(r *result) samples[int64] { return r.peak }),
	size("resident at most under changes", func(r *result) samples[int64] { return r.churned }),
	took("change to answer, p50", "ms", func(r *result) samples[time.Duration] { return r.p50 }),
	took("change to answer, p99", "ms", func(r *result) samples[time.Duration] { return r.p99 }).within(5, 0),
	took("CPU time of a change", "µs", func(r *result) samples[time.Duration] { return r.changeCPU }),
	took("CPU time of a change in a service of 100", "µs", func(r *result) samples[time.Duration] { return r.flip100 }),
	took("CPU time of a change in a service of 10,000", "µs", func(r *result) samples[time.Duration] { return r.flip10000 }),
	{name: "the latter ÷ the former", share: func(r *result, q float64) float64 {
		if len(r.flip100) == 0 {
			return 0
		}
		return float64(r.flip10000.at(q)) / float64(r.flip100.at(q))
	}, most: 2},
}

// section renders the results of a scenario: the first is Ropewalk's, compared with the second, if there is one.
func (s scenario) section(results []*result) string {
	head := []string{"median"}
	for _, r := range results {
		head = append(head, r.name, "(of runs)")
	}
	if len(results) > 1 {
		head = append(head, "ratio")
	}
	if s.changes {
		head = append(head, "budget")
	}
	var table [][]string
	for _, m := range rows {
		if m.of(results[0]) == 0 {
			continue
		}
		line := []string{m.name}
		for _, r := range results {
			line = append(line, fmt.Sprintf("%.3g %s", m.of(r), m.unit), fmt.Sprintf("%.3g–%.3g", m.share(r, 0), m.share(r, 1)))
		}
		if len(results) > 1 {
			line = append(line, fmt.Sprintf("%.2f", m.of(results[0])/m.of(results[1])))
		}
		if s.changes {
			line = append(line, m.budget())
		}
		table = append(table, line)
	}
	return fmt.Sprintf("**%s**; %d runs each.\n\n%s", s.name, *runs, report.Table(head, table))
}

func (r row) budget() string {
	switch {
	case r.most == 0:
		return ""
	case r.part == 0:
		return fmt.Sprintf("%g %s", r.most, r.unit)
	}
	return fmt.Sprintf("%g %s, %g", r.most, r.unit, r.part)
}
