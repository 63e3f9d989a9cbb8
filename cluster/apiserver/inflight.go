package apiserver

import (
	"io"
	"net/http"
	"sync"
)

// inflight bounds the requests that are under way. Its capacity is the bound.
type inflight chan struct{}

func newInflight(n int) inflight { return make(inflight, n) }

func (f inflight) wrap(next http.RoundTripper) http.RoundTripper {
	return &inflightTripper{slots: f, next: next}
}

type inflightTripper struct {
	slots inflight
	next  http.RoundTripper
}

// RoundTrip waits for a slot. A watch gives it back with the response's header: it lives for minutes, and as many
// watches as there are slots would lock out everything else. Any other request holds it until its body is read.
func (t *inflightTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	select {
	case t.slots <- struct{}{}:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	release := sync.OnceFunc(func() { <-t.slots })
	resp, err := t.next.RoundTrip(r)
	if err != nil || r.URL.Query().Has("watch") {
		release()
		return resp, err
	}
	resp.Body = &releasingBody{ReadCloser: resp.Body, release: release}
	return resp, nil
}

// WrappedRoundTripper lets apimachinery find the transport whose idle connections are to be closed.
func (t *inflightTripper) WrappedRoundTripper() http.RoundTripper { return t.next }

type releasingBody struct {
	io.ReadCloser
	release func()
}

func (b *releasingBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}
