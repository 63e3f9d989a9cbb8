package manifests

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// Source is a cluster.Source of the files in a directory. Make it with New.
type Source struct {
	dir string
	log *slog.Logger

	// running guards what follows, after New: it is Run's.
	running atomic.Bool
	files   map[string]*file
	cluster *Cluster
	notes   []string
	dirErr  string

	// lost is since when the directory has not been readable and good, nil if it is.
	lost atomic.Pointer[time.Time]
}

var _ cluster.Source = (*Source)(nil)

// file is what is known of one file.
type file struct {
	// info is as of when want was read.
	info fs.FileInfo
	// want is what the file holds, nil if it is gone; have what the cluster is made of. changed says that they differ.
	want, have    []Object
	changed, gone bool
	// err says why want cannot be had, told is what the log has been told of that.
	err  error
	told string
}

// New reads the files of dir. Any that is malformed, unreadable, or at odds with another one is an error that names file
// and line. A nil log is slog.Default.
func New(dir string, log *slog.Logger) (*Source, error) {
	if log == nil {
		log = slog.Default()
	}
	s := &Source{dir: dir, log: log, files: map[string]*file{}}
	err := s.scan(nil)
	for range 20 { // somebody writes: give it a second
		if !errors.Is(err, errBusy) {
			break
		}
		time.Sleep(50 * time.Millisecond)
		err = s.scan(nil)
	}
	if err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	var errs []error
	for _, name := range s.names() {
		errs = append(errs, s.files[name].err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	c, err := Fill(s.objects(s.pending()), nil)
	if err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	s.commit(c, s.pending())
	return s, nil
}

// Age returns 0 while the directory can be read and what it holds is good, else the time since it was found not to be.
func (s *Source) Age() time.Duration {
	if t := s.lost.Load(); t != nil {
		return max(time.Since(*t), 1)
	}
	return 0
}

// Run delivers the values that interest names, and then what changes about them as the files change, until ctx ends. A
// file that goes bad is logged, and counts with what it last held. There is one Run at a time.
func (s *Source) Run(ctx context.Context, interest cluster.Interest, sink cluster.Sink) error {
	selected, err := newSelection(interest)
	if err != nil {
		return fmt.Errorf("manifests: %w", err)
	}
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("manifests: a Source runs once at a time")
	}
	defer s.running.Store(false)

	w := newWatch(s.dir, s.log)
	defer w.close()
	s.refresh(nil) // what happened since New, and before the watch
	view := selected.view(s.cluster)
	for _, c := range listing(view, interest.Kinds, time.Now()) {
		if ctx.Err() != nil {
			return nil
		}
		sink.Apply(c)
	}
	for {
		received, dirty, ok := w.next(ctx, s.stale)
		if !ok {
			return nil
		}
		was := s.cluster
		if s.refresh(dirty) {
			w.again(dirty)
		}
		if s.cluster == was {
			continue
		}
		now := selected.view(s.cluster)
		for _, c := range now.changes(&view, received) {
			if ctx.Err() != nil {
				return nil
			}
			sink.Apply(c)
		}
		view = now
	}
}

// listing returns the steps that deliver all of v.
func listing(v View, kinds cluster.Kinds, received time.Time) []cluster.Change {
	var changes []cluster.Change
	for k := range cluster.NumKinds {
		if !kinds.Has(k) {
			continue
		}
		changes = append(changes, cluster.Change{Op: cluster.Replace, Kind: k, Received: received})
		for _, o := range v.sorted(k) {
			changes = append(changes, cluster.Upserted(o, received))
		}
		changes = append(changes, cluster.Change{Op: cluster.Synced, Kind: k, Received: received})
	}
	return changes
}

// names returns the names of the known files in order.
func (s *Source) names() []string { return slices.Sorted(maps.Keys(s.files)) }

// stale reports whether the directory is not as it was when it was last read, by the looks of its entries.
func (s *Source) stale() bool {
	infos, err := list(s.dir)
	if err != nil {
		return err.Error() != s.dirErr
	}
	if s.dirErr != "" {
		return true
	}
	for name, info := range infos {
		if f := s.files[name]; f == nil || f.gone || !same(f.info, info) {
			return true
		}
	}
	for name, f := range s.files {
		if _, ok := infos[name]; !ok && !f.gone {
			return true
		}
	}
	return false
}

// scan reads the files that look changed, or are named in dirty. The error is of the directory, or errBusy if a file is
// being written, which then counts as not changed yet.
func (s *Source) scan(dirty map[string]bool) error {
	infos, err := list(s.dir)
	if err != nil {
		return err
	}
	busy := false
	for name, info := range infos {
		f := s.files[name]
		if f == nil {
			f = &file{}
			s.files[name] = f
		} else if !f.gone && same(f.info, info) && !dirty[name] && info != nil {
			continue
		}
		if err := s.load(name, f); errors.Is(err, errBusy) {
			busy = true
		}
	}
	for name, f := range s.files {
		if _, ok := infos[name]; !ok && !f.gone {
			*f = file{have: f.have, told: f.told, changed: true, gone: true}
		}
	}
	if busy {
		return errBusy
	}
	return nil
}

// load reads and parses a file.
func (s *Source) load(name string, f *file) error {
	path := filepath.Join(s.dir, name)
	data, info, err := read(path)
	if errors.Is(err, errBusy) {
		return err
	}
	f.info, f.gone, f.err = info, false, err
	if err != nil {
		return nil
	}
	objects, err := Parse(path, data)
	if err != nil {
		f.err = err
		return nil
	}
	for _, o := range objects {
		if o.Value == nil {
			s.log.Debug("manifests: ignored an object of a kind that is not used", "file", path, "line", o.Line, "apiVersion", o.APIVersion, "kind", o.Kind)
		}
	}
	f.want, f.changed = objects, true
	return nil
}

// pending returns the names of the files whose content waits to be applied.
func (s *Source) pending() map[string]bool {
	names := map[string]bool{}
	for name, f := range s.files {
		if f.changed && !unparsed(f) {
			names[name] = true
		}
	}
	return names
}

// unparsed reports whether the file's newest content is not even known. (An error that Fill found leaves want valid.)
func unparsed(f *file) bool { return f.err != nil && !f.conflict() }

// conflict reports whether f's error is that its content does not go with the other files'.
func (f *file) conflict() bool {
	var c *conflict
	return errors.As(f.err, &c)
}

// conflict is an error of a file's content together with that of others.
type conflict struct{ err error }

func (c *conflict) Error() string { return c.err.Error() }
func (c *conflict) Unwrap() error { return c.err }

// objects returns what the cluster is made of if the files named in fresh count with their new content.
func (s *Source) objects(fresh map[string]bool) []Object {
	var all []Object
	for _, name := range s.names() {
		if fresh[name] {
			all = append(all, s.files[name].want...)
		} else {
			all = append(all, s.files[name].have...)
		}
	}
	return all
}

// commit makes c the cluster, which has the new content of the files named in fresh.
func (s *Source) commit(c *Cluster, fresh map[string]bool) {
	for name := range fresh {
		f := s.files[name]
		f.have, f.want, f.changed, f.err = f.want, nil, false, nil
		if f.gone {
			s.report(name, f)
			delete(s.files, name)
		}
	}
	for _, note := range c.Notes {
		if !slices.Contains(s.notes, note) {
			s.log.Info("manifests: " + note)
		}
	}
	s.cluster, s.notes = c, c.Notes
}

// refresh reads what has changed and applies what is good of it. It reports whether a file was being written, so that
// it has to be called again.
func (s *Source) refresh(dirty map[string]bool) (again bool) {
	err := s.scan(dirty)
	again = errors.Is(err, errBusy)
	if err != nil && !again {
		if s.dirErr != err.Error() {
			s.log.Error("manifests: cannot read the directory, its last content stays", "err", err)
		}
		s.dirErr = err.Error()
		s.lose()
		return false
	}
	if s.dirErr != "" {
		s.log.Info("manifests: the directory can be read again", "dir", s.dir)
		s.dirErr = ""
	}
	if fresh := s.pending(); len(fresh) > 0 {
		s.apply(fresh)
	}
	good := true
	for _, name := range s.names() {
		f := s.files[name]
		good = good && f.err == nil
		s.report(name, f)
	}
	if good {
		s.lost.Store(nil)
	} else {
		s.lose()
	}
	return again
}

func (s *Source) lose() {
	now := time.Now()
	s.lost.CompareAndSwap(nil, &now)
}

// report logs what is wrong with a file when that is news, and when it is over.
func (s *Source) report(name string, f *file) {
	path := filepath.Join(s.dir, name)
	switch {
	case f.err == nil && f.told != "" && f.gone:
		s.log.Info("manifests: the bad file is gone", "file", path)
	case f.err == nil && f.told != "":
		s.log.Info("manifests: the file is good again", "file", path)
		f.told = ""
	case f.err != nil && f.err.Error() != f.told:
		f.told = f.err.Error()
		s.log.Error("manifests: the file's last good content stays", "file", path, "err", f.err)
	}
}

// apply makes the cluster of the new content of the files in fresh, without those that do not go with the others.
func (s *Source) apply(fresh map[string]bool) {
	refused := map[string]error{}
	var c *Cluster
	for len(fresh) > 0 {
		var err error
		if c, err = Fill(s.objects(fresh), s.cluster.Assigned); err == nil {
			break
		}
		name := s.culprit(err, fresh)
		refused[name] = &conflict{err}
		delete(fresh, name)
	}
	suspects := slices.Sorted(maps.Keys(refused))
	if len(suspects) == 1 {
		suspects = nil // it has had its try with all others
	}
	for _, name := range suspects { // some may have been refused for another one's fault
		fresh[name] = true
		again, err := Fill(s.objects(fresh), s.cluster.Assigned)
		if err != nil {
			refused[name] = &conflict{err}
			delete(fresh, name)
			continue
		}
		c = again
		delete(refused, name)
	}
	if c != nil {
		s.commit(c, fresh)
	}
	for name, err := range refused {
		s.files[name].err = err
	}
}

// culprit returns the file among fresh that err is to be blamed on: one that it names, else the last by name.
func (s *Source) culprit(err error, fresh map[string]bool) string {
	var e *Error
	if errors.As(err, &e) {
		for _, path := range []string{e.File, e.Other} {
			if name := filepath.Base(path); path != "" && fresh[name] {
				return name
			}
		}
	}
	return slices.Max(slices.Collect(maps.Keys(fresh)))
}
