package antispoof

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestApply holds what operators see, that it is written where it is not so and only there, and that it goes.
func TestApply(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	const want = `table ip6 ropewalk-antispoof {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		iifname != "rw*" accept
		meta iifkind != "veth" accept
		ip6 saddr fe80::/10 accept
		ip6 saddr :: accept
		fib saddr . iif oif missing counter packets 0 bytes 0 drop
	}
}
`
	for _, damage := range []string{"", "flush ruleset", "add rule ip6 ropewalk-antispoof prerouting accept", "insert rule ip6 ropewalk-antispoof prerouting accept",
		"flush chain ip6 ropewalk-antispoof prerouting", "add table ip6 ropewalk-antispoof { flags dormant; }"} {
		if damage != "" {
			netns.Run(t, "nft", damage)
		}
		for _, again := range []bool{false, true} {
			if changed, err := Apply(); changed == again || err != nil {
				t.Errorf("%q: changed %v, %v", damage, changed, err)
			}
		}
		if diff := cmp.Diff(want, netns.Run(t, "nft", "list", "ruleset")); diff != "" {
			t.Errorf("%q: %s", damage, diff)
		}
	}
	for range 2 {
		if err := Remove(); err != nil {
			t.Error(err)
		}
	}
	if left := netns.Run(t, "nft", "list", "ruleset"); strings.TrimSpace(left) != "" {
		t.Error(left)
	}
}
