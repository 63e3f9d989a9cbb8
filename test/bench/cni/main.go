// Command cni measures how long ADD, CHECK and DEL take, with Ropewalk's CNI plugin and with the reference plugins side by side. Each is
// driven through libcni, as by a runtime, on a node that is a network namespace, in turns, pod by pod, dual-stack.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/ropewalk-net/ropewalk/test/bench/box"
	"github.com/ropewalk-net/ropewalk/test/bench/report"
)

var (
	ours  = flag.String("ropewalk", "bin", "the directory with ropewalk-cni")
	stock = flag.String("plugins", "bin/stock", "the directory with the reference plugins")
	pods  = flag.Int("pods", 100, "pods, one after the other")
	burst = flag.Int("burst", 50, "pods at the same time; all of them are attached, and then detached")
	runs  = flag.Int("runs", 3, "times that the burst is measured")
	doc   = flag.String("write", "", "a document to write the table into")
)

// patience is for all together.
const patience = 10 * time.Minute

func main() { box.Run("bench-cni", "", all) }

// candidate is a list of plugins, and what it took.
type candidate struct {
	name                            string
	cni                             *libcni.CNIConfig
	list                            *libcni.NetworkConfigList
	add, check, del, addAll, delAll report.Samples[time.Duration]
}

func all(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// Names of namespaces are files in /run, which is shared with the machine.
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return err
	}
	list, err := candidates(dir)
	if err != nil {
		return err
	}
	for i := range *pods {
		for _, c := range list {
			if err := c.one(ctx, i); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	for range *runs {
		for _, c := range list {
			if err := c.many(ctx); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	text := report.Stamp(report.Command("make bench-cni"), time.Now()) + "\n" + table(list)
	fmt.Println(text)
	if *doc == "" {
		return nil
	}
	return report.Save(*doc, "bench-cni", text)
}

func table(list []*candidate) string {
	var names []string
	for _, c := range list {
		names = append(names, c.name)
	}
	took := func(name string, of func(*candidate) report.Samples[time.Duration]) report.Row[*candidate] {
		return report.Took(name, "ms", of)
	}
	return report.Compare(names, list, []report.Row[*candidate]{
		took("ADD", func(c *candidate) report.Samples[time.Duration] { return c.add }).Within(0, 0.5),
		took("CHECK", func(c *candidate) report.Samples[time.Duration] { return c.check }),
		took("DEL", func(c *candidate) report.Samples[time.Duration] { return c.del }),
		took(fmt.Sprintf("%d ADDs at the same time", *burst), func(c *candidate) report.Samples[time.Duration] { return c.addAll }),
		took(fmt.Sprintf("%d DELs at the same time", *burst), func(c *candidate) report.Samples[time.Duration] { return c.delAll }),
	}, true)
}

// candidates returns Ropewalk first, and then what it is compared with.
func candidates(dir string) ([]*candidate, error) {
	hostLocal := func(n int) map[string]any {
		return map[string]any{"type": "host-local", "dataDir": filepath.Join(dir, fmt.Sprint("leases", n)), "ranges": [][]map[string]any{
			{{"subnet": fmt.Sprintf("10.24%d.0.0/24", n)}}, {{"subnet": fmt.Sprintf("fd00:24%d::/64", n)}}},
			"routes": []map[string]any{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}}}
	}
	var out []*candidate
	for _, c := range []struct {
		name    string
		plugins []map[string]any
	}{
		{"Ropewalk", []map[string]any{{"type": "ropewalk-cni", "mode": "routed", "ranges": []string{"10.244.0.0/24", "fd00:244::/64"}, "dataDir": filepath.Join(dir, "ropewalk")}}},
		{"bridge, host-local, portmap", []map[string]any{
			{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": hostLocal(5)},
			{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}}}},
		{"ptp, host-local", []map[string]any{{"type": "ptp", "ipam": hostLocal(6)}}},
	} {
		b, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": c.plugins[0]["type"], "plugins": c.plugins})
		if err != nil {
			return nil, err
		}
		list, err := libcni.NetworkConfFromBytes(b)
		if err != nil {
			return nil, err
		}
		out = append(out, &candidate{name: c.name, list: list,
			cni: libcni.NewCNIConfigWithCacheDir([]string{*ours, *stock}, filepath.Join(dir, "cache", c.name), nil)})
	}
	return out, nil
}

// one attaches, checks and detaches a pod.
func (c *candidate) one(ctx context.Context, i int) error {
	pod, err := attachments(1, i)
	if err != nil {
		return err
	}
	defer remove(pod)
	for _, step := range []struct {
		took *report.Samples[time.Duration]
		do   func() error
	}{
		{&c.add, func() error { _, err := c.cni.AddNetworkList(ctx, c.list, pod[0]); return err }},
		{&c.check, func() error { return c.cni.CheckNetworkList(ctx, c.list, pod[0]) }},
		{&c.del, func() error { return c.cni.DelNetworkList(ctx, c.list, pod[0]) }},
	} {
		start := time.Now()
		if err := step.do(); err != nil {
			return err
		}
		step.took.Add(time.Since(start))
	}
	return nil
}

// many attaches pods at the same time, and then detaches them.
func (c *candidate) many(ctx context.Context) error {
	list, err := attachments(*burst, 0)
	if err != nil {
		return err
	}
	defer remove(list)
	took, err := together(list, func(p *libcni.RuntimeConf) error { _, err := c.cni.AddNetworkList(ctx, c.list, p); return err })
	if err != nil {
		return err
	}
	c.addAll.Add(took)
	took, err = together(list, func(p *libcni.RuntimeConf) error { return c.cni.DelNetworkList(ctx, c.list, p) })
	c.delAll.Add(took)
	return err
}

func together(list []*libcni.RuntimeConf, do func(*libcni.RuntimeConf) error) (time.Duration, error) {
	var wg sync.WaitGroup
	failed := make(chan error, len(list))
	start := time.Now()
	for _, p := range list {
		wg.Go(func() {
			if err := do(p); err != nil {
				failed <- err
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	close(failed)
	return took, <-failed
}

// attachments makes namespaces of pods.
func attachments(n, first int) ([]*libcni.RuntimeConf, error) {
	var list []*libcni.RuntimeConf
	var commands strings.Builder
	for i := range n {
		name := fmt.Sprintf("bench-%d-%d", os.Getpid(), first+i)
		fmt.Fprintf(&commands, "netns add %s\n", name)
		list = append(list, &libcni.RuntimeConf{ContainerID: name, NetNS: "/run/netns/" + name, IfName: "eth0"})
	}
	return list, batch(commands.String())
}

func remove(list []*libcni.RuntimeConf) {
	var commands strings.Builder
	for _, p := range list {
		fmt.Fprintf(&commands, "netns del %s\n", p.ContainerID)
	}
	_ = batch(commands.String()) // they are gone with the benchmark at the latest
}

func batch(commands string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -batch: %w: %s", err, out)
	}
	return nil
}
