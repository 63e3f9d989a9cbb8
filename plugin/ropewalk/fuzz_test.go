package ropewalk

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/cluster/manifests"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// recorder is a client whose replies must be messages.
type recorder struct {
	dns.ResponseWriter
	f     testing.TB
	wrote int
	tcp   bool
}

func (r *recorder) WriteMsg(m *dns.Msg) error {
	if _, err := m.Pack(); err != nil {
		r.f.Fatalf("%v: %v", err, m)
	}
	r.wrote++
	return nil
}

func (r *recorder) RemoteAddr() net.Addr {
	if r.tcp {
		return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9}
	}
	return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9}
}

func (r *recorder) LocalAddr() net.Addr { return r.RemoteAddr() }

// FuzzServeDNS puts any bytes that CoreDNS's server takes for a query through the handler, as it would: there is one
// reply, or a code for the server to make one of.
func FuzzServeDNS(f *testing.F) {
	const dir = "../../corefile/example"
	if _, err := os.Stat(dir); err != nil {
		f.Fatal(err)
	}
	zones := []string{"cluster.local.", "in-addr.arpa.", "ip6.arpa."}
	origins, err := zone.NewOrigins(zones, nil)
	if err != nil {
		f.Fatal(err)
	}
	source, err := manifests.New(dir, nil)
	if err != nil {
		f.Fatal(err)
	}
	z := zone.New(zone.Options{TTL: 5, Pods: zone.PodsVerified, Env: true, Zonal: true})
	ctx, cancel := context.WithCancel(context.Background())
	f.Cleanup(cancel)
	go z.Run(ctx)
	opts := zone.Options{Pods: zone.PodsVerified}
	go source.Run(ctx, cluster.Interest{Kinds: opts.Interest()}, z)
	select {
	case <-z.Ready():
	case <-time.After(20 * time.Second):
		f.Fatal("not synced")
	}
	h := &Ropewalk{zones: zones, origins: origins, zone: z, autopath: true, upstream: nobody{}}
	h.Fall.SetZonesFromArgs([]string{"in-addr.arpa"})

	for _, name := range []string{"web.shop.svc.cluster.local.", "payments.shop.svc.cluster.local.", "cluster.local.", "x.ip6.arpa."} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeSRV)
		m.SetEdns0(1232, true)
		wire, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, false)
	}
	f.Fuzz(func(t *testing.T, wire []byte, tcp bool) {
		r := new(dns.Msg)
		if r.Unpack(wire) != nil || len(r.Question) == 0 || r.Response {
			return // the server's to refuse
		}
		w := &recorder{f: t, tcp: tcp}
		code, err := h.ServeDNS(context.Background(), request.NewScrubWriter(r, w), r)
		if err != nil && w.wrote == 0 && code == dns.RcodeSuccess || w.wrote > 1 {
			t.Fatalf("code %d, error %v, %d replies", code, err, w.wrote)
		}
	})
}

type nobody struct{}

func (nobody) Lookup(context.Context, request.Request, string, uint16) (*dns.Msg, error) {
	return nil, nil
}
