// Package bandwidth limits how much a pod receives and sends, by the kernel's token bucket filters (tc-tbf(8)). What it receives waits at the
// node's end of its link. What it sends cannot wait there, since it comes in: it is led round by an interface of type ifb, and waits where it
// leaves that. Both limits are of all packets, whatever their protocol.
package bandwidth

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
)

// ErrInvalid says that limits are not such as can be.
var ErrInvalid = errors.New("invalid limit")

// Limits are what the capability bandwidth asks for (CONVENTIONS.md of containernetworking/cni): rates in bits per second, bursts in bits.
// Ingress is what the pod receives, egress what it sends. No rate is no limit; a burst of 0 is for this package to choose.
type Limits struct {
	IngressRate, IngressBurst uint64
	EgressRate, EgressBurst   uint64
}

// The bounds that Kubernetes has for kubernetes.io/ingress-bandwidth and egress-bandwidth, 1k and 1P.
const (
	minRate = 1_000
	maxRate = 1_000_000_000_000_000
)

// maxBurst is in bytes, which the kernel counts in 32 bits.
const maxBurst = math.MaxUint32 - 1

// What runtimes say for want of a burst, since a pod has no annotation for it: the kubelet's dockershim and its heirs, containerd, CRI-O. Taken
// at its word it would mean no limit for the first 256 MiB to 4 GiB, and a queue as long.
const (
	burstOfKubelet    = math.MaxInt32
	burstOfContainerd = math.MaxUint32
	burstOfCRIO       = math.MaxUint32*8 - 1
)

// Parse reads runtimeConfig.bandwidth. Nothing, null or {} is no limits. Errors of values are ErrInvalid.
func Parse(raw []byte) (Limits, error) {
	var l Limits
	if len(raw) == 0 {
		return l, nil
	}
	if err := json.Unmarshal(raw, &l); err != nil {
		return Limits{}, err
	}
	for _, d := range []struct {
		name  string
		rate  uint64
		burst *uint64
	}{
		{"ingress", l.IngressRate, &l.IngressBurst},
		{"egress", l.EgressRate, &l.EgressBurst},
	} {
		switch *d.burst {
		case burstOfKubelet, burstOfContainerd, burstOfCRIO:
			*d.burst = 0
		}
		if err := validate(d.rate, *d.burst); err != nil {
			return Limits{}, fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return l, nil
}

func validate(rate, burst uint64) error {
	switch {
	case rate == 0 && burst != 0:
		return fmt.Errorf("%w: there is a burst, and no rate", ErrInvalid)
	case rate != 0 && (rate < minRate || rate > maxRate):
		return fmt.Errorf("%w: the rate %d is not from %d to %d bits per second", ErrInvalid, rate, minRate, maxRate)
	case burst/8 > maxBurst:
		return fmt.Errorf("%w: the burst %d is more than %d bits", ErrInvalid, burst, uint64(burstOfCRIO))
	}
	return nil
}

const (
	// tick is the kernel's unit for how long it takes to send a burst (PSCHED_SHIFT of include/net/pkt_sched.h), in nanoseconds.
	tick   = 64
	second = 1_000_000_000
	// headers are what the kernel counts of a packet besides its MTU: Ethernet's, with two tags.
	headers = 22
	// maxPacket is the largest that a packet gets before it is segmented (GSO_MAX_SIZE of include/linux/netdevice.h).
	maxPacket = 8 * math.MaxUint16
	// A burst that nobody has chosen is what is sent in 10 ms, so that a kernel that is a few late makes up for it, but not less than
	// with what TCP begins (RFC 6928).
	burstsPerSecond = 100
	leastPackets    = 10
	// Packets that are to wait for longer than 25 ms are dropped, as the bandwidth plugin of containernetworking/plugins does.
	queuesPerSecond = 40
)

// shape returns the filter for a limit, without its place. The rate is not 0. The queue has room for a packet at least, or it would never pass;
// it does not grow with the burst beyond that, so that a flood holds no more of the node's memory than the rate is worth.
func shape(rate, burst uint64, mtu int) (netlink.Tbf, error) {
	if err := validate(rate, burst); err != nil {
		return netlink.Tbf{}, err
	}
	rate /= 8
	least := uint64(mtu + headers)
	size := max(burst/8, least) // the kernel drops what is larger than the burst
	if burst == 0 {
		size = max(rate/burstsPerSecond, leastPackets*least)
	}
	size = min(size, maxBurst)
	if ticks(least, rate) > math.MaxUint32 {
		return netlink.Tbf{}, fmt.Errorf("%w: %d bits per second are too few for packets of %d bytes", ErrInvalid, rate*8, mtu)
	}
	return netlink.Tbf{
		Rate:   rate,
		Buffer: uint32(min(ticks(size, rate), math.MaxUint32)), // 275 s
		Limit:  uint32(min(rate/queuesPerSecond+min(size, maxPacket), math.MaxUint32)),
	}, nil
}

// ticks returns how long so many bytes take, rounded up: rounded down, it would be less than a packet.
func ticks(bytes, rate uint64) uint64 {
	return (bytes*second + rate*tick - 1) / (rate * tick)
}
