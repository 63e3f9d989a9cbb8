package e2e

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/ropewalk-net/ropewalk/test/e2e/realapi"
)

// The test can be run by hand with stock CoreDNS and its kubernetes plugin, to see that it asks for what is right.
var (
	binary = flag.String("coredns", "../../bin/coredns", "the CoreDNS to test")
	plugin = flag.String("plugin", "ropewalk", "the Corefile directive to test")
)

// patience is how long something may take that should happen.
const patience = 15 * time.Second

// TestCoreDNS asks CoreDNS, with the plugin in it, for what a real API server has.
func TestCoreDNS(t *testing.T) {
	exe := findCoreDNS(t)
	kubeconfig, config := realapi.Start(t)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, client: client, ns: "shop"}
	c.namespace()
	web := c.service(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			IPFamilyPolicy: new(corev1.IPFamilyPolicy),
			Ports:          []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "quic", Protocol: corev1.ProtocolUDP, Port: 443}},
		},
	})
	c.service(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: []corev1.ServicePort{{Name: "sql", Port: 5432}}},
	})
	c.service(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "ext"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"},
	})
	v4 := c.slice("db-4", discoveryv1.AddressTypeIPv4, endpoint("10.1.0.1", "db-0", true), endpoint("10.1.0.9", "", false))
	c.slice("db-6", discoveryv1.AddressTypeIPv6, endpoint("fd00:10:1::1", "db-0", true))

	d := startCoreDNS(t, exe, kubeconfig)
	const zone = ".shop.svc.cluster.local."
	ip4, ip6 := web.Spec.ClusterIPs[0], web.Spec.ClusterIPs[1]
	d.answers("web"+zone, dns.TypeA, ip4)
	d.answers("web"+zone, dns.TypeAAAA, ip6)
	// Weights are 100 shared among the addresses, as CoreDNS has it, and not among the targets.
	d.answers("_http._tcp.web"+zone, dns.TypeSRV, "0 50 80 web"+zone)
	d.answers("_quic._udp.web"+zone, dns.TypeSRV, "0 50 443 web"+zone)
	d.answers(reverse(t, ip4), dns.TypePTR, "web"+zone)
	d.answers(reverse(t, ip6), dns.TypePTR, "web"+zone)
	d.answers("db"+zone, dns.TypeA, "10.1.0.1")
	d.answers("db"+zone, dns.TypeAAAA, "fd00:10:1::1")
	d.answers("db-0.db"+zone, dns.TypeA, "10.1.0.1")
	d.answers("_sql._tcp.db"+zone, dns.TypeSRV, "0 50 5432 db-0.db"+zone)
	d.answers(reverse(t, "10.1.0.1"), dns.TypePTR, "db-0.db"+zone)
	d.answers("ext"+zone, dns.TypeCNAME, "example.org.")
	d.answers("kubernetes.default.svc.cluster.local.", dns.TypeA, "10.96.0.1")
	d.fails("none"+zone, dns.TypeA, dns.RcodeNameError)

	// An endpoint becomes ready, a service goes, another comes.
	v4.Endpoints[1].Conditions.Ready = new(bool)
	*v4.Endpoints[1].Conditions.Ready = true
	c.update(v4)
	d.answers("db"+zone, dns.TypeA, "10.1.0.1", "10.1.0.9")
	d.answers("10-1-0-9.db"+zone, dns.TypeA, "10.1.0.9")
	c.delete("web")
	d.fails("web"+zone, dns.TypeA, dns.RcodeNameError)
	d.fails(reverse(t, ip4), dns.TypePTR, dns.RcodeNameError)
	again := c.service(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web2"},
		Spec:       corev1.ServiceSpec{ClusterIP: ip4, Ports: []corev1.ServicePort{{Port: 80}}},
	})
	d.answers("web2"+zone, dns.TypeA, again.Spec.ClusterIP)
	d.answers(reverse(t, ip4), dns.TypePTR, "web2"+zone)
}

// findCoreDNS returns the program under test, which `make` at the top builds.
func findCoreDNS(t *testing.T) string {
	t.Helper()
	exe, err := filepath.Abs(*binary)
	if err == nil {
		_, err = os.Stat(exe)
	}
	switch {
	case err == nil:
		return exe
	case os.Getenv("CI") == "true":
		t.Fatalf("no CoreDNS to test: %v", err)
	default:
		t.Skipf("no CoreDNS to test: %v", err)
	}
	panic("not reached")
}

// cluster makes objects in one namespace.
type cluster struct {
	t      *testing.T
	client kubernetes.Interface
	ns     string
}

func (c *cluster) namespace() {
	c.t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: c.ns}}
	if _, err := c.client.CoreV1().Namespaces().Create(c.t.Context(), ns, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// service makes a service, of both address families if it asks for a policy.
func (c *cluster) service(svc *corev1.Service) *corev1.Service {
	c.t.Helper()
	if svc.Spec.IPFamilyPolicy != nil {
		*svc.Spec.IPFamilyPolicy = corev1.IPFamilyPolicyRequireDualStack
	}
	svc, err := c.client.CoreV1().Services(c.ns).Create(c.t.Context(), svc, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return svc
}

func (c *cluster) delete(service string) {
	c.t.Helper()
	if err := c.client.CoreV1().Services(c.ns).Delete(c.t.Context(), service, metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// slice makes a slice of the service db.
func (c *cluster) slice(name string, typ discoveryv1.AddressType, eps ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	c.t.Helper()
	port, number := "sql", int32(5432)
	s, err := c.client.DiscoveryV1().EndpointSlices(c.ns).Create(c.t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "db"}},
		AddressType: typ, Endpoints: eps, Ports: []discoveryv1.EndpointPort{{Name: &port, Port: &number}},
	}, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *cluster) update(s *discoveryv1.EndpointSlice) {
	c.t.Helper()
	if _, err := c.client.DiscoveryV1().EndpointSlices(c.ns).Update(c.t.Context(), s, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func endpoint(addr, hostname string, ready bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{addr}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
	if hostname != "" {
		e.Hostname = &hostname
	}
	return e
}

func reverse(t *testing.T, addr string) string {
	t.Helper()
	name, err := dns.ReverseAddr(addr)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// coreDNS is a CoreDNS that runs.
type coreDNS struct {
	t    *testing.T
	addr string
}

// startCoreDNS starts CoreDNS for as long as the test.
func startCoreDNS(t *testing.T, exe, kubeconfig string) *coreDNS {
	t.Helper()
	dir := t.TempDir()
	d := &coreDNS{t: t, addr: freeAddr(t)}
	_, port, err := net.SplitHostPort(d.addr)
	if err != nil {
		t.Fatal(err)
	}
	corefile := filepath.Join(dir, "Corefile")
	if err := os.WriteFile(corefile, fmt.Appendf(nil, `cluster.local:%[1]s in-addr.arpa:%[1]s ip6.arpa:%[1]s {
	bind 127.0.0.1
	errors
	%[2]s cluster.local in-addr.arpa ip6.arpa {
		kubeconfig %[3]s
	}
}
`, port, *plugin, kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	cmd := exec.Command(exe, "-conf", corefile)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &output, &output
	// A test that is killed takes CoreDNS along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(cmd); err != nil {
			t.Errorf("CoreDNS: %v", err)
		}
		if t.Failed() {
			t.Logf("CoreDNS said:\n%s", &output)
		}
	})
	return d
}

// stop asks a process to end, and kills it if it does not.
func stop(cmd *exec.Cmd) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return errors.Join(fmt.Errorf("it was gone: %w", err), cmd.Wait())
	}
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() }) // It may just have ended.
	defer timer.Stop()
	return cmd.Wait()
}

// freeAddr returns an address that was free a moment ago, for UDP and TCP.
func freeAddr(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	for range 10 {
		u, err := lc.ListenPacket(t.Context(), "udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := u.LocalAddr().String()
		l, err := lc.Listen(t.Context(), "tcp", addr)
		u.Close()
		if err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no port is free for both UDP and TCP")
	panic("not reached")
}

// answers wants the records of a name, in any order, within patience. What stands in front of a record's data is not
// compared beyond the type: the answers of one question differ in nothing else.
func (d *coreDNS) answers(name string, qtype uint16, want ...string) {
	d.t.Helper()
	d.eventually(name, qtype, func(m *dns.Msg) string {
		var got []string
		for _, rr := range m.Answer {
			if rr.Header().Rrtype == qtype {
				got = append(got, strings.TrimPrefix(rr.String(), rr.Header().String()))
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		return cmp.Diff(want, got)
	})
}

// fails wants a response code, within patience.
func (d *coreDNS) fails(name string, qtype uint16, rcode int) {
	d.t.Helper()
	d.eventually(name, qtype, func(m *dns.Msg) string {
		return cmp.Diff(dns.RcodeToString[rcode], dns.RcodeToString[m.Rcode])
	})
}

// eventually asks until wrong finds nothing wrong with the response.
func (d *coreDNS) eventually(name string, qtype uint16, wrong func(*dns.Msg) string) {
	d.t.Helper()
	var last string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		m, _, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion(name, qtype), d.addr)
		if err != nil {
			last = err.Error()
		} else if last = wrong(m); last == "" {
			return
		}
	}
	d.t.Errorf("%s %s:\n%s", name, dns.TypeToString[qtype], last)
}
