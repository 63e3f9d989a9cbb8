package nft

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
	"github.com/ropewalk-net/ropewalk/test/clusternet"
)

// kernel is what a table's sets would hold: it takes batches as strictly as the kernel does.
type kernel [numSets]map[string]string

func (k *kernel) take(t *testing.T, s *state, b *batch) {
	t.Helper()
	each := func(list []byte, size int, f func(e []byte)) {
		if len(list)%size != 0 {
			t.Fatalf("%d bytes of elements of %d", len(list), size)
		}
		for e := range slices.Chunk(list, size) {
			f(e)
		}
	}
	for i, spec := range s.specs() {
		key, size := spec.keySize(), spec.size()
		if k[i] == nil {
			k[i] = map[string]string{}
		}
		each(b.delete[i], key, func(e []byte) {
			if _, ok := k[i][string(e)]; !ok {
				t.Fatalf("%s: deletes %x, which is not there", spec.name, e)
			}
			delete(k[i], string(e))
		})
		each(b.add[i], size, func(e []byte) {
			if _, ok := k[i][string(e[:key])]; ok {
				t.Fatalf("%s: adds %x, which is there", spec.name, e)
			}
			k[i][string(e[:key])] = string(e[key:])
		})
	}
}

// TestRandomChanges holds the sum of many small batches to what a table has that is made at once of the result.
func TestRandomChanges(t *testing.T) {
	for _, f := range []family{ipv4, ipv6} {
		r := rand.New(rand.NewPCG(1, 2))
		e := &evolving{Rand: r, node: testNode()}
		s := newState(f, testNode())
		var k kernel
		k.take(t, s, s.all(nil))
		for i := range 3000 {
			c := randomChange(r, f.size == 16)
			if r.IntN(3) == 0 {
				c.Node = e.changeNode().Node
			}
			k.take(t, s, s.apply(c))
			if i%10 != 0 { // each is taken strictly; this takes longer
				continue
			}
			for key, p := range s.frontends {
				checkBackends(t, s, &k, key, p)
			}
		}
		// Numbers and orders may differ; how many there are, and of what, may not.
		var fresh kernel
		again := newState(f, s.node)
		again.frontends, again.nodePorts = maps.Clone(s.frontends), maps.Clone(s.nodePorts)
		again.hairpin = maps.Clone(s.hairpin)
		fresh.take(t, again, again.all(nil))
		for i, spec := range s.specs() {
			switch set(i) {
			case variantsMap: // those that are no longer used stay
			case frontendsMap, internalMap, backendsMap, slotsMap:
				if diff := cmp.Diff(slices.Sorted(maps.Keys(fresh[i])), slices.Sorted(maps.Keys(k[i]))); diff != "" {
					t.Errorf("%s: %s", spec.name, diff)
				}
			default:
				if diff := cmp.Diff(fresh[i], k[i]); diff != "" {
					t.Errorf("%s: %s", spec.name, diff)
				}
			}
		}
	}
}

// checkBackends holds a frontend's elements to its description.
func checkBackends(t *testing.T, s *state, k *kernel, key frontends.Key, p *placed) {
	t.Helper()
	for _, a := range s.addrs(key) {
		at := appendWhere(nil, a, key)
		var got []netip.AddrPort
		for i := range len(p.Backends) {
			index := putNumber(bytes.Clone(at), uint32(i))
			value := k[backendsMap][string(index)]
			if p.Affinity != 0 {
				slot := k[slotsMap][string(index)]
				value = k[membersMap][string(at)+slot]
			}
			addr, ok := netip.AddrFromSlice([]byte(value)[:s.size])
			if !ok {
				t.Fatalf("%v: nothing at index %d", key, i)
			}
			got = append(got, netip.AddrPortFrom(addr, uint16(value[s.size])<<8|uint16(value[s.size+1])))
		}
		want := slices.Clone(p.Backends)
		slices.SortFunc(got, netip.AddrPort.Compare)
		slices.SortFunc(want, netip.AddrPort.Compare)
		if !slices.Equal(got, want) {
			t.Fatalf("%v: %v, want %v", key, got, want)
		}
	}
}

// randomChange changes one to three frontends, some of them twice. One key is an address and node port of the node.
func randomChange(r *rand.Rand, six bool) Change {
	c := Change{Hairpin: map[netip.Addr]bool{pods(six, r.IntN(3))[0].Addr(): r.IntN(2) == 0}}
	for range 1 + r.IntN(3) {
		f := randomFrontend(r, six)
		if r.IntN(6) == 0 {
			c.Delete = append(c.Delete, f.Key)
		} else {
			c.Put = append(c.Put, f)
		}
	}
	return c
}

func randomFrontend(r *rand.Rand, six bool) *frontends.Frontend {
	vip, any, node, everybody, last := "10.96.0.%d", "0.0.0.0", clusternet.Node4, "0.0.0.0/0", "255.0.0.0/8"
	if six {
		vip, any, node, everybody, last = "fd00:96::%d", "::", clusternet.Node6, "::/0", "ff00::/8"
	}
	k := key(frontends.TCP, fmt.Sprintf(vip, 1+r.IntN(4)), uint16(80+r.IntN(2)))
	switch r.IntN(8) {
	case 0, 1:
		k = key(frontends.TCP, any, uint16(30080+r.IntN(2)))
	case 2:
		k = key(frontends.TCP, node, 30080)
	}
	some := func() []netip.AddrPort { return pods(six, r.Perm(8)[:r.IntN(8)]...) }
	f := &frontends.Frontend{
		Key: k, ClusterIP: k.Port < 100 && r.IntN(3) > 0, Backends: some(),
		Masquerade: frontends.Masquerade(r.IntN(3)), Empty: frontends.Empty(r.IntN(2)), Affinity: time.Duration(r.IntN(3)) * time.Minute,
	}
	if r.IntN(3) == 0 {
		f.Internal = some()
	}
	if r.IntN(9) == 0 && len(f.Backends) > 0 {
		f.Backends = append(f.Backends, f.Backends[0])
	}
	if r.IntN(3) == 0 {
		f.Sources = []netip.Prefix{}
		for range r.IntN(4) {
			a := netip.AddrFrom4([4]byte{10, byte(r.IntN(3)), 0, 0})
			if six {
				a = netip.AddrFrom16([16]byte{0x20, byte(r.IntN(3))})
			}
			f.Sources = append(f.Sources, netip.PrefixFrom(a, 8+8*r.IntN(2)))
		}
		if r.IntN(4) == 0 {
			f.Sources = append(f.Sources, netip.MustParsePrefix([]string{everybody, last}[r.IntN(2)]))
		}
	}
	return f
}

// TestChangeFollowsTheChange holds that one backend of many costs an element or two, wherever it is.
func TestChangeFollowsTheChange(t *testing.T) {
	s := newState(ipv4, testNode())
	all := make([]netip.AddrPort, 1000)
	for i := range all {
		all[i] = benchBackend(i)
	}
	put := func(bs []netip.AddrPort) (deleted, added int) {
		b := s.apply(Change{Put: []*frontends.Frontend{{Key: key(frontends.TCP, "10.96.0.10", 80), Backends: bs}}})
		return len(b.delete[backendsMap]) / 16, len(b.add[backendsMap]) / 24
	}
	put(all)
	if d, a := put(append(slices.Clone(all[:500]), all[501:]...)); d != 2 || a != 1 {
		t.Errorf("one less: %d deleted, %d added", d, a)
	}
	reversed := slices.Clone(all)
	slices.Reverse(reversed)
	if d, a := put(reversed); d != 0 || a != 1 {
		t.Errorf("one more, in another order: %d deleted, %d added", d, a)
	}
}

func TestRanges(t *testing.T) {
	s := newState(ipv4, Node{})
	for _, test := range []struct {
		in   []string
		want []string
	}{
		{nil, nil},
		{[]string{"10.0.0.0/8", "fd00::/8"}, []string{"10.0.0.0-10.255.255.255"}},
		{[]string{"10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16"}, []string{"10.0.0.0-10.255.255.255"}},
		{[]string{"0.0.0.0/0"}, []string{"0.0.0.0-255.255.255.255"}},
		{[]string{"255.0.0.0/8", "1.2.3.4/32"}, []string{"1.2.3.4-1.2.3.4", "255.0.0.0-255.255.255.255"}},
	} {
		var ps []netip.Prefix
		for _, p := range test.in {
			ps = append(ps, netip.MustParsePrefix(p))
		}
		var got []string
		for e := range slices.Chunk(s.ranges(ps), 8) {
			first, _ := netip.AddrFromSlice(e[:4])
			last, _ := netip.AddrFromSlice(e[4:])
			got = append(got, first.String()+"-"+last.String())
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%v: %s", test.in, diff)
		}
	}
}
