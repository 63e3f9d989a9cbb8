package routes

import (
	"errors"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cni/limited"
	"github.com/ropewalk-net/ropewalk/cni/overlay"
)

// patience is for how long this node's kernel has to refuse something before the runtime is told: a node that is not ready loses its pods in
// the end (taint node.kubernetes.io/not-ready), which is worse than a network that is not whole for a moment.
const patience = time.Minute

// limit is what this node cannot make.
type limit struct {
	since time.Time // when that began; zero if nothing is missing
	told  string    // what the plugin was told
}

// next returns what the plugin is to be told after a look at the kernel, empty if nothing is missing, and whether that is news.
func (l *limit) next(missing error, now time.Time, patience time.Duration) (text string, news bool) {
	switch {
	case missing == nil:
		l.since = time.Time{}
	case l.since.IsZero():
		l.since = now
	}
	if missing != nil && now.Sub(l.since) >= patience {
		text = missing.Error()
	}
	return text, text != l.told
}

// limited has the plugin know what is missing, and at each look that it still is. A file that cannot be written is tried again at the next one.
func (r *Routes) limited(missing error) error {
	text, news := r.limit.next(missing, time.Now(), r.config.Patience)
	if text == "" && !news || r.config.DataDir == "" {
		return nil
	}
	var err error
	if text == "" {
		err = limited.Clear(r.config.DataDir)
	} else {
		err = limited.Write(r.config.DataDir, text)
	}
	if err == nil {
		r.limit.told = text
	}
	return err
}

// refusals are the kernel's where it is the kernel that lacks something, or this program that may not. Others can be for what another
// node's object says, whose word is no reason for this node to be not ready.
var refusals = []error{unix.EPERM, unix.EACCES, unix.ENOMEM, unix.ENOBUFS, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT}

// missing returns err if it is this node that cannot have the plan.
func missing(err error, p overlay.Plan, device string) error {
	if err == nil {
		return nil
	}
	for _, refusal := range refusals {
		if errors.Is(err, refusal) {
			return err
		}
	}
	if p.Tunnel != nil {
		if link, e := netlink.LinkByName(device); e != nil || link.Type() != "vxlan" {
			return err
		}
	}
	return nil
}

// forget takes away what an earlier process has told the plugin: it may be right no more.
func (r *Routes) forget() error {
	if r.config.DataDir == "" {
		return nil
	}
	return limited.Clear(r.config.DataDir)
}
