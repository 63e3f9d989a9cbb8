// Package frontends is what the service proxy's two steps agree on: what a node does with the connections that arrive at
// an address and port. One step makes Frontends of services, slices and the node; the other (proxy/nft) puts them into the
// kernel. It knows nothing of either.
package frontends

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Protocol is a transport protocol by its number in the IP header.
type Protocol uint8

// The protocols of the Kubernetes API.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns the protocol as nft(8) spells it.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Key is where connections arrive. There is one Frontend for a Key.
type Key struct {
	// Addr is a service's address. The unspecified address of a family (0.0.0.0 or ::) makes it a node port of that
	// family: it stands for each of the node's addresses that take node ports.
	Addr     netip.Addr
	Protocol Protocol
	Port     uint16
}

// String returns the key for messages, as in "tcp 10.96.0.10:53".
func (k Key) String() string {
	return k.Protocol.String() + " " + netip.AddrPortFrom(k.Addr, k.Port).String()
}

// NodePort reports whether the key is a node port.
func (k Key) NodePort() bool { return k.Addr.IsUnspecified() }

// Frontend says what becomes of new connections to its Key. It is immutable once it is handed over.
type Frontend struct {
	Key
	// ClusterIP says that Addr belongs to one service whole: connections to ports of it that no Frontend has are rejected.
	ClusterIP bool
	// Backends are where connections go, each with the same chance: addresses of Addr's family, none twice, at most
	// MaxBackends. The order means nothing.
	Backends []netip.AddrPort
	// Internal, unless it is empty, is where connections of pods and of this host itself go instead of Backends. It is for
	// externalTrafficPolicy Local (KEP-1669), which binds connections from outside only. Their client's address is
	// kept if they come from the cluster's addresses (Outside), whatever Masquerade says.
	Internal []netip.AddrPort
	// Affinity is how long a client stays with its backend after its last connection; 0 if connections are independent.
	Affinity time.Duration
	// Masquerade says whose address is replaced by the node's, so that replies come back through it.
	Masquerade Masquerade
	// Sources, unless nil, are the only clients that are let in (loadBalancerSourceRanges). Pods' and the host's
	// connections are held to it, too.
	Sources []netip.Prefix
	// Empty says what becomes of connections while there are no Backends.
	Empty Empty
}

// Masquerade says whose connections get the node's address for a source.
type Masquerade uint8

const (
	// Outside is for connections that do not come from the cluster's own addresses.
	Outside Masquerade = iota
	// Never keeps all clients' addresses (externalTrafficPolicy Local).
	Never
	// Always is for an address that other nodes have, too (node ports, load balancers), where the replies of a backend would
	// not pass this node; and for --masquerade-all.
	Always
)

// Empty says what becomes of connections that have nowhere to go.
type Empty uint8

const (
	// Reject answers: TCP RST, ICMP port unreachable.
	Reject Empty = iota
	// Drop does not: other nodes may have backends for them (traffic policy Local).
	Drop
)

// MaxBackends is how many backends a Frontend can have.
const MaxBackends = 1<<16 - 1

// MaxSources is how many Sources a Frontend can have. The kernel needs time by the square of what it takes away of them: half a second for so
// many, in which no other service changes.
const MaxSources = 1 << 12

// ErrInvalid is wrapped by what Validate returns.
var ErrInvalid = errors.New("invalid frontend")

// Validate returns nil if f is as the fields' descriptions ask. Backends are not looked through for duplicates.
func (f *Frontend) Validate() error {
	switch {
	case !f.Addr.IsValid() || f.Addr.Is4In6() || f.Addr.Zone() != "":
		return f.invalid("address")
	case f.Protocol != TCP && f.Protocol != UDP && f.Protocol != SCTP:
		return f.invalid("protocol")
	case f.Port == 0:
		return f.invalid("port 0")
	case f.ClusterIP && f.NodePort():
		return f.invalid("a node port is no ClusterIP")
	case f.Affinity < 0 || f.Affinity%time.Second != 0:
		return f.invalid("affinity is not in seconds")
	case f.Masquerade > Always || f.Empty > Drop:
		return f.invalid("choice out of range")
	case len(f.Backends) > MaxBackends || len(f.Internal) > MaxBackends:
		return f.invalid("too many backends")
	case len(f.Sources) > MaxSources:
		return f.invalid(fmt.Sprintf("%d sources, of which there can be %d", len(f.Sources), MaxSources))
	}
	for _, list := range [][]netip.AddrPort{f.Backends, f.Internal} {
		for _, b := range list {
			if b.Addr().Is4() != f.Addr.Is4() || b.Addr().Is4In6() || b.Addr().Zone() != "" || b.Port() == 0 {
				return f.invalid("backend " + b.String())
			}
		}
	}
	for _, p := range f.Sources {
		if !p.IsValid() || p.Addr().Is4() != f.Addr.Is4() {
			return f.invalid("source " + p.String())
		}
	}
	return nil
}

func (f *Frontend) invalid(what string) error {
	return fmt.Errorf("%w %s: %s", ErrInvalid, f.Key, what)
}
