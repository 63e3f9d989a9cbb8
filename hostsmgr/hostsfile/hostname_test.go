package hostsfile

import (
	"strings"
	"testing"

	"github.com/ropewalk-net/ropewalk/cluster"
)

func TestHostname(t *testing.T) {
	a63 := strings.Repeat("a", 63)
	for _, c := range []struct {
		name             string
		pod              string
		hosts            cluster.PodHosts
		hostname, domain string
		err              string // a part of the error; empty for none
	}{
		{name: "the pod's name", pod: "web-0", hostname: "web-0"},
		{name: "63 characters stay", pod: a63, hostname: a63},
		{name: "64 do not", pod: a63 + "b", hostname: a63},
		{name: "what the cut leaves at the end goes", pod: a63[:58] + "-.-.-tail", hostname: a63[:58]},
		{name: "dashes ahead of the cut alone stay", pod: a63[:58] + "-", hostname: a63[:58] + "-"},
		{name: "nothing is left", pod: strings.Repeat("-", 64), err: "nothing is left"},
		{name: "bytes are counted, not characters", pod: strings.Repeat("é", 32), hostname: strings.Repeat("é", 31) + "\xc3"},
		{name: "hostname", pod: "web-0", hosts: cluster.PodHosts{Hostname: "front"}, hostname: "front"},
		{name: "hostname of 64", hosts: cluster.PodHosts{Hostname: a63 + "b"}, err: "hostname"},
		{name: "hostname in upper case", hosts: cluster.PodHosts{Hostname: "Web"}, err: "hostname"},
		{name: "hostname with a dot", hosts: cluster.PodHosts{Hostname: "a.b"}, err: "dots"},
		{name: "hostname with a line's end", hosts: cluster.PodHosts{Hostname: "a\n"}, err: "hostname"},
		{name: "subdomain", pod: "web-0", hosts: cluster.PodHosts{Subdomain: "web"}, hostname: "web-0", domain: "web.shop.svc.example.org"},
		{name: "subdomain with a dot", pod: "web-0", hosts: cluster.PodHosts{Subdomain: "a.b"}, err: "subdomain"},
		{name: "override", pod: "web-0", hosts: cluster.PodHosts{HostnameOverride: "a.example.com", Hostname: "front", Subdomain: "web"},
			hostname: "a.example.com"},
		{name: "override of 64", hosts: cluster.PodHosts{HostnameOverride: a63[:60] + ".org"}, hostname: a63[:60] + ".or"},
		{name: "override cut at a dot", hosts: cluster.PodHosts{HostnameOverride: a63[:62] + ".o"}, hostname: a63[:62]},
		{name: "override makes up for a wrong hostname", hosts: cluster.PodHosts{HostnameOverride: "a", Hostname: "_"}, hostname: "a"},
		{name: "wrong override", hosts: cluster.PodHosts{HostnameOverride: "a_b"}, err: "hostnameOverride"},
		{name: "long override", hosts: cluster.PodHosts{HostnameOverride: strings.Repeat("a.", 200) + "a"}, err: "253"},
	} {
		t.Run(c.name, func(t *testing.T) {
			hostname, domain, err := Hostname(&cluster.Pod{Namespace: "shop", Name: c.pod, Hosts: &c.hosts}, "example.org")
			if hostname != c.hostname || domain != c.domain {
				t.Errorf("hostname %q, domain %q, want %q, %q", hostname, domain, c.hostname, c.domain)
			}
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want one with %q", err, c.err)
			}
		})
	}
}
