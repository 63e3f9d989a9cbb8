package routes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cni"
	"github.com/ropewalk-net/ropewalk/cni/limited"
	"github.com/ropewalk-net/ropewalk/cni/overlay"
	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestNext holds that the plugin is told what is missing for long, once, and at once when nothing is.
func TestNext(t *testing.T) {
	one, two := errors.New("one"), errors.New("two")
	var l limit
	begin := time.Now()
	for i, step := range []struct {
		at      time.Duration
		missing error
		text    string
		news    bool
	}{
		{0, nil, "", false},
		{1, one, "", false},
		{5, nil, "", false},
		{6, one, "", false},
		{15, two, "", false},
		{16, one, "one", true},
		{17, one, "one", false},
		{18, two, "two", true},
		{19, nil, "", true},
		{20, nil, "", false},
	} {
		text, news := l.next(step.missing, begin.Add(step.at), 10)
		if text != step.text || news != step.news {
			t.Errorf("step %d: %q, %v", i, text, news)
		}
		if l.told = text; !news && text != step.text {
			t.Errorf("step %d: %q is told", i, text)
		}
	}
}

// TestLimited holds that the plugin's STATUS says what this node's kernel has refused for long, until it does not; not what is for
// others' objects, and not what an earlier process has said.
func TestLimited(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	dir := t.TempDir()
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"ropewalk","dataDir":%q,"ranges":[%q]}`, dir, clusternet.PodCIDR4)
	status := func(want uint) func() string {
		return func() string {
			err := cni.Status(&skel.CmdArgs{StdinData: []byte(conf)})
			var e *types.Error
			if errors.As(err, &e); (err == nil) != (want == 0) || want != 0 && (e == nil || e.Code != want) {
				return fmt.Sprintf("STATUS: %v", err)
			}
			return ""
		}
	}
	if err := limited.Write(dir, "something else"); err != nil {
		t.Fatal(err)
	}
	if s := status(51)(); s != "" {
		t.Error(s)
	}
	mode := overlay.Kernel{Device: "rw-vxlan", VNI: 4242, Port: 8472}
	r := start(t, Config{Mode: overlay.VXLAN, Kernel: mode, DataDir: dir, Patience: 50 * time.Millisecond}, self, second)
	r.soon(status(0))
	ready := func() string { return fmt.Sprint(r.routes.Ready()) }
	r.soon(func() string {
		if s := ready(); s != "<nil>" {
			return s
		}
		return ""
	})
	// Another's route is in the way of one node's.
	netns.Run(t, "ip", "route", "add", "10.250.0.0/24", "dev", "lo")
	r.put(node("n3", []string{"10.250.0.0/24"}, []string{"192.0.2.77"}))
	r.soon(func() string { // two looks are farther apart than patience
		r.routes.wake()
		if n := testutil.ToFloat64(r.routes.metrics.failures); n < 2 {
			return fmt.Sprintf("%v looks failed: %s", n, ready())
		}
		return ""
	})
	if s := status(0)(); s != "" {
		t.Error(s)
	}
	// A device of somebody else's has the name of the tunnel's.
	netns.Batch(t, "", "link del rw-vxlan\nlink add rw-vxlan type bridge\n")
	r.soon(status(51))
	long := time.Now().Add(-2 * limited.Stale)
	if err := os.Chtimes(filepath.Join(dir, "limited"), long, long); err != nil {
		t.Fatal(err)
	}
	r.soon(status(51)) // it says so at each look
	netns.Run(t, "ip", "link", "del", "rw-vxlan")
	r.soon(status(0))
}

// TestMissing holds what of the kernel's errors is this node's.
func TestMissing(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{fmt.Errorf("route: %w", overlay.ErrForeign), false},
		{fmt.Errorf("route: %w", unix.ENETUNREACH), false},
		{errors.Join(unix.EINVAL, fmt.Errorf("route: %w", unix.EPERM)), true},
		{unix.EOPNOTSUPP, true},
	} {
		if got := missing(c.err, overlay.Plan{}, "rw-vxlan"); (got != nil) != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
	if missing(unix.EEXIST, overlay.Plan{Tunnel: &overlay.Tunnel{}}, "no such device") == nil {
		t.Error("a tunnel without a device is not missing")
	}
}

// TestUnreadable holds that a file which this program may not read is told, and is no reason for the node to be not ready.
func TestUnreadable(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	const unreadable = "/proc/sys/net/ipv4/route/flush" // by root, too
	_, err := os.ReadFile(unreadable)
	netns.Need(t, errors.Is(err, unix.EACCES), "there is no file that nobody may read")
	r, err := New(Config{NodeName: "n1", Masquerade: true, InsideFile: unreadable})
	if err != nil {
		t.Fatal(err)
	}
	err = r.masquerade(view{}, true)
	if err == nil || missing(err, overlay.Plan{}, "") != nil {
		t.Errorf("%v", err)
	}
}
