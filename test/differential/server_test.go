package differential

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/miekg/dns"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/template"
	_ "github.com/coredns/coredns/plugin/transfer"

	_ "github.com/ropewalk-net/ropewalk/plugin/ropewalk"
)

// directives has the plugins in the order of cmd/coredns, and one that shows that a query has come that far.
var directives = []string{"bind", "errors", "template", "transfer", "ropewalk", "kubernetes", "forward", "behind"}

func init() {
	caddy.Quiet, dnsserver.Quiet = true, true
	clog.Discard()
	plugin.Register("behind", func(c *caddy.Controller) error {
		dnsserver.GetConfig(c).AddPlugin(func(plugin.Handler) plugin.Handler { return behind{} })
		return nil
	})
}

// passedOn is what it says.
const passedOn = "passed on"

// behind stands behind the plugin under test and answers everything alike.
type behind struct{}

func (behind) Name() string { return "behind" }

func (behind) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	m := new(dns.Msg).SetReply(r)
	m.Answer = []dns.RR{&dns.TXT{
		Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET},
		Txt: []string{passedOn},
	}}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

// server is a CoreDNS in this process.
type server struct{ udp, tcp string }

// start runs a CoreDNS with one server block until the test ends.
func start(t *testing.T, corefile string) *server {
	t.Helper()
	if err := dnsserver.SetDirectives(directives); err != nil {
		t.Fatal(err)
	}
	inst, err := caddy.Start(caddy.CaddyfileInput{Contents: []byte(corefile), Filepath: "Corefile", ServerTypeName: "dns"})
	if err != nil {
		t.Fatalf("%v in\n%s", err, corefile)
	}
	t.Cleanup(func() {
		inst.ShutdownCallbacks()
		if err := inst.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	l := inst.Servers()[0]
	return &server{udp: onLoopback(l.LocalAddr().String()), tcp: onLoopback(l.Addr().String())}
}

// onLoopback makes the address of a socket that listens everywhere one that can be asked.
func onLoopback(addr string) string { return strings.Replace(addr, "[::]", "127.0.0.1", 1) }

// corefile returns the Corefile of one side: the plugin with the options of c, and what else is in the server block.
func corefile(c *config, directive, kubeconfig string, more []string) string {
	bind := ""
	switch c.bind {
	case everywhere:
	case "":
		bind = "  bind 127.0.0.1\n"
	default:
		bind = "  bind " + c.bind + "\n"
	}
	var b, templates strings.Builder
	fmt.Fprintf(&b, ".:0 {\n%s", bind)
	for _, l := range c.around {
		to := &b
		if strings.HasPrefix(l, "template ") {
			to = &templates
		}
		fmt.Fprintf(to, "  %s\n", strings.ReplaceAll(l, "\n", "\n  "))
	}
	fmt.Fprintf(&b, "  %s %s {\n    kubeconfig %s\n", directive, strings.Join(c.zones, " "), kubeconfig)
	for _, l := range append(c.options[:len(c.options):len(c.options)], more...) {
		fmt.Fprintf(&b, "    %s\n", l)
	}
	fmt.Fprintf(&b, "  }\n}\n")
	if templates.Len() > 0 {
		fmt.Fprintf(&b, "%s {\n%s%s}\n", strings.Join(upstreamZones, ":0 ")+":0", bind, templates.String())
	}
	return b.String()
}
