package ropewalk

import (
	"net"
	"reflect"
	"slices"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/bufsize"
	"github.com/miekg/dns"

	_ "github.com/coredns/coredns/plugin/loadbalance"
)

// TestInternals holds that CoreDNS and caddy have what the fast path reads of them. Where a new version has it otherwise, the
// fast path is off for all, with a line in the log.
func TestInternals(t *testing.T) {
	for _, f := range []struct {
		of         reflect.Type
		name, want string
	}{
		{reflect.TypeFor[dnsserver.Server](), "zones", "map[string][]*dnsserver.Config"},
		{reflect.TypeFor[dnsserver.Server](), "allowedOpcodes", "map[int]struct {}"},
		{reflect.TypeFor[dnsserver.Server](), "connPolicy", "proxyproto.ConnPolicyFunc"},
		{reflect.TypeFor[dnsserver.Config](), "registry", "map[string]plugin.Handler"},
		{reflect.TypeFor[dnsserver.Config](), "UDPDecorateWriterFunc", "func(*dnsserver.Server) dns.DecorateWriter"},
		{reflect.TypeFor[caddy.ServerListener](), "server", "caddy.Server"},
		{reflect.TypeFor[caddy.ServerListener](), "packet", "net.PacketConn"},
	} {
		if got, ok := f.of.FieldByName(f.name); !ok || got.Type.String() != f.want {
			t.Errorf("internals.go reads %v.%s as a %s; it is now %v (there: %v)", f.of, f.name, f.want, got.Type, ok)
		}
	}
}

// handlerOf is a plugin by name.
type handlerOf struct{ plugin.Handler }

func (h handlerOf) Name() string { return "stranger" }

func server(t *testing.T, configs ...*dnsserver.Config) (*dnsserver.Server, internals) {
	t.Helper()
	s, err := dnsserver.NewServer("dns://127.0.0.1:53", configs)
	if err != nil {
		t.Fatal(err)
	}
	in, err := serverInternals(s)
	if err != nil {
		t.Fatal(err)
	}
	return s, in
}

func TestServerInternals(t *testing.T) {
	a, b := &dnsserver.Config{Zone: "a."}, &dnsserver.Config{Zone: "b."}
	_, in := server(t, a, b)
	if len(in.zones) != 2 || !slices.Equal(in.zones["a."], []*dnsserver.Config{a}) || !slices.Equal(in.zones["b."], []*dnsserver.Config{b}) {
		t.Errorf("zones: %v", in.zones)
	}
	if in.proxied || len(in.opcodes) > 0 || in.otherDecorator() != nil {
		t.Errorf("of nothing: %+v", in)
	}

	b.AllowOpcode(dns.OpcodeUpdate)
	policy := reflect.ValueOf(&b.ProxyProtoConnPolicy).Elem()
	policy.Set(reflect.MakeFunc(policy.Type(), func([]reflect.Value) []reflect.Value { return nil }))
	b.UDPDecorateWriterFunc = (&Ropewalk{}).decorate
	if _, in = server(t, a, b); !in.proxied || !in.opcodes[dns.OpcodeUpdate] || len(in.opcodes) != 1 || in.otherDecorator() != nil {
		t.Errorf("with a proxy, updates and a decorator of our own: %+v", in)
	}
	a.UDPDecorateWriterFunc = func(*dnsserver.Server) dns.DecorateWriter { return nil }
	if _, in = server(t, a, b); in.otherDecorator() == nil {
		t.Error("another's decorator is not seen")
	}

	header := func(opcode int, questions uint16) dns.Header {
		return dns.Header{Bits: uint16(opcode) << 11, Qdcount: questions}
	}
	for _, test := range []struct {
		header dns.Header
		want   dns.MsgAcceptAction
	}{
		{header(dns.OpcodeQuery, 1), dns.MsgAccept},
		{header(dns.OpcodeUpdate, 1), dns.MsgAccept},
		{header(dns.OpcodeUpdate, 2), dns.MsgReject},
		{header(dns.OpcodeStatus, 1), dns.MsgRejectNotImplemented},
	} {
		if got := in.accept(test.header); got != test.want {
			t.Errorf("accept(%+v) = %v, want %v", test.header, got, test.want)
		}
	}
}

func TestListener(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var inst caddy.Instance
	s, _ := server(t, &dnsserver.Config{Zone: "."})
	inst.SaveServer(s, nil)
	got, c, err := listener(inst.Servers()[0])
	if got != s || c != nil || err != nil {
		t.Errorf("listener = %v, %v, %v", got, c, err)
	}
	if _, err := serverSocket(&inst, s); err == nil {
		t.Error("a server without UDP has a socket")
	}
}

func TestHandlersAhead(t *testing.T) {
	c := &dnsserver.Config{Zone: "."}
	c.AddPlugin(func(plugin.Handler) plugin.Handler { return bufsize.Bufsize{} })
	c.AddPlugin(func(plugin.Handler) plugin.Handler { return &Ropewalk{} })
	if err := dnsserver.SetDirectives([]string{"bufsize", pluginName}); err != nil {
		t.Fatal(err)
	}
	server(t, c)
	if ahead, err := handlersAhead(c); err != nil || len(ahead) != 1 || ahead[0].Name() != "bufsize" {
		t.Errorf("ahead: %v, %v", ahead, err)
	}
	c.AddPlugin(func(plugin.Handler) plugin.Handler { return handlerOf{} })
	server(t, c)
	if ahead, err := handlersAhead(c); err == nil {
		t.Errorf("ahead, with one whose place is not known: %v", ahead)
	}
}

// TestIsRoundRobin holds that the policies of the plugin loadbalance are told apart by what it keeps of them.
func TestIsRoundRobin(t *testing.T) {
	for corefile, want := range map[string]bool{
		"loadbalance":             true,
		"loadbalance round_robin": true,
		"loadbalance round_robin {\nprefer 10.0.0.0/8\n}":    false,
		"loadbalance weighted /dev/null {\nreload 0s\n}":     false,
		"loadbalance {\nprefer 10.0.0.0/8 192.168.0.0/16\n}": false,
	} {
		c := caddy.NewTestController("dns", corefile)
		setup, err := caddy.DirectiveAction("dns", "loadbalance")
		if err != nil {
			t.Fatal(err)
		}
		if err := setup(c); err != nil {
			t.Fatalf("%s: %v", corefile, err)
		}
		if got := isRoundRobin(dnsserver.GetConfig(c).Plugin[0](nil)); got != want {
			t.Errorf("isRoundRobin of %q: %v, want %v; internals.go knows LoadBalance.shuffle as the function randomShuffle", corefile, got, want)
		}
	}
}
