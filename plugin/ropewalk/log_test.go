package ropewalk

import (
	"bytes"
	"errors"
	golog "log"
	"log/slog"
	"testing"

	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/google/go-cmp/cmp"
)

// TestLog holds that what the packages behind the plugin log is in CoreDNS's log, in CoreDNS's form.
func TestLog(t *testing.T) {
	var b bytes.Buffer
	writer, flags := golog.Writer(), golog.Flags()
	t.Cleanup(func() {
		golog.SetOutput(writer)
		golog.SetFlags(flags)
	})
	golog.SetOutput(&b)
	golog.SetFlags(0)

	l := logger().With("dir", "/m")
	l.Debug("not said")
	l.Info("read", "files", 3)
	l.Warn("odd")
	l.Log(t.Context(), slog.LevelError, "bad", "err", errors.New("no such file"))
	clog.D.Set()
	defer clog.D.Clear()
	l.Debug("said")

	want := `[INFO] plugin/ropewalk: read dir=/m files=3
[WARNING] plugin/ropewalk: odd dir=/m
[ERROR] plugin/ropewalk: bad dir=/m err=no such file
[DEBUG] plugin/ropewalk: said dir=/m
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
}
