package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
	"github.com/ropewalk-net/ropewalk/test/clusternet"
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

func readBack(t *testing.T, f family) *held {
	t.Helper()
	x := &table{state: newState(f, Node{}), link: &link{}}
	defer x.link.close()
	h, err := x.read()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// counts returns how many elements the kernel holds, by sets.
func counts(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, f := range []family{ipv4, ipv6} {
		h := readBack(t, f)
		for i, spec := range f.specs() {
			if set(i) != affinityMap {
				out[spec.name] += len(h.sorted[i].order)
			}
		}
	}
	return out
}

func contentsOf(t *testing.T, f family) map[string]string {
	t.Helper()
	h := readBack(t, f)
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
	if e.IntN(4) == 0 {
		c.Node = e.changeNode().Node
	}
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
		for _, a := range []string{clusternet.Node4, clusternet.Node6, "192.0.2.3", "2001:db8::3", "192.0.2.4"} {
			if e.IntN(2) == 0 {
				n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
			}
		}
	case 1:
		n.ClusterCIDRs = some(clusternet.PodCIDR4, clusternet.PodCIDR6, "10.244.1.0/24", "10.244.0.0/16", "255.0.0.0/8", "fd00:244:1::/64")
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
	t.Parallel()
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
		if n := x.Stats().Failures; n != 0 {
			t.Fatalf("%d transactions of our own changes failed", n)
		}
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
		if diff := cmp.Diff(counts(t), x.Stats().Elements); diff != "" {
			t.Errorf("after %s, Stats (-kernel +got): %s", what, diff)
		}
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

// TestRandomTransactions holds that the kernel takes each of thousands of changes as it is sent, and that they add up to what an empty
// kernel gets.
func TestRandomTransactions(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	maxIdle = 8
	e := &evolving{rand.New(rand.NewPCG(7, 8)), testNode(), map[frontends.Key]*frontends.Frontend{}, map[netip.Addr]bool{}}
	x := e.start(t)
	for i := range 3000 {
		c := e.change()
		if apply(t, x, c); x.Stats().Failures != 0 {
			t.Fatalf("change %d: %+v", i, c)
		}
	}
	if repaired, err := x.Check(); err != nil || repaired {
		t.Errorf("repaired %v, %v", repaired, err)
	}
	x.Close()
	e.start(t).Close() // takes out variants that are no longer in use
	got := contents(t)
	if err := Remove(); err != nil {
		t.Fatal(err)
	}
	e.start(t)
	if diff := cmp.Diff(contents(t), got); diff != "" {
		t.Errorf("(-fresh +this): %s", diff)
	}
}

// TestVariantsAreBounded scales a service to a thousand backends, one by one.
func TestVariantsAreBounded(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	x := New(testNode())
	t.Cleanup(x.Close)
	f := cluster(1, 1000)[0]
	var most int
	for i := range f.Backends {
		c := *f
		c.Backends = f.Backends[:i+1]
		apply(t, x, Change{Put: []*frontends.Frontend{&c}})
		most = max(most, x.Stats().Elements["variants"])
	}
	if s := x.Stats(); s.Failures != 0 || most > maxIdle+3 {
		t.Errorf("%d variants at a time, %+v", most, s)
	}
	h := readBack(t, ipv4)
	if n := len(h.chains) - len(ipv4.chains(&Node{})); n > 2*maxIdle+4 || len(h.variants) > maxIdle+3 {
		t.Errorf("%d chains, %d variants", n, len(h.variants))
	}
	if repaired, err := x.Check(); err != nil || repaired {
		t.Errorf("repaired %v, %v", repaired, err)
	}
}

var variantKey = regexp.MustCompile("^ip6? (chain|variants) (pick-|drop-all|guarded)")

// TestSmallRepair holds that a repair leaves alone what is right: rules keep their handles.
func TestSmallRepair(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	x := New(testNode())
	t.Cleanup(x.Close)
	apply(t, x, Change{Put: cluster(10, 2)})
	list := func(chain string) string { return netns.Run(t, "nft", "-a", "list", "chain", "ip", TableName, chain) }
	right, wrong := list("undelivered"), list("services")
	spoil(t, "add rule ip ropewalk services drop; flush map ip ropewalk backends")
	if repaired, err := x.Check(); err != nil || !repaired {
		t.Fatalf("repaired %v, %v", repaired, err)
	}
	if list("undelivered") != right || list("services") == wrong {
		t.Error("other chains were written than the one that was spoiled")
	}
	if s := x.Stats(); s.Repairs != 1 || s.Failures != 0 || s.Transactions != 3 {
		t.Errorf("%+v", s)
	}
}

// TestStrangers starts agents while other software changes rules of its own without a pause.
func TestStrangers(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	x := New(testNode())
	t.Cleanup(x.Close)
	if repaired, err := x.Check(); repaired || err != nil || generation(t) != 1 {
		t.Errorf("before the first Apply: repaired %v, %v", repaired, err)
	}
	fs := cluster(500, 3)
	apply(t, x, Change{Put: fs})
	want := contents(t)
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		var err error
		for done := false; !done && err == nil; {
			c, e := nftables.New()
			if err = e; err == nil {
				theirs := c.AddTable(&nftables.Table{Name: "theirs", Family: nftables.TableFamilyIPv4})
				c.DelTable(theirs)
				err = c.Flush()
			}
			select {
			case <-stop:
				done = true
			default:
			}
		}
		stopped <- err
	}()
	begin := generation(t)
	for i := 0; i < 30 || generation(t) < begin+100; i++ {
		if i%2 == 0 { // else there is nothing to change
			spoil(t, "add rule ip ropewalk services drop; flush map ip ropewalk backends")
		}
		x.Close()
		x = New(testNode())
		apply(t, x, Change{Put: fs})
		apply(t, x, Change{Put: []*frontends.Frontend{withOneLess(fs[i%len(fs)])}})
		apply(t, x, Change{Put: fs[i%len(fs):][:1]})
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	e := &evolving{node: testNode(), frontends: map[frontends.Key]*frontends.Frontend{}}
	for _, f := range fs {
		e.frontends[f.Key] = f
	}
	if _, err := x.Check(); err != nil {
		t.Fatal(err)
	}
	x.Close()
	e.start(t) // takes out the variant that is no longer in use
	if diff := cmp.Diff(want, contents(t)); diff != "" {
		t.Errorf("%s", diff)
	}
}

func withOneLess(f *frontends.Frontend) *frontends.Frontend {
	less := *f
	less.Backends = f.Backends[1:]
	return &less
}

// TestFailureIsSeen sends a transaction that fails, in messages longer than an answer is read in.
func TestFailureIsSeen(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	x := New(testNode())
	t.Cleanup(x.Close)
	apply(t, x, Change{Put: cluster(10, 2)})
	v6 := x.families[1]
	b := &batch{}
	for i := range 4 * perMessage {
		b.delete[backendsMap] = binary.BigEndian.AppendUint32(append(b.delete[backendsMap], make([]byte, 24)...), uint32(i))
	}
	if err := v6.commit(b, true); !errors.Is(err, unix.ENOENT) {
		t.Errorf("elements deleted that are not there: %v", err)
	}
	apply(t, x, Change{Delete: []frontends.Key{cluster(1, 1)[0].Key}})
	if _, err := x.Check(); err != nil || x.Stats().Failures != 1 {
		t.Errorf("%v, %+v", err, x.Stats())
	}
}

// TestInvalid holds that what is invalid is refused, and all else is done.
func TestInvalid(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	x := New(testNode())
	t.Cleanup(x.Close)
	fs := cluster(2, 2)
	bad := *fs[0]
	bad.Backends = []netip.AddrPort{netip.MustParseAddrPort("[::1]:80")}
	wrong := Node{Interfaces: []string{"a-name-of-16-byte"}}
	err := x.Apply(Change{Node: &wrong, Put: []*frontends.Frontend{&bad, fs[1]}, Hairpin: map[netip.Addr]bool{{}: true}})
	if !errors.Is(err, frontends.ErrInvalid) || !errors.Is(err, ErrNode) || !strings.Contains(err.Error(), bad.Key.String()) {
		t.Errorf("error: %v", err)
	}
	if s := x.Stats(); s.Elements["backends"] != 2 || s.Failures != 0 {
		t.Errorf("%+v", s)
	}
	before := generation(t)
	y := New(wrong)
	t.Cleanup(y.Close)
	if err := y.Apply(Change{}); !errors.Is(err, ErrNode) || generation(t) != before {
		t.Errorf("an agent with an invalid node: %v", err)
	}
	for _, n := range []Node{
		{Interfaces: []string{""}}, {Interfaces: []string{"*"}}, {Interfaces: []string{"sixteen-bytes-xx"}}, {Mark: 3},
		{Addresses: []netip.Addr{{}}}, {Addresses: []netip.Addr{netip.MustParseAddr("::ffff:1.2.3.4")}},
		{ClusterCIDRs: []netip.Prefix{{}}}, {ServiceCIDRs: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 33)}},
	} {
		if err := n.Validate(); !errors.Is(err, ErrNode) {
			t.Errorf("%+v: %v", n, err)
		}
	}
	if n := (Node{Interfaces: []string{"fifteen-bytes-x", "veth*"}, Mark: 1 << 31}); n.Validate() != nil {
		t.Error(n.Validate())
	}
}
