package env

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/cluster"
)

var (
	kubernetes = service("default", "kubernetes", "10.96.0.1", cluster.ServicePort{Name: "https", Protocol: cluster.TCP, Port: 443})
	web        = service("shop", "web", "10.96.0.7", cluster.ServicePort{Protocol: cluster.TCP, Port: 80})
	db         = &cluster.Service{Namespace: "shop", Name: "db", Headless: true}
)

// service returns a service with ClusterIPs: addresses with commas between them, or none.
func service(namespace, name, ips string, ports ...cluster.ServicePort) *cluster.Service {
	s := &cluster.Service{Namespace: namespace, Name: name, Ports: ports}
	if ips != "" {
		for ip := range strings.SplitSeq(ips, ",") {
			s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr(ip))
		}
	}
	return s
}

// vars are the variables of a service with one TCP port without a name.
func vars(n, ip, port string) []string {
	url := "tcp://" + ip + ":" + port
	return []string{n + "_SERVICE_HOST=" + ip, n + "_SERVICE_PORT=" + port, n + "_PORT=" + url, n + "_PORT_" + port + "_TCP=" + url,
		n + "_PORT_" + port + "_TCP_PROTO=tcp", n + "_PORT_" + port + "_TCP_PORT=" + port, n + "_PORT_" + port + "_TCP_ADDR=" + ip}
}

func TestVariables(t *testing.T) {
	master := slices.Insert(vars("KUBERNETES", "10.96.0.1", "443"), 2, "KUBERNETES_SERVICE_PORT_HTTPS=443")
	tcp := cluster.ServicePort{Protocol: cluster.TCP, Port: 80}
	for _, c := range []struct {
		name      string
		services  []*cluster.Service
		namespace string
		noLinks   bool
		want      []string
	}{
		{name: "nothing", namespace: "shop"},
		{name: "by name, the master's among them", namespace: "shop",
			services: []*cluster.Service{web, kubernetes, service("shop", "api", "10.96.0.8", tcp), service("other", "b", "10.96.0.9", tcp)},
			want:     slices.Concat(vars("API", "10.96.0.8", "80"), master, vars("WEB", "10.96.0.7", "80"))},
		{name: "no links", namespace: "shop", noLinks: true, services: []*cluster.Service{web, kubernetes}, want: master},
		{name: "the namespace's own kubernetes wins", namespace: "shop",
			services: []*cluster.Service{service("shop", "kubernetes", "10.96.0.8", tcp), kubernetes}, want: vars("KUBERNETES", "10.96.0.8", "80")},
		{name: "whatever comes first", namespace: "shop",
			services: []*cluster.Service{kubernetes, service("shop", "kubernetes", "10.96.0.8", tcp)}, want: vars("KUBERNETES", "10.96.0.8", "80")},
		{name: "but not without links", namespace: "shop", noLinks: true,
			services: []*cluster.Service{service("shop", "kubernetes", "10.96.0.8", tcp), kubernetes}, want: master},
		{name: "nor without an address", namespace: "shop",
			services: []*cluster.Service{{Namespace: "shop", Name: "kubernetes", Headless: true}, kubernetes}, want: master},
		{name: "in the master's own namespace", namespace: "default",
			services: []*cluster.Service{kubernetes, service("default", "web", "10.96.0.7", tcp)}, want: slices.Concat(master, vars("WEB", "10.96.0.7", "80"))},
		{name: "no address, no variables", namespace: "shop", services: []*cluster.Service{db,
			{Namespace: "shop", Name: "ext", Type: cluster.ExternalName, ExternalName: "example.org"}, service("shop", "new", "", tcp)}},
		{name: "the primary address only", namespace: "shop", services: []*cluster.Service{service("shop", "web", "10.96.0.7,fd96::7", tcp)},
			want: vars("WEB", "10.96.0.7", "80")},
		{name: "the later one's value where names meet, in the first one's place", namespace: "shop",
			services: []*cluster.Service{service("shop", "a", "10.96.0.7", tcp), service("shop", "a-port-80-tcp", "10.96.0.8", tcp)},
			want: slices.Concat(vars("A", "10.96.0.7", "80")[:5], []string{"A_PORT_80_TCP_PORT=tcp://10.96.0.8:80"}, vars("A", "10.96.0.7", "80")[6:],
				vars("A_PORT_80_TCP", "10.96.0.8", "80")[:2], vars("A_PORT_80_TCP", "10.96.0.8", "80")[3:])},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, Variables(slices.Values(c.services), c.namespace, !c.noLinks)); d != "" {
				t.Errorf("variables (-want +got):\n%s", d)
			}
		})
	}
}

func TestParseNamespaces(t *testing.T) {
	for _, c := range []struct {
		value string
		want  []string
		ok    bool
	}{
		{"", nil, true},
		{" , ,", nil, true},
		{"shop", []string{"shop"}, true},
		{" b,a ,\nb,", []string{"b", "a"}, true},
		{strings.Repeat("a", 63), []string{strings.Repeat("a", 63)}, true},
		{strings.Repeat("a", 64), nil, false},
		{"Shop", nil, false},
		{"a b", nil, false},
		{"a,-b", nil, false},
		{"b-", nil, false},
		{"a.b", nil, false},
		{"*", nil, false},
		{"a\x00", nil, false},
	} {
		got, err := ParseNamespaces(c.value)
		if d := cmp.Diff(c.want, got); d != "" || (err == nil) != c.ok {
			t.Errorf("%q: error %v, (-want +got):\n%s", c.value, err, d)
		}
	}
	many := make([]string, maxNamespaces+1)
	for i := range many {
		many[i] = fmt.Sprint("ns-", i)
	}
	if got, err := ParseNamespaces(strings.Join(many[1:], ",")); err != nil || len(got) != maxNamespaces {
		t.Errorf("of as many as may be: %d, %v", len(got), err)
	}
	if _, err := ParseNamespaces(strings.Join(many, ",")); err == nil {
		t.Error("one more is too many")
	}
}

// slice returns a slice of ready endpoints; an address after "!" is not ready.
func slice(namespace, service, addrs string, ports ...cluster.EndpointPort) *cluster.Slice {
	s := &cluster.Slice{Namespace: namespace, Name: service + "-x", Service: service, Ports: ports}
	for a := range strings.FieldsSeq(addrs) {
		text, notReady := strings.CutPrefix(a, "!")
		s.Endpoints = append(s.Endpoints, cluster.Endpoint{Addr: netip.MustParseAddr(text), Ready: !notReady})
	}
	return s
}

func TestExtra(t *testing.T) {
	sql, all := cluster.EndpointPort{Name: "sql", Port: 5432}, cluster.EndpointPort{Name: "any", Port: -1}
	slicesOf := []*cluster.Slice{
		slice("shop", "db", "10.1.0.10 10.1.0.9 !10.1.0.8", sql, cluster.EndpointPort{Name: "web-ui", Port: 80}),
		slice("shop", "db", "fd00::9 10.1.0.9", sql, all), // an endpoint may be in two slices for a while
		slice("shop", "web", "10.1.0.1", cluster.EndpointPort{Port: 8080}),
		slice("shop", "", "10.1.0.2"),
		slice("batch", "db", "10.2.0.1", cluster.EndpointPort{Port: 3306}),
		slice("batch", "idle", "!10.2.0.2", sql),
	}
	services := []*cluster.Service{web, db, kubernetes, {Namespace: "batch", Name: "idle", Headless: true},
		{Namespace: "batch", Name: "db", Headless: true}, service("batch", "job-api", "fd96::7", cluster.ServicePort{Port: 80}),
		{Namespace: "batch", Name: "ext", Type: cluster.ExternalName, ExternalName: "example.org"}}
	own := []string{
		"DB_ENDPOINTS=10.1.0.9,10.1.0.10,fd00::9",
		"DB_ENDPOINTS_SQL=10.1.0.9:5432,10.1.0.10:5432,[fd00::9]:5432",
		"DB_ENDPOINTS_WEB_UI=10.1.0.9:80,10.1.0.10:80",
	}
	prefixed := func(prefix string, vars []string) (out []string) {
		for _, v := range vars {
			out = append(out, prefix+v)
		}
		return out
	}
	api := []string{
		"BATCH_JOB_API_SERVICE_HOST=fd96::7", "BATCH_JOB_API_SERVICE_PORT=80",
		"BATCH_JOB_API_PORT=tcp://[fd96::7]:80", "BATCH_JOB_API_PORT_80_TCP=tcp://[fd96::7]:80", "BATCH_JOB_API_PORT_80_TCP_PROTO=tcp",
		"BATCH_JOB_API_PORT_80_TCP_PORT=80", "BATCH_JOB_API_PORT_80_TCP_ADDR=fd96::7",
	}
	batch := append([]string{"BATCH_DB_ENDPOINTS=10.2.0.1", "BATCH_DB_ENDPOINTS_3306=10.2.0.1:3306"}, api...)
	for _, c := range []struct {
		name    string
		noLinks bool
		more    []string
		extra   []*cluster.Service
		want    []string
	}{
		{name: "headless services of the namespace", want: own},
		{name: "no links", noLinks: true},
		{name: "another namespace", more: []string{"batch"}, want: slices.Concat(own, batch)},
		{name: "without links only that", noLinks: true, more: []string{"batch"}, want: batch},
		{name: "in the order in which they are asked for", noLinks: true, more: []string{"shop", "none", "batch"},
			want: slices.Concat(prefixed("SHOP_", own), prefixed("SHOP_", vars("WEB", "10.96.0.7", "80")), batch)},
		{name: "the kubelet's own stay as they are", more: []string{"batch"},
			extra: []*cluster.Service{service("shop", "batch-job-api", "10.96.0.8", cluster.ServicePort{Port: 81})},
			want: slices.Concat(own, batch[:2], []string{"BATCH_JOB_API_PORT_80_TCP=tcp://[fd96::7]:80", "BATCH_JOB_API_PORT_80_TCP_PROTO=tcp",
				"BATCH_JOB_API_PORT_80_TCP_PORT=80", "BATCH_JOB_API_PORT_80_TCP_ADDR=fd96::7"})},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, left := Extra(slices.Values(append(c.extra, services...)), slices.Values(slicesOf), "shop", !c.noLinks, c.more)
			if d := cmp.Diff(c.want, got); d != "" || left != 0 {
				t.Errorf("%d left out, variables (-want +got):\n%s", left, d)
			}
		})
	}
}

// TestExtraHasBounds: a container starts however many endpoints its namespace has.
func TestExtraHasBounds(t *testing.T) {
	var services []*cluster.Service
	var endpoints []*cluster.Slice
	for i := range 100 {
		name := fmt.Sprintf("s%02d", i)
		services = append(services, &cluster.Service{Namespace: "shop", Name: name, Headless: true})
		s := slice("shop", name, "")
		n := 1000 // of 15 octets at most, 16 KiB in all
		if i == 0 {
			n = 10_000
		}
		for j := range n {
			s.Endpoints = append(s.Endpoints, cluster.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 200, byte(j >> 8), byte(j)}), Ready: true})
		}
		endpoints = append(endpoints, s)
	}
	got, left := Extra(slices.Values(services), slices.Values(endpoints), "shop", true, nil)
	if len(got)+left != len(services) || strings.HasPrefix(got[0], "S00_") || !strings.HasPrefix(got[0], "S01_") {
		t.Errorf("%d variables and %d left out of %d, the first %.40q", len(got), left, len(services), got[0])
	}
	if size := len(strings.Join(got, "")); size > maxExtra || size < maxExtra-maxVariable {
		t.Errorf("%d bytes", size)
	}
}

func TestAppendPodIPs(t *testing.T) {
	ips := []netip.Addr{netip.MustParseAddr("10.244.1.4"), netip.MustParseAddr("2001:db8::4")}
	if d := cmp.Diff([]string{"A=b", "MY_POD_IPS=10.244.1.4,2001:db8::4"}, AppendPodIPs([]string{"A=b"}, ips)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if got := AppendPodIPs(nil, nil); got != nil {
		t.Errorf("of no address: %q", got)
	}
}

func TestFormat(t *testing.T) {
	in := []string{"WEB_PORT=tcp://[fd96::7]:80", "A=", "1WEB_SERVICE_HOST=10.96.0.7", "Q=a'b\"c $d `e` \\f\n#g&=<é>"}
	for _, c := range []struct{ form, want string }{
		{Shell, "export WEB_PORT='tcp://[fd96::7]:80'\nexport A=''\n# 1WEB_SERVICE_HOST: no name for a shell\n" +
			"export Q='a'\\''b\"c $d `e` \\f\n#g&=<é>'\n"},
		{Dotenv, "WEB_PORT=tcp://[fd96::7]:80\nA=\n1WEB_SERVICE_HOST=10.96.0.7\n" +
			`Q="a'b\"c \$d ` + "\\`e\\`" + ` \\f\n#g&=<é>"` + "\n"},
		{JSON, "{\n  \"1WEB_SERVICE_HOST\": \"10.96.0.7\",\n  \"A\": \"\",\n  \"Q\": \"a'b\\\"c $d `e` \\\\f\\n#g&=<é>\",\n  \"WEB_PORT\": \"tcp://[fd96::7]:80\"\n}\n"},
	} {
		got, err := Format(in, c.form)
		if d := cmp.Diff(c.want, string(got)); d != "" || err != nil {
			t.Errorf("%s: error %v, (-want +got)\n%s", c.form, err, d)
		}
	}
	for _, bad := range []string{"", "A", "=b", "A B=c", "A;reboot=c", "A\n=c", "É=c", "A=b\x00c"} {
		for _, form := range []string{Shell, Dotenv, JSON} {
			if got, err := Format([]string{bad}, form); err == nil {
				t.Errorf("%s of %q: %q", form, bad, got)
			}
		}
	}
	if _, err := Format(in, "yaml"); err == nil || !strings.Contains(err.Error(), Dotenv) {
		t.Errorf("an unknown form: %v", err)
	}
	if got, err := Format(nil, JSON); string(got) != "{}\n" || err != nil {
		t.Errorf("nothing in JSON: %q, %v", got, err)
	}
}

// FuzzFormat holds that what is written is read back the same: by a shell, and as JSON.
func FuzzFormat(f *testing.F) {
	for _, s := range []string{"tcp://10.96.0.7:80", "a'b", "'; echo x; '", "$(id)`id`\\", "a\n\nb\r\t", "é\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if strings.Contains(value, "\x00") {
			return
		}
		script, err := Format([]string{"ROPEWALK_A=" + value, "ROPEWALK_B=b"}, Shell)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/bin/sh", "-c", string(script)+`printf '%s=%s' "$ROPEWALK_A" "$ROPEWALK_B"`)
		cmd.Env = []string{}
		if got, err := cmd.Output(); err != nil || string(got) != value+"=b" {
			t.Errorf("the shell has %q, want %q (%v)", got, value+"=b", err)
		}
		object, err := Format([]string{"A=" + value}, JSON)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]string
		if err := json.Unmarshal(object, &got); err != nil || utf8.ValidString(value) && got["A"] != value {
			t.Errorf("JSON has %q, want %q (%v)", got["A"], value, err)
		}
	})
}
