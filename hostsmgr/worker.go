package hostsmgr

import (
	"context"
	"errors"
	"hash/maphash"
	"io/fs"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

const (
	// settle is how long a rewrite by somebody else is given to be complete: the kubelet truncates, writes and sets the mode.
	settle = 2 * time.Millisecond
	// unwatchFrom is the wait from which on a file is not watched while it lasts: whoever rewrites a file without end
	// would otherwise keep us busy with the events alone.
	unwatchFrom = 100 * time.Millisecond
	// recheck is how often all files are looked at though nothing was heard of them: writes through a shared mapping (mmap(2))
	// make no inotify event. recheckBlind is the same where not every file can be watched.
	recheck      = 10 * time.Minute
	recheckBlind = 5 * time.Second
	// treeRetry is how often we look whether the kubelet has made its directory.
	treeRetry = time.Second
)

// worker is the state of Manager.Run.
type worker struct {
	m       *Manager
	log     *slog.Logger
	metrics *metrics
	state   *state
	tree    *podfile.Tree
	watch   *watcher
	node    node

	// urgent are pods that something happened to, bulk those that a change of the whole cluster has touched, or the
	// clock. A pod is in each at most once.
	urgent, bulk []*pod
	later        later
	recheckAt    time.Time
	toTry        int  // pods of the first listing that have not been seen to
	saidBlind    bool // until every file can be watched again
	lostTree     bool

	seed maphash.Seed
	buf  []byte
}

// file is what the worker knows of a pod's file.
type file struct {
	// stale says that sum, the hash of what belongs in the file, is not known, or not any more.
	stale bool
	sum   uint64
	// right says that the file was last seen right, or made so; there that it was last seen.
	right, there bool
	// first says that the pod is of the first listing and has not been seen to.
	first bool
	gone  bool // the pod is forgotten
	// watched says that inotify tells of the file, blind that it cannot.
	watched, blind bool
	// since is when the first change came in that is not in the file yet; zero if there is none.
	since time.Time

	urgent, bulk bool // it is in that queue
	// due is when the pod is to be looked at, if place, its place in later counted from 1, is not 0.
	due   time.Time
	place int

	pace pace
	// wrote says that we wrote to the file after we last looked, so that the next event may be our own; counted that a
	// rewrite has been counted since.
	wrote, counted bool
	slow           bool // it has been said that rewrites are too many
	failures       int  // in a row
	failure        string
}

func newWorker(m *Manager) *worker {
	w := &worker{m: m, log: m.config.Log, metrics: m.metrics, seed: maphash.MakeSeed()}
	w.state = newState(m.config.ClusterDomain, m.config.ClusterNamespaces, m.config.MaxSize)
	w.state.touch, w.state.forget, w.state.report = w.touch, w.forget, w.report
	return w
}

func (w *worker) run(ctx context.Context) error {
	w.m.notReady("waiting for pods and ConfigMaps")
	for ctx.Err() == nil {
		var err error
		if w.tree, err = w.findTree(ctx); err != nil || w.tree == nil {
			return err
		}
		w.lostTree = false
		if w.state.complete() && w.recheckAt.IsZero() {
			w.start()
		}
		if w.watch, err = newWatcher(w.tree.Path(), w.m.config.NodeHostsFile); err != nil {
			w.sayBlind(err)
		}
		for _, p := range w.state.pods {
			p.file.watched = false
			w.enqueue(p, false)
		}
		w.serve(ctx)
		if w.lostTree {
			w.log.Warn("the kubelet's directory for pods is gone", "path", w.tree.Path())
		}
		w.watch.close()
		w.tree.Close()
	}
	return nil
}

// findTree waits until the kubelet has made its directory, and takes in what changes meanwhile: others may hear of the cluster from the same
// source. It returns nil if ctx ends before.
func (w *worker) findTree(ctx context.Context) (*podfile.Tree, error) {
	tick := time.NewTicker(treeRetry)
	defer tick.Stop()
	for said := false; ; said = true {
		t, err := podfile.OpenTree(w.m.podsDir())
		if !errors.Is(err, fs.ErrNotExist) {
			return t, err
		}
		if !said {
			w.log.Info("the kubelet has made no directory for pods yet; waiting for it", "path", w.m.podsDir())
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil, nil
			case c := <-w.m.changes:
				w.state.take(c)
			case <-tick.C:
				waiting = false
			}
		}
	}
}

// serve takes in what happens and sees to one pod at a time, until ctx ends or the kubelet's directory goes away.
func (w *worker) serve(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	always := make(chan struct{})
	close(always)
	for !w.lostTree {
		var work <-chan struct{}
		if w.state.complete() && len(w.urgent)+len(w.bulk) > 0 {
			work = always
		}
		select {
		case <-ctx.Done():
			return
		case c := <-w.m.changes:
			w.take(c)
		case e := <-w.watch.events():
			w.event(e, time.Now())
		case err := <-w.watch.errors():
			w.missed(err, time.Now())
		case <-timer.C:
		case <-work:
		}
		if !w.state.complete() {
			continue
		}
		timer.Reset(w.work(time.Now()))
	}
}

// take brings a change, and those that wait behind it, into the state.
func (w *worker) take(c cluster.Change) {
	before := w.state.complete()
	w.state.take(c)
	for range queueLen {
		select {
		case c := <-w.m.changes:
			w.state.take(c)
			continue
		default:
		}
		break
	}
	switch {
	case w.state.complete() && !before:
		w.start()
	case w.state.wide.stale && w.m.config.NodeBlock:
		w.node.due = time.Now()
	}
}

// start is when everything is known: from here on files are written.
func (w *worker) start() {
	w.recheckAt = time.Now().Add(recheck)
	if w.saidBlind {
		w.recheckAt = time.Now().Add(recheckBlind)
	}
	w.node.due = time.Now()
	w.toTry = len(w.state.pods)
	for _, p := range w.state.pods {
		p.file.first = true
	}
	w.log.Info("pods and aliases are known; bringing hosts files up to date", "pods", w.toTry)
	w.ready()
}

func (w *worker) ready() {
	if w.toTry > 0 {
		w.m.notReady("%d hosts files are still to be seen to", w.toTry)
		return
	}
	w.m.notYet.Store(nil)
}

// work does what is due: the node's file, then one pod's. It returns how long there is nothing more to do unless something
// happens.
func (w *worker) work(now time.Time) time.Duration {
	if due := w.node.due; !due.IsZero() && !due.After(now) {
		w.seeToNode(now)
	}
	if !w.recheckAt.After(now) {
		w.recheckAll(now)
	}
	for p := w.later.take(now); p != nil; p = w.later.take(now) {
		w.enqueue(p, false)
	}
	if p := w.next(); p != nil {
		w.seeTo(p, now)
	}
	next := w.recheckAt
	if len(w.later) > 0 && w.later[0].file.due.Before(next) {
		next = w.later[0].file.due
	}
	if due := w.node.due; !due.IsZero() && due.Before(next) {
		next = due
	}
	return max(0, time.Until(next))
}

// next takes a pod off the queues.
func (w *worker) next() *pod {
	for len(w.urgent) > 0 {
		p := w.urgent[0]
		w.urgent[0], w.urgent = nil, w.urgent[1:]
		p.file.urgent = false
		if !p.file.gone {
			return p
		}
	}
	for len(w.bulk) > 0 {
		p := w.bulk[0]
		w.bulk[0], w.bulk = nil, w.bulk[1:]
		if p.file.bulk && !p.file.gone { // else it was urgent meanwhile
			p.file.bulk = false
			return p
		}
	}
	return nil
}

func (w *worker) enqueue(p *pod, bulk bool) {
	f := &p.file
	switch {
	case f.urgent:
	case !bulk:
		f.urgent, f.bulk = true, false
		w.urgent = append(w.urgent, p)
	case !f.bulk:
		f.bulk = true
		w.bulk = append(w.bulk, p)
	}
}

// touch is state.touch.
func (w *worker) touch(p *pod, wide bool, received time.Time) {
	f := &p.file
	f.stale = true
	if f.since.IsZero() && w.state.complete() {
		f.since = received
	}
	w.enqueue(p, wide)
}

// forget is state.forget. The file stays: it goes with the pod's directory, which is the kubelet's.
func (w *worker) forget(p *pod) {
	p.file.gone = true
	w.later.remove(p)
	w.unwatch(p)
	w.found(p, false)
	w.tried(p)
}

// report is state.report.
func (w *worker) report(kind cluster.Kind, key cluster.Key, err error) {
	label := map[cluster.Kind]string{cluster.KindPod: "pod", cluster.KindConfigMap: "configmap"}[kind]
	w.metrics.failures.WithLabelValues(label).Inc()
	w.log.Warn("cannot use all of it", label, key.String(), "error", err)
}

// seeTo makes a pod's file right, if it is there.
func (w *worker) seeTo(p *pod, now time.Time) {
	w.later.remove(p)
	defer w.tried(p)
	w.watchPod(p)
	f := &p.file
	mine := f.wrote
	f.wrote = false
	res, err := w.bring(p)
	if mine && f.counted && err == nil && res == same {
		f.pace.excuse()
	}
	f.counted = false
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// The kubelet will make it, if ever, and we shall see it. Until then it is not we who are late.
		w.found(p, false)
		f.right, f.since = false, time.Time{}
	case errors.Is(err, hostsfile.ErrNoAddress):
		f.since = time.Time{}
	case err != nil:
		w.fail(p, err, now)
		return
	default:
		w.found(p, true)
		w.done(p, res)
	}
	if f.failures > 0 {
		w.logOf(p).Info("the hosts file is in order again")
		f.failures, f.failure = 0, ""
	}
}

type result struct {
	wrote bool
	bytes int
}

var same = result{}

// bring makes a pod's file what it should be.
func (w *worker) bring(p *pod) (result, error) {
	f := &p.file
	var want []byte
	if f.stale {
		var err error
		if want, err = w.want(p); err != nil {
			return same, err
		}
		if sum := maphash.Bytes(w.seed, want); sum != f.sum {
			f.sum, f.right = sum, false
		}
		f.stale = false
	}
	h, err := w.tree.Open(p.Hosts.UID, unix.O_RDWR)
	if err != nil {
		return same, err
	}
	defer h.Close()
	var have []byte // nil if it is too large
	if h.Size() <= int64(w.m.config.MaxSize) {
		if have, err = h.Read(w.buf, w.m.config.MaxSize); err != nil && !errors.Is(err, podfile.ErrTooLarge) {
			return same, err
		}
		w.buf = have
		switch {
		case err != nil:
			have = nil
		case maphash.Bytes(w.seed, have) == f.sum:
			changed, err := h.Chmod()
			return result{wrote: changed}, err
		}
	}
	if want == nil {
		if want, err = w.want(p); err != nil {
			return same, err
		}
	}
	n, err := h.Replace(have, want)
	if err == nil {
		_, err = h.Chmod()
	}
	f.wrote = true // some of it, perhaps
	return result{true, n}, err
}

// want returns what belongs in a pod's file.
func (w *worker) want(p *pod) ([]byte, error) {
	want, err := w.state.want(p)
	if err == nil && len(want) > w.m.config.MaxSize {
		err = podfile.TooLarge(len(want), w.m.config.MaxSize)
	}
	if err != nil {
		return nil, err
	}
	return want, nil
}

// done notes that a pod's file is right.
func (w *worker) done(p *pod, res result) {
	f := &p.file
	since := f.since
	f.since = time.Time{}
	if !res.wrote {
		w.metrics.skips.Inc()
		f.right = true
		return
	}
	f.wrote = true
	w.metrics.writes.Inc()
	w.metrics.bytes.Add(float64(res.bytes))
	if f.right {
		w.metrics.repairs.Inc()
	}
	if !since.IsZero() {
		w.metrics.latency.Observe(time.Since(since).Seconds())
	}
	w.logOf(p).Debug("wrote the hosts file", "bytes", res.bytes, "repair", f.right)
	f.right = true
}

// fail notes that a pod's file could not be made right, says so once, and puts the pod down for another try.
func (w *worker) fail(p *pod, err error, now time.Time) {
	f := &p.file
	why := reason(err)
	w.metrics.failures.WithLabelValues(why).Inc()
	f.failures++
	wait := retry(f.failures)
	if why != f.failure {
		f.failure = why
		w.logOf(p).Error("cannot make the hosts file right; it stays as it is and is tried again",
			"reason", why, "error", err, "next", wait)
	}
	if f.stale { // what belongs in it is not known: nothing but a change helps
		return
	}
	w.later.set(p, now.Add(wait))
}

// disturbed is called when somebody has written to a pod's file, or put another in its place.
func (w *worker) disturbed(p *pod, now time.Time) {
	f := &p.file
	if f.urgent || f.counted {
		return
	}
	f.counted = true
	wait := f.pace.disturbed(now)
	if wait >= unwatchFrom {
		w.unwatch(p)
		if !f.slow {
			w.logOf(p).Warn("something in the pod keeps rewriting its hosts file; it is put right again at intervals only", "interval", wait)
		}
	}
	f.slow = wait >= unwatchFrom
	w.later.set(p, now.Add(max(wait, settle)))
}

// recheckAll looks at all files, and the node's.
func (w *worker) recheckAll(now time.Time) {
	w.lostTree = w.tree.Gone()
	blind := 0
	for _, p := range w.state.pods {
		if p.file.blind {
			blind++
		}
		w.enqueue(p, true)
	}
	w.metrics.unwatched.Set(float64(blind))
	w.node.due = now
	switch {
	case blind > 0 || w.watch == nil:
		w.recheckAt = now.Add(recheckBlind)
	default:
		w.recheckAt = now.Add(recheck)
		if w.saidBlind {
			w.saidBlind = false
			w.log.Info("all hosts files are watched again")
		}
	}
}

func (w *worker) found(p *pod, there bool) {
	switch f := &p.file; {
	case there && !f.there:
		w.metrics.files.Inc()
	case !there && f.there:
		w.metrics.files.Dec()
	}
	p.file.there = there
}

func (w *worker) tried(p *pod) {
	if p.file.first {
		p.file.first = false
		w.toTry--
		w.ready()
	}
}

func (w *worker) logOf(p *pod) *slog.Logger {
	return w.log.With("pod", p.Key().String(), "path", w.tree.File(p.Hosts.UID))
}
