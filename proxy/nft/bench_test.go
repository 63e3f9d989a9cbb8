package nft

import (
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// cluster returns n frontends of TCP with k backends each.
func cluster(n, k int) []*frontends.Frontend {
	fs := make([]*frontends.Frontend, n)
	for i := range fs {
		bs := make([]netip.AddrPort, k)
		for j := range bs {
			bs[j] = benchBackend(i*k + j)
		}
		fs[i] = &frontends.Frontend{
			Key:       frontends.Key{Addr: netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)}), Protocol: frontends.TCP, Port: 80},
			ClusterIP: true, Backends: bs,
		}
	}
	return fs
}

func benchBackend(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 128 + byte(i>>16), byte(i >> 8), byte(i)}), 8080)
}

// TestCost does a first sync, a restart and changes of one endpoint. With ROPEWALK_TEST_COST=1 it does so at the sizes of
// docs/proxy-rules.md, whose figures it prints.
func TestCost(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	sizes := [][2]int{{1000, 2}}
	if os.Getenv("ROPEWALK_TEST_COST") != "" {
		sizes = [][2]int{{10000, 2}, {50000, 5}}
	}
	for _, size := range sizes {
		cost(t, size[0], size[1])
	}
}

// TestLargeListing holds that nft(8) can list a large cluster's table.
func TestLargeListing(t *testing.T) {
	t.Parallel()
	if !netns.Enter(t) {
		return
	}
	netns.NeedCommand(t, "nft")
	x := New(testNode())
	t.Cleanup(x.Close)
	apply(t, x, Change{Put: cluster(10000, 2)})
	if n := strings.Count(netns.Run(t, "nft", "list", "ruleset"), " . 8080"); n != 20000 {
		t.Errorf("%d backends are listed", n)
	}
}

func cost(t *testing.T, n, k int) {
	debug.FreeOSMemory()
	fs := cluster(n, k)
	x := New(testNode())
	report := func(what string, f func()) {
		wall, cpu := time.Now(), cpuTime()
		f()
		t.Logf("%d x %d: %-34s %8.1f ms, CPU %8.1f ms, resident %d MB", n, k, what,
			float64(time.Since(wall).Microseconds())/1e3, float64((cpuTime()-cpu).Microseconds())/1e3, resident())
	}
	report("nothing yet", func() {})
	report("first sync", func() { apply(t, x, Change{Put: fs}) })
	changes(t, x, fs, "one endpoint replaced", func(i, k int) int { return k })
	changes(t, x, fs, "one endpoint more", func(i, k int) int { return k + 1 })
	changes(t, x, fs, "one endpoint less", func(i, k int) int { return k - 1 })
	x.Close()
	x = nil // as if it had ended
	debug.FreeOSMemory()
	y := New(testNode())
	defer y.Close()
	report("a new agent reads what is there", y.Read)
	report("it finds all as it should be", func() { apply(t, y, Change{Put: fs}) })
	report("another interface", func() { n := testNode(); n.Interfaces = []string{"cni0"}; apply(t, y, Change{Node: &n}) })
	report("nothing to repair", func() {
		netns.Run(t, "nft", fmt.Sprintf("add table ip somebodys%d", n))
		if repaired, err := y.Check(); repaired || err != nil {
			t.Error(repaired, err)
		}
	})
	report("1000 looks whether there is something", func() {
		for range 1000 {
			if repaired, err := y.Check(); repaired || err != nil {
				t.Error(repaired, err)
			}
		}
	})
	report("nft list ruleset", func() { netns.Run(t, "nft", "list", "ruleset") })
	if err := Remove(); err != nil {
		t.Fatal(err)
	}
}

// changes measures 200 changes, each of one frontend, one after the other.
var next = 1 << 21 // a backend that is not there yet

func changes(t *testing.T, x *Tables, fs []*frontends.Frontend, what string, count func(i, k int) int) {
	t.Helper()
	var took []time.Duration
	cpu := cpuTime()
	for i := range 200 {
		at := i * 7 % len(fs)
		f := *fs[at]
		want := count(i, len(f.Backends))
		f.Backends = slices.Clone(f.Backends)
		switch {
		case want < len(f.Backends):
			f.Backends = f.Backends[1:]
		case want > len(f.Backends):
			f.Backends = append(f.Backends, benchBackend(next))
		default:
			f.Backends[0] = benchBackend(next)
		}
		next++
		fs[at] = &f
		start := time.Now()
		apply(t, x, Change{Put: []*frontends.Frontend{&f}})
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("%d x: %-34s p50 %v, p99 %v, CPU %v a change", len(fs), what, took[100], took[198], (cpuTime()-cpu)/200)
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func resident() int {
	b, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	var kb int
	_, _ = fmt.Sscan(rest, &kb)
	return kb >> 10
}
