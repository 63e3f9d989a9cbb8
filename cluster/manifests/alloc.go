package manifests

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// ranges are those that cluster addresses come from, the primary ones first.
type ranges struct {
	of    map[corev1.IPFamily][]netip.Prefix
	first corev1.IPFamily
}

// rangesOf collects the ranges of cidrs, which are not empty, checked, and in order.
func rangesOf(cidrs []*networkingv1.ServiceCIDR) ranges {
	r := ranges{of: map[corev1.IPFamily][]netip.Prefix{}, first: familyOf(cidrs[0].Spec.CIDRs[0])}
	for _, c := range cidrs {
		for _, s := range c.Spec.CIDRs {
			r.of[familyOf(s)] = append(r.of[familyOf(s)], netip.MustParsePrefix(s))
		}
	}
	return r
}

func (r ranges) dual() bool { return len(r.of) == 2 }

func (r ranges) contain(a netip.Addr) bool {
	for _, ps := range r.of {
		if slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
	}
	return false
}

// allocator gives services the cluster addresses that they lack.
type allocator struct {
	ranges ranges
	owners map[netip.Addr]service
}

// allocate completes the ClusterIPs of services, which are in the order of keys. Those written in the files come first,
// then those that a service had before, then new ones.
func (a *allocator) allocate(services []service, before Assigned) (notes []string, err error) {
	for _, s := range services {
		if s.from.madeUp() {
			a.own(s)
		}
	}
	for _, s := range services {
		if s.from.madeUp() {
			continue
		}
		more, err := a.reserve(s)
		if err != nil {
			return nil, err
		}
		notes = append(notes, more...)
	}
	for _, s := range services {
		notes = append(notes, a.keep(s, before[s.key()])...)
	}
	for _, s := range services {
		if err := a.complete(s); err != nil {
			return nil, err
		}
	}
	return notes, nil
}

// lacks reports whether s wants cluster addresses that it does not have.
func lacks(s *corev1.Service) bool {
	return s.Spec.Type != corev1.ServiceTypeExternalName && !headless(s) && len(s.Spec.ClusterIPs) < len(s.Spec.IPFamilies)
}

// reserve takes the addresses that are written in the files.
func (a *allocator) reserve(s service) (notes []string, err error) {
	for _, ip := range clusterAddrs(s.Service) {
		field := "spec.clusterIP"
		if s.from.lines["spec.clusterIPs"] > s.from.lines[field] {
			field = "spec.clusterIPs"
		}
		if owner, ok := a.owners[ip]; ok {
			err := s.from.fail(field, "%s is that of Service %s%s, too; want an address of its own, or leave it out", ip, owner.key(), owner.from.place())
			err.Other = owner.from.File
			return nil, err
		}
		if !a.ranges.contain(ip) {
			notes = append(notes, s.from.fail(field, "%s is in no ServiceCIDR; an API server would refuse it", ip).Error())
		}
	}
	a.own(s)
	return notes, nil
}

// own records the addresses that s has.
func (a *allocator) own(s service) {
	for _, ip := range clusterAddrs(s.Service) {
		a.owners[ip] = s
	}
}

// keep gives s the addresses that it had before, as far as it lacks them and nobody else claims them.
func (a *allocator) keep(s service, had []netip.Addr) (notes []string) {
	for lacks(s.Service) {
		fam := s.Spec.IPFamilies[len(s.Spec.ClusterIPs)]
		i := slices.IndexFunc(had, func(ip netip.Addr) bool { return familyOf(ip.String()) == fam })
		if i < 0 {
			return notes
		}
		if owner, taken := a.owners[had[i]]; taken {
			return append(notes, s.from.fail("spec.clusterIP", "%s now belongs to Service %s, which asks for it", had[i], owner.key()).Error())
		}
		a.give(s, had[i])
	}
	return notes
}

// complete gives s new addresses for what it lacks.
func (a *allocator) complete(s service) error {
	for lacks(s.Service) {
		fam := s.Spec.IPFamilies[len(s.Spec.ClusterIPs)]
		ip, ok := a.free(s.key(), a.ranges.of[fam])
		if !ok {
			return s.from.fail("spec.clusterIP", "no address left for it: %s; want a second ServiceCIDR, or a larger one", describeFull(fam, a.ranges.of[fam]))
		}
		a.give(s, ip)
	}
	if len(s.Spec.ClusterIPs) > 0 {
		s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	}
	return nil
}

func describeFull(fam corev1.IPFamily, ps []netip.Prefix) string {
	text := fmt.Sprintf("the %s range", fam)
	for i, p := range ps {
		if i > 0 {
			text += " and"
		}
		text += fmt.Sprintf(" %s (%d addresses)", p, usable(p))
	}
	return text + " is full"
}

func (a *allocator) give(s service, ip netip.Addr) {
	a.owners[ip] = s
	s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, ip.String())
}

// free returns an address that nobody has: from the first range that has one, first from the part that Kubernetes uses
// for addresses it chooses, then from the part it leaves to addresses that people choose (KEP-3070).
func (a *allocator) free(key cluster.Key, ps []netip.Prefix) (netip.Addr, bool) {
	h := fnv.New64a()
	h.Write([]byte(key.String()))
	for _, p := range ps {
		low := lowBand(p)
		if ip, ok := a.probe(p, low, usable(p), h.Sum64()); ok {
			return ip, true
		}
		if ip, ok := a.probe(p, 0, low, h.Sum64()); ok {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

// probe looks for a free address among the usable ones numbered from to below to, beginning at one that hash picks.
func (a *allocator) probe(p netip.Prefix, from, to, hash uint64) (netip.Addr, bool) {
	if from >= to {
		return netip.Addr{}, false
	}
	n := to - from
	for i := range n {
		ip := nth(p, from+(hash%n+i)%n)
		if _, taken := a.owners[ip]; !taken {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

// usable returns how many addresses of p services can have: not the network address, nor IPv4's broadcast address, nor
// IPv6's subnet-router anycast address (RFC 4291 section 2.6.1). Of very large ranges only a part is used.
func usable(p netip.Prefix) uint64 {
	hostBits := p.Addr().BitLen() - p.Bits()
	switch {
	case p.Addr().Is4() && hostBits < 2:
		return 0
	case p.Addr().Is4():
		return 1<<hostBits - 2
	case hostBits > 62:
		return 1 << 62
	default:
		return 1<<hostBits - 1
	}
}

// lowBand returns how many of the first usable addresses are left to people (KEP-3070, "min(max(16, size/16), 256)").
func lowBand(p netip.Prefix) uint64 {
	n := usable(p)
	if band := min(max(16, n/16), 256); band < n {
		return band
	}
	return 0
}

// nth returns the usable address of p numbered i, from 0.
func nth(p netip.Prefix, i uint64) netip.Addr {
	b := p.Masked().Addr().As16()
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	sum := lo + i + 1
	if sum < lo {
		hi++
	}
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], sum)
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap()
	}
	return a
}

// clusterAddrs returns the cluster addresses of a service that has been checked.
func clusterAddrs(s *corev1.Service) []netip.Addr {
	var addrs []netip.Addr
	for _, ip := range s.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs
}
