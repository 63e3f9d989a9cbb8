package standin

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
)

// options are those of a list or a watch, checked.
type options struct {
	internalversion.ListOptions
	target target
	// revision is resourceVersion, 0 for none.
	revision uint64
}

func (s *Server) options(t target, query url.Values) (*options, error) {
	o := &options{target: t}
	var external metav1.ListOptions
	if err := metav1.Convert_url_Values_To_v1_ListOptions(&query, &external, nil); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if err := internalversion.Convert_v1_ListOptions_To_internalversion_ListOptions(&external, &o.ListOptions, nil); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if errs := validation.ValidateListOptions(&o.ListOptions, s.watchList()); len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	if o.FieldSelector != nil {
		for _, r := range o.FieldSelector.Requirements() {
			if !t.resource.selectable(r.Field) {
				return nil, apierrors.NewBadRequest("field label not supported: " + r.Field)
			}
		}
	}
	if o.ResourceVersion != "" {
		var err error
		if o.revision, err = strconv.ParseUint(o.ResourceVersion, 10, 64); err != nil {
			return nil, apierrors.NewBadRequest("invalid resourceVersion: " + err.Error())
		}
	}
	return o, nil
}

// selects tells whether the client asked for an object.
func (o *options) selects(obj *object) bool {
	if o.target.namespace != "" && o.target.namespace != obj.key.namespace {
		return false
	}
	if o.LabelSelector != nil && !o.LabelSelector.Matches(obj.labels) {
		return false
	}
	return o.FieldSelector == nil || o.FieldSelector.Matches(fieldsOf{obj})
}

// all tells that selectors leave nothing out.
func (o *options) all() bool {
	return (o.LabelSelector == nil || o.LabelSelector.Empty()) && (o.FieldSelector == nil || o.FieldSelector.Empty())
}

// bookmark is where a list in pages goes on: at a revision, behind an object.
type bookmark struct {
	Revision        uint64 `json:"rv"`
	Namespace, Name string
}

func (b bookmark) token() string {
	raw, err := json.Marshal(b)
	if err != nil {
		panic(err) // A number and two strings.
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

func parseToken(token string) (bookmark, error) {
	var b bookmark
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		err = json.Unmarshal(raw, &b)
	}
	if err != nil {
		return b, apierrors.NewBadRequest("continue key is not valid: " + err.Error())
	}
	return b, nil
}

// found returns the objects that a list is cut from, in order, and their revision.
func (s *Server) found(o *options) ([]*object, uint64, error) {
	r := o.target.resource
	if o.Continue != "" {
		b, err := parseToken(o.Continue)
		if err != nil {
			return nil, 0, err
		}
		objs, err := s.history.asOf(r, b.Revision)
		if err != nil {
			return nil, 0, err
		}
		after := key{b.Namespace, b.Name}
		i, hit := slices.BinarySearchFunc(objs, after, func(o *object, k key) int { return o.key.compare(k) })
		if hit {
			i++
		}
		return objs[i:], b.Revision, nil
	}
	// A page of a version that does not say how to match means exactly that version.
	paged := o.Limit > 0 && o.revision > 0 && o.ResourceVersionMatch == ""
	if o.ResourceVersionMatch == metav1.ResourceVersionMatchExact || paged {
		objs, err := s.history.asOf(r, o.revision)
		return objs, o.revision, err
	}
	return s.history.now(r, o.revision)
}

func (s *Server) list(rw http.ResponseWriter, w wire, t target, query url.Values) error {
	o, err := s.options(t, query)
	if err != nil {
		return err
	}
	objs, revision, err := s.found(o)
	if err != nil {
		return err
	}
	m := metav1.ListMeta{ResourceVersion: strconv.FormatUint(revision, 10)}
	var last *object
	bodies := make([][]byte, 0, len(objs))
	for _, obj := range objs {
		if !o.selects(obj) {
			continue
		}
		if o.Limit > 0 && int64(len(bodies)) == o.Limit {
			m.Continue = bookmark{revision, last.key.namespace, last.key.name}.token()
			if o.all() {
				m.RemainingItemCount = ptr.To(remaining(o, objs) - o.Limit)
			}
			break
		}
		bodies, last = append(bodies, bodyOf(w, obj)), obj
	}
	rw.Header().Set("Content-Type", w.contentType(false))
	out := bufio.NewWriterSize(rw, 1<<16)
	w.list(out, t.resource.GroupVersionKind, m, bodies)
	// The client may be gone; there is nobody to tell.
	_ = out.Flush()
	return nil
}

// remaining counts what o selects of objs.
func remaining(o *options, objs []*object) int64 {
	var n int64
	for _, obj := range objs {
		if o.selects(obj) {
			n++
		}
	}
	return n
}

// stream is one watch.
type stream struct {
	*options
	*follower
	wire wire
	rw   http.ResponseWriter
	out  *bufio.Writer
}

func (s *Server) watch(rw http.ResponseWriter, req *http.Request, w wire, t target, query url.Values) error {
	o, err := s.options(t, query)
	if err != nil {
		return err
	}
	st := &stream{options: o, wire: w, rw: rw, out: bufio.NewWriterSize(rw, 1<<16)}
	rw.Header().Set("Content-Type", w.contentType(true))
	rw.WriteHeader(http.StatusOK)

	asked := ptr.Deref(o.SendInitialEvents, o.revision == 0)
	fromNow := asked || o.revision == 0
	f, objs, err := s.history.follow(t.resource, o.revision, fromNow)
	if err != nil {
		// As the real server's watch cache does, an error of the start comes as an event of a watch that began well.
		st.out.Write(w.event(watch.Error, loose(w, statusKind, statusOf(err))))
		_ = st.flush() // The client may be gone.
		return nil
	}
	st.follower = f
	if asked {
		for _, obj := range objs {
			if o.selects(obj) {
				st.out.Write(w.event(watch.Added, answer(w, obj)))
			}
		}
		if o.SendInitialEvents != nil {
			st.bookmark(f.at, map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		}
	}
	st.run(req)
	return nil
}

// run writes events until the client, the time or the test ends the watch.
func (st *stream) run(req *http.Request) {
	timeout := time.NewTimer(st.lasts())
	defer timeout.Stop()
	for due, last := false, false; ; {
		events, present, more, ok := st.next()
		for _, e := range events {
			if t, obj := e.as(st.selects); obj != nil {
				st.out.Write(st.wire.event(t, answer(st.wire, obj)))
			}
		}
		if due {
			st.bookmark(present, nil)
		}
		if st.flush() != nil || last || !ok {
			return
		}
		due = false
		select {
		case <-more:
		case <-st.rung:
			st.rearm()
			due = true
		case <-timeout.C:
			due, last = true, true
		case <-st.dropped:
			// Not an end of the stream, but of the connection.
			panic(http.ErrAbortHandler)
		case <-req.Context().Done():
			return
		}
	}
}

func (st *stream) lasts() time.Duration {
	if s := st.TimeoutSeconds; s != nil && *s > 0 {
		return time.Duration(*s) * time.Second
	}
	return expires
}

// bookmark tells the client how far it has come, if it wants to know.
func (st *stream) bookmark(revision uint64, annotations map[string]string) {
	if !st.AllowWatchBookmarks {
		return
	}
	kind := st.target.resource.GroupVersionKind
	o, err := scheme.New(kind)
	if err != nil {
		panic(err) // The scheme has every kind that is served.
	}
	m := o.(metav1.Object)
	m.SetResourceVersion(strconv.FormatUint(revision, 10))
	m.SetAnnotations(annotations)
	st.out.Write(st.wire.event(watch.Bookmark, loose(st.wire, kind, o)))
}

func (st *stream) flush() error {
	if err := st.out.Flush(); err != nil {
		return fmt.Errorf("write to the client: %w", err)
	}
	return http.NewResponseController(st.rw).Flush()
}
