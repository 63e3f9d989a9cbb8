package nft

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// generation returns the number of the kernel's last transaction.
func generation(t *testing.T) uint32 {
	t.Helper()
	s, err := openSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	n, err := s.generation()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// contents returns what the kernel holds, with the backends of each frontend in order in place of indices and numbers, so that
// tables that do the same are the same.
func contents(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, f := range []family{ipv4, ipv6} {
		for k, v := range contentsOf(t, f) {
			out[map[int]string{4: "ip ", 16: "ip6 "}[f.size]+k] = v
		}
	}
	return out
}

func contentsOf(t *testing.T, f family) map[string]string {
	t.Helper()
	x := &table{state: newState(f, Node{}), link: &link{}}
	defer x.link.close()
	h, err := x.read()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for name, c := range h.chains {
		out["chain "+name] = fmt.Sprintf("%x %x", c.base, c.rules)
	}
	for name := range h.sets {
		out["set "+name] = ""
	}
	for i, spec := range f.specs() {
		for j := range h.sorted[i].order {
			e := h.sorted[i].at(j)
			key, data := e[:spec.keySize()], e[spec.keySize():]
			switch set(i) {
			case frontendsMap, internalMap:
				out[fmt.Sprintf("%s %x", spec.name, key)] = h.variants[le(data)]
			case variantsMap:
				out["variants "+h.variants[le(key)]] = ""
			case backendsMap, slotsMap:
				at, index := key[:len(key)-4], le(key[len(key)-4:])
				if set(i) == slotsMap {
					for m := range h.sorted[membersMap].beginning(append(at[:len(at):len(at)], data...)) {
						data = m[len(key):]
					}
				}
				out[fmt.Sprintf("%s %x internal %v: %x", spec.name, at, index >= internalOffset, data)] += "."
			case membersMap: // their slots may differ, if two should have the same
				out[fmt.Sprintf("%s %x: %x", spec.name, key[:len(key)-4], data)] += "."
			default:
				out[fmt.Sprintf("%s %x", spec.name, key)] = fmt.Sprintf("%x", data)
			}
		}
	}
	return out
}

func le(b []byte) uint32 { return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24 }

// spoils are what strangers do with nft(8). HANDLE is the first rule's of the chain services.
var spoils = []string{
	"flush ruleset",
	"delete table ip ropewalk",
	"flush table ip ropewalk",
	"flush chain ip ropewalk services",
	"add rule ip ropewalk services drop",
	"insert rule ip ropewalk nat-prerouting accept",
	"delete rule ip ropewalk services handle HANDLE",
	"replace rule ip ropewalk services handle HANDLE ip daddr 10.96.0.1 drop",
	"flush map ip ropewalk backends",
	"flush map ip ropewalk variants",
	"flush set ip ropewalk service-cidrs",
	"add element ip ropewalk frontends { 1.2.3.4 . tcp . 5 : 7 }",
	"add element ip ropewalk frontends { * : 7 }",
	"add element ip ropewalk variants { 7 : drop }",
	"add element ip ropewalk variants { 8 : goto undelivered, 0x52570fff : goto mark-outside }",
	"add element ip ropewalk service-cidrs { 7.0.0.0/8, 10.100.0.0-10.100.0.9 }",
	"add element ip ropewalk sources { 7.0.0.0/8 . 10.96.0.1 . tcp . 80 }",
	"add element ip ropewalk backends { 10.96.0.1 . tcp . 80 . 4294967295 : 1.2.3.4 . 5 }",
	"add chain ip ropewalk mine { type nat hook output priority 0; }; add rule ip ropewalk mine jump services",
	"add set ip ropewalk mine { type ipv4_addr; }; add rule ip ropewalk services ip saddr @mine drop",
	"add rule ip ropewalk services ip saddr { 1.2.3.4, 1.2.3.5 } drop",
	"add map ip ropewalk mine { type ipv4_addr : verdict; }; add element ip ropewalk mine { 1.2.3.4 : jump services }",
	"add chain ip ropewalk filter-output { policy drop; }",
	"add table ip ropewalk { flags dormant; }",
	"delete table ip ropewalk; add table ip ropewalk; add map ip ropewalk affinity { type ipv4_addr : mark; }",
	"delete table ip ropewalk; add table ip ropewalk; add chain ip ropewalk services { type filter hook input priority 0; }",
	"add element ip6 ropewalk empty { fd00::1 . udp . 5 }",
	"add table ip somebodys",
}

var handle = regexp.MustCompile("# handle (\\d+)\n")

func spoil(t *testing.T, command string) {
	t.Helper()
	if strings.Contains(command, "HANDLE") {
		listing := netns.Run(t, "nft", "-a", "list", "chain", "ip", TableName, "services")
		found := handle.FindAllStringSubmatch(listing, -1) // the chain's own comes first
		command = strings.ReplaceAll(command, "HANDLE", found[1][1])
	}
	netns.Run(t, "nft", command)
}

// evolving is a cluster that changes at random.
type evolving struct {
	*rand.Rand
	node      Node
	frontends map[frontends.Key]*frontends.Frontend
	hairpin   map[netip.Addr]bool
}

// change makes a random change and returns it.
func (e *evolving) change() Change {
	c := randomChange(e.Rand, e.IntN(2) == 0)
	for _, k := range c.Delete {
		delete(e.frontends, k)
	}
	for _, f := range c.Put {
		e.frontends[f.Key] = f
	}
	maps.Copy(e.hairpin, c.Hairpin)
	return c
}

// changeNode changes something of the node.
func (e *evolving) changeNode() Change {
	some := func(of ...string) (out []netip.Prefix) {
		for _, s := range of {
			if e.IntN(2) == 0 {
				out = append(out, netip.MustParsePrefix(s))
			}
		}
		return out
	}
	n := &e.node
	switch e.IntN(5) {
	case 0:
		n.Addresses = nil
		for _, a := range []string{nodeAddr4, nodeAddr6, "192.0.2.3", "2001:db8::3", "192.0.2.4"} {
			if e.IntN(2) == 0 {
				n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
			}
		}
	case 1:
		n.ClusterCIDRs = some(podNet4, podNet6, "10.244.1.0/24", "10.244.0.0/16", "255.0.0.0/8", "fd00:244:1::/64")
	case 2:
		n.ServiceCIDRs = some("10.96.0.0/16", "10.96.0.0/15", "10.98.0.0/16", "fd00:96::/64", "fd00:96::/65", "fd00:96:1::/64", "::/0")
	case 3:
		n.Interfaces = [][]string{nil, {"cni0"}, {"veth*", "cni0"}}[e.IntN(3)]
	default:
		n.Mark = []uint32{0, 1, 0x80000000}[e.IntN(3)]
	}
	node := n.clone()
	return Change{Node: &node}
}

// start returns a new agent's Tables.
func (e *evolving) start(t *testing.T) *Tables {
	t.Helper()
	x := New(e.node)
	t.Cleanup(x.Close)
	apply(t, x, Change{Put: slices.Collect(maps.Values(e.frontends)), Hairpin: e.hairpin})
	return x
}

// TestConverges brings the table from random states to others, by changes, a new agent that starts, or the repair of what strangers
// spoil, and holds it to what an empty kernel gets. Another agent that starts then finds nothing to do.
func TestConverges(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	e := &evolving{rand.New(rand.NewPCG(3, 4)), testNode(), map[frontends.Key]*frontends.Frontend{}, map[netip.Addr]bool{}}
	x := e.start(t)
	check := func(x *Tables, want bool, why string) {
		t.Helper()
		if repaired, err := x.Check(); err != nil || repaired != want {
			t.Fatalf("after %s: repaired %v, %v", why, repaired, err)
		}
	}
	for round, what := range spoils {
		harmless := strings.HasSuffix(what, "somebodys")
		for range 8 {
			apply(t, x, e.change())
		}
		apply(t, x, e.changeNode())
		check(x, false, "our own changes")
		switch round % 3 {
		case 0:
			spoil(t, what)
			check(x, !harmless, what)
		case 1:
			spoil(t, what)
			what += ", then a change"
			apply(t, x, e.change())
			apply(t, x, e.changeNode())
			if _, err := x.Check(); err != nil { // the changes may have found it, and repaired all
				t.Fatal(err)
			}
		default:
			spoil(t, what)
			what += ", then a restart with other frontends and another node"
			x.Close()
			for range 5 {
				e.change()
			}
			e.changeNode()
			x = e.start(t)
		}
		check(x, false, what)
		first := contents(t)
		x.Close()
		e.start(t).Close() // takes out variants that are no longer in use
		second, before := contents(t), generation(t)
		x = e.start(t)
		check(x, false, "a start")
		if after := generation(t); after != before {
			t.Errorf("after %s: %d transactions at a start", what, after-before)
		}
		x.Close()
		if err := Remove(); err != nil {
			t.Fatal(err)
		}
		x = e.start(t)
		want := contents(t)
		for k := range first {
			if _, ok := want[k]; !ok && variantKey.MatchString(k) {
				delete(first, k)
			}
		}
		if diff := cmp.Diff(want, first); diff != "" {
			t.Fatalf("round %d, after %s (-fresh +this): %s", round, what, diff)
		}
		if diff := cmp.Diff(want, second); diff != "" {
			t.Fatalf("round %d, after %s and a start (-fresh +this): %s", round, what, diff)
		}
	}
}

var variantKey = regexp.MustCompile("^ip6? (chain|variants) (pick-|drop-all)")
