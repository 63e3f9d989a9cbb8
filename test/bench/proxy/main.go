// Command proxy measures Ropewalk's proxy of services and kube-proxy in its nftables mode side by side, in front of an API
// server that test/standin plays: how long the first sync and a restart take, how soon a change is in the kernel, what all that
// costs in memory and CPU time, and what a connection through a service costs. The proxies take turns, one at a time, on a node
// that is a network namespace, with traffic between two pods that are namespaces, too.
package main

import (
	"context"
	"flag"
	"fmt"
	"os/exec"
	"regexp"
	"runtime/debug"
	"slices"
	"time"

	"github.com/ropewalk-net/ropewalk/test/bench/box"
	"github.com/ropewalk-net/ropewalk/test/bench/report"
)

var (
	ours   = flag.String("ropewalk", "bin/ropewalk", "the ropewalk to measure")
	stock  = flag.String("kube-proxy", "bin/stock/kube-proxy", "kube-proxy as it is")
	only   = flag.String("only", ".", "measure the proxies whose names match")
	size   = flag.Int("services", 0, "measure at this number of services only")
	large  = flag.Bool("kube-proxy-50k", false, "measure both at 50,000 services of 5 endpoints, into a part of the document of its own; it takes long")
	runs   = flag.Int("runs", 3, "starts of each proxy; medians are reported")
	within = flag.Duration("within", time.Minute, "how long changes are made one by one")
	churn  = flag.Duration("churn", 20*time.Second, "how long 100 changes a second go on")
	doc    = flag.String("write", "", "a document to write the tables into")
)

// patience is for all together.
const patience = 3 * time.Hour

func main() { box.Run("bench-proxy", "", all) }

func all(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// The collector of this process must not run beside what is measured; scenarios call it in between.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(8 << 30)
	candidates, err := candidates(ctx)
	if err != nil {
		return err
	}
	n, err := newNetwork()
	if err != nil {
		return err
	}
	closers, err := serve(n.backend)
	if err != nil {
		return err
	}
	defer func() {
		for _, c := range closers {
			_ = c()
		}
		n.close()
	}()
	text := report.Stamp(report.Command("make bench-proxy"), time.Now())
	fmt.Println(text)
	for _, s := range scenarios(candidates) {
		if *size != 0 && s.services != *size || len(s.candidates) == 0 {
			continue
		}
		results, err := s.run(ctx, dir, n)
		if err != nil {
			return err
		}
		part := s.section(results)
		fmt.Println(part)
		text += "\n" + part
	}
	if *doc == "" {
		return nil
	}
	name := "bench-proxy"
	if *large {
		name += "-50k"
	}
	return report.Save(*doc, name, text)
}

// candidates returns what there is to measure, Ropewalk first.
func candidates(ctx context.Context) (list []candidate, err error) {
	match, err := regexp.Compile(*only)
	if err != nil {
		return nil, err
	}
	peer := kubeProxy(*stock)
	for _, c := range []candidate{ropewalk(*ours), peer} {
		if match.MatchString(c.name) {
			list = append(list, c)
		}
	}
	for i := range list {
		if list[i].name != peer.name {
			continue
		}
		version, err := exec.CommandContext(ctx, *stock, "--version").Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", *stock, err)
		}
		list[i].name += " " + string(regexp.MustCompile(`\d+\.\d+\.\d+`).Find(version))
	}
	return list, nil
}

func scenarios(candidates []candidate) []scenario {
	base := scenario{
		endpoints: 2, candidates: candidates, runs: *runs, changes: 200, within: *within, rate: 100, churn: *churn, rounds: 60, connections: 150,
	}
	few, thousand, ten, fifty := base, base, base, base
	few.services, few.rate = 10, 0
	thousand.services = 1000
	ten.services, ten.mostFirst = 10_000, 0.15
	fifty.services, fifty.endpoints, fifty.mostFirst, fifty.mostResident = 50_000, 5, 1.5, 120
	if *large {
		fifty.runs = 1
		return []scenario{fifty}
	}
	// kube-proxy would need far longer than all else.
	fifty.candidates = slices.DeleteFunc(slices.Clone(candidates), func(c candidate) bool { return c.name != "Ropewalk" })
	return []scenario{few, thousand, ten, fifty}
}
