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

// Snapshot is a file that has been found whole. Close it.
type Snapshot struct {
	Header
	// Size is its length in octets.
	Size int64
	f    *os.File
}

// Open opens the file at path and reads it through. An error that is ErrDamaged, ErrVersion or ErrForeign says why a
// file that is there is of no use.
func Open(path, key string) (*Snapshot, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{f: f}
	if s.Header, err = read(f, key, func(cluster.Object) {}); err == nil {
		s.Size, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Close closes the file.
func (s *Snapshot) Close() error { return s.f.Close() }

// Deliver hands everything to sink, as one listing of each kind whose changes have no time of arrival. If it ends early,
// because ctx ends or the file is not what it was any more, nothing is Synced.
func (s *Snapshot) Deliver(ctx context.Context, sink cluster.Sink) error {
	if _, err := s.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	s.end(sink, cluster.Replace)
	_, err := read(&stoppable{ctx, s.f}, s.Key, func(o cluster.Object) { sink.Apply(cluster.Upserted(o, time.Time{})) })
	if err != nil {
		return err
	}
	s.end(sink, cluster.Synced)
	return nil
}

// end applies op, which is one of the ends of a listing, to all kinds.
func (s *Snapshot) end(sink cluster.Sink, op cluster.Op) {
	for k := range cluster.NumKinds {
		if s.Kinds.Has(k) {
			sink.Apply(cluster.Change{Op: op, Kind: k})
		}
	}
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
