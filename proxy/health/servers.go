package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// Check is what load balancers are told of a service with externalTrafficPolicy Local (KEP-1669).
type Check struct {
	Port           uint16 // healthCheckNodePort
	LocalEndpoints int    // how many of its endpoints are on this node
}

// Servers answer the health checks of services, each at its port. Everybody may ask: who is slow or idle is cut off, and a
// service keeps maxConns connections at an address.
type Servers struct {
	log      *slog.Logger
	healthy  func() bool
	changed  chan struct{} // holds a token while there are ports to open or close
	failures atomic.Uint64

	mu     sync.RWMutex // guards what follows
	addrs  []netip.Addr
	checks map[cluster.Key]Check
	ports  map[uint16][]cluster.Key // who wants a port, as they came; the first has it
}

const (
	maxConns     = 32
	maxEnding    = 96
	connTimeout  = 5 * time.Second // for a request, and for an answer to it
	idleTimeout  = 30 * time.Second
	firstRetry   = time.Second
	slowestRetry = time.Minute
)

// everywhere stands for all addresses of this host, of both families.
var everywhere netip.Addr

// NewServers returns Servers that listen once they Run. healthy says whether the node's rules are what they should be; no check
// succeeds where they are not. nil stands for always.
func NewServers(log *slog.Logger, healthy func() bool) *Servers {
	if healthy == nil {
		healthy = func() bool { return true }
	}
	return &Servers{
		log: log, healthy: healthy, changed: make(chan struct{}, 1),
		addrs: []netip.Addr{everywhere}, checks: map[cluster.Key]Check{}, ports: map[uint16][]cluster.Key{},
	}
}

// Update changes what is answered for the services in put, and ends it for those in gone. It does not wait for ports to open or close.
// A Check with port 0 is none. Of two services with the same port, the one that came first has it, as long as it wants it.
func (s *Servers) Update(put map[cluster.Key]Check, gone []cluster.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range gone {
		s.set(key, Check{})
	}
	for key, c := range put {
		s.set(key, c)
	}
}

// set is for callers that hold the lock.
func (s *Servers) set(key cluster.Key, c Check) {
	old := s.checks[key]
	if c.Port == 0 {
		delete(s.checks, key)
	} else {
		s.checks[key] = c
	}
	if old.Port == c.Port {
		return
	}
	if old.Port != 0 {
		rest := slices.DeleteFunc(s.ports[old.Port], func(k cluster.Key) bool { return k == key })
		if s.ports[old.Port] = rest; len(rest) == 0 {
			delete(s.ports, old.Port)
		}
	}
	if c.Port != 0 {
		if first := s.ports[c.Port]; len(first) > 0 {
			s.log.Warn("another service has the health check port", "port", c.Port, "service", key.String(), "other", first[0].String())
		}
		s.ports[c.Port] = append(s.ports[c.Port], key)
	}
	s.wake()
}

// SetAddresses makes the servers listen at these addresses of the node only; none stands for all.
func (s *Servers) SetAddresses(addrs []netip.Addr) {
	if len(addrs) == 0 {
		addrs = []netip.Addr{everywhere}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.addrs, addrs) {
		s.addrs = slices.Clone(addrs)
		s.wake()
	}
}

// Failures returns how often a port could not be opened.
func (s *Servers) Failures() uint64 { return s.failures.Load() }

func (s *Servers) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// wanted returns where there is to be a server.
func (s *Servers) wanted() map[netip.AddrPort]bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make(map[netip.AddrPort]bool, len(s.addrs)*len(s.ports))
	for port := range s.ports {
		for _, a := range s.addrs {
			all[netip.AddrPortFrom(a, port)] = true
		}
	}
	return all
}

// Run listens and answers until ctx ends.
func (s *Servers) Run(ctx context.Context) {
	r := runner{Servers: s, open: map[netip.AddrPort]*server{}, failed: map[netip.AddrPort]failure{}}
	defer r.serving.Wait()
	defer func() {
		for _, srv := range r.open {
			srv.Close()
		}
	}()
	for {
		var retry <-chan time.Time
		if next := r.reconcile(ctx, time.Now()); !next.IsZero() {
			retry = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return
		case <-s.changed:
		case <-retry:
		}
	}
}

// runner is what Run knows.
type runner struct {
	*Servers
	serving sync.WaitGroup
	open    map[netip.AddrPort]*server
	failed  map[netip.AddrPort]failure
}

// server is at one address and port.
type server struct {
	http.Server
	ended atomic.Bool // by itself
}

// failure says when to try again.
type failure struct {
	next  time.Time
	delay time.Duration
}

// reconcile closes servers that are not wanted, then opens those that are. It returns when to try again what has failed, zero if
// nothing has.
func (r *runner) reconcile(ctx context.Context, now time.Time) (next time.Time) {
	wanted := r.wanted()
	for at, srv := range r.open {
		if !wanted[at] || srv.ended.Load() {
			srv.Close()
			delete(r.open, at)
		}
	}
	for at := range r.failed {
		if !wanted[at] {
			delete(r.failed, at)
		}
	}
	for at := range wanted {
		f := r.failed[at]
		if r.open[at] == nil && !f.next.After(now) {
			r.start(ctx, at, now)
			f = r.failed[at]
		}
		if !f.next.IsZero() && (next.IsZero() || f.next.Before(next)) {
			next = f.next
		}
	}
	return next
}

func (r *runner) start(ctx context.Context, at netip.AddrPort, now time.Time) {
	host := ""
	if at.Addr() != everywhere {
		host = at.Addr().String()
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(at.Port()))))
	if err != nil {
		r.failures.Add(1)
		f, again := r.failed[at]
		if !again {
			key, _ := r.owner(at.Port())
			r.log.Error("health checks of a service cannot be answered; trying again", "service", key.String(), "error", err)
		}
		f.delay = min(max(2*f.delay, firstRetry), slowestRetry)
		f.next = now.Add(f.delay)
		r.failed[at] = f
		return
	}
	delete(r.failed, at)
	srv := &server{Server: http.Server{
		Handler:     r.handler(at.Port()),
		ReadTimeout: connTimeout, WriteTimeout: connTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 4 << 10,
		ErrorLog: slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
	}}
	Few(&srv.Server)
	r.open[at] = srv
	r.serving.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			r.log.Error("health checks of a service are not answered any more; trying again", "address", at, "error", err)
			srv.ended.Store(true)
			r.wake()
		}
	})
}

// owner returns who has a port, and how many endpoints on this node.
func (s *Servers) owner(port uint16) (key cluster.Key, endpoints int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if keys := s.ports[port]; len(keys) > 0 {
		key = keys[0]
	}
	return key, s.checks[key].LocalEndpoints
}

// answer is kube-proxy's, to the tab.
const answer = `{
	"service": {
		"namespace": %q,
		"name": %q
	},
	"localEndpoints": %d,
	"serviceProxyHealthy": %v
}`

// handler answers for whoever has a port.
func (s *Servers) handler(port uint16) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		key, n := s.owner(port)
		healthy := s.healthy()
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(n))
		if n == 0 || !healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, answer, key.Namespace, key.Name, n, healthy)
	})
}

// crowd closes the oldest connection of a server that has too many: who opens many and says nothing keeps nobody out. It lets no
// more in while too many of the closed ones have yet to end, which can take them half a second each after a bad request.
type crowd struct {
	mu    sync.Mutex // guards what follows
	conns []net.Conn // those not closed here, as they came
	all   int        // these and those that have yet to end
	ended sync.Cond
}

// Few has a server that strangers reach keep few connections, 32: the oldest one is closed for one more. It is for a server that does not serve yet.
func Few(s *http.Server) { s.ConnState = newCrowd().state }

func newCrowd() *crowd {
	c := &crowd{}
	c.ended.L = &c.mu
	return c
}

// state is for http.Server, which calls it with a new connection before it takes another.
func (c *crowd) state(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		c.all++
		c.conns = append(c.conns, conn)
		if len(c.conns) > maxConns {
			_ = c.conns[0].Close()
			c.conns = slices.Delete(c.conns, 0, 1)
		}
		for c.all > maxConns+maxEnding {
			c.ended.Wait()
		}
	case http.StateClosed:
		c.all--
		c.conns = slices.DeleteFunc(c.conns, func(o net.Conn) bool { return o == conn })
		c.ended.Signal()
	}
}
