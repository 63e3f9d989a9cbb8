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
)

// The fast path answers in the place of a whole server, so it has to know which zones the server has, which plugins stand
// in front of ropewalk, and which socket the server reads. CoreDNS and caddy keep that to themselves. It is read here, and
// only here, by reflection: never written, checked for its type, and if a version of CoreDNS has it differently,
// the fast path is off. internals_test.go tells when that would happen.

// internals is what is read of a server.
type internals struct {
	zones map[string][]*dnsserver.Config
	// opcodes says that plugins have asked for more opcodes than QUERY and NOTIFY.
	opcodes bool
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
	in.opcodes = v.FieldByName("allowedOpcodes").Len() > 0
	in.proxied = !v.FieldByName("connPolicy").IsNil()
	return in, nil
}

// blocks returns an error that says what keeps the whole server from having a fast path.
func (in internals) blocks(s *dnsserver.Server) error {
	switch {
	case in.proxied:
		return errors.New("the plugin proxyproto has to see every packet")
	case len(s.TsigSecret) > 0:
		return errors.New("the plugin tsig has to see every query")
	case in.opcodes:
		return errors.New("a plugin wants queries of other kinds than usual")
	}
	return nil
}

// serverSocket returns the instance of CoreDNS that a server is part of, and the connection on which it gets queries over UDP.
func serverSocket(s *dnsserver.Server) (inst *caddy.Instance, conn *net.UDPConn, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("caddy.ServerListener: %v", r)
		}
	}()
	for _, inst := range caddy.Instances() {
		for _, l := range inst.Servers() {
			v := reflect.ValueOf(l)
			server := v.FieldByName("server").Elem()
			if server.Type() != reflect.TypeFor[*dnsserver.Server]() || server.UnsafePointer() != reflect.ValueOf(s).UnsafePointer() {
				continue
			}
			packet := v.FieldByName("packet").Elem()
			if packet.Type() != reflect.TypeFor[*net.UDPConn]() {
				return nil, nil, fmt.Errorf("its socket is a %v", packet.Type())
			}
			return inst, (*net.UDPConn)(packet.UnsafePointer()), nil
		}
	}
	return nil, nil, errors.New("it is not one of those that run")
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
