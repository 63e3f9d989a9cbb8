package bandwidth

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		raw  string
		want Limits
	}{
		{"", Limits{}},
		{"null", Limits{}},
		{"{}", Limits{}},
		{`{"ingressRate": 0, "ingressBurst": 0, "shapedSubnets": []}`, Limits{}},
		{`{"ingressRate": 1000, "ingressBurst": 8, "egressRate": 1000000000000000, "egressBurst": 34359738358}`,
			Limits{1000, 8, 1_000_000_000_000_000, 34359738358}},
		{`{"egressRate": 5000000}`, Limits{EgressRate: 5_000_000}},
		// The kubelet's dockershim, containerd, CRI-O.
		{`{"ingressRate": 10000000, "ingressBurst": 2147483647}`, Limits{IngressRate: 10_000_000}},
		{`{"IngressRate": 10000000, "IngressBurst": 4294967295, "EgressRate": 0, "EgressBurst": 0}`, Limits{IngressRate: 10_000_000}},
		{`{"egressRate": 10000000, "egressBurst": 34359738359}`, Limits{EgressRate: 10_000_000}},
	} {
		if got, err := Parse([]byte(test.raw)); got != test.want || err != nil {
			t.Errorf("%s: %+v, %v", test.raw, got, err)
		}
	}
	for _, test := range []struct {
		raw     string
		invalid bool // ErrInvalid, and not an error of JSON
		says    string
	}{
		{`{"ingressBurst": 1000}`, true, "ingress: invalid limit: there is a burst, and no rate"},
		{`{"egressBurst": 1000}`, true, "egress"},
		{`{"ingressRate": 999}`, true, "999 is not from 1000"},
		{`{"egressRate": 1000000000000001}`, true, "to 1000000000000000 bits"},
		{`{"egressRate": 18446744073709551615, "egressBurst": 18446744073709551615}`, true, "rate"},
		{`{"egressRate": 1000, "egressBurst": 18446744073709551615}`, true, "burst"},
		{`{"egressRate": 1000, "egressBurst": 34359738360}`, true, "more than 34359738359 bits"},
		{`{"ingressRate": -1}`, false, "-1"},
		{`{"ingressRate": 1.5}`, false, "1.5"},
		{`{"ingressRate": "10M"}`, false, "string"},
		{`{"ingressRate": 18446744073709551616}`, false, "18446744073709551616"},
		{`[]`, false, "array"},
		{`{`, false, "end"},
	} {
		if got, err := Parse([]byte(test.raw)); got != (Limits{}) || err == nil || errors.Is(err, ErrInvalid) != test.invalid || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %+v, %v", test.raw, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"ingressRate": 1000, "ingressBurst": 8, "egressRate": 1000000000000000, "egressBurst": 34359738358}`), 1500)
	f.Add([]byte(`{"IngressRate": 8007, "IngressBurst": 4294967295, "EgressRate": 99999999999, "EgressBurst": 1}`), 65535)
	f.Add([]byte(`{"egressRate": 1000, "egressBurst": 34359738358}`), 68)
	f.Fuzz(func(t *testing.T, raw []byte, mtu int) {
		l, err := Parse(raw)
		if err != nil {
			return
		}
		mtu = 68 + int(uint(mtu)%(math.MaxUint16-67))
		for _, d := range [][2]uint64{{l.IngressRate, l.IngressBurst}, {l.EgressRate, l.EgressBurst}} {
			if d[0] == 0 {
				continue
			}
			if err := plausible(d[0], d[1], mtu); err != nil {
				t.Errorf("%+v, MTU %d: %v", l, mtu, err)
			}
		}
	})
}

// plausible says what is wrong with the filter for a limit that was found to be valid.
func plausible(rate, burst uint64, mtu int) error {
	q, err := shape(rate, burst, mtu)
	if err != nil {
		if rate < 2000 && mtu > 32<<10 {
			return nil
		}
		return err
	}
	// As the kernel does (tbf_change, psched_ns_t2l).
	largest := uint64(q.Buffer) * tick * q.Rate / second
	switch {
	case q.Rate != rate/8:
		return fmt.Errorf("rate %d", q.Rate)
	case largest < uint64(mtu)+headers:
		return fmt.Errorf("packets of more than %d bytes are dropped", largest)
	case burst != 0 && largest > max(burst/8, uint64(mtu+headers))+q.Rate*tick/second+1:
		return fmt.Errorf("a burst of %d bytes", largest)
	case largest < burst/8 && q.Buffer != math.MaxUint32:
		return fmt.Errorf("a burst of %d bytes only", largest)
	case uint64(q.Limit) < min(largest, maxPacket) && largest-uint64(q.Limit) > q.Rate*tick/second+1:
		return fmt.Errorf("no room for a packet of %d bytes in %d", largest, q.Limit)
	case uint64(q.Limit) > q.Rate/queuesPerSecond+maxPacket:
		return fmt.Errorf("a queue of %d bytes", q.Limit)
	}
	return nil
}

// TestShape holds that nothing overflows or comes to nothing between the lowest rates and the highest.
func TestShape(t *testing.T) {
	for rate := uint64(minRate); rate <= maxRate; rate *= 10 {
		for _, burst := range []uint64{0, 1, 8, 8 * 1500, burstOfKubelet, burstOfContainerd, burstOfCRIO} {
			for _, mtu := range []int{68, 1280, 1500, 9000, 65535} {
				if err := plausible(rate, burst, mtu); err != nil {
					t.Errorf("rate %d, burst %d, MTU %d: %v", rate, burst, mtu, err)
				}
			}
		}
	}
}

// TestTick holds that this kernel's unit is the one that is counted in.
func TestTick(t *testing.T) {
	text, err := os.ReadFile("/proc/net/psched")
	netns.Need(t, err == nil, "no /proc/net/psched")
	var t2us, us2t, resolution uint64
	if _, err := fmt.Sscanf(string(text), "%x %x %x", &t2us, &us2t, &resolution); err != nil || t2us*1000/us2t/(resolution/1000) == 0 {
		t.Fatalf("%s: %v", text, err)
	}
	// A microsecond is t2us/us2t ticks (iproute2, tc_core.c).
	if t2us*tick != us2t*1000 {
		t.Errorf("%s: a tick is not %d ns", text, tick)
	}
}
