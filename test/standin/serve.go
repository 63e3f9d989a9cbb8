package standin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// target is what the path of a request names.
type target struct {
	resource  *resource
	namespace string
	// name is empty for a collection; subresource is empty or "status".
	name, subresource string
}

func (t target) key() key { return key{t.namespace, t.name} }

// parsePath finds the target of a path, if it is one of a kind that is served.
func parsePath(path string) (target, bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	var gv schema.GroupVersion
	switch {
	case len(parts) > 2 && parts[0] == "api":
		gv, parts = schema.GroupVersion{Version: parts[1]}, parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		gv, parts = schema.GroupVersion{Group: parts[1], Version: parts[2]}, parts[3:]
	default:
		return target{}, false
	}
	var t target
	// namespaces/X/status is the status of a namespace, and not a kind in one.
	if len(parts) > 2 && parts[0] == "namespaces" && parts[2] != "status" {
		t.namespace, parts = parts[1], parts[2:]
	}
	i := slices.IndexFunc(resources, func(r *resource) bool { return r.GroupVersion() == gv && r.plural == parts[0] })
	if i < 0 {
		return target{}, false
	}
	t.resource = resources[i]
	if t.namespace != "" && !t.resource.namespaced {
		return target{}, false
	}
	switch len(parts) {
	case 3:
		t.subresource = parts[2]
		fallthrough
	case 2:
		t.name = parts[1]
	}
	ok := len(parts) <= 3 && (t.subresource == "" || t.subresource == "status" && t.resource.setStatus != nil)
	return t, ok
}

func (s *Server) serve(rw http.ResponseWriter, req *http.Request) {
	query := req.URL.Query()
	t, ok := parsePath(req.URL.Path)
	verb := verbOf(req.Method, t, query)
	s.note(verb, t, req, query)
	if !ok {
		s.discover(rw, req)
		return
	}
	w := negotiate(req.Header.Get("Accept"), t.resource)
	if w == nil {
		fail(rw, jsonWire{}, notAcceptable(t.resource))
		return
	}
	if code := s.refusal(t.resource.Kind); code != 0 {
		fail(rw, w, refused(code, verb, t))
		return
	}
	if err := s.act(rw, req, w, verb, t, query); err != nil {
		fail(rw, w, err)
	}
}

// act does what the request asks; an error means that nothing is written yet.
func (s *Server) act(rw http.ResponseWriter, req *http.Request, w wire, verb string, t target, query url.Values) error {
	switch verb {
	case "list":
		return s.list(rw, w, t, query)
	case "watch":
		return s.watch(rw, req, w, t, query)
	case "get":
		o, err := s.history.get(t.resource, t.key())
		return one(rw, w, http.StatusOK, o, err)
	case "create":
		o, err := s.create(req, t)
		return one(rw, w, http.StatusCreated, o, err)
	case "update":
		o, err := s.update(req, t)
		return one(rw, w, http.StatusOK, o, err)
	case "patch":
		o, err := s.patch(req, t)
		return one(rw, w, http.StatusOK, o, err)
	case "delete":
		o, err := s.history.delete(t.resource, t.key())
		return one(rw, w, http.StatusOK, o, err)
	}
	return apierrors.NewMethodNotSupported(t.resource.groupResource(), verb)
}

func verbOf(method string, t target, query url.Values) string {
	switch {
	case method == http.MethodGet && t.name != "":
		return "get"
	case method == http.MethodGet && t.resource != nil && isTrue(query.Get("watch")):
		return "watch"
	case method == http.MethodGet && t.resource != nil:
		return "list"
	case method == http.MethodPost && t.name == "":
		return "create"
	case method == http.MethodPut && t.name != "":
		return "update"
	case method == http.MethodPatch && t.name != "":
		return "patch"
	case method == http.MethodDelete && t.name != "":
		return "delete"
	}
	return strings.ToLower(method)
}

func isTrue(v string) bool { return v == "true" || v == "1" }

func (s *Server) note(verb string, t target, req *http.Request, query url.Values) {
	r := Request{Verb: verb, Path: req.URL.Path, Query: query, Accept: req.Header.Get("Accept")}
	if t.resource != nil {
		r.Kind = t.resource.Kind
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r)
}

func (s *Server) create(req *http.Request, t target) (*object, error) {
	o, err := read(req, t)
	if err != nil {
		return nil, err
	}
	if r := o.resource; r.setStatus != nil && !r.bornWithStatus {
		blank, err := scheme.New(r.GroupVersionKind)
		if err != nil {
			return nil, err
		}
		r.setStatus(o.value, blank)
		if r.complete != nil {
			r.complete(o.value)
		}
	}
	if o.meta.GetResourceVersion() != "" {
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	return o, s.history.create(o)
}

func (s *Server) update(req *http.Request, t target) (*object, error) {
	o, err := read(req, t)
	if err != nil {
		return nil, err
	}
	if o.key.name != t.name {
		return nil, apierrors.NewBadRequest("the name of the object does not match the name on the URL")
	}
	return s.history.update(o, t.subresource == "status")
}

// patch takes strategic merge patches of the built-in kinds. As in the real server, one that another write overtakes is tried again.
func (s *Server) patch(req *http.Request, t target) (*object, error) {
	if t.resource.custom || req.Header.Get("Content-Type") != string(types.StrategicMergePatchType) {
		return nil, apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "patch", t.resource.groupResource(), t.name, "not a strategic merge patch of a built-in kind", 0, false)
	}
	raw, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	for {
		old, err := s.history.get(t.resource, t.key())
		if err != nil {
			return nil, err
		}
		o, err := patched(old, raw)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		if o, err = s.history.update(o, t.subresource == "status"); !apierrors.IsConflict(err) {
			return o, err
		}
	}
}

// patched returns what a strategic merge patch makes of an object.
func patched(old *object, patch []byte) (*object, error) {
	blank, err := scheme.New(old.resource.GroupVersionKind)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(old.value)
	if err != nil {
		return nil, err
	}
	if raw, err = strategicpatch.StrategicMergePatch(raw, patch, blank); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, blank); err != nil {
		return nil, err
	}
	return newObject(blank)
}

// read takes the object of a request's body.
func read(req *http.Request, t target) (*object, error) {
	raw, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	value, err := decode(raw)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	o, err := newObject(value)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if o.resource != t.resource {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("a %s was sent where %s are", o.resource.Kind, t.resource.plural))
	}
	if o.key.namespace != t.namespace {
		o.key.namespace = t.namespace
		o.meta.SetNamespace(t.namespace)
	}
	return o, nil
}

// one answers with a single object, unless there is an error.
func one(rw http.ResponseWriter, w wire, code int, o *object, err error) error {
	if err != nil {
		return err
	}
	send(rw, w, code, answer(w, o))
	return nil
}

func send(rw http.ResponseWriter, w wire, code int, raw []byte) {
	rw.Header().Set("Content-Type", w.contentType(false))
	rw.WriteHeader(code)
	// The client may be gone; there is nobody to tell.
	_, _ = rw.Write(raw)
}

// fail answers with the Status of an error.
func fail(rw http.ResponseWriter, w wire, err error) {
	st := statusOf(err)
	if d := st.Details; d != nil && d.RetryAfterSeconds > 0 {
		rw.Header().Set("Retry-After", fmt.Sprint(d.RetryAfterSeconds))
	}
	send(rw, w, int(st.Code), loose(w, statusKind, st))
}

var statusKind = schema.GroupVersionKind{Version: "v1", Kind: "Status"}

func statusOf(err error) *metav1.Status {
	var api apierrors.APIStatus
	if !errors.As(err, &api) {
		api = apierrors.NewInternalError(err)
	}
	st := api.Status()
	return &st
}

func refused(code int, verb string, t target) error {
	gr := t.resource.groupResource()
	switch code {
	case http.StatusForbidden:
		return apierrors.NewForbidden(gr, t.name, errors.New("the stand-in was told to refuse"))
	case http.StatusNotFound:
		// What a server says about a kind that it does not have.
		return apierrors.NewGenericServerResponse(code, verb, gr, "", "404 page not found", 0, true)
	}
	retry := 0
	if code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable {
		retry = 1
	}
	return apierrors.NewGenericServerResponse(code, verb, gr, t.name, "the stand-in was told to refuse", retry, true)
}

func notAcceptable(r *resource) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable,
		Message: "only the following media types are accepted: application/json" + map[bool]string{false: ", " + protoMedia}[r.custom],
	}}
}
