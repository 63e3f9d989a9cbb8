package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/ropewalk-net/ropewalk/test/bench/report"
)

type times = report.Samples[time.Duration]

// plugins is a list of them, and what it took.
type plugins struct {
	name string
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	// args are what the runtime passes on of what the pod asks for.
	args            map[string]any
	add, check, del verb
	addAll, delAll  times
}

// verb is what one took, alone: on the clock, and the CPU time of the programs.
type verb struct{ took, cpu times }

// asking is what a pod may ask for.
var asking = map[string]any{
	"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}},
	"bandwidth":    map[string]any{"ingressRate": 1e8, "ingressBurst": 1e7, "egressRate": 1e8, "egressBurst": 1e7},
}

// attaching measures pods that ask for nothing, and pods that ask for a port and a bandwidth.
func attaching(ctx context.Context, dir string) (text string, err error) {
	for i, args := range []map[string]any{nil, asking} {
		list, err := candidates(dir, i, args)
		if err != nil {
			return "", err
		}
		for i := range *pods {
			for _, c := range list {
				if err := c.one(ctx, i); err != nil {
					return "", fmt.Errorf("%s: %w", c.name, err)
				}
			}
		}
		if args == nil { // a port can be but one pod's
			for range *runs {
				for _, c := range list {
					if err := c.many(ctx); err != nil {
						return "", fmt.Errorf("%s: %w", c.name, err)
					}
				}
			}
			text += fmt.Sprintf("**Attaching a pod**: %d pods, one after the other, and %d at the same time, %d times.\n\n", *pods, *burst, *runs)
		} else {
			text += fmt.Sprintf("\n**Attaching a pod that asks for a port of the node and for limits of its bandwidth**: %d pods, one after the other.\n\n", *pods)
		}
		text += attached(list)
	}
	return text, nil
}

func attached(list []*plugins) string {
	var names []string
	for _, c := range list {
		names = append(names, c.name)
	}
	var rows []report.Row[*plugins]
	for _, v := range []struct {
		name string
		of   func(*plugins) *verb
	}{
		{"ADD", func(c *plugins) *verb { return &c.add }}, {"CHECK", func(c *plugins) *verb { return &c.check }}, {"DEL", func(c *plugins) *verb { return &c.del }},
	} {
		took := report.Took(v.name, "ms", func(c *plugins) times { return v.of(c).took })
		slow := took
		slow.Name, slow.Share = v.name+", 99th percentile", func(c *plugins, _ float64) float64 { return took.Share(c, 0.99) }
		if v.name == "ADD" {
			took.Part = 0.5
		}
		rows = append(rows, took, slow, report.Took(v.name+", CPU time of the programs", "ms", func(c *plugins) times { return v.of(c).cpu }))
	}
	rows = append(rows,
		report.Took(fmt.Sprintf("%d ADDs at the same time", *burst), "ms", func(c *plugins) times { return c.addAll }),
		report.Took(fmt.Sprintf("%d DELs at the same time", *burst), "ms", func(c *plugins) times { return c.delAll }))
	return report.Compare(names, list, rows, true)
}

// hostLocal is a range of its own for each n.
func hostLocal(dir string, n int) map[string]any {
	return map[string]any{"type": "host-local", "dataDir": filepath.Join(dir, fmt.Sprint("leases", n)), "ranges": [][]map[string]any{
		{{"subnet": fmt.Sprintf("10.24%d.0.0/24", n)}}, {{"subnet": fmt.Sprintf("fd00:24%d::/64", n)}}},
		"routes": []map[string]any{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}}}
}

func ropewalkCNI(dir, mode string, n int) map[string]any {
	return map[string]any{"type": "ropewalk-cni", "mode": mode, "ranges": []string{fmt.Sprintf("10.24%d.0.0/24", n), fmt.Sprintf("fd00:24%d::/64", n)},
		"dataDir": filepath.Join(dir, fmt.Sprint("ropewalk", n)), "capabilities": map[string]bool{"portMappings": true, "bandwidth": true}}
}

// chain is what most clusters run that run the reference plugins.
func chain(dir string, n int) []map[string]any {
	return []map[string]any{
		{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": hostLocal(dir, n)},
		{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}},
	}
}

// candidates returns Ropewalk first, and then what it is compared with.
func candidates(dir string, run int, args map[string]any) (out []*plugins, err error) {
	dir = filepath.Join(dir, fmt.Sprint("run", run))
	for _, c := range []struct {
		name    string
		plugins []map[string]any
	}{
		{"Ropewalk", []map[string]any{ropewalkCNI(dir, "routed", 4)}},
		{"bridge, host-local, portmap, bandwidth", chain(dir, 5)},
		{"Ropewalk, mode bridge", []map[string]any{ropewalkCNI(dir, "bridge", 6)}},
		{"ptp, host-local", []map[string]any{{"type": "ptp", "ipam": hostLocal(dir, 7)}}},
	} {
		if args != nil && len(c.plugins) == 1 && c.plugins[0]["type"] == "ptp" {
			continue // it has neither
		}
		list, cni, err := libCNI(dir, c.name, c.plugins)
		if err != nil {
			return nil, err
		}
		out = append(out, &plugins{name: c.name, list: list, cni: cni, args: args})
	}
	return out, nil
}

func libCNI(dir, name string, plugins []map[string]any) (*libcni.NetworkConfigList, *libcni.CNIConfig, error) {
	b, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": plugins[0]["type"], "plugins": plugins})
	if err != nil {
		return nil, nil, err
	}
	list, err := libcni.NetworkConfFromBytes(b)
	return list, libcni.NewCNIConfigWithCacheDir([]string{*ours, *stock}, filepath.Join(dir, "cache", name), nil), err
}

// one attaches, checks and detaches a pod.
func (c *plugins) one(ctx context.Context, i int) error {
	pod, err := attachments(1, i, c.args)
	if err != nil {
		return err
	}
	defer remove(pod)
	for _, step := range []struct {
		verb *verb
		do   func() error
	}{
		{&c.add, func() error { _, err := c.cni.AddNetworkList(ctx, c.list, pod[0]); return err }},
		{&c.check, func() error { return c.cni.CheckNetworkList(ctx, c.list, pod[0]) }},
		{&c.del, func() error { return c.cni.DelNetworkList(ctx, c.list, pod[0]) }},
	} {
		start, used := time.Now(), childrenTime()
		if err := step.do(); err != nil {
			return err
		}
		step.verb.took.Add(time.Since(start))
		step.verb.cpu.Add(childrenTime() - used)
	}
	return nil
}

// childrenTime is how long the programs have run for that this one has started, and that have ended.
func childrenTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u) // fails for a bad pointer only
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// many attaches pods at the same time, and then detaches them.
func (c *plugins) many(ctx context.Context) error {
	list, err := attachments(*burst, 0, nil)
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
func attachments(n, first int, args map[string]any) ([]*libcni.RuntimeConf, error) {
	var list []*libcni.RuntimeConf
	var commands strings.Builder
	for i := range n {
		name := fmt.Sprintf("bench-%d-%d", os.Getpid(), first+i)
		fmt.Fprintf(&commands, "netns add %s\n", name)
		list = append(list, attachment(name, args))
	}
	return list, ip("", commands.String())
}

// attachment is what a runtime knows of the pod whose namespace has the name.
func attachment(name string, args map[string]any) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: name, NetNS: "/run/netns/" + name, IfName: "eth0", CapabilityArgs: args}
}

func remove(list []*libcni.RuntimeConf) {
	var commands strings.Builder
	for _, p := range list {
		fmt.Fprintf(&commands, "netns del %s\n", p.ContainerID)
	}
	_ = ip("", commands.String()) // they are gone with the benchmark at the latest
}

// ip gives ip(8) commands, one a line, in the namespace of that name, or in the program's own if it is empty.
func ip(name, commands string) error {
	args := []string{"-batch", "-"}
	if name != "" {
		args = append([]string{"-n", name}, args...)
	}
	cmd := exec.Command("ip", args...)
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -batch: %w: %s", err, out)
	}
	return nil
}
