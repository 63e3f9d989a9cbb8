// Package apiserver is the cluster.Source that reads from a Kubernetes API server: it lists and watches each kind a
// consumer asks for, turns every object into a cluster value as it arrives, and forgets the object.
//
// It is not a cache and has no informers: what is known of a cluster is what its consumer keeps. All that stays here
// between two events is a resource version for each kind, the strings that many objects share, and a bounded memory
// of the objects that were complained about. It is the only package of the module that imports client-go.
package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// Source is a cluster.Source over an API server. Make one with New.
type Source struct {
	log     *slog.Logger
	onError func(cluster.Kind, error)
	host    string
	http    *http.Client
	clients map[schema.GroupVersion]rest.Interface
	codec   *codec

	mu sync.Mutex
	// loops are those of the Runs in progress. Guarded by mu.
	loops map[*loop]struct{}
	// lost is since when kinds were out of touch as the last Run of theirs ended; the next one goes on from there. Guarded by mu.
	lost map[cluster.Kind]*time.Time
	// listUntil is until when this server is taken for one that does not stream listings. Guarded by mu.
	listUntil time.Time
}

var _ cluster.Source = (*Source)(nil)

// New returns a Source for what c names. It reads the files that c names and sends nothing.
func New(c Config) (*Source, error) {
	rc, err := c.restConfig()
	if err != nil {
		return nil, err
	}
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	c.tune(rc)
	client, err := rest.HTTPClientFor(rc)
	if err != nil {
		return nil, fmt.Errorf("set up the connection to %s: %w", rc.Host, err)
	}
	clients, err := restClients(rc, client, codec)
	if err != nil {
		return nil, err
	}
	s := &Source{
		log: c.Log, onError: c.OnError, host: rc.Host, http: client, clients: clients, codec: codec,
		loops: map[*loop]struct{}{}, lost: map[cluster.Kind]*time.Time{},
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.onError == nil {
		s.onError = func(cluster.Kind, error) {}
	}
	return s, nil
}

// restClients returns a client for each group and version that kinds are served in. They share one connection and,
// through rc.RateLimiter, one rate.
func restClients(rc *rest.Config, client *http.Client, codec *codec) (map[schema.GroupVersion]rest.Interface, error) {
	clients := map[schema.GroupVersion]rest.Interface{}
	for k := range cluster.NumKinds {
		res := resourceOf(k)
		for _, gv := range res.versions {
			if clients[gv] != nil {
				continue
			}
			gc := rest.CopyConfig(rc)
			gc.GroupVersion, gc.APIPath, gc.NegotiatedSerializer = &gv, "/apis", codec.factory
			if gv.Group == "" {
				gc.APIPath = "/api"
			}
			gc.ContentType, gc.AcceptContentTypes = contentProtobuf, contentProtobuf+","+contentJSON
			if res.jsonOnly {
				gc.ContentType, gc.AcceptContentTypes = contentJSON, contentJSON
			}
			c, err := rest.RESTClientForConfigAndClient(gc, client)
			if err != nil {
				return nil, fmt.Errorf("set up a client of %s for %s: %w", rc.Host, gv, err)
			}
			clients[gv] = c
		}
	}
	return clients, nil
}

// Host returns the URL of the API server, or its host and port, as it is configured.
func (s *Source) Host() string { return s.host }

// checkInterest returns an error for a selector that does not parse, and for a name that no node has.
func checkInterest(interest cluster.Interest) error {
	for _, s := range []struct{ what, selector string }{
		{"label selector", interest.Labels},
		{"label selector of namespaces", interest.NamespaceLabels},
		{"label selector of services", interest.ServiceLabels},
		{"label selector of slices", interest.SliceLabels},
		{"label selector of ConfigMaps", interest.ConfigMapLabels},
	} {
		if _, err := labels.Parse(s.selector); err != nil {
			return fmt.Errorf("%s %q: %w", s.what, s.selector, err)
		}
	}
	if n := interest.NodeName; n != "" || interest.OneNode {
		if msgs := validation.IsDNS1123Subdomain(n); len(msgs) > 0 {
			return fmt.Errorf("node name %q: %s", n, strings.Join(msgs, "; "))
		}
	}
	return nil
}

// Run implements cluster.Source. The kinds come from one goroutine each. An error means that a selector of interest
// does not parse, or that no node can be called as it says.
func (s *Source) Run(ctx context.Context, interest cluster.Interest, sink cluster.Sink) error {
	if err := checkInterest(interest); err != nil {
		return err
	}
	// What goes wrong is logged here, once and in terms of kinds; client-go would say it again for each request.
	ctx = klog.NewContext(ctx, logr.Discard())
	var wg sync.WaitGroup
	for k := range cluster.NumKinds {
		if !interest.Kinds.Has(k) {
			continue
		}
		l := newLoop(s, resourceOf(k), interest, sink)
		s.track(l, true)
		wg.Go(func() {
			defer s.track(l, false)
			l.run(ctx)
		})
	}
	<-ctx.Done()
	wg.Wait()
	utilnet.CloseIdleConnectionsFor(s.http.Transport)
	return nil
}

// Age implements cluster.Source: the time since the first of the kinds that are out of touch lost it.
func (s *Source) Age() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var age time.Duration
	for l := range s.loops {
		if lost := l.lost.Load(); lost != nil {
			age = max(age, time.Since(*lost))
		}
	}
	return age
}

func (s *Source) track(l *loop, running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind := l.res.kind; running {
		s.loops[l] = struct{}{}
		l.lost.Store(s.lost[kind])
	} else {
		delete(s.loops, l)
		s.lost[kind] = l.lost.Load()
	}
}

// streamsListings reports whether the server is to be asked for a listing as a stream (KEP-3157).
func (s *Source) streamsListings() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().After(s.listUntil)
}

// noStreamedListings remembers that the server does not stream listings, for long enough that a fleet of kinds and
// relistings does not try again and again, and not for so long that an upgraded server goes unnoticed.
func (s *Source) noStreamedListings() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listUntil = time.Now().Add(10 * time.Minute)
}
