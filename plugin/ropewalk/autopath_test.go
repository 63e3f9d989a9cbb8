package ropewalk

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

// truncated is an Upstream whose answers did not fit.
type truncated struct{ table }

func (u truncated) Lookup(ctx context.Context, state request.Request, name string, typ uint16) (*dns.Msg, error) {
	m, err := u.table.Lookup(ctx, state, name, typ)
	if err != nil {
		return nil, err
	}
	m.Truncated = true
	return m, nil
}

// table is an Upstream: a record or the name of a code for each name; what it does not have fails.
type table map[string]string

func (u table) Lookup(_ context.Context, state request.Request, name string, _ uint16) (*dns.Msg, error) {
	v, ok := u[name]
	if !ok {
		return nil, errors.New("not there")
	}
	m := new(dns.Msg).SetReply(state.NewWithQuestion(name, state.QType()).Req)
	if code, ok := dns.StringToRcode[v]; ok {
		m.Rcode = code
		return m, nil
	}
	rr, err := dns.NewRR(name + " 60 IN A " + v)
	m.Answer = []dns.RR{rr}
	return m, err
}

// handler returns a handler of cluster.local for a cluster with the namespace shop, an alias for db.example in it, and
// a pod of it at 10.244.0.9.
func handler(t *testing.T) *Ropewalk {
	t.Helper()
	zones := []string{"cluster.local."}
	origins, err := zone.NewOrigins(zones, nil)
	if err != nil {
		t.Fatal(err)
	}
	z := zone.New(zone.Options{WatchPods: true})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		z.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	now := time.Now()
	z.Apply(cluster.Upserted(&cluster.Namespace{Name: "shop"}, now))
	z.Apply(cluster.Upserted(&cluster.Service{Namespace: "shop", Name: "alias", Type: cluster.ExternalName, ExternalName: "db.example"}, now))
	z.Apply(cluster.Upserted(&cluster.Pod{Namespace: "shop", Name: "client", IPs: []netip.Addr{netip.MustParseAddr("10.244.0.9")}}, now))
	for k := range cluster.NumKinds {
		z.Apply(cluster.Change{Op: cluster.Synced, Kind: k})
	}
	select {
	case <-z.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("not ready")
	}
	return &Ropewalk{zones: zones, origins: origins, zone: z, autopath: true}
}

// TestHostSearch holds that the node's search domains come behind the cluster's, and that a step which fails is not
// skipped: what comes after it might be another host.
func TestHostSearch(t *testing.T) {
	h := handler(t)
	h.hostSearch = []string{"a.example.", "b.example."}
	for _, tt := range []struct {
		name     string
		upstream table
		want     string
	}{
		{"first domain", table{"db.a.example.": "192.0.2.1", "db.b.example.": "192.0.2.2", "db.": "192.0.2.3"}, "NOERROR db.a.example. 192.0.2.1"},
		{"second domain", table{"db.a.example.": "NXDOMAIN", "db.b.example.": "192.0.2.2", "db.": "192.0.2.3"}, "NOERROR db.b.example. 192.0.2.2"},
		{"no domain", table{"db.a.example.": "NXDOMAIN", "db.b.example.": "NXDOMAIN", "db.": "192.0.2.3"}, "NOERROR db. 192.0.2.3"},
		{"nowhere", table{"db.a.example.": "NXDOMAIN", "db.b.example.": "NXDOMAIN", "db.": "NXDOMAIN"}, "NXDOMAIN"},
		{"failure on the way", table{"db.a.example.": "SERVFAIL", "db.b.example.": "192.0.2.2", "db.": "192.0.2.3"}, "NXDOMAIN"},
		{"refusal on the way", table{"db.a.example.": "NXDOMAIN", "db.b.example.": "REFUSED", "db.": "192.0.2.3"}, "NXDOMAIN"},
		{"no answer on the way", table{"db.b.example.": "192.0.2.2", "db.": "192.0.2.3"}, "NXDOMAIN"},
		{"no address", table{"db.a.example.": "NOERROR", "db.b.example.": "192.0.2.2"}, "NOERROR"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h.upstream = tt.upstream
			w := dnstest.NewRecorder(&test.ResponseWriter{RemoteIP: "10.244.0.9"})
			q := new(dns.Msg).SetQuestion("db.shop.svc.cluster.local.", dns.TypeA)
			if _, err := h.ServeDNS(t.Context(), w, q); err != nil {
				t.Fatal(err)
			}
			got := []string{dns.RcodeToString[w.Msg.Rcode]}
			for _, rr := range w.Msg.Answer {
				switch rr := rr.(type) {
				case *dns.CNAME:
					got = append(got, rr.Target)
				case *dns.A:
					got = append(got, rr.A.String())
				}
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("want -, got +\n%s", diff)
			}
		})
	}
}

// TestReplyIsItsOwn holds that a reply keeps its question when the query is used again, as the autopath plugin does.
func TestReplyIsItsOwn(t *testing.T) {
	h := handler(t)
	w := dnstest.NewRecorder(&test.ResponseWriter{})
	q := new(dns.Msg).SetQuestion("Nothing.shop.svc.cluster.local.", dns.TypeA)
	if _, err := h.ServeDNS(t.Context(), w, q); err != nil {
		t.Fatal(err)
	}
	q.Question[0].Name = "other."
	if got := w.Msg.Question[0].Name; got != "Nothing.shop.svc.cluster.local." {
		t.Errorf("the reply's question is now %s", got)
	}
}

// TestTruncatedTarget holds that a client learns that there is more where an alias leads.
func TestTruncatedTarget(t *testing.T) {
	h := handler(t)
	for _, u := range []Upstream{table{"db.example.": "192.0.2.1"}, truncated{table{"db.example.": "192.0.2.1"}}} {
		h.upstream = u
		w := dnstest.NewRecorder(&test.ResponseWriter{RemoteIP: "10.244.0.8"})
		if _, err := h.ServeDNS(t.Context(), w, new(dns.Msg).SetQuestion("alias.shop.svc.cluster.local.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		if _, want := u.(truncated); w.Msg.Truncated != want || len(w.Msg.Answer) != 2 {
			t.Errorf("TC %v, want %v\n%s", w.Msg.Truncated, want, w.Msg)
		}
	}
}
