package apiserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

var (
	// errSilent ends a request of which nothing is heard for too long.
	errSilent = errors.New("the server keeps silent")
	// errGarbled marks bytes that are no events, in an unbroken stream.
	errGarbled = errors.New("not a watch event")
)

// event is one step of a watch.
type event struct {
	kind watch.EventType
	// object is nil if it did not decode; bad then says why.
	object runtime.Object
	bad    *undecoded
	// version is the object's resource version, empty if unknown.
	version string
	// end marks the bookmark that closes a streamed listing.
	end bool
}

// stream is an open watch. It is used by one goroutine. An event's object is good until the next event.
type stream struct {
	*decoder
	cancel context.CancelFunc
	silent func() bool
	body   *trackedBody
	// framed says that the stream is in protobuf, events decodes one in JSON; nil and false before the first event.
	framed bool
	events streaming.Decoder
	timer  *time.Timer
}

// openStream sends a watch request. An answer that does not start within patience is given up with errSilent.
func openStream(ctx context.Context, d *decoder, r *rest.Request, patience time.Duration) (*stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &stream{
		decoder: d,
		cancel:  func() { cancel(nil) },
		silent:  func() bool { return errors.Is(context.Cause(ctx), errSilent) },
		timer:   time.AfterFunc(patience, func() { cancel(errSilent) }),
	}
	body, err := r.Stream(ctx)
	s.timer.Stop()
	if err != nil {
		defer s.cancel()
		if s.silent() {
			return nil, fmt.Errorf("%w: no answer within %v", errSilent, patience)
		}
		return nil, err
	}
	s.body = &trackedBody{Reader: bufio.NewReaderSize(body, bufferSize), Closer: body}
	return s, nil
}

// trackedBody remembers the error that ended it, which tells a broken connection from broken contents.
type trackedBody struct {
	*bufio.Reader
	io.Closer
	err error
}

func (b *trackedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil {
		b.err = err
	}
	return n, err
}

func (s *stream) close() {
	s.timer.Stop()
	s.cancel()
	s.body.Close()
}

// next returns the next event, or after patience errSilent. io.EOF is the regular end. An ERROR event is returned as
// the error it carries.
func (s *stream) next(patience time.Duration) (event, error) {
	s.timer.Reset(patience)
	defer s.timer.Stop()
	raw, err := s.read()
	switch {
	case err == nil:
		return s.event(raw)
	case s.silent():
		return event{}, fmt.Errorf("%w: no event within %v", errSilent, patience)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), s.body.err != nil && errors.Is(err, s.body.err):
		return event{}, err
	}
	return event{}, fmt.Errorf("%w: %w", errGarbled, err)
}

// read returns the next event in its envelope.
func (s *stream) read() (raw metav1.WatchEvent, err error) {
	if !s.framed && s.events == nil {
		// Framing is by length for protobuf, whose first byte would be that of a length over 500 MB if it were JSON's
		// brace or a blank.
		first, err := s.body.Peek(1)
		if err != nil {
			s.body.err = err
			return raw, err
		}
		if s.framed = first[0] < '\t'; !s.framed {
			info := s.json.StreamSerializer
			s.events = streaming.NewDecoder(info.NewFrameReader(s.body), info.Serializer)
		}
	}
	if s.framed {
		frame, err := nextFrame(s.body.Reader)
		if err == nil {
			return readWatchEvent(frame)
		}
		if err != errTooLarge {
			s.body.err = err
		}
		return raw, err
	}
	decoded := &metav1.WatchEvent{}
	_, _, err = s.events.Decode(nil, decoded)
	return *decoded, err
}

func (s *stream) event(raw metav1.WatchEvent) (event, error) {
	e := event{kind: watch.EventType(raw.Type)}
	switch e.kind {
	case watch.Added, watch.Modified, watch.Deleted, watch.Bookmark:
	case watch.Error:
		return e, s.failure(raw.Object.Raw)
	default:
		return e, fmt.Errorf("%w: its type is %.80q", errGarbled, raw.Type)
	}
	obj, err := s.one(raw.Object.Raw)
	if err != nil {
		e.bad = newUndecoded(raw.Object.Raw, err)
		e.version = e.bad.version
		return e, nil
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		e.bad = &undecoded{err: err}
		return e, nil
	}
	e.object, e.version = obj, m.GetResourceVersion()
	e.end = e.kind == watch.Bookmark && m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true"
	return e, nil
}

func (s *stream) failure(raw []byte) error {
	obj, err := s.object(raw, schema.GroupVersionKind{Version: "v1", Kind: "Status"})
	if err != nil {
		return fmt.Errorf("%w: an error event: %w", errGarbled, err)
	}
	return &streamError{apierrors.FromObject(obj)}
}

// streamError is an error that the server reported on an established watch.
type streamError struct{ err error }

func (e *streamError) Error() string { return "the watch ended: " + e.err.Error() }
func (e *streamError) Unwrap() error { return e.err }
