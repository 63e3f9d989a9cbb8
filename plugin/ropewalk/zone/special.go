package zone

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/env"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/radix"
)

// server is a name and an address of this DNS service: the name up to the zone in wire format, the address' octets.
type server struct{ name, octets string }

const defaultServer = "\x02ns\x03dns"

// maxServers is how many servers a zone has at most. Whoever may write slices can name this server's address in theirs.
const maxServers = 100

// servers returns what this server is called in the cluster: by the services that its local addresses are endpoints of
// or, if there is none, ns.dns with the local addresses themselves.
func (v *View) servers(local []netip.Addr) (found []server) {
	var buf [17]byte
	for _, ip := range local {
		for o := range v.addrs.Values(addrKey(buf[:0], ip.Unmap())) {
			if o.slice == nil {
				continue
			}
			if found = append(found, v.serversOf(o.slice)...); len(found) > maxServers {
				return found[:maxServers]
			}
		}
	}
	if len(found) > 0 {
		return found
	}
	for _, ip := range local {
		found = append(found, server{defaultServer, string(ip.Unmap().AsSlice())})
	}
	return found
}

// serversOf returns the names of the service that a slice belongs to.
func (v *View) serversOf(id *sliceID) (found []server) {
	e := v.services.Get([]byte(id.of.key))
	if e == nil {
		return nil
	}
	if e.kind == kindClusterIP {
		for _, octets := range packedAddrs(e.rrs) {
			found = append(found, server{e.of.wire(), octets})
		}
		return found
	}
	for _, s := range e.slices {
		if s.id != id {
			continue
		}
		for fam := range s.fam {
			t := &s.fam[fam]
			for i := range t.len(fam) {
				found = append(found, server{string(t.appendLabel(nil, fam, i)) + e.of.wire(), t.addr(fam, i)})
			}
		}
	}
	return found
}

// ns writes the NS records of the zone and the addresses of the servers.
func (a *answer) ns() {
	zone := string(a.zoneName())
	in := zone
	if a.name.isReverse() {
		in = string(a.q.Origins.primary)
	}
	servers := a.v.servers(a.q.Local)
	fullName := func(s server) string {
		if s.name == defaultServer {
			return s.name + zone
		}
		return s.name + in
	}
	for i, s := range servers {
		if slices.ContainsFunc(servers[:i], func(o server) bool { return o.name == s.name }) {
			continue
		}
		if n := len(fullName(s)); n > maxName {
			continue
		} else if !a.begin(sectionAnswer, a.ownerPtr(), typeNS, a.v.opts.TTL, n) {
			return
		}
		a.msg = append(a.msg, fullName(s)...)
	}
	for i, s := range servers {
		if slices.Contains(servers[:i], s) || len(fullName(s)) > maxName {
			continue
		}
		if !a.room(sectionAdditional, len(fullName(s))+10+len(s.octets)) {
			return
		}
		a.msg = append(a.msg, fullName(s)...)
		a.fixed(sectionAdditional, addrType(s.octets), a.v.opts.TTL, len(s.octets))
		a.msg = append(a.msg, s.octets...)
	}
}

// defaultNS writes the servers' addresses under the name that the zone's SOA record gives for its server.
func (a *answer) defaultNS(t uint16) {
	var seen []string
	for _, s := range a.v.servers(a.q.Local) {
		if addrType(s.octets) == t && !slices.Contains(seen, s.octets) {
			seen = append(seen, s.octets)
			a.address(sectionAnswer, a.ownerPtr(), s.octets)
		}
	}
}

// env writes the environment of a namespace or service: one TXT record, one variable a string. A record is not cut: if
// it does not fit, the message is truncated.
func (a *answer) env() {
	room := min(a.q.Limit-len(a.msg), 1<<16-1)
	services := []*entry{a.found.e}
	if a.found.e == nil {
		services = a.v.envServices(a.found.ns, room)
	}
	var vars []string
	size := 0
	for _, e := range services {
		// What does not fit is not made: its variables are longer than what they are made of.
		if size+len(e.ports.all()) > room {
			a.tc = true
			return
		}
		from := len(vars)
		vars = e.appendEnv(vars)
		for _, s := range vars[from:] {
			size += 1 + min(len(s), 255)
		}
	}
	if size == 0 || !a.begin(sectionAnswer, a.ownerPtr(), typeTXT, a.v.opts.TTL, size) {
		return
	}
	for _, s := range vars {
		s = s[:min(len(s), 255)]
		a.msg = append(append(a.msg, byte(len(s))), s...)
	}
}

// envServices returns the services that containers of a namespace find in their environment, by name: those with a
// ClusterIP in the namespace itself, and default/kubernetes unless the namespace has one of that name. If their
// variables do not fit into room octets anyway, it may return no more than it takes to see that.
func (v *View) envServices(ns []byte, room int) (found []*entry) {
	const least = 1 + len("A_SERVICE_HOST=::")
	var buf [64]byte
	for key, e := range v.services.Prefixed(appendLower(buf[:0], ns)) {
		if len(found)*least > room {
			break
		}
		if e.kind == kindClusterIP && len(e.rrs) > 0 && len(key) > 1+len(ns) {
			found = append(found, e)
		}
	}
	if !slices.ContainsFunc(found, func(e *entry) bool { return e.of.name() == "kubernetes" }) {
		key := radix.NameKey(nil, []byte("\x0akubernetes\x07default"))
		if e := v.services.Get(key); e != nil && e.kind == kindClusterIP && len(e.rrs) > 0 {
			found = append(found, e)
		}
	}
	slices.SortFunc(found, func(a, b *entry) int { return strings.Compare(a.of.name(), b.of.name()) })
	return found
}

func (e *entry) appendEnv(vars []string) []string {
	var ports []cluster.ServicePort
	for rest := e.ports.all(); rest != ""; {
		var p port
		if p, rest = next(rest); p.number >= 0 {
			ports = append(ports, cluster.ServicePort{Name: p.name, Protocol: cluster.Protocol(p.protocol), Port: uint16(p.number)})
		}
	}
	return env.AppendService(vars, e.of.name(), e.primary(), ports)
}
