package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// socket is a netlink socket. After an error it is of no further use, since there may be answers that nobody read.
type socket struct {
	fd  int
	buf []byte // that answers are read into
}

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	err = errors.Join(
		// A transaction leaves in one piece, as it must. This is a limit; nothing is allocated.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<29),
		// Errors come without the messages that they are of, which may be longer than what answers are read into.
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1))
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return &socket{fd: fd, buf: make([]byte, 1<<16)}, nil // the kernel lists no more at a time
}

func (s *socket) close() { _ = unix.Close(s.fd) }

var (
	// errNoAnswer says that the kernel did not say how a transaction went.
	errNoAnswer = errors.New("no answer from nftables")
	// errTruncated says that an answer is not what its length says.
	errTruncated = errors.New("netlink answer of a wrong length")
)

const mapped = 1 << 20 // bytes from which on a transaction is written outside of Go's heap

// commit sends what write puts into a batch, as one transaction, if the rules are of that generation still; 0 stands for any. The
// kernel has done it, or has not, when it returns: unix.ERESTART says that the generation is another.
func (s *socket) commit(f family, size int, generation uint32, write func(*message)) error {
	m := &message{family: f}
	if size < mapped {
		m.buf = make([]byte, 0, size)
	} else {
		// So that a first sync of a large cluster leaves nothing behind. Pages that are not written to cost nothing.
		region, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
		if err != nil {
			return fmt.Errorf("%d bytes for a transaction: %w", size, err)
		}
		defer func() { _ = unix.Munmap(region) }()
		m.buf = region[:0]
	}
	m.raw(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, batchSubsystem)
	if generation != 0 {
		m.number(unix.NFNL_BATCH_GENID, generation)
	}
	m.end()
	write(m)
	if m.err != nil {
		return m.err
	}
	// The last one's answer is enough, since answers of those that fail come unasked.
	binary.NativeEndian.PutUint16(m.buf[m.at+6:], binary.NativeEndian.Uint16(m.buf[m.at+6:])|unix.NLM_F_ACK)
	last := m.seq
	m.raw(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, batchSubsystem)
	m.end()
	if err := s.send(m); err != nil {
		return err
	}
	return s.answers(last)
}

func (s *socket) send(m *message) error {
	if err := unix.Sendto(s.fd, m.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("sending %d bytes: %w", len(m.buf), err)
	}
	return nil
}

// answers reads what the kernel has said of a batch, all of which waits there when it is sent.
func (s *socket) answers(last uint32) error {
	done := errNoAnswer
	var failed error
	for {
		b, err := s.receive(unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return errors.Join(failed, done)
		}
		for err == nil && len(b) > 0 {
			var a answer
			if a, b, err = nextAnswer(b); err == nil && a.typ == unix.NLMSG_ERROR {
				if failed == nil && a.errno() != 0 {
					failed = fmt.Errorf("message %d: %w", a.seq, a.errno())
				}
				if a.seq == last || a.seq == 1 && a.errno() == unix.ERESTART { // nothing follows on the latter
					done = nil
				}
			}
		}
		if err != nil {
			return err
		}
	}
}

func (s *socket) receive(flags int) ([]byte, error) {
	for {
		n, _, got, _, err := unix.Recvmsg(s.fd, s.buf, nil, flags)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("reading answers: %w", err)
		case got&unix.MSG_TRUNC != 0:
			return nil, errTruncated
		}
		return s.buf[:n], nil
	}
}

// answer is a netlink message from the kernel.
type answer struct {
	typ, flags uint16
	seq        uint32
	body       []byte // at least 4 bytes, which are an nfgenmsg or an error
}

// nextAnswer takes the first message from b.
func nextAnswer(b []byte) (a answer, rest []byte, err error) {
	const header = unix.NLMSG_HDRLEN
	if len(b) < header+4 {
		return a, nil, errTruncated
	}
	n := binary.NativeEndian.Uint32(b)
	if n < header+4 || uint64(n) > uint64(len(b)) {
		return a, nil, errTruncated
	}
	order := binary.NativeEndian
	a = answer{order.Uint16(b[4:]), order.Uint16(b[6:]), order.Uint32(b[8:]), b[header:n]}
	return a, b[min(len(b), pad(int(n))):], nil
}

func (a answer) errno() unix.Errno { return unix.Errno(-int32(binary.NativeEndian.Uint32(a.body))) }

// ask sends a request and gives what each message of the answer has behind its header to take. steady is false if the kernel says
// that the rules changed while it listed them.
func (s *socket) ask(f family, typ, flags uint16, write func(*message), take func(b []byte) error) (steady bool, err error) {
	m := &message{family: f}
	m.begin(typ, flags|unix.NLM_F_ACK)
	write(m)
	m.end()
	if err := s.send(m); err != nil {
		return false, err
	}
	for steady = true; ; {
		b, err := s.receive(0)
		for err == nil && len(b) > 0 {
			var a answer
			if a, b, err = nextAnswer(b); err != nil {
				break
			}
			steady = steady && a.flags&unix.NLM_F_DUMP_INTR == 0
			if a.typ == unix.NLMSG_ERROR || a.typ == unix.NLMSG_DONE {
				if a.errno() != 0 {
					return false, a.errno()
				}
				return steady, nil
			}
			err = take(a.body[4:])
		}
		if err != nil {
			return false, err
		}
	}
}

// generation returns the number that the kernel gives to the rules of this network namespace. Each transaction makes another.
func (s *socket) generation() (uint32, error) {
	var n uint32
	_, err := s.ask(ipv4, unix.NFT_MSG_GETGEN, 0, func(*message) {}, func(b []byte) error {
		n = findNumber(b, unix.NFTA_GEN_ID)
		return nil
	})
	return n, err
}

// outline lists what a table is made of, but for the elements of its sets. It is no error if there is no table.
func (s *socket) outline(f family) (*held, error) {
	h := newHeld()
	var err error
	if h.generation, err = s.generation(); err != nil {
		return nil, err
	}
	list := func(typ, flags uint16, write func(*message), take func([]byte) error) {
		if err == nil {
			var steady bool
			if steady, err = s.ask(f, typ, flags, write, take); !steady {
				h.generation = 0
			}
		}
	}
	const dump = unix.NLM_F_DUMP
	list(unix.NFT_MSG_GETTABLE, dump, func(*message) {}, h.takeTable)
	list(unix.NFT_MSG_GETSET, dump, func(*message) {}, h.takeSet)
	list(unix.NFT_MSG_GETCHAIN, dump, func(*message) {}, h.takeChain)
	list(unix.NFT_MSG_GETRULE, dump, func(m *message) { m.text(unix.NFTA_RULE_TABLE, TableName) }, h.takeRule)
	return h, err
}

// elements lists the elements of the sets, but for affinity.
func (s *socket) elements(f family, h *held) error {
	for i, spec := range f.specs() {
		if set(i) == affinityMap {
			continue
		}
		steady, err := s.ask(f, unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, func(m *message) {
			m.text(unix.NFTA_SET_ELEM_LIST_TABLE, TableName)
			m.text(unix.NFTA_SET_ELEM_LIST_SET, spec.name)
		}, func(b []byte) error { return h.takeElements(set(i), spec, b) })
		if err != nil {
			return fmt.Errorf("elements of %s: %w", spec.name, err)
		}
		if !steady {
			h.generation = 0
		}
	}
	if err := h.finish(f); err != nil {
		return err
	}
	if after, err := s.generation(); err != nil || after != h.generation {
		h.generation = 0
		return err
	}
	return nil
}
