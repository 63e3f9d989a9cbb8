package main

import (
	"fmt"
	"strings"
)

// spec says how a server is run: pure description. Files it needs are written into dir, which is its own.
type spec struct {
	files map[string]string
	argv  []string
}

// place is where a server runs.
type place struct {
	dir        string
	port       int
	kubeconfig string
	// zoneDir has a file for each of zones, named after it.
	zoneDir string
}

// subject is one of the servers that are compared.
type subject struct {
	// name has a place for the version, which a command prints. Our own have none.
	name    string
	version []string
	run     func(place) spec
	// unless is what the server's log says if it does not do what run asks for.
	unless string
}

// own are the rows whose cost is set in relation to the others'.
const (
	chainName = "Ropewalk, plugin chain"
	fastName  = "Ropewalk, fast path"
)

func subjects(ours, stock string) []subject {
	return []subject{
		{name: chainName, run: coredns(ours, "", plugin("ropewalk", "fastpath off"))},
		{name: fastName, run: coredns(ours, "", plugin("ropewalk", "fastpath on")), unless: "fastpath is off"},
		{name: "CoreDNS %s, kubernetes", version: []string{stock, "-version"}, run: coredns(stock, "", plugin("kubernetes", ""))},
		{
			name: "CoreDNS %s, kubernetes + cache", version: []string{stock, "-version"},
			run: coredns(stock, "cache", plugin("kubernetes", "")),
		},
		{name: "Knot DNS %s", version: []string{"knotd", "-V"}, run: knot},
		{name: "NSD %s", version: []string{"nsd", "-v"}, run: nsd},
		{name: "Unbound %s", version: []string{"unbound", "-V"}, run: unbound},
	}
}

// plugin returns a plugin's block in a Corefile.
func plugin(name, option string) func(place) string {
	return func(p place) string {
		return fmt.Sprintf("%s %s {\n kubeconfig %s\n %s\n }", name, strings.Join(zones, " "), p.kubeconfig, option)
	}
}

func coredns(binary, before string, plugin func(place) string) func(place) spec {
	return func(p place) spec {
		corefile := fmt.Sprintf(".:%d {\n bind 127.0.0.1\n errors\n %s\n %s\n}\n", p.port, before, plugin(p))
		return spec{map[string]string{"Corefile": corefile}, []string{binary, "-conf", p.dir + "/Corefile"}}
	}
}

func knot(p place) spec {
	conf := fmt.Sprintf(`server:
  rundir: %[1]s
  listen: 127.0.0.1@%[2]d
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: %[1]s
log:
  - target: stderr
    any: warning
template:
  - id: default
    storage: %[3]s
    file: "%%s"
    zonefile-load: whole
    zonefile-sync: -1
    journal-content: none
zone:
`, p.dir, p.port, p.zoneDir)
	for _, z := range zones {
		conf += fmt.Sprintf("  - domain: %s\n    file: %s\n", z, z)
	}
	return spec{map[string]string{"knot.conf": conf}, []string{"knotd", "-c", p.dir + "/knot.conf"}}
}

func nsd(p place) spec {
	conf := fmt.Sprintf(`server:
  ip-address: 127.0.0.1@%[2]d
  server-count: 1
  rrl-ratelimit: 0
  username: ""
  database: ""
  pidfile: %[1]s/nsd.pid
  xfrdfile: %[1]s/xfrd.state
  xfrdir: %[1]s
  zonelistfile: %[1]s/zone.list
  zonesdir: %[3]s
remote-control:
  control-enable: no
`, p.dir, p.port, p.zoneDir)
	for _, z := range zones {
		conf += fmt.Sprintf("zone:\n  name: %s\n  zonefile: %s\n", z, z)
	}
	return spec{map[string]string{"nsd.conf": conf}, []string{"nsd", "-d", "-c", p.dir + "/nsd.conf"}}
}

// unbound serves the zones as an authority; reverse zones of private addresses are its own otherwise.
func unbound(p place) spec {
	conf := fmt.Sprintf(`server:
  interface: 127.0.0.1@%[2]d
  num-threads: 1
  username: ""
  chroot: ""
  directory: %[1]s
  pidfile: %[1]s/unbound.pid
  use-syslog: no
  module-config: iterator
  unblock-lan-zones: yes
remote-control:
  control-enable: no
`, p.dir, p.port)
	for _, z := range zones {
		conf += fmt.Sprintf(`auth-zone:
  name: %[1]s
  zonefile: %[2]s/%[1]s
  for-upstream: no
  for-downstream: yes
  fallback-enabled: no
`, z, p.zoneDir)
	}
	return spec{map[string]string{"unbound.conf": conf}, []string{"unbound", "-d", "-c", p.dir + "/unbound.conf"}}
}
