package link

import (
	"net/netip"
	"strings"
	"testing"
)

func TestNew(t *testing.T) {
	names := map[string]string{}
	for _, of := range [][2]string{{"a", "eth0"}, {"a", "eth1"}, {"b", "eth0"}, {"ae", "th0"}} {
		s := New(of[0], of[1], strings.Repeat("x", 317), 1500, nil)
		if again := New(of[0], of[1], "", 0, nil); again.Host != s.Host || again.HostMAC.String() != s.HostMAC.String() {
			t.Errorf("%v: %v is not found again: %v", of, s, again)
		}
		if other := names[s.Host]; other != "" || len(s.Host) != 10 {
			t.Errorf("%v: the name %s is that of %s", of, s.Host, other)
		}
		names[s.Host] = of[0]
		if !IsHost(s.Host) || IsHost(s.Host+"0") || IsHost(s.Host[1:]) || IsHost("rwabcdefgh") {
			t.Errorf("%s is a host end's name, and what is like it is not", s.Host)
		}
		for _, mac := range []string{s.HostMAC.String(), s.PodMAC.String()} {
			if !strings.ContainsRune("26ae", rune(mac[1])) {
				t.Errorf("%v: %s is not unicast and locally administered", of, mac)
			}
		}
		if s.HostMAC.String() == s.PodMAC.String() || len(s.Alias) != 255 {
			t.Errorf("%v: %v", of, s)
		}
	}
}

func TestQuestions(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}
	if got := questions(addrs, few); len(got) != 1 || got[0].tuple != 0 {
		t.Errorf("of a small table: %v", got)
	}
	if got := questions(addrs, few+1); len(got) != 3 || got[0].tuple == 0 || got[2].tuple != 0 {
		t.Errorf("of a large table: %v", got)
	}
}

// FuzzAttr holds that attributes are read as far as they go and no further.
func FuzzAttr(f *testing.F) {
	f.Add([]byte{8, 0, 1, 0, 10, 0, 0, 1, 5, 0, 3, 0x80, 7, 0, 0, 0}, 3)
	f.Add([]byte{5, 0, 3, 0, 7}, 3)
	f.Fuzz(func(t *testing.T, b []byte, typ int) {
		if v := attr(b, typ); len(v)+4 > len(b) && v != nil {
			t.Errorf("%d bytes of %d", len(v), len(b))
		}
		source(b, typ)
	})
}
