// Package kubeproxy holds Ropewalk's service proxy to what kube-proxy's own code does.
package kubeproxy

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	"k8s.io/kubernetes/pkg/proxy/iptables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/proxy/cleanup"
	"github.com/ropewalk-net/ropewalk/proxy/health"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// nodes is where kube-proxy has the Node object from.
type nodes struct{ node v1.Node }

func (n *nodes) Node() *v1.Node { return &n.node }

// answer is what a client gets, without what differs from one moment to the next.
type answer struct {
	status int
	header http.Header
	body   string
}

// get waits for somebody to listen.
func get(t *testing.T, url string) answer {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var resp *http.Response
		if resp, err = client.Get(url); err != nil {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		resp.Header.Del("Date")
		return answer{resp.StatusCode, resp.Header, string(body)}
	}
	t.Fatal(err)
	return answer{}
}

// TestServiceHealth compares what is answered at a healthCheckNodePort, byte for byte.
func TestServiceHealth(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	for i, tt := range []struct {
		endpoints int
		healthy   bool
	}{{0, true}, {1, true}, {7, true}, {7, false}, {0, false}} {
		theirPort, ourPort := uint16(31000+2*i), uint16(31001+2*i)
		proxier := healthcheck.NewProxyHealthServer("127.0.0.1:0", 0, &nodes{})
		proxier.Updated(v1.IPv4Protocol)
		if !tt.healthy {
			proxier.QueuedUpdate(v1.IPv4Protocol)
		}
		key := types.NamespacedName{Namespace: "shop", Name: "web"}
		theirs := healthcheck.NewServiceHealthServer("n", nil,
			proxyutil.NewNodePortAddresses(v1.IPv4Protocol, []string{"127.0.0.0/8"}), proxier, v1.IPv4Protocol)
		if err := theirs.SyncServices(map[types.NamespacedName]uint16{key: theirPort}); err != nil {
			t.Fatal(err)
		}
		if err := theirs.SyncEndpoints(map[types.NamespacedName]int{key: tt.endpoints}); err != nil {
			t.Fatal(err)
		}
		ours := health.NewServers(slog.New(slog.DiscardHandler), func() bool { return tt.healthy })
		ours.SetAddresses([]netip.Addr{netip.MustParseAddr("127.0.0.1")})
		ours.Update(map[cluster.Key]health.Check{{Namespace: "shop", Name: "web"}: {Port: ourPort, LocalEndpoints: tt.endpoints}}, nil)
		go ours.Run(t.Context())
		for _, path := range []string{"/", "/healthz?x=y"} {
			want := get(t, fmt.Sprintf("http://127.0.0.1:%d%s", theirPort, path))
			got := get(t, fmt.Sprintf("http://127.0.0.1:%d%s", ourPort, path))
			if d := cmp.Diff(want, got, cmp.AllowUnexported(answer{})); d != "" {
				t.Errorf("%+v: %s: -kube-proxy +ropewalk:\n%s", tt, path, d)
			}
		}
	}
}

// TestNodeHealth compares /healthz and /livez, but for times, and kube-proxy's status by family.
func TestNodeHealth(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	const late = time.Hour
	now := time.Now()
	for i, tt := range []struct {
		name  string
		late  time.Duration // kube-proxy's
		queue bool
		node  v1.Node
		state health.State
	}{
		{"up to date", late, false, v1.Node{}, health.State{Updated: now}},
		{"a change waits", late, true, v1.Node{}, health.State{Updated: now, Pending: now}},
		{"a change waits for too long", 0, true, v1.Node{}, health.State{Updated: now, Pending: now.Add(-2 * late)}},
		{"the node is tainted", late, false,
			v1.Node{Spec: v1.NodeSpec{Taints: []v1.Taint{{Key: healthcheck.ToBeDeletedTaint}}}}, health.State{Updated: now, Leaving: true}},
		{"the node is deleted, and late", 0, true,
			v1.Node{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &metav1.Time{Time: now}}},
			health.State{Updated: now, Pending: now.Add(-2 * late), Leaving: true}},
	} {
		addr := fmt.Sprintf("127.0.0.1:%d", 10256+i)
		theirs := healthcheck.NewProxyHealthServer(addr, tt.late, &nodes{tt.node})
		theirs.Updated(v1.IPv4Protocol)
		if tt.queue {
			theirs.QueuedUpdate(v1.IPv4Protocol)
		}
		go theirs.Run(t.Context())
		ours := httptest.NewServer(health.Node{State: func() health.State { return tt.state }, Late: late}.Handler())
		defer ours.Close()
		for _, path := range []string{"/healthz", "/livez"} {
			want, got := timeless(t, get(t, "http://"+addr+path)), timeless(t, get(t, ours.URL+path))
			if d := cmp.Diff(want, got, cmp.AllowUnexported(answer{})); d != "" {
				t.Errorf("%s: %s: -kube-proxy +ropewalk:\n%s", tt.name, path, d)
			}
		}
	}
}

// timeless checks that times are there, and takes them out.
func timeless(t *testing.T, a answer) answer {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal([]byte(a.body), &fields); err != nil {
		t.Fatalf("%q: %v", a.body, err)
	}
	for _, name := range []string{"lastUpdated", "currentTime"} {
		s, _ := fields[name].(string)
		if _, err := time.Parse(time.RFC3339Nano, s); err != nil {
			t.Error(err)
		}
		delete(fields, name)
	}
	delete(fields, "status")
	a.header.Del("Content-Length")
	a.body = fmt.Sprint(fields)
	return a
}

// rules has the chains of kube-proxy's iptables mode, the ways into them, the kubelet's, and others'.
const rules = `*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SVL-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-EXT-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-FW-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:OTHERS - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j OTHERS
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -p tcp -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-SEP-AAAAAAAAAAAAAAAA -j KUBE-MARK-MASQ
-A OTHERS -p tcp -m tcp --dport 81 -j RETURN
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
COMMIT
`

// TestCleanup holds that cleanup leaves of kube-proxy's rules what kube-proxy --cleanup leaves, in both families.
func TestCleanup(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "iptables-nft-save")
	netns.Tmpfs(t, "/run", nil) // the lock of iptables
	var left []string
	for _, clean := range []func(){
		func() {
			if iptables.CleanupLeftovers(t.Context()) {
				t.Error("kube-proxy met an error")
			}
		},
		func() {
			if removed, err := cleanup.KubeProxy(t.Context()); err != nil || len(removed) == 0 {
				t.Errorf("removed %q, %v", removed, err)
			}
		},
	} {
		for _, command := range []string{"iptables-nft", "ip6tables-nft"} {
			cmd := exec.Command(command + "-restore")
			cmd.Stdin = strings.NewReader(rules)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", command, err, out)
			}
		}
		clean()
		var listing strings.Builder
		for _, command := range []string{"iptables-nft-save", "ip6tables-nft-save"} {
			for line := range strings.Lines(netns.Run(t, command)) {
				if !strings.HasPrefix(line, "#") { // the time
					listing.WriteString(line)
				}
			}
		}
		left = append(left, listing.String())
	}
	if d := cmp.Diff(left[0], left[1]); d != "" || !strings.Contains(left[0], "KUBE-FIREWALL") || strings.Contains(left[0], "KUBE-SERVICES") {
		t.Errorf("what is left: %s\n-kube-proxy +ropewalk:\n%s", left[0], d)
	}
}
