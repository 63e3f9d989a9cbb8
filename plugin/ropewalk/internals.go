package ropewalk

import (
	"errors"
	"fmt"
	"net"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
)

// The fast path answers in the place of a whole server, so it has to know which zones the server has, which plugins stand
// in front of ropewalk, and which socket the server reads. CoreDNS and caddy keep that to themselves. It is read here, and
// only here, by reflection: never written, checked for its type, and if a version of CoreDNS has it differently,
// the fast path is off. internals_test.go tells when that would happen.

// internals is what is read of a server.
type internals struct {
	zones map[string][]*dnsserver.Config
	// opcodes are those that plugins have asked for, other than QUERY and NOTIFY.
	opcodes map[int]bool
	// proxied says that clients are behind a proxy that says who they are.
	proxied bool
}

func serverInternals(s *dnsserver.Server) (in internals, err error) {
	defer func() {
		if r := recover(); r != nil { // reflect panics where a field is not what it was
			err = fmt.Errorf("dnsserver.Server: %v", r)
		}
	}()
	v := reflect.ValueOf(s).Elem()
	in.zones = map[string][]*dnsserver.Config{}
	for it := v.FieldByName("zones").MapRange(); it.Next(); {
		for i := range it.Value().Len() {
			c := it.Value().Index(i)
			if c.Type() != reflect.TypeFor[*dnsserver.Config]() {
				return in, fmt.Errorf("a zone's configuration is a %v", c.Type())
			}
			z := it.Key().String()
			in.zones[z] = append(in.zones[z], (*dnsserver.Config)(c.UnsafePointer()))
		}
	}
	in.opcodes = map[int]bool{}
	for _, k := range v.FieldByName("allowedOpcodes").MapKeys() {
		in.opcodes[int(k.Int())] = true
	}
	in.proxied = !v.FieldByName("connPolicy").IsNil()
	return in, nil
}

// otherDecorator returns what another plugin, as shed, would do about the server's answers; nil if there is none. Of what
// several blocks ask for, CoreDNS takes the last (dnsserver.Config.UDPDecorateWriterFunc), and ropewalk needs none.
func (in internals) otherDecorator() func(*dnsserver.Server) dns.DecorateWriter {
	ours := reflect.ValueOf((*Ropewalk)(nil).decorate).Pointer()
	for _, configs := range in.zones {
		for _, c := range configs {
			if f := c.UDPDecorateWriterFunc; f != nil && reflect.ValueOf(f).Pointer() != ours {
				return f
			}
		}
	}
	return nil
}

// accept is what the server does with a message that has this header, before it reads on (dns.MsgAcceptFunc).
func (in internals) accept(h dns.Header) dns.MsgAcceptAction {
	action := dns.DefaultMsgAcceptFunc(h)
	if action != dns.MsgRejectNotImplemented || !in.opcodes[int(h.Bits>>11)&0xF] {
		return action
	}
	if h.Qdcount != 1 {
		return dns.MsgReject
	}
	return dns.MsgAccept
}

// serverSocket returns the connection on which a server of an instance of CoreDNS gets queries over UDP.
func serverSocket(inst *caddy.Instance, s *dnsserver.Server) (*net.UDPConn, error) {
	for _, l := range inst.Servers() {
		of, conn, err := listener(l)
		if err != nil {
			return nil, err
		}
		if of != s {
			continue
		}
		if conn == nil {
			return nil, errors.New("its socket is not an ordinary one for UDP")
		}
		return conn, nil
	}
	return nil, errors.New("the server is not to be found")
}

// serverListener returns the listener on which a server of an instance of CoreDNS takes connections over TCP.
func serverListener(inst *caddy.Instance, s *dnsserver.Server) (*net.TCPListener, error) {
	for _, l := range inst.Servers() {
		if of, _, err := listener(l); err != nil || of != s {
			continue
		}
		v := reflect.ValueOf(l).FieldByName("listener")
		if !v.IsValid() || v.Kind() != reflect.Interface || !v.Elem().IsValid() || v.Elem().Type() != reflect.TypeFor[*net.TCPListener]() {
			return nil, errors.New("its socket is not an ordinary one for TCP")
		}
		return (*net.TCPListener)(v.Elem().UnsafePointer()), nil
	}
	return nil, errors.New("the server is not to be found")
}

// serverWith returns a server that runs and reads one of some sockets, which are given by their inodes, and its instance of
// CoreDNS; nil if there is none. It is for the goroutine that starts and stops instances, which caddy.Instances does not lock.
func serverWith(sockets map[uint64]bool) (*caddy.Instance, *dnsserver.Server, *net.UDPConn) {
	for _, inst := range caddy.Instances() {
		for _, l := range inst.Servers() {
			if s, conn, err := listener(l); err == nil && s != nil && conn != nil && sockets[inode(conn)] {
				return inst, s, conn
			}
		}
	}
	return nil, nil, nil
}

// listener returns the server behind a listener and its connection for UDP; nil for what is of another kind.
func listener(l caddy.ServerListener) (s *dnsserver.Server, conn *net.UDPConn, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("caddy.ServerListener: %v", r)
		}
	}()
	v := reflect.ValueOf(l)
	if server := v.FieldByName("server").Elem(); server.IsValid() && server.Type() == reflect.TypeFor[*dnsserver.Server]() {
		s = (*dnsserver.Server)(server.UnsafePointer())
	}
	if packet := v.FieldByName("packet").Elem(); packet.IsValid() && packet.Type() == reflect.TypeFor[*net.UDPConn]() {
		conn = (*net.UDPConn)(packet.UnsafePointer())
	}
	return s, conn, nil
}

// handlersAhead returns the plugins of a server block that see queries before ropewalk does. It is an error if there is one
// of which that is not known.
func handlersAhead(c *dnsserver.Config) (ahead []plugin.Handler, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("dnsserver.Config: %v", r)
		}
	}()
	for it := reflect.ValueOf(c).Elem().FieldByName("registry").MapRange(); it.Next(); {
		if name := it.Key().String(); !slices.Contains(dnsserver.Directives, name) {
			return nil, fmt.Errorf("the plugin %s is called otherwise in a Corefile, so that its place is not known", name)
		}
	}
	for _, h := range c.Handlers() {
		if h.Name() == pluginName {
			break
		}
		ahead = append(ahead, h)
	}
	return ahead, nil
}

// isRoundRobin says whether the plugin loadbalance has its default policy.
func isRoundRobin(h plugin.Handler) bool {
	shuffle := reflect.ValueOf(h).FieldByName("shuffle")
	if !shuffle.IsValid() || shuffle.Kind() != reflect.Func {
		return false
	}
	f := runtime.FuncForPC(shuffle.Pointer())
	return f != nil && strings.HasSuffix(f.Name(), "/loadbalance.randomShuffle")
}
