package env

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// NamespacesKey is the annotation of a pod that names other namespaces whose services its containers shall find: names with
// commas between them.
const NamespacesKey = cluster.AnnotationPrefix + "env-from-namespaces"

// A container does not start if its environment is too large (execve(2): 128 KiB a variable, and a quarter of the stack's limit
// in all), so what nobody needs to start has bounds well below.
const (
	maxNamespaces = 32
	maxVariable   = 32 << 10
	maxExtra      = 256 << 10
)

// ParseNamespaces reads the value of the annotation NamespacesKey. It fails if a name is none of a namespace, or if there are
// more than 32. A name that comes twice is returned once.
func ParseNamespaces(value string) ([]string, error) {
	var out []string
	for name := range strings.SplitSeq(value, ",") {
		name = strings.Trim(name, " \t\r\n")
		switch {
		case name == "" || slices.Contains(out, name):
		case !isLabel(name):
			return nil, fmt.Errorf("%.100q is no name of a namespace", name)
		case len(out) == maxNamespaces:
			return nil, fmt.Errorf("more than %d namespaces", maxNamespaces)
		default:
			out = append(out, name)
		}
	}
	return out, nil
}

// isLabel says whether s can be the name of a namespace: a label as of RFC 1123 in lower case.
func isLabel(s string) bool {
	for _, c := range []byte(s) {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return len(s) > 0 && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
}

// Extra returns variables that the kubelet leaves out, for a pod of a namespace with spec.enableServiceLinks as links says. For
// every headless service N of the namespace, if links is true, that has ready endpoints:
//
//	N_ENDPOINTS=addr,addr              the ready addresses in order; bare, IPv6 too
//	N_ENDPOINTS_<PORT>=addr:port,…     for each port, called by its name, or by its number if it has none; IPv6 in brackets
//
// and for the services of the namespaces in more, whatever links is, these and those of AppendService, with the namespace's name
// and _ before them: SHOP_WEB_SERVICE_HOST, SHOP_DB_ENDPOINTS. Names are in upper case, with _ for -.
//
// Each name comes once, and none that Variables has comes at all: what the kubelet sets stays as it is. left counts the variables
// that were too large (32 KiB each, 256 KiB together) and are not there. services and endpoints hold at least what there is of
// these namespaces and of default/kubernetes.
func Extra(services iter.Seq[*cluster.Service], endpoints iter.Seq[*cluster.Slice], namespace string, links bool, more []string) (vars []string, left int) {
	in := map[string][]*cluster.Service{}
	for s := range services {
		if slices.Contains(more, s.Namespace) || links && s.Namespace == namespace && s.Headless {
			in[s.Namespace] = append(in[s.Namespace], s)
		}
	}
	of := map[cluster.Key][]*cluster.Slice{}
	for s := range endpoints {
		if in[s.Namespace] != nil && s.Service != "" {
			k := cluster.Key{Namespace: s.Namespace, Name: s.Service}
			of[k] = append(of[k], s)
		}
	}
	if links {
		for _, s := range byName(in[namespace]) {
			if s.Headless {
				vars = appendEndpoints(vars, variable(s.Name), of[s.Key()])
			}
		}
	}
	for _, ns := range more {
		for _, s := range byName(in[ns]) {
			if s.Headless {
				vars = appendEndpoints(vars, variable(ns+"-"+s.Name), of[s.Key()])
			} else if len(s.ClusterIPs) > 0 {
				vars = AppendService(vars, ns+"-"+s.Name, s.ClusterIPs[0], s.Ports)
			}
		}
	}
	kubelets := map[string]bool{}
	for _, v := range Variables(services, namespace, links) {
		name, _, _ := strings.Cut(v, "=")
		kubelets[name] = true
	}
	return bounded(once(vars, kubelets))
}

// appendEndpoints appends what the slices of a headless service say, under the name of its variables.
func appendEndpoints(vars []string, name string, of []*cluster.Slice) []string {
	var addrs []netip.Addr
	ports := map[string][]netip.AddrPort{} // by what their variable is called
	for _, s := range of {
		for _, e := range s.Endpoints {
			if !e.Ready {
				continue
			}
			addrs = append(addrs, e.Addr)
			for _, p := range s.Ports {
				if p.Port < 0 { // all ports
					continue
				}
				called := variable(p.Name)
				if called == "" {
					called = number(uint16(p.Port))
				}
				ports[called] = append(ports[called], netip.AddrPortFrom(e.Addr, uint16(p.Port)))
			}
		}
	}
	if len(addrs) == 0 {
		return vars
	}
	vars = append(vars, name+"_ENDPOINTS="+list(addrs, netip.Addr.Compare))
	for _, called := range slices.Sorted(maps.Keys(ports)) {
		vars = append(vars, name+"_ENDPOINTS_"+called+"="+list(ports[called], netip.AddrPort.Compare))
	}
	return vars
}

// list returns what is in values, once each and in order.
func list[T interface {
	comparable
	fmt.Stringer
}](values []T, compare func(a, b T) int) string {
	slices.SortFunc(values, compare)
	var b strings.Builder
	for i, v := range slices.Compact(values) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(v.String())
	}
	return b.String()
}

// bounded leaves out what is too large.
func bounded(vars []string) (out []string, left int) {
	total := 0
	for _, v := range vars {
		if len(v) > maxVariable || total+len(v) > maxExtra {
			left++
			continue
		}
		total += len(v)
		out = append(out, v)
	}
	return out, left
}

// AppendPodIPs appends MY_POD_IPS, a pod's addresses with commas between them, as the downward API gives status.podIPs. Without
// addresses it appends nothing.
func AppendPodIPs(vars []string, ips []netip.Addr) []string {
	if len(ips) == 0 {
		return vars
	}
	texts := make([]string, len(ips))
	for i, ip := range ips {
		texts[i] = ip.String()
	}
	return append(vars, "MY_POD_IPS="+strings.Join(texts, ","))
}
