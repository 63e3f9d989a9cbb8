package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// result is what was measured of one candidate in one scenario. What was not is empty.
type result struct {
	scenario, candidate string

	start, startCPU    durations // to ready
	resident, peak     sizes     // at rest, and at most until then
	churned            sizes     // most that was resident under changes
	answered           durations // from a change to its answer
	changeCPU          durations // of a change
	flip100, flip10000 durations // CPU time of a change in a service of that size
}

// samples are measurements of one thing.
type samples[T cmp.Ordered] []T

type (
	durations = samples[time.Duration]
	sizes     = samples[int64]
)

func (s *samples[T]) add(v T) { *s = append(*s, v) }

// at returns the sample below which the share q of all lie, the zero value of none.
func (s samples[T]) at(q float64) (v T) {
	if len(s) == 0 {
		return v
	}
	s = slices.Sorted(slices.Values(s))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// row is a line of the table: what is compared, and in which unit.
type row struct {
	name  string
	value func(*result) float64
	unit  string
}

func took(name string, unit time.Duration, unitName string, q float64, of func(*result) durations) row {
	return row{name, func(r *result) float64 { return float64(of(r).at(q)) / float64(unit) }, unitName}
}

func size(name string, of func(*result) sizes) row {
	return row{name, func(r *result) float64 { return float64(of(r).at(0.5)) / (1 << 20) }, "MiB"}
}

var rows = []row{
	took("start to ready", time.Second, "s", 0.5, func(r *result) durations { return r.start }),
	took("CPU time of that", time.Second, "s", 0.5, func(r *result) durations { return r.startCPU }),
	size("resident 5 s after", func(r *result) sizes { return r.resident }),
	size("resident at most until then", func(r *result) sizes { return r.peak }),
	size("resident at most under 1,000 changes/s", func(r *result) sizes { return r.churned }),
	took("change to answer, p50", time.Millisecond, "ms", 0.5, func(r *result) durations { return r.answered }),
	took("change to answer, p99", time.Millisecond, "ms", 0.99, func(r *result) durations { return r.answered }),
	took("CPU time of a change", time.Microsecond, "µs", 0.5, func(r *result) durations { return r.changeCPU }),
	took("CPU time of a change in a service of 100", time.Microsecond, "µs", 0.5, func(r *result) durations { return r.flip100 }),
	took("CPU time of a change in a service of 10,000", time.Microsecond, "µs", 0.5, func(r *result) durations { return r.flip10000 }),
}

// report prints what was measured; it is the one place to change if it should go elsewhere. The first candidate of a
// scenario is compared with the second, if there is one.
func report(results []result) error {
	fmt.Println("| scenario | measured | ropewalk | kubernetes | ratio |\n|---|---|---:|---:|---:|")
	for len(results) > 0 {
		ours, peer := &results[0], &result{}
		results = results[1:]
		if len(results) > 0 && results[0].scenario == ours.scenario {
			peer, results = &results[0], results[1:]
		}
		for _, m := range rows {
			a, b := m.value(ours), m.value(peer)
			if a == 0 {
				continue
			}
			theirs, ratio := "", ""
			if b != 0 {
				theirs, ratio = fmt.Sprintf("%.3g %s", b, m.unit), fmt.Sprintf("%.2f", a/b)
			}
			fmt.Printf("| %s | %s | %.3g %s | %s | %s |\n", ours.scenario, m.name, a, m.unit, theirs, ratio)
		}
	}
	return nil
}
