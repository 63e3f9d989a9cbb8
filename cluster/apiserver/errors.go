package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// refused reports whether a server that was asked to stream a listing says that it cannot: 422 of an API server
// without the feature, 400, 405 or 501 of others.
func refused(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsMethodNotSupported(err) ||
		codeOf(err) == http.StatusNotImplemented || codeOf(err) == http.StatusUnprocessableEntity
}

// expired reports whether the server no longer has the state that a request starts from.
func expired(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

// tooLarge reports whether the server has not reached, or never heard of, the resource version that a request names.
// Servers before 1.19 say so in words only.
func tooLarge(err error) bool {
	return apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) ||
		apierrors.IsTimeout(err) && strings.Contains(err.Error(), "Too large resource version")
}

// stale reports whether a watch cannot go on from where it was, so that a listing is due.
func stale(err error) bool {
	if expired(err) || tooLarge(err) || refused(err) || errors.Is(err, errHistory) || errors.Is(err, errGarbled) {
		return true
	}
	// An error in an established watch may come of the very event that is next, and come again and again.
	var in *streamError
	return errors.As(err, &in) && !apierrors.IsTooManyRequests(err) && !apierrors.IsServiceUnavailable(err) &&
		!apierrors.IsTimeout(err) && !apierrors.IsServerTimeout(err)
}

// older reports whether resource version a is from before b. Versions are numbers of any length (KEP-5504); of those
// that are not, nothing is known.
func older(a, b string) bool {
	c, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && c < 0
}

func codeOf(err error) int32 {
	var s apierrors.APIStatus
	if errors.As(err, &s) {
		return s.Status().Code
	}
	return 0
}

// answered reports whether an API server was reached and would not do what it was asked for. A gateway that cannot reach
// one says so in words of its own, not in an object of the API.
func answered(err error) bool {
	switch code := codeOf(err); code {
	case 0:
		return false
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return !apierrors.IsUnexpectedServerError(err)
	}
	return true
}

// accepted reports whether something took a connection and then broke it off, or was not believed: it has cost that side a TLS handshake, or may
// have.
func accepted(err error) bool {
	var verification *tls.CertificateVerificationError
	var alert tls.AlertError
	for _, broken := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, broken) {
			return true
		}
	}
	return errors.As(err, &verification) || errors.As(err, &alert)
}

// maxAskedToWait bounds what a server can ask for.
const maxAskedToWait = 5 * time.Second

// askedToWait is the Retry-After of a server that has too much to do, and up to half as much again, so that those who
// were told the same do not come back together.
func askedToWait(err error) time.Duration {
	if s, ok := apierrors.SuggestsClientDelay(err); ok && s > 0 {
		d := min(time.Duration(s)*time.Second, maxAskedToWait)
		return d + rand.N(d/2)
	}
	return 0
}

// classOf names the kind of an error, without what differs from one time to the next (local ports, durations), so
// that an outage is logged once.
func classOf(err error) string {
	var op *net.OpError
	var ue *url.Error
	switch {
	case codeOf(err) != 0:
		return err.Error()
	case errors.As(err, &op):
		return "connection: " + op.Err.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection: broken off"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, errSilent):
		return "no answer in time"
	case errors.As(err, &ue):
		return ue.Err.Error()
	}
	return err.Error()
}

const (
	firstPause, maxPause = 50 * time.Millisecond, 800 * time.Millisecond
	// To a server that answers, each attempt is work, and it may be overloaded already. The pauses double, so that none is
	// longer than the trouble has been so far.
	maxAnsweredPause = 10 * time.Second
	// A right that is missing at an API server's start may only not have been loaded yet, so waiting for one begins
	// small too.
	firstSlowPause, maxSlowPause = time.Second, time.Minute
	// A server that lists but whose watches break at once must not be made to list all the time.
	maxRelistPause = 30 * time.Second
)

// backoff counts failures in a row. The zero value is ready for use.
type backoff struct{ failures, answers, slowFailures, relists int }

func (b *backoff) reset() { *b = backoff{} }

// next returns how long to wait after err. A server that is out of reach costs nothing to try, and is tried so often that
// it is found within a second of its return. One that takes connections is left alone for longer and longer: with thousands of nodes, handshakes
// alone could keep it from coming up.
func (b *backoff) next(err error) time.Duration {
	if answered(err) || accepted(err) {
		b.answers++
		return max(pauseAfter(b.answers, firstPause, maxAnsweredPause), askedToWait(err))
	}
	b.failures++
	return max(pauseAfter(b.failures, firstPause, maxPause), askedToWait(err))
}

// relist returns how long to wait before a listing that a watch's failure asks for.
func (b *backoff) relist() time.Duration {
	b.relists++
	return pauseAfter(b.relists, firstPause, maxRelistPause)
}

// slow returns how long to wait before asking again for what is not there.
func (b *backoff) slow() time.Duration {
	b.slowFailures++
	return pauseAfter(b.slowFailures, firstSlowPause, maxSlowPause)
}

// pauseAfter doubles from first to longest, and takes up to half of it away at random.
func pauseAfter(failures int, first, longest time.Duration) time.Duration {
	d := min(first<<min(failures-1, 16), longest)
	return d - rand.N(d/2)
}

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
