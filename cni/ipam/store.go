package ipam

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
	"unicode/utf8"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// Owner is who an address is for. Container and Interface tell one from another; Netns, the path of the network namespace, Pod, as in
// "namespace/name", MAC, a hardware address that somebody has wanted, Bridge, which the pod is on, and Ports, which
// lead to it as the plugin writes them, are notes.
type Owner struct {
	Container, Interface string
	Netns, Pod           string
	MAC                  string `json:",omitempty"`
	Bridge               string `json:",omitempty"`
	Ports                string `json:",omitempty"`
}

// Lease is what somebody has.
type Lease struct {
	Owner
	Addrs []netip.Addr
	Since time.Time
}

var (
	// ErrExists says that the owner has a lease.
	ErrExists = errors.New("there is a lease for this container and interface")
	// ErrTaken says that a static address is somebody else's.
	ErrTaken = errors.New("address is taken")
	// ErrOwner says that an owner's names cannot be kept.
	ErrOwner = errors.New("owner of a lease")
)

// ExhaustedError says that all of a pool's addresses are in use.
type ExhaustedError struct {
	Pool   Pool
	InUse  int
	Oldest Lease // of the pool; without an owner if there is none
}

func (e *ExhaustedError) Error() string {
	if e.InUse == 0 {
		return fmt.Sprintf("range %v has no address for a pod", e.Pool)
	}
	return fmt.Sprintf("range %v is exhausted: %d addresses in use, the oldest since %s by pod %q (container %s, interface %s)",
		e.Pool, e.InUse, e.Oldest.Since.Format(time.RFC3339), e.Oldest.Pod, e.Oldest.Container, e.Oldest.Interface)
}

// Store is the file of leases. Other processes wait for it to be closed, so that it should not be open for longer than it takes.
// It may be used by several goroutines.
type Store struct {
	db   *bbolt.DB
	path string
	boot func() time.Duration // since the machine started: no clock that somebody sets
	wall func() time.Time
}

// Open opens dir/ipam.db, or makes it, together with dir. If other processes have it, it waits for at most 10 s, and then returns
// ErrBusy. ErrDamaged and ErrVersion say that there is a file which is of no use, and what to do about it.
func Open(dir string) (*Store, error) { return open(dir, patience) }

// OpenWithin is Open for who has less time.
func OpenWithin(dir string, wait time.Duration) (*Store, error) { return open(dir, wait) }

func open(dir string, wait time.Duration) (*Store, error) {
	db, err := openDB(dir, wait)
	if err != nil {
		return nil, fmt.Errorf("opening leases: %w", err)
	}
	return &Store{db: db, path: db.Path(), boot: sinceBoot, wall: time.Now}, nil
}

func sinceBoot() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail: the clock is there since Linux 2.6.39
	return time.Duration(ts.Nano())
}

// Close lets others have the file.
func (s *Store) Close() error { return s.db.Close() }

// The file's buckets. Numbers are big-endian, so that times are in order; addresses are of 4 or 16 bytes.
var (
	metaBucket   = []byte("meta")    // "version" -> version
	leasesBucket = []byte("leases")  // container, 0, interface -> Lease as JSON
	addrsBucket  = []byte("addrs")   // address -> key of its lease
	restBucket   = []byte("resting") // address -> when it was released
	queueBucket  = []byte("queue")   // when, address -> nothing: those of resting by their time
	lastBucket   = []byte("last")    // subnet: address, bits -> the address that it gave last

	buckets    = [][]byte{metaBucket, leasesBucket, addrsBucket, restBucket, queueBucket, lastBucket}
	versionKey = []byte("version")
)

const version = "1"

// prepare makes the buckets.
func prepare(tx *bbolt.Tx) error {
	for _, name := range buckets {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	return tx.Bucket(metaBucket).Put(versionKey, []byte(version))
}

func checkVersion(tx *bbolt.Tx) error {
	meta := tx.Bucket(metaBucket)
	if meta == nil {
		return fmt.Errorf("%w: no leases in it", bolterrors.ErrInvalid)
	}
	if v := meta.Get(versionKey); string(v) != version {
		return fmt.Errorf("%w: %q instead of %q", ErrVersion, v, version)
	}
	for _, name := range buckets {
		if tx.Bucket(name) == nil {
			return fmt.Errorf("%w: no %s in it", bolterrors.ErrInvalid, name)
		}
	}
	return nil
}

// Allocate gives o an address of each pool, in their order. A static address stands for the pool that it lies in. It returns
// ErrExists if o has a lease, ErrTaken for a static address that is somebody's, and an ExhaustedError if a pool has no address left;
// nothing has changed then. Addresses that were released in the last 30 s are given out only if there is no other, or as static ones.
func (s *Store) Allocate(o Owner, pools []Pool, static []netip.Addr) (Lease, error) {
	if err := o.validate(); err != nil {
		return Lease{}, err
	}
	l := Lease{Owner: o, Since: s.wall().UTC().Round(0)}
	err := s.run(s.db.Update, func(t *tx) error {
		if t.leases.Get(o.key()) != nil {
			return fmt.Errorf("%w: %s, %s", ErrExists, o.Container, o.Interface)
		}
		t.tidy()
		var err error
		l.Addrs, err = choose(t, pools, static)
		if err != nil {
			return t.explain(err)
		}
		return t.put(l, pools)
	})
	if err != nil {
		return Lease{}, fmt.Errorf("allocating addresses: %w", err)
	}
	return l, nil
}

// Rests says whether an address was released in the last 30 s.
func (s *Store) Rests(a netip.Addr) (rests bool, err error) {
	err = s.run(s.db.View, func(t *tx) error {
		rests = t.state(a) == resting
		return nil
	})
	return rests, err
}

// Release ends a lease and returns its addresses; none if there is no lease, which is no error.
func (s *Store) Release(container, ifname string) ([]netip.Addr, error) {
	key := Owner{Container: container, Interface: ifname}.key()
	var addrs []netip.Addr
	err := s.run(s.db.Update, func(t *tx) error {
		v := t.leases.Get(key)
		if v == nil {
			return errNothing
		}
		l, err := decode(key, v)
		if err != nil {
			return err
		}
		t.tidy()
		addrs = l.Addrs
		return t.remove(key, l)
	})
	if err != nil && !errors.Is(err, errNothing) {
		return nil, fmt.Errorf("releasing addresses: %w", err)
	}
	return addrs, nil
}

// errNothing ends a transaction that has nothing to write.
var errNothing = errors.New("nothing to do")

// Get returns somebody's lease, if there is one.
func (s *Store) Get(container, ifname string) (l Lease, there bool, err error) {
	key := Owner{Container: container, Interface: ifname}.key()
	err = s.run(s.db.View, func(t *tx) error {
		v := t.leases.Get(key)
		if v == nil {
			return nil
		}
		there = true
		l, err = decode(key, v)
		return err
	})
	if err != nil {
		return Lease{}, false, fmt.Errorf("reading a lease: %w", err)
	}
	return l, there, nil
}

// List returns all leases, by container and interface.
func (s *Store) List() ([]Lease, error) {
	var list []Lease
	err := s.run(s.db.View, func(t *tx) error {
		return t.each(func(l Lease) { list = append(list, l) })
	})
	if err != nil {
		return nil, fmt.Errorf("listing leases: %w", err)
	}
	return list, nil
}

// Given returns the subnets that addresses were given from since the machine started.
func (s *Store) Given() (subnets []netip.Prefix, err error) {
	err = s.run(s.db.View, func(t *tx) error {
		return t.lasts.ForEach(func(k, _ []byte) error {
			a, ok := netip.AddrFromSlice(k[:max(len(k)-1, 0)])
			if !ok {
				return fmt.Errorf("%w: subnet %x", errRecord, k)
			}
			subnets = append(subnets, netip.PrefixFrom(a, int(k[len(k)-1])))
			return nil
		})
	})
	return subnets, err
}

// run runs f in a transaction.
func (s *Store) run(begin func(func(*bbolt.Tx) error) error, f func(*tx) error) error {
	err := guard(s.path, func() error {
		return begin(func(b *bbolt.Tx) error {
			return f(&tx{
				leases: b.Bucket(leasesBucket), addrs: b.Bucket(addrsBucket), resting: b.Bucket(restBucket),
				queue: b.Bucket(queueBucket), lasts: b.Bucket(lastBucket), now: s.boot(),
			})
		})
	})
	if errors.Is(err, errRecord) {
		return refuse(ErrDamaged, s.path, err)
	}
	return err
}

// tx is a transaction. It is the book of choose.
type tx struct {
	leases, addrs, resting, queue, lasts *bbolt.Bucket

	now time.Duration
}

func (t *tx) state(a netip.Addr) state {
	k := a.AsSlice()
	if t.addrs.Get(k) != nil {
		return leased
	}
	if v := t.resting.Get(k); len(v) == 8 && !rested(instant(v), t.now) {
		return resting
	}
	return free
}

func (t *tx) last(r netip.Prefix) netip.Addr {
	a, _ := netip.AddrFromSlice(t.lasts.Get(rangeKey(r)))
	return a
}

func (t *tx) longest(wanted func(netip.Addr) bool) (netip.Addr, bool) {
	c := t.queue.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if _, a, ok := queued(k); ok && wanted(a) && t.state(a) != leased {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// put stores a lease.
func (t *tx) put(l Lease, pools []Pool) error {
	v, err := encode(l)
	if err != nil {
		return err
	}
	errs := []error{t.leases.Put(l.key(), v)}
	for i, a := range l.Addrs {
		r, _ := pools[i].Of(a)
		errs = append(errs, t.wake(a), t.addrs.Put(a.AsSlice(), l.key()), t.lasts.Put(rangeKey(r.Subnet), a.AsSlice()))
	}
	return errors.Join(errs...)
}

// remove ends a lease. Its addresses rest.
func (t *tx) remove(key []byte, l Lease) error {
	errs := []error{t.leases.Delete(key)}
	for _, a := range l.Addrs {
		k := a.AsSlice()
		if !bytes.Equal(t.addrs.Get(k), key) {
			return fmt.Errorf("%w: %v is not of %q", errRecord, a, key)
		}
		when := binary.BigEndian.AppendUint64(nil, uint64(t.now))
		errs = append(errs, t.addrs.Delete(k), t.resting.Put(k, when), t.queue.Put(append(when, k...), nil))
	}
	return errors.Join(errs...)
}

// wake takes an address out of those that rest.
func (t *tx) wake(a netip.Addr) error {
	k := a.AsSlice()
	v := slices.Clone(t.resting.Get(k))
	if v == nil {
		return nil
	}
	return errors.Join(t.resting.Delete(k), t.queue.Delete(append(v, k...)))
}

// tidy forgets some addresses that have rested; more than a transaction adds, so that they do not pile up.
func (t *tx) tidy() {
	c := t.queue.Cursor()
	for range 16 {
		k, _ := c.First()
		if k == nil {
			return
		}
		if when, _, ok := queued(k); ok && !rested(when, t.now) {
			if k, _ = c.Last(); k == nil {
				return
			}
			if when, _, ok := queued(k); ok && !rested(when, t.now) {
				return // those of an earlier boot are at the end
			}
		}
		_ = t.resting.Delete(k[min(8, len(k)):])
		_ = c.Delete()
	}
}

// explain adds to an ExhaustedError what it has to say.
func (t *tx) explain(err error) error {
	var e *ExhaustedError
	if !errors.As(err, &e) {
		return err
	}
	return errors.Join(t.each(func(l Lease) {
		for _, a := range l.Addrs {
			if !e.Pool.contains(a) {
				continue
			}
			if e.InUse++; e.InUse == 1 || l.Since.Before(e.Oldest.Since) {
				e.Oldest = l
			}
		}
	}), e)
}

func (t *tx) each(f func(Lease)) error {
	return t.leases.ForEach(func(k, v []byte) error {
		l, err := decode(k, v)
		if err == nil {
			f(l)
		}
		return err
	})
}

// errRecord says that a record is not what this package writes.
var errRecord = errors.New("record makes no sense")

func encode(l Lease) ([]byte, error) { return json.Marshal(l) }

// decode reads a lease back.
func decode(key, value []byte) (Lease, error) {
	var l Lease
	if err := json.Unmarshal(value, &l); err != nil {
		return Lease{}, fmt.Errorf("%w: %w", errRecord, err)
	}
	bad := func(a netip.Addr) bool { return !a.IsValid() || a.Zone() != "" || a.Is4In6() }
	if l.validate() != nil || !bytes.Equal(l.key(), key) || len(l.Addrs) == 0 || slices.ContainsFunc(l.Addrs, bad) {
		return Lease{}, fmt.Errorf("%w: %q for %q", errRecord, value, key)
	}
	return l, nil
}

// MaxPorts is the longest note of ports, in bytes.
const MaxPorts = 64 << 10

// maxName is far above what there is, and below what bbolt takes for a key.
const maxName = 4096

func (o Owner) validate() error {
	for _, s := range []string{o.Container, o.Interface, o.Netns, o.Pod, o.MAC, o.Bridge} {
		if len(s) > maxName || !utf8.ValidString(s) {
			return fmt.Errorf("%w: %.64q is too long, or not UTF-8", ErrOwner, s)
		}
	}
	if len(o.Ports) > MaxPorts || !utf8.ValidString(o.Ports) {
		return fmt.Errorf("%w: %d bytes of ports, or not UTF-8", ErrOwner, len(o.Ports))
	}
	if o.Container == "" || o.Interface == "" || bytes.IndexByte(o.key(), 0) != len(o.Container) || bytes.Count(o.key(), []byte{0}) != 1 {
		return fmt.Errorf("%w: container %q, interface %q", ErrOwner, o.Container, o.Interface)
	}
	return nil
}

func (o Owner) key() []byte { return []byte(o.Container + "\x00" + o.Interface) }

func rangeKey(r netip.Prefix) []byte { return append(r.Addr().AsSlice(), byte(r.Bits())) }

func instant(v []byte) time.Duration { return time.Duration(binary.BigEndian.Uint64(v)) }

// queued reads a key of the queue.
func queued(k []byte) (time.Duration, netip.Addr, bool) {
	if len(k) < 8 {
		return 0, netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(k[8:])
	return instant(k), a, ok
}
