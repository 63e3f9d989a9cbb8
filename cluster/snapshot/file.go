package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// unfinished comes behind a file's name in those of what is being written to take its place.
const unfinished = ".unfinished-"

// Save puts a snapshot of objects in the place of the file at path, and returns its length in octets. The file has mode
// 0600. After an error, and whatever the program is stopped by, the old file is still there, or the new one is, whole;
// only a file that is not finished may be left beside it (see Tidy).
func Save(path string, h Header, objects iter.Seq[cluster.Object]) (size int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+unfinished+"*")
	if err != nil {
		return 0, err
	}
	if size, err = finish(f, h, objects); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return 0, errors.Join(err, os.Remove(f.Name()))
	}
	return size, syncDir(filepath.Dir(path))
}

// Check says why Save could not put a file at path, as far as that can be told before: that the disk is full just now is
// no reason.
func Check(path string) error {
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+unfinished+"*")
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// finish writes to f, and on to the disk.
func finish(f *os.File, h Header, objects iter.Seq[cluster.Object]) (size int64, err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := write(f, h, objects); err != nil {
		return 0, fmt.Errorf("write %s: %w", f.Name(), err)
	}
	if size, err = f.Seek(0, io.SeekCurrent); err != nil {
		return 0, err
	}
	return size, f.Sync()
}

// syncDir brings a renaming to the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Tidy removes what a program that was stopped while it wrote the file at path has left. Nobody may be writing it.
func Tidy(path string) error {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(path)+unfinished) {
			if err := os.Remove(filepath.Join(filepath.Dir(path), e.Name())); !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// Load hands what is in the file at path to sink, as one listing of each kind whose changes have no time of arrival. It
// returns the length of the file in octets. Whether the file is good shows at its end: after an error nothing is Synced,
// and what has been applied is worth nothing. An error that is ErrDamaged, ErrVersion or ErrForeign says why a file that
// is there is of no use.
func Load(ctx context.Context, path, key string, sink cluster.Sink) (h Header, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return h, 0, err
	}
	defer f.Close()
	ends := func(op cluster.Op) {
		for k := range cluster.NumKinds {
			if h.Kinds.Has(k) {
				sink.Apply(cluster.Change{Op: op, Kind: k})
			}
		}
	}
	err = read(&stoppable{ctx, f}, func(got Header) error {
		if got.Key != key {
			return fmt.Errorf("%w: of (%s), not of (%s)", ErrForeign, got.Key, key)
		}
		h = got
		ends(cluster.Replace)
		return nil
	}, func(o cluster.Object) { sink.Apply(cluster.Upserted(o, time.Time{})) })
	if err == nil {
		size, err = f.Seek(0, io.SeekCurrent)
	}
	if err != nil {
		return h, 0, fmt.Errorf("%s: %w", path, err)
	}
	ends(cluster.Synced)
	return h, size, nil
}

// stoppable is a reader that fails once ctx has ended.
type stoppable struct {
	ctx context.Context
	r   io.Reader
}

func (s *stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}
