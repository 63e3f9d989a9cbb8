package nft

import (
	"flag"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

var update = flag.Bool("update", false, "write the golden files")

// TestListing holds what operators see to a golden file; nft(8) aborts on rules that it cannot express.
func TestListing(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	n := testNode()
	n.Interfaces = []string{"cni0", "veth*"}
	x := New(n)
	t.Cleanup(x.Close)
	c := Change{Hairpin: map[netip.Addr]bool{netip.MustParseAddr(clusternet.Pod4(0)): true}}
	for _, addr := range []string{"10.96.0.10", "fd00:96::10"} {
		six := addr[0] == 'f'
		c.Put = append(c.Put,
			&frontends.Frontend{Key: key(frontends.TCP, addr, 80), ClusterIP: true, Backends: pods(six, 0, 1)},
			&frontends.Frontend{Key: key(frontends.UDP, addr, 53), ClusterIP: true, Empty: frontends.Drop},
			&frontends.Frontend{Key: key(frontends.SCTP, addr, 9), ClusterIP: true},
			&frontends.Frontend{Key: key(frontends.SCTP, addr, 10), ClusterIP: true, Backends: pods(six, 0, 1)},
			&frontends.Frontend{Key: key(frontends.TCP, addr, 443), ClusterIP: true, Backends: pods(six, 1), Affinity: 3 * time.Hour})
	}
	c.Put = append(c.Put,
		&frontends.Frontend{Key: key(frontends.TCP, "0.0.0.0", 30080), Backends: pods(false, 0), Internal: pods(false, 0, 1, 2), Masquerade: frontends.Never, Empty: frontends.Drop},
		&frontends.Frontend{Key: key(frontends.TCP, "203.0.113.7", 80), Backends: pods(false, 0, 1), Masquerade: frontends.Always,
			Sources: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("192.0.2.2/32")}})
	apply(t, x, c)
	// The order of elements is the kernel's own.
	got := sortElements(netns.Run(t, "nft", "list", "ruleset"))
	const golden = "testdata/listing.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("nft list ruleset (-want +got; go test -run TestListing -update)\n%s", diff)
	}
}

var elements = regexp.MustCompile(`(?s)elements = \{ (.*?) \}`)

// sortElements puts each set's elements in order, one a line.
func sortElements(listing string) string {
	return elements.ReplaceAllStringFunc(listing, func(s string) string {
		list := strings.Split(elements.FindStringSubmatch(s)[1], ",")
		for i := range list {
			list[i] = strings.TrimSpace(list[i])
		}
		slices.Sort(list)
		return "elements = {\n\t\t\t" + strings.Join(list, ",\n\t\t\t") + " }"
	})
}
