// Package env makes the environment variables by which a container finds services, as the kubelet sets them (Kubernetes,
// pkg/kubelet/envvars), and some that the kubelet leaves out. It is pure: services in, variables out. Variables are
// "NAME=value".
package env

import (
	"iter"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// Variables returns what the kubelet sets in a container of a pod in a namespace (Kubelet.getServiceEnvVarMap): the variables of
// the namespace's services, where links, spec.enableServiceLinks of the pod, is true; and always those of default/kubernetes,
// unless the namespace has a service of that name and links is true. Services without a ClusterIP have none. Services come by
// name, the variables of each in the order of AppendService.
//
// Each name comes once. Where two services have a variable of the same name (a service called "a" with port 80, another one
// called "a-port-80-tcp"), the later one's value counts; the kubelet takes any.
func Variables(services iter.Seq[*cluster.Service], namespace string, links bool) []string {
	var in []*cluster.Service
	var master *cluster.Service
	own := false // the namespace has a service that stands in for the master's
	for s := range services {
		isMaster := s.Namespace == masterNamespace && s.Name == masterName
		switch {
		case len(s.ClusterIPs) == 0:
		case isMaster:
			master = s
		case links && s.Namespace == namespace:
			in = append(in, s)
			own = own || s.Name == masterName
		}
	}
	if master != nil && !own {
		in = append(in, master)
	}
	var vars []string
	for _, s := range byName(in) {
		vars = AppendService(vars, s.Name, s.ClusterIPs[0], s.Ports)
	}
	return once(vars, nil)
}

// The service that every pod is told of: the API server's.
const masterNamespace, masterName = "default", "kubernetes"

// AppendService appends the variables of one service, in the kubelet's order: host, first port, named ports, then for every
// port the variables that container links once had. ip is the service's primary ClusterIP. A service has at least one port;
// without any it has a host variable only.
func AppendService(vars []string, service string, ip netip.Addr, ports []cluster.ServicePort) []string {
	name := variable(service)
	vars = append(vars, name+"_SERVICE_HOST="+ip.String())
	if len(ports) == 0 {
		return vars
	}
	vars = append(vars, name+"_SERVICE_PORT="+number(ports[0].Port))
	for _, p := range ports {
		if p.Name != "" {
			vars = append(vars, name+"_SERVICE_PORT_"+variable(p.Name)+"="+number(p.Port))
		}
	}
	for i, p := range ports {
		protocol := string(p.Protocol)
		if protocol == "" {
			protocol = string(cluster.TCP)
		}
		url := strings.ToLower(protocol) + "://" + net.JoinHostPort(ip.String(), number(p.Port))
		if i == 0 {
			vars = append(vars, name+"_PORT="+url)
		}
		prefix := name + "_PORT_" + number(p.Port) + "_" + strings.ToUpper(protocol)
		vars = append(vars,
			prefix+"="+url,
			prefix+"_PROTO="+strings.ToLower(protocol),
			prefix+"_PORT="+number(p.Port),
			prefix+"_ADDR="+ip.String())
	}
	return vars
}

// once leaves the last of each name, in the order in which the names first come, and none that is in but. The C library takes
// the first of two variables of a name, shells the last.
func once(vars []string, but map[string]bool) []string {
	at := make(map[string]int, len(vars))
	out := vars[:0]
	for _, v := range vars {
		name, _, _ := strings.Cut(v, "=")
		if but[name] {
			continue
		}
		if i, ok := at[name]; ok {
			out[i] = v
			continue
		}
		at[name] = len(out)
		out = append(out, v)
	}
	return out
}

func byName(services []*cluster.Service) []*cluster.Service {
	slices.SortFunc(services, func(a, b *cluster.Service) int { return strings.Compare(a.Name, b.Name) })
	return services
}

// variable turns the name of a service or port into that of a variable.
func variable(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }

func number(port uint16) string { return strconv.Itoa(int(port)) }
