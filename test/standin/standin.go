// Package standin is a Kubernetes API server for tests: an HTTP server on the loopback that lists and watches the kinds
// that Ropewalk and CoreDNS read, as a real one does, and breaks in the ways a real one breaks, when a test asks it to.
//
// It keeps objects in memory and in one version each, and it takes creates, updates, strategic merge patches and deletes
// over HTTP too, so that test/standin/contract can hold it to what a real kube-apiserver does. It is not an API server
// beyond that: nothing is validated, nobody is authenticated, no controller runs, and there are no tables for kubectl.
//
// A server holds 50,000 Services and as many EndpointSlices with ease: an object is encoded once for each content type
// that somebody asks for, and a change costs what its watchers cost.
package standin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Server is the stand-in. Its methods may be called from any goroutine, except that Down, Up and Close are for one at
// a time. New makes it.
type Server struct {
	tb      testing.TB
	addr    string
	history *history
	// conns counts the goroutines that serve connections.
	conns sync.WaitGroup

	// mu guards what follows.
	mu       sync.Mutex
	http     *http.Server
	served   chan struct{}
	refused  map[string]int
	noList   bool
	requests []Request
}

// Request is one that the server got.
type Request struct {
	// Verb is what the request does, as an audit log of Kubernetes has it: get, list, watch, create, update, patch, delete.
	Verb string
	// Kind is the kind of object it is about, empty for discovery, health and what is not served.
	Kind string
	Path string
	// Query holds what was asked, such as resourceVersion, labelSelector and sendInitialEvents.
	Query url.Values
	// Accept is the header of that name.
	Accept string
}

// New starts a server on a free port of 127.0.0.1, without objects. It is closed when tb's test ends. Failures of the
// server itself, and objects it cannot take, end that test. Without tb (nil) they panic, and the caller must Close.
func New(tb testing.TB) *Server {
	s := &Server{tb: tb, addr: "127.0.0.1:0", history: newHistory(), refused: map[string]int{}}
	s.Up()
	if tb != nil {
		tb.Cleanup(s.Close)
	}
	return s
}

// URL is where the server answers, also while it is down.
func (s *Server) URL() string { return "http://" + s.addr }

// Kubeconfig writes a kubeconfig file for the server into dir, and returns the file's path.
func (s *Server) Kubeconfig(dir string) string {
	s.helper()
	c := clientcmdapi.NewConfig()
	c.Clusters["standin"] = &clientcmdapi.Cluster{Server: s.URL()}
	c.AuthInfos["standin"] = &clientcmdapi.AuthInfo{}
	c.Contexts["standin"] = &clientcmdapi.Context{Cluster: "standin", AuthInfo: "standin"}
	c.CurrentContext = "standin"
	raw, err := clientcmd.Write(*c)
	if err != nil {
		s.fatal(fmt.Errorf("kubeconfig: %w", err))
	}
	file := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		s.fatal(fmt.Errorf("kubeconfig: %w", err))
	}
	return file
}

// Apply creates each object, or puts it in the place of the one that has its kind and name; either way the object gets
// the next resource version, and watchers hear of it. The server keeps copies, completed with the defaults that a real
// one fills in. The objects are of the types of k8s.io/api or sigs.k8s.io/mcs-api, or unstructured.
func (s *Server) Apply(objs ...runtime.Object) {
	s.helper()
	ready := make([]*object, 0, len(objs))
	for _, o := range objs {
		stored, err := newObject(o)
		if err != nil {
			s.fatal(fmt.Errorf("apply: %w", err))
		}
		ready = append(ready, stored)
	}
	s.history.apply(ready...)
}

// Delete removes the object of obj's kind and name. That there is one is the caller's to know.
func (s *Server) Delete(obj runtime.Object) {
	s.helper()
	o, err := newObject(obj)
	if err != nil {
		s.fatal(fmt.Errorf("delete: %w", err))
	}
	if _, err := s.history.delete(o.resource, o.key); err != nil {
		s.fatal(fmt.Errorf("delete: %w", err))
	}
}

// Load applies every object of a stream of YAML documents; a List counts as its items.
func (s *Server) Load(manifests []byte) {
	s.helper()
	docs := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifests)))
	var objs []runtime.Object
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			s.fatal(fmt.Errorf("load: %w", err))
		}
		some, err := decodeManifest(doc)
		if err != nil {
			s.fatal(fmt.Errorf("load: %w", err))
		}
		objs = append(objs, some...)
	}
	s.Apply(objs...)
}

// Requests returns the requests that the server got so far, in order.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Close takes the server down for good and returns when nothing of it runs any more.
func (s *Server) Close() { s.Down() }

// Down closes the listener and every connection, as a machine that loses its API server sees it. Objects stay and can be
// changed meanwhile. Down on a server that is down does nothing.
func (s *Server) Down() {
	s.helper()
	s.mu.Lock()
	server, served := s.http, s.served
	s.http = nil
	s.mu.Unlock()
	if server == nil {
		return
	}
	if err := server.Close(); err != nil {
		s.fatal(fmt.Errorf("down: %w", err))
	}
	<-served
	// http.Server.Close closes the connections, but does not wait for those who serve them.
	s.conns.Wait()
}

// Up listens again, on the port that the server had from the start.
func (s *Server) Up() {
	s.helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http != nil {
		return
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", s.addr)
	if err != nil {
		s.fatal(fmt.Errorf("up: %w", err))
	}
	s.addr = l.Addr().String()
	server, served := &http.Server{Handler: http.HandlerFunc(s.serve), ConnState: s.count}, make(chan struct{})
	s.http, s.served = server, served
	go func() {
		defer close(served)
		// What Serve returns is that it was closed; an Accept that fails on the loopback would show as a server
		// that is down, which is what it is.
		_ = server.Serve(l)
	}()
}

// count is told of every connection when it is accepted and when nothing serves it any more.
func (s *Server) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.conns.Add(1)
	case http.StateClosed:
		s.conns.Done()
	}
}

func (s *Server) helper() {
	if s.tb != nil {
		s.tb.Helper()
	}
}

// fatal does not return.
func (s *Server) fatal(err error) {
	err = fmt.Errorf("standin: %w", err)
	if s.tb == nil {
		panic(err)
	}
	s.tb.Helper()
	s.tb.Fatal(err)
}

// decodeManifest returns the objects of one YAML document; there are none in an empty one.
func decodeManifest(doc []byte) ([]runtime.Object, error) {
	raw, err := yaml.ToJSON(doc)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return nil, nil
	}
	var list struct {
		Kind  string            `json:"kind"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	if list.Kind != "List" {
		list.Items = []json.RawMessage{raw}
	}
	objs := make([]runtime.Object, len(list.Items))
	for i, item := range list.Items {
		if objs[i], err = decode(item); err != nil {
			return nil, err
		}
	}
	return objs, nil
}
