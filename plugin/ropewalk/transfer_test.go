package ropewalk

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/transfer"
	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// TestTransferOfServers holds that a transfer has the zone's servers and their addresses, each record once, whether the
// servers have a name in the cluster or not.
func TestTransferOfServers(t *testing.T) {
	h := handler(t)
	h.local = []netip.Addr{netip.MustParseAddr("10.244.0.53")}
	transferred := func() (got []string) {
		ch, err := h.Transfer("cluster.local.", 0)
		if err != nil {
			t.Fatal(err)
		}
		for rrs := range ch {
			for _, rr := range rrs {
				s := rr.Header().Name + " " + dns.TypeToString[rr.Header().Rrtype]
				if rr.Header().Rrtype != dns.TypeSOA {
					s += " " + strings.TrimPrefix(rr.String(), rr.Header().String())
				}
				got = append(got, s)
			}
		}
		if len(got) > 1 {
			slices.Sort(got[1 : len(got)-1]) // in any order, but for the SOA record at both ends
		}
		return got
	}
	if diff := cmp.Diff([]string{
		"cluster.local. SOA",
		"alias.shop.svc.cluster.local. CNAME db.example.",
		"cluster.local. NS ns.dns.cluster.local.",
		`dns-version.cluster.local. TXT "1.1.0"`,
		"ns.dns.cluster.local. A 10.244.0.53",
		"cluster.local. SOA",
	}, transferred()); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}

	now := time.Now()
	h.zone.Apply(cluster.Upserted(&cluster.Service{Namespace: "shop", Name: "dns", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}}, now))
	h.zone.Apply(cluster.Upserted(&cluster.Slice{Namespace: "shop", Name: "dns-1", Service: "dns", Endpoints: []cluster.Endpoint{
		{Addr: netip.MustParseAddr("10.244.0.53"), Ready: true},
	}}, now))
	want := []string{
		"cluster.local. SOA",
		"10-244-0-53.dns.shop.svc.cluster.local. A 10.244.0.53",
		"alias.shop.svc.cluster.local. CNAME db.example.",
		"cluster.local. NS dns.shop.svc.cluster.local.",
		`dns-version.cluster.local. TXT "1.1.0"`,
		"dns.shop.svc.cluster.local. A 10.96.0.10",
		"cluster.local. SOA",
	}
	deadline := time.Now().Add(10 * time.Second)
	for !cmp.Equal(want, transferred()) && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if diff := cmp.Diff(want, transferred()); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
	if _, err := h.Transfer("shop.svc.cluster.local.", 0); !errors.Is(err, transfer.ErrNotAuthoritative) {
		t.Errorf("a name in the zone is no zone: %v", err)
	}
}
