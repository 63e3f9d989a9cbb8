package portmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

var (
	// ErrTaken says that a port is led to another pod.
	ErrTaken = errors.New("port of the node is taken")
	// ErrInvalid says that a mapping, a pod's address or an owner is not one.
	ErrInvalid = errors.New("invalid port mapping")
	// ErrMissing says that a mapping is not, or not wholly, in the kernel.
	ErrMissing = errors.New("port mapping is missing")
)

// Owner is whose a mapping is: a container's interface, as CNI calls it.
type Owner struct{ Container, Interface string }

// String is what stands in elements' comments. Neither part may have a slash in it.
func (o Owner) String() string { return o.Container + "/" + o.Interface }

// maxComment is what nft(8) prints, without the zero at the end.
const maxComment = 127

func (o Owner) validate() error {
	s := o.String()
	if o.Container == "" || o.Interface == "" || strings.Count(s, "/") != 1 || strings.ContainsAny(s, "\x00\"\n") || len(s) > maxComment {
		return fmt.Errorf("%w: owner %q", ErrInvalid, s)
	}
	return nil
}

func parseOwner(comment string) Owner {
	container, ifname, _ := strings.Cut(comment, "/")
	return Owner{container, ifname}
}

// Protocol is the number of one in an IP header.
type Protocol uint8

const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

var protocols = map[Protocol]string{TCP: "tcp", UDP: "udp", SCTP: "sctp"}

func (p Protocol) String() string { return protocols[p] }

// ParseProtocol understands tcp, udp and sctp in any case. It returns ErrInvalid for others.
func ParseProtocol(s string) (Protocol, error) {
	for p, name := range protocols {
		if strings.EqualFold(s, name) {
			return p, nil
		}
	}
	return 0, fmt.Errorf("%w: protocol %q", ErrInvalid, s)
}

// Mapping leads a port of the node to one of a pod. Without HostIP, or if that is 0.0.0.0 or ::, it is that port of all of the
// node's addresses, of those families that the pod has.
type Mapping struct {
	HostIP                  netip.Addr
	HostPort, ContainerPort uint16
	Protocol                Protocol
}

func (m Mapping) all() bool { return !m.HostIP.IsValid() || m.HostIP.IsUnspecified() }

func (m Mapping) String() string {
	host := "*"
	if !m.all() {
		host = m.HostIP.String()
	}
	return fmt.Sprintf("%s %s port %d", m.Protocol, host, m.HostPort)
}

func (m Mapping) validate(pods []netip.Prefix) error {
	if protocols[m.Protocol] == "" || m.HostPort == 0 || m.ContainerPort == 0 || m.HostIP.Zone() != "" || m.HostIP.Is4In6() {
		return fmt.Errorf("%w: %+v", ErrInvalid, m)
	}
	if m.all() {
		return nil
	}
	for _, p := range pods {
		if p.Addr().Is4() == m.HostIP.Is4() {
			return nil
		}
	}
	return fmt.Errorf("%w: %v, and the pod has no address of that family", ErrInvalid, m)
}

// Entry is a mapping as the kernel has it, of one family.
type Entry struct {
	Owner Owner
	Mapping
	Pod netip.Addr
}

// element is one of a set or map. Keys and values are as the kernel compares them: each field filled up to 4 bytes.
type element struct {
	set             set
	key, end, value string
	owner           Owner
}

func bytesOf(a netip.Addr) string { return string(a.AsSlice()) }
func bytesOfPort(p uint16) string { return string(binary.BigEndian.AppendUint16(nil, p)) + "\x00\x00" }

// port is what is left of a key without the address.
func (m Mapping) port() string {
	return string([]byte{byte(m.Protocol), 0, 0, 0}) + bytesOfPort(m.HostPort)
}

// wanted returns the elements of a pod in one family. A pod's address is with the network that it reaches without a router: who
// connects from there to the pod's port has to be masqueraded, since the answer would not come back this way.
func wanted(f *family, o Owner, mappings []Mapping, pods []netip.Prefix, localhost bool) ([]element, error) {
	var list []element
	at := map[string]element{} // maps' keys are of different lengths
	for _, p := range pods {
		if p.Addr().Is4() != f.is4() {
			continue
		}
		lead := func(m Mapping, key string) element {
			return element{set: f.setOf(key), key: key, value: bytesOf(p.Addr()) + bytesOfPort(m.ContainerPort), owner: o}
		}
		for _, m := range mappings {
			key := m.port()
			if !m.all() {
				if m.HostIP.Is4() != f.is4() {
					continue
				}
				key = bytesOf(m.HostIP) + key
			}
			e := lead(m, key)
			if old, there := at[key]; there && old != e {
				return nil, fmt.Errorf("%w: %v, to two ports", ErrInvalid, m)
			}
			at[key] = e
		}
		for _, m := range mappings {
			key := bytesOf(loopback) + m.port()
			if _, there := at[key]; m.all() && localhost && f.is4() && !there {
				at[key] = lead(m, key)
			}
		}
		from := func(network netip.Prefix) {
			first, last := bounds(network)
			list = append(list, element{set: hairpinSet, key: bytesOf(first) + bytesOf(p.Addr()), end: bytesOf(last) + bytesOf(p.Addr()), owner: o})
		}
		if len(at) > 0 {
			from(p)
		}
		for _, e := range at {
			if e.mapping(f).HostIP.IsLoopback() { // the pod would send its answer to itself
				from(netip.PrefixFrom(loopback, 8))
				break
			}
		}
	}
	for _, e := range at {
		list = append(list, e)
	}
	return list, nil
}

// setOf is the map that a key is of.
func (f *family) setOf(key string) set {
	if len(key) > f.size+4 {
		return addressesMap
	}
	return portsMap
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// bounds are the first and the last address of the network of p.
func bounds(p netip.Prefix) (first, last netip.Addr) {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ = netip.AddrFromSlice(b)
	return p.Masked().Addr(), last
}

// plan says what to add and what to delete, so that o has what it wants. Elements that lead to one of the pod's addresses are of a pod that
// had it before, whoever that was, and go. It returns ErrTaken if somebody else has a port, on the same address or, one of the two, on all.
func plan(f *family, o Owner, held, want []element, pods []netip.Prefix) (add, remove []element, err error) {
	stale := func(e element) bool {
		for _, p := range pods {
			if e.pod(f) == p.Addr() {
				return true
			}
		}
		return e.owner == o
	}
	keep := map[element]bool{}
	for _, w := range want {
		keep[w] = false
	}
	for _, h := range held {
		if _, same := keep[h]; same {
			keep[h] = true
			continue
		}
		if stale(h) {
			remove = append(remove, h)
			continue
		}
		for _, w := range want {
			if clash(h, w) {
				return nil, nil, fmt.Errorf("%w: %v, by %v", ErrTaken, w.mapping(f), h.owner)
			}
		}
	}
	for _, w := range want {
		if !keep[w] {
			add = append(add, w)
		}
	}
	return add, remove, nil
}

// clash says whether two elements are of the same port.
func clash(a, b element) bool {
	switch {
	case a.set == hairpinSet || b.set == hairpinSet:
		return false
	case a.set == b.set:
		return a.key == b.key
	default:
		return strings.HasSuffix(a.key, b.key) || strings.HasSuffix(b.key, a.key)
	}
}

// pod is where an element leads to.
func (e element) pod(f *family) netip.Addr {
	s := e.value
	if e.set == hairpinSet {
		s = e.key[len(e.key)-f.size:]
	}
	a, _ := netip.AddrFromSlice([]byte(s[:f.size]))
	return a
}

// mapping reads the element of a map back.
func (e element) mapping(f *family) Mapping {
	m := Mapping{}
	k := e.key
	if e.set == addressesMap {
		m.HostIP, _ = netip.AddrFromSlice([]byte(k[:f.size]))
		k = k[f.size:]
	}
	m.Protocol = Protocol(k[0])
	m.HostPort = binary.BigEndian.Uint16([]byte(k[4:]))
	m.ContainerPort = binary.BigEndian.Uint16([]byte(e.value[f.size:]))
	return m
}

func entries(f *family, list []element) []Entry {
	var out []Entry
	for _, e := range list {
		if e.set != hairpinSet {
			out = append(out, Entry{Owner: e.owner, Mapping: e.mapping(f), Pod: e.pod(f)})
		}
	}
	return out
}
