package main

import (
	"fmt"
	"strings"

	"github.com/ropewalk-net/ropewalk/test/bench/report"
)

// result is what was measured of one proxy in one scenario. What was not is empty.
type result struct {
	name string

	start, firstSync, startCPU times // from a start on a node without rules
	restart, restartCPU        times // on a node with rules
	resident, peak             sizes // at rest after the first sync, and at most until then
	endpoint, service, lag     times // from a change to the kernel
	changeCPU                  times
	churned, churnedPeak       sizes
	tried, failed              int // connections, during restarts
	traffic                    traffic
}

type row = report.Row[*result]

// at is a row of one share of all samples.
func at(name, unit string, q float64, of func(*result) times) row {
	r := report.Took(name, unit, of)
	share := r.Share
	r.Share = func(res *result, _ float64) float64 { return share(res, q) }
	return r
}

func (s scenario) rows() []row {
	first := report.Took("first sync, by its own metrics", "s", func(r *result) times { return r.firstSync })
	resident := report.Size("resident at rest", func(r *result) sizes { return r.resident })
	if s.mostFirst > 0 {
		first = first.Within(s.mostFirst, 0.02)
	}
	if s.mostResident > 0 {
		resident = resident.Within(s.mostResident, 0)
	}
	endpoint := func(r *result) times { return r.endpoint }
	service := func(r *result) times { return r.service }
	lag := func(r *result) times { return r.lag }
	rows := []row{
		first,
		report.Took("start to the first connection", "s", func(r *result) times { return r.start }),
		report.Took("CPU time of a start", "s", func(r *result) times { return r.startCPU }),
		report.Took("restart until it has caught up", "s", func(r *result) times { return r.restart }),
		report.Took("CPU time of a restart", "s", func(r *result) times { return r.restartCPU }),
		resident,
		report.Size("at most until then, children included", func(r *result) sizes { return r.peak }),
		at("one endpoint changed, p50", "ms", 0.5, endpoint),
		at("one endpoint changed, p99", "ms", 0.99, endpoint).Within(2, 0),
		at("one service added, p50", "ms", 0.5, service),
		at("one service added, p99", "ms", 0.99, service),
		at("100 changes/s: lag, p50", "ms", 0.5, lag),
		at("100 changes/s: lag, p99", "ms", 0.99, lag),
		report.Took("100 changes/s: CPU time of one", "ms", func(r *result) times { return r.changeCPU }),
		report.Size("100 changes/s: resident after", func(r *result) sizes { return r.churned }),
		report.Size("at most until then, children included", func(r *result) sizes { return r.churnedPeak }),
	}
	rows = append(rows, ways("TCP connect", func(t *traffic) (path, path) { return t.tcp.direct, t.tcp.service })...)
	return append(rows, ways("UDP exchange", func(t *traffic) (path, path) { return t.udp.direct, t.udp.service })...)
}

// ways are the rows of one protocol: straight to the backend, through its service, and the two compared.
func ways(what string, of func(*traffic) (direct, service path)) []row {
	direct := func(r *result) path { p, _ := of(&r.traffic); return p }
	service := func(r *result) path { _, p := of(&r.traffic); return p }
	through := row{Name: "CPU time, the latter ÷ the former", Share: func(r *result, _ float64) float64 {
		if len(direct(r).cpu) == 0 {
			return 0
		}
		return float64(service(r).cpu.At(0.5)) / float64(direct(r).cpu.At(0.5))
	}}
	rows := []row{}
	for _, way := range []struct {
		name string
		of   func(*result) path
	}{{what + " direct", direct}, {what + " by ClusterIP", service}} {
		rows = append(rows,
			at(way.name+", p50", "µs", 0.5, func(r *result) times { return way.of(r).took }),
			at(way.name+", p99", "µs", 0.99, func(r *result) times { return way.of(r).took }),
			row{Name: way.name + ", one after the other", Unit: "/s", Share: func(r *result, q float64) float64 { return float64(way.of(r).perSec.At(q)) }},
			report.Took(way.name+", client's CPU time", "µs", func(r *result) times { return way.of(r).cpu }),
		)
	}
	return append(rows, through)
}

// section renders the results: the first is Ropewalk's, compared with the second, if there is one.
func (s scenario) section(results []*result) string {
	var names, more []string
	for _, r := range results {
		names = append(names, r.name)
		line := fmt.Sprintf("%s: %d of %d connections failed during restarts", r.name, r.failed, r.tried)
		if s.rate > 0 {
			line += fmt.Sprintf("; %d endpoints changed and %d services added one by one", len(r.endpoint), len(r.service))
		}
		more = append(more, line)
	}
	return fmt.Sprintf("**%s**; %d starts each. %s.\n\n%s", s.name(), s.runs, strings.Join(more, ". "), report.Compare(names, results, s.rows(), true))
}
