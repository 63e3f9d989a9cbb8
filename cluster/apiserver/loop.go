package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/ropewalk-net/ropewalk/cluster"
)

const (
	// pageSize is client-go's.
	pageSize = 500
	// watchLife is the shortest time a watch is asked to last, and half the longest, as client-go does: spread, so that
	// watches that began together do not end together.
	watchLife = 5 * time.Minute
	// overtime is what a server gets beyond the time it was asked to end a watch or a listing at.
	overtime = 30 * time.Second
	// answerPatience is how long a watch request waits for its header. Some proxies hold it back until the first event:
	// then the watch is asked for again and misses nothing.
	answerPatience = 30 * time.Second
	// listPatience is an API server's own limit for a request that is no watch, and a little.
	listPatience = 75 * time.Second
	// A streamed listing (KEP-3157) either keeps coming, or the server has not understood. It may be silent for
	// initialPatience, in front of its first event for firstPatience, and in all for initialTotal. Time that the sink
	// takes does not count.
	firstPatience   = 5 * time.Second
	initialPatience = 3 * time.Second
	initialTotal    = time.Minute
)

var (
	// errNoStream says that the server does not stream listings.
	errNoStream = errors.New("the server does not stream listings")
	// errHistory says that the server's state is not what came after the state that is known: it was restored from a
	// copy, or is another server.
	errHistory = errors.New("the server's resource versions have gone back")
)

// loop keeps a sink up to date on one kind. Its fields but lost belong to the goroutine of run.
type loop struct {
	src *Source
	res resource
	// labels and fields are selectors, empty for all there is.
	labels, fields string

	sink      cluster.Sink
	log       *slog.Logger
	conv      converter
	complains complaints
	backoff   backoff

	// version is the index in res.versions of the one in use; notFound counts those that the server did not know in a row.
	version, notFound int
	// rv is where the watch resumes, empty if a listing is due.
	rv string
	// doubt says that the server may not be the one that rv is from.
	doubt bool
	// synced says that the sink has had a whole listing; absent, that it had an empty one in the place of a kind that
	// cannot be read.
	synced, absent bool
	// established is when the watch of the current attempt was, and life how long it was asked to last.
	established time.Time
	life        time.Duration
	// warned are the errors that were logged since a watch last held, and recovered says that their end was logged. A
	// watch that comes and goes at once is one outage.
	warned    map[string]struct{}
	recovered bool

	// lost is when touch was lost, nil while there is. It is read by Age.
	lost atomic.Pointer[time.Time]
}

func newLoop(s *Source, res resource, interest cluster.Interest, sink cluster.Sink) *loop {
	return &loop{
		src: s, res: res, labels: res.labelSelector(interest), fields: res.fieldSelector(interest), sink: sink,
		log:    s.log.With("kind", res.kind.String()),
		conv:   converter{names: newInterner(), asks: asksOf(interest)},
		warned: map[string]struct{}{},
	}
}

// run lists and watches until ctx ends.
func (l *loop) run(ctx context.Context) {
	for ctx.Err() == nil {
		l.established = time.Time{}
		err := l.attempt(ctx)
		if ctx.Err() != nil {
			return
		}
		pause(ctx, l.judge(err))
	}
}

// attempt goes on from where the last one ended, and follows the watch until it ends.
func (l *loop) attempt(ctx context.Context) error {
	if l.rv != "" && l.doubt {
		if err := l.probe(ctx); err != nil {
			return err
		}
	}
	if l.rv != "" {
		return l.resume(ctx)
	}
	if l.src.streamsListings() {
		err := l.streamListing(ctx)
		if !errors.Is(err, errNoStream) {
			return err
		}
		l.log.Debug("listing in pages", "because", err)
	}
	if err := l.list(ctx); err != nil {
		return err
	}
	return l.resume(ctx)
}

// streamListing asks for the whole state as the first events of a watch (KEP-3157), and goes on with that watch.
func (l *loop) streamListing(ctx context.Context) error {
	r := l.watchRequest().Param("sendInitialEvents", "true").
		Param("resourceVersionMatch", string(metav1.ResourceVersionMatchNotOlderThan))
	s, err := openStream(ctx, l.decoder(), r, firstPatience)
	switch {
	case refused(err):
		l.src.noStreamedListings()
		return fmt.Errorf("%w: %w", errNoStream, err)
	case errors.Is(err, errSilent):
		// A busy server is as silent as one behind a proxy that waits for events, so nothing is learned about it.
		return fmt.Errorf("%w: %w", errNoStream, err)
	case err != nil:
		return err
	}
	defer s.close()
	rv, err := l.initial(s)
	switch {
	case refused(err) || errors.Is(err, errSilent):
		l.src.noStreamedListings()
		return fmt.Errorf("%w: %w", errNoStream, err)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the watch ended within the listing: %w", io.ErrUnexpectedEOF)
	case err != nil:
		return err
	}
	l.deliverSynced(rv)
	l.inTouch()
	return l.follow(s)
}

// initial delivers a streamed listing up to its end, and returns the resource version there. Objects come in any
// order, so theirs are of no use.
func (l *loop) initial(s *stream) (string, error) {
	l.deliver(cluster.Change{Op: cluster.Replace, Kind: l.res.kind, Received: time.Now()})
	var waited time.Duration
	for {
		patience := min(initialPatience, initialTotal-waited)
		asked := time.Now()
		e, err := s.next(patience)
		waited += time.Since(asked)
		if err != nil {
			return "", err
		}
		if e.end {
			return e.version, nil
		}
		l.event(e)
	}
}

// list reads the state in pages. The token that leads from page to page lives for some minutes only; if it expires
// twice because the sink or the line is slow, the third try takes everything at once.
func (l *loop) list(ctx context.Context) error {
	for try := 1; ; try++ {
		limit := pageSize
		if try == 3 {
			limit = 0
		}
		rv, err := l.pages(ctx, limit)
		if err == nil {
			l.deliverSynced(rv)
			return nil
		}
		if !expired(err) || try == 3 {
			return err
		}
	}
}

func (l *loop) pages(ctx context.Context, limit int) (string, error) {
	begun := false
	begin := func() {
		if !begun {
			l.deliver(cluster.Change{Op: cluster.Replace, Kind: l.res.kind, Received: time.Now()})
		}
		begun = true
	}
	for next := ""; ; {
		m, err := l.page(ctx, limit, next, func(o runtime.Object, bad *undecoded) {
			begin()
			if bad != nil {
				l.complain(bad.key, faults{bad.err.Error()})
				return
			}
			l.upsert(o, time.Now(), true)
		})
		if err != nil {
			return "", err
		}
		begin()
		if next = m.Continue; next == "" {
			return m.ResourceVersion, nil
		}
	}
}

// page reads a part of the listing, and calls f for its objects as they come.
func (l *loop) page(ctx context.Context, limit int, next string, f each) (*metav1.ListMeta, error) {
	ctx, cancel := context.WithTimeout(ctx, listPatience)
	defer cancel()
	r := l.request()
	if limit > 0 {
		r.Param("limit", strconv.Itoa(limit))
	}
	if next != "" {
		r.Param("continue", next)
	}
	body, err := r.Stream(ctx)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return l.decoder().list(body, f)
}

// probe compares the server's present resource version with the one to resume from. A server that was set back would
// take the watch, and say nothing until it has caught up. (One that has overtaken rv by now cannot be told apart.)
func (l *loop) probe(ctx context.Context) error {
	m, err := l.page(ctx, 1, "", func(runtime.Object, *undecoded) {})
	if err != nil {
		return err
	}
	if older(m.ResourceVersion, l.rv) {
		return fmt.Errorf("%w, from %s to %s", errHistory, l.rv, m.ResourceVersion)
	}
	l.doubt = false
	return nil
}

// resume watches from rv on.
func (l *loop) resume(ctx context.Context) error {
	r := l.watchRequest()
	if l.rv != "" {
		r.Param("resourceVersion", l.rv)
	}
	s, err := openStream(ctx, l.decoder(), r, answerPatience)
	if err != nil {
		return err
	}
	defer s.close()
	l.inTouch()
	return l.follow(s)
}

// follow applies events until the watch ends; nil is its regular end.
func (l *loop) follow(s *stream) error {
	end := time.Now().Add(l.life + overtime)
	for {
		e, err := s.next(time.Until(end))
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		// Some servers give a deleted object's last version in the event of its deletion.
		if e.kind != watch.Deleted && older(e.version, l.rv) {
			return fmt.Errorf("%w, from %s to %s", errHistory, l.rv, e.version)
		}
		l.event(e)
		// Without a version to start from, the first events are the state, in any order.
		if e.version != "" && (l.rv != "" || e.kind == watch.Bookmark) && !older(e.version, l.rv) {
			l.rv = e.version
		}
	}
}

// event passes on what a watch says.
func (l *loop) event(e event) {
	now := time.Now()
	switch {
	case e.kind == watch.Bookmark:
	case e.bad != nil:
		l.complain(e.bad.key, faults{e.bad.err.Error()})
		// Nothing of it can be served, and what was served of it before is not what is there now.
		if e.bad.key.Name != "" {
			l.deliver(cluster.Deleted(l.res.kind, e.bad.key, now))
		}
	case e.kind == watch.Deleted:
		key, ok := keyOf(e.object)
		if !ok {
			return
		}
		l.complains.forget(key)
		l.deliver(cluster.Deleted(l.res.kind, key, now))
	default:
		l.upsert(e.object, now, false)
	}
}

// upsert delivers o, or that it is gone if there is nothing of it to serve. A listing says so by leaving it out.
func (l *loop) upsert(o runtime.Object, now time.Time, listing bool) {
	key, ok := keyOf(o)
	if !ok || (key.Namespace != "") != l.res.namespaced() {
		l.complain(key, faults{"its name or namespace is missing"})
		return
	}
	v, why := l.conv.object(o)
	if len(why) > 0 {
		l.complain(key, why)
	} else {
		l.complains.forget(key)
	}
	switch {
	case v != nil && v.Kind() == l.res.kind:
		l.deliver(cluster.Upserted(v, now))
	case v != nil:
		l.complain(key, faults{fmt.Sprintf("it is a %s", v.Kind())})
	case !listing:
		l.deliver(cluster.Deleted(l.res.kind, key, now))
	}
}

func keyOf(o runtime.Object) (cluster.Key, bool) {
	m, err := meta.Accessor(o)
	if err != nil {
		return cluster.Key{}, false
	}
	return cluster.Key{Namespace: m.GetNamespace(), Name: m.GetName()}, m.GetName() != ""
}

func (l *loop) deliver(c cluster.Change) { l.sink.Apply(c) }

// deliverSynced ends a listing whose state is that of rv.
func (l *loop) deliverSynced(rv string) {
	l.deliver(cluster.Change{Op: cluster.Synced, Kind: l.res.kind, Received: time.Now()})
	l.rv, l.synced, l.absent, l.doubt = rv, true, false, false
}

// complain says what is wrong with an object, once.
func (l *loop) complain(key cluster.Key, why faults) {
	err := fmt.Errorf("%s %s: %s", l.res.kind, key, why)
	l.src.onError(l.res.kind, err)
	switch l.complains.add(key, why) {
	case speak:
		l.log.Warn("object is in part unusable", "object", key.String(), "reasons", why)
	case speakLast:
		l.log.Warn("object is in part unusable; further such objects are not logged", "object", key.String(), "reasons", why)
	}
}

// inTouch notes that a watch is established and what the sink has is current.
func (l *loop) inTouch() {
	l.established, l.notFound = time.Now(), 0
	lost := l.lost.Swap(nil)
	if len(l.warned) > 0 && lost != nil && !l.recovered {
		l.recovered = true
		l.log.Info("in touch with the API server again", "after", time.Since(*lost).Round(time.Millisecond))
	}
}

// judge takes in how an attempt ended, and returns how long to wait before the next one.
func (l *loop) judge(err error) time.Duration {
	var lived time.Duration
	if !l.established.IsZero() {
		lived = time.Since(l.established)
	}
	if l.lost.Load() == nil && !l.absent {
		now := time.Now()
		l.lost.Store(&now)
	}
	// A watch that ends before its time may have done so because the server was replaced.
	l.doubt = err != nil || lived < l.life-5*time.Second
	if lived >= time.Second {
		l.backoff.reset()
		clear(l.warned)
		l.recovered = false
	}
	if err == nil && lived >= time.Second {
		return 0
	}
	if err != nil {
		l.src.onError(l.res.kind, err)
	}
	if l.rv != "" && stale(err) {
		l.log.Info("listing again", "because", err)
		l.rv = ""
		return l.backoff.relist()
	}
	if l.res.optional && apierrors.IsNotFound(err) {
		return l.unknown(err)
	}
	if l.res.optional && apierrors.IsForbidden(err) {
		return l.unreadable(err)
	}
	if lived < time.Second && err != nil {
		l.warn(err)
	}
	return l.backoff.next(err)
}

// unknown moves on to the next version of the API that may serve the kind, or accepts that none does.
func (l *loop) unknown(err error) time.Duration {
	l.rv = ""
	l.version = (l.version + 1) % len(l.res.versions)
	if l.notFound++; l.notFound < len(l.res.versions) {
		return 0
	}
	l.notFound = 0
	// It was served before, and is gone with all objects of its kind.
	l.synced = false
	return l.unreadable(err)
}

// unreadable tells the sink that there is nothing of a kind that a cluster can do without, so that it is not waited
// for. What has been delivered before the right to read it went is kept.
func (l *loop) unreadable(err error) time.Duration {
	l.warn(err)
	if !l.synced && !l.absent {
		l.deliver(cluster.Change{Op: cluster.Replace, Kind: l.res.kind, Received: time.Now()})
		l.deliver(cluster.Change{Op: cluster.Synced, Kind: l.res.kind, Received: time.Now()})
		l.absent = true
	}
	if l.absent {
		l.lost.Store(nil)
	}
	return l.backoff.slow()
}

// maxWarned bounds what is logged about one outage.
const maxWarned = 32

// warn logs err, and what would help, unless one like it was logged since a watch last held.
func (l *loop) warn(err error) {
	class := classOf(err)
	if _, said := l.warned[class]; said || len(l.warned) >= maxWarned {
		return
	}
	l.warned[class] = struct{}{}
	args := []any{"err", err}
	switch {
	case apierrors.IsForbidden(err):
		args = append(args, "grant", l.res.rule())
	case apierrors.IsUnauthorized(err):
		args = append(args, "needed", "credentials that the server accepts, and "+l.res.rule())
	case apierrors.IsNotFound(err) && l.res.missing != "":
		args = append(args, "needed", l.res.missing)
	}
	if l.absent || l.res.optional && !l.synced && (apierrors.IsForbidden(err) || apierrors.IsNotFound(err)) {
		l.log.Warn("cannot be read; going on as if there were none", args...)
		return
	}
	l.log.Warn("cannot be read from the API server; retrying", args...)
}

func (l *loop) gv() schema.GroupVersion { return l.res.versions[l.version] }

func (l *loop) decoder() *decoder {
	return newDecoder(l.src.codec, l.res.kind, l.res.objectKind(l.gv()), &l.conv)
}

// request asks for all objects of the kind that are selected. Retries are run's, which knows what for.
func (l *loop) request() *rest.Request {
	r := l.src.clients[l.gv()].Get().Resource(l.res.name).MaxRetries(0)
	if l.labels != "" {
		r.Param("labelSelector", l.labels)
	}
	if l.fields != "" {
		r.Param("fieldSelector", l.fields)
	}
	return r
}

func (l *loop) watchRequest() *rest.Request {
	l.life = watchLife + rand.N(watchLife)
	return l.request().Param("watch", "true").Param("allowWatchBookmarks", "true").
		Param("timeoutSeconds", strconv.Itoa(int(l.life/time.Second)))
}
