// Package masquerade gives packets that pods send out of the cluster the node's address, since nobody out there has a route to a pod: what
// ip-masq-agent does. It has nftables tables of its own, of one rule each, and touches no others.
package masquerade

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
)

// Table is what the tables are called, of the families ip and ip6.
const Table = "ropewalk-masquerade"

// Config says whose packets are meant.
type Config struct {
	// Pods are the ranges that this node's pods have addresses from.
	Pods []netip.Prefix
	// Inside are destinations that see the pods' own addresses: the cluster's pods, services and nodes, and what the operator names. Groups
	// are always inside. In order (netip.Prefix.Compare) they take less time.
	Inside []netip.Prefix
	// LinkLocal and LinkLocal6 have link-local destinations of IPv4 and IPv6 not be inside.
	LinkLocal, LinkLocal6 bool
}

// groups are destinations that have no single receiver.
var groups = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32"), netip.MustParsePrefix("ff00::/8")}

// always returns what is inside whatever the cluster and the operator say.
func (c Config) always() []netip.Prefix {
	out := slices.Clone(groups)
	if !c.LinkLocal {
		out = append(out, netip.MustParsePrefix("169.254.0.0/16"))
	}
	if !c.LinkLocal6 {
		out = append(out, netip.MustParsePrefix("fe80::/10"))
	}
	return out
}

// Tables are the tables of the network namespace of the calling thread, and what is known of them. The zero Tables know nothing yet.
type Tables struct {
	have  sets
	known bool // have is what they were last read or written to be
	// generation is that of all rules when that was so; 0 if others' changes may be in between.
	generation uint32
}

// Apply makes the tables what a Config says, in one transaction for both families: packets see the tables of before, or those of after. It
// reports whether there was anything to change.
//
// What the kernel has is read at first, after an error, and with look if anybody has changed rules since it was known. Else a change costs what
// is different, in tables of any size.
func (t *Tables) Apply(c Config, look bool) (changed bool, err error) {
	if look && t.known {
		g, err := generation()
		t.known = err == nil && g == t.generation
	}
	if !t.known {
		t.have, t.generation, t.known = read()
	}
	want := setsOf(c)
	if t.known {
		d := t.have.differ(want)
		if d == (difference{}) {
			return false, nil
		}
		if t.commit(t.generation, want, d.write) == nil {
			return true, nil
		}
	}
	before, err := generation()
	if err == nil {
		err = t.commit(before, want, want.write)
	}
	return err == nil, err
}

// commit sends a transaction after which the tables are what is wanted. The rules are of the generation before.
func (t *Tables) commit(before uint32, want sets, write func(*nftables.Conn) error) error {
	t.known, t.generation = false, 0
	conn, err := nftables.New(nftables.WithSockOptions(roomy))
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	if err := write(conn); err != nil {
		return fmt.Errorf("sets: %w", err)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables transaction: %w", err)
	}
	t.have, t.known = want, true
	if after, err := generation(); err == nil && before != 0 && after == max(before+1, 1) { // as the kernel counts
		t.generation = after
	}
	return nil
}

// roomy has a socket take a transaction for thousands of nodes at once; the kernel takes no more than what has room in its buffer.
func roomy(s *netlink.Conn) error { return s.SetWriteBuffer(16 << 20) }

// sets are the elements of both families' sets, in the order of families and setNames.
type sets [2][2][]span

var setNames = [2]string{"pods", "inside"}

func setsOf(c Config) (s sets) {
	for i, f := range families {
		bits := int(f.addr.Bytes) * 8
		s[i] = [2][]span{spans(bits, c.Pods), spans(bits, c.always(), c.Pods, c.Inside)}
	}
	return s
}

// write has a transaction make the tables anew.
func (s sets) write(conn *nftables.Conn) error {
	var errs []error
	for i, f := range families {
		errs = append(errs, f.make(conn, s[i]))
	}
	return errors.Join(errs...)
}

// difference is what is to be taken out of sets and put into them.
type difference struct{ del, add *sets }

func (s sets) differ(want sets) (d difference) {
	for i := range s {
		for j := range s[i] {
			del, add := differ(s[i][j], want[i][j])
			if len(del)+len(add) == 0 {
				continue
			}
			if d.del == nil {
				d.del, d.add = &sets{}, &sets{}
			}
			d.del[i][j], d.add[i][j] = del, add
		}
	}
	return d
}

// write has a transaction change the elements. What is put in may overlap with what is taken out.
func (d difference) write(conn *nftables.Conn) error {
	var errs []error
	for i, f := range families {
		for j, name := range setNames {
			set := f.set(f.table(), name)
			errs = append(errs, inParts(set, d.del[i][j], conn.SetDeleteElements), inParts(set, d.add[i][j], conn.SetAddElements))
		}
	}
	return errors.Join(errs...)
}

// Remove takes the tables away. It is no error that there are none.
func Remove() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	for _, f := range families {
		table := conn.AddTable(&nftables.Table{Name: Table, Family: f.id}) // so that there is one to delete
		conn.DelTable(table)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables transaction: %w", err)
	}
	return nil
}

// family is what is different in the tables of IPv4 and IPv6.
type family struct {
	id       nftables.TableFamily
	addr     nftables.SetDatatype
	src, dst uint32 // where in the IP header
}

var families = []family{
	{nftables.TableFamilyIPv4, nftables.TypeIPAddr, 12, 16}, {nftables.TableFamilyIPv6, nftables.TypeIP6Addr, 8, 24},
}

func (f family) table() *nftables.Table { return &nftables.Table{Name: Table, Family: f.id} }

func (f family) set(table *nftables.Table, name string) *nftables.Set {
	return &nftables.Set{Table: table, Name: name, KeyType: f.addr, Interval: true, KeyByteOrder: binaryutil.BigEndian}
}

func (f family) chain(table *nftables.Table) *nftables.Chain {
	return &nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}
}

// rule is what is done with a packet, whose source is a pod and whose destination is not inside.
func (f family) rule(pods, inside *nftables.Set) []expr.Any {
	in := func(offset uint32, set *nftables.Set, not bool) []expr.Any {
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addr.Bytes},
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: not},
		}
	}
	return slices.Concat(
		in(f.src, pods, false), in(f.dst, inside, true),
		[]expr.Any{&expr.Masq{FullyRandom: true}}, // two pods' connections from the same port do not get in each other's way (kernel doc: nf_nat)
	)
}

// make makes the table anew.
func (f family) make(conn *nftables.Conn, lists [2][]span) error {
	table := f.table()
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	var made [2]*nftables.Set
	var errs []error
	for i, name := range setNames {
		made[i] = f.set(table, name)
		errs = append(errs, conn.AddSet(made[i], nil), inParts(made[i], lists[i], conn.SetAddElements))
	}
	chain := conn.AddChain(f.chain(table))
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: f.rule(made[0], made[1])})
	return errors.Join(errs...)
}

// perMessage is how many elements a message has at most: they are one attribute, whose length is a number of 16 bits. It is even, so that
// the two of a span stay together.
const perMessage = 400

func inParts(set *nftables.Set, list []span, send func(*nftables.Set, []nftables.SetElement) error) (err error) {
	for chunk := range slices.Chunk(elements(list), perMessage) {
		err = errors.Join(err, send(set, chunk))
	}
	return err
}
