// Command agent measures what `ropewalk agent`, with all of its parts, costs a node of a large cluster that does nothing but go on: its
// memory and its CPU time, while nodes tell that they are alive. test/standin plays the API server.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ropewalk-net/ropewalk/test/bench/box"
	"github.com/ropewalk-net/ropewalk/test/bench/report"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

var (
	program  = flag.String("ropewalk", "bin/ropewalk", "the ropewalk to measure")
	plugin   = flag.String("plugin", "bin/ropewalk-cni", "the CNI plugin that it installs")
	nodes    = flag.Int("nodes", 1000, "nodes of the cluster")
	services = flag.Int("services", 10_000, "services of the cluster, with two endpoints each")
	pods     = flag.Int("pods", 110, "pods of the node")
	idle     = flag.Duration("idle", time.Minute, "how long is measured")
	doc      = flag.String("write", "", "a document to write the table into")
)

const patience = 10 * time.Minute

func main() { box.Run("bench-agent", "", all) }

func all(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// The collector of this process must not run beside what is measured.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(8 << 30)
	if err := network(); err != nil {
		return err
	}
	api := standin.New(nil)
	defer api.Close()
	fill(api)
	cmd, err := start(ctx, dir, api.Kubeconfig(dir))
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := ready(ctx); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "agent.log"))
		return fmt.Errorf("%w\n%s", err, log)
	}
	took := time.Since(begun)
	starting, err := box.CPU(cmd.Process.Pid)
	if err != nil {
		return err
	}
	time.Sleep(10 * time.Second) // what it does once it is ready
	before, err := box.CPU(cmd.Process.Pid)
	if err != nil {
		return err
	}
	wall := time.Now()
	beat(api, *idle)
	share := time.Since(wall)
	after, err := box.CPU(cmd.Process.Pid)
	if err != nil {
		return err
	}
	resident, peak, err := box.Memory(cmd.Process.Pid)
	if err != nil {
		return err
	}
	text := report.Stamp(report.Command("make bench-agent"), time.Now()) + fmt.Sprintf("\n%d nodes, %d services with two endpoints each, %d pods on the node.\n\n", *nodes, *services, *pods) +
		report.Table([]string{"ropewalk agent", "", "budget"}, [][]string{
			{"start until all parts are ready", fmt.Sprintf("%.2f s", took.Seconds()), ""},
			{"CPU time of that", fmt.Sprintf("%.2f s", starting.Seconds()), ""},
			{"resident, at rest", fmt.Sprintf("%.0f MB", float64(resident)/1e6), "150 MB"},
			{"resident, at most until then", fmt.Sprintf("%.0f MB", float64(peak)/1e6), ""},
			{"CPU at rest, of a core", fmt.Sprintf("%.2f %%", 100*float64(after-before)/float64(share)), "1 %"},
		})
	fmt.Println(text)
	if *doc == "" {
		return nil
	}
	return report.Save(*doc, "bench-agent", text)
}

// network has an address that other nodes are neighbours of.
func network() error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader("link add eth0 type veth peer name other\naddr add 172.16.0.1/12 dev eth0\nlink set eth0 up\nlink set other up\nroute add default via 172.16.0.254\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
	}
	return nil
}

func start(ctx context.Context, dir, kubeconfig string) (*exec.Cmd, error) {
	installed, err := filepath.Abs(*plugin)
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf("apiVersion: ropewalk.dev/v1alpha1\nkind: AgentConfiguration\nhosts: {kubelet-dir: %[1]s/kubelet}\n"+
		"routes: {conf-dir: %[1]s/net.d, data-dir: %[1]s/data}\ncni: {plugin: %[2]s, bin-dir: %[1]s/bin}\n", dir, installed)
	file := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, err
	}
	for i := range *pods { // what the kubelet makes
		pod := filepath.Join(dir, "kubelet/pods", uid(i))
		if err := os.MkdirAll(pod, 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(pod, "etc-hosts"), nil, 0o644); err != nil {
			return nil, err
		}
	}
	log, err := os.Create(filepath.Join(dir, "agent.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, *program, "agent", "--node-name", nodeName(0), "--kubeconfig", kubeconfig, "--config", file)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, cmd.Start()
}

// ready waits until all parts are.
func ready(ctx context.Context) error {
	for {
		resp, err := http.Get("http://127.0.0.1:9150/readyz")
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("%s", body)
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func nodeName(i int) string { return fmt.Sprintf("node-%d", i) }
func uid(i int) string      { return fmt.Sprintf("1b2c3d4e-0000-4000-8000-%012d", i) }

// fill gives the API server the cluster.
func fill(api *standin.Server) {
	api.Apply(&networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12"}},
		Status: networkingv1.ServiceCIDRStatus{Conditions: []metav1.Condition{{Type: "Ready", Status: "True"}}},
	})
	for i := range *nodes {
		api.Apply(node(i, 0))
	}
	for i := range *services {
		name := fmt.Sprintf("backend-%d", i)
		meta := func(name string) metav1.ObjectMeta {
			return metav1.ObjectMeta{Namespace: fmt.Sprintf("team-%d", i%100), Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("backend-%d", i)}}
		}
		ip := fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255)
		s := &corev1.Service{ObjectMeta: meta(name), Spec: corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}}}}
		slice := &discoveryv1.EndpointSlice{ObjectMeta: meta(name + "-x7k2p"), AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}}}
		for j := range 2 {
			at := (i + j) % *nodes
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 128+at>>8, at&255, 2 + i / *nodes)}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}, NodeName: new(nodeName(at))})
		}
		api.Apply(s, slice)
	}
	for i := range *pods {
		ip := fmt.Sprintf("10.128.0.%d", 2+i)
		api.Apply(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "team-0", Name: fmt.Sprintf("pod-%d", i), UID: types.UID(uid(i))}, Spec: corev1.PodSpec{NodeName: nodeName(0)},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}})
	}
}

// node is one that has told for the n-th time that it is alive.
func node(i, n int) *corev1.Node {
	addr := "172.16.0.1"
	if i > 0 {
		addr = fmt.Sprintf("172.17.%d.%d", i>>8, i&255)
	}
	cidrs := []string{fmt.Sprintf("10.%d.%d.0/24", 128+i>>8, i&255), fmt.Sprintf("fd00:244:%x::/64", i)}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName(i)}, Spec: corev1.NodeSpec{PodCIDR: cidrs[0], PodCIDRs: cidrs},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(time.Unix(int64(1_700_000_000+n), 0))}},
		},
	}
}

// beat has each node write its status every five minutes, as the kubelet does, for a time.
func beat(api *standin.Server, d time.Duration) {
	begun := time.Now()
	for n := 1; time.Since(begun) < d; n++ {
		api.Apply(node(n%*nodes, n))
		time.Sleep(5 * time.Minute / time.Duration(*nodes))
	}
}
