package portmap

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// attempts is how often an Add begins again when somebody else's Add came in between.
const attempts = 5

// Add leads ports of the node to a pod, in the network namespace of the calling thread, in place of what o had before. Pods are its
// addresses, each with the network that the pod reaches without a router: /32 or /128 if there is none. With localhost, ports of all
// addresses are those of 127.0.0.1, too. It returns ErrTaken if a port is another pod's, ErrInvalid for what makes no sense; nothing
// has changed then. Of two that want the same port at the same time, one on all addresses and one on a single one, both may be refused.
func Add(o Owner, mappings []Mapping, pods []netip.Prefix, localhost bool) error {
	if err := validate(o, mappings, pods); err != nil {
		return err
	}
	c, err := open()
	if err != nil {
		return err
	}
	defer c.close()
	var plans []*change
	for _, f := range families {
		p, err := c.prepare(f, o, mappings, pods, localhost)
		if err != nil {
			return err
		}
		plans = append(plans, p)
	}
	for i, p := range plans {
		if err := c.apply(p); err != nil {
			for _, done := range plans[:i] {
				err = errors.Join(err, c.withdraw(done.family, done.add))
			}
			return err
		}
	}
	var begun, gone []Entry
	for _, p := range plans {
		begun, gone = append(begun, entries(p.family, p.add)...), append(gone, entries(p.family, p.remove)...)
	}
	return forget(begun, gone)
}

// Delete ends all mappings of o. None is no error.
func Delete(o Owner) error { return remove(o, func(netip.Addr) bool { return true }) }

// DeleteTo ends the mappings of o that lead to an address. None is no error.
func DeleteTo(o Owner, pod netip.Addr) error {
	return remove(o, func(a netip.Addr) bool { return a == pod })
}

func remove(o Owner, to func(netip.Addr) bool) error {
	if o.validate() != nil {
		return nil // Add has refused it, too
	}
	c, err := open()
	if without(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.close()
	var gone []Entry
	var errs []error
	for _, f := range families {
		var err error
		// Until a list shows none: one of several messages can lack elements when others change the set meanwhile, and two that
		// delete the same come into each other's way.
		for range attempts {
			var held []element
			if held, err = c.read(f); err != nil {
				break
			}
			held = slices.DeleteFunc(held, func(e element) bool { return e.owner != o || !to(e.pod(f)) })
			if len(held) == 0 {
				break
			}
			if err = c.withdraw(f, held); err == nil {
				gone = append(gone, entries(f, held)...)
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, forget(nil, gone))...)
}

// List returns all mappings. One of several families, or of 127.0.0.1 too, is several entries.
func List() ([]Entry, error) {
	c, err := open()
	if without(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer c.close()
	var list []Entry
	for _, f := range families {
		held, err := c.read(f)
		if err != nil {
			return nil, err
		}
		list = append(list, entries(f, held)...)
	}
	return list, nil
}

// Possible says why there can be no mappings, as an error: a kernel without nftables, or a caller who may not use it (CAP_NET_ADMIN).
func Possible() error {
	c, err := open()
	if err != nil {
		return err
	}
	defer c.close()
	for _, f := range families {
		if _, err := c.ListTablesOfFamily(f.id); err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
	}
	return nil
}

// Check returns ErrMissing if what Add does with the same arguments is not there, rules included.
func Check(o Owner, mappings []Mapping, pods []netip.Prefix, localhost bool) error {
	if err := validate(o, mappings, pods); err != nil {
		return err
	}
	c, err := open()
	if err != nil {
		return err
	}
	defer c.close()
	for _, f := range families {
		want, err := wanted(f, o, mappings, pods, localhost)
		if err != nil {
			return err
		}
		if len(want) == 0 {
			continue
		}
		held, err := c.read(f)
		if err != nil {
			return err
		}
		for _, w := range want {
			if !slices.Contains(held, w) {
				return fmt.Errorf("%w: %v of %v", ErrMissing, f.sets(f.table())[w.set].Name, o)
			}
		}
		if !c.intact(f) {
			return fmt.Errorf("%w: rules of %s are not as they should be", ErrMissing, TableName)
		}
	}
	return nil
}

func validate(o Owner, mappings []Mapping, pods []netip.Prefix) error {
	errs := []error{o.validate()}
	for _, m := range mappings {
		errs = append(errs, m.validate(pods))
	}
	for i, p := range pods {
		if !p.IsValid() || p.Addr().Is4In6() || slices.ContainsFunc(pods[:i], func(q netip.Prefix) bool { return q.Addr().Is4() == p.Addr().Is4() }) {
			errs = append(errs, fmt.Errorf("%w: pod addresses %v: one of a family", ErrInvalid, pods))
		}
	}
	return errors.Join(errs...)
}

// conn is a way to the kernel. Closing it after something was deleted takes some milliseconds, as the kernel waits until no packet looks at
// that any more; so there is one for all that an Add or a Delete does.
type conn struct{ *nftables.Conn }

func open() (*conn, error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return &conn{c}, nil
}

func (c *conn) close() { _ = c.CloseLasting() }

// flush commits a transaction. After an error there may be answers that nobody read: the socket is another then.
func (c *conn) flush() error {
	err := c.Flush()
	if err == nil {
		return nil
	}
	c.close()
	err = fmt.Errorf("nftables transaction: %w", err)
	fresh, e := open()
	if e == nil {
		*c = *fresh
	}
	return errors.Join(err, e)
}

// change is what Add is to do in a family.
type change struct {
	family      *family
	owner       Owner
	pods        []netip.Prefix
	want        []element
	add, remove []element
	intact      bool // the table is as it should be, but for elements
}

func (c *conn) prepare(f *family, o Owner, mappings []Mapping, pods []netip.Prefix, localhost bool) (*change, error) {
	p := &change{family: f, owner: o, pods: pods}
	var err error
	if p.want, err = wanted(f, o, mappings, pods, localhost); err != nil {
		return nil, err
	}
	return p, c.plan(p)
}

func (c *conn) plan(p *change) error {
	held, err := c.read(p.family)
	if err == nil {
		p.add, p.remove, err = plan(p.family, p.owner, held, p.want, p.pods)
	}
	p.intact = len(p.want) > 0 && c.intact(p.family)
	return err
}

// apply commits a change. The kernel refuses an element whose key is taken meanwhile; a port that is taken on all addresses, or on one of
// them, is seen afterwards only.
func (c *conn) apply(p *change) error {
	if len(p.remove) == 0 && (len(p.want) == 0 || len(p.add) == 0 && p.intact) {
		return nil
	}
	var err error
	for range attempts {
		if err = c.commit(p); err == nil {
			break
		}
		if e := c.plan(p); e != nil {
			return e
		}
	}
	if err != nil {
		return err
	}
	held, err := c.read(p.family)
	if err == nil {
		_, _, err = plan(p.family, p.owner, held, p.want, p.pods)
	}
	if err != nil {
		err = errors.Join(err, c.withdraw(p.family, p.add))
	}
	return err
}

// commit sends a transaction, with what is missing of the table if it is not whole.
func (c *conn) commit(p *change) error {
	f := p.family
	t := f.table()
	sets := f.sets(t)
	whole := p.intact || len(p.want) == 0
	if !whole {
		c.AddTable(t)
		for _, s := range sets {
			if err := c.AddSet(s, nil); err != nil {
				return err
			}
		}
	}
	if err := c.elements(sets, p.remove, c.SetDeleteElements); err != nil {
		return err
	}
	if err := c.elements(sets, p.add, c.SetAddElements); err != nil {
		return err
	}
	if !whole {
		if err := c.rules(f, t); err != nil {
			return err
		}
	}
	return c.flush()
}

// rules makes the chains, if they are not there, and their rules anew.
func (c *conn) rules(f *family, t *nftables.Table) error {
	for _, spec := range f.chains() {
		ch := &nftables.Chain{Table: t, Name: spec.name, Type: spec.kind, Hooknum: spec.hook}
		if spec.hook != nil {
			ch.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(spec.priority))
		}
		c.AddChain(ch)
		c.FlushChain(ch)
		for _, r := range spec.rules {
			d, err := r.digest(f)
			if err != nil {
				return err
			}
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: r, UserData: d})
		}
	}
	return nil
}

// intact says whether all chains are there, with their rules.
func (c *conn) intact(f *family) bool {
	t := f.table()
	for _, spec := range f.chains() {
		there, err := c.GetRules(t, &nftables.Chain{Table: t, Name: spec.name})
		same := func(r *nftables.Rule, want rule) bool {
			d, err := want.digest(f)
			return err == nil && bytes.Equal(d, r.UserData)
		}
		if err != nil || !slices.EqualFunc(there, spec.rules, same) {
			return false
		}
	}
	return true
}

// elements adds or deletes elements, by their sets.
func (c *conn) elements(sets [numSets]*nftables.Set, list []element, do func(*nftables.Set, []nftables.SetElement) error) error {
	const atOnce = 100 // a message's attributes are of 64 KB at most
	for i, s := range sets {
		var es []nftables.SetElement
		for _, e := range list {
			if e.set == set(i) {
				es = append(es, nftables.SetElement{Key: []byte(e.key), KeyEnd: []byte(e.end), Val: []byte(e.value), Comment: e.owner.String()})
			}
		}
		for part := range slices.Chunk(es, atOnce) {
			if err := do(s, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// withdraw deletes elements, which are in the kernel.
func (c *conn) withdraw(f *family, list []element) error {
	if len(list) == 0 {
		return nil
	}
	if err := c.elements(f.sets(f.table()), list, c.SetDeleteElements); err != nil {
		return err
	}
	return c.flush()
}

// without says whether an error is that of a kernel which does not have what was asked, nf_tables or nf_conntrack_netlink: one without nfnetlink, or
// nfnetlink without that (nfnetlink_rcv_msg).
func without(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}

// read lists a table's elements; none if there is no table. The kernel gives a list in several messages, and what is deleted between two of them
// can hide what is behind it. So the list is one of which nothing was changed meanwhile, if there is any at all in so many attempts.
func (c *conn) read(f *family) (list []element, err error) {
	const lists = 10
	for range lists {
		tables, e := c.ListTablesOfFamily(f.id)
		if without(e) {
			return nil, nil
		}
		if e != nil {
			return nil, fmt.Errorf("listing tables: %w", e)
		}
		i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == TableName })
		if i < 0 {
			return nil, nil
		}
		before, e := generation()
		if e != nil {
			return nil, e
		}
		list, err = c.list(f, tables[i]) // it fails if somebody has taken the table away
		after, e := generation()
		if e != nil {
			return nil, e
		}
		if err == nil && after == before {
			break
		}
	}
	return list, err
}

// generation is the number of the last transaction that the kernel has committed.
func generation() (string, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.AddData(&nl.Nfgenmsg{Version: nl.NFNETLINK_V0})
	got, err := req.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN)
	if err == nil && len(got) != 1 {
		err = errors.New("no answer")
	}
	if err != nil {
		return "", fmt.Errorf("generation of nftables: %w", err)
	}
	return string(got[0]), nil
}

func (c *conn) list(f *family, t *nftables.Table) ([]element, error) {
	there, err := c.GetSets(t)
	if err != nil {
		return nil, fmt.Errorf("listing sets: %w", err)
	}
	var list []element
	seen := map[element]bool{} // the kernel may list one twice while the set changes
	for i, s := range f.sets(t) {
		if !slices.ContainsFunc(there, func(t *nftables.Set) bool { return t.Name == s.Name }) {
			continue
		}
		es, err := c.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("listing elements of %s: %w", s.Name, err)
		}
		for _, e := range es {
			x := element{set: set(i), key: string(e.Key), end: string(e.KeyEnd), value: string(e.Val), owner: parseOwner(e.Comment)}
			if !seen[x] {
				seen[x] = true
				list = append(list, x)
			}
		}
	}
	return list, nil
}
