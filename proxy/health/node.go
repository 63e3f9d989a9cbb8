package health

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// State is what is known of this node.
type State struct {
	Updated time.Time // when the kernel's rules were last made what they should be
	Pending time.Time // since when changes wait to be in the kernel; zero while there are none
	// Leaving says that the node is on its way out: connections are to go elsewhere, while those that there are go on (KEP-3836).
	Leaving bool
}

// Node tells whether this node's rules keep up with the cluster.
type Node struct {
	// State is called for each answer.
	State func() State
	// Late is for how long changes may wait.
	Late time.Duration
}

// Healthy reports whether no changes have waited for too long. That includes the first: kube-proxy is healthy until it has written
// its rules once, however long that takes.
func (n Node) Healthy() bool { return n.healthy(n.State(), time.Now()) }

func (n Node) healthy(s State, now time.Time) bool {
	return s.Pending.IsZero() || now.Sub(s.Pending) < n.Late
}

// Handler serves /healthz, by which load balancers choose nodes, and /livez, by which the kubelet restarts pods: it does not
// look at whether the node is leaving (KEP-3836). kube-proxy has them at port 10256. Its "status" by family is left out.
func (n Node) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { n.answer(w, true) })
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { n.answer(w, false) })
	return mux
}

func (n Node) answer(w http.ResponseWriter, whetherLeaving bool) {
	state, now := n.State(), time.Now()
	body := struct {
		LastUpdated  time.Time `json:"lastUpdated"`
		CurrentTime  time.Time `json:"currentTime"`
		NodeEligible *bool     `json:"nodeEligible,omitempty"`
		Healthy      bool      `json:"healthy"`
	}{LastUpdated: state.Updated, CurrentTime: now, Healthy: n.healthy(state, now)}
	ok := body.Healthy
	if whetherLeaving {
		eligible := !state.Leaving
		body.NodeEligible = &eligible
		ok = ok && eligible
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if ok {
		body.LastUpdated = now // what has not changed is as good as written now
	} else {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	out, err := json.Marshal(body)
	if err != nil { // a time of year 10000
		return
	}
	_, _ = w.Write(out)
}

// Mode serves what kube-proxy says at /proxyMode, port 10249. Others ask there which rules to expect.
func Mode() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		fmt.Fprint(w, "nftables")
	})
}
