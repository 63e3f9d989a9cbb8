// Package podfile opens and writes the hosts files of pods, which their containers may write to, too: nothing that a hostile pod puts
// in the place of its file is followed, waited for, or read beyond a limit, and what is written goes to the same inode, without
// ever a moment in which a reader finds less than there was and will be. What belongs in a file, others know.
package podfile

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// DefaultMaxSize is how long a hosts file may get, in bytes, where nobody says otherwise.
const DefaultMaxSize = 1 << 20

// ErrTooLarge says that a file is, or would get, longer than is allowed.
var ErrTooLarge = errors.New("larger than the limit")

// ErrBusy says that somebody else has a file open.
var ErrBusy = fmt.Errorf("somebody has it open: %w", unix.EAGAIN)

// TooLarge returns an error that wraps ErrTooLarge, about a file that would have size bytes.
func TooLarge(size, limit int) error {
	return fmt.Errorf("%w: it would have %d bytes, and %d are allowed", ErrTooLarge, size, limit)
}

// File is an open hosts file.
type File struct {
	fd int
	st unix.Stat_t
}

// Open opens a hosts file that is in nobody's hands but root's, as the node's own, which may be a link to one. flags are those of
// open(2). A file that is made has Mode but for the umask.
func Open(path string, flags int) (*File, error) {
	fd, err := open(path, flags)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := &File{fd: fd}
	if err := f.stat(); err != nil {
		f.Close()
		return nil, err
	}
	if f.st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, ErrNotRegular)
	}
	return f, nil
}

func open(path string, flags int) (fd int, err error) {
	err = uninterrupted(func() error {
		fd, err = unix.Open(path, flags|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, Mode)
		return err
	})
	return fd, err
}

// Close closes the file.
func (f *File) Close() { unix.Close(f.fd) }

// Alone has nobody else have the file open until Close: who opens it waits as long (a lease, fcntl(2)). It is ErrBusy if somebody has it open. Where
// there are no leases, as on some network file systems and on files of others, it is nil without being so.
func (f *File) Alone() error {
	err := uninterrupted(func() error {
		_, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETLEASE, unix.F_WRLCK)
		return err
	})
	if errors.Is(err, unix.EAGAIN) {
		return ErrBusy
	}
	return f.stat() // it may have changed since it was opened
}

// Size returns the file's size in bytes, when it was opened or read last.
func (f *File) Size() int64 { return f.st.Size }

// Mode returns the file's permissions, when it was opened.
func (f *File) Mode() uint32 { return f.st.Mode & 0o7777 }

func (f *File) stat() error { return uninterrupted(func() error { return unix.Fstat(f.fd, &f.st) }) }

// Read returns what the file holds, in buf if there is room. Of one that is larger than limit it returns the first limit bytes
// and ErrTooLarge.
func (f *File) Read(buf []byte, limit int) ([]byte, error) {
	size := int(min(f.st.Size, int64(limit))) + 1 // one more, to see the end
	if cap(buf) < size {
		buf = make([]byte, size)
	}
	buf = buf[:cap(buf)]
	n := 0
	for {
		if n == len(buf) {
			buf = append(buf, make([]byte, min(len(buf), limit+1))...)
		}
		got, err := f.pread(buf[n:], n)
		if err != nil {
			return nil, err
		}
		n += got
		switch {
		case n > limit:
			f.st.Size = max(f.st.Size, int64(n))
			return buf[:limit], ErrTooLarge
		case got == 0:
			f.st.Size = int64(n)
			return buf[:n], nil
		}
	}
}

func (f *File) pread(b []byte, at int) (n int, err error) {
	err = uninterrupted(func() error {
		n, err = unix.Pread(f.fd, b, int64(at))
		return err
	})
	return n, err
}

// WriteAt writes over what the file holds, without Replace's care. It returns how much it has written when it fails.
func (f *File) WriteAt(b []byte, at int) (written int, err error) {
	for written < len(b) {
		var n int
		err = uninterrupted(func() error {
			n, err = unix.Pwrite(f.fd, b[written:], int64(at+written))
			return err
		})
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

// Truncate cuts the file to size bytes.
func (f *File) Truncate(size int) error {
	return uninterrupted(func() error { return unix.Ftruncate(f.fd, int64(size)) })
}

// Chmod gives the file the mode that the kubelet gives it, if it has another.
func (f *File) Chmod() (changed bool, err error) {
	if f.Mode() == Mode {
		return false, nil
	}
	return true, uninterrupted(func() error { return unix.Fchmod(f.fd, Mode) })
}

// Replace puts want in the place of old, which is what Read returned: nil if it is larger than anybody cares for.
// It takes over want's memory.
//
// Who reads the file meanwhile sees the old text, the new, or both mixed byte by byte for as long as the kernel copies the
// difference; the shorter of the two may have empty lines behind it. What old and new begin with alike is not written. The
// file is never empty or shorter than both, so there is always a localhost in it.
//
// If there is no room, the old text stays. If writing fails later than that, as it can on file systems that write nothing in
// place, the old text is put back.
func (f *File) Replace(old, want []byte) (written int, err error) {
	size := len(want)
	holes := f.st.Blocks*512 < f.st.Size
	if int64(size) > f.st.Size || holes {
		if err := f.allocate(size); err != nil {
			return 0, err
		}
	}
	if holes { // no text, and to fill it with empty lines would take room
		old = nil
	}
	from := 0
	if old != nil || f.st.Size == 0 {
		if from = commonPrefix(old, want); from < size { // else it is enough to cut off the rest
			want = pad(want, len(old))
		}
	}
	if written, err = f.WriteAt(want[from:], from); err != nil {
		return 0, errors.Join(err, f.restore(old, from, written))
	}
	if int64(size) < f.st.Size {
		if err := f.Truncate(size); err != nil {
			return 0, err
		}
	}
	return size - from, nil
}

// allocate makes room for size bytes. The text stays as it is, or gets empty lines behind it.
func (f *File) allocate(size int) error {
	err := uninterrupted(func() error { return unix.Fallocate(f.fd, unix.FALLOC_FL_KEEP_SIZE, 0, int64(size)) })
	switch err {
	case nil:
		return nil
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL:
		if int64(size) <= f.st.Size {
			return nil
		}
		_, err = f.WriteAt(pad(nil, size-int(f.st.Size)), int(f.st.Size))
	}
	if err != nil {
		// Some of it may have been allocated.
		err = errors.Join(err, uninterrupted(func() error { return unix.Ftruncate(f.fd, f.st.Size) }))
	}
	return err
}

// restore puts old back where written bytes have been written at from.
func (f *File) restore(old []byte, from, written int) error {
	if old == nil && f.st.Size > 0 {
		return nil
	}
	_, err := f.WriteAt(old[min(from, len(old)):min(from+written, len(old))], from)
	if err = errors.Join(err, f.Truncate(len(old))); err != nil {
		return fmt.Errorf("and the old text could not be put back: %w", err)
	}
	return nil
}

func commonPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// pad appends empty lines to b until it has size bytes.
func pad(b []byte, size int) []byte {
	n := len(b)
	if n >= size {
		return b
	}
	b = append(b, make([]byte, size-n)...)
	for i := range b[n:] {
		b[n+i] = '\n'
	}
	return b
}

// uninterrupted calls f again when a signal came in between; the Go runtime sends itself some.
func uninterrupted(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
