// Command coredns is CoreDNS with the ropewalk plugin in it, and with those of CoreDNS's own plugins that the Corefile of
// a cluster uses: no cloud provider's, so that it is smaller than the stock one. It takes CoreDNS's flags.
//
// It does without Multipath TCP, whose sockets lack an option that ropewalk needs (TCP_USER_TIMEOUT).
//
//go:debug multipathtcp=0
package main

import (
	"fmt"
	"os"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
)

func main() {
	if err := dnsserver.SetDirectives(directives); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	coremain.Run()
}
