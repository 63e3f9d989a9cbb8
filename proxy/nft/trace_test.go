package nft

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestTrace holds that the first packet of a connection passes the same rules with 10,000 services as with ten, and with affinity,
// too; and that the chains which it passes have the same rules.
func TestTrace(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	x := started(t, 3)
	var fs []*frontends.Frontend
	for i, affinity := range []time.Duration{0, time.Hour} {
		for _, vip := range []string{"10.99.0.1", "fd00:99::1"} {
			fs = append(fs, &frontends.Frontend{Key: key(frontends.TCP, vip, 80+uint16(i)), ClusterIP: true, Backends: pods(vip[0] == 'f', 1, 2), Affinity: affinity})
		}
	}
	apply(t, x, Change{Put: append(cluster(10, 3), fs...)})
	walk := func() map[string][]string {
		trace := tracer(t, fs)
		out := map[string][]string{}
		for _, f := range fs {
			for _, from := range []string{"pod0", "outside"} {
				addr := net.JoinHostPort(f.Addr.String(), fmt.Sprint(f.Port))
				out[addr+" from "+from] = trace(from, addr)
			}
		}
		return out
	}
	few := walk()
	apply(t, x, Change{Put: cluster(10000, 2)})
	many := walk()
	if d := cmp.Diff(few, many); d != "" {
		t.Error(d)
	}
	for what, rules := range few {
		if len(rules) < 5 {
			t.Errorf("%s: the trace has %q only", what, rules)
		}
		t.Logf("%s: %d rules match", what, len(rules))
	}
}

// varies is what differs in the traces of two packets.
var varies = regexp.MustCompile(`0x[0-9a-f]{8}|trace id [0-9a-f]+ `)

// tracer returns a function that connects to one of the frontends, and returns the rules of our tables that the first packet
// matches, with the number of rules that their chains have.
func tracer(t *testing.T, fs []*frontends.Frontend) func(from, addr string) []string {
	t.Helper()
	counts := map[string]map[string]int{"ip": chainRules(t, nftables.TableFamilyIPv4), "ip6": chainRules(t, nftables.TableFamilyIPv6)}
	for _, family := range []string{"ip", "ip6"} {
		probe := "delete table " + family + " probe; table " + family + " probe { chain c { type filter hook prerouting priority -300;"
		for _, f := range fs {
			if f.Addr.Is4() == (family == "ip") {
				probe += fmt.Sprintf(" %s daddr %s tcp dport %d tcp flags syn meta nftrace set 1;", family, f.Addr, f.Port)
			}
		}
		netns.Run(t, "nft", "table "+family+" probe; "+probe+" }; }")
	}
	lines := monitor(t)
	heard := false
	return func(from, addr string) []string {
		t.Helper()
		var id string
		var rules []string
		to := netip.MustParseAddrPort(addr)
		client := map[bool]map[string]string{
			true:  {"pod0": clusternet.Pod4(0), "outside": clusternet.Outside4},
			false: {"pod0": clusternet.Pod6(0), "outside": clusternet.Outside6},
		}[to.Addr().Is4()][from]
		packet := func(line string) bool {
			return strings.Contains(line, fmt.Sprintf(" saddr %s ip", client)) && strings.Contains(line, fmt.Sprintf(" daddr %s ip", to.Addr())) &&
				strings.Contains(line, fmt.Sprintf(" dport %d ", to.Port()))
		}
		connect := func() {
			if _, _, err := clusternet.Ask(t, from, "tcp", addr); err != nil {
				t.Fatal(err)
			}
		}
		connect()
		for end := time.After(20 * time.Second); ; {
			var again <-chan time.Time
			if !heard { // it says nothing of when it listens
				again = time.After(50 * time.Millisecond)
			}
			select {
			case l, ok := <-lines:
				if !ok {
					t.Fatal("nft monitor ended")
				}
				f := strings.Fields(l)
				if len(f) < 7 || f[0] != "trace" {
					continue
				}
				heard = true
				if id == "" && strings.Contains(l, " probe c packet") && packet(l) {
					id = f[2]
				}
				if f[2] != id || f[4] != TableName {
					continue
				}
				if f[6] == "rule" {
					rules = append(rules, fmt.Sprintf("%s, of %d: %s", f[5], counts[f[3]][f[5]], varies.ReplaceAllString(strings.Join(f[7:], " "), "N")))
				}
				if f[5] == "nat-postrouting" && strings.HasSuffix(strings.TrimRight(l, " )"), "accept") { // the last that a packet passes
					return rules
				}
			case <-again:
				connect()
			case <-end:
				t.Fatalf("no trace of %s from %s: %q", addr, from, rules)
			}
		}
	}
}

// monitor returns the lines of nft monitor trace, which ends with the test.
func monitor(t *testing.T) <-chan string {
	t.Helper()
	cmd := exec.Command("nft", "monitor", "trace")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 10000)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			lines <- in.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		for range lines {
		}
		_ = cmd.Wait()
	})
	return lines
}

// chainRules returns how many rules each of our chains has.
func chainRules(t *testing.T, f nftables.TableFamily) map[string]int {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := &nftables.Table{Name: TableName, Family: f}
	chains, err := c.ListChainsOfTableFamily(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, ch := range chains {
		if ch.Table.Name != TableName {
			continue
		}
		rules, err := c.GetRules(table, ch)
		if err != nil {
			t.Fatal(err)
		}
		out[ch.Name] = len(rules)
	}
	return out
}
