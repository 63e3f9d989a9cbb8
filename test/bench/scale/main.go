// Command scale measures Ropewalk and CoreDNS's kubernetes plugin side by side on a large cluster that test/standin
// plays: how long a start takes, what it costs in memory and CPU time, how soon a change is answered, and what a change
// costs in a large service. The servers take turns, one at a time; the stand-in and whoever asks share one process.
package main

import (
	"context"
	"flag"
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/ropewalk-net/ropewalk/test/bench/box"
	"github.com/ropewalk-net/ropewalk/test/bench/report"
)

var (
	ours     = flag.String("coredns", "bin/coredns", "the coredns with ropewalk")
	stock    = flag.String("stock", "bin/stock/coredns", "CoreDNS as it is")
	only     = flag.String("only", "", "the one scenario to run, by a part of its name")
	alone    = flag.Bool("alone", false, "leave the stock one out")
	runs     = flag.Int("runs", 3, "starts of each server in each scenario; medians are reported")
	services = flag.Int("services", 50_000, "services")
	perSlice = flag.Int("endpoints", 5, "endpoints of each service")
	pods     = flag.Int("pods", 100_000, "pods, in the scenario that has them")
	settle   = flag.Duration("settle", 5*time.Second, "from ready to the look at the memory")
	churn    = flag.Duration("churn", 10*time.Second, "how long 1,000 changes a second go on")
	heap     = flag.String("heap", "", "a file for ropewalk's heap profile at rest; it costs memory")
	doc      = flag.String("write", "", "a document to write the tables into")
)

// patience is for all together.
const patience = 30 * time.Minute

func main() { box.Run("bench-dns-scale", "", bench) }

func bench(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// The collector of this process must not run beside what is measured; scenarios call it in between.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(8 << 30)
	candidates := []candidate{{"Ropewalk", "ropewalk", *ours}}
	if !*alone {
		version, err := exec.CommandContext(ctx, *stock, "-version").Output()
		if err != nil {
			return fmt.Errorf("%s: %w", *stock, err)
		}
		name := "CoreDNS " + string(regexp.MustCompile(`\d+\.\d+\.\d+`).Find(version))
		candidates = append(candidates, candidate{name, "kubernetes", *stock})
	}
	text := report.Stamp(report.Command("make bench-dns-scale"), time.Now())
	fmt.Println(text)
	for _, s := range scenarios() {
		if !strings.Contains(s.name, *only) {
			continue
		}
		results, err := s.run(ctx, dir, candidates)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		part := s.section(results)
		fmt.Println(part)
		text += "\n" + part
		runtime.GC()
	}
	if *doc == "" {
		return nil
	}
	return report.Save(*doc, "bench-dns-scale", text)
}
