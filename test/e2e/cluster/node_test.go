//go:build e2e

package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ropewalk-net/ropewalk/test/e2e/containerd"
	"github.com/ropewalk-net/ropewalk/test/wait"
)

// node is a machine of the cluster: namespaces, with a kubelet and containerd.
type node struct {
	*cluster
	name         string
	addr4, addr6 string
	mac          string
	home         string // where it keeps what outlives a restart
	machine      *process
	runtime      *process
	kubelet      *process
}

// newNode makes a node, the i-th from 1, and starts it.
func (c *cluster) newNode(t *testing.T, i int) *node {
	t.Helper()
	n := &node{cluster: c, name: fmt.Sprintf("node-%d", i), addr4: fmt.Sprintf("172.18.0.%d", 10+i), addr6: fmt.Sprintf("fd00:172:18::%x", 16+i), mac: fmt.Sprintf("02:00:00:00:00:%02x", 16+i)}
	n.home = filepath.Join(dir, n.name)
	c.nodes = append(c.nodes, n)
	c.issue(t, n.name, "system:node:"+n.name, []string{"system:nodes"}, n.name, n.addr4, n.addr6)
	c.kubeconfig(t, n.path("/var/lib/kubelet/kubeconfig"), n.name)
	for from, to := range map[string]string{"ca.crt": "ca.crt", n.name + ".crt": "kubelet.crt", n.name + ".key": "kubelet.key"} {
		text, err := os.ReadFile(c.file(from))
		if err != nil {
			t.Fatal(err)
		}
		n.write(t, "/var/lib/kubelet/"+to, string(text))
	}
	n.write(t, "/var/lib/kubelet/resolv.conf", "nameserver "+control4+"\n") // where nobody answers
	n.write(t, "/var/lib/kubelet/config.yaml", fmt.Sprintf(kubeletConfig, dnsService4))
	n.write(t, "/var/lib/containerd.toml", containerdConfig)
	n.start(t)
	return n
}

// path returns where a file of the node's is that outlives a restart.
func (n *node) path(file string) string {
	return filepath.Join(n.home, "lib", strings.TrimPrefix(file, "/var/lib"))
}

func (n *node) write(t *testing.T, file, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(n.path(file)), 0o755), os.WriteFile(n.path(file), []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  x509: {clientCAFile: /var/lib/kubelet/ca.crt}
tlsCertFile: /var/lib/kubelet/kubelet.crt
tlsPrivateKeyFile: /var/lib/kubelet/kubelet.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
clusterDomain: cluster.local
clusterDNS: [%s]
resolvConf: /var/lib/kubelet/resolv.conf
volumePluginDir: /var/lib/kubelet/volumeplugins
evictionHard: {memory.available: 50Mi, nodefs.available: 1%%, imagefs.available: 1%%}
failSwapOn: false
makeIPTablesUtilChains: false
oomScoreAdj: 0
`

const containerdConfig = `version = 3
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.nri.v1.nri"]
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "ropewalk.test/tool:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
  use_internal_loopback = true
`

// start starts the machine and all that runs on it.
func (n *node) start(t *testing.T) {
	t.Helper()
	if err := n.powerOn(); err != nil {
		t.Fatal(err)
	}
	n.runtime = n.run(t, "containerd", "containerd", "--config", "/var/lib/containerd.toml")
	n.load(t, toolImage, n.toolArchive) // when it listens, as the kubelet wants it
	n.startKubelet(t)
}

func (n *node) startKubelet(t *testing.T) {
	t.Helper()
	n.kubelet = n.run(t, "kubelet", "kubelet", "--config=/var/lib/kubelet/config.yaml", "--kubeconfig=/var/lib/kubelet/kubeconfig",
		"--hostname-override="+n.name, "--node-ip="+n.addr4+","+n.addr6)
}

// run starts a program on the node.
func (n *node) run(t *testing.T, name, program string, args ...string) *process {
	t.Helper()
	return start(t, n.pid(), n.name+"-"+name, program, args...)
}

// socket is where its containerd listens.
func (n *node) socket() string {
	return fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", n.pid())
}

// load gives the node's containerd an image, as `ctr images import` does.
func (n *node) load(t *testing.T, image string, archive []byte) {
	t.Helper()
	if err := containerd.Import(t.Context(), n.socket(), image, archive); err != nil {
		t.Fatalf("%s: %s: %v", n.name, image, err)
	}
}

// powerOn makes the node's namespaces and connects it, with the same MAC address each time: machines keep theirs, and whoever has talked
// to one over IPv6 goes on sending to it there, for a minute.
func (n *node) powerOn() error {
	if err := os.MkdirAll(filepath.Join(logs, n.name), 0o755); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := reexec(machine)
	cmd.Env = append(cmd.Env, "MACHINE_NAME="+n.name, "MACHINE_DIR="+n.home, "MACHINE_LOGS="+filepath.Join(logs, n.name))
	cmd.Stdin = w
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	n.machine, err = launch(0, n.name, cmd)
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, bufio.NewReader(r)); err != nil { // until it is up
		return err
	}
	if err := ip(fmt.Sprintf("link add %[1]s type veth peer name eth0 address %[3]s netns %[2]d\nlink set %[1]s master br0\nlink set %[1]s up\n", n.name, n.pid(), n.mac)); err != nil {
		return err
	}
	return run(strings.NewReader(fmt.Sprintf("link set lo up\nlink set eth0 up\naddr add %s/24 dev eth0\naddr add %s/64 dev eth0 nodad\nroute add default via %s\nroute add default via %s\n",
		n.addr4, n.addr6, control4, control6)), "nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", n.pid()), "ip", "-batch", "-")
}

// pid is that of the machine's first process.
func (n *node) pid() int { return n.machine.cmd.Process.Pid }

// powerOff ends the machine, with all that runs on it, as if its plug were pulled.
func (n *node) powerOff(t *testing.T) {
	t.Helper()
	for _, p := range []*process{n.machine, n.kubelet, n.runtime} {
		p.stop(syscall.SIGKILL)
	}
	// The kernel takes its namespace away in a while, and the link with it.
	_ = ip("link del " + n.name + "\n")
	// No boot finds cgroups of the last one.
	all, err := cgroups()
	if err != nil {
		t.Fatal(err)
	}
	soon(t, "the cgroups of "+n.name+" are gone", func() (err error) {
		for _, p := range all {
			err = errors.Join(err, removeCgroup(filepath.Join(p, n.name)))
		}
		return err
	})
}

// ready waits until the API has the node for ready.
func (n *node) ready(t *testing.T) {
	t.Helper()
	soon(t, n.name+" is ready", func() error {
		for _, p := range []*process{n.kubelet, n.runtime} {
			if err := p.gone(); err != nil {
				return &wait.Fatal{Err: err}
			}
		}
		object, err := n.client.CoreV1().Nodes().Get(context.Background(), n.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range object.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("%+v", object.Status.Conditions)
	})
}
