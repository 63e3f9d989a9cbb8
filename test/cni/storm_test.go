package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/ropewalk-net/ropewalk/cni/portmap"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// killsEnv is how often TestStorm kills, and seedEnv what it begins its random numbers with.
const (
	killsEnv = "ROPEWALK_TEST_KILLS"
	seedEnv  = "ROPEWALK_TEST_SEED"
)

// storm is what several runtimes do at a time, each of which may be killed at any moment, with the plugin that it has called.
type storm struct {
	*rig
	seed  uint64
	kills int

	next, killed atomic.Int64 // numbers given out, and how many processes were killed before they had ended

	mu        sync.Mutex
	survivors map[string][]byte // what ADD has returned, by name
	dead      []string
	took      time.Duration // what an undisturbed call takes
}

// TestStorm holds that whatever ADD and DEL were doing when they were killed, a GC leaves the attachments that the runtime knows of, and
// nothing else.
func TestStorm(t *testing.T) {
	if enter(t) {
		aStorm(t, map[string]any{"mode": "routed"})
	}
}

// TestStormOnBridge is TestStorm in the other mode.
func TestStormOnBridge(t *testing.T) {
	if enter(t) {
		aStorm(t, map[string]any{"mode": "bridge", "bridge": "br0", "macspoofchk": true})
	}
}

func aStorm(t *testing.T, conf map[string]any) {
	t.Helper()
	s := &storm{rig: newRig(t), seed: number(t, seedEnv, uint64(time.Now().UnixNano())), kills: int(number(t, killsEnv, 60)), survivors: map[string][]byte{}}
	maps.Copy(s.conf, conf)
	s.conf["ranges"] = []string{"10.244.0.0/18", range6}
	defer func() {
		if t.Failed() {
			t.Logf("%s=%d %s=%d", seedEnv, s.seed, killsEnv, s.kills)
		}
	}()
	netns.NeedCommand(t, "nft")
	s.pod("s0")
	must(t, s.call("ADD", "s0")) // makes what is the node's and not a pod's: forwarding, tables, the bridge
	must(t, s.call("DEL", "s0"))
	before := s.node()

	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() { s.runtime(rand.New(rand.NewPCG(s.seed, uint64(i)))) })
	}
	wg.Wait()
	left := len(s.leases())
	t.Logf("%d of %d containers were killed in ADD or DEL, %d are left, and %d leases", s.killed.Load(), s.next.Load(), len(s.survivors), left)
	if left <= len(s.survivors) || len(s.survivors) == 0 {
		t.Fatal("there is nothing to collect, or nobody to leave")
	}
	valid := []types.GCAttachment{}
	for name := range s.survivors {
		valid = append(valid, types.GCAttachment{ContainerID: name, IfName: ifname})
	}
	must(t, run(t, s.command(env("GC", ""), map[string]any{"cni.dev/valid-attachments": valid})))

	names := slices.Sorted(maps.Keys(s.survivors))
	if diff := cmp.Diff(names, s.leased()); diff != "" {
		t.Errorf("leased are others than the survivors: %s", diff)
	}
	if diff := cmp.Diff(names, s.ported()); diff != "" {
		t.Errorf("ports have others than the survivors: %s", diff)
	}
	var hosts []string
	for _, name := range names {
		hosts = append(hosts, s.alive(name))
	}
	if diff := cmp.Diff(sorted(hosts), links(t)); diff != "" {
		t.Errorf("interfaces are others than the survivors': %s", diff)
	}
	again := s.dead[:min(10, len(s.dead))]
	for _, name := range again { // nothing is in the way of the same container in the same namespace
		must(t, s.call("ADD", name))
	}
	for _, name := range append(names, again...) {
		must(t, s.call("DEL", name))
	}
	s.empty("after the survivors' DELs")
	if diff := cmp.Diff(before, s.node()); diff != "" {
		t.Error(diff)
	}
}

// node is state, and all rules. Whether the bridge has a port that is up is left out: it loses its last one some time after.
func (s *storm) node() string {
	return strings.NewReplacer("DOWN", "UP  ", "NO-CARRIER,", "", " linkdown", "").Replace(state(s) + netns.Run(s, "nft", "list", "ruleset"))
}

// runtime attaches and detaches new containers until the plugin has been killed often enough.
func (s *storm) runtime(r *rand.Rand) {
	for i := 0; s.killed.Load() < int64(s.kills) && !s.Failed(); i++ {
		name := fmt.Sprintf("s%d", s.next.Add(1))
		if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
			s.Errorf("%v: %s", err, out)
			return
		}
		what := r.IntN(10)
		if i == 0 {
			what = 9
		}
		if what < 5 {
			s.kill("ADD", name, r)
			continue
		}
		added := s.call("ADD", name)
		if added.exit != 0 {
			s.Errorf("ADD: %v", added.Error.Error())
			return
		}
		if what < 9 {
			s.kill("DEL", name, r)
			continue
		}
		s.mu.Lock()
		s.survivors[name] = []byte(added.stdout)
		s.mu.Unlock()
	}
}

// prepare is command with a port of the node's own.
func (s *storm) prepare(command, name string, change map[string]any) *exec.Cmd {
	conf := map[string]any{"runtimeConfig": map[string]any{"portMappings": []any{map[string]any{"hostPort": s.port(name), "containerPort": 8080}}}}
	maps.Copy(conf, change)
	return s.command(env(command, name), conf)
}

// port is the node's that leads to a container.
func (s *storm) port(name string) int {
	n, err := strconv.Atoi(name[1:])
	if err != nil {
		s.Error(err)
	}
	return 20000 + n
}

// call runs a command undisturbed.
func (s *storm) call(command, name string) answer {
	begun := time.Now()
	a := run(s.T, s.prepare(command, name, nil))
	s.mu.Lock()
	s.took = (s.took*7 + time.Since(begun)) / 8
	s.mu.Unlock()
	return a
}

// kill kills a command at a random moment.
func (s *storm) kill(command, name string, r *rand.Rand) {
	s.mu.Lock()
	patience := time.Duration(r.Int64N(int64(s.took)*5/4 + 1))
	s.mu.Unlock()
	cmd := s.prepare(command, name, nil)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := cmd.Start(); err != nil {
		s.Error(err)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	_ = cmd.Wait()
	if cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
		s.killed.Add(1)
		s.mu.Lock()
		s.dead = append(s.dead, name)
		s.mu.Unlock()
	}
}

// alive says what of an attachment does not work, and returns the name of its interface on the node.
func (s *storm) alive(name string) string {
	s.Helper()
	var r current.Result
	if err := json.Unmarshal(s.survivors[name], &r); err != nil {
		s.Fatal(err)
	}
	if got := run(s.T, s.prepare("CHECK", name, map[string]any{"prevResult": json.RawMessage(bytes.TrimSpace(s.survivors[name]))})); got.exit != 0 {
		s.Errorf("%s: %v", name, got.Error.Error())
	}
	serve(s.T, name)
	to := []string{net.JoinHostPort(node4, fmt.Sprint(s.port(name))), net.JoinHostPort(node6, fmt.Sprint(s.port(name)))}
	for _, a := range addresses(&r) {
		to = append(to, net.JoinHostPort(a, "8080"))
	}
	for _, a := range to {
		if _, err := echo("tcp", a, 100); err != nil {
			s.Errorf("%s at %s: %v", name, a, err)
		}
	}
	return r.Interfaces[len(r.Interfaces)-2].Name // the pod's is the last
}

func (s *storm) leased() (names []string) {
	for _, l := range s.leases() {
		names = append(names, l.Container)
	}
	return sorted(names)
}

// ported returns whose ports there are.
func (s *storm) ported() []string {
	s.Helper()
	all, err := portmap.List()
	if err != nil {
		s.Fatal(err)
	}
	var names []string
	for _, o := range all {
		names = append(names, o.Owner.Container)
	}
	return slices.Compact(sorted(names))
}

// links returns the names of the interfaces on the node that are the plugin's.
func links(t *testing.T) (names []string) {
	t.Helper()
	for line := range strings.Lines(netns.Run(t, "ip", "-br", "link")) {
		if name, _, _ := strings.Cut(line, "@"); strings.HasPrefix(name, "rw") {
			names = append(names, name)
		}
	}
	return sorted(names)
}

func must(t *testing.T, a answer) {
	t.Helper()
	if a.exit != 0 {
		t.Fatal(a.Error.Error())
	}
}

// number reads a variable.
func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}
