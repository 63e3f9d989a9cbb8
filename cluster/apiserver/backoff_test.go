package apiserver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// TestBackoff: what is out of reach is tried more than once a second for as long as it takes; what answers is left alone
// for longer and longer, but for no longer than it has been in trouble.
func TestBackoff(t *testing.T) {
	services := schema.GroupResource{Resource: "services"}
	generic := func(code int, unexpected bool) error {
		return apierrors.NewGenericServerResponse(code, "get", services, "", "", 0, unexpected)
	}
	for name, c := range map[string]struct {
		err     error
		longest time.Duration
	}{
		"connection refused":  {&url.Error{Op: "Get", Err: syscall.ECONNREFUSED}, maxPause},
		"broken off":          {&url.Error{Op: "Get", Err: io.EOF}, maxAnsweredPause},
		"connection reset":    {&url.Error{Op: "Get", Err: &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}}, maxAnsweredPause},
		"unknown authority":   {&url.Error{Op: "Get", Err: &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}}, maxAnsweredPause},
		"bad certificate":     {&url.Error{Op: "Get", Err: &net.OpError{Op: "remote error", Err: tls.AlertError(42)}}, maxAnsweredPause},
		"watch ended at once": {nil, maxPause},
		"no answer":           {errSilent, maxPause},
		"502 of a gateway":    {generic(http.StatusBadGateway, true), maxPause},
		"503 of a gateway":    {generic(http.StatusServiceUnavailable, true), maxPause},
		"504 of a gateway":    {generic(http.StatusGatewayTimeout, true), maxPause},
		"503":                 {generic(http.StatusServiceUnavailable, false), maxAnsweredPause},
		"500":                 {apierrors.NewInternalError(errors.New("etcdserver: no leader")), maxAnsweredPause},
		"500 of a gateway":    {generic(http.StatusInternalServerError, true), maxAnsweredPause},
		"429":                 {apierrors.NewTooManyRequests("", 0), maxAnsweredPause},
		"403":                 {apierrors.NewForbidden(services, "", nil), maxAnsweredPause},
		"error in a watch":    {&streamError{apierrors.NewTooManyRequests("", 0)}, maxAnsweredPause},
	} {
		var b backoff
		var elapsed, longest time.Duration
		for n := range 1000 {
			d := b.next(c.err)
			if d <= 0 || d > c.longest {
				t.Fatalf("%s: pause %d is %v, the longest should be %v", name, n, d, c.longest)
			}
			if n > 0 && d > 2*elapsed+firstPause {
				t.Errorf("%s: pause %d is %v, after %v of trouble", name, n, d, elapsed)
			}
			elapsed += d
			longest = max(longest, d)
		}
		if longest < c.longest/2 {
			t.Errorf("%s: the longest pause of a thousand is %v, want %v to %v", name, longest, c.longest/2, c.longest)
		}
	}
	// A server that was long out of reach and then has no time yet is not left alone for long.
	var b backoff
	for range 1000 {
		b.next(errSilent)
	}
	if d := b.next(generic(http.StatusServiceUnavailable, false)); d > firstPause {
		t.Errorf("%v after the first answer", d)
	}
	// What a server asks for is kept to, and not by all at the same time.
	asked := apierrors.NewTooManyRequests("", 2)
	seen := map[time.Duration]bool{}
	for range 100 {
		d := askedToWait(asked)
		seen[d] = true
		if d < 2*time.Second || d > 3*time.Second {
			t.Errorf("asked for 2s, waits %v", d)
		}
	}
	if len(seen) < 2 {
		t.Error("always the same")
	}
	if d := askedToWait(apierrors.NewTooManyRequests("", 3600)); d > 2*maxAskedToWait {
		t.Errorf("a server can make us wait for %v", d)
	}
}

// TestAnswered holds that what client-go makes of answers is told apart as it should be.
func TestAnswered(t *testing.T) {
	for name, c := range map[string]struct {
		answer answer
		want   bool
	}{
		"an API server that is overloaded": {status(http.StatusServiceUnavailable, "ServiceUnavailable", "later"), true},
		"an API server without a leader":   {status(http.StatusInternalServerError, "InternalError", "no leader"), true},
		"a gateway without an API server": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no healthy upstream", http.StatusServiceUnavailable)
		}, false},
		"a connection that breaks": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t, servicesPath, c.answer)
			r := start(t, f, onlyServices)
			for range 3 {
				if err := <-r.errs; answered(err) != c.want {
					t.Errorf("answered(%v) = %v", err, !c.want)
				}
			}
			if n := r.syncs(cluster.KindService); n != 0 {
				t.Error("synced")
			}
		})
	}
}
