package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ropewalk-net/ropewalk/test/bench/report"
)

// workload is what is asked.
type workload struct {
	name, what string
	questions  []question
}

// figures are what one run says about a server.
type figures struct {
	rate           float64       // answers a second
	cost           time.Duration // CPU time of the server for an answer
	server, client float64       // how much of its core each used, 0 to 1
	others         float64       // how much of the server's core others used
	lost           int
}

// result is what a workload says about a server.
type result struct {
	name string
	runs []figures
	// latencies were measured at a rate in questions a second that all servers can take.
	latencies []time.Duration
	rate      int
}

// measure runs a workload against all servers in turn, again and again, and then for the latencies.
func (b *bencher) measure(w *workload) ([]*result, error) {
	file := filepath.Join(b.dir, w.name)
	var lines strings.Builder
	for _, q := range w.questions {
		fmt.Fprintln(&lines, q)
	}
	if err := os.WriteFile(file, []byte(lines.String()), 0o644); err != nil {
		return nil, err
	}
	results := make([]*result, len(b.servers))
	for round := range *rounds + 1 {
		for i, s := range b.servers {
			if round == 0 { // for caches and branch predictors
				results[i] = &result{name: s.name}
				if _, err := dnsperf(*client, s.addr, file, time.Second, 0); err != nil {
					return nil, fmt.Errorf("%s: %w", s.name, err)
				}
				continue
			}
			f, err := s.load(file)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			results[i].runs = append(results[i].runs, f)
		}
	}
	rate := sharedRate(results)
	for i, s := range b.servers {
		r, err := dnsperf("dnsperf", s.addr, file, *length, rate)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		results[i].latencies, results[i].rate = r.latencies, rate
	}
	return results, nil
}

// load asks as fast as it goes.
func (s *server) load(file string) (figures, error) {
	used, usedCore, err := s.clocks()
	if err != nil {
		return figures{}, err
	}
	r, err := dnsperf(*client, s.addr, file, *length, 0)
	if err != nil {
		return figures{}, err
	}
	after, afterCore, err := s.clocks()
	if err != nil {
		return figures{}, err
	}
	return figure(r, after-used, afterCore-usedCore)
}

// clocks returns the CPU time of the server so far, and that of its core.
func (s *server) clocks() (own, core time.Duration, err error) {
	if own, err = s.cpu(); err != nil {
		return 0, 0, err
	}
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	core, err = coreTime(string(raw), serverCore)
	return own, core, err
}

// figure works out what a run says, in which the server and its core were busy for some time. A run with
// answers of another kind than the questions have is an error.
func figure(r run, used, usedCore time.Duration) (figures, error) {
	if r.completed == 0 {
		return figures{}, fmt.Errorf("no answers")
	}
	for _, c := range r.codes {
		if c != "NOERROR" && c != "NXDOMAIN" {
			return figures{}, fmt.Errorf("answers with %v", r.codes)
		}
	}
	return figures{
		rate:   float64(r.completed) / r.took.Seconds(),
		cost:   used / time.Duration(r.completed),
		server: used.Seconds() / r.took.Seconds(),
		client: r.client.Seconds() / r.took.Seconds(),
		others: max(0, (usedCore-used).Seconds()/r.took.Seconds()),
		lost:   r.lost,
	}, nil
}

// sharedRate is half of what the slowest server can answer, in full thousands a second.
func sharedRate(results []*result) int {
	slowest := slices.MinFunc(results, func(a, b *result) int { return cmp.Compare(a.median(rateOf), b.median(rateOf)) })
	return max(1, int(slowest.median(rateOf)/2/1000)) * 1000
}

func rateOf(f figures) float64 { return f.rate }
func costOf(f figures) float64 { return f.cost.Seconds() * 1e6 }

// median is the middle one of the values that runs have, min and max the ends.
func (r *result) median(of func(figures) float64) float64 { v := r.values(of); return v[len(v)/2] }
func (r *result) min(of func(figures) float64) float64    { return r.values(of)[0] }
func (r *result) max(of func(figures) float64) float64    { v := r.values(of); return v[len(v)-1] }

// ratio is what an answer costs a as part of what it costs b: the median of the rounds, in each of which both ran.
func ratio(a, b *result) float64 {
	var v []float64
	for i := range a.runs {
		v = append(v, costOf(a.runs[i])/costOf(b.runs[i]))
	}
	slices.Sort(v)
	return v[len(v)/2]
}

func (r *result) values(of func(figures) float64) (v []float64) {
	for _, f := range r.runs {
		v = append(v, of(f))
	}
	slices.Sort(v)
	return v
}

func (r *result) percentile(p int) string {
	if len(r.latencies) == 0 {
		return "-"
	}
	return fmt.Sprint(r.latencies[(len(r.latencies)-1)*p/100].Microseconds())
}

// section renders the results of a workload: what was measured, and a table.
func section(w *workload, services int, results []*result) string {
	head := []string{"server", "answers/s", "CPU µs/answer", "(of runs)", "busy", "client", "p50 µs", "p99 µs", "lost"}
	own := slices.DeleteFunc(slices.Clone(results), func(r *result) bool { return r.name != chainName && r.name != fastName })
	for _, o := range own {
		_, short, _ := strings.Cut(o.name, ", ")
		head = append(head, short+" ÷ it")
	}
	var rows [][]string
	others := 0.0
	for _, r := range results {
		others = max(others, r.median(func(f figures) float64 { return f.others }))
		lost := 0
		for _, f := range r.runs {
			lost += f.lost
		}
		row := []string{
			r.name, fmt.Sprintf("%.0f", r.median(rateOf)),
			fmt.Sprintf("%.2f", r.median(costOf)), fmt.Sprintf("%.2f–%.2f", r.min(costOf), r.max(costOf)),
			percent(r.median(func(f figures) float64 { return f.server })),
			percent(r.median(func(f figures) float64 { return f.client })),
			r.percentile(50), r.percentile(99), fmt.Sprint(lost),
		}
		for _, o := range own {
			row = append(row, fmt.Sprintf("%.2f", ratio(o, r)))
		}
		rows = append(rows, row)
	}
	note := ""
	if others > 0.05 {
		note = fmt.Sprintf(" Other programs used up to %s of the servers' core meanwhile.", percent(others))
	}
	return fmt.Sprintf("**%s**: %s; %d services, medians of %d runs of %s each; latencies at %d questions/s.%s\n\n%s",
		w.name, w.what, services, *rounds, *length, results[0].rate, note, report.Table(head, rows))
}

func percent(part float64) string { return fmt.Sprintf("%.0f %%", 100*part) }
