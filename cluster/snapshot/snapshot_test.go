package snapshot

import (
	"bytes"
	stdcmp "cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ropewalk-net/ropewalk/cluster"
)

var update = flag.Bool("update", false, "write testdata/schema anew")

const allKinds = 1<<cluster.NumKinds - 1

var (
	taken  = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	header = Header{Key: "test", Taken: taken, Kinds: allKinds}
	equate = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}
)

// objects has every kind, and every field set to something.
func objects() []cluster.Object {
	os := []cluster.Object{}
	for k := range cluster.NumKinds {
		v := newValue(k)
		if _, ok := v.(*slice); ok {
			v = &cluster.Slice{}
		}
		fill(reflect.ValueOf(v).Elem(), 1)
		os = append(os, v.(cluster.Object))
	}
	return append(os,
		&cluster.Namespace{Name: "not UTF-8: \xff\xfe"},
		&cluster.Slice{Namespace: "a", Name: "b", Endpoints: []cluster.Endpoint{{Addr: netip.MustParseAddr("fd00::1")}, {}}},
		&cluster.Node{Name: "n", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("fd00::/64"), {}}})
}

// fill sets v and all in it to something that is not zero.
func fill(v reflect.Value, n int) {
	switch v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})))
		return
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), 0, 0}), 16)))
		return
	case time.Time:
		v.Set(reflect.ValueOf(taken))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n+i)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n+1)
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"app": "web", "": "x"}))
	case reflect.String:
		v.SetString(fmt.Sprintf("text-%d", n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32, reflect.Int64:
		v.SetInt(-1)
	case reflect.Uint8, reflect.Uint16:
		v.SetUint(uint64(n))
	default:
		panic(v.Type())
	}
}

func encode(t testing.TB, h Header, objects ...cluster.Object) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := write(&b, h, slices.Values(objects)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func decode(raw []byte) (h Header, objects []cluster.Object, err error) {
	err = read(bytes.NewReader(raw), func(got Header) error {
		h = got
		return nil
	}, func(o cluster.Object) { objects = append(objects, o) })
	return h, objects, err
}

func TestReadsWhatWasWritten(t *testing.T) {
	for _, want := range [][]cluster.Object{nil, objects()} {
		h, got, err := decode(encode(t, header, want...))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(header, h); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff(want, got, equate); d != "" {
			t.Error(d)
		}
	}
}

// TestSchema holds that the format has another version when kinds or fields have other names, types or numbers.
func TestSchema(t *testing.T) {
	const path = "testdata/schema"
	got := fmt.Sprintf("version %d\nHeader %s\n", version, schema(reflect.TypeFor[Header]()))
	for k := range cluster.NumKinds {
		got += fmt.Sprintf("%d %s\n", k, schema(reflect.TypeOf(newValue(k)).Elem()))
	}
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("raise version, unless all that is new is left out where it is empty, and write %s anew with -update:\n%s", path, d)
	}
}

func schema(t reflect.Type) string {
	switch {
	case t.Kind() == reflect.Slice:
		return "[]" + schema(t.Elem())
	case t.Kind() == reflect.Pointer:
		return "*" + schema(t.Elem())
	case t.Kind() != reflect.Struct || t.PkgPath() == "net/netip" || t.PkgPath() == "time":
		return t.String()
	}
	var fields []string
	for i := range t.NumField() {
		f := t.Field(i)
		fields = append(fields, strings.TrimSpace(f.Name+" "+schema(f.Type)+" "+stdcmp.Or(f.Tag.Get("cbor"), f.Tag.Get("json"))))
	}
	return t.String() + "{" + strings.Join(fields, ", ") + "}"
}

// TestDamage damages a snapshot in all places: none of them may pass.
func TestDamage(t *testing.T) {
	raw := encode(t, header, objects()...)
	for i := range raw {
		if _, _, err := decode(raw[:i]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut at %d of %d: %v", i, len(raw), err)
		}
		for _, flip := range []byte{1, 0x80, 0xff} {
			bad := bytes.Clone(raw)
			bad[i] ^= flip
			_, _, err := decode(bad)
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
				t.Fatalf("octet %d of %d changed by %#x: %v", i, len(raw), flip, err)
			}
		}
	}
	if _, _, err := decode(append(raw, 0)); !errors.Is(err, ErrDamaged) {
		t.Errorf("something behind it: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	raw := encode(t, header, objects()...)
	services := header
	services.Kinds = cluster.KindsOf(cluster.KindService)
	for _, c := range []struct {
		name string
		raw  []byte
		want error
		says []string
	}{
		{"a newer version", append([]byte("ropewalk snapshot 3\n"), raw[len("ropewalk snapshot 2\n"):]...), ErrVersion, []string{"3", "2"}},
		{"a version of many digits", []byte("ropewalk snapshot 99999999999999999999\n"), ErrDamaged, nil},
		{"a text", []byte("apiVersion: v1\nkind: Service\n"), ErrDamaged, nil},
		{"nothing", nil, ErrDamaged, nil},
		{"an object of a kind that is not all there", encode(t, services, &cluster.Pod{Name: "p"}), ErrDamaged, []string{"Pod"}},
		{"an object without a name", encode(t, header, &cluster.Pod{}), ErrDamaged, []string{"Pod"}},
	} {
		_, _, err := decode(c.raw)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		for _, s := range c.says {
			if err != nil && !strings.Contains(err.Error(), s) {
				t.Errorf("%s: the error does not say %s: %v", c.name, s, err)
			}
		}
	}
	if err := write(io.Discard, Header{Key: strings.Repeat("x", maxRecord)}, slices.Values(objects())); err == nil {
		t.Error("a record that is too long to be read is written")
	}
}

// endLen is the length of what is behind the last object.
const endLen = 4 + sha256.Size

// TestMemory: a length that is only said to be costs nothing.
func TestMemory(t *testing.T) {
	head := encode(t, header)
	head = head[:len(head)-endLen]
	for name, tail := range map[string][]byte{
		"a long record":  binary.BigEndian.AppendUint32(nil, maxRecord),
		"a longer one":   binary.BigEndian.AppendUint32(nil, 1<<32-1),
		"a long array":   {0, 0, 0, 15, 2, 0xa1, 0x69, 'E', 'n', 'd', 'p', 'o', 'i', 'n', 't', 's', 0x9a, 0xff, 0xff},
		"a long string":  {0, 0, 0, 12, 2, 0xa1, 0x64, 'N', 'a', 'm', 'e', 0x7a, 0xff, 0xff, 0xff, 0xff},
		"a deep nesting": append([]byte{0, 0, 0, 101, 2}, bytes.Repeat([]byte{0x81}, 100)...),
	} {
		raw := append(bytes.Clone(head), tail...)
		if _, _, err := decode(raw); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		decode(raw)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: %d octets allocated", name, n)
		}
	}
}

func TestSave(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "dns.snapshot")
	size, err := Save(path, header, slices.Values(objects()))
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Size() != size || st.Mode() != 0o600 {
		t.Errorf("%v %v, want %d octets and mode 0600", st, err, size)
	}
	var got sink
	h, read, err := Load(t.Context(), path, "test", &got)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(header, h); d != "" || read != size {
		t.Errorf("%d octets, %s", read, d)
	}
	var want sink
	for _, op := range []cluster.Op{cluster.Replace, cluster.Synced} {
		for k := range cluster.NumKinds {
			want = append(want, cluster.Change{Op: op, Kind: k})
		}
	}
	for _, o := range objects() {
		want = slices.Insert(want, len(want)-int(cluster.NumKinds), cluster.Upserted(o, time.Time{}))
	}
	if d := cmp.Diff(want, got, equate); d != "" {
		t.Error(d)
	}

	// What cannot be finished leaves the old file, and nothing else.
	endless := &cluster.Namespace{Name: strings.Repeat("x", maxRecord+1)}
	if _, err := Save(path, header, slices.Values([]cluster.Object{endless})); err == nil {
		t.Error("written")
	}
	if _, _, err := Load(t.Context(), path, "test", &got); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
	if _, err := Save(filepath.Join(dir, "none", "x"), header, slices.Values(objects())); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that is not there: %v", err)
	}
}

type sink []cluster.Change

func (s *sink) Apply(c cluster.Change) { *s = append(*s, c) }

// TestLoadEnds: what ends early is not Synced, and what is foreign is not even begun.
func TestLoadEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	size, err := Save(path, header, state(0))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var got counter
	got.each = func() {
		if got.upserts == 100 {
			cancel()
		}
	}
	if _, _, err := Load(ctx, path, "test", &got); !errors.Is(err, context.Canceled) || got.upserts >= stateSize || got.synced > 0 {
		t.Errorf("%v after %d upserts, %d kinds synced", err, got.upserts, got.synced)
	}
	got = counter{}
	_, _, err = Load(t.Context(), path, "other", &got)
	if !errors.Is(err, ErrForeign) || got.begun+got.upserts+got.synced > 0 {
		t.Errorf("%v after %+v", err, got)
	}
	for _, w := range []string{path, "of (test)", "not of (other)"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("no %q in %v", w, err)
		}
	}
	if err := os.Truncate(path, size-1); err != nil {
		t.Fatal(err)
	}
	got = counter{}
	if _, _, err := Load(t.Context(), path, "test", &got); !errors.Is(err, ErrDamaged) || got.synced > 0 {
		t.Errorf("%v, %d kinds synced", err, got.synced)
	}
}

type counter struct {
	begun, upserts, synced int
	each                   func()
}

func (c *counter) Apply(ch cluster.Change) {
	switch ch.Op {
	case cluster.Replace:
		c.begun++
	case cluster.Upsert:
		c.upserts++
		if c.each != nil {
			c.each()
		}
	case cluster.Synced:
		c.synced++
	}
}

const saving = "ROPEWALK_TEST_SAVING"

// TestKilled kills a process that saves one of two snapshots after the other, at any point: one of the two is there.
func TestKilled(t *testing.T) {
	if path := os.Getenv(saving); path != "" {
		for n := uint16(0); ; n++ {
			if _, err := Save(path, header, state(n%2)); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	if _, err := Save(path, header, state(0)); err != nil {
		t.Fatal(err)
	}
	unfinished := 0
	for range 60 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), saving+"="+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		was, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Microsecond) {
			if now, err := os.Stat(path); err != nil || !os.SameFile(was, now) {
				break // it is at it
			}
			if time.Now().After(deadline) {
				t.Fatal("nothing is saved")
			}
		}
		time.Sleep(rand.N(10 * time.Millisecond)) // somewhere within; nothing depends on where
		cmd.Process.Kill()
		cmd.Wait()
		seen := map[uint16]int{}
		if _, _, err := Load(t.Context(), path, header.Key, sinkFunc(func(c cluster.Change) {
			if o, ok := c.Object.(*cluster.Service); ok {
				seen[o.Ports[0].Port]++
			}
		})); err != nil {
			t.Fatal(err)
		}
		if len(seen) != 1 || seen[0]+seen[1] != stateSize {
			t.Errorf("objects by state: %v", seen)
		}
		entries, _ := os.ReadDir(dir)
		unfinished += len(entries) - 1
		if err := Tidy(path); err != nil {
			t.Error(err)
		}
	}
	t.Logf("killed within a file %d times of 60", unfinished)
}

const stateSize = 3000

func state(n uint16) iter.Seq[cluster.Object] {
	return func(yield func(cluster.Object) bool) {
		for i := range stateSize {
			if !yield(&cluster.Service{Namespace: "a", Name: fmt.Sprint("service-", i), Ports: []cluster.ServicePort{{Port: n}}}) {
				return
			}
		}
	}
}

type sinkFunc func(cluster.Change)

func (f sinkFunc) Apply(c cluster.Change) { f(c) }

func TestTidy(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a[b]")
	keep := []string{"a[b]", "a[b].unfinished", "ab.unfinished-1", "other"}
	for _, name := range append([]string{"a[b].unfinished-1", "a[b].unfinished-23"}, keep...) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Tidy(path); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	slices.Sort(keep)
	if d := cmp.Diff(keep, left); d != "" {
		t.Error(d)
	}
}

// FuzzRead holds that whatever is read either is refused or is what has been written: it is written the same again.
func FuzzRead(f *testing.F) {
	whole := encode(f, header, objects()...)
	f.Add(whole, false)
	f.Add(whole[:len(whole)/2], false)
	f.Add(encode(f, header), true)
	f.Add(whole[:len(whole)-endLen], true)
	f.Fuzz(func(t *testing.T, raw []byte, mend bool) {
		if mend {
			raw = sealed(raw)
		}
		h, objects, err := decode(raw)
		if err != nil {
			return
		}
		again, more, err := decode(encode(t, h, objects...))
		if err != nil {
			t.Fatalf("what was read cannot be written and read: %v", err)
		}
		if d := cmp.Diff(objects, more, equate); d != "" || !again.Taken.Equal(h.Taken) || again.Kinds != h.Kinds {
			t.Error(d)
		}
	})
}

// sealed puts the end behind records, so that a fuzzer comes past it.
func sealed(raw []byte) []byte {
	raw = append(bytes.Clone(raw), 0, 0, 0, 0)
	sum := sha256.Sum256(raw)
	return append(raw, sum[:]...)
}
