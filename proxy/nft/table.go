package nft

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/proxy/frontends"
)

// Tables are the tables of both families in the network namespace of the calling thread. They are for one goroutine, but for Stats.
type Tables struct {
	families [2]*table
	link     *link
	applied  bool // there was an Apply: what is there is for us to say
}

// Stats are for metrics.
type Stats struct {
	Transactions int            // that the kernel took
	Failures     int            // that it did not take
	Repairs      int            // of what somebody else changed
	Elements     map[string]int // of both families, by the names of sets, without affinity
}

// New returns Tables for a node. They are not in the kernel before the first Apply, which fails if the node is invalid.
func New(n Node) *Tables {
	l := &link{}
	t := &Tables{link: l}
	for i, f := range []family{ipv4, ipv6} {
		t.families[i] = &table{state: newState(f, n.clone()), link: l, stale: true}
		l.tables = append(l.tables, t.families[i])
	}
	return t
}

// Apply brings a change into the kernel: a transaction for each family that it touches, and one before it if that needs a chain
// which is not there. The first Apply reads what is there, of an agent of before, and changes what is not as it should be. So does one
// after a transaction that failed. If there is no way, the error is returned, packets see what was there before, and the next Apply,
// which may be of an empty Change, tries again with all that was to change since.
//
// Frontends and pods' addresses that are invalid (frontends.ErrInvalid), or a node (ErrNode), are left as they were, and all else is
// done. Without a valid node from New on, nothing is.
func (t *Tables) Apply(c Change) error {
	errs := []error{c.validate()}
	if err := t.families[0].node.Validate(); c.Node == nil && err != nil {
		return errors.Join(append(errs, err)...)
	}
	t.applied = true
	for _, f := range t.families {
		errs = append(errs, f.apply(c))
	}
	t.link.publish()
	return errors.Join(errs...)
}

// validate takes out of a change what is invalid, and says what that was.
func (c *Change) validate() error {
	var errs []error
	if c.Node != nil {
		if err := c.Node.Validate(); err != nil {
			c.Node, errs = nil, append(errs, err)
		}
	}
	invalid := func(f *frontends.Frontend) bool { return f.Validate() != nil }
	if slices.ContainsFunc(c.Put, invalid) {
		var valid []*frontends.Frontend
		for _, f := range c.Put {
			if err := f.Validate(); err != nil {
				errs = append(errs, err)
			} else {
				valid = append(valid, f)
			}
		}
		c.Put = valid
	}
	pods := map[netip.Addr]bool{}
	for a, on := range c.Hairpin {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			errs = append(errs, fmt.Errorf("%w: pod address %v", frontends.ErrInvalid, a))
			continue
		}
		pods[a] = on
	}
	c.Hairpin = pods
	return errors.Join(errs...)
}

// Read reads what the kernel holds ahead of the first Apply, which then has to compare only, unless somebody else changes rules in
// between. That is for the time in which a caller waits for what it is to apply. Errors come again with Apply.
func (t *Tables) Read() {
	for _, f := range t.families {
		if h, err := f.read(); err == nil && h.generation != 0 {
			f.early = h
		}
	}
}

// Check asks the kernel for the number of its last transaction. If that was not one of ours, it reads the tables back and changes
// what is not as it should be; it returns whether anything was not. Without that it takes some microseconds; with it, time that
// grows with the tables, so that a caller among software that changes rules all the time should pause between calls. Before the
// first Apply it does nothing.
func (t *Tables) Check() (bool, error) {
	if !t.applied {
		return false, nil
	}
	var repaired bool
	errs := []error{t.link.doubt()}
	for _, f := range t.families {
		if !f.stale && !f.doubt || errs[0] != nil {
			continue
		}
		changed, err := f.recover()
		repaired = repaired || changed
		errs = append(errs, err)
	}
	if repaired {
		t.link.stats.Repairs++
	}
	t.link.publish()
	return repaired, errors.Join(errs...)
}

// Stats may be called from any goroutine.
func (t *Tables) Stats() Stats {
	t.link.mu.Lock()
	defer t.link.mu.Unlock()
	s := t.link.published
	s.Elements = map[string]int{}
	for i, spec := range ipv4.specs() {
		if set(i) != affinityMap {
			s.Elements[spec.name] = t.link.counts[i]
		}
	}
	return s
}

// Close gives back the socket. The tables stay.
func (t *Tables) Close() { t.link.close() }

// Remove takes the tables out of the kernel. It is no error that there are none.
func Remove() error {
	s, err := openSocket()
	if err != nil {
		return err
	}
	defer s.close()
	for _, f := range []family{ipv4, ipv6} {
		err := s.commit(f, 0, 0, func(m *message) {
			m.newTable() // so that there is one to delete
			m.deleteTable()
		})
		if err != nil {
			return fmt.Errorf("removing the table: %w", err)
		}
	}
	return nil
}

// link is what the tables share: the way to the kernel.
type link struct {
	socket *socket // nil until it is needed, and after an error
	tables []*table
	// generation is that of the rules after our last transaction, or when they were last read. 0 if somebody else's may be in between.
	generation uint32
	stats      Stats

	mu        sync.Mutex // guards what follows, which Stats reads
	published Stats
	counts    [numSets]int
}

func (l *link) publish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.published, l.counts = l.stats, [numSets]int{}
	for _, t := range l.tables {
		for i, n := range t.count {
			l.counts[i] += n
		}
	}
}

func (l *link) open() error {
	if l.socket != nil {
		return nil
	}
	s, err := openSocket()
	if err == nil {
		l.socket = s
	}
	return err
}

func (l *link) close() {
	if l.socket != nil {
		l.socket.close()
		l.socket = nil
	}
}

// doubt doubts the tables if the rules are of another generation than they should be.
func (l *link) doubt() error {
	if err := l.open(); err != nil {
		return err
	}
	g, err := l.socket.generation()
	if err != nil {
		l.close()
		return fmt.Errorf("generation of the rules: %w", err)
	}
	l.seen(g)
	return nil
}

// seen takes note of the rules' generation.
func (l *link) seen(g uint32) {
	if g == l.generation && g != 0 {
		return
	}
	l.generation = g
	for _, t := range l.tables {
		t.doubt = true
	}
}

// commit sends a transaction: if sure, only if the rules are of the generation that they should be, and returns unix.ERESTART
// if they are not.
func (l *link) commit(f family, size int, sure bool, write func(*message)) error {
	if err := l.open(); err != nil {
		return err
	}
	if !sure {
		l.seen(0)
	}
	switch err := l.socket.commit(f, size, l.generation, write); {
	case err == nil:
		l.stats.Transactions++
		if l.generation != 0 {
			before := l.generation
			l.generation = max(before+1, 1) // as the kernel counts
			for _, t := range l.tables {    // the other family's is not touched
				if t.early != nil && t.early.generation == before {
					t.early.generation = l.generation
				}
			}
		}
		return nil
	case errors.Is(err, unix.ERESTART):
		return err
	default:
		l.close()
		l.stats.Failures++
		return fmt.Errorf("nftables transaction: %w", err)
	}
}

// table is a family's table.
type table struct {
	*state
	link  *link
	stale bool  // the state is not what the kernel was last told
	doubt bool  // somebody else may have changed it
	early *held // what was read ahead; of no use once the generation is another
}

func (t *table) apply(c Change) error {
	if t.stale {
		t.state.note(c)
		_, err := t.recover()
		return err
	}
	b := t.state.apply(c)
	err := t.send(b.variants())
	if err == nil {
		err = t.send(b)
	}
	if err != nil {
		t.stale = true
		if _, err = t.recover(); err == nil {
			t.link.stats.Repairs++
		}
	}
	return err
}

// send commits a batch, if there is anything in it.
func (t *table) send(b *batch) error {
	if b.empty() {
		return nil
	}
	err := t.commit(b, true)
	if errors.Is(err, unix.ERESTART) { // other software's rules, as a rule. Check finds out
		err = t.commit(b, false)
	}
	return err
}

func (t *table) commit(b *batch, sure bool) error {
	return t.link.commit(t.family, b.size(), sure, func(m *message) { t.write(m, b) })
}

// attempts is how often a table is read that others' changes come into the way of. The last time it is taken as it comes.
const attempts = 3

// large is from how many elements on what it takes to read and compare them is given back to the system at once, which would else
// keep it resident for minutes. It costs some ten milliseconds.
const large = 1 << 16

// recover makes the kernel hold what the state says, whatever it holds, and returns whether it had to change anything.
func (t *table) recover() (changed bool, err error) {
	defer func() {
		if t.count[backendsMap]+t.count[frontendsMap] >= large {
			debug.FreeOSMemory()
		}
	}()
	t.stale = true
	for i := range attempts {
		if changed, err = t.adjust(i+1 < attempts); err == nil {
			break
		}
	}
	if err != nil {
		b := t.state.all(nil)
		b.anew, b.replace, changed = true, true, true
		err = t.commit(b, false)
	}
	t.stale, t.doubt = err != nil, err != nil || t.link.generation == 0
	return changed, err
}

// adjust reads the table and sends what is different. If sure, it returns unix.ERESTART if others change rules meanwhile.
func (t *table) adjust(sure bool) (changed bool, err error) {
	h, err := t.read()
	if err != nil && !errors.Is(err, errMalformed) {
		return false, err
	}
	if sure && h.generation == 0 {
		return false, unix.ERESTART
	}
	t.link.seen(h.generation)
	var b *batch
	if err == nil {
		b = t.state.all(h)
		if !t.state.differ(b, h) {
			err = unix.ERESTART
		}
	}
	switch {
	case err == nil:
	case sure && errors.Is(err, unix.ERESTART):
		return false, err
	default:
		b = t.state.all(nil)
		t.renew(b, h)
	}
	if b.empty() {
		return false, nil
	}
	return true, t.commit(b, sure)
}

// read lists what the kernel holds. With errMalformed, which stands for no table, too, there is no list of elements.
func (t *table) read() (*held, error) {
	if err := t.link.open(); err != nil {
		return nil, err
	}
	if h := t.early; h != nil {
		t.early = nil
		if g, err := t.link.socket.generation(); err == nil && g == h.generation {
			return h, nil
		}
	}
	h, err := t.link.socket.outline(t.family)
	switch {
	case err != nil:
	case h.flags != 0 || !t.sameSets(h):
		return h, errMalformed
	default:
		err = t.link.socket.elements(t.family, h)
	}
	if err != nil {
		t.link.close() // there may be answers that nobody read
		err = fmt.Errorf("reading the table: %w", err)
	}
	return h, err
}

// renew makes a batch that fills a table into one that makes it, in place of what is there of another version. That one's affinity
// stays if it is of the same kind.
func (t *table) renew(b *batch, h *held) {
	b.anew = true
	b.replace = h.flags != 0 // one that is dormant, say
	b.drop = slices.Sorted(maps.Keys(h.chains))
	for _, name := range slices.Sorted(maps.Keys(h.sets)) {
		if name != t.specs()[affinityMap].name || !t.sameSet(h, affinityMap) {
			b.dropSets = append(b.dropSets, name)
		}
	}
}

// write writes a batch. Chains are made before the elements that go to them; sets are filled before rules look into them.
func (t *table) write(m *message, b *batch) {
	specs := t.specs()
	if b.anew {
		m.newTable()
	}
	if b.replace {
		m.deleteTable()
		m.newTable()
	} else {
		for _, name := range b.drop {
			m.deleteRules(name)
		}
		for _, c := range b.fill {
			m.deleteRules(c.name)
		}
		for i, s := range specs {
			m.elements(set(i), s, b.delete[i], true, nil)
		}
		for _, name := range b.dropSets {
			m.deleteSet(name)
		}
		for _, name := range b.drop {
			m.deleteChain(name)
		}
	}
	if b.anew {
		for i, s := range specs {
			m.newSet(set(i), s)
		}
	}
	for _, c := range b.make {
		m.newChain(c)
	}
	names := map[uint32]string{}
	if len(b.add[variantsMap]) > 0 {
		for v, n := range t.variants {
			names[n] = v.chain()
		}
	}
	for i, s := range specs {
		m.elements(set(i), s, b.add[i], false, names)
	}
	for _, c := range slices.Concat(b.make, b.fill) {
		m.newRules(c)
	}
}

// size is about how many bytes the messages of a batch take, and rather more.
func (b *batch) size() int {
	n := 1 << 12
	for _, list := range slices.Concat(b.add[:], b.delete[:]) {
		n += len(list) * 5
	}
	return n + 1<<11*(len(b.make)+len(b.fill)+len(b.drop))
}
