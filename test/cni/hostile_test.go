package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestHostile gives the program what no runtime gives. It says what is wrong, with a code, and leaves nothing; and nothing has it wait.
func TestHostile(t *testing.T) {
	if !enter(t) {
		return
	}
	r := newRig(t)
	r.pod("pod")
	must(t, run(t, r.command(env("ADD", "pod"), nil))) // turns forwarding on
	must(t, run(t, r.command(env("DEL", "pod"), nil)))
	before := state(t)
	dir := t.TempDir()
	fifo, loop := filepath.Join(dir, "fifo"), filepath.Join(dir, "loop")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Symlink(loop, loop)); err != nil {
		t.Fatal(err)
	}
	conf, err := io.ReadAll(r.command(nil, nil).Stdin)
	if err != nil {
		t.Fatal(err)
	}
	with := func(fields string) []byte {
		return slices.Concat(bytes.TrimSuffix(conf, []byte("}")), []byte(","+fields+"}"))
	}
	const large = 8 << 20
	long := strings.Repeat("x", 100_000)
	for _, c := range []struct {
		what  string
		env   string // a variable and its value
		stdin []byte
		codes []uint // that are right; none: it works
	}{
		{"as ever", "", conf, nil},
		{"nothing", "", []byte{}, []uint{6}},
		{"no JSON", "", []byte("\x00\xff"), []uint{6}},
		{"no object", "", []byte("[]"), []uint{6}},
		{"half of it", "", conf[:len(conf)/2], []uint{6}},
		{"two of it", "", slices.Concat(conf, conf), []uint{6}},
		{"much of nothing", "", bytes.Repeat([]byte(" "), large), []uint{6}},
		{"a large field", "", with(`"x":"` + strings.Repeat("x", large) + `"`), nil},
		{"deep lists", "", with(`"x":` + strings.Repeat("[", 1_000_000)), []uint{6}},
		{"deep lists in prevResult", "", with(`"prevResult":` + strings.Repeat(`{"ips":[`, 4000) + strings.Repeat("]}", 4000)), nil}, // an address that is none is passed on
		{"a null in prevResult", "", with(`"prevResult":{"cniVersion":"1.1.0","interfaces":[null]}`), []uint{6}},
		{"prevResult of another version", "", with(`"prevResult":{"cniVersion":"0.2.0"}`), []uint{6}},
		{"a deep object that ends", "", with(`"x":` + strings.Repeat(`{"x":`, 9000) + "1" + strings.Repeat("}", 9000)), nil},
		{"a name that is not UTF-8", "", with("\"name\":\"r\xff\""), []uint{7}},
		{"a name with a path", "", with(`"name":"../x"`), []uint{7}},
		{"two ranges fields", "", with(`"ranges":["10.9.0.0/24"],"ranges":[]`), []uint{7}},
		{"a version that is no text", "", with(`"cniVersion":3`), []uint{6}},
		{"no version", "", with(`"cniVersion":""`), []uint{1}},
		{"a version like none", "", with(`"cniVersion":"one"`), []uint{1, 6}},
		{"a version to come", "", with(`"cniVersion":"99.0.0"`), []uint{1}},
		{"a long version", "", with(`"cniVersion":"1.1.0.0"`), []uint{1}},
		{"a negative version", "", with(`"cniVersion":"-1.1.0"`), []uint{1, 6}},
		{"a data directory with a zero", "", with(`"dataDir":"/tmp/x\u0000y"`), []uint{7}},
		{"a data directory that is a FIFO", "", with(`"dataDir":"` + fifo + `"`), []uint{5}},
		{"a data directory that is a loop", "", with(`"dataDir":"` + loop + `"`), []uint{5}},
		{"a data directory of the kernel's", "", with(`"dataDir":"/proc/self"`), []uint{5}},
		{"a container with a path", "CNI_CONTAINERID=a/b", conf, []uint{4}},
		{"a container that is a path", "CNI_CONTAINERID=../pod", conf, []uint{4}},
		{"a container that is a dot", "CNI_CONTAINERID=.", conf, []uint{4}},
		{"a container with an escape", "CNI_CONTAINERID=a\x1b[2J", conf, []uint{4}},
		{"a container with an end of line", "CNI_CONTAINERID=a\n", conf, []uint{4}},
		{"a long container", "CNI_CONTAINERID=" + long, conf, []uint{4}},
		{"an interface with a path", "CNI_IFNAME=../../all", conf, []uint{4}},
		{"an interface that is a path", "CNI_IFNAME=..", conf, []uint{4}},
		{"a long interface", "CNI_IFNAME=eth0123456789012", conf, []uint{4}},
		{"a space", "CNI_IFNAME=eth 0", conf, []uint{4}},
		{"lo", "CNI_IFNAME=lo", conf, []uint{101}},
		{"all", "CNI_IFNAME=all", conf, []uint{4, 103}},
		{"default", "CNI_IFNAME=default", conf, []uint{4, 103}},
		{"a pattern", "CNI_IFNAME=eth%d", conf, []uint{4, 103}},
		{"two patterns", "CNI_IFNAME=%s%n", conf, []uint{4, 103}},
		{"not UTF-8", "CNI_IFNAME=eth\xff", conf, []uint{4, 5, 103}},
		{"a dot", "CNI_IFNAME=eth0.1", conf, nil},
		{"the name of the node's end", "CNI_IFNAME=rw00000000", conf, nil},
		{"a namespace that is a FIFO", "CNI_NETNS=" + fifo, conf, []uint{4}},
		{"a namespace that is a directory", "CNI_NETNS=" + dir, conf, []uint{4}},
		{"a namespace that is a directory of the kernel's", "CNI_NETNS=/proc/self/ns", conf, []uint{4}},
		{"a namespace that is a file of the kernel's", "CNI_NETNS=/proc/self/mem", conf, []uint{4}},
		{"a namespace that is a loop", "CNI_NETNS=" + loop, conf, []uint{4}},
		{"a namespace that is a terminal", "CNI_NETNS=/dev/tty", conf, []uint{4}},
		{"a user namespace", "CNI_NETNS=/proc/self/ns/user", conf, []uint{4}},
		{"a mount namespace", "CNI_NETNS=/proc/self/ns/mnt", conf, []uint{4}},
		{"a long path", "CNI_NETNS=/" + long, conf, []uint{4}},
		{"arguments that are none", "CNI_ARGS=;;=;==;x;=y;IP=", conf, []uint{7}},
		{"long arguments", "CNI_ARGS=K8S_POD_NAMESPACE=" + long + ";K8S_POD_NAME=" + long[:10], conf, nil},
		{"arguments that are not UTF-8", "CNI_ARGS=K8S_POD_NAMESPACE=\xff;K8S_POD_NAME=\xfe", conf, nil},
		{"many addresses", "CNI_ARGS=IP=" + strings.Repeat("10.244.0.9,", 9000) + "10.244.0.9", conf, []uint{7}},
		{"an unknown command", "CNI_COMMAND=RUN", conf, []uint{4}},
	} {
		e := env("ADD", "pod")
		if k, v, ok := strings.Cut(c.env, "="); ok {
			e[k] = v
		}
		got, ok := hostile(t, c.what, r.command(e, nil), c.stdin)
		if !ok || (got.exit == 0) != (c.codes == nil) || got.exit != 0 && !slices.Contains(c.codes, got.Code) {
			t.Errorf("%s: exit %d, code %d, %.200s; want one of %d", c.what, got.exit, got.Code, got.Error.Error(), c.codes)
		}
		others := []string{"CHECK", "DEL"}
		if c.env == "" {
			others = append(others, "GC", "STATUS")
		}
		for _, command := range others {
			e["CNI_COMMAND"] = command
			if got, _ := hostile(t, c.what+", "+command, r.command(e, nil), c.stdin); got.exit != 0 && got.Code == 0 {
				t.Errorf("%s, %s: no code, %.200s", c.what, command, got.Error.Error())
			}
		}
		if l := r.leases(); len(l) > 0 {
			t.Errorf("%s: leased are %v", c.what, l)
		}
		if all, err := net.Interfaces(); err != nil || len(all) != 1 {
			t.Errorf("%s: the node has %v, %v", c.what, all, err)
		}
	}
	r.empty("at the end")
	if diff := cmp.Diff(before, state(t)); diff != "" {
		t.Error(diff)
	}
	if out := netns.Run(t, "ip", "-n", "pod", "-br", "link"); strings.Count(out, "\n") != 1 {
		t.Errorf("the pod has\n%s", out)
	}
}

// hostile runs a command with other words on its standard input. It is not well if it takes long, writes no JSON, or panics.
func hostile(t *testing.T, what string, cmd *exec.Cmd, stdin []byte) (answer, bool) {
	t.Helper()
	var out, log bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &log
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := cmd.Start(); err != nil {
		t.Errorf("%s: %v", what, err)
		return answer{}, false
	}
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	_ = cmd.Wait()
	a := answer{exit: cmd.ProcessState.ExitCode(), stdout: out.String()}
	if a.exit == 0 {
		return a, true
	}
	if err := json.Unmarshal(out.Bytes(), &a.Error); err != nil || a.exit != 1 {
		t.Errorf("%s: exit %d, %v: %.200s %.2000s", what, a.exit, ctx.Err(), out.String(), log.String())
		return a, false
	}
	return a, true
}
