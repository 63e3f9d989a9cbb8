// Package hostsfile makes the bytes of the hosts files that the kubelet manages for pods, and reads lines of such files. It is
// pure: it opens no file. The bytes are those of the kubelet (Kubernetes, pkg/kubelet/kubelet_pods.go), with more aliases
// where there are any.
package hostsfile

import (
	"errors"
	"slices"

	"github.com/ropewalk-net/ropewalk/cluster"
)

const (
	managedHeader = "# Kubernetes-managed hosts file.\n" +
		"127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\n" +
		"fe00::0\tip6-mcastprefix\n" +
		"fe00::1\tip6-allnodes\n" +
		"fe00::2\tip6-allrouters\n"
	hostNetworkHeader = "# Kubernetes-managed hosts file (host network).\n"
	aliasesHeader     = "\n# Entries added by HostAliases.\n"
)

// ErrNoAddress says that a pod has no address yet. The kubelet makes no hosts file for it until it has one.
var ErrNoAddress = errors.New("the pod has no address yet")

// Node is what pods' files owe to the node they are on.
type Node struct {
	// ClusterDomain is the kubelet's clusterDomain, as "cluster.local"; without a dot at its end.
	ClusterDomain string
	// Hosts is the node's own hosts file, which pods on the node's network have.
	Hosts []byte
}

// Render returns a pod's hosts file: the kubelet's, with the aliases in more behind those of the pod's spec. p.Hosts is not nil.
// Aliases are written as they are: the API has checked those of the spec, Parse and ParseAnnotation check others.
// It fails if the pod has a hostname that the kubelet refuses, whatever network it is on, and with ErrNoAddress.
func Render(p *cluster.Pod, node Node, more ...cluster.HostAlias) ([]byte, error) {
	return RenderLines(p, node, Lines(more))
}

// RenderLines is Render for aliases that are made into lines already, by Lines: those that many pods have are made once.
func RenderLines(p *cluster.Pod, node Node, more ...[]byte) ([]byte, error) {
	hostname, domain, err := Hostname(p, node.ClusterDomain)
	if err != nil {
		return nil, err
	}
	var b []byte
	switch {
	case p.Hosts.HostNetwork:
		b = append(b, hostNetworkHeader...)
		b = append(b, node.Hosts...)
	case len(p.IPs) == 0:
		return nil, ErrNoAddress
	default:
		names := hostname
		if domain != "" {
			names = hostname + "." + domain + "\t" + hostname
		}
		b = append(b, managedHeader...)
		for _, ip := range p.IPs {
			b = appendLine(ip.AppendTo(b), names)
		}
	}
	size := 0
	for _, lines := range more {
		size += len(lines)
	}
	if len(p.Hosts.Aliases)+size > 0 {
		b = slices.Grow(append(b, aliasesHeader...), size)
		b = appendAliases(b, p.Hosts.Aliases)
		for _, lines := range more {
			b = append(b, lines...)
		}
	}
	return b, nil
}

// Lines returns aliases as they stand in a hosts file.
func Lines(aliases []cluster.HostAlias) []byte { return appendAliases(nil, aliases) }

func appendAliases(b []byte, aliases []cluster.HostAlias) []byte {
	for _, a := range aliases {
		b = appendLine(append(b, a.IP...), a.Hostnames...)
	}
	return b
}

// appendLine ends a line that has its address. The tab is there even without a name, as in the kubelet's.
func appendLine(b []byte, names ...string) []byte {
	b = append(b, '\t')
	for i, name := range names {
		if i > 0 {
			b = append(b, '\t')
		}
		b = append(b, name...)
	}
	return append(b, '\n')
}
