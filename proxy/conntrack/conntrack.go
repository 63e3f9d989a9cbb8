// Package conntrack deletes UDP entries of the kernel's connection tracking that lead where a service's packets do not go any
// more. UDP has no end of a connection: as long as a client sends from the same port, its entry stays, and with it the backend.
// Entries of TCP are left alone, since connections are left to finish.
//
// stale.go decides; what is here asks the kernel (ctnetlink) and deletes. A table may have some hundred thousands of entries,
// so none of them is kept: they are looked at in the buffer that the kernel fills.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Flow is what an entry says of a client's packets.
type Flow struct {
	Client netip.AddrPort // where they come from, before any translation
	Dest   netip.AddrPort // where the client sends them
	// Backend is where they go: the address that replies come from. Without DNAT it is Dest.
	Backend netip.AddrPort
	DNAT    bool // the destination was translated (IPS_DST_NAT)
}

// ErrInterrupted is wrapped by Delete's error if the kernel said of each of several walks that it may have missed entries.
var ErrInterrupted = errors.New("the table of connections changed while it was read")

// walks is how often a walk is begun that the kernel interrupts.
const walks = 4

// Delete looks at each UDP entry of both families in the network namespace of the calling thread, and deletes those that stale
// says. It returns how many it has deleted, with an error, too. stale may see an entry twice. It needs CAP_NET_ADMIN and
// the kernel's nf_conntrack_netlink.
//
// An entry that was made anew after stale has seen it is not deleted, nor is its like in another zone.
//
// The kernel takes 1 to 2 us for each entry of the table: it is for many changes at a time, and for those that can make flows stale.
func Delete(stale func(Flow) bool) (deleted int, err error) {
	w := walker{buf: make([]byte, 1<<16)} // the kernel's messages have 32 KiB at most
	if w.dump, err = open(); err != nil {
		return 0, err
	}
	defer unix.Close(w.dump)
	if w.delete, err = open(); err != nil {
		return 0, err
	}
	defer unix.Close(w.delete)
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if err := w.family(family, stale); err != nil {
			return w.deleted, explain("reading connections", err)
		}
	}
	if w.failed != nil {
		return w.deleted, explain("deleting a connection", w.failed)
	}
	return w.deleted, nil
}

// open returns a netlink socket. It is in the namespace of the calling thread for good.
func open() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, explain("netlink socket", err)
	}
	// Errors are to come without the messages they are about, so that those of a full buffer of messages find room.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20)
	return fd, nil
}

// explain wraps what the kernel has said with what to do.
func explain(what string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("conntrack: %s: %w; it takes CAP_NET_ADMIN", what, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("conntrack: %s: %w; is the kernel module nf_conntrack_netlink there? (modprobe nf_conntrack_netlink)", what, err)
	}
	return fmt.Errorf("conntrack: %s: %w", what, err)
}

// walker is one Delete.
type walker struct {
	dump, delete int // sockets
	buf          []byte
	seq          uint32
	deletions    []byte // messages that wait to be sent
	last         int    // where the last of them begins
	deleted      int
	failed       error // why the first of those is still there that are
}

// family walks through one family's entries.
func (w *walker) family(family byte, stale func(Flow) bool) error {
	err := w.again(family, true, stale)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) { // no such filter: protocols are looked at here, too
		err = w.again(family, false, stale)
	}
	return err
}

func (w *walker) again(family byte, filter bool, stale func(Flow) bool) error {
	for range walks {
		if whole, err := w.walk(family, filter, stale); whole || err != nil {
			return err
		}
	}
	return ErrInterrupted
}

// walk looks at the entries once. whole is false if the kernel may have missed some.
func (w *walker) walk(family byte, filter bool, stale func(Flow) bool) (whole bool, err error) {
	w.seq++
	seq := w.seq
	if _, err := unix.Write(w.dump, appendDump(nil, seq, family, filter)); err != nil {
		return false, err
	}
	for whole = true; ; {
		n, err := read(w.dump, w.buf)
		if err != nil {
			return false, err
		}
		done := false
		var e entry
		for rest := w.buf[:n]; len(rest) > 0; {
			var m message
			if m, rest, err = nextMessage(rest); err != nil {
				return false, err
			}
			switch {
			case m.seq != seq: // of a walk that has failed
			case m.typ == unix.NLMSG_DONE, m.typ == unix.NLMSG_ERROR:
				if err := m.errno(); err != nil {
					return false, err
				}
				done = true
			case m.typ == unix.NFNL_SUBSYS_CTNETLINK<<8|ctNew:
				if e.parse(m.body) && stale(e.flow) {
					w.last = len(w.deletions)
					w.seq++
					w.deletions = appendDelete(w.deletions, w.seq, family, &e)
				}
			}
			whole = whole && m.flags&unix.NLM_F_DUMP_INTR == 0
		}
		if err := w.flush(); err != nil {
			return false, err
		}
		if done {
			return whole, nil
		}
	}
}

// flush sends the deletions that wait. The kernel has done them when it returns.
func (w *walker) flush() error {
	if len(w.deletions) == 0 {
		return nil
	}
	// The last one's answer is enough, since answers of those that fail come unasked.
	flags := w.deletions[w.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	if _, err := unix.Write(w.delete, w.deletions); err != nil {
		return fmt.Errorf("deleting: %w", err)
	}
	w.deleted += countMessages(w.deletions)
	w.deletions = w.deletions[:0]
	for {
		n, err := read(w.delete, w.buf)
		if err != nil {
			return fmt.Errorf("deleting: %w", err)
		}
		for rest := w.buf[:n]; len(rest) > 0; {
			var m message
			if m, rest, err = nextMessage(rest); err != nil {
				return err
			}
			if m.typ != unix.NLMSG_ERROR {
				continue
			}
			if err := m.errno(); err != nil {
				w.deleted--
				if !errors.Is(err, unix.ENOENT) && w.failed == nil { // it has ended by itself
					w.failed = err
				}
			}
			if m.seq == w.seq {
				return nil
			}
		}
	}
}

func read(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
