package env

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func TestAppendService(t *testing.T) {
	for _, c := range []struct {
		name  string
		svc   string
		ip    string
		ports []cluster.ServicePort
		want  []string
	}{
		{"two ports", "web-front", "10.96.0.7", []cluster.ServicePort{
			{Name: "http", Protocol: cluster.TCP, Port: 80}, {Name: "dns-udp", Protocol: cluster.UDP, Port: 53},
		}, []string{
			"WEB_FRONT_SERVICE_HOST=10.96.0.7",
			"WEB_FRONT_SERVICE_PORT=80",
			"WEB_FRONT_SERVICE_PORT_HTTP=80",
			"WEB_FRONT_SERVICE_PORT_DNS_UDP=53",
			"WEB_FRONT_PORT=tcp://10.96.0.7:80",
			"WEB_FRONT_PORT_80_TCP=tcp://10.96.0.7:80",
			"WEB_FRONT_PORT_80_TCP_PROTO=tcp",
			"WEB_FRONT_PORT_80_TCP_PORT=80",
			"WEB_FRONT_PORT_80_TCP_ADDR=10.96.0.7",
			"WEB_FRONT_PORT_53_UDP=udp://10.96.0.7:53",
			"WEB_FRONT_PORT_53_UDP_PROTO=udp",
			"WEB_FRONT_PORT_53_UDP_PORT=53",
			"WEB_FRONT_PORT_53_UDP_ADDR=10.96.0.7",
		}},
		{"IPv6, a port without name or protocol", "db", "fd00::7", []cluster.ServicePort{{Port: 5432}}, []string{
			"DB_SERVICE_HOST=fd00::7",
			"DB_SERVICE_PORT=5432",
			"DB_PORT=tcp://[fd00::7]:5432",
			"DB_PORT_5432_TCP=tcp://[fd00::7]:5432",
			"DB_PORT_5432_TCP_PROTO=tcp",
			"DB_PORT_5432_TCP_PORT=5432",
			"DB_PORT_5432_TCP_ADDR=fd00::7",
		}},
		{"no ports", "x", "10.0.0.1", nil, []string{"X_SERVICE_HOST=10.0.0.1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := AppendService(nil, c.svc, netip.MustParseAddr(c.ip), c.ports)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("variables (-want +got):\n%s", d)
			}
		})
	}
}
