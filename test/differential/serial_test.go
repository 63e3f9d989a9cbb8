package differential

import (
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ropewalk-net/ropewalk/test/standin"
)

// serial changes the address of a service and sees whether the SOA serials follow.
func (r *report) serial(t *testing.T) {
	api := standin.New(t)
	api.Apply(namespaces()...)
	api.Apply(service("shop", "web", ips("10.96.0.2"), tcp("http", 80)))
	kubeconfig := api.Kubeconfig(t.TempDir())
	c := &config{zones: cluster}
	stock := newClient(start(t, corefile(c, "kubernetes", kubeconfig, nil)))
	defer stock.Close()
	ours := newClient(start(t, corefile(c, "ropewalk", kubeconfig, nil)))
	defer ours.Close()
	before := [2]uint32{stock.serial(t), ours.serial(t)}
	api.Apply(service("shop", "web", ips("10.96.0.3"), tcp("http", 80)))
	stock.await(t, "10.96.0.3")
	ours.await(t, "10.96.0.3")
	after := [2]string{moved(before[0], stock.serial(t)), moved(before[1], ours.serial(t))}
	r.asked++
	if after[0] != after[1] {
		r.found = append(r.found, &difference{config: r.config, q: question{"cluster.local.", dns.TypeSOA, dns.ClassINET, via{}},
			stock: after[0], ours: after[1], replies: after})
	}
}

// moved compares serials as RFC 1982 has it.
func moved(before, after uint32) string {
	switch d := int32(after - before); {
	case d > 0:
		return "LATER"
	case d < 0:
		return "EARLIER"
	}
	return "SAME"
}

func (c *client) one(t *testing.T, name string, typ uint16) *dns.Msg {
	t.Helper()
	m, err := c.ask([]question{{name, typ, dns.ClassINET, via{}}})
	if err != nil {
		t.Fatal(err)
	}
	return m[0]
}

func (c *client) serial(t *testing.T) uint32 {
	t.Helper()
	m := c.one(t, "cluster.local.", dns.TypeSOA)
	if len(m.Answer) != 1 {
		t.Fatalf("no SOA record: %v", m)
	}
	return m.Answer[0].(*dns.SOA).Serial
}

// await waits until the service has an address.
func (c *client) await(t *testing.T, addr string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		m := c.one(t, "web.shop.svc.cluster.local.", dns.TypeA)
		if len(m.Answer) == 1 && m.Answer[0].(*dns.A).A.String() == addr {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s: %v", addr, m)
		}
	}
}
