// Package agent holds the tests of `ropewalk agent`: the program, in namespaces, in front of a stand-in for an API server.
package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/program"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

func TestMain(m *testing.M) { os.Exit(program.Run(m.Run, program.Ropewalk, program.Plugin)) }

const nodeObjects = `
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24]}
status:
  addresses: [{type: InternalIP, address: 192.0.2.1}]
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDRs: [10.244.2.0/24]}
status:
  addresses: [{type: InternalIP, address: 192.0.2.2}]
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16]}
`

const service = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7]
  ports: [{port: 80, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.244.2.9], conditions: {ready: true}}]
`

// rig is a node, and what its agent is told.
type rig struct {
	*testing.T
	dir   string
	api   *standin.Server
	log   *program.Log
	agent *exec.Cmd
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := newNode(t, "addr add 192.0.2.1/24 dev eth0\nroute add default via 192.0.2.254\n")
	r.api.Load([]byte(nodeObjects))
	r.api.Load([]byte(service))
	return r
}

// newNode is one of a cluster that has no objects yet. network are commands of ip(8).
func newNode(t *testing.T, network string) *rig {
	t.Helper()
	netns.NeedCommand(t, "nft")
	netns.Batch(t, "", "link add eth0 type veth peer name other\nlink set eth0 up\nlink set other up\n"+network)
	r := &rig{T: t, dir: t.TempDir(), api: standin.New(t), log: &program.Log{}}
	if err := os.MkdirAll(filepath.Join(r.dir, "kubelet/pods"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent said:\n%s", r.log)
		}
	})
	return r
}

// configure writes the configuration.
func (r *rig) configure(mtu int, more string) {
	r.Helper()
	r.write("agent.yaml", mtu, os.Getenv(program.Plugin), more)
}

func (r *rig) write(file string, mtu int, plugin, more string) {
	r.Helper()
	text := fmt.Sprintf(`apiVersion: ropewalk.dev/v1alpha1
kind: AgentConfiguration
hosts:
  kubelet-dir: %[1]s/kubelet
  node-hosts: %[1]s/hosts
routes:
  overlay: direct
  mtu: %[2]d
  conf-dir: %[1]s/net.d
  data-dir: %[1]s/data
cni:
  plugin: %[3]s
  bin-dir: %[1]s/bin
%[4]s`, r.dir, mtu, plugin, more)
	// By another file that is put in its place, as the kubelet does it.
	unfinished := filepath.Join(r.dir, "agent.new")
	if err := errors.Join(os.WriteFile(unfinished, []byte(text), 0o644), os.Rename(unfinished, filepath.Join(r.dir, file))); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) start() {
	r.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, "hosts"), []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		r.Fatal(err)
	}
	r.agent = r.command("agent", "--config", filepath.Join(r.dir, "agent.yaml"))
	r.agent.Stderr = r.log
	if err := r.agent.Start(); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { r.stop(syscall.SIGKILL) })
}

// command is one that runs on, of this node.
func (r *rig) command(args ...string) *exec.Cmd {
	return exec.Command(os.Getenv(program.Ropewalk), append(args, "--node-name", "n1", "--kubeconfig", r.api.Kubeconfig(r.dir))...)
}

// stop ends the agent and returns its exit code.
func (r *rig) stop(with syscall.Signal) int {
	if r.agent == nil {
		return 0
	}
	_ = r.agent.Process.Signal(with)
	_ = r.agent.Wait()
	code := r.agent.ProcessState.ExitCode()
	r.agent = nil
	return code
}

// status is what `ropewalk status` says, and how it ends.
func (r *rig) status() (ready map[string]bool, counts map[string]float64, text string, exit int) {
	cmd := exec.Command(os.Getenv(program.Ropewalk), "status", "-o", "json")
	out, _ := cmd.Output()
	var st struct {
		Parts []struct {
			Name  string
			Ready bool
		}
		Counts map[string]float64
	}
	_ = json.Unmarshal(out, &st) // without an agent there is none
	ready = map[string]bool{}
	for _, p := range st.Parts {
		ready[p.Name] = p.Ready
	}
	return ready, st.Counts, string(out), cmd.ProcessState.ExitCode()
}

func (r *rig) soon(what string, is func() bool) {
	r.Helper()
	for begun := time.Now(); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > 20*time.Second {
			_, _, text, _ := r.status()
			r.Fatalf("%s: not so\n%s", what, text)
		}
	}
}

func (r *rig) allReady() {
	r.Helper()
	r.soon("all parts are ready", func() bool { _, _, _, exit := r.status(); return exit == 0 })
}

func (r *rig) exists(name string) bool {
	_, err := os.Stat(filepath.Join(r.dir, name))
	return err == nil
}

// TestAgent goes through the life of an agent: all parts do what they do, with one watch a kind; its configuration changes, and what did not
// is left alone; a part fails, and the others go on; it ends, and all stays; and the next finds it so.
func TestAgent(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := newRig(t)
	if _, _, _, exit := r.status(); exit != 2 {
		t.Errorf("status without an agent ends with %d", exit)
	}
	r.configure(1400, "")
	r.start()
	r.allReady()
	ready, counts, text, _ := r.status()
	if len(ready) != 4 || counts["services"] != 1 || counts["endpoints"] != 1 || counts["other nodes"] != 1 {
		t.Errorf("it serves %s", text)
	}
	kernel := func() string {
		return netns.Run(t, "ip", "route", "show", "proto", "82") + netns.Run(t, "nft", "list", "tables")
	}
	was := kernel()
	for _, want := range []string{"10.244.2.0/24 via 192.0.2.2", "table ip ropewalk\n", "ropewalk-masquerade"} {
		if !strings.Contains(was, want) {
			t.Errorf("%q is not in\n%s", want, was)
		}
	}
	if !r.exists("bin/ropewalk-cni") || !r.exists("net.d/10-ropewalk.conflist") {
		t.Error("the plugin or its configuration is missing")
	}
	watches := map[string]int{}
	for _, req := range r.api.Requests() {
		if req.Verb == "watch" {
			watches[req.Kind]++
		}
	}
	for resource, n := range watches {
		if n != 1 {
			t.Errorf("%d watches of %s", n, resource)
		}
	}
	if len(watches) < 6 {
		t.Errorf("watched are %v", watches)
	}

	// A node that is on no link is told of, and the agent is ready.
	r.api.Load([]byte(`
apiVersion: v1
kind: Node
metadata: {name: far}
spec: {podCIDRs: [10.244.3.0/24]}
status:
  addresses: [{type: InternalIP, address: 198.51.100.3}]
`))
	r.soon("the far node is told of", func() bool {
		_, counts, _, exit := r.status()
		out, err := exec.Command(os.Getenv(program.Ropewalk), "status").Output()
		return exit == 0 && err == nil && counts["ranges that are not reached"] == 1 && regexp.MustCompile(`(?m)^routes +degraded .* node far, `).Match(out)
	})

	// Another MTU is a matter of routes alone.
	r.configure(1300, "")
	conflist := func() string {
		b, _ := os.ReadFile(filepath.Join(r.dir, "net.d/10-ropewalk.conflist"))
		return string(b)
	}
	r.soon("the new MTU is announced", func() bool { return strings.Contains(conflist(), `"mtu": 1300`) })
	if n := strings.Count(r.log.String(), `msg="part started" part=proxy`); n != 1 {
		t.Errorf("the proxy was started %d times", n)
	}
	// What is wrong changes nothing.
	r.configure(1200, "proxi: {}\n")
	r.soon("what is wrong is told", func() bool {
		return strings.Contains(r.log.String(), `there is no \"proxi\"; there are hosts, proxy, routes, cni`)
	})
	if !strings.Contains(conflist(), `"mtu": 1300`) {
		t.Errorf("the wrong file holds: %s", conflist())
	}
	// A part that is turned off ends, and what it has made stays.
	r.configure(1300, "proxy:\n  enabled: false\n")
	r.soon("the proxy has ended", func() bool { ready, _, _, _ := r.status(); return len(ready) == 3 })
	if now := kernel(); now != was {
		t.Errorf("there was\n%s\nand is\n%s", was, now)
	}
	r.configure(1300, "")
	r.allReady()

	// The folder for plugins becomes a file: the plugin cannot be installed, and nothing else minds.
	bin := filepath.Join(r.dir, "bin")
	if err := errors.Join(os.RemoveAll(bin), os.WriteFile(bin, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	r.soon("one part is not ready", func() bool {
		ready, _, _, exit := r.status()
		return exit == 1 && !ready["cni"] && ready["hosts"] && ready["proxy"] && ready["routes"]
	})
	r.api.Load([]byte(strings.ReplaceAll(strings.ReplaceAll(service, "web", "more"), "0.7", "0.8")))
	r.soon("a new service is served", func() bool { _, counts, _, _ := r.status(); return counts["services"] == 2 })
	if err := os.Remove(bin); err != nil {
		t.Fatal(err)
	}
	r.allReady()

	// SIGHUP has the file read, too.
	if err := r.agent.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}

	was = kernel()
	if code := r.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	if now := kernel(); now != was {
		t.Errorf("there was\n%s\nand is\n%s", was, now)
	}
	generation := netns.Run(t, "nft", "-a", "list", "table", "ip", "ropewalk")
	r.start()
	r.allReady()
	if now := netns.Run(t, "nft", "-a", "list", "table", "ip", "ropewalk"); now != generation {
		t.Errorf("the rules were written anew: there was\n%s\nand is\n%s", generation, now)
	}
}

// TestAgentFails holds that a part that cannot be made does not keep the others from what they do, and is made as soon as it can be.
func TestAgentFails(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := newRig(t)
	// Somebody has the address of the proxy's health server.
	r.configure(1400, "proxy:\n  healthz: 127.0.0.1:10256\n")
	l, err := net.Listen("tcp", "127.0.0.1:10256")
	if err != nil {
		t.Fatal(err)
	}
	r.start()
	r.soon("all but the proxy are ready", func() bool {
		ready, _, text, exit := r.status()
		return exit == 1 && len(ready) == 4 && !ready["proxy"] && ready["hosts"] && ready["routes"] && ready["cni"] && strings.Contains(text, "proxy.healthz takes another address")
	})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r.allReady()
	if !slices.Contains(strings.Split(netns.Run(t, "nft", "list", "tables"), "\n"), "table ip ropewalk") {
		t.Error("there are no rules")
	}
}

// TestBeside holds that of what an agent does no second process does any, however it is configured: by itself it ends, and says whose pid is to be
// ended; in an agent it waits, and goes on as soon as the first one has ended, or was killed. One that ends installs no plugin over its successor's.
func TestBeside(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := newRig(t)
	r.configure(1400, "")
	r.start()
	r.allReady()
	pid := fmt.Sprint("pid ", r.agent.Process.Pid)
	for _, args := range [][]string{
		{"routes", "--overlay", "vxlan", "--metrics", "", "--conf-dir", "", "--data-dir", r.dir}, {"proxy", "--metrics", "", "--healthz", ""},
		{"hosts", "run", "--metrics", "", "--kubelet-dir", filepath.Join(r.dir, "kubelet")}, {"cleanup", "proxy"}, {"cleanup", "routes"},
	} {
		cmd := r.command(args...)
		if args[0] == "cleanup" {
			cmd = exec.Command(os.Getenv(program.Ropewalk), args...)
		}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), pid) || !strings.Contains(string(out), "end that one") {
			t.Errorf("%s: %v\n%s", args[0], err, out)
		}
	}

	other := filepath.Join(r.dir, "other")
	if err := os.WriteFile(other, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.write("second.yaml", 1300, other, "proxy:\n  healthz: \"\"\n")
	second, said := r.command("agent", "--metrics", "", "--config", filepath.Join(r.dir, "second.yaml")), &program.Log{}
	second.Stderr = said
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Process.Kill(); _ = second.Wait() }()
	all := func(what string) func() bool {
		return func() bool {
			for _, part := range []string{"hosts", "proxy", "routes", "cni"} {
				if !strings.Contains(said.String(), fmt.Sprintf("msg=%q part=%s", what, part)) {
					return false
				}
			}
			return true
		}
	}
	r.soon("all parts of the second agent wait", all("part waits"))
	installed := func() bool {
		b, err := os.ReadFile(filepath.Join(r.dir, "bin/ropewalk-cni"))
		return err == nil && strings.HasPrefix(string(b), "#!")
	}
	if installed() {
		t.Error("the second agent has installed its plugin")
	}
	r.stop(syscall.SIGKILL)
	r.soon("the second agent does all", func() bool { return all("part started")() && installed() })
	if strings.Contains(said.String(), "part failed") {
		t.Errorf("it is taken for a failure:\n%s", said)
	}

	// And back, while the second one ends by itself.
	r.start()
	r.soon("the first waits", func() bool {
		_, _, text, exit := r.status()
		return exit == 1 && strings.Count(text, fmt.Sprint("pid ", second.Process.Pid)) == 4
	})
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.allReady()
	r.soon("the first one's plugin is installed", func() bool { return !installed() })
	if err := second.Wait(); err != nil || installed() {
		t.Errorf("the second ended with %v; its plugin is there: %t", err, installed())
	}
}

// TestStuck holds that SIGTERM ends an agent with a part that hangs, and that its last words name the part, and what it is at.
func TestStuck(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := newRig(t)
	// Somebody who opens it waits for a writer.
	fifo := filepath.Join(r.dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	r.configure(1400, "")
	text, err := os.ReadFile(filepath.Join(r.dir, "agent.yaml"))
	if err == nil {
		err = os.WriteFile(filepath.Join(r.dir, "agent.yaml"), []byte(strings.Replace(string(text), "routes:\n", "routes:\n  masquerade-config: "+fifo+"\n", 1)), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.start()
	r.soon("all parts but one are ready", func() bool {
		ready, _, _, _ := r.status()
		return ready["hosts"] && ready["proxy"] && ready["cni"] && !ready["routes"] && strings.Contains(netns.Run(t, "ip", "route"), "10.244.2.0/24")
	})
	if code := r.stop(syscall.SIGTERM); code != 2 {
		t.Errorf("it ended with %d", code)
	}
	for _, want := range []string{"\nropewalk: routes: it does not end", "masquerade.ReadFile"} {
		if !strings.Contains(r.log.String(), want) {
			t.Errorf("it does not say %q", want)
		}
	}
}
