package apiserver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// Config says which API server to read from, and how hard. The zero value is a pod's own cluster.
type Config struct {
	// Kubeconfig is a file; it wins over Endpoint. Context is one of its contexts, empty for its current one.
	Kubeconfig, Context string
	// Endpoint is the server's URL, or host:port. CertFile and KeyFile are the client's certificate and its key, CAFile
	// the authority that the server's certificate comes from; each may be empty, the first two only together. Without
	// Kubeconfig and Endpoint the server is that of the cluster the process runs in.
	Endpoint, CertFile, KeyFile, CAFile string
	// QPS bounds the requests a second, listings' pages and the starts of watches, over all kinds together; after a
	// pause up to Burst go at once, 10 if it is 0. QPS 0 sets no bound: a server protects itself (KEP-1040), and a
	// listing in pages would crawl at client-go's default of 5.
	QPS   float32
	Burst int
	// MaxInflight bounds the requests that wait for an answer at a time; 0 sets no bound. As in the API server's own
	// --max-requests-inflight a watch counts until it is established.
	MaxInflight int
	// UserAgent is what the server sees; empty for client-go's default.
	UserAgent string
	// Log defaults to slog.Default().
	Log *slog.Logger
	// OnError, if set, hears of each failure, those of single objects included. It is called from several goroutines.
	OnError func(kind cluster.Kind, err error)
}

// restConfig resolves c: the kubeconfig, else the endpoint, else the cluster that the process runs in. The order is
// that of CoreDNS's kubernetes plugin.
func (c Config) restConfig() (*rest.Config, error) {
	switch {
	case c.Kubeconfig != "":
		return c.fromKubeconfig()
	case c.Context != "":
		return nil, fmt.Errorf("context %q: a context needs the kubeconfig that it is in", c.Context)
	case c.Endpoint != "":
		return c.fromEndpoint()
	case c.CertFile != "" || c.KeyFile != "" || c.CAFile != "":
		return nil, errors.New("TLS files are given without the endpoint that they are for")
	}
	rc, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server: neither kubeconfig nor endpoint is given, and this is not a pod "+
			"with a service account: %w", err)
	}
	return rc, nil
}

func (c Config) fromKubeconfig() (*rest.Config, error) {
	// An empty file would pass for an empty configuration.
	data, err := os.ReadFile(c.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if len(strings.TrimSpace(string(data))) == 0 {
		return nil, fmt.Errorf("kubeconfig %s is empty: it needs clusters, users and contexts", c.Kubeconfig)
	}
	kc, err := clientcmd.LoadFromFile(c.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s is not a kind: Config of apiVersion: v1: %w", c.Kubeconfig, err)
	}
	name, err := contextName(kc, c.Context)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", c.Kubeconfig, err)
	}
	if err := clientcmd.ResolveLocalPaths(kc); err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", c.Kubeconfig, err)
	}
	rc, err := clientcmd.NewNonInteractiveClientConfig(*kc, name, &clientcmd.ConfigOverrides{}, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s, context %q: %w", c.Kubeconfig, name, err)
	}
	if err := checkTLS(rc.TLSClientConfig); err != nil {
		return nil, fmt.Errorf("kubeconfig %s, context %q: %w", c.Kubeconfig, name, err)
	}
	return rc, nil
}

// contextName returns the context to use, which is in kc and whose cluster and user are too.
func contextName(kc *clientcmdapi.Config, name string) (string, error) {
	have := strings.Join(slices.Sorted(maps.Keys(kc.Contexts)), ", ")
	switch {
	case len(kc.Contexts) == 0:
		return "", errors.New("it has no contexts")
	case name == "" && kc.CurrentContext == "":
		return "", fmt.Errorf("it has no current-context, so one must be named: %s", have)
	case name == "":
		name = kc.CurrentContext
	}
	kctx := kc.Contexts[name]
	switch {
	case kctx == nil:
		return "", fmt.Errorf("no context %q, it has: %s", name, have)
	case kc.Clusters[kctx.Cluster] == nil:
		return "", fmt.Errorf("context %q names the cluster %q, it has: %s", name, kctx.Cluster,
			strings.Join(slices.Sorted(maps.Keys(kc.Clusters)), ", "))
	case kc.Clusters[kctx.Cluster].Server == "":
		return "", fmt.Errorf("cluster %q has no server, the URL of its API", kctx.Cluster)
	case kctx.AuthInfo != "" && kc.AuthInfos[kctx.AuthInfo] == nil:
		return "", fmt.Errorf("context %q names the user %q, it has: %s", name, kctx.AuthInfo,
			strings.Join(slices.Sorted(maps.Keys(kc.AuthInfos)), ", "))
	}
	return name, nil
}

func (c Config) fromEndpoint() (*rest.Config, error) {
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, fmt.Errorf("endpoint %s: a client certificate and its key go together, got certificate %q and key %q",
			c.Endpoint, c.CertFile, c.KeyFile)
	}
	rc := &rest.Config{Host: c.Endpoint, TLSClientConfig: rest.TLSClientConfig{
		CertFile: c.CertFile, KeyFile: c.KeyFile, CAFile: c.CAFile,
	}}
	if u, _, err := rest.DefaultServerUrlFor(rc); err != nil {
		return nil, fmt.Errorf("endpoint %q is no URL such as https://host:6443: %w", c.Endpoint, err)
	} else if !httpURL(u) {
		return nil, fmt.Errorf("endpoint %q is no http or https URL such as https://host:6443", c.Endpoint)
	}
	if err := checkTLS(rc.TLSClientConfig); err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", c.Endpoint, err)
	}
	return rc, nil
}

func httpURL(u *url.URL) bool {
	return (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != ""
}

// checkTLS reads the files that t names. client-go reads some of them only at the first request, and then says so at
// each one.
func checkTLS(t rest.TLSClientConfig) error {
	if t.CertFile != "" && t.KeyFile != "" {
		if _, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile); err != nil {
			return fmt.Errorf("client certificate %s with key %s, both PEM and of one pair: %w", t.CertFile, t.KeyFile, err)
		}
	}
	if t.CAFile == "" {
		return nil
	}
	pem, err := os.ReadFile(t.CAFile)
	if err != nil {
		return fmt.Errorf("certificate authority: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return fmt.Errorf("certificate authority %s holds no certificate in PEM", t.CAFile)
	}
	return nil
}

// tune gives rc the limits of c. It has to come before clients are made of rc, which copy what they need.
func (c Config) tune(rc *rest.Config) {
	rc.QPS = -1
	if c.QPS > 0 {
		burst := c.Burst
		if burst <= 0 {
			burst = rest.DefaultBurst
		}
		// One limiter, or every group and version would get a rate of its own.
		rc.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(c.QPS, burst)
	}
	if c.UserAgent != "" {
		rc.UserAgent = c.UserAgent
	} else if rc.UserAgent == "" {
		rc.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	rc.WarningHandler = rest.NoWarnings{}
	// Over HTTP/2 client-go pings a silent connection; over plain HTTP/1 only TCP can tell that the other side is gone,
	// and its default of nine probes takes minutes.
	rc.Dial = (&net.Dialer{
		Timeout:         5 * time.Second,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
	}).DialContext
	if c.MaxInflight > 0 {
		rc.Wrap(newInflight(c.MaxInflight).wrap)
	}
}
