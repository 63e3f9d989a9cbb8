// Package env makes the environment variables by which a container finds services, as the kubelet sets them (Kubernetes,
// pkg/kubelet/envvars). It is pure: services in, variables out.
package env

import (
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// AppendService appends the variables of one service, each as "NAME=value", in the kubelet's order: host, first port,
// named ports, then for every port the variables that container links once had. ip is the service's primary ClusterIP.
// A service has at least one port; without any it has a host variable only.
func AppendService(vars []string, service string, ip netip.Addr, ports []cluster.ServicePort) []string {
	name := variable(service)
	vars = append(vars, name+"_SERVICE_HOST="+ip.String())
	if len(ports) == 0 {
		return vars
	}
	vars = append(vars, name+"_SERVICE_PORT="+number(ports[0]))
	for _, p := range ports {
		if p.Name != "" {
			vars = append(vars, name+"_SERVICE_PORT_"+variable(p.Name)+"="+number(p))
		}
	}
	for i, p := range ports {
		protocol := string(p.Protocol)
		if protocol == "" {
			protocol = string(cluster.TCP)
		}
		url := strings.ToLower(protocol) + "://" + net.JoinHostPort(ip.String(), number(p))
		if i == 0 {
			vars = append(vars, name+"_PORT="+url)
		}
		prefix := name + "_PORT_" + number(p) + "_" + strings.ToUpper(protocol)
		vars = append(vars,
			prefix+"="+url,
			prefix+"_PROTO="+strings.ToLower(protocol),
			prefix+"_PORT="+number(p),
			prefix+"_ADDR="+ip.String())
	}
	return vars
}

// variable turns the name of a service or port into that of a variable.
func variable(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }

func number(p cluster.ServicePort) string { return strconv.Itoa(int(p.Port)) }
