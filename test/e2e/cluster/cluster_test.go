//go:build e2e

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ropewalk-net/ropewalk/test/wait"
)

var (
	requests = flag.Int("requests", 1000, "requests a second, while something is replaced")
	lookups  = flag.Int("lookups", 100, "lookups a second, while something is replaced")
	overlay  = flag.String("overlay", "vxlan", "the one of deploy/overlays that is installed: vxlan or direct")
)

// TestCluster starts a cluster, and does with it what people do with clusters. Each part of it can be run alone, by -run.
func TestCluster(t *testing.T) {
	begun := time.Now()
	progress := func(what string) { t.Logf("%4.0f s: %s", time.Since(begun).Seconds(), what) }
	c := newCluster(t)
	progress("the control plane is up")
	c.newNode(t, 1)
	c.newNode(t, 2)
	c.load(t, "v1")
	c.install(t, "v1")
	c.apply(t, testdata(t, "shop.yaml"))
	for _, n := range c.nodes {
		n.ready(t)
	}
	progress("two nodes are ready")
	c.settled(t)
	progress("the pods are ready")
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Traffic", c.testTraffic},
		{"Services", c.testServices},
		{"Hosts", c.testHosts},
		{"Environment", c.testEnvironment},
		{"HostPort", c.testHostPort},
		{"NodeRestart", c.testNodeRestart},
		{"Upgrade", c.testUpgrade},
		{"APIServerRestart", c.testAPIServerRestart},
		{"Tokens", c.testTokens},
		{"ServiceCIDR", c.testServiceCIDR},
		{"Families", c.testFamilies},
		{"RollingUpdate", c.testRollingUpdate},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer progress(test.name)
			test.run(t)
		})
	}
}

// settled waits until all pods are ready.
func (c *cluster) settled(t *testing.T) {
	t.Helper()
	c.installed(t)
	c.deployed(t, shop, "web")
	c.everywhere(t, shop, "client")
}

// podIP returns a pod's address of a family, "4" or "6".
func podIP(p *corev1.Pod, family string) string {
	for _, ip := range p.Status.PodIPs {
		if family == familyOf(ip.IP) {
			return ip.IP
		}
	}
	return ""
}

func familyOf(ip string) string {
	if strings.Contains(ip, ":") {
		return "6"
	}
	return "4"
}

// answers holds that something is answered by one of the pods, and that it sees the client at that address.
func (c *cluster) answers(t *testing.T, from string, by []corev1.Pod, client string, args ...string) {
	t.Helper()
	got, err := c.tool(t.Context(), from, args...)
	if err != nil {
		t.Error(err)
		return
	}
	name, seen, _ := strings.Cut(got, " ")
	if !slices.ContainsFunc(by, func(p corev1.Pod) bool { return p.Name == name }) || seen != client {
		t.Errorf("%s: %q: %q; it should be of a pod that sees %s", from, args, got, client)
	}
}

// testTraffic holds that pods reach pods, of their own node and of the other, under their own addresses, and what is outside of the
// cluster under their node's.
func (c *cluster) testTraffic(t *testing.T) {
	outside(t, control4)
	outside(t, control6)
	for _, from := range c.pods(t, "client") {
		for _, n := range c.nodes {
			for addr, node := range map[string]string{control4: n.addr4, control6: n.addr6} {
				got, err := c.tool(t.Context(), from.Name, "ask", "tcp", net.JoinHostPort(addr, "9000"))
				if want := "outside " + node; from.Spec.NodeName == n.name && (err != nil || got != want) {
					t.Errorf("%s: %s: %q, %v; want %q", from.Name, addr, got, err, want)
				}
			}
		}
		for _, to := range c.pods(t, "web") {
			for _, family := range []string{"4", "6"} {
				for _, network := range []string{"tcp", "udp"} {
					c.answers(t, from.Name, []corev1.Pod{to}, podIP(&from, family), "ask", network+family, net.JoinHostPort(podIP(&to, family), "9000"))
				}
			}
		}
	}
}

// outside has something outside of the cluster answer at an address, at port 9000. It goes with the test.
func outside(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "9000"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			fmt.Fprintf(conn, "outside %s\n", host)
			conn.Close()
		}
	}()
}

// testServices holds that services of each type are reached by their names.
func (c *cluster) testServices(t *testing.T) {
	web := c.pods(t, "web")
	addrs := map[string][]string{}
	for _, p := range web {
		for _, family := range []string{"4", "6"} {
			addrs[family] = append(addrs[family], podIP(&p, family))
			slices.Sort(addrs[family])
		}
	}
	service, err := c.client.CoreV1().Services(shop).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range c.pods(t, "client") {
		says := func(want string, args ...string) {
			t.Helper()
			if got, err := c.tool(t.Context(), from.Name, args...); err != nil || got != want {
				t.Errorf("%s: %q: %q, %v; want %q", from.Name, args, got, err, want)
			}
		}
		for _, family := range []string{"4", "6"} {
			for _, network := range []string{"tcp", "udp"} {
				for _, name := range []string{"web", "web.shop", "web-node", "web-headless", "web-external", "web.shop.svc.cluster.local"} {
					c.answers(t, from.Name, web, podIP(&from, family), "ask", network+family, name+":9000")
				}
			}
			says(strings.Join(addrs[family], "\n"), "lookup", map[string]string{"4": "A", "6": "AAAA"}[family], "web-headless")
		}
		says(service.Spec.ClusterIPs[0], "lookup", map[string]string{"4": "A", "6": "AAAA"}[familyOf(service.Spec.ClusterIP)], "web")
		says("web.shop.svc.cluster.local.", "lookup", "PTR", service.Spec.ClusterIP)
		says("web.shop.svc.cluster.local.", "lookup", "CNAME", "web-external")
		says("80 web.shop.svc.cluster.local.", "lookup", "SRV", "_http._tcp.web.shop.svc.cluster.local")
		if got, err := c.tool(t.Context(), from.Name, "get", "http://web/"); err != nil || !strings.HasPrefix(got, "web-") {
			t.Errorf("%s: http://web/: %q, %v", from.Name, got, err)
		}
	}
	// Node ports are asked for from outside.
	for _, n := range c.nodes {
		for network, addr := range map[string]string{"tcp4": n.addr4, "tcp6": n.addr6, "udp4": n.addr4, "udp6": n.addr6} {
			if got, err := ask(network, net.JoinHostPort(addr, "30900")); err != nil || !strings.HasPrefix(got, "web-") {
				t.Errorf("%s at %s: %q, %v", network, addr, got, err)
			}
		}
	}
}

// ask is what the tool does of that name, from outside of the cluster.
func ask(network, addr string) (string, error) {
	conn, err := net.DialTimeout(network, addr, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	b := make([]byte, 256)
	_, err = conn.Write([]byte("who?"))
	err = errors.Join(err, conn.SetDeadline(time.Now().Add(5*time.Second)))
	n, e := conn.Read(b)
	return string(b[:n]), errors.Join(err, e)
}

// testHosts holds that a pod has the aliases of its specification, and those of its annotation while it runs.
func (c *cluster) testHosts(t *testing.T) {
	for _, p := range c.pods(t, "client") {
		resolves := func(name, want string) {
			t.Helper()
			soon(t, fmt.Sprintf("%s is %q", name, want), func() error {
				got, err := c.tool(t.Context(), p.Name, "lookup", "A", name)
				if want == "" && err != nil && strings.Contains(err.Error(), "no such host") {
					return nil
				}
				if err == nil && got != want {
					err = fmt.Errorf("it is %q", got)
				}
				return err
			})
		}
		resolves("api.partner.example", "192.0.2.130")
		c.patch(t, "pods", p.Name, `{"metadata": {"annotations": {"ropewalk.dev/host-aliases": "[{\"ip\": \"10.1.2.3\", \"hostnames\": [\"foo.shop.svc.cluster.local\"]}]"}}}`)
		resolves("foo.shop.svc.cluster.local", "10.1.2.3")
		resolves("api.partner.example", "192.0.2.130")
		c.patch(t, "pods", p.Name, `{"metadata": {"annotations": {"ropewalk.dev/host-aliases": null}}}`)
		resolves("foo.shop.svc.cluster.local", "")
		resolves("api.partner.example", "192.0.2.130")
	}
}

// testEnvironment holds that containers have the variables of services, and that these lead there.
func (c *cluster) testEnvironment(t *testing.T) {
	web := c.pods(t, "web")
	for _, p := range c.pods(t, "client") {
		text, err := c.tool(t.Context(), p.Name, "env")
		if err != nil {
			t.Fatal(err)
		}
		env := map[string]string{}
		for _, line := range strings.Split(text, "\n") {
			name, value, _ := strings.Cut(line, "=")
			env[name] = value
		}
		for host, port := range map[string]string{"WEB_SERVICE_HOST": "WEB_SERVICE_PORT_TCP", "WEB_NODE_SERVICE_HOST": "WEB_NODE_SERVICE_PORT"} {
			c.answers(t, p.Name, web, podIP(&p, familyOf(env[host])), "ask", "tcp", net.JoinHostPort(env[host], env[port]))
		}
		if got := env["KUBERNETES_SERVICE_HOST"] + ":" + env["KUBERNETES_SERVICE_PORT"]; got != apiService4+":443" {
			t.Errorf("%s: the API server is at %s", p.Name, got)
		}
	}
}

// testHostPort holds that a port of a node leads to a pod, from outside and from pods.
func (c *cluster) testHostPort(t *testing.T) {
	p := c.pod(t, "port", func(p *corev1.Pod) {
		p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: c.nodes[0].name}
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 9000, HostPort: 7000}, {ContainerPort: 9000, HostPort: 7000, Protocol: corev1.ProtocolUDP}}
	})
	n := c.nodes[0]
	for network, addr := range map[string]string{"tcp4": n.addr4, "tcp6": n.addr6, "udp4": n.addr4, "udp6": n.addr6} {
		addr = net.JoinHostPort(addr, "7000")
		if got, err := ask(network, addr); err != nil || !strings.HasPrefix(got, p.Name+" ") {
			t.Errorf("%s %s: %q, %v", network, addr, got, err)
		}
		for _, from := range c.pods(t, "client") {
			if got, err := c.tool(t.Context(), from.Name, "ask", network, addr); err != nil || !strings.HasPrefix(got, p.Name+" ") {
				t.Errorf("%s: %s %s: %q, %v", from.Name, network, addr, got, err)
			}
		}
	}
}

// testNodeRestart pulls a node's plug. When it is back, its pods are started again, and all is as it was.
func (c *cluster) testNodeRestart(t *testing.T) {
	n := c.nodes[1]
	list := func() []corev1.Pod {
		all, err := c.client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + n.name})
		if err != nil {
			t.Fatal(err)
		}
		return all.Items
	}
	was := map[string]bool{} // containers
	for _, p := range list() {
		for _, s := range p.Status.ContainerStatuses {
			was[s.ContainerID] = true
		}
	}
	n.powerOff(t)
	n.start(t)
	soon(t, "the node's pods run again", func() error {
		var err error
		for _, p := range list() {
			old := slices.ContainsFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return was[s.ContainerID] })
			if old || !isReady(&p) {
				err = errors.Join(err, fmt.Errorf("%s: its containers are the old ones: %t; %+v", p.Name, old, p.Status.Conditions))
			}
		}
		return err
	})
	n.ready(t)
	c.settled(t)
	c.testTraffic(t)
	c.testServices(t)
}

// outcome is what the tool says of a load.
type outcome struct {
	Done, Failed, Slow, Unsent int
	When                       map[string]int
	Errors                     []string
}

type report struct {
	Requests, Lookups outcome
	Broken            []string
	Resent            int
}

// loaded calls f while requests and lookups come from both nodes, none of which may fail or be lost. Those that are slow are told of: a
// machine that is busy has some.
func (c *cluster) loaded(t *testing.T, f func()) {
	t.Helper()
	each := func(n int) string { return strconv.Itoa(max(1, n/len(c.nodes))) }
	c.apply(t, testdata(t, "load.yaml", "REQUESTS", each(*requests), "LOOKUPS", each(*lookups)))
	sets := c.client.AppsV1().DaemonSets(shop)
	defer c.gone(t, "load", func(ctx context.Context, name string, o metav1.DeleteOptions) error {
		foreground := metav1.DeletePropagationForeground
		o.PropagationPolicy = &foreground
		return sets.Delete(ctx, name, o)
	}, func(ctx context.Context) error { _, err := sets.Get(ctx, "load", metav1.GetOptions{}); return err })
	c.everywhere(t, shop, "load")
	pods := c.pods(t, "load")
	begun := time.Now()
	f()
	for _, p := range pods {
		text, err := c.tool(t.Context(), p.Name, "get", "http://127.0.0.1:8081/stop")
		var r report
		if err == nil {
			err = json.Unmarshal([]byte(text), &r)
		}
		if err != nil {
			t.Error(err)
			continue
		}
		for what, o := range map[string]outcome{"requests": r.Requests, "lookups": r.Lookups} {
			t.Logf("%s: %d %s in %.0f s, %d took more than a second, %d could not be sent in time", p.Spec.NodeName, o.Done, what, time.Since(begun).Seconds(), o.Slow, o.Unsent)
			if o.Failed > 0 || o.Done == 0 {
				t.Errorf("%s: %d of %d %s failed:\n%s\nthose that failed or were slow were begun at %v", p.Spec.NodeName, o.Failed, o.Done, what, strings.Join(o.Errors, "\n"), o.When)
			}
		}
		if len(r.Broken) > 0 {
			t.Errorf("%s: UDP is not answered any more: %q", p.Spec.NodeName, r.Broken)
		}
		// A request that is lost is sent again after a second, and answered then.
		if r.Resent > 0 {
			t.Errorf("%s: to open connections, %d packets were sent again; those that were slow were begun at %v", p.Spec.NodeName, r.Resent, r.Requests.When)
		}
	}
}

// testUpgrade installs another version of all that deploy/ has, while services are in use, and has agents be killed.
func (c *cluster) testUpgrade(t *testing.T) {
	const next = "v2"
	c.load(t, next)
	was := c.agents(t)
	c.loaded(t, func() {
		c.install(t, next)
		c.installed(t)
		t.Logf("%s: all is replaced", time.Now().UTC().Format(time.TimeOnly))
		if dns := c.podsOf(t, system, "app.kubernetes.io/name=ropewalk-dns"); len(dns) != 2 || dns[0].Spec.NodeName == dns[1].Spec.NodeName {
			t.Errorf("not all nodes have a DNS server: %d, the first on %s", len(dns), dns[0].Spec.NodeName)
		}
		for _, p := range c.agents(t) {
			if slices.ContainsFunc(was, func(o corev1.Pod) bool { return o.UID == p.UID }) {
				t.Errorf("%s has not been replaced", p.Name)
			}
		}
		c.kill(t)
		c.installed(t)
	})
}

// testAPIServerRestart replaces the API server while services are in use, and kills it. Then the agents hear of what is new.
func (c *cluster) testAPIServerRestart(t *testing.T) {
	c.loaded(t, func() {
		for _, with := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			c.api.stop(with)
			time.Sleep(time.Second) // names and services are there without it
			c.startAPI(t)
		}
	})
	if _, err := c.service(t, "after", nil); err != nil {
		t.Fatal(err)
	}
	c.reachable(t, "after", "4")
	c.inTouch(t)
}

// testTokens has the tokens of service accounts become invalid, as they do after a while. The kubelets write new ones into the pods, by
// which agents and DNS servers hear of what is new without being started again. client-go reads them once a minute.
func (c *cluster) testTokens(t *testing.T) {
	running := func() (ids []string) {
		for _, p := range slices.Concat(c.agents(t), c.podsOf(t, system, "app.kubernetes.io/name=ropewalk-dns")) {
			ids = append(ids, p.Status.ContainerStatuses[0].ContainerID)
		}
		return ids
	}
	was := running()
	c.newAccountsKey(t)
	c.api.stop(syscall.SIGTERM)
	c.manager.stop(syscall.SIGTERM)
	c.startAPI(t)
	c.startManager(t)
	for _, n := range c.nodes {
		n.kubelet.stop(syscall.SIGTERM)
		n.startKubelet(t)
	}
	if _, err := c.service(t, "renewed", nil); err != nil {
		t.Fatal(err)
	}
	c.reachable(t, "renewed", "4")
	for _, n := range c.nodes {
		n.ready(t)
	}
	c.settled(t)
	c.inTouch(t)
	if now := running(); !slices.Equal(was, now) {
		t.Errorf("containers were %q, and are %q", was, now)
	}
}

// reachable waits until a service is reached by its name from each node.
func (c *cluster) reachable(t *testing.T, name, family string) {
	t.Helper()
	for _, from := range c.pods(t, "client") {
		begun := time.Now()
		soon(t, name+" is reached from "+from.Spec.NodeName, func() error {
			got, err := c.tool(t.Context(), from.Name, "ask", "tcp"+family, name+":9000")
			if err == nil && !strings.HasSuffix(got, " "+podIP(&from, family)) {
				err = fmt.Errorf("%q", got)
			}
			return err
		})
		t.Logf("%s is reached from %s after %v", name, from.Spec.NodeName, time.Since(begun).Round(time.Millisecond))
	}
}

// testServiceCIDR fills the range of services, adds another (KEP-1880), uses it and takes it away.
func (c *cluster) testServiceCIDR(t *testing.T) {
	var full error
	for i := 0; full == nil && i < 16; i++ {
		_, full = c.service(t, fmt.Sprintf("fill-%d", i), nil)
	}
	if full == nil || !strings.Contains(full.Error(), "range is full") {
		t.Fatalf("the range is not full: %v", full)
	}
	// Nothing that is sent to an address of a range of services leaves its node, not even to who knows the way back to pods.
	const free = "10.97.0.1"
	there, back := "addr add "+free+"/32 dev lo\n", "addr del "+free+"/32 dev lo\n"
	for _, n := range c.nodes {
		node, err := c.client.CoreV1().Nodes().Get(t.Context(), n.name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		route := node.Spec.PodCIDRs[slices.IndexFunc(node.Spec.PodCIDRs, func(s string) bool { return familyOf(s) == "4" })] + " via " + n.addr4 + "\n"
		there, back = there+"route add "+route, back+"route del "+route
	}
	if err := ip(there); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ip(back); err != nil {
			t.Error(err)
		}
	})
	outside(t, free)
	leaves := func(want bool) {
		t.Helper()
		for _, p := range c.pods(t, "client") {
			soon(t, fmt.Sprintf("what is sent to %s leaves the node: %t", free, want), func() error {
				if got, err := c.tool(t.Context(), p.Name, "ask", "tcp", net.JoinHostPort(free, "9000")); (err == nil) != want {
					return fmt.Errorf("%s: %q, %v", p.Name, got, err)
				}
				return nil
			})
		}
	}
	leaves(true)
	cidrs := c.client.NetworkingV1().ServiceCIDRs()
	get := func() (*networkingv1.ServiceCIDR, error) { return cidrs.Get(t.Context(), "more", metav1.GetOptions{}) }
	more := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.97.0.0/24", "fd97::/120"}}}
	if _, err := cidrs.Create(t.Context(), more, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var s *corev1.Service
	dual := corev1.IPFamilyPolicyRequireDualStack
	soon(t, "a service gets addresses of the new range", func() (err error) {
		s, err = c.service(t, "new", func(s *corev1.ServiceSpec) { s.IPFamilyPolicy = &dual })
		return err
	})
	if ips := s.Spec.ClusterIPs; len(ips) != 2 || !strings.HasPrefix(ips[0], "10.97.0.") || (!strings.HasPrefix(ips[1], "fd97::") && !strings.HasPrefix(ips[1], "fd96::")) {
		t.Errorf("it has %v", ips)
	}
	c.reachable(t, "new", "4")
	c.reachable(t, "new", "6")
	leaves(false)
	client := c.pods(t, "client")[0]
	soon(t, "its address has its name", func() error { // one DNS server may be later than the other
		got, err := c.tool(t.Context(), client.Name, "lookup", "PTR", s.Spec.ClusterIP)
		if err == nil && got != "new.shop.svc.cluster.local." {
			err = fmt.Errorf("%q", got)
		}
		return err
	})

	if err := cidrs.Delete(t.Context(), "more", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	soon(t, "the range is kept for its service", func() error {
		got, err := get()
		if err != nil {
			return &wait.Fatal{Err: err}
		}
		if got.DeletionTimestamp == nil || len(got.Finalizers) == 0 || !slices.ContainsFunc(got.Status.Conditions, func(c metav1.Condition) bool {
			return c.Type == networkingv1.ServiceCIDRConditionReady && c.Status == metav1.ConditionFalse
		}) {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	if _, err := c.service(t, "late", nil); err == nil || !strings.Contains(err.Error(), "range is full") {
		t.Errorf("a service has got an address of a range that goes: %v", err)
	}
	c.reachable(t, "new", "4")
	if err := c.client.CoreV1().Services(shop).Delete(t.Context(), "new", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	soon(t, "the range is gone with its service", func() error {
		if got, err := get(); !apierrors.IsNotFound(err) {
			return fmt.Errorf("%+v, %v", got, err)
		}
		return nil
	})
	leaves(true)
}

// testFamilies gives a service a second family of addresses, and takes it away.
func (c *cluster) testFamilies(t *testing.T) {
	single := corev1.IPFamilyPolicySingleStack
	if _, err := c.service(t, "families", func(s *corev1.ServiceSpec) { s.IPFamilyPolicy = &single }); err != nil {
		t.Fatal(err)
	}
	c.reachable(t, "families", "4")
	no6 := func(addr string) {
		t.Helper()
		for _, p := range c.pods(t, "client") {
			soon(t, "there is no IPv6 any more", func() error {
				if got, err := c.tool(t.Context(), p.Name, "lookup", "AAAA", "families"); err == nil {
					return fmt.Errorf("AAAA %q", got)
				}
				if got, err := c.tool(t.Context(), p.Name, "lookup", "A", "families"); err != nil {
					return fmt.Errorf("A %q: %w", got, err)
				}
				if addr == "" {
					return nil
				}
				if got, err := c.tool(t.Context(), p.Name, "ask", "tcp6", net.JoinHostPort(addr, "9000")); err == nil {
					return fmt.Errorf("%s answers %q", addr, got)
				}
				return nil
			})
		}
	}
	no6("")
	c.patch(t, "services", "families", `{"spec": {"ipFamilyPolicy": "PreferDualStack"}}`)
	c.reachable(t, "families", "4")
	c.reachable(t, "families", "6")
	s, err := c.client.CoreV1().Services(shop).Get(t.Context(), "families", metav1.GetOptions{})
	if err != nil || len(s.Spec.ClusterIPs) != 2 {
		t.Fatalf("%+v, %v", s, err)
	}
	c.patch(t, "services", "families", `{"spec": {"ipFamilyPolicy": "SingleStack"}}`)
	no6(s.Spec.ClusterIPs[1])
	c.reachable(t, "families", "4")
}

// testRollingUpdate replaces all servers while they are in use.
func (c *cluster) testRollingUpdate(t *testing.T) {
	was := c.pods(t, "web")
	c.loaded(t, func() {
		c.patch(t, "deployments", "web", fmt.Sprintf(`{"spec": {"template": {"metadata": {"annotations": {"updated": %q}}}}}`, time.Now()))
		c.deployed(t, shop, "web")
		soon(t, "the old pods are gone", func() error {
			for _, p := range was {
				if got, err := c.client.CoreV1().Pods(shop).Get(t.Context(), p.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
					return fmt.Errorf("%s: %v", got.Name, err)
				}
			}
			return nil
		})
	})
}
