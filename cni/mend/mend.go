// Package mend has pods of this node get back what somebody takes from their node's ends behind the plugin's back, such as a daemon of the
// distribution's that flushes routes that it does not know. What is made again, and how, is the plugin's own matter (cni.Mend); this is when.
//
// It is for the daemon.
package mend

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cni"
	"github.com/ropewalk-net/ropewalk/cni/link"
)

// Config says what to mend.
type Config struct {
	// Plugin returns the plugin's configuration as the runtime gives it to the plugin; nil while there is none.
	Plugin func() []byte
	// Grace is how old an attachment is at least that is mended, so that ADDs end first; 0 is half a minute.
	Grace time.Duration
	// Settle is for how long news are gathered before anything is done about them; 0 is a second.
	Settle time.Duration
	// Log is slog.Default() if nil.
	Log *slog.Logger
	// Registerer takes the metrics, ropewalk_cni_mend*; nil for none.
	Registerer prometheus.Registerer
}

// share is how many times what the last look took news are gathered at least: somebody may take things all the time, from a node that has many.
const share = 20

// often is how often all is looked at that nobody has told of. The kernel would tell of rules that go, but then it would tell of each element
// of each set of the node's, too, and the proxy of services has hundreds of thousands.
const often = time.Minute

// Mender mends. Run does it.
type Mender struct {
	config           Config
	mended, failures prometheus.Counter
	kick             chan struct{}

	mu      sync.Mutex
	suspect map[int]bool // indexes of links that something was taken from; whether that was more than being up
	blur    bool         // others may have lost something that nobody told of

	told string // what the log was told last; for Run alone
}

// New returns a Mender that does nothing before Run.
func New(c Config) (*Mender, error) {
	if c.Grace == 0 {
		c.Grace = 30 * time.Second
	}
	if c.Settle == 0 {
		c.Settle = time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "ropewalk", Subsystem: "cni", Name: name, Help: help})
	}
	m := &Mender{
		config: c, kick: make(chan struct{}, 1), suspect: map[int]bool{},
		mended:   counter("mended_total", "Routes, neighbours, places on a bridge and other things of pods' ends on the node that somebody had taken, and that were made again."),
		failures: counter("mend_failures_total", "Times that some could not be."),
	}
	if c.Registerer == nil {
		return m, nil
	}
	return m, errors.Join(c.Registerer.Register(m.mended), c.Registerer.Register(m.failures))
}

// Run mends until ctx ends, in the network namespace of the process.
func (m *Mender) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { m.watch(ctx) })
	next, settle := time.Now(), m.config.Settle // when to look at all
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(next)):
			wait := often
			if !m.mend() {
				wait = m.config.Settle
			}
			next = time.Now().Add(wait)
			continue
		case <-m.kick:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		if m.harmed() {
			begun := time.Now()
			m.mend()
			next = time.Now().Add(m.config.Grace) // what was too young for this one
			settle = min(max(m.config.Settle, share*time.Since(begun)), often)
		}
	}
}

// mend has the plugin do it. It reports whether there is a plugin.
func (m *Mender) mend() bool {
	conf := m.config.Plugin()
	if conf == nil {
		return false
	}
	n, err := cni.Mend(conf, m.config.Grace)
	m.mended.Add(float64(n))
	text := ""
	if err != nil {
		m.failures.Inc()
		text = err.Error()
	}
	switch {
	case text != "" && text != m.told:
		m.config.Log.Error("what somebody has taken from pods cannot be made again", "error", err)
	case n > 0:
		m.config.Log.Warn("somebody has taken routes, neighbours or places on a bridge from pods; they were made again", "things", n)
	}
	m.told = text
	return true
}

// harmed says whether one of the suspects is there still, and has lost something. A pod that is attached has its end down at first, and one that is
// detached loses all: both are over by now, or go on.
func (m *Mender) harmed() bool {
	m.mu.Lock()
	suspect, blur := m.suspect, m.blur
	m.suspect, m.blur = map[int]bool{}, false
	m.mu.Unlock()
	for index, surely := range suspect {
		l, err := netlink.LinkByIndex(index)
		if err == nil && link.IsHost(l.Attrs().Name) && (surely || l.Attrs().Flags&net.FlagUp == 0) {
			return true
		}
	}
	return blur
}

// watchRetry is the pause after a subscription has ended: the kernel ends those whose reader is too slow.
const watchRetry = time.Second

func (m *Mender) watch(ctx context.Context) {
	for ctx.Err() == nil {
		done, ended := make(chan struct{}), make(chan struct{}, 4)
		err := errors.Join(
			subscribe(netlink.LinkSubscribe, done, ended, m.linkNews), subscribe(netlink.RouteSubscribe, done, ended, m.routeNews),
			subscribe(netlink.NeighSubscribe, done, ended, m.neighNews), subscribe(netlink.AddrSubscribe, done, ended, m.addrNews))
		open := cap(ended)
		if err == nil {
			m.note(0, false, true) // what has happened until now nobody has told of
			select {
			case <-ctx.Done():
			case <-ended:
				open--
			}
		}
		close(done)
		for range open {
			<-ended
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchRetry):
		}
	}
}

// subscribe hands on what a subscription tells until it ends, or done is closed; then ended gets one, also if there is none.
func subscribe[T any](begin func(chan<- T, <-chan struct{}) error, done <-chan struct{}, ended chan<- struct{}, news func(T)) error {
	updates := make(chan T, 64)
	if err := begin(updates, done); err != nil {
		ended <- struct{}{}
		return err
	}
	go func() {
		for u := range updates {
			news(u)
		}
		ended <- struct{}{}
	}()
	return nil
}

// linkNews is about host ends that are down, as an attachment has them at first, too, about any that leave a bridge, and about bridges that are down.
func (m *Mender) linkNews(u netlink.LinkUpdate) {
	switch l := u.Attrs(); {
	case !link.IsHost(l.Name):
		if u.Type() == "bridge" && u.Header.Type == unix.RTM_NEWLINK && l.Flags&net.FlagUp == 0 {
			m.note(0, false, true)
		}
	case u.Header.Type == unix.RTM_DELLINK && u.IfInfomsg.Family == unix.AF_BRIDGE:
		m.note(l.Index, true, false)
	case u.Header.Type == unix.RTM_NEWLINK && l.Flags&net.FlagUp == 0:
		m.note(l.Index, false, false)
	}
}

// routeNews is about routes to single addresses that go.
func (m *Mender) routeNews(u netlink.RouteUpdate) {
	if u.Type != unix.RTM_DELROUTE || u.Table != unix.RT_TABLE_MAIN || u.Dst == nil {
		return
	}
	if ones, bits := u.Dst.Mask.Size(); ones == bits {
		m.note(u.LinkIndex, true, false)
	}
}

// neighNews is about neighbours that go.
func (m *Mender) neighNews(u netlink.NeighUpdate) {
	if u.Type == unix.RTM_DELNEIGH && u.Family != unix.AF_BRIDGE {
		m.note(u.LinkIndex, true, false)
	}
}

// addrNews is about addresses of bridges that go.
func (m *Mender) addrNews(u netlink.AddrUpdate) {
	if u.NewAddr {
		return
	}
	if l, err := netlink.LinkByIndex(u.LinkIndex); err == nil && l.Type() == "bridge" {
		m.note(0, false, true)
	}
}

func (m *Mender) note(index int, surely, blur bool) {
	m.mu.Lock()
	if index != 0 {
		m.suspect[index] = m.suspect[index] || surely
	}
	m.blur = m.blur || blur
	m.mu.Unlock()
	select {
	case m.kick <- struct{}{}:
	default:
	}
}
