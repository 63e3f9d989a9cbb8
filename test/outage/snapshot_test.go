package outage

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ropewalk-net/ropewalk/test/coredns"
	"github.com/ropewalk-net/ropewalk/test/netns"
	"github.com/ropewalk-net/ropewalk/test/standin"
)

func shop() []runtime.Object {
	return []runtime.Object{
		namespace("shop"), service("web", "10.96.0.1"), service("gone", "10.96.0.9"), service("db", "None"),
		endpoints("db", "10.244.0.1", "10.244.0.2"),
	}
}

// written waits until a snapshot is in the file that serve was given, and returns it.
func written(t *testing.T, path string) []byte {
	t.Helper()
	eventually(t, "a snapshot", func() bool {
		_, err := os.Stat(path)
		return err == nil
	})
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestStartWithoutAPI starts a server while the API server is away, and brings back another state.
func TestStartWithoutAPI(t *testing.T) {
	coredns.Binary(t)
	if !netns.Enter(t) {
		return
	}
	path := filepath.Join(t.TempDir(), "cluster.snapshot")
	series := func(name string) float64 {
		return metric(fmt.Sprintf("coredns_ropewalk_snapshot_%s{file=%q}", name, path))
	}
	api := standin.New(t)
	api.Apply(shop()...)
	s := serve(t, api, "snapshot "+path)
	eventually(t, "in touch", func() bool { return ask("web") == "10.96.0.1" && age() == 0 })
	written(t, path)
	eventually(t, "the metrics tell of the snapshot", func() bool { return series("timestamp_seconds") > 0 })
	if size, errors := series("size_bytes"), series("errors_total"); size < 100 || errors != 0 {
		t.Errorf("%v octets, %v errors", size, errors)
	}
	// A change that is too young to have been written is written at the end.
	api.Apply(service("late", "10.96.0.7"))
	eventually(t, "the change is served", func() bool { return ask("late") == "10.96.0.7" })
	stop(t, s, syscall.SIGTERM)

	api.Down()
	s = serve(t, api, "snapshot "+path, "startup_timeout 1h")
	eventually(t, "the snapshot is served", func() bool { return ask("web") == "10.96.0.1" })
	expect(t, "gone", "10.96.0.9")
	expect(t, "late", "10.96.0.7")
	expect(t, "db", "10.244.0.1 10.244.0.2")
	expect(t, "none", "NXDOMAIN")
	if code, body := get(ready); code != http.StatusOK {
		t.Errorf("ready says %d %s", code, body)
	}
	eventually(t, "sync_age_seconds tells", func() bool { return age() > 0 })
	if l := s.Log(); lines(l, "[WARNING]", "serving what is in the snapshot "+path) != 1 {
		t.Errorf("the log does not say, once, that a snapshot is served")
	}

	api.Reset(namespace("shop"), service("web", "10.96.0.2"), service("db", "None"), endpoints("db", "10.244.0.3"))
	api.Up()
	took := eventually(t, "the new state is served", func() bool {
		return ask("web") == "10.96.0.2" && ask("gone") == "NXDOMAIN" && ask("late") == "NXDOMAIN" && ask("db") == "10.244.0.3"
	})
	t.Logf("served %v after the API server came", took.Round(time.Millisecond))
	eventually(t, "in touch", func() bool { return age() == 0 })
	stop(t, s, syscall.SIGTERM)

	// With the API there from the start, its state is the first that is served.
	api.Apply(service("web", "10.96.0.3"))
	s = serve(t, api, "snapshot "+path, "startup_timeout 1h")
	eventually(t, "an answer", func() bool { return ask("web") != "nothing" })
	expect(t, "web", "10.96.0.3")
	if l := s.Log(); strings.Contains(l, "serving what is in the snapshot") {
		t.Error("the snapshot is served, though the API server is there")
	}
}

// TestUselessSnapshot starts a server without an API server and with a file that is of no use.
func TestUselessSnapshot(t *testing.T) {
	coredns.Binary(t)
	if !netns.Enter(t) {
		return
	}
	path := filepath.Join(t.TempDir(), "cluster.snapshot")
	api := standin.New(t)
	api.Apply(shop()...)
	s := serve(t, api, "snapshot "+path)
	raw := written(t, path)
	stop(t, s, syscall.SIGTERM)
	api.Down()
	for name, c := range map[string]struct {
		raw    []byte
		option string
		says   string
	}{
		"damaged":       {bytes.Replace(raw, []byte("web"), []byte("wed"), 1), "", "damaged"},
		"other options": {raw, "zonal", "of something else"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, c.raw, 0o600); err != nil {
				t.Fatal(err)
			}
			s := serve(t, api, "snapshot "+path, "startup_timeout 100ms", c.option)
			eventually(t, "an answer", func() bool { return ask("web") != "nothing" })
			expect(t, "web", "SERVFAIL")
			if code, _ := get(ready); code != http.StatusServiceUnavailable {
				t.Errorf("ready says %d", code)
			}
			if n := metric(fmt.Sprintf("coredns_ropewalk_snapshot_errors_total{file=%q}", path)); n != 1 {
				t.Errorf("%v errors", n)
			}
			if lines(s.Log(), "starting without the snapshot", c.says) != 1 {
				t.Errorf("the log does not say %q", c.says)
			}
			stop(t, s, syscall.SIGTERM)
			if now, _ := os.ReadFile(path); !bytes.Equal(now, c.raw) {
				t.Error("the file has been touched")
			}
		})
	}
}

// TestDiskFull: a server whose disk is full goes on, says so, and keeps the old snapshot.
func TestDiskFull(t *testing.T) {
	coredns.Binary(t)
	if !netns.Enter(t) {
		return
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "cluster.snapshot")
	api := standin.New(t)
	api.Apply(shop()...)
	s := serve(t, api, "snapshot "+path)
	written(t, path)
	stop(t, s, syscall.SIGTERM)
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		api.Apply(service(fmt.Sprintf("service-%d", i), fmt.Sprintf("10.97.%d.%d", i/250, 1+i%250)))
	}
	s = serve(t, api, "snapshot "+path)
	eventually(t, "the failure is counted", func() bool {
		return metric(fmt.Sprintf("coredns_ropewalk_snapshot_errors_total{file=%q}", path)) == 1
	})
	expect(t, "service-1999", "10.97.7.250")
	stop(t, s, syscall.SIGTERM)
	if n := lines(s.Log(), "the snapshot cannot be written", "no space left"); n != 1 {
		t.Errorf("%d lines tell that the disk is full", n)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, old) {
		t.Error("the old snapshot is gone")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
}

// TestKilledWhileWriting kills the server, again and again, while it writes: what is in the file is whole.
func TestKilledWhileWriting(t *testing.T) {
	coredns.Binary(t)
	if !netns.Enter(t) {
		return
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "cluster.snapshot")
	unfinished := func() []string {
		found, _ := filepath.Glob(path + ".unfinished-*")
		return found
	}
	api := standin.New(t)
	api.Apply(shop()...)
	for i := range 10_000 {
		api.Apply(service(fmt.Sprintf("service-%d", i), fmt.Sprintf("10.97.%d.%d", i/250, 1+i%250)))
	}
	caught := 0
	for round := range 10 {
		api.Apply(service("web", fmt.Sprintf("10.96.1.%d", round)))
		s := serve(t, api, "snapshot "+path)
		was, _ := os.Stat(path)
		eventually(t, "it is being written", func() bool {
			now, err := os.Stat(path)
			return len(unfinished()) > 0 || err == nil && (was == nil || !os.SameFile(was, now))
		})
		time.Sleep(rand.N(8 * time.Millisecond)) // somewhere within; nothing depends on where
		stop(t, s, syscall.SIGKILL)
		left := unfinished()
		caught += len(left)
		if len(left) > 1 {
			t.Errorf("left: %q", left)
		}
		raw, err := os.ReadFile(path)
		if was == nil && os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(raw[:max(0, len(raw)-sha256.Size)]); !bytes.HasSuffix(raw, sum[:]) {
			t.Fatalf("round %d: %d octets without their checksum", round, len(raw))
		}
	}
	t.Logf("killed while a file was unfinished: %d times of 10", caught)
	s := serve(t, api, "snapshot "+path)
	eventually(t, "an answer", func() bool { return ask("web") == "10.96.1.9" })
	eventually(t, "nothing is unfinished", func() bool { return len(unfinished()) == 0 })
	if strings.Contains(s.Log(), "starting without the snapshot") {
		t.Error("the snapshot is of no use")
	}
}
