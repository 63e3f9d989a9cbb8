package proxy

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

func sticky(s *corev1.Service) {
	seconds := int32(10800)
	s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
}

// who returns the server that answers.
func (r *rig) who(from, network, addr string) string {
	r.Helper()
	server, _, err := clusternet.Ask(r, from, network, addr)
	if err != nil {
		r.Fatalf("%s %s from %s: %v", network, addr, from, err)
	}
	return server
}

// TestAffinity holds that a client stays with its endpoint, while others come and the agent is replaced, and leaves it when it is
// gone.
func TestAffinity(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := newRig(t, 4)
	r.put(service("web", sticky), "pod0", "pod1", "pod2")
	r.start()
	r.ready()
	type client struct{ from, network, addr string }
	first := map[client]string{}
	for _, network := range []string{"tcp", "udp"} {
		for _, addr := range append(at("cluster"), at("node")...) {
			for _, from := range []string{"pod3", "outside"} {
				c := client{from, network, addr}
				first[c] = r.who(from, network, addr)
			}
		}
	}
	stay := func() {
		t.Helper()
		for c, server := range first {
			for range 6 {
				if got := r.who(c.from, c.network, c.addr); got != server {
					t.Fatalf("%v: %s, then %s", c, server, got)
				}
			}
		}
	}
	stay()
	r.stop(syscall.SIGTERM)
	stay()
	r.put(service("web", sticky), "pod3", "pod2", "pod1", "pod0")
	r.start()
	r.ready()
	stay()
	r.put(service("web", sticky), "pod0", "pod1")
	r.see(probe{from: "pod3 outside", to: "cluster node", either: true, want: "pod0 pod1"})
}

// TestLocal holds the other ways to tell which connections come from pods.
func TestLocal(t *testing.T) {
	for name, test := range map[string]struct {
		flags []string
		pods  *bool // whether pods' own addresses are kept
	}{
		"the node's podCIDRs": {[]string{"--cluster-cidr", ""}, kept},
		"interfaces":          {[]string{"--cluster-cidr", "", "--pod-interface", "veth*"}, kept},
		"masquerade all":      {[]string{"--masquerade-all"}, lost},
	} {
		t.Run(name, func(t *testing.T) {
			if !netns.Enter(t) {
				return
			}
			r := newRig(t, 2)
			r.flags = append(r.flags, test.flags...)
			r.put(service("web"), "pod0", "far")
			r.start()
			r.ready()
			r.see(probe{from: "pod1", to: "cluster", want: "pod0 far", keep: test.pods}, probe{from: "outside", to: "cluster", want: "pod0 far", keep: lost})
		})
	}
}

// TestLateNode holds that who is a pod is told by the node's podCIDRs once it has some; until then all may be.
func TestLateNode(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := newRig(t, 2)
	r.flags = []string{"--pod-interface", ""}
	r.api.Delete(node())
	r.put(service("web"), "pod0", "far")
	r.start()
	r.ready()
	r.see(probe{from: "pod1", to: "cluster", want: "pod0 far", keep: kept}, probe{from: "outside", to: "node", want: "refused"})
	r.api.Apply(node())
	r.see(probe{from: "outside", to: "cluster", want: "pod0 far", keep: lost}, probe{from: "outside", to: "node", want: "pod0 far"}, probe{from: "pod1", to: "cluster", want: "pod0 far", keep: kept})
}

// TestNodePortAddresses holds that node ports can be had at other addresses of the node than those that the API knows.
func TestNodePortAddresses(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := newRig(t, 2, "--nodeport-addresses", "192.0.2.8/29,2001:db8::8/125")
	r.put(service("web"), "pod0")
	r.start()
	r.ready()
	other := probe{from: "outside pod1", to: "192.0.2.9:30080 [2001:db8::9]:30080", want: "pod0"}
	r.see(probe{from: "outside", to: "node", want: "refused"})
	netns.Batch(t, "", "addr add 192.0.2.9/24 dev eth0\naddr add 2001:db8::9/64 dev eth0 nodad\n")
	r.see(other)
	netns.Batch(t, "", "addr del 192.0.2.9/24 dev eth0\naddr del 2001:db8::9/64 dev eth0\naddr add 192.0.2.10/24 dev eth0\n")
	r.see(probe{from: "outside", to: "192.0.2.10:30080", want: "pod0"})
}

// TestHealth holds what load balancers and the kubelet are told.
func TestHealth(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := newRig(t, 2)
	r.put(service("web", externalLocal), "pod0", "far")
	r.start()
	r.ready()
	says := func(code, count int) {
		t.Helper()
		var body string
		for range 300 {
			var got int
			if got, body = get("http://192.0.2.1:32000/"); got == code {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		var answer struct {
			Service             struct{ Namespace, Name string }
			LocalEndpoints      int
			ServiceProxyHealthy bool
		}
		if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.LocalEndpoints != count || answer.Service.Name != "web" || !answer.ServiceProxyHealthy {
			t.Fatalf("%q %v, want %d endpoints", body, err, count)
		}
	}
	says(200, 1)
	r.put(service("web", externalLocal), "far")
	says(503, 0)
	r.put(service("web", externalLocal), "pod0", "pod1")
	says(200, 2)
	r.put(service("web"), "pod0")
	for range 300 {
		if code, _ := get("http://192.0.2.1:32000/"); code == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if code, body := get("http://192.0.2.1:32000/"); code != 0 {
		t.Errorf("the health check's port is there still: %s", body)
	}
	for url, want := range map[string]string{
		"http://192.0.2.1:10256/healthz": `"lastUpdated"`, "http://192.0.2.1:10256/livez": `"lastUpdated"`,
		"http://127.0.0.1:10249/proxyMode": "nftables", "http://127.0.0.1:10249/healthz": "ok",
	} {
		if code, body := get(url); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", url, code, body)
		}
	}
	r.api.Apply(node(func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: cluster.LeavingTaint, Effect: corev1.TaintEffectNoSchedule}}
	}))
	for range 300 {
		if code, _ := get("http://192.0.2.1:10256/healthz"); code == 503 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for path, want := range map[string]int{"healthz": 503, "livez": 200} {
		if code, _ := get("http://192.0.2.1:10256/" + path); code != want {
			t.Errorf("/%s of a node that is about to go: %d", path, code)
		}
	}
	_, metrics := get("http://127.0.0.1:10249/metrics")
	if strings.Contains(metrics, "ropewalk_proxy_network_programming_seconds_count 0\n") {
		t.Error("the time from a change to the kernel is not measured")
	}
	for _, want := range []string{
		"ropewalk_proxy_sync_duration_seconds_count", "ropewalk_proxy_pending_services 0", `ropewalk_proxy_elements{set="`, "ropewalk_proxy_transactions_total",
		"ropewalk_proxy_transaction_failures_total 0", "ropewalk_proxy_network_programming_seconds_count", "ropewalk_proxy_frontends 18", "ropewalk_proxy_endpoints 4", "ropewalk_proxy_services 2",
		"ropewalk_proxy_conntrack_deleted_total", "ropewalk_source_age_seconds 0",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
}

// dialer is a client of UDP that always sends from the same port, as resolvers in some programs do.
type dialer struct{ net.Conn }

func (r *rig) dial(from, addr string) dialer {
	r.Helper()
	var c net.Conn
	var err error
	netns.In(r, from, func() { c, err = net.Dial("udp", addr) })
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { c.Close() })
	return dialer{c}
}

// ask returns who answers within 100 ms.
func (d dialer) ask() string {
	_, err := d.Write([]byte("?"))
	b := make([]byte, 100)
	n := 0
	if err == nil {
		_ = d.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err = d.Read(b)
	}
	server, _, _ := strings.Cut(string(b[:n]), " ")
	return clusternet.Outcome(server, err)
}

// soon fails unless the client gets answers from want, and then from nobody else, within a second.
func (d dialer) soon(t *testing.T, want string) {
	t.Helper()
	begun := time.Now()
	for {
		if got := d.ask(); got == want {
			t.Logf("%s: %s after %v", d.RemoteAddr(), want, time.Since(begun))
			break
		} else if time.Since(begun) > 5*time.Second {
			t.Fatalf("%s: still %s, want %s", d.RemoteAddr(), got, want)
		}
	}
	for range 5 {
		if got := d.ask(); got != want {
			t.Fatalf("%s: %s again, want %s", d.RemoteAddr(), got, want)
		}
	}
}

// TestUDP has clients with ports of their own follow a service from endpoint to endpoint, to none, back, away and back.
func TestUDP(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	r := newRig(t, 3)
	var clients []dialer
	for _, from := range []string{"pod2", "outside"} {
		for _, addr := range append(at("cluster"), at("node")...) {
			clients = append(clients, r.dial(from, addr))
		}
	}
	for _, c := range clients { // from before there is a service, or an agent
		c.ask()
	}
	r.start()
	r.ready()
	see := func(want string) {
		t.Helper()
		for _, c := range clients {
			c.soon(t, want)
		}
	}
	r.put(service("web"), "pod0")
	see("pod0")
	r.put(service("web"), "pod1")
	see("pod1")
	r.put(service("web"))
	see("refused")
	r.put(service("web"), "pod0")
	see("pod0")
	// While no agent is there, the endpoint is replaced.
	r.stop(syscall.SIGKILL)
	r.put(service("web"), "pod1")
	r.start()
	r.ready()
	see("pod1")
	r.put(service("web"), "pod1,leaving", "pod0") // those who are there may stay
	for range 5 {
		for _, c := range clients {
			if got := c.ask(); got != "pod1" {
				t.Errorf("%s moves to %s from an endpoint that still serves", c.RemoteAddr(), got)
			}
		}
	}
	r.put(service("web"), "pod0") // now it has gone
	see("pod0")
	r.take("web")
	for _, c := range clients {
		for begun := time.Now(); c.ask() == "pod0"; {
			if time.Since(begun) > 5*time.Second {
				t.Fatalf("%s: pod0 answers for a service that is gone", c.RemoteAddr())
			}
		}
		if got := c.ask(); got == "pod1" || got == "pod0" {
			t.Errorf("%s: %s answers for a service that is gone", c.RemoteAddr(), got)
		}
	}
}

// stream is a connection over which a client and a server say numbers to each other.
type stream struct {
	count  atomic.Int64
	failed chan error
	conn   net.Conn
}

func (r *rig) stream(from, addr string) *stream {
	r.Helper()
	s := &stream{failed: make(chan error, 1)}
	var err error
	netns.In(r, from, func() { s.conn, err = net.DialTimeout("tcp", addr, 5*time.Second) })
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { s.conn.Close() })
	go func() {
		in := bufio.NewReader(s.conn)
		for i := 0; ; i++ {
			_ = s.conn.SetDeadline(time.Now().Add(2 * time.Second))
			if _, err := fmt.Fprintln(s.conn, i); err != nil {
				s.failed <- err
				return
			}
			if line, err := in.ReadString('\n'); err != nil || line != fmt.Sprintln(i) {
				s.failed <- fmt.Errorf("%d: %q %v", i, line, err)
				return
			}
			s.count.Add(1)
			time.Sleep(time.Millisecond)
		}
	}()
	return s
}

// echo serves lines at an address in a namespace.
func (r *rig) echo(ns, addr string) {
	r.Helper()
	var l net.Listener
	var err error
	netns.In(r, ns, func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for {
					line, err := in.ReadString('\n')
					if err != nil {
						return
					}
					if _, err := c.Write([]byte(line)); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// TestRestart has connections come and go, and others stay, while the agent is ended, killed, and replaced: none fails, and those that
// stay get all their answers. An established connection to an endpoint that goes is left to finish.
func TestRestart(t *testing.T) {
	if netns.Enter(t) {
		restart(t, 0, 6)
	}
}

// TestRestartLarge is the same among many services: 10,000 of two endpoints, or as many as ROPEWALK_TEST_SERVICES says.
func TestRestartLarge(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	n := 10000
	if s := os.Getenv("ROPEWALK_TEST_SERVICES"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	restart(t, n, 4)
}

func restart(t *testing.T, services, times int) {
	r := newRig(t, 3)
	for i := range services {
		ip := fmt.Sprintf("10.97.%d.%d", i>>8, i&255)
		s := service(fmt.Sprint("other-", i), func(s *corev1.Service) {
			s.Spec = corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: s.Spec.Ports[:1]}
			s.Spec.Ports[0].NodePort, s.Status = 0, corev1.ServiceStatus{}
		})
		e := endpoints(s.Name, 8080, "pod0", "far")[0]
		for j := range e.Endpoints {
			e.Endpoints[j].Addresses[0] = fmt.Sprintf("10.25%d.%d.%d", j, i>>8, i&255)
		}
		r.api.Apply(s, e)
	}
	for _, a := range podIPs("pod0") {
		r.echo("pod0", net.JoinHostPort(a, "7777"))
	}
	echo := func(pods ...string) {
		s := service("echo", func(s *corev1.Service) {
			s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.96.0.11", []string{"10.96.0.11", "fd00:96::11"}
			s.Spec.Type, s.Spec.ExternalIPs, s.Status = corev1.ServiceTypeNodePort, nil, corev1.ServiceStatus{}
			for i := range s.Spec.Ports {
				s.Spec.Ports[i].NodePort = 30081
			}
		})
		r.api.Apply(s)
		for _, e := range endpoints("echo", 7777, pods...) {
			r.api.Apply(e)
		}
	}
	echo("pod0")
	r.put(service("web"), "pod0", "pod1", "far")
	r.start()
	r.ready()
	var streams []*stream
	for _, from := range []string{"pod2", "outside"} {
		for _, addr := range []string{"10.96.0.11:80", "[fd00:96::11]:80", "192.0.2.1:30081", "[2001:db8::1]:30081"} {
			streams = append(streams, r.stream(from, addr))
		}
	}
	stop, done := make(chan struct{}), make(chan error, 4)
	var asked, slow atomic.Int64
	for _, from := range []string{"pod2", "outside"} {
		for _, network := range []string{"tcp", "udp"} {
			go func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						done <- nil
						return
					default:
					}
					addrs := slices.Concat(at("cluster"), at("node"), at("lb"))
					begun := time.Now()
					_, _, err := clusternet.Ask(t, from, network, addrs[i%len(addrs)])
					if time.Since(begun) > clusternet.Slow {
						slow.Add(1)
					}
					if err != nil {
						done <- fmt.Errorf("%s %s from %s: %w", network, addrs[i%len(addrs)], from, err)
						return
					}
					asked.Add(1)
				}
			}()
		}
	}
	for i := range times {
		r.stop([]syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[i%2])
		if i == times/2 { // the cluster changes meanwhile: an endpoint goes, others come
			r.put(service("web"), "pod1", "pod2", "far")
			echo("far")
		}
		begun := time.Now()
		r.start()
		r.ready()
		t.Logf("ready %v after its start", time.Since(begun))
	}
	close(stop)
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for _, s := range streams {
		before := s.count.Load()
		time.Sleep(20 * time.Millisecond)
		select {
		case err := <-s.failed:
			t.Errorf("%s from %s after %d lines: %v", s.conn.RemoteAddr(), s.conn.LocalAddr(), s.count.Load(), err)
		default:
			if s.count.Load() == before {
				t.Errorf("%s stands still", s.conn.RemoteAddr())
			}
		}
	}
	t.Logf("%d connections and datagrams, %d slow", asked.Load(), slow.Load())
	if n := slow.Load(); n > 3 && n > asked.Load()/100 {
		t.Errorf("%d of %d connections lost a packet, or the machine stood still", n, asked.Load())
	}
}
