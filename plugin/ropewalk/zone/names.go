package zone

import (
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// Names yields the owner names of a zone's records, in wire format, and the types each has, for zone transfers. To ask
// for each of them is to have the whole zone, but for its SOA and NS records, and for names that are made up from the
// question: pods insecure, topology zones, port wildcards. zone is the zone's name in lower case. It yields nothing for
// a zone that is not served.
func (v *View) Names(zone string, origins *Origins) iter.Seq2[[]byte, []uint16] {
	wire := "\x00"
	if zone != "." {
		wire, _ = wireName(zone)
	}
	o, rangeZone := origins.exact(wire), false
	if o == nil && !origins.reverse && wire != "" {
		var d name
		if d.parse([]byte(wire)) {
			rangeZone = v.reverse.Get(nameKey(nil, &d)) != nil
		}
	}
	return func(yield func([]byte, []uint16) bool) {
		y := yielder{zone: wire, yield: yield}
		switch {
		case o == nil && !rangeZone:
			return
		case IsReverse(strings.ToLower(zone)):
			v.reverseNames(&y)
		case o.multi:
			v.serviceNames(&y, true)
		default:
			y.name("\x0bdns-version", typeTXT)
			v.serviceNames(&y, false)
			v.podNames(&y)
		}
	}
}

// Transferable says whether zone, in lower case, is one that Names knows.
func (v *View) Transferable(zone string, origins *Origins) bool {
	for range v.Names(zone, origins) {
		return true
	}
	wire, ok := wireName(zone)
	return ok && origins.exact(wire) != nil
}

func (o *Origins) exact(wire string) *origin {
	i := slices.IndexFunc(o.list, func(g origin) bool { return string(g.wire) == wire })
	if i < 0 {
		return nil
	}
	return &o.list[i]
}

// yielder yields names of a zone and remembers when enough is enough.
type yielder struct {
	zone  string
	yield func([]byte, []uint16) bool
	done  bool
	buf   []byte
}

func (y *yielder) name(relative string, types ...uint16) {
	if y.done {
		return
	}
	y.buf = append(append(y.buf[:0], relative...), y.zone...)
	if len(y.buf) <= 255 {
		y.done = !y.yield(y.buf, types)
	}
}

func (v *View) serviceNames(y *yielder, multi bool) {
	tree := v.services
	if multi {
		tree = v.imports
	}
	for key, e := range tree.Prefixed(nil) {
		if y.done {
			return
		}
		if e.kind == kindHeadless && e.ready() == 0 {
			continue
		}
		switch e.kind {
		case kindNamespace:
			if v.opts.Env && !multi {
				y.name("\x04_env"+string(key)+"\x03svc", typeTXT)
			}
			continue
		case kindAlias:
			y.name(e.of.wire(), typeCNAME)
			continue
		case kindClusterIP:
			if v.opts.Env && !multi && len(e.rrs) > 0 {
				y.name("\x04_env"+e.of.wire(), typeTXT)
			}
		}
		y.name(e.of.wire(), typeA, typeAAAA, typeSRV)
		e.portNames(y)
		e.endpointNames(y)
	}
}

// portNames yields the owners of SRV records: _port._proto.<service>.
func (e *entry) portNames(y *yielder) {
	seen := map[string]bool{}
	lists := []portList{e.ports}
	if e.kind == kindHeadless {
		lists = lists[:0]
		for _, s := range e.slices {
			lists = append(lists, s.ports)
		}
	}
	for _, l := range lists {
		for rest := l.all(); rest != ""; {
			var p port
			p, rest = next(rest)
			if p.name == "" || len(p.name) > 62 || len(p.protocol) > 62 {
				continue
			}
			owner := string(appendLower(appendLower(nil, []byte("_"+p.name)), []byte("_"+p.protocol)))
			if !seen[owner] {
				seen[owner] = true
				y.name(owner+e.of.wire(), typeSRV)
			}
		}
	}
}

// endpointNames yields the endpoints' own names.
func (e *entry) endpointNames(y *yielder) {
	seen := map[string]bool{}
	for _, s := range e.slices {
		for fam := range s.fam {
			for i := range s.fam[fam].len(fam) {
				l := string(appendString(s.fam[fam].appendLabel(nil, fam, i), s.id.cluster.Value()))
				if !seen[l] {
					seen[l] = true
					y.name(l+e.of.wire(), typeA, typeAAAA, typeSRV)
				}
			}
		}
	}
}

func (v *View) podNames(y *yielder) {
	if v.opts.Pods != PodsVerified {
		return
	}
	for key, pods := range v.pods.Prefixed(nil) {
		a, _ := netip.AddrFromSlice(key[1:])
		label := dashes(a.AppendTo(nil))
		last := ""
		for _, p := range *pods {
			ns := labelKey(p.Namespace)
			if p.Namespace != last && v.services.Get(ns) != nil && len(label) <= 63 {
				y.name(string(appendLower(nil, label))+string(ns)+"\x03pod", typeA, typeAAAA)
			}
			last = p.Namespace
		}
	}
}

// reverseNames yields the reverse names of all addresses that are below the zone.
func (v *View) reverseNames(y *yielder) {
	var d name
	if !d.parse([]byte(y.zone)) {
		return
	}
	prefix, odd, ok := d.reverseAddr(nil)
	if !ok {
		return
	}
	var last netip.Addr
	for key := range v.addrs.Prefixed(prefix) {
		if odd >= 0 && int(key[len(prefix)]>>4) != odd {
			continue
		}
		a := keyAddr(key)
		if a == last {
			continue // another of its owners
		}
		last = a
		full := reverseName(a, a.BitLen())
		y.name(strings.TrimSuffix(full, y.zone), typePTR)
		if y.done {
			return
		}
	}
}
