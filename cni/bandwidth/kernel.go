package bandwidth

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"regexp"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cni/link"
)

// prefix begins the name of every ifb. Its digits are the host end's, and so is its MAC, by which it is known to be ours.
const prefix = "ri"

var ours = regexp.MustCompile("^" + prefix + "[0-9a-f]{8}$")

// Device returns the name of the interface that packets of a pod are led round by.
func Device(s link.Spec) string { return prefix + s.Host[len(link.Prefix):] }

// root is the handle of the filters.
var root = netlink.MakeHandle(1, 0)

// Add puts limits on a link that is there, all or none of them: on an error, what was made is taken away.
func Add(s link.Spec, l Limits) error {
	if l.IngressRate == 0 && l.EgressRate == 0 {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	host, err := h.LinkByName(s.Host)
	if err != nil {
		return fmt.Errorf("host end %s: %w", s.Host, err)
	}
	steps, err := plan(h, s, host.Attrs().Index, l)
	if err != nil {
		return err
	}
	return run(steps)
}

func plan(h *netlink.Handle, s link.Spec, host int, l Limits) (steps []step, err error) {
	if l.IngressRate != 0 {
		tbf, err := shape(l.IngressRate, l.IngressBurst, s.MTU)
		if err != nil {
			return nil, fmt.Errorf("what the pod receives: %w", err)
		}
		steps = append(steps, ingress(h, host, tbf)...)
	}
	if l.EgressRate != 0 {
		tbf, err := shape(l.EgressRate, l.EgressBurst, s.MTU)
		if err != nil {
			return nil, fmt.Errorf("what the pod sends: %w", err)
		}
		steps = append(steps, egress(h, s, host, tbf)...)
	}
	return steps, nil
}

// step is a part of the work. If it or a later one fails it is undone; nil is for what goes with a part that is.
type step struct {
	what     string
	do, undo func() error
}

func run(steps []step) error {
	for i, st := range steps {
		err := st.do()
		if err == nil {
			continue
		}
		errs := []error{fmt.Errorf("%s: %w", st.what, err)}
		if errors.Is(err, unix.EEXIST) {
			i-- // it is somebody else's; after another error it may be there, if only the kernel's answer was lost
		}
		for ; i >= 0; i-- {
			if undo := steps[i].undo; undo != nil {
				errs = append(errs, undo())
			}
		}
		return errors.Join(errs...)
	}
	return nil
}

func ingress(h *netlink.Handle, host int, tbf netlink.Tbf) []step {
	q := at(tbf, host)
	return []step{{
		what: "limit of what the pod receives",
		do:   func() error { return missing(h.QdiscAdd(q), "sch_tbf") },
		undo: func() error { return gone(h.QdiscDel(q)) },
	}}
}

// egress has packets led to the ifb when that can take them, so that none is lost.
func egress(h *netlink.Handle, s link.Spec, host int, tbf netlink.Tbf) []step {
	ifb, q, shared := newIfb(s), clsact(host), false
	return []step{{
		what: "ifb " + ifb.Name,
		do:   func() error { return missing(h.LinkAdd(ifb), "ifb") },
		undo: func() error { return Delete(s) },
	}, {
		what: "limit of what the pod sends",
		do: func() error {
			if err := noIPv6(ifb.Name); err != nil {
				return err
			}
			// An interface that is up would have to be stopped for it.
			if err := missing(h.QdiscAdd(at(tbf, ifb.Index)), "sch_tbf"); err != nil {
				return err
			}
			return h.LinkSetUp(ifb)
		},
	}, {
		what: "clsact of " + s.Host,
		do: func() error {
			err := missing(h.QdiscAdd(q), "sch_ingress")
			if shared = errors.Is(err, unix.EEXIST); shared { // as by who watches pods by eBPF
				return nil
			}
			return err
		},
		undo: func() error {
			if shared {
				return nil
			}
			return gone(h.QdiscDel(q))
		},
	}, {
		what: "redirection from " + s.Host + " to " + ifb.Name,
		do:   func() error { return missing(h.FilterAdd(redirect(host, ifb.Index)), "cls_u32 or act_mirred") },
	}}
}

// newIfb leaves the length of the interface's own queue to the kernel: with none it would be stopped and started for each packet (ifb_xmit).
func newIfb(s link.Spec) *netlink.Ifb {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = Device(s), s.HostMAC, s.MTU
	return &netlink.Ifb{LinkAttrs: attrs}
}

// noIPv6 keeps the kernel from giving an interface an address and a route: nobody is behind it.
func noIPv6(name string) error {
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func at(tbf netlink.Tbf, index int) *netlink.Tbf {
	tbf.QdiscAttrs = netlink.QdiscAttrs{LinkIndex: index, Handle: root, Parent: netlink.HANDLE_ROOT}
	return &tbf
}

func clsact(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

// redirect is of the classifier that the bandwidth plugin of containernetworking/plugins has, so that kernels which have that have this.
func redirect(from, to int) *netlink.U32 {
	return &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 1, Protocol: unix.ETH_P_ALL},
		Actions:     []netlink.Action{netlink.NewMirredAction(to)},
	}
}

// missing says which module an error is for want of. The kernel loads those it finds by itself.
func missing(err error, module string) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("the kernel has no %s (some distributions have it in a package of further modules): %w", module, err)
	}
	return err
}

// gone is no error where something that is not there was to be removed.
func gone(err error) error {
	var not netlink.LinkNotFoundError
	if errors.As(err, &not) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// Check returns everything that is not as Add has made it, joined. A direction without a limit is not looked at: it may be somebody else's.
func Check(s link.Spec, l Limits) error {
	if l.IngressRate == 0 && l.EgressRate == 0 {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	host, err := h.LinkByName(s.Host)
	if err != nil {
		return fmt.Errorf("host end %s: %w", s.Host, err)
	}
	qdiscs, err := whole(func() ([]netlink.Qdisc, error) { return h.QdiscList(nil) })
	if err != nil {
		return err
	}
	var errs []error
	if l.IngressRate != 0 {
		errs = append(errs, checkShape(qdiscs, host, l.IngressRate, l.IngressBurst, s.MTU))
	}
	if l.EgressRate != 0 {
		errs = append(errs, checkEgress(h, s, host, qdiscs, l))
	}
	return errors.Join(errs...)
}

func checkEgress(h *netlink.Handle, s link.Spec, host netlink.Link, qdiscs []netlink.Qdisc, l Limits) error {
	ifb, err := find(h, s)
	switch {
	case err != nil:
		return err
	case ifb == nil:
		return fmt.Errorf("ifb %s is missing", Device(s))
	}
	errs := []error{checkShape(qdiscs, ifb, l.EgressRate, l.EgressBurst, s.MTU)}
	if ifb.Attrs().Flags&net.FlagUp == 0 {
		errs = append(errs, fmt.Errorf("ifb %s is down", Device(s)))
	}
	filters, err := whole(func() ([]netlink.Filter, error) { return h.FilterList(host, netlink.HANDLE_MIN_INGRESS) })
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, f := range filters {
		if u, ok := f.(*netlink.U32); ok && u.Protocol == unix.ETH_P_ALL && u.RedirIndex == ifb.Attrs().Index {
			return errors.Join(errs...)
		}
	}
	return errors.Join(append(errs, fmt.Errorf("redirection from %s to %s is missing", s.Host, Device(s)))...)
}

func checkShape(qdiscs []netlink.Qdisc, l netlink.Link, rate, burst uint64, mtu int) error {
	want, err := shape(rate, burst, mtu)
	if err != nil {
		return err
	}
	name := l.Attrs().Name
	for _, q := range qdiscs {
		got, ok := q.(*netlink.Tbf)
		if !ok || got.LinkIndex != l.Attrs().Index || got.Parent != netlink.HANDLE_ROOT {
			continue
		}
		if got.Rate != want.Rate || got.Buffer != want.Buffer || got.Limit != want.Limit {
			return fmt.Errorf("limit of %s: rate %d, buffer %d, queue %d; it is to be rate %d, buffer %d, queue %d (bytes per second, ticks, bytes)",
				name, got.Rate, got.Buffer, got.Limit, want.Rate, want.Buffer, want.Limit)
		}
		return nil
	}
	return fmt.Errorf("limit of %s is missing", name)
}

// Delete removes what does not go with the link. None is no error.
func Delete(s link.Spec) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	ifb, err := find(h, s)
	if err != nil || ifb == nil {
		return err
	}
	return gone(h.LinkDel(ifb))
}

// find returns the ifb, or nil. One of the name that has another MAC is another container's, whose hash begins with the same 32 bits, or
// a stranger's.
func find(h *netlink.Handle, s link.Spec) (netlink.Link, error) {
	l, err := h.LinkByName(Device(s))
	var not netlink.LinkNotFoundError
	switch {
	case errors.As(err, &not):
		return nil, nil
	case err != nil:
		return nil, err
	case l.Type() != "ifb" || !bytes.Equal(l.Attrs().HardwareAddr, s.HostMAC):
		return nil, nil
	}
	return l, nil
}

// Collect removes every ifb whose link is gone, as it is when a pod's namespace has ended and nobody has detached the pod. It returns how many.
// An Add that is under way is not disturbed: the link is there before the ifb.
func Collect() (removed int, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	links, err := whole(h.LinkList)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, l := range links {
		name := l.Attrs().Name
		if l.Type() != "ifb" || !ours.MatchString(name) {
			continue
		}
		// Not looked up in the list, which is older than its last entries.
		_, err := h.LinkByName(link.Prefix + name[len(prefix):])
		var not netlink.LinkNotFoundError
		if !errors.As(err, &not) {
			errs = append(errs, err)
			continue
		}
		if err := gone(h.LinkDel(l)); err != nil {
			errs = append(errs, err)
			continue
		}
		removed++
	}
	return removed, errors.Join(errs...)
}

// lists is how often a list is asked for that changes while the kernel gives it.
const lists = 10

// whole asks again for a list that was interrupted.
func whole[T any](list func() ([]T, error)) (got []T, err error) {
	for range lists {
		if got, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return got, err
}
