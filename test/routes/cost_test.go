// Package routes holds the tests of what `ropewalk routes` costs: the program itself, its system calls counted from outside.
package routes

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/program"
)

func TestMain(m *testing.M) { os.Exit(program.Run(m.Run, program.Ropewalk)) }

// node is a manifest. Nodes are neighbours on one link; the one with the number 0 is that of the test.
func node(i int) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Node\nmetadata: {name: n%05d}\nspec: {podCIDRs: [10.%d.%d.0/24, 'fd00:244:0:%x::/64']}\n"+
		"status: {addresses: [{type: InternalIP, address: 172.16.%d.%d}, {type: InternalIP, address: 'fd00:1::%x'}]}\n", i, 128+i>>8, i&255, 0x1000+i, i>>8, i&255, 0x1000+i)
}

// agent is the program that runs on a node.
type agent struct {
	*testing.T
	cluster string // directory of manifests
	args    []string
	trace   string // what strace writes
	cmd     *exec.Cmd
	ended   chan struct{}
	log     bytes.Buffer
}

// child starts a program that goes with the test's process.
func child(t *testing.T, cmd *exec.Cmd) (ended chan struct{}) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the signal comes when the thread ends that has started the program
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	return ended
}

func (a *agent) start() {
	a.Helper()
	a.trace = filepath.Join(a.TempDir(), "trace")
	a.cmd = exec.Command("strace", append([]string{"-D", "-f", "--seccomp-bpf", "-yy", "-s", "64", "-o", a.trace, "-e", "trace=sendto,sendmsg,sendmmsg,recvfrom,recvmsg,recvmmsg", os.Getenv(program.Ropewalk)}, a.args...)...)
	a.cmd.Stderr = &a.log
	a.ended = child(a.T, a.cmd)
}

func (a *agent) stop() {
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	<-a.ended
}

// metrics returns the program's, by their names; nothing while it does not answer.
func (a *agent) metrics() map[string]float64 {
	out := map[string]float64{}
	resp, err := http.Get("http://127.0.0.1:9156/metrics")
	if err != nil {
		return out
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			out[name], _ = strconv.ParseFloat(value, 64)
		}
	}
	return out
}

// synced waits until the program has done all for so many other nodes, and has made so many changes since it was started.
func (a *agent) synced(nodes int, changes float64) (now map[string]float64) {
	a.Helper()
	for range 3000 {
		if now = a.metrics(); now["ropewalk_routes_nodes"] == float64(nodes) && now["ropewalk_routes_last_sync_timestamp_seconds"] > 0 && now["ropewalk_routes_changes_total"] >= changes {
			return now
		}
		time.Sleep(10 * time.Millisecond)
	}
	a.Fatalf("not synced: %v\n%s", now, a.log.String())
	return nil
}

func (a *agent) write(name, content string) {
	a.Helper()
	path := filepath.Join(a.cluster, name)
	err := os.WriteFile(path+".new", []byte(content), 0o644)
	if content == "" {
		err = os.Remove(path)
	} else if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		a.Fatal(err)
	}
}

// cost is what passes between the program and the kernel, and how often all was listed.
type cost struct{ sent, sentBytes, received, receivedBytes, looks int }

// least returns the least of each. The program has other things to do, too, at times: a cost of every change is in all.
func least(costs []cost) cost {
	out := costs[0]
	for _, c := range costs[1:] {
		out = cost{min(out.sent, c.sent), min(out.sentBytes, c.sentBytes), min(out.received, c.received), min(out.receivedBytes, c.receivedBytes), min(out.looks, c.looks)}
	}
	return out
}

var (
	call    = regexp.MustCompile(`^(\d+) +(\w+)\(\d+<NETLINK:`)
	resumed = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>`)
	result  = regexp.MustCompile(`= (\d+)$`)
	foreign = regexp.MustCompile(`RTM_(NEW|DEL)NEIGH.*if_nametoindex\("(eth0|far)"\)`)
)

// mender matches what is asked of one link, and the answer: of one that has lost routes the program asks once, after a pause that has nothing to do with
// what else happens, whether it is a pod's. A listing of links is another request.
var mender = regexp.MustCompile(`nlmsg_type=RTM_GETLINK, nlmsg_flags=NLM_F_REQUEST(\|NLM_F_ACK)?,|recv.*nlmsg_type=RTM_NEWLINK`)

// count adds up what strace has written, without what the kernel tells of its own neighbours on the node's link and what comes of a pause.
func count(trace string) (c cost) {
	waiting := map[string]bool{} // threads, in a call that is told in two lines
	for line := range strings.Lines(trace) {
		line, name := strings.TrimSuffix(line, "\n"), ""
		if m := call.FindStringSubmatch(line); m != nil {
			if name = m[2]; strings.Contains(line, "<unfinished ...>") {
				waiting[m[1]] = !mender.MatchString(line)
				continue
			}
		} else if m := resumed.FindStringSubmatch(line); m != nil && waiting[m[1]] {
			name = m[2]
			delete(waiting, m[1])
		}
		m := result.FindStringSubmatch(line)
		if name == "" || m == nil || strings.Contains(line, "MSG_PEEK") || foreign.MatchString(line) || mender.MatchString(line) { // a message is looked at before it is read
			continue
		}
		n, _ := strconv.Atoi(m[1])
		if strings.HasPrefix(name, "send") {
			c.sent, c.sentBytes = c.sent+1, c.sentBytes+n
		} else {
			c.received, c.receivedBytes = c.received+1, c.receivedBytes+n
		}
	}
	return c
}

// unread reports whether there is a message that its reader has not taken.
func unread(t *testing.T) bool {
	b, err := os.ReadFile("/proc/net/netlink")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[0] != "sk" && f[4] != "0" {
			return true
		}
	}
	return false
}

// settled waits until the program has read what the kernel has told, and returns what strace has written so far.
func (a *agent) settled() string {
	a.Helper()
	size, quiet := int64(-1), 0
	for i := 0; quiet < 20 && i < 2000; i++ {
		info, err := os.Stat(a.trace)
		if err != nil {
			a.Fatal(err)
		}
		if quiet++; info.Size() != size || unread(a.T) {
			size, quiet = info.Size(), 0
		}
		time.Sleep(10 * time.Millisecond)
	}
	b, err := os.ReadFile(a.trace)
	if err != nil {
		a.Fatal(err)
	}
	return string(b)
}

// measure returns what a change costs, after which there are so many other nodes, and by which so many things change.
func (a *agent) measure(nodes, changes int, change func()) cost {
	a.Helper()
	begin := len(a.settled())
	before := a.metrics()
	change()
	after := a.synced(nodes, before["ropewalk_routes_changes_total"]+float64(changes))
	b := a.settled()[begin:]
	c := count(b)
	c.looks = int(after["ropewalk_routes_looks_total"] - before["ropewalk_routes_looks_total"])
	return c
}

// TestCost holds that a node which comes or goes costs the same netlink messages, and bytes of them, among 1,000 as among 10, and has nothing
// listed; and that another process which finds all as it should be lists it once and changes nothing.
func TestCost(t *testing.T) {
	for name, mode := range map[string]struct {
		flags   []string
		changes int // two routes and the masquerading; in the tunnel two neighbours and a forwarding entry
	}{"vxlan": {nil, 6}, "near": {[]string{"--direct-where-near"}, 3}, "direct": {[]string{"--overlay", "direct"}, 3}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !netns.Enter(t) {
				return
			}
			netns.NeedCommand(t, "strace")
			// Nothing is to happen to links while it is counted.
			netns.Batch(t, "", "link add eth0 type veth peer name far\nlink set eth0 addrgenmode none\nlink set far addrgenmode none\nlink set eth0 up\nlink set far up\n")
			for i := 0; strings.Count(netns.Run(t, "ip", "link"), "state UP") < 2 && i < 1000; i++ { // the kernel notices at its leisure
				time.Sleep(10 * time.Millisecond)
			}
			netns.Batch(t, "", "addr add 172.16.0.0/16 dev eth0\naddr add fd00:1::1000/64 dev eth0 nodad\nroute add default via 172.16.255.1\n")
			var costs [2][2]cost
			for i, nodes := range []int{10, 1000} {
				a := &agent{T: t, cluster: t.TempDir()}
				a.args = append([]string{"routes", "--node-name", "n00000", "--manifests", a.cluster, "--conf-dir", t.TempDir(), "--data-dir", t.TempDir()}, mode.flags...)
				var all strings.Builder
				for n := range nodes + 1 {
					all.WriteString(node(n))
				}
				a.write("all.yaml", all.String())
				a.start()
				a.synced(nodes, 0)
				a.stop()
				a.start()
				now := a.synced(nodes, 0)
				if looks, changes := now["ropewalk_routes_looks_total"], now["ropewalk_routes_changes_total"]; looks != 1 || changes != 0 {
					t.Errorf("%d nodes: another process has looked %v times and changed %v things", nodes, looks, changes)
				}
				var comes, goes []cost
				for range 3 {
					comes = append(comes, a.measure(nodes+1, mode.changes, func() { a.write("more.yaml", node(nodes+1)) }))
					goes = append(goes, a.measure(nodes, mode.changes, func() { a.write("more.yaml", "") }))
				}
				costs[i] = [2]cost{least(comes), least(goes)}
				a.stop()
			}
			t.Logf("a node comes, goes: %+v", costs[0])
			for i, what := range []string{"comes", "goes"} {
				if few, many := costs[0][i], costs[1][i]; few != many || few.sent == 0 || few.received == 0 || few.looks != 0 {
					t.Errorf("a node %s: %+v among 10, %+v among 1,000", what, few, many)
				}
			}
		})
	}
}
