package link

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const sysctls = "/proc/sys/net/"

// HasIPv6 says whether the kernel speaks IPv6 at all.
func HasIPv6() bool {
	_, err := os.Stat(sysctls + "ipv6")
	return err == nil
}

// sysctl is one to be written, by its path below /proc/sys/net. The kernel shows the namespace of the thread that opens it.
type sysctl struct{ path, value string }

// hostSysctls are those of a host end, to be written before it is up. ipv6 says whether the kernel has it.
func hostSysctls(name string, ipv6 bool) []sysctl {
	out := []sysctl{
		{"ipv4/conf/" + name + "/forwarding", "1"},
		// The routes to a pod are what it may send from.
		{"ipv4/conf/" + name + "/rp_filter", "1"},
	}
	if ipv6 {
		out = append(out,
			sysctl{"ipv6/conf/" + name + "/disable_ipv6", "0"},
			// No address of its own, which nobody speaks to. With one, the kernel needs a second rcu_barrier to take the interface away, and a DEL
			// twice as long (IN6_ADDR_GEN_MODE_NONE; netdev_wait_allrefs_any).
			sysctl{"ipv6/conf/" + name + "/addr_gen_mode", "1"},
			// A pod does not tell the node its routers (CVE-2020-10749).
			sysctl{"ipv6/conf/" + name + "/accept_ra", "0"},
		)
	}
	return out
}

// podSysctls are those of the end in the pod, to be written before it is up. Container engines start pods with IPv6 disabled.
func podSysctls(name string) []sysctl {
	return []sysctl{
		{"ipv6/conf/" + name + "/disable_ipv6", "0"},
		// Duplicate address detection holds an address back for a second or two, and the node's end has none.
		{"ipv6/conf/" + name + "/accept_dad", "0"},
		{"ipv6/conf/" + name + "/accept_ra", "0"},
	}
}

func write(all []sysctl) error {
	for _, s := range all {
		if err := os.WriteFile(sysctls+s.path, []byte(s.value), 0); err != nil {
			return err
		}
	}
	return nil
}

func read(path string) (string, error) {
	b, err := os.ReadFile(sysctls + path)
	return string(bytes.TrimSpace(b)), err
}

func localnet(host string) string { return "ipv4/conf/" + host + "/route_localnet" }

// OpenLocalnet lets packets from and to 127.0.0.0/8 pass an interface of the node, as those of ports of 127.0.0.1 have to. Whoever else may
// send such packets has to be kept off before.
func OpenLocalnet(host string) error { return write([]sysctl{{localnet(host), "1"}}) }

// CheckLocalnet says that they do not pass, as an error.
func CheckLocalnet(host string) error {
	v, err := read(localnet(host))
	if err == nil && v != "1" {
		err = fmt.Errorf("%s%s is %s: ports of 127.0.0.1 do not lead there", sysctls, localnet(host), v)
	}
	return err
}

const (
	forward4 = "ipv4/ip_forward"
	forward6 = "ipv6/conf/all/forwarding"
)

// Forwards says what keeps the node from forwarding packets of a family, as an error. A family that is not asked for is not looked at.
func Forwards(ipv4, ipv6 bool) error {
	for path, wanted := range map[string]bool{forward4: ipv4, forward6: ipv6} {
		if !wanted {
			continue
		}
		if v, err := read(path); err != nil {
			return err
		} else if v == "0" {
			return fmt.Errorf("%s%s is 0: this node forwards no packets of its pods", sysctls, path)
		}
	}
	return nil
}

// forward lets the node forward packets of the families. What is on already is not written: the kernel would reset what an
// administrator has set for single interfaces.
func forward(ipv4, ipv6 bool) error {
	if ipv4 && Forwards(true, false) != nil {
		if err := write([]sysctl{{forward4, "1"}}); err != nil {
			return err
		}
	}
	if ipv6 && Forwards(false, true) != nil {
		if err := keepRouters(); err != nil {
			return err
		}
		return write([]sysctl{{forward6, "1"}})
	}
	return nil
}

// keepRouters lets interfaces that take a router's word go on with it: a kernel that forwards takes it where accept_ra is 2 only, and
// the node would lose its default route (Documentation/networking/ip-sysctl).
func keepRouters() error {
	paths, err := filepath.Glob(sysctls + "ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, p := range paths {
		if name := filepath.Base(filepath.Dir(p)); name == "all" || name == "default" {
			continue
		}
		p = p[len(sysctls):]
		v, err := read(p)
		if err == nil && v == "1" {
			err = write([]sysctl{{p, "2"}})
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // interfaces come and go
			return err
		}
	}
	return nil
}
