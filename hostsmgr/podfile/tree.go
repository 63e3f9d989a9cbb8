package podfile

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// Mode is what the kubelet gives a pod's hosts file.
	Mode = 0o644
	name = "etc-hosts"
)

// Why a file is left alone. A symlink is told by unix.ELOOP, another file system by unix.EXDEV, a lease by unix.EAGAIN.
var (
	ErrNotRegular = errors.New("not a regular file")
	ErrLinked     = errors.New("it has another name, a hard link: what is written to it would be written there, too")
	ErrMoved      = errors.New("it was removed or replaced just now")
)

// Path returns where the kubelet keeps a pod's hosts file, by its root directory. Tree opens it.
func Path(kubeletDir, uid string) string { return filepath.Join(kubeletDir, "pods", uid, name) }

// UID returns whose hosts file path is, in the sense of Path; ok is false if it is nobody's.
func UID(kubeletDir, path string) (uid string, ok bool) {
	rest, ok := strings.CutPrefix(path, filepath.Join(kubeletDir, "pods")+"/")
	if !ok {
		return "", false
	}
	uid, ok = strings.CutSuffix(rest, "/"+name)
	return uid, ok && ValidUID(uid)
}

// ValidUID reports whether uid is one element of a path: a UUID or, for pods of files, a hash.
func ValidUID(uid string) bool {
	outside := func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_'
	}
	return uid != "" && len(uid) <= 253 && !strings.ContainsFunc(uid, outside)
}

// Tree is the kubelet's directory of pods. Everything below may be in the hands of somebody hostile: no path in it is
// followed but by Open.
type Tree struct {
	fd   int
	path string
}

// OpenTree opens the directory that path, absolute, leads to: the kubelet's root directory and "pods". It fails with
// fs.ErrNotExist as long as the kubelet has not made it.
func OpenTree(path string) (*Tree, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	t := &Tree{fd: fd, path: path}
	probe, err := beneath(fd, ".", unix.O_PATH)
	if err != nil {
		t.Close()
		return nil, fmt.Errorf("openat2(2), which is in Linux 5.6 and later, is not to be had here: %w", err)
	}
	unix.Close(probe)
	return t, nil
}

// Close closes the directory.
func (t *Tree) Close() { unix.Close(t.fd) }

// Gone says that the directory has been deleted since.
func (t *Tree) Gone() bool {
	f := File{fd: t.fd}
	return f.stat() == nil && f.st.Nlink == 0
}

// Path returns what OpenTree was given; Dir and File those of a pod's directory and file, to be shown or watched, but not opened.
func (t *Tree) Path() string           { return t.path }
func (t *Tree) Dir(uid string) string  { return t.path + "/" + uid }
func (t *Tree) File(uid string) string { return t.Dir(uid) + "/" + name }

// Open opens the hosts file of a pod, for reading (unix.O_RDONLY), or for writing as well (unix.O_RDWR). Without having opened it before, it makes sure that
// it is a regular file of one name: to open a device does something, to open a FIFO may wait for somebody. Nor does it wait
// for the holder of a lease (F_SETLEASE), but fails with EAGAIN while the kernel takes it away.
func (t *Tree) Open(uid string, flags int) (f *File, err error) {
	if !ValidUID(uid) {
		return nil, fmt.Errorf("%.100q is not the UID of a pod", uid)
	}
	for range 3 { // the kubelet removes files, too, and that is no failure
		if f, err = t.open(uid, flags); !errors.Is(err, ErrMoved) {
			break
		}
	}
	return f, err
}

func (t *Tree) open(uid string, flags int) (*File, error) {
	dir, err := beneath(t.fd, uid, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	found, err := beneath(dir, name, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer unix.Close(found)
	f := &File{fd: found}
	if err := f.stat(); err != nil {
		return nil, err
	}
	switch {
	case f.st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, ErrNotRegular
	case f.st.Nlink > 1:
		return nil, ErrLinked
	}
	if err := t.inPlace(uid, dir, found); err != nil {
		return nil, err
	}
	f.fd, err = open(procPath(found), flags)
	return f, err
}

// inPlace makes sure that what has been found still is the file of a pod. If it is, then it has been all the time, and the
// number of links that was read is one that counts this name: a link to a file of somebody else's that is removed between
// the opening and the counting would pass for a file of one name. Whoever removes a name holds the lock of the directory
// until the kernel's entry for it is dead, and so reading the directory waits for one who has got as far as the counter.
func (t *Tree) inPlace(uid string, dir, found int) error {
	var entries [512]byte
	err := uninterrupted(func() error {
		_, err := unix.Getdents(dir, entries[:])
		return err
	})
	if err != nil {
		return err
	}
	root, err := pathOf(t.fd)
	if err != nil {
		return err
	}
	path, err := pathOf(found)
	if err == nil && path != root+"/"+uid+"/"+name { // " (deleted)" behind it, or elsewhere
		err = ErrMoved
	}
	return err
}

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// pathOf returns where the file is that fd was opened as, by the kernel's entry (dentry) for it.
func pathOf(fd int) (string, error) {
	var buf [unix.PathMax]byte
	n, err := unix.Readlink(procPath(fd), buf[:])
	return string(buf[:max(0, n)]), err
}

// beneath opens path below dir. No link is followed, nor does it leave the file system that the kubelet's directory is on: one
// that hangs would hang us.
func beneath(dir int, path string, flags uint64) (fd int, err error) {
	how := unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS |
			unix.RESOLVE_NO_XDEV,
	}
	err = uninterrupted(func() error {
		fd, err = unix.Openat2(dir, path, &how)
		return err
	})
	return fd, err
}
