package standin

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	// firstRevision is where a history starts. It is not 0 or 1, so that there are versions from before it.
	firstRevision = 1000
	// maxLog is how many events a kind's log keeps at least; a watch that is further behind is cut, and one that
	// starts further back is told 410. A real server keeps no more than 102,400.
	maxLog = 1 << 16
	// expires is how long a watch goes on that does not say; a real server takes 30 to 60 minutes.
	expires = 30 * time.Minute
)

type key struct{ namespace, name string }

func (k key) compare(o key) int {
	return cmp.Or(cmp.Compare(k.namespace, o.namespace), cmp.Compare(k.name, o.name))
}

// object is one version of an API object. It does not change once it is in the history.
type object struct {
	resource *resource
	key      key
	revision uint64
	labels   labels.Set
	value    runtime.Object
	meta     metav1.Object // of value
	// What value is encoded to, without its kind and version; made when it is first asked for.
	json, proto body
}

type body struct {
	once sync.Once
	raw  []byte
}

// wrap takes value over.
func wrap(r *resource, value runtime.Object, m metav1.Object) *object {
	value.GetObjectKind().SetGroupVersionKind(noKind)
	return &object{resource: r, key: key{m.GetNamespace(), m.GetName()}, labels: m.GetLabels(), value: value, meta: m}
}

// at returns a copy of o as of another revision.
func (o *object) at(revision uint64) *object {
	value := o.value.DeepCopyObject()
	m, err := meta.Accessor(value)
	if err != nil {
		panic(err) // It had metadata when it came in.
	}
	c := wrap(o.resource, value, m)
	c.stamp(revision)
	return c
}

func (o *object) stamp(revision uint64) {
	o.revision = revision
	o.meta.SetResourceVersion(strconv.FormatUint(revision, 10))
}

// event is one change of one object: old is nil where there was none, now where there is none any more.
type event struct {
	revision uint64
	old, now *object
	once     sync.Once
	gone     *object
}

// tombstone is what somebody gets to see for whom the change is a deletion: the last state he knew, at the revision of
// the change.
func (e *event) tombstone() *object {
	e.once.Do(func() { e.gone = e.old.at(e.revision) })
	return e.gone
}

// as returns what the change is to somebody who sees the objects that selects lets through; "" if nothing.
func (e *event) as(selects func(*object) bool) (watch.EventType, *object) {
	before, after := e.old != nil && selects(e.old), e.now != nil && selects(e.now)
	switch {
	case before && after:
		return watch.Modified, e.now
	case after:
		return watch.Added, e.now
	case before:
		return watch.Deleted, e.tombstone()
	}
	return "", nil
}

// history holds the objects of all kinds and how they came about.
type history struct {
	mu       sync.Mutex
	revision uint64
	// oldest is the revision before which nothing is known.
	oldest uint64
	tables map[*resource]*table
	// dropped is closed to cut the watches that got hold of it, rung to make them send a bookmark; a new channel takes
	// its place.
	dropped, rung chan struct{}
}

// table holds the objects of one kind. Its history's mutex guards it.
type table struct {
	objects map[key]*object
	// sorted is objects in order, nil when that has to be found anew. Readers may hold on to it.
	sorted []*object
	// log holds the events after revision trimmed. It is only appended to, and otherwise replaced: readers hold on to it.
	log     []*event
	trimmed uint64
	// changed is closed when something is appended to log.
	changed chan struct{}
}

func newHistory() *history {
	h := &history{}
	h.begin()
	return h
}

// begin starts from nothing. The caller holds the mutex or is the only one.
func (h *history) begin() {
	h.revision, h.oldest = firstRevision, firstRevision
	h.tables = map[*resource]*table{}
	for _, r := range resources {
		h.tables[r] = &table{objects: map[key]*object{}, trimmed: firstRevision, changed: make(chan struct{})}
	}
	h.dropped, h.rung = make(chan struct{}), make(chan struct{})
}

func (h *history) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	dropped := h.dropped
	h.begin()
	close(dropped)
}

func (h *history) drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.dropped)
	h.dropped = make(chan struct{})
}

func (h *history) ring() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.rung)
	h.rung = make(chan struct{})
}

// forget moves on by one revision, for otherwise the newest one that a client knows would still do.
func (h *history) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.revision++
	h.oldest = h.revision
}

// apply puts objs in, whatever was there. It wakes watchers once for all of them.
func (h *history) apply(objs ...*object) {
	h.mu.Lock()
	defer h.mu.Unlock()
	touched := map[*table]bool{}
	for _, o := range objs {
		h.put(o)
		touched[h.tables[o.resource]] = true
	}
	for t := range touched {
		t.wake()
	}
}

// create puts o in if there is no object of that name.
func (h *history) create(o *object) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tables[o.resource]
	if t.objects[o.key] != nil {
		return apierrors.NewAlreadyExists(o.resource.groupResource(), o.key.name)
	}
	h.put(o)
	t.wake()
	return nil
}

// update puts o in the place of the object of that name, and returns what is there then: all but the status, or the
// status alone. An update that changes nothing makes no revision.
func (h *history) update(o *object, statusOnly bool) (*object, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r, t := o.resource, h.tables[o.resource]
	old := t.objects[o.key]
	if old == nil {
		return nil, apierrors.NewNotFound(r.groupResource(), o.key.name)
	}
	if v := o.meta.GetResourceVersion(); v != "" && v != old.meta.GetResourceVersion() {
		return nil, apierrors.NewConflict(r.groupResource(), o.key.name, fmt.Errorf(
			"the object has been modified; please apply your changes to the latest version and try again"))
	}
	if statusOnly {
		o = withStatus(old, o)
	} else if r.setStatus != nil {
		r.setStatus(o.value, old.value)
	}
	o.inherit(old)
	o.stamp(old.revision)
	if equality.Semantic.DeepEqual(o.value, old.value) {
		return old, nil
	}
	h.put(o)
	t.wake()
	return o, nil
}

// withStatus returns a copy of old that has o's status, and its labels and annotations: of the built-in kinds, an update
// of the status takes those along.
func withStatus(old, o *object) *object {
	next := old.at(old.revision)
	old.resource.setStatus(next.value, o.value)
	if !old.resource.custom {
		next.meta.SetLabels(o.labels)
		next.meta.SetAnnotations(o.meta.GetAnnotations())
		next.labels = o.labels
	}
	return next
}

// delete takes out the object of that name, and returns its last state.
func (h *history) delete(r *resource, k key) (*object, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tables[r]
	old := t.objects[k]
	if old == nil {
		return nil, apierrors.NewNotFound(r.groupResource(), k.name)
	}
	h.revision++
	delete(t.objects, k)
	e := &event{revision: h.revision, old: old}
	t.record(e)
	t.wake()
	return e.tombstone(), nil
}

// get returns the object of that name.
func (h *history) get(r *resource, k key) (*object, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o := h.tables[r].objects[k]; o != nil {
		return o, nil
	}
	return nil, apierrors.NewNotFound(r.groupResource(), k.name)
}

// put gives o its revision and its place. The caller holds the mutex.
func (h *history) put(o *object) {
	t := h.tables[o.resource]
	old := t.objects[o.key]
	h.revision++
	if old == nil {
		o.meta.SetUID(types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012x", h.revision)))
		if ts := o.meta.GetCreationTimestamp(); ts.IsZero() {
			o.meta.SetCreationTimestamp(metav1.Now().Rfc3339Copy())
		}
	} else {
		o.inherit(old)
	}
	o.stamp(h.revision)
	t.objects[o.key] = o
	t.record(&event{revision: h.revision, old: old, now: o})
}

// inherit gives o what an object keeps through its versions.
func (o *object) inherit(old *object) {
	o.meta.SetUID(old.meta.GetUID())
	o.meta.SetCreationTimestamp(old.meta.GetCreationTimestamp())
}

func (t *table) record(e *event) {
	t.sorted = nil
	t.log = append(t.log, e)
	if len(t.log) > 2*maxLog {
		t.trimmed = t.log[maxLog-1].revision
		t.log = slices.Clone(t.log[maxLog:])
	}
}

func (t *table) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// after returns the part of the log behind a revision.
func (t *table) after(revision uint64) []*event {
	i := sort.Search(len(t.log), func(i int) bool { return t.log[i].revision > revision })
	return t.log[i:len(t.log):len(t.log)]
}

func (t *table) inOrder() []*object {
	if t.sorted == nil {
		t.sorted = inOrder(t.objects)
	}
	return t.sorted
}

func inOrder(objects map[key]*object) []*object {
	return slices.SortedFunc(maps.Values(objects), func(a, b *object) int { return a.key.compare(b.key) })
}

// now returns the objects of r in order, and the revision they are of. It fails if they are older than minimum.
func (h *history) now(r *resource, minimum uint64) ([]*object, uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if minimum > h.revision {
		return nil, 0, tooLarge(minimum, h.revision)
	}
	return h.tables[r].inOrder(), h.revision, nil
}

// asOf returns the objects of r in order as they were at a revision. It takes back what happened since.
func (h *history) asOf(r *resource, revision uint64) ([]*object, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tables[r]
	switch {
	case revision > h.revision:
		return nil, tooLarge(revision, h.revision)
	case revision < max(h.oldest, t.trimmed):
		return nil, apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", revision, max(h.oldest, t.trimmed)))
	}
	since := t.after(revision)
	if len(since) == 0 {
		return t.inOrder(), nil
	}
	objects := maps.Clone(t.objects)
	for _, e := range slices.Backward(since) {
		if e.old == nil {
			delete(objects, e.now.key)
		} else {
			objects[e.old.key] = e.old
		}
	}
	return inOrder(objects), nil
}

// tooLarge is the error of a server that was asked for what has not happened yet. A real one waits for 3 seconds first.
func tooLarge(asked, current uint64) error {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", asked, current), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{
		Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version",
	}}
	return err
}

// follower reads the changes of one kind in order.
type follower struct {
	history *history
	table   *table
	// at is the revision up to which it has read.
	at            uint64
	dropped, rung <-chan struct{}
}

// follow starts a follower behind a revision. With fromNow it starts at the present, whose objects it returns, in order.
func (h *history) follow(r *resource, revision uint64, fromNow bool) (*follower, []*object, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tables[r]
	f := &follower{history: h, table: t, at: revision, dropped: h.dropped, rung: h.rung}
	if fromNow {
		if revision > h.revision {
			return nil, nil, tooLarge(revision, h.revision)
		}
		f.at = h.revision
		return f, t.inOrder(), nil
	}
	if oldest := max(h.oldest, t.trimmed); revision < oldest {
		return nil, nil, apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", revision, oldest))
	}
	return f, nil, nil
}

// next returns the changes since the last call, the present revision, and what is closed when there is more. It is not
// ok when changes were lost.
func (f *follower) next() (events []*event, present uint64, more <-chan struct{}, ok bool) {
	f.history.mu.Lock()
	defer f.history.mu.Unlock()
	if f.at < f.table.trimmed {
		return nil, 0, nil, false
	}
	events = f.table.after(f.at)
	if len(events) > 0 {
		f.at = events[len(events)-1].revision
	}
	return events, max(f.at, f.history.revision), f.table.changed, true
}

// rearm makes the follower hear the next bell.
func (f *follower) rearm() {
	f.history.mu.Lock()
	defer f.history.mu.Unlock()
	f.rung = f.history.rung
}
