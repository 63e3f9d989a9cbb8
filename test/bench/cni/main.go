// Command cni measures Ropewalk's CNI plugin and the reference plugins side by side: how long ADD, CHECK and DEL take, each driven
// through libcni, as by a runtime, on a node that is a network namespace, in turns, pod by pod, dual-stack; and what packets cost between
// pods, on one node and on two, there beside the ways that flannel leads them.
package main

import (
	"context"
	"flag"
	"fmt"
	"syscall"
	"time"

	"github.com/ropewalk-net/ropewalk/test/bench/box"
	"github.com/ropewalk-net/ropewalk/test/bench/report"
)

var (
	ours   = flag.String("ropewalk", "bin", "the directory with ropewalk and ropewalk-cni")
	stock  = flag.String("plugins", "bin/stock", "the directory with the reference plugins")
	pods   = flag.Int("pods", 100, "pods, one after the other")
	burst  = flag.Int("burst", 50, "pods at the same time; all of them are attached, and then detached")
	runs   = flag.Int("runs", 5, "times that the burst is measured")
	rounds = flag.Int("rounds", 9, "times that packets are measured")
	each   = flag.Duration("each", time.Second, "how long a stream goes on")
	doc    = flag.String("write", "", "a document to write the tables into")
)

// patience is for all together.
const patience = 20 * time.Minute

func main() { box.Run("bench-cni", "", all) }

func all(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// Names of namespaces are files in /run, which is shared with the machine.
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return err
	}
	text := report.Stamp(report.Command("make bench-cni"), time.Now())
	fmt.Println(text)
	for _, part := range []func(context.Context, string) (string, error){attaching, packets} {
		t, err := part(ctx, dir)
		if err != nil {
			return err
		}
		fmt.Println(t)
		text += "\n" + t
	}
	if *doc == "" {
		return nil
	}
	return report.Save(*doc, "bench-cni", text)
}
