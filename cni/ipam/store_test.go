package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
)

var (
	slash24 = netip.MustParsePrefix("10.244.1.0/24")
	slash64 = netip.MustParsePrefix("fd00:244:0:1::/64")
	dual    = []Pool{{Whole(slash24)}, {Whole(slash64)}}
	same    = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
)

// childVariable has a child process of a test allocate: a directory, the first container's number, and how many.
const childVariable = "ROPEWALK_TEST_IPAM"

func TestMain(m *testing.M) {
	if spec := os.Getenv(childVariable); spec != "" {
		if err := child(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child opens, allocates and closes for one container after the other, releases every other of them, and prints what it was told.
func child(spec string) error {
	var dir string
	var from, n int
	if _, err := fmt.Sscanf(spec, "%d %d %s", &from, &n, &dir); err != nil {
		return err
	}
	for i := from; i < from+n; i++ {
		l, err := once(dir, owner(i))
		if err != nil {
			return err
		}
		fmt.Println("+", i, l.Addrs[0])
		if n == 1 || i%2 == 0 {
			continue
		}
		s, err := Open(dir)
		if err == nil {
			_, err = s.Release(owner(i).Container, owner(i).Interface)
			err = errors.Join(err, s.Close())
		}
		if err != nil {
			return err
		}
		fmt.Println("-", i, l.Addrs[0])
	}
	return nil
}

func once(dir string, o Owner) (Lease, error) {
	s, err := Open(dir)
	if err != nil {
		return Lease{}, err
	}
	l, err := s.Allocate(o, dual, nil)
	return l, errors.Join(err, s.Close())
}

func command(dir string, from, n int) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %s", childVariable, from, n, dir))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// memory is a directory in memory, as /run is.
func memory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ropewalk")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "leases")
}

func owner(i int) Owner {
	return Owner{Container: fmt.Sprintf("container%d", i), Interface: "eth0", Netns: fmt.Sprintf("/run/netns/%d", i), Pod: fmt.Sprintf("default/pod%d", i)}
}

// clocked is a store with a clock that the test sets.
func clocked(t *testing.T, dir string) (*Store, *time.Duration) {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	now := new(time.Duration)
	*now = time.Hour
	s.boot = func() time.Duration { return *now }
	s.wall = func() time.Time { return time.Unix(1e9, 0).Add(*now) }
	return s, now
}

func allocate(t *testing.T, s *Store, i int, ranges []Pool, static ...netip.Addr) string {
	t.Helper()
	l, err := s.Allocate(owner(i), ranges, static)
	if err != nil {
		t.Fatal(err)
	}
	return l.Addrs[0].String()
}

func drop(t *testing.T, s *Store, i int) {
	t.Helper()
	if _, err := s.Release(owner(i).Container, "eth0"); err != nil {
		t.Fatal(err)
	}
}

func TestLease(t *testing.T) {
	dir := memory(t)
	s, _ := clocked(t, dir)
	want := Lease{Owner: owner(1), Addrs: addrs("10.244.1.2", "fd00:244:0:1::2"), Since: s.wall().UTC()}
	got, err := s.Allocate(owner(1), dual, nil)
	if d := cmp.Diff(want, got, same); d != "" || err != nil {
		t.Fatal(d, err)
	}
	if _, err := s.Allocate(Owner{Container: "container1", Interface: "eth0"}, dual, nil); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if _, err := s.Allocate(owner(2), dual, want.Addrs[:1]); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "10.244.1.2") {
		t.Error(err)
	}
	for _, o := range []Owner{{}, {Container: "a"}, {Interface: "a"}, {Container: "a\x00b", Interface: "c"}, {Container: "a", Interface: "\xff"},
		{Container: strings.Repeat("a", maxName+1), Interface: "a"}} {
		if _, err := s.Allocate(o, dual, nil); err == nil {
			t.Errorf("a lease for %q", o)
		}
	}
	second := owner(1)
	second.Interface = "eth1"
	if _, err := s.Allocate(second, dual, addrs("fd00:244:0:1::99")); err != nil {
		t.Error(err)
	}
	// Another process reads the same.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ = clocked(t, dir)
	if list, err := s.List(); err != nil || len(list) != 2 || !cmp.Equal(list[0], want, same) || list[1].Addrs[1].String() != "fd00:244:0:1::99" {
		t.Error(list, err)
	}
	if got, there, err := s.Get("container1", "eth0"); !there || err != nil || !cmp.Equal(got, want, same) {
		t.Error(got, there, err)
	}
	for _, want := range [][]netip.Addr{want.Addrs, nil} {
		if got, err := s.Release("container1", "eth0"); err != nil || !cmp.Equal(got, want, same) {
			t.Error(got, err)
		}
	}
	if _, there, err := s.Get("container1", "eth0"); there || err != nil {
		t.Error(there, err)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o755, filepath.Join(dir, fileName): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
	}
}

// TestRest holds that an address is left alone for 30 s, if there is another one, and what clocks do to that.
func TestRest(t *testing.T) {
	s, now := clocked(t, memory(t))
	small := pools("10.0.0.0/29") // .2 to .6
	for i := 2; i <= 6; i++ {
		if got, want := allocate(t, s, i, small), fmt.Sprintf("10.0.0.%d", i); got != want {
			t.Fatalf("%s instead of %s", got, want)
		}
	}
	drop(t, s, 4)
	*now += 20 * time.Second
	drop(t, s, 2)
	drop(t, s, 3)
	*now += rest - 20*time.Second - 1
	if got := allocate(t, s, 10, small); got != "10.0.0.4" { // released first, and no other
		t.Errorf("%s, that has not rested longest", got)
	}
	*now += 20*time.Second - 1
	if got := allocate(t, s, 11, small, netip.MustParseAddr("10.0.0.3")); got != "10.0.0.3" { // asked for
		t.Error(got)
	}
	*now += 2
	if got := allocate(t, s, 12, small); got != "10.0.0.2" {
		t.Error(got)
	}
	var e *ExhaustedError
	if _, err := s.Allocate(owner(13), small, nil); !errors.As(err, &e) || e.InUse != 5 || e.Oldest.Pod != "default/pod5" {
		t.Error(err)
	}
	// Released in what is the future by now.
	drop(t, s, 5)
	drop(t, s, 6)
	*now = time.Second
	if got := allocate(t, s, 14, small); got != "10.0.0.5" {
		t.Error(got)
	}
	drop(t, s, 10) // .4, which has begun to rest
	if got := allocate(t, s, 15, small); got != "10.0.0.6" {
		t.Error(got)
	}
	// Asked for while it rests, and released again: it rests from then on.
	allocate(t, s, 16, small, netip.MustParseAddr("10.0.0.4"))
	*now += rest - time.Second
	drop(t, s, 15) // .6
	*now++
	drop(t, s, 16) // .4
	*now += 2 * time.Second
	if got := allocate(t, s, 17, small); got != "10.0.0.6" {
		t.Error(got)
	}
	sound(t, s)
}

func TestExhaustion(t *testing.T) {
	s, now := clocked(t, memory(t))
	ranges := []Pool{{Whole(slash64)}, {Whole(slash24)}}
	for i := range 253 {
		allocate(t, s, i, ranges)
		*now += time.Second
	}
	_, err := s.Allocate(owner(999), ranges, nil)
	const want = `range 10.244.1.0/24 is exhausted: 253 addresses in use, the oldest since 2001-09-09T02:46:40Z by pod "default/pod0" (container container0, interface eth0)`
	if err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v", err)
	}
	if l, err := s.Allocate(owner(999), ranges[:1], nil); err != nil || l.Addrs[0].String() != "fd00:244:0:1::ff" { // not one further: nothing has changed
		t.Error(l, err)
	}
	drop(t, s, 77)
	if got := allocate(t, s, 1000, ranges[1:]); got != "10.244.1.79" {
		t.Error(got)
	}
}

// TestSize holds that pages, and records of addresses that have rested, are used again.
func TestSize(t *testing.T) {
	dir := memory(t)
	s, now := clocked(t, dir)
	const atOnce = 110
	for i := range 3000 {
		allocate(t, s, i, dual)
		if i >= atOnce {
			drop(t, s, i-atOnce)
		}
		*now += 2 * time.Second
	}
	if info, err := os.Stat(filepath.Join(dir, fileName)); err != nil || info.Size() > 256<<10 {
		t.Errorf("%d bytes %v", info.Size(), err)
	}
	if n := sound(t, s); n > 40 {
		t.Errorf("%d rest", n)
	}
}

// sound holds the buckets against each other, and returns how many addresses rest.
func sound(t *testing.T, s *Store) (n int) {
	t.Helper()
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	inUse := 0
	for _, l := range list {
		inUse += len(l.Addrs)
	}
	err = s.db.View(func(b *bbolt.Tx) error {
		if n := b.Bucket(addrsBucket).Stats().KeyN; n != inUse {
			t.Errorf("%d addresses are taken, %d are of leases", n, inUse)
		}
		n = b.Bucket(restBucket).Stats().KeyN
		if q := b.Bucket(queueBucket).Stats().KeyN; q != n {
			t.Errorf("%d rest, %d are in the queue", n, q)
		}
		for err := range b.Check() {
			t.Error(err)
		}
		return b.Bucket(restBucket).ForEach(func(a, when []byte) error {
			if b.Bucket(queueBucket).Get(append(bytes.Clone(when), a...)) == nil || b.Bucket(addrsBucket).Get(a) != nil {
				t.Errorf("%x rests, and is taken or not in the queue", a)
			}
			return nil
		})
	})
	if err != nil {
		t.Error(err)
	}
	return n
}

// TestProcesses has 200 processes allocate at once.
func TestProcesses(t *testing.T) {
	dir := memory(t)
	var mu sync.Mutex
	seen := map[string]bool{}
	var group sync.WaitGroup
	for i := range 200 {
		group.Go(func() {
			out, err := command(dir, i, 1).CombinedOutput()
			mu.Lock()
			defer mu.Unlock()
			if f := strings.Fields(string(out)); err != nil || len(f) != 3 || seen[f[2]] {
				t.Errorf("%s %v", out, err)
			} else {
				seen[f[2]] = true
			}
		})
	}
	group.Wait()
	s, _ := clocked(t, dir)
	if list, err := s.List(); err != nil || len(list) != 200 {
		t.Error(len(list), err)
	}
}

// TestKill kills a process again and again. What it was told to have done is done, what it did is whole.
func TestKill(t *testing.T) {
	dir := memory(t)
	const each = 1000
	for round := range 40 {
		if round%4 == 0 { // the file is made in this time, too
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
		cmd := command(dir, round*each, each)
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond) // any moment is as good as another
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		check(t, dir, out.String())
	}
}

// check holds the file against what a child has printed.
func check(t *testing.T, dir, out string) {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	owners := map[string]string{}
	for _, l := range list {
		for _, a := range l.Addrs {
			if owners[a.String()] != "" {
				t.Fatalf("%v is of two", a)
			}
			owners[a.String()] = l.Container
		}
	}
	lines := strings.Split(out, "\n") // the last one is not whole
	told := map[string]string{}
	var last string
	for _, line := range lines[:len(lines)-1] {
		f := strings.Fields(line)
		last = "container" + f[1]
		if told[last] = f[2]; f[0] == "-" {
			delete(told, last)
		}
	}
	for container, a := range told {
		// The release of the last one may be done, and not printed.
		if owners[a] != container && (container != last || owners[a] != "") {
			t.Errorf("%s has %s, which is of %q", container, a, owners[a])
		}
	}
	sound(t, s)
}

func TestBusy(t *testing.T) {
	dir := memory(t)
	s, _ := clocked(t, dir)
	if _, err := open(dir, time.Millisecond); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	opened := make(chan error)
	go func() {
		s, err := Open(dir)
		if err == nil {
			_, err = s.Allocate(owner(1), dual, nil)
			err = errors.Join(err, s.Close())
		}
		opened <- err
	}()
	for waiting := fmt.Sprintf("-> FLOCK  ADVISORY  WRITE %d ", os.Getpid()); ; {
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(locks), waiting) {
			break
		}
	}
	// Who waits for a file that is removed gets the one that is there after it.
	if err := os.Rename(filepath.Join(dir, fileName), filepath.Join(dir, "old")); err != nil {
		t.Fatal(err)
	}
	next, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(next.Close(), s.Close(), <-opened); err != nil {
		t.Error(err)
	}
	s, _ = clocked(t, dir)
	if _, there, err := s.Get(owner(1).Container, "eth0"); err != nil || !there {
		t.Error("the lease went into the file that was removed")
	}
}

// TestDamage holds that a file which is not whole is refused, whatever is wrong with it, and never taken for an empty one.
func TestDamage(t *testing.T) {
	dir := memory(t)
	path := filepath.Join(dir, fileName)
	s, _ := clocked(t, dir)
	for i := range 100 {
		allocate(t, s, i, dual)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(name string, content []byte, want error) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir)
		if err == nil {
			_, err = s.List()
			if e := s.Close(); e != nil {
				t.Errorf("%s: %v", name, e)
			}
		}
		if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), "drain") {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused("empty", nil, ErrDamaged)
	refused("something else", []byte("leases: none\n"), ErrDamaged)
	refused("zeros", make([]byte, len(whole)), ErrDamaged)
	for size := 1; size < 4*pageSize; size = size*2 + 1 {
		refused(fmt.Sprintf("%d bytes", size), whole[:size], ErrDamaged)
	}
	for size := 4 * pageSize; size < len(whole); size += pageSize {
		if err := os.WriteFile(path, whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := open(dir, time.Second)
		if err == nil {
			var list []Lease
			if list, err = s.List(); err == nil && len(list) != 100 { // those cut off may have been free
				t.Errorf("%d bytes: %d leases", size, len(list))
			}
			if e := s.Close(); e != nil {
				t.Errorf("%d bytes: %v", size, e)
			}
		}
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	refused("a record", bytes.ReplaceAll(whole, []byte(`"10.244.1.50"`), []byte(`"10.244.1,50"`)), ErrDamaged)
	refused("a record of another", bytes.ReplaceAll(whole, []byte(`"Container":"container50"`), []byte(`"Container":"container51"`)), ErrDamaged)

	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ = clocked(t, dir)
	if list, err := s.List(); err != nil || len(list) != 100 {
		t.Errorf("the whole one: %d %v", len(list), err)
	}
	err = s.db.Update(func(b *bbolt.Tx) error { return b.Bucket(metaBucket).Put(versionKey, []byte("2")) })
	if err = errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	later, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused("another version", later, ErrVersion)
}

// FuzzDecode holds that what is read back is a lease of its key, and is written as it was read.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("c\x00eth0"), []byte(`{"Container":"c","Interface":"eth0","Addrs":["10.0.0.1","fd00::1"],"Since":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte("c\x00eth0"), []byte(`{"Container":"c","Interface":"eth0","Addrs":["fe80::1%eth0"]}`))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		l, err := decode(key, value)
		if err != nil {
			if !errors.Is(err, errRecord) {
				t.Error(err)
			}
			return
		}
		again, err := encode(l)
		if err != nil {
			t.Fatal(err)
		}
		if l2, err := decode(l.key(), again); err != nil || !l2.Since.Equal(l.Since) || !cmp.Equal(l2.Addrs, l.Addrs, same) || l2.Owner != l.Owner {
			t.Error(l2, l, err)
		}
	})
}

// BenchmarkAllocate is what a process does for a pod: open, allocate, close; and again to release.
func BenchmarkAllocate(b *testing.B) {
	dir := memory(b)
	for i := range 110 {
		if _, err := once(dir, owner(i)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := once(dir, owner(-1)); err != nil {
			b.Fatal(err)
		}
		s, err := Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Release(owner(-1).Container, "eth0"); err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
