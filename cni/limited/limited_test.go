package limited

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	read := func(want string) {
		t.Helper()
		if got, err := Read(dir); got != want || err != nil {
			t.Errorf("%.100q, %v", got, err)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	read("")
	do(Clear(dir))
	do(Write(dir, "one\ntwo\n\tthree"))
	read("one two three")
	do(Write(dir, strings.Repeat("ä", longest)))
	if got, err := Read(dir); err != nil || !utf8.ValidString(got) || len(got) < longest-utf8.UTFMax || len(got) > longest {
		t.Errorf("%d bytes of a long text, %v", len(got), err)
	}
	long := time.Now().Add(-Stale - time.Minute)
	do(os.Chtimes(filepath.Join(dir, fileName), long, long))
	read("")
	do(Write(dir, "again"))
	read("again")
	do(os.WriteFile(filepath.Join(dir, fileName), make([]byte, 1<<20), 0o644)) // not by Write
	if got, err := Read(dir); err != nil || len(got) > longest {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	do(Clear(dir))
	read("")
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v are left, %v", left, err)
	}
}
