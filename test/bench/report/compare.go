package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Samples are measurements of one thing.
type Samples[T cmp.Ordered] []T

// Add adds one.
func (s *Samples[T]) Add(v T) { *s = append(*s, v) }

// At returns the sample below which the share q of all lie, the zero value of none.
func (s Samples[T]) At(q float64) (v T) {
	if len(s) == 0 {
		return v
	}
	s = slices.Sorted(slices.Values(s))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// Row is a line of a comparison of results of the type R: what is compared, in a unit. A budget of 0 is none.
type Row[R any] struct {
	Name, Unit string
	// Share returns the sample at a share of all, in the unit; 0 if there is none.
	Share func(r R, q float64) float64
	// Most is the budget, Part that of what it may be in relation to the peer.
	Most, Part float64
}

// Took is a row of times, in s, ms or µs.
func Took[R any](name, unit string, of func(R) Samples[time.Duration]) Row[R] {
	in := map[string]time.Duration{"s": time.Second, "ms": time.Millisecond, "µs": time.Microsecond}[unit]
	return Row[R]{Name: name, Unit: unit, Share: func(r R, q float64) float64 { return float64(of(r).At(q)) / float64(in) }}
}

// Size is a row of amounts of bytes, in MB.
func Size[R any](name string, of func(R) Samples[int64]) Row[R] {
	return Row[R]{Name: name, Unit: "MB", Share: func(r R, q float64) float64 { return float64(of(r).At(q)) / 1e6 }}
}

// Within returns the row with a budget.
func (r Row[R]) Within(most, part float64) Row[R] {
	r.Most, r.Part = most, part
	return r
}

// Compare renders the medians of results, whose names are as many, and from where to where they go. With two the first is
// compared with the second. Rows that the first has nothing for are left out.
func Compare[R any](names []string, results []R, rows []Row[R], budgets bool) string {
	head := []string{"median"}
	for _, n := range names {
		head = append(head, n, "(of runs)")
	}
	if len(results) > 1 {
		head = append(head, "ratio")
	}
	if budgets {
		head = append(head, "budget")
	}
	var table [][]string
	for _, row := range rows {
		if row.Share(results[0], 0.5) == 0 {
			continue
		}
		line := []string{row.Name}
		for _, r := range results {
			line = append(line, row.cells(r)...)
		}
		if len(results) > 1 {
			line = append(line, ratio(row.Share(results[0], 0.5), row.Share(results[1], 0.5)))
		}
		if budgets {
			line = append(line, row.budget())
		}
		table = append(table, line)
	}
	return Table(head, table)
}

func (r Row[R]) cells(result R) []string {
	median, least, most := r.Share(result, 0.5), r.Share(result, 0), r.Share(result, 1)
	switch {
	case median == 0:
		return []string{"", ""}
	case least == most:
		return []string{strings.TrimRight(digits(median)+" "+r.Unit, " "), ""}
	}
	return []string{strings.TrimRight(digits(median)+" "+r.Unit, " "), digits(least) + "–" + digits(most)}
}

// digits shows three of a number, and all of a large one, without an exponent.
func digits(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func ratio(a, b float64) string {
	switch {
	case b == 0:
		return ""
	case a/b < 0.1:
		return fmt.Sprintf("%.2g", a/b)
	}
	return fmt.Sprintf("%.2f", a/b)
}

func (r Row[R]) budget() string {
	switch {
	case r.Most == 0 && r.Part == 0:
		return ""
	case r.Most == 0:
		return fmt.Sprintf("ratio %g", r.Part)
	case r.Part == 0:
		return fmt.Sprintf("%g %s", r.Most, r.Unit)
	}
	return fmt.Sprintf("%g %s, %g", r.Most, r.Unit, r.Part)
}
