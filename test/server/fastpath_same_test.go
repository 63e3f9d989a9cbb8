package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// TestFastPathIsTheSame sends packets of all kinds, at random and broken at random, to a server with the fast path and to
// one without. Both answer alike, down to the bits of the header, but for compression, and for the bounds of what the fast
// path sends (docs/dns.md): 4,096 octets (whether the answer says so, or repeats what the client takes), and no question along
// with FORMERR.
func TestFastPathIsTheSame(t *testing.T) {
	dir := files(t, "web.yaml", web, "db.yaml", headless("db", 30), "big.yaml", headless("big", 300), "a.yaml", alias("pay", "web.shop.svc.cluster.local"))
	for name, corefile := range map[string]string{
		"alone":  block(ropewalk(dir, "fastpath MODE")),
		"in use": block("errors", "bufsize 1232", "metadata", "nsid", ropewalk(dir, "fastpath MODE", "pods insecure", "fallthrough in-addr.arpa"), "behind"),
		"several blocks": "cluster.local:0 in-addr.arpa:0 {\nbind 127.0.0.1\n" + ropewalk(dir, "fastpath MODE") + "\n}\n" +
			"shop.svc.cluster.local:0 {\nbind 127.0.0.1\nbehind\n}\n" + "b.a.\\.c.:0 {\nbind 127.0.0.1\nbehind\n}\n",
		"of another's": block("errors", stanza("db.shop.svc.cluster.local", dir, "fastpath MODE"), "behind"),
		"autopath":     block("autopath @ropewalk", ropewalk(dir, "pods verified", "fastpath MODE"), "behind"),
	} {
		t.Run(name, func(t *testing.T) {
			off := start(t, strings.ReplaceAll(corefile, "MODE", "off"))
			on := start(t, strings.ReplaceAll(corefile, "MODE", "1"))
			chain, fast := dial(t, off.udp), dial(t, on.udp)
			hits := fastHits(t)
			seed := uint64(time.Now().UnixNano())
			r := rand.New(rand.NewPCG(seed, 0))
			for i := range 3000 {
				b := packet(r)
				want, got := chain.ask(t, b), fast.ask(t, b)
				if diff := differences(b, want, got); diff != "" {
					t.Fatalf("seed %d, packet %d: %x\nchain %x\nfast  %x\n%s", seed, i, b, want, got, diff)
				}
			}
			if n := fastHits(t) - hits; n < 50 {
				t.Errorf("only %v of the queries took the fast path", n)
			}
		})
	}
}

// packet returns a query, or something like one.
func packet(r *rand.Rand) []byte {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	name := pick("web.shop.svc.cluster.local.", "db.shop.svc.cluster.local.", "big.shop.svc.cluster.local.", "pay.shop.svc.cluster.local.",
		"10-244-0-3.db.shop.svc.cluster.local.", "_sql._tcp.db.shop.svc.cluster.local.", "none.shop.svc.cluster.local.", "cluster.local.",
		"dns-version.cluster.local.", "10-1-2-3.shop.pod.cluster.local.", "2.0.96.10.in-addr.arpa.", "1.0.244.10.in-addr.arpa.", "in-addr.arpa.",
		"9.9.9.10.in-addr.arpa.", "ns.dns.cluster.local.", ".", "local.", "example.com.", `web\.shop.svc.cluster.local.`, `\000.shop.svc.cluster.local.`,
		`\255x.svc.cluster.local.`, `svc\.cluster.local.`, `b.a.\.c.`, `x.b.a.\.c.`, "shop.svc.cluster.local.", "svc.cluster.local.", "xcluster.local.",
		strings.Repeat("a", 63)+".shop.svc.cluster.local.", strings.Repeat("a.", 115)+"svc.cluster.local.", strings.Repeat("a.", 40)+"cluster.local.")
	if r.IntN(4) == 0 {
		name = strings.Map(func(c rune) rune {
			if r.IntN(2) == 0 && c >= 'a' && c <= 'z' {
				return c - 'a' + 'A'
			}
			return c
		}, name)
	}
	m := new(dns.Msg)
	m.Id = uint16(r.Uint32())
	m.RecursionDesired, m.CheckingDisabled = r.IntN(2) == 0, r.IntN(4) == 0
	types := []uint16{dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeSOA, dns.TypeNS, dns.TypeTXT, dns.TypeCNAME,
		dns.TypeDS, dns.TypeANY, dns.TypeHTTPS, dns.TypeMX, dns.TypeAXFR, dns.TypeIXFR, dns.TypeOPT, dns.TypeTSIG, dns.TypeNone, 128, 256, 65535}
	m.Question = []dns.Question{{Name: name, Qtype: types[r.IntN(len(types))], Qclass: dns.ClassINET}}
	if r.IntN(2) == 0 {
		m.SetEdns0(uint16([]int{0, 1, 511, 512, 600, 1232, 1233, 4096, 4097, 65535}[r.IntN(10)]), r.IntN(2) == 0)
		o := m.IsEdns0()
		if r.IntN(8) == 0 {
			o.Hdr.Ttl |= r.Uint32() & 0xFFFF // Z
		}
		if r.IntN(16) == 0 {
			o.Hdr.Ttl = r.Uint32()
		}
		for range r.IntN(3) {
			data := make([]byte, r.IntN(40))
			o.Option = append(o.Option, &dns.EDNS0_LOCAL{Code: []uint16{0, 3, 8, 9, 10, 10, 11, 12, 12, 15, 65001}[r.IntN(11)], Data: data})
		}
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	if r.IntN(3) > 0 {
		return b
	}
	switch r.IntN(8) {
	case 0: // the header's bits
		b[2+r.IntN(2)] ^= 1 << r.IntN(8)
	case 1: // the counts
		b[4+r.IntN(8)] = byte(r.IntN(4))
	case 2:
		b = b[:r.IntN(len(b)+1)]
	case 3:
		b = append(b, make([]byte, r.IntN(600-len(b)%600))...)
		b = b[:min(len(b), 512)] // of longer ones, CoreDNS reads no more
	case 4: // class, or whatever lies there
		binary.BigEndian.PutUint16(b[len(b)-2:], []uint16{0, 1, 3, 4, 254, 255, 0xC00C}[r.IntN(7)])
	case 5: // a name's octets
		b[12+r.IntN(len(b)-12)] = byte([]int{0, 1, 63, 64, 128, 192, 255, 'A', '.'}[r.IntN(9)])
	default:
		for range 1 + r.IntN(4) {
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		}
	}
	return b
}

// asker is a client of a server that also sees what is not to be answered.
type asker struct{ net.Conn }

func dial(t *testing.T, addr string) asker {
	t.Helper()
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return asker{c}
}

// ask sends a packet and returns the answer, or nil where there is none for packets that get none.
func (a asker) ask(t *testing.T, b []byte) []byte {
	t.Helper()
	if _, err := a.Write(b); err != nil {
		t.Fatal(err)
	}
	silent := len(b) < 12 || b[2]&0x80 != 0
	mark := []byte{0, 0, 0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0} // UPDATE, which is not implemented
	if silent {
		if len(b) > 1 {
			mark[0], mark[1] = b[0]+1, b[1]
		}
		if _, err := a.Write(mark); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, dns.MaxMsgSize)
	a.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := a.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("no answer to %x", b)
	}
	if err != nil {
		t.Fatal(err)
	}
	buf = buf[:n]
	if silent && bytes.Equal(buf[:2], mark[:2]) {
		return nil
	}
	return buf
}

// takes returns how many octets of an answer a query's client takes.
func takes(query []byte) int {
	m := new(dns.Msg)
	if err := m.Unpack(query); err == nil && m.IsEdns0() != nil {
		return int(m.IsEdns0().UDPSize())
	}
	return dns.MinMsgSize
}

func truncated(b []byte) bool { return len(b) > 12 && b[2]&2 != 0 }

// differences returns what is different in two answers to a query other than compression.
func differences(query, want, got []byte) string {
	if bytes.Equal(want, got) {
		return ""
	}
	if takes(query) > 4096 && (len(want) > 4096 || truncated(want)) && truncated(got) && len(got) <= 4096 {
		return ""
	}
	if len(want) >= 12 && len(got) == 12 && want[3]&0xF == dns.RcodeFormatError && bytes.Equal(want[:4], got[:4]) {
		return ""
	}
	if len(want) < 12 || len(got) < 12 || !bytes.Equal(want[:12], got[:12]) {
		return "the header is different"
	}
	w, g := new(dns.Msg), new(dns.Msg)
	if werr, gerr := w.Unpack(want), g.Unpack(got); werr != nil || gerr != nil {
		return fmt.Sprintf("unpack: %v, %v", werr, gerr)
	}
	for _, m := range []*dns.Msg{w, g} {
		m.Compress = true
		if opt := m.IsEdns0(); opt != nil {
			opt.SetUDPSize(min(opt.UDPSize(), 4096))
		}
	}
	wb, werr := w.Pack()
	gb, gerr := g.Pack()
	if werr == nil && gerr == nil && bytes.Equal(wb, gb) {
		return ""
	}
	return cmp.Diff(w.String(), g.String())
}
