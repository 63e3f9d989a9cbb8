package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestWatch holds that an address is seen wherever proxies put it, and when it is committed alone.
func TestWatch(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	netns.Run(t, "nft", `table ip t {
		map shared { type ipv4_addr . inet_service : ipv4_addr . inet_service; }
		chain c { }
	}`)
	for i, command := range []string{
		"add element ip t shared { 10.96.0.1 . 80 : %s . 8080 }",
		"add rule ip t c meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.1.1.1 . 8080, 1 : %s . 8080 }",
		"add rule ip t c meta l4proto tcp dnat to %s",
		"add chain ip t endpoint\nadd rule ip t endpoint ip saddr %s drop",
	} {
		w, err := newWatch()
		if err != nil {
			t.Fatal(err)
		}
		w.expect(fresh(2 * i))
		w.expect(fresh(2*i + 1))
		netns.Run(t, "nft", "--check", fmt.Sprintf(command, text(fresh(2*i)))) // all but the commit
		if missing, err := w.drain(soon(t, 50*time.Millisecond)); missing != 2 {
			t.Errorf("%s: %d missing before the commit: %v", command, missing, err)
		}
		netns.Run(t, "nft", fmt.Sprintf(command, text(fresh(2*i))))
		select {
		case <-w.seen:
		case <-time.After(10 * time.Second):
		}
		// The other address is nowhere.
		if missing, err := w.drain(soon(t, 0)); missing != 1 {
			t.Errorf("%s: %d missing after the commit: %v", command, missing, err)
		}
		if took, err := w.close(); len(took) != 1 || err != nil {
			t.Errorf("%s: %v, %v", command, took, err)
		}
	}
}

func soon(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestHistogram(t *testing.T) {
	const text = `# HELP x_seconds Time.
x_seconds_bucket{ip_family="IPv4",le="+Inf"} 2
x_seconds_sum{ip_family="IPv4"} 1.5
x_seconds_count{ip_family="IPv4"} 2
x_seconds_sum{ip_family="IPv6"} 2.5e-01
x_seconds_count{ip_family="IPv6"} 1
x_seconds_more_sum 7
y_x_seconds_sum 8
`
	if sum, n, err := histogram(text, "x_seconds"); sum != 1750*time.Millisecond || n != 3 || err != nil {
		t.Errorf("%v in %d, %v", sum, n, err)
	}
	if _, _, err := histogram(text, "z_seconds"); err == nil {
		t.Error("no error for a metric that is not there")
	}
}

// TestRopewalk measures a small cluster: every figure has to be there.
func TestRopewalk(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	n, err := newNetwork()
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	closers, err := serve(n.backend)
	defer func() {
		for _, c := range closers {
			_ = c()
		}
	}()
	if err != nil {
		t.Fatal(err)
	}
	s := scenario{
		services: 50, endpoints: 3, candidates: []candidate{ropewalk(binary(t))}, runs: 1,
		changes: 5, within: time.Minute, rate: 100, churn: 100 * time.Millisecond, rounds: 1, connections: 20,
	}
	results, err := s.run(t.Context(), t.TempDir(), n)
	if err != nil {
		t.Fatal(err)
	}
	r := results[0]
	if len(r.endpoint) != 5 || len(r.service) != 5 || len(r.lag) != 10 || r.tried == 0 {
		t.Errorf("%d and %d changes, %d at a rate, %d connections during the restart", len(r.endpoint), len(r.service), len(r.lag), r.tried)
	}
	for _, row := range s.rows() {
		if v := row.Share(r, 0.5); v <= 0 {
			t.Errorf("%s: %g %s", row.Name, v, row.Unit)
		}
	}
	if text := s.section(results); strings.Count(text, "\n") != 4+len(s.rows()) {
		t.Errorf("the table:\n%s", text)
	}
}

// binary returns the path of ropewalk, built if need be.
func binary(t *testing.T) string {
	t.Helper()
	if b := os.Getenv("ROPEWALK_TEST_ROPEWALK"); b != "" {
		return b
	}
	b := filepath.Join(t.TempDir(), "ropewalk")
	cmd := exec.Command("go", "build", "-o", b, "github.com/ropewalk-net/ropewalk/cmd/ropewalk")
	cmd.Env = append(slices.Clone(os.Environ()), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return b
}
