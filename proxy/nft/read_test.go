package nft

import (
	"net/netip"
	"testing"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestRead holds that what is read ahead is used if nothing has changed since, in both families, and not otherwise.
func TestRead(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	x := started(t, 2)
	put := func(is ...int) []*frontends.Frontend {
		var fs []*frontends.Frontend
		for _, vip := range []string{"10.96.0.10", "fd00:96::10"} {
			fs = append(fs, &frontends.Frontend{Key: key(frontends.TCP, vip, 80), ClusterIP: true, Backends: pods(vip[0] == 'f', is...)})
		}
		return fs
	}
	apply(t, x, Change{Put: put(0), Hairpin: map[netip.Addr]bool{}})
	x.Close()
	for _, test := range []struct {
		name         string
		between      func()
		backend      int
		transactions int
	}{
		{"nothing", func() {}, 0, 0},
		{"another backend", func() {}, 1, 2},
		{"a stranger's change", func() { netns.Run(t, "nft", "flush", "map", "ip", TableName, "backends") }, 1, 1},
		{"a stranger's own table", func() { netns.Run(t, "nft", "add", "table", "inet", "other") }, 1, 0},
		{"all is gone", func() { netns.Run(t, "nft", "flush", "ruleset") }, 1, 2},
	} {
		y := New(testNode())
		y.Read()
		for _, f := range y.families {
			if f.early == nil {
				t.Errorf("%s: nothing is read of family %d", test.name, f.id)
			}
		}
		test.between()
		apply(t, y, Change{Put: put(test.backend)})
		if n := y.Stats().Transactions; n != test.transactions {
			t.Errorf("%s: %d transactions, want %d", test.name, n, test.transactions)
		}
		for _, addr := range []string{"10.96.0.10:80", "[fd00:96::10]:80"} {
			expect(t, "outside", "tcp", addr, []string{"pod0", "pod1"}[test.backend])
		}
		y.Close()
	}
}
