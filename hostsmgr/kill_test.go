package hostsmgr

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
)

// victim is the variable that makes the test binary a Manager of the directory it names, one that updates without end.
const victim = "ROPEWALK_TEST_HOSTS_VICTIM"

const victimPods = 100

// victimState is the state of a cluster at step i: every pod's file is a different one at each, and its size goes up and down.
func victimState(i int) []cluster.Object {
	var text strings.Builder
	for n := range 1 + i%5*300 {
		fmt.Fprintf(&text, "10.9.%d.%d name-%d.step-%d.example\n", n/250, n%250+1, n, i)
	}
	os := []cluster.Object{newConfigMap("cluster", "infra", "m", text.String())}
	for n := range victimPods {
		os = append(os, newPod("shop", fmt.Sprintf("web-%d", n), withAlias("10.8.0.1", fmt.Sprintf("step-%d.example", i))))
	}
	return os
}

func beVictim(dir string) {
	m, err := New(Config{
		KubeletDir: filepath.Join(dir, "kubelet"), NodeHostsFile: filepath.Join(dir, "etc", "hosts"), NodeBlock: true,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err == nil {
		go func() {
			r := &rig{manager: m}
			r.list(victimState(0)...)
			for m.Ready() != nil {
				time.Sleep(time.Millisecond)
			}
			fmt.Println("ready")
			for i := 1; ; i++ {
				r.upsert(victimState(i)...)
			}
		}()
		err = m.Run(context.Background())
	}
	fmt.Println(err)
	os.Exit(1)
}

// TestKilled kills a Manager again and again in the middle of updates. A file that is being written is never without its first
// lines, and whatever was cut off is right after the next start; so is the node's file, whose other lines are never lost.
func TestKilled(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	r := newRig(t)
	inodes := map[string]uint64{}
	var pods []*cluster.Pod
	for _, o := range victimState(0)[1:] {
		p := o.(*cluster.Pod)
		pods = append(pods, p)
		r.asKubelet(p)
		inodes[p.Name] = r.inode(r.file(p))
	}
	const header = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"
	torn, behind := 0, 0
	for round := range rounds {
		killVictim(t, filepath.Dir(r.kubelet), round)
		steps := map[string]bool{}
		for _, p := range pods {
			text := r.read(r.file(p))
			if !strings.HasPrefix(text, header) {
				t.Fatalf("round %d: %s holds %.200q", round, p.Name, text)
			}
			step := text[max(0, strings.LastIndex(text, ".step-")):]
			steps[step] = true
			if strings.Count(text, ".step-") != strings.Count(text, strings.TrimRight(step, "\n")) {
				torn++
			}
		}
		if len(steps) > 1 {
			behind++
		}
		if node := r.read(r.node); !strings.HasPrefix(node, nodeHosts) {
			t.Fatalf("round %d: the node's file holds %.200q", round, node)
		}

		r.again(func(c *Config) { c.NodeBlock = true })
		r.start()
		state := victimState(round)
		r.list(state...)
		r.ready()
		r.stop()
		lines := newWatched(state...).ofCluster()
		aliases, _ := hostsfile.Parse(string(lines))
		for _, o := range state[1:] {
			p := o.(*cluster.Pod)
			if r.read(r.file(p)) != r.rendered(p, append([]cluster.HostAlias{alias("10.8.0.1", fmt.Sprintf("step-%d.example", round))}, aliases...)...) {
				t.Fatalf("round %d: %s is not right after the next start", round, p.Name)
			}
			if r.inode(r.file(p)) != inodes[p.Name] {
				t.Fatalf("round %d: %s has another inode", round, p.Name)
			}
		}
		if got := r.read(r.node); got != nodeHosts+string(makeBlock(lines)) {
			t.Fatalf("round %d: the node's file holds %.200q", round, got)
		}
	}
	t.Logf("killed %d times: %d times in the middle of an update of all files, %d files with old and new lines", rounds, behind, torn)
	if behind == 0 {
		t.Error("never in the middle of an update")
	}
}

// killVictim runs the victim, and kills it at a random moment: of every fifth round before it is ready, else afterwards.
func killVictim(t *testing.T, dir string, round int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victim+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	ok(t, err, cmd.Start())
	if round%5 > 0 {
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			t.Errorf("the victim says %q, %v", line, err)
		}
	}
	// The moment is what is tested, not waited for.
	time.Sleep(time.Duration(rand.Int64N(int64(50 * time.Millisecond))))
	ok(t, cmd.Process.Kill())
	_ = cmd.Wait()
}
