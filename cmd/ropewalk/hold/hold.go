// Package hold has one process at a time do a part of a node's work: two that keep the same rules, routes or files undo each other's work without
// end where their configurations differ. What is held is the thing itself, a network namespace or a folder, and the kernel lets go of it when its
// process ends, however it does, so that nothing that is stale has to be found out, or waited for.
package hold

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeld is wrapped if another process has what is to be held. The text says who, as far as that can be known.
var ErrHeld = errors.New("another process does it already")

// Namespace holds a part of what the network namespace of the calling thread has, by the part's name, until release. me is what others are told
// of the holder.
//
// It is a socket of the abstract namespace (unix(7)), which is the network namespace's own. Anybody may make one there, but who is not root cannot
// do any of the work, and one at which nobody answers is none of ours: such are passed over. What keeps two from fighting is no reason for one not to
// work: if nothing can be held the log is told.
func Namespace(part, me string, log *slog.Logger) (release func(), err error) {
	name := "@ropewalk/" + part
	var who string
	for range tries {
		var l net.Listener
		if l, err = net.Listen("unix", name); err == nil {
			done := make(chan struct{})
			go func() {
				defer close(done)
				tell(l, me)
			}()
			return func() { l.Close(); <-done }, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) { // such sockets may be forbidden, by a unit of systemd, say
			break
		}
		var root bool
		switch who, root, err = ask(name); {
		case err == nil && root:
			return nil, fmt.Errorf("%w: %s", ErrHeld, who)
		case err == nil:
			err = errors.New("it is not root's")
		case errors.Is(err, unix.ECONNREFUSED): // the holder may have ended, or another may be about to begin
			time.Sleep(again)
			continue
		}
		break
	}
	log.Warn("another process that does the same would not be noticed: the socket that tells of it cannot be had", "socket", name, "who", who, "error", err)
	return func() {}, nil
}

// tries is how often a socket is tried at which nobody answers, and again the pause in between.
const (
	tries = 20
	again = 5 * time.Millisecond
)

// patience is for how long one side of a socket waits for the other.
const patience = time.Second

// tell answers whoever asks, until the socket is closed.
func tell(l net.Listener, me string) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors: they are told by the socket that it is held
			time.Sleep(patience)
			continue
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(c, me)
		c.Close()
	}
}

// longest is how much of what a holder says is believed to be it.
const longest = 200

// ask returns who has the socket.
func ask(name string) (who string, root bool, err error) {
	c, err := net.DialTimeout("unix", name, patience)
	if err != nil {
		return fmt.Sprintf("it has the socket %s (`ss -xlp` on the node says whose that is)", name), false, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return "", false, err
	}
	var peer *unix.Ucred
	var err2 error
	if err := errors.Join(raw.Control(func(fd uintptr) { peer, err2 = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }), err2); err != nil {
		return "", false, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	said, _ := io.ReadAll(io.LimitReader(c, longest)) // it may be busy ending
	who = strings.ToValidUTF8(string(said), "?")
	switch {
	case peer.Pid != 0 && who == "":
		who = fmt.Sprintf("pid %d", peer.Pid)
	case peer.Pid != 0:
		who += fmt.Sprintf(", pid %d", peer.Pid)
	default: // it is of another namespace of processes
		who += fmt.Sprintf(", in another container (`ss -xlp` on the node has its pid, at %s)", name)
	}
	return who, peer.Uid == 0, nil
}

// Folder holds a folder until release, by a lock of its own (flock(2)): wherever it is mounted, it is the same. The log is told if its file system has none.
func Folder(path string, log *slog.Logger) (release func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return func() { f.Close() }, nil
	}
	defer f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w: %s", ErrHeld, locker(f))
	}
	log.Warn("another process that does the same would not be noticed: the folder cannot be locked", "path", path, "error", err)
	return func() {}, nil
}

// locker returns who has locked a file, if it is one of the processes that are seen from here.
func locker(f *os.File) string {
	unknown := fmt.Sprintf("it has locked %s (`lslocks` on the node says who that is)", f.Name())
	var st unix.Stat_t
	locks, err := os.ReadFile("/proc/locks") // proc_locks(5)
	if err != nil || unix.Fstat(int(f.Fd()), &st) != nil {
		return unknown
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK  ADVISORY  WRITE 4711 08:01:12345 0 EOF
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[1] != "FLOCK" || fields[5] != file {
			continue
		}
		if pid, err := strconv.Atoi(fields[4]); err == nil && pid > 0 {
			name, _ := os.ReadFile(filepath.Join("/proc", fields[4], "comm")) // it may be gone
			return fmt.Sprintf("%s, pid %d, has locked %s", strings.TrimSpace(string(name)), pid, f.Name())
		}
	}
	return unknown
}
