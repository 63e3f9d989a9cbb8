package cleanup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
)

// kubeProxys reports whether a chain is one that kube-proxy makes for itself, in iptables or IPVS mode, and removes with --cleanup
// (pkg/proxy/iptables and pkg/proxy/ipvs). Others that begin with KUBE- are the kubelet's: KUBE-FIREWALL, KUBE-KUBELET-CANARY,
// KUBE-IPTABLES-HINT, KUBE-MARK-DROP.
func kubeProxys(chain string) bool {
	switch chain {
	case "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-FORWARD",
		"KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY",
		"KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER":
		return true
	}
	return slices.ContainsFunc([]string{"KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-"}, // a service's or endpoint's
		func(prefix string) bool { return strings.HasPrefix(chain, prefix) })
}

// perTransaction is how many chains are removed at a time: the kernel confirms each, and there is room for so many answers.
const perTransaction = 200

// iptablesNFT removes chains of iptables-nft, which are nftables' in tables with iptables' names.
func iptablesNFT(ctx context.Context) (removed []string, err error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(1<<22), c.SetWriteBuffer(1<<22))
	}))
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	for _, f := range families {
		tables, err := listTables(conn, f.id)
		if err != nil {
			return removed, err
		}
		for _, t := range tables {
			if !slices.Contains([]string{"raw", "mangle", "nat", "filter"}, t.Name) {
				continue
			}
			done, err := removeChains(ctx, conn, t)
			for _, chain := range done {
				removed = append(removed, "iptables-nft chain "+f.name+" "+t.Name+" "+chain)
			}
			if err != nil {
				return removed, fmt.Errorf("iptables-nft: table %s %s: %w", f.name, t.Name, err)
			}
		}
	}
	return removed, nil
}

// removeChains removes kube-proxy's chains from a table: first the ways in, in one transaction, then what is in them, for they go
// to one another, then themselves. It returns the names of those that are gone.
func removeChains(ctx context.Context, conn *nftables.Conn, t *nftables.Table) (removed []string, err error) {
	all, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, fmt.Errorf("listing chains: %w", err)
	}
	var theirs, others []*nftables.Chain
	for _, c := range all {
		switch {
		case c.Table.Name != t.Name:
		case kubeProxys(c.Name):
			theirs = append(theirs, c)
		default:
			others = append(others, c)
		}
	}
	if len(theirs) == 0 {
		return nil, nil
	}
	for _, c := range others {
		rules, err := conn.GetRules(t, c)
		if err != nil {
			return nil, fmt.Errorf("listing rules of %s: %w", c.Name, err)
		}
		for _, r := range rules {
			if slices.ContainsFunc(r.Exprs, isWayIn) {
				if err := conn.DelRule(&nftables.Rule{Table: t, Chain: c, Handle: r.Handle}); err != nil {
					return nil, err
				}
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("removing rules: %w", err)
	}
	for part := range slices.Chunk(theirs, perTransaction) {
		for _, c := range part {
			conn.FlushChain(c)
		}
		if err := errors.Join(ctx.Err(), conn.Flush()); err != nil {
			return nil, fmt.Errorf("emptying chains: %w", err)
		}
	}
	for part := range slices.Chunk(theirs, perTransaction) {
		for _, c := range part {
			conn.DelChain(c)
		}
		if err := errors.Join(ctx.Err(), conn.Flush()); err != nil {
			return removed, fmt.Errorf("removing chains: %w", err)
		}
		for _, c := range part {
			removed = append(removed, c.Name)
		}
	}
	return removed, nil
}

// isWayIn reports whether an expression is a jump to a chain of kube-proxy's.
func isWayIn(e expr.Any) bool {
	v, ok := e.(*expr.Verdict)
	return ok && (v.Kind == expr.VerdictJump || v.Kind == expr.VerdictGoto) && kubeProxys(v.Chain)
}

// iptablesLegacy removes chains of the older iptables, which only its own commands can read.
func iptablesLegacy(ctx context.Context) (removed []string, err error) {
	for _, f := range []struct{ name, command, tables string }{
		{"ip", "iptables", "/proc/thread-self/net/ip_tables_names"}, {"ip6", "ip6tables", "/proc/thread-self/net/ip6_tables_names"},
	} {
		// The commands would load the module and make the tables, and are not asked where there are none.
		if names, err := os.ReadFile(f.tables); err != nil || len(names) == 0 {
			continue
		}
		save, restore, there := legacyCommands(ctx, f.command)
		if !there {
			continue
		}
		listing, err := run(ctx, nil, save)
		if err != nil {
			return removed, err
		}
		input, chains := legacyRemoval(string(listing))
		if len(chains) == 0 {
			continue
		}
		if _, err := run(ctx, []byte(input), restore, "--noflush", "--wait", "5"); err != nil {
			return removed, err
		}
		for _, c := range chains {
			removed = append(removed, "iptables-legacy chain "+f.name+" "+c)
		}
	}
	return removed, nil
}

// legacyCommands returns the names of the commands that save and restore legacy tables. Before iptables 1.8 there were no others.
func legacyCommands(ctx context.Context, command string) (save, restore string, there bool) {
	if _, err := exec.LookPath(command + "-legacy-save"); err == nil {
		return command + "-legacy-save", command + "-legacy-restore", true
	}
	version, err := run(ctx, nil, command, "--version")
	return command + "-save", command + "-restore", err == nil && !bytes.Contains(version, []byte("nf_tables"))
}

func run(ctx context.Context, stdin []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// legacyRemoval makes of what iptables-save prints what iptables-restore --noflush removes kube-proxy's chains by, a transaction a
// table, and returns them as "table chain".
func legacyRemoval(listing string) (input string, removed []string) {
	var out strings.Builder
	var table string
	var chains, ways []string
	for line := range strings.Lines(listing) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "*"):
			table, chains, ways = line[1:], nil, nil
		case strings.HasPrefix(line, ":"):
			if name, _, _ := strings.Cut(line[1:], " "); kubeProxys(name) {
				chains = append(chains, name)
			}
		case strings.HasPrefix(line, "-A "):
			if chain, to := ruleEnds(line); kubeProxys(to) && !kubeProxys(chain) {
				ways = append(ways, "-D"+strings.TrimPrefix(line, "-A"))
			}
		case line == "COMMIT" && len(chains) > 0:
			fmt.Fprintf(&out, "*%s\n", table)
			for _, c := range chains {
				fmt.Fprintf(&out, ":%s - [0:0]\n", c) // empties it
				removed = append(removed, table+" "+c)
			}
			for _, w := range ways {
				fmt.Fprintln(&out, w)
			}
			for _, c := range chains {
				fmt.Fprintln(&out, "-X", c)
			}
			fmt.Fprintln(&out, "COMMIT")
		}
	}
	return out.String(), removed
}

// ruleEnds returns the chain that a rule is in, and the one that it goes to, if any. Comments may hold anything, in quotes.
func ruleEnds(line string) (chain, to string) {
	var before string
	for i, word := range words(line) {
		switch {
		case i == 1:
			chain = word
		case before == "-j" || before == "-g":
			to = word
		}
		before = word
	}
	return chain, to
}

// words splits a line of iptables-save. Words with spaces or quotes in them are within double quotes, which stay on them here
// so that none is taken for an option; a backslash is before those that are meant.
func words(line string) (out []string) {
	start, quoted := 0, false
	for i := 0; i <= len(line); i++ {
		switch {
		case i == len(line) || line[i] == ' ' && !quoted:
			if i > start {
				out = append(out, line[start:i])
			}
			start = i + 1
		case line[i] == '\\' && quoted:
			i++
		case line[i] == '"':
			quoted = !quoted
		}
	}
	return out
}
