package hostsfile

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// maxHostname is what the kernel takes (sethostname(2)), without the octet at the end.
const maxHostname = 63

// Hostname returns a pod's hostname, and the domain it is in, empty if in none, as the kubelet works them out
// (Kubelet.GeneratePodHostNameAndDomain). p.Hosts is not nil. It fails for names that the kubelet refuses to start a pod with.
// (The kubelet refuses an override that is there and empty, too; no API server lets one in, and PodHosts does not tell it from none.)
func Hostname(p *cluster.Pod, clusterDomain string) (hostname, domain string, err error) {
	h := p.Hosts
	if h.HostnameOverride != "" { // KEP-4762
		if msgs := validation.IsDNS1123Subdomain(h.HostnameOverride); len(msgs) > 0 {
			return "", "", fmt.Errorf("hostnameOverride %q: %s", clip(h.HostnameOverride), msgs[0])
		}
		hostname, err = truncate(h.HostnameOverride)
		return hostname, "", err
	}
	hostname = p.Name
	if h.Hostname != "" {
		if msgs := validation.IsDNS1123Label(h.Hostname); len(msgs) > 0 {
			return "", "", fmt.Errorf("hostname %q: %s", clip(h.Hostname), msgs[0])
		}
		hostname = h.Hostname
	}
	if hostname, err = truncate(hostname); err != nil {
		return "", "", err
	}
	if h.Subdomain != "" {
		if msgs := validation.IsDNS1123Label(h.Subdomain); len(msgs) > 0 {
			return "", "", fmt.Errorf("subdomain %q: %s", clip(h.Subdomain), msgs[0])
		}
		domain = h.Subdomain + "." + p.Namespace + ".svc." + clusterDomain
	}
	return hostname, domain, nil
}

func truncate(hostname string) (string, error) {
	if len(hostname) <= maxHostname {
		return hostname, nil
	}
	cut := strings.TrimRight(hostname[:maxHostname], "-.")
	if cut == "" {
		return "", fmt.Errorf("hostname %q: nothing is left of its first %d characters", clip(hostname), maxHostname)
	}
	return cut, nil
}
