package ipam

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

const (
	fileName = "ipam.db"
	// pageSize is the same everywhere, so that files of a machine with larger pages are no larger.
	pageSize = 4096
	// patience is how long Open waits for others. Each of them takes about a millisecond.
	patience = 10 * time.Second
)

var (
	// ErrBusy says that other processes had the file for all of the time that Open waits.
	ErrBusy = errors.New("leases are in use by other processes")
	// ErrDamaged says that the file does not hold leases, or not all of them.
	ErrDamaged = errors.New("file of leases is damaged")
	// ErrVersion says that another version of the program has written the file.
	ErrVersion = errors.New("file of leases is of another version")
)

const remedy = "either drain the node, remove the file and let its pods start again; or move it away and allocate to the running pods " +
	"the addresses that libcni has noted in /var/lib/cni/results, which are those of the routes to their interfaces (ip -d route, ip -6 route)"

// refuse makes an error that says what to do about a file.
func refuse(sentinel error, path string, why any) error {
	return fmt.Errorf("%w: %s: %v: %s", sentinel, path, why, remedy)
}

// openDB opens the file, which it makes if there is none, together with its directory, and waits so long for others.
func openDB(dir string, wait time.Duration) (*bbolt.DB, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fileName)
	f, err := openLocked(path, time.Now().Add(wait))
	if err != nil {
		return nil, err
	}
	var db *bbolt.DB
	err = guard(path, func() error {
		if info, err := f.Stat(); err != nil || info.Size() < 4*pageSize { // as many as create makes
			return errors.Join(bolterrors.ErrInvalid, err) // of an empty one, bbolt would make a new one
		}
		db, err = openBolt(f)
		if err == nil {
			err = db.View(checkVersion)
		}
		return err
	})
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, ErrVersion):
		err = refuse(ErrVersion, path, err)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum):
		err = refuse(ErrDamaged, path, err)
	}
	release(f)
	return nil, err
}

func openBolt(f *os.File) (*bbolt.DB, error) {
	return bbolt.Open(f.Name(), 0o600, &bbolt.Options{
		PageSize:     pageSize,
		NoStatistics: true,
		FreelistType: bbolt.FreelistMapType,
		// A file that is locked already: bbolt itself would try every 50 ms.
		OpenFile: func(string, int, os.FileMode) (*os.File, error) { return f, nil },
	})
}

// openLocked opens the file for this process alone.
func openLocked(path string, deadline time.Time) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			if err := create(path); err != nil {
				return nil, fmt.Errorf("making %s: %w", path, err)
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := lock(f, time.Until(deadline)); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		there, err := os.Stat(path)
		mine, err2 := f.Stat()
		if err == nil && err2 == nil && os.SameFile(there, mine) {
			return f, nil
		}
		release(f) // somebody removed it while we waited
	}
}

// create makes a file without leases. It gets its name when it is whole, if there is no other by then.
func create(path string) error {
	fd, err := unix.Open(filepath.Dir(path), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), path)
	db, err := openBolt(f)
	if err != nil {
		_ = f.Close()
		return err
	}
	defer func() { _ = db.Close() }()
	if err := db.Update(prepare); err != nil {
		return err
	}
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// lock takes the file's lock, or closes it. The kernel wakes those who wait as soon as there is a chance; it knows no time-out.
func lock(f *os.File, wait time.Duration) error {
	fd := int(f.Fd())
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
		return nil
	}
	done, gone := make(chan error), make(chan struct{})
	go func() {
		err := unix.Flock(fd, unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(fd, unix.LOCK_EX)
		}
		select {
		case done <- err:
		case <-gone:
			_ = f.Close()
		}
	}()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case err := <-done:
		if err != nil {
			_ = f.Close()
		}
		return err
	case <-timer.C:
		close(gone)
		return ErrBusy
	}
}

// release closes a file whose pages may still be mapped, which keeps its lock.
func release(f *os.File) {
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	_ = f.Close()
}

// guard runs what reads the file. bbolt panics over pages that make no sense, and pages that are not there fault.
func guard(path string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = refuse(ErrDamaged, path, r)
		}
	}()
	return f()
}
