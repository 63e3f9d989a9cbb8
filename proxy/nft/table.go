package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
)

// Tables are the tables of both families in the network namespace of the thread that calls New. They are for one goroutine.
type Tables struct {
	node     Node
	families [2]*table
}

// New returns Tables for a node. They are not in the kernel before the first Apply.
func New(n Node) *Tables {
	return &Tables{node: n, families: [2]*table{
		{state: newState(ipv4, n), stale: true}, {state: newState(ipv6, n), stale: true},
	}}
}

// Apply brings a change into the kernel: a transaction for each family that it touches. If one fails, the table is made anew, in a
// transaction, too. If that fails as well, the error is returned, packets see what was there before, and the next Apply,
// which may be of an empty Change, tries it again with all that was to change since. Frontends must be valid.
func (t *Tables) Apply(c Change) error {
	if c.Node != nil {
		t.node = *c.Node
	}
	var errs []error
	for _, f := range t.families {
		errs = append(errs, f.apply(c, t.node))
	}
	return errors.Join(errs...)
}

// Close gives back the sockets. The tables stay.
func (t *Tables) Close() {
	for _, f := range t.families {
		f.close()
	}
}

// Remove takes the tables out of the kernel. It is no error that there are none.
func Remove() error {
	s, err := openSocket()
	if err != nil {
		return err
	}
	defer s.close()
	for _, f := range []family{ipv4, ipv6} {
		err := s.commit(f, 0, func(m *message) error {
			m.newTable() // so that there is one to delete
			m.deleteTable()
			return nil
		})
		if err != nil {
			return fmt.Errorf("removing the table: %w", err)
		}
	}
	return nil
}

// table is a family's table.
type table struct {
	*state
	socket *socket // nil until it is needed, and after an error
	stale  bool    // the kernel may have something else than the state says
}

func (t *table) apply(c Change, n Node) error {
	if c.Node != nil || t.stale {
		t.state.note(c)
	} else {
		b := t.state.apply(c)
		if b.empty() {
			return nil
		}
		if err := t.commit(b, func(m *message) error { t.fill(m, b); return nil }); err == nil {
			return nil
		}
	}
	t.stale = true
	b := t.state.all(n)
	err := t.commit(b, func(m *message) error { return t.renew(m, b, true) })
	if err != nil { // what is there may be of another version, with another affinity
		err = t.commit(b, func(m *message) error { return t.renew(m, b, false) })
	}
	t.stale = err != nil
	return err
}

func (t *table) commit(b *batch, write func(*message) error) error {
	if t.socket == nil {
		s, err := openSocket()
		if err != nil {
			return err
		}
		t.socket = s
	}
	if err := t.socket.commit(t.family, b.size(), write); err != nil {
		t.close() // there may be answers that nobody read
		return fmt.Errorf("nftables transaction: %w", err)
	}
	return nil
}

func (t *table) close() {
	if t.socket != nil {
		t.socket.close()
		t.socket = nil
	}
}

// renew makes the table, in place of one that may be there. It keeps that one's affinity unless told otherwise.
func (t *table) renew(m *message, b *batch, keep bool) error {
	m.newTable()
	if keep {
		if err := t.clear(m); err != nil {
			return err
		}
	} else {
		m.deleteTable()
		m.newTable()
	}
	for i, s := range t.specs() {
		m.newSet(set(i), s)
	}
	chains := t.chains(&t.node)
	for _, c := range chains {
		m.newChain(c)
	}
	t.fill(m, b)
	for _, c := range chains {
		m.newRules(c.name, c.rules)
	}
	return nil
}

// clear empties the table of all but affinity.
func (t *table) clear(m *message) error {
	m.deleteRules()
	c, err := nftables.New()
	if err != nil {
		return err
	}
	sets, err := c.GetSets(&nftables.Table{Name: TableName, Family: t.id})
	if err != nil {
		return fmt.Errorf("listing sets: %w", err)
	}
	for _, s := range sets {
		if s.Name != t.specs()[affinityMap].name {
			m.deleteSet(s.Name)
		}
	}
	chains, err := c.ListChainsOfTableFamily(t.id)
	if err != nil {
		return fmt.Errorf("listing chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name == TableName {
			m.deleteChain(ch.Name)
		}
	}
	return nil
}

// fill does what a batch says. Chains are made before the elements that go to them; sets are filled before rules look into them.
func (t *table) fill(m *message, b *batch) {
	for _, v := range b.variants {
		m.newChain(chain{name: v.chain()})
	}
	specs := t.specs()
	for i, s := range specs {
		m.elements(set(i), s, b.delete[i], true, nil)
	}
	names := map[uint32]string{}
	for _, v := range b.variants {
		names[t.state.variants[v]] = v.chain()
	}
	for i, s := range specs {
		m.elements(set(i), s, b.add[i], false, names)
	}
	for _, v := range b.variants {
		m.newRules(v.chain(), v.rules(t.family, &t.node))
	}
}

// size is about how many bytes the messages of a batch take.
func (b *batch) size() int {
	n := 1 << 12
	for _, list := range slices.Concat(b.add[:], b.delete[:]) {
		n += len(list) * 5 / 2
	}
	return n
}
