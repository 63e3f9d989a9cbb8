package nft

import (
	"bufio"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"slices"
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
		out := map[string][]string{}
		for _, f := range fs {
			for _, from := range []string{"pod0", "outside"} {
				addr := net.JoinHostPort(f.Addr.String(), fmt.Sprint(f.Port))
				out[addr+" from "+from] = trace(t, from, addr)
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

// trace returns the rules of our tables that the first packet of a connection matches, with the number of rules that their
// chains have.
func trace(t *testing.T, from, addr string) []string {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	family, field, number := "ip", "ip daddr", nftables.TableFamilyIPv4
	if strings.Contains(host, ":") {
		family, field, number = "ip6", "ip6 daddr", nftables.TableFamilyIPv6
	}
	counts := chainRules(t, number)
	netns.Run(t, "nft", fmt.Sprintf("table %s probe { chain c { type filter hook prerouting priority -300; %s %s tcp dport %s tcp flags syn meta nftrace set 1; }; }", family, field, host, port))
	defer netns.Run(t, "nft", "delete", "table", family, "probe")
	cmd := exec.Command("nft", "monitor", "trace")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			lines <- in.Text()
		}
	}()
	stop := func() {
		_ = cmd.Process.Kill()
		for range lines {
		}
		_ = cmd.Wait()
	}
	defer stop()
	// It says nothing of when it listens: connections are made until one has been seen whole.
	var id string
	var rules []string
	for begun := time.Now(); time.Since(begun) < 20*time.Second; {
		if _, _, err := clusternet.Ask(t, from, "tcp", addr); err != nil {
			t.Fatal(err)
		}
		quiet := time.After(300 * time.Millisecond)
	read:
		for {
			select {
			case l, ok := <-lines:
				if !ok {
					t.Fatal("nft monitor ended")
				}
				f := strings.Fields(l)
				if len(f) < 6 || f[0] != "trace" {
					continue
				}
				if id == "" && strings.Contains(l, family+" probe c packet") {
					id = f[2]
				}
				if f[2] == id && f[3] == family && f[4] == TableName && f[6] == "rule" {
					rules = append(rules, fmt.Sprintf("%s, of %d: %s", f[5], counts[f[5]], varies.ReplaceAllString(strings.Join(f[7:], " "), "N")))
				}
			case <-quiet:
				break read
			}
		}
		if id != "" && slices.ContainsFunc(rules, func(r string) bool { return strings.Contains(r, "dnat") }) {
			return rules
		}
	}
	t.Fatalf("no trace of %s from %s: %q", addr, from, rules)
	return nil
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
