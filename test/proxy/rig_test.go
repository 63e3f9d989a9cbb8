// Package proxy holds the tests of `ropewalk proxy` with real packets: the program, an API server's stand-in, and the network of
// a small cluster out of namespaces.
package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/program"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

const (
	nodeName   = "n1"
	secondName = "n2"
	zone       = "z1"
)

// What the services of the tests have.
var (
	clusterIPs  = []string{"10.96.0.10", "fd00:96::10"}
	externalIPs = []string{"198.51.100.1", "2001:db8:51::1"}
	lbIPs       = []string{"203.0.113.1", "2001:db8:113::1"}
	nodeIPs     = []string{clusternet.Node4, clusternet.Node6}
)

const nodePort = 30080

func TestMain(m *testing.M) { os.Exit(program.Run(m.Run, program.Ropewalk)) }

// rig is a node with a proxy, and an API server.
type rig struct {
	*testing.T
	api        *standin.Server
	kubeconfig string
	flags      []string
	agent      *exec.Cmd
	ended      chan struct{}
	log        *program.Log
	changes    int
}

// newRig makes the network and an API server that knows the node and ranges of services. Every pod, the far one too, serves at ports
// 8080 and 9090.
func newRig(t *testing.T, pods int, flags ...string) *rig {
	t.Helper()
	netns.NeedCommand(t, "nft")
	clusternet.Make(t, pods)
	clusternet.Route(t, "10.96.0.0/16", "fd00:96::/64", "198.51.100.0/24", "2001:db8:51::/64", "203.0.113.0/24", "2001:db8:113::/64")
	r := &rig{T: t, api: standin.New(t), log: &program.Log{}}
	r.kubeconfig = r.api.Kubeconfig(t.TempDir())
	r.flags = append([]string{"--cluster-cidr", clusternet.ClusterCIDR4 + "," + clusternet.ClusterCIDR6}, flags...)
	names := []string{clusternet.Far}
	for i := range pods {
		names = append(names, clusternet.Pod(i))
	}
	for _, n := range names {
		for _, a := range podIPs(n) {
			clusternet.Serve(t, n, net.JoinHostPort(a, "8080"))
			clusternet.Serve(t, n, net.JoinHostPort(a, "9090"))
		}
	}
	r.api.Apply(node(), cidrs("kubernetes", "10.96.0.0/16", "fd00:96::/64"))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the program said:\n%s", r.log)
		}
	})
	return r
}

// podIPs returns the addresses of a pod by the name of its namespace.
func podIPs(name string) []string {
	if name == clusternet.Far {
		return []string{clusternet.Far4, clusternet.Far6}
	}
	var i int
	if _, err := fmt.Sscanf(name, "pod%d", &i); err != nil {
		panic(name)
	}
	return []string{clusternet.Pod4(i), clusternet.Pod6(i)}
}

func node(change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{corev1.LabelTopologyZone: zone}},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{clusternet.PodCIDR4, clusternet.PodCIDR6}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: clusternet.Node4}, {Type: corev1.NodeInternalIP, Address: clusternet.Node6},
		}},
	}
	for _, c := range change {
		c(n)
	}
	return n
}

func cidrs(name string, ranges ...string) *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: ranges}}
}

// service is one of all addresses and both protocols: port 80 at ClusterIPs, external addresses and load balancers', nodePort at nodes.
func service(name string, change ...func(*corev1.Service)) *corev1.Service {
	dual := corev1.IPFamilyPolicyRequireDualStack
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: clusterIPs[0], ClusterIPs: clusterIPs, ExternalIPs: externalIPs,
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}, IPFamilyPolicy: &dual,
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
			Ports: []corev1.ServicePort{
				{Name: "t", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: nodePort, TargetPort: intstr.FromInt32(8080)},
				{Name: "u", Protocol: corev1.ProtocolUDP, Port: 80, NodePort: nodePort, TargetPort: intstr.FromInt32(8080)},
			},
		},
	}
	for _, ip := range lbIPs {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
	}
	for _, c := range change {
		c(s)
	}
	return s
}

// endpoints returns slices of a service, one for each family, for pods written as "pod0[,word…]": leaving, unready, zone=…, node=….
func endpoints(service string, port int32, pods ...string) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for i, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		tcp, udp, t, u := corev1.ProtocolTCP, corev1.ProtocolUDP, "t", "u"
		s := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop", Name: fmt.Sprintf("%s-%d-%s", service, port, strings.ToLower(string(family))),
				Labels:      map[string]string{discoveryv1.LabelServiceName: service},
				Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().Format(time.RFC3339Nano)},
			},
			AddressType: family,
			Ports:       []discoveryv1.EndpointPort{{Name: &t, Protocol: &tcp, Port: &port}, {Name: &u, Protocol: &udp, Port: &port}},
		}
		for _, text := range pods {
			s.Endpoints = append(s.Endpoints, endpoint(i, strings.Split(text, ",")))
		}
		out = append(out, s)
	}
	return out
}

func endpoint(family int, words []string) discoveryv1.Endpoint {
	yes, no := true, false
	on := nodeName
	if words[0] == clusternet.Far {
		on = secondName
	}
	e := discoveryv1.Endpoint{Addresses: []string{podIPs(words[0])[family]}, NodeName: &on, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		if e.Hints == nil && (key == "zone" || key == "node") {
			e.Hints = &discoveryv1.EndpointHints{}
		}
		switch key {
		case "leaving":
			e.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
		case "unready":
			e.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &no}
		case "zone":
			e.Hints.ForZones = []discoveryv1.ForZone{{Name: value}}
		case "node":
			e.Hints.ForNodes = []discoveryv1.ForNode{{Name: value}}
		default:
			panic(w)
		}
	}
	return e
}

// put brings a service and its only endpoints to the API server.
func (r *rig) put(s *corev1.Service, pods ...string) {
	r.Helper()
	r.api.Apply(s)
	for _, e := range endpoints(s.Name, 8080, pods...) {
		r.api.Apply(e)
	}
	r.settle()
}

// settle waits until the program, if it runs, has put what it was told of services and endpoints into the kernel: another service,
// which comes behind all that, has got its new port and its new endpoint.
func (r *rig) settle() {
	r.Helper()
	if r.agent == nil {
		return
	}
	r.changes++
	pod := clusternet.Pod(r.changes % 2)
	port := int32(1000 + r.changes)
	r.api.Apply(service("settle", func(s *corev1.Service) {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.96.0.99", []string{"10.96.0.99", "fd00:96::99"}
		s.Spec.Type, s.Spec.ExternalIPs, s.Status = corev1.ServiceTypeClusterIP, nil, corev1.ServiceStatus{}
		s.Spec.Ports = []corev1.ServicePort{{Name: "t", Protocol: corev1.ProtocolTCP, Port: port}}
	}))
	for _, e := range endpoints("settle", 8080, pod) {
		r.api.Apply(e)
	}
	for _, addr := range []string{"10.96.0.99", "fd00:96::99"} {
		for begun := time.Now(); ; {
			server, _, err := clusternet.AskFor(r, time.Second, clusternet.Outside, "tcp", net.JoinHostPort(addr, fmt.Sprint(port)))
			if server == pod {
				break
			}
			if time.Since(begun) > 10*time.Second {
				r.Fatalf("the program does not follow: %s %v", server, err)
			}
		}
	}
}

// take removes a service and its endpoints.
func (r *rig) take(name string) {
	r.Helper()
	r.api.Delete(service(name))
	for _, e := range endpoints(name, 8080) {
		r.api.Delete(e)
	}
	r.settle()
}

// start starts the program.
func (r *rig) start() {
	r.Helper()
	args := append([]string{"proxy", "--node-name", nodeName, "--kubeconfig", r.kubeconfig}, r.flags...)
	r.agent = exec.Command(os.Getenv(program.Ropewalk), args...)
	r.agent.Stderr = r.log
	r.agent.Env = []string{"PATH="} // it needs no nft(8)
	r.agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the signal comes when the thread ends that has started the program
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := r.agent.Start()
		started <- err
		if err == nil {
			_ = r.agent.Wait()
		}
	}()
	if err := <-started; err != nil {
		r.Fatal(err)
	}
	r.ended = ended
	r.Cleanup(func() { r.stop(syscall.SIGKILL) })
}

// ready waits until the program says that the kernel is right.
func (r *rig) ready() {
	r.Helper()
	for range 1000 {
		if code, _ := get("http://127.0.0.1:10249/readyz"); code == 200 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.Fatal("not ready within ten seconds")
}

// stop ends the program, which may have ended.
func (r *rig) stop(with syscall.Signal) {
	if r.agent == nil {
		return
	}
	_ = r.agent.Process.Signal(with)
	<-r.ended
	r.agent = nil
}

func get(url string) (code int, body string) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// at are the addresses, of both families, that a kind of a service's has, with the port.
func at(kind string) []string {
	ips, port := map[string][]string{"cluster": clusterIPs, "external": externalIPs, "lb": lbIPs, "node": nodeIPs}[kind], "80"
	if kind == "node" {
		port = fmt.Sprint(nodePort)
	}
	var out []string
	for _, ip := range ips {
		out = append(out, net.JoinHostPort(ip, port))
	}
	return out
}

// probe is what clients are to see, over both families and protocols.
type probe struct {
	from string // namespaces, "node" for the node itself, separated by blanks
	to   string // kinds of addresses, or addresses with ports
	want string // outcomes, all of which are seen and no others
	// either says that some of the outcomes are enough
	either bool
	keep   *bool    // whether servers see the client's own address; nil for either
	only   []string // networks, nil for both
}

var (
	yes  = true
	kept = &yes
	no   = false
	lost = &no
)

// see fails unless all probes come out as they are to within some seconds. They run side by side.
func (r *rig) see(probes ...probe) {
	r.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failures []string
	for _, p := range probes {
		for _, from := range strings.Fields(p.from) {
			for _, kind := range strings.Fields(p.to) {
				addrs := at(kind)
				if len(addrs) == 0 {
					addrs = []string{kind}
				}
				networks := p.only
				if networks == nil {
					networks = []string{"tcp", "udp"}
				}
				for _, a := range addrs {
					for _, network := range networks {
						wg.Go(func() {
							if failure := p.run(r.T, from, network, a); failure != "" {
								mu.Lock()
								defer mu.Unlock()
								failures = append(failures, fmt.Sprintf("%s %s from %s: %s", network, a, from, failure))
							}
						})
					}
				}
			}
		}
	}
	wg.Wait()
	slices.Sort(failures)
	if len(failures) > 0 {
		r.Fatal(strings.Join(failures, "\n"))
	}
}

// run returns what is wrong.
func (p probe) run(t *testing.T, from, network, addr string) string {
	ns := from
	if from == "node" {
		ns = ""
	}
	want := strings.Fields(p.want)
	if from == "node" && network == "udp" && p.want == "timeout" {
		want = []string{"refused"} // a sender on the host itself is told of both, by the error of its write
	}
	left := slices.Clone(want)
	deadline := time.Now().Add(8 * time.Second)
	streak, wrong := 0, ""
	for !time.Now().After(deadline) {
		server, client, err := clusternet.AskFor(t, time.Second, ns, network, addr)
		got := clusternet.Outcome(server, err)
		switch {
		case !slices.Contains(want, got):
			wrong = fmt.Sprintf("%s, want %s", got, p.want)
		case err == nil && p.keep != nil && *p.keep != isOf(ns, client):
			wrong = fmt.Sprintf("%s sees the client's address as %s", server, client)
		default:
			left = slices.DeleteFunc(left, func(w string) bool { return w == got })
			if streak++; (p.either || len(left) == 0) && (streak >= 4*len(want) || got == "timeout") {
				return ""
			}
			continue
		}
		streak, left = 0, slices.Clone(want) // what was there before the change may have been right, too, by chance
		time.Sleep(10 * time.Millisecond)
	}
	if wrong != "" {
		return wrong
	}
	return fmt.Sprintf("never %v", left)
}

// isOf reports whether an address belongs to a namespace's host.
func isOf(ns, client string) bool {
	switch ns {
	case clusternet.Outside:
		return client == clusternet.Outside4 || client == clusternet.Outside6
	case "":
		return slices.Contains([]string{clusternet.Node4, clusternet.Node6, clusternet.Gateway4, clusternet.Gateway6}, client)
	}
	return slices.Contains(podIPs(ns), client)
}
