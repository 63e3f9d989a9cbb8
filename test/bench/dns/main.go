// Command dns measures what an answer costs Ropewalk's DNS server and its peers: CoreDNS with its kubernetes plugin, Knot
// DNS, NSD and Unbound. All serve the same cluster, or the zones that Ropewalk makes of it, and share a core, on which one
// at a time has work, from dnsperf on another core. Rounds go around all of them, so that whatever else the machine does
// hits all alike.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/ropewalk-net/ropewalk/test/bench/box"
	"github.com/ropewalk-net/ropewalk/test/bench/report"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

const (
	serverCore, clientCore = "0", "1"
	// sample is how many questions are asked of each server to see that it answers right.
	sample = 200
)

var (
	ours     = flag.String("coredns", "bin/coredns", "the coredns with ropewalk")
	stock    = flag.String("stock", "bin/stock/coredns", "CoreDNS as it is")
	services = flag.Int("services", 10_000, "services in the cluster")
	rounds   = flag.Int("runs", 5, "runs of each server; medians are reported")
	length   = flag.Duration("length", 3*time.Second, "how long a run is")
	client   = flag.String("client", "dnsperf", "who asks: dnsperf, or what test/bench/dns/load is built as")
	only     = flag.String("only", ".", "measure the servers whose names match, and Ropewalk's plugin chain")
	doc      = flag.String("write", "", "a document to write the tables into")
)

func main() { box.Run("bench-dns", clientCore, bench) }

func bench(dir string) error {
	api := standin.New(nil)
	defer api.Close()
	api.Apply(objects(*services)...)
	b := &bencher{dir: dir, kubeconfig: api.Kubeconfig(dir), sure: hits(*services)[0]}
	defer b.stop()
	if err := b.fetch(); err != nil {
		return err
	}
	workloads := []*workload{
		{name: "hits", what: "A records of ClusterIPs", questions: hits(*services)},
		{
			name: "mix",
			what: "of 20 questions 8 for ClusterIPs (2 of them AAAA), 3 for headless services, 1 SRV, 1 PTR, " +
				"7 lost in search paths",
			questions: mix(*services, 40_000),
		},
	}
	if err := b.start(subjects(*ours, *stock), workloads); err != nil {
		return err
	}
	text := report.Stamp(report.Command("make bench-dns"), time.Now())
	fmt.Println(text)
	for _, w := range workloads {
		results, err := b.measure(w)
		if err != nil {
			return err
		}
		part := section(w, *services, results)
		fmt.Println(part)
		text += "\n" + part
	}
	if *doc == "" {
		return nil
	}
	return report.Save(*doc, "bench-dns", text)
}

// bencher has the servers running.
type bencher struct {
	dir, kubeconfig string
	// sure is a question that every server has an answer to.
	sure    question
	servers []*server
}

type server struct {
	name string
	*process
}

func (b *bencher) place(i int) (place, error) {
	dir := filepath.Join(b.dir, fmt.Sprint(i))
	return place{dir: dir, port: 5300 + i, kubeconfig: b.kubeconfig, zoneDir: b.dir}, os.MkdirAll(dir, 0o755)
}

// fetch writes the zones that Ropewalk serves into files.
func (b *bencher) fetch() error {
	p, err := b.place(0)
	if err != nil {
		return err
	}
	s, err := launch(coredns(*ours, "transfer {\n to *\n }", plugin("ropewalk", ""))(p), p, serverCore, b.sure)
	if err != nil {
		return err
	}
	defer s.stop()
	return fetch(s.addr, b.dir)
}

// start starts the servers, the first of which is the reference for the answers of the others.
func (b *bencher) start(all []subject, workloads []*workload) error {
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	for i, s := range all {
		if i > 0 && !match.MatchString(s.name) {
			continue
		}
		p, err := b.place(i + 1)
		if err != nil {
			return err
		}
		proc, err := launch(s.run(p), p, serverCore, b.sure)
		if err == nil && s.unless != "" && strings.Contains(proc.said(), s.unless) {
			proc.stop()
			err = errors.New(proc.said())
		}
		if err != nil && i > 0 {
			fmt.Printf("Left out: %s: %v\n", s.name, err)
			continue
		}
		if err != nil {
			return err
		}
		b.servers = append(b.servers, &server{s.fullName(), proc})
		for _, w := range workloads {
			if err := same(b.servers[0].addr, proc.addr, w.questions[:min(sample, len(w.questions))]); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return nil
}

func (b *bencher) stop() {
	for _, s := range b.servers {
		s.stop()
	}
}

// fullName is the name with the version in it.
func (s subject) fullName() string {
	if len(s.version) == 0 {
		return s.name
	}
	out, _ := exec.Command(s.version[0], s.version[1:]...).CombinedOutput() // some fail for want of a zone to serve
	return fmt.Sprintf(s.name, regexp.MustCompile(`\d+\.\d+\.\d+`).Find(out))
}
