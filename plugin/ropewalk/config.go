package ropewalk

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/fall"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/cluster/apiserver"
	"github.com/ropewalk-net/ropewalk/cluster/manifests"
	"github.com/ropewalk-net/ropewalk/plugin/ropewalk/zone"
)

// config is a stanza of a Corefile.
type config struct {
	zones, multicluster []string
	namespaces          []string
	labels, nsLabels    string
	fall                fall.F
	ttl                 uint32
	pods                zone.PodMode
	endpointPodNames    bool
	noEndpoints         bool
	ignoreEmpty         bool
	zonal, env          bool
	autopath            bool
	startupTimeout      time.Duration
	fast                fastMode

	manifests string
	snapshot  string
	api       apiserver.Config
	// apiOption is the first option that only makes sense with an API server.
	apiOption string
	// stanzaAt is file and line of the stanza, sourceAt of the option that names the source, snapshotAt of snapshot, for
	// errors.
	stanzaAt, sourceAt, snapshotAt string

	// metadata says that the metadata plugin is there to ask for pods' labels; followReverse that no reverse zone is
	// listed. Both are found out after parsing.
	metadata, followReverse bool
}

const (
	defaultTTL            = 5
	maxTTL                = 3600
	defaultStartupTimeout = 5 * time.Second
)

// parse reads the stanza of a server block. Errors name the file, the line and what would be right.
func parse(c *caddy.Controller) (*config, error) {
	var cfg *config
	for c.Next() {
		if cfg != nil {
			return nil, c.Err("ropewalk may stand in a server block once: list all zones in one stanza")
		}
		cfg = &config{ttl: defaultTTL, startupTimeout: defaultStartupTimeout, stanzaAt: at(c), sourceAt: at(c)}
		cfg.zones = plugin.OriginsFromArgsOrServerBlock(c.RemainingArgs(), c.ServerBlockKeys)
		if len(cfg.zones) == 0 {
			return nil, c.Err("no zones: name the cluster's domain, as in: ropewalk cluster.local")
		}
		for c.NextBlock() {
			if err := cfg.option(c); err != nil {
				return nil, err
			}
		}
		for _, path := range []*string{&cfg.manifests, &cfg.snapshot} {
			if root := dnsserver.GetConfig(c).Root; *path != "" && !filepath.IsAbs(*path) && root != "" {
				*path = filepath.Join(root, *path)
			}
		}
	}
	return cfg, nil
}

func at(c *caddy.Controller) string { return fmt.Sprintf("%s:%d", c.File(), c.Line()) }

// option reads one option, whose name is the controller's present value.
func (cfg *config) option(c *caddy.Controller) error {
	name := c.Val()
	read, ok := options[name]
	if !ok {
		return c.Errf("unknown option %q; the options are: %s", name, optionNames())
	}
	args := c.RemainingArgs()
	if len(args) < read.min || len(args) > read.max {
		return c.Errf("%s takes %s, as in: %s", name, read.takes(), read.example)
	}
	if read.api && cfg.apiOption == "" {
		cfg.apiOption = name
	}
	if err := read.set(cfg, args); err != nil {
		return c.Errf("%s: %v", name, err)
	}
	if name == "manifests" || name == "kubeconfig" || name == "endpoint" && cfg.api.Kubeconfig == "" {
		cfg.sourceAt = at(c)
	}
	if name == "snapshot" {
		cfg.snapshotAt = at(c)
	}
	return cfg.check(c)
}

// option is how an option is read: between min and max arguments. Those with api set are for API servers.
type option struct {
	min, max int
	example  string
	api      bool
	set      func(cfg *config, args []string) error
}

const many = math.MaxInt

func (o option) takes() string {
	switch {
	case o.max == 0:
		return "no argument"
	case o.min == o.max:
		return plural(o.min)
	case o.max == many:
		return "at least " + plural(o.min)
	}
	return fmt.Sprintf("%d to %s", o.min, plural(o.max))
}

func plural(n int) string {
	if n == 1 {
		return "1 argument"
	}
	return fmt.Sprintf("%d arguments", n)
}

func optionNames() string {
	names := make([]string, 0, len(options))
	for n := range options {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// options are all options there are: first those of CoreDNS's kubernetes plugin with their meaning there, then ours.
var options = map[string]option{
	"endpoint": {1, many, "endpoint https://10.0.0.1:6443", true, func(cfg *config, args []string) error {
		if len(args) > 1 {
			log.Warningf("endpoint: only the first of several is used: %s", args[0])
		}
		cfg.api.Endpoint = args[0]
		return nil
	}},
	"tls": {3, 3, "tls CERT KEY CACERT", true, func(cfg *config, args []string) error {
		cfg.api.CertFile, cfg.api.KeyFile, cfg.api.CAFile = args[0], args[1], args[2]
		return nil
	}},
	"kubeconfig": {1, 2, "kubeconfig /etc/kubernetes/dns.conf", true, func(cfg *config, args []string) error {
		cfg.api.Kubeconfig = args[0]
		if len(args) == 2 {
			cfg.api.Context = args[1]
		}
		return nil
	}},
	"apiserver_qps": {1, 1, "apiserver_qps 50", true, func(cfg *config, args []string) error {
		qps, err := strconv.ParseFloat(args[0], 32)
		if err != nil || qps < 0 || math.IsNaN(qps) || math.IsInf(qps, 0) {
			return fmt.Errorf("%q is not a number of requests per second, such as 50 or 0.5", args[0])
		}
		cfg.api.QPS = float32(qps)
		return nil
	}},
	"apiserver_burst": {1, 1, "apiserver_burst 100", true, func(cfg *config, args []string) error {
		return parseCount(args[0], &cfg.api.Burst)
	}},
	"apiserver_max_inflight": {1, 1, "apiserver_max_inflight 10", true, func(cfg *config, args []string) error {
		return parseCount(args[0], &cfg.api.MaxInflight)
	}},
	"namespaces": {1, many, "namespaces shop payments", false, func(cfg *config, args []string) error {
		cfg.namespaces = append(cfg.namespaces, args...)
		return nil
	}},
	"namespace_labels": {1, many, "namespace_labels istio-injection=enabled", false, func(cfg *config, args []string) error {
		return parseSelector(args, &cfg.nsLabels)
	}},
	"labels": {1, many, "labels environment in (staging, qa),application=nginx", false, func(cfg *config, args []string) error {
		return parseSelector(args, &cfg.labels)
	}},
	"pods": {1, 1, "pods verified", false, func(cfg *config, args []string) error {
		mode, ok := podModes[args[0]]
		if !ok {
			return fmt.Errorf("%q is none of disabled, insecure, verified", args[0])
		}
		cfg.pods = mode
		return nil
	}},
	"endpoint_pod_names": {0, 0, "endpoint_pod_names", false, func(cfg *config, _ []string) error {
		cfg.endpointPodNames = true
		return nil
	}},
	"ttl": {1, many, "ttl 30", false, func(cfg *config, args []string) error {
		t, err := strconv.Atoi(args[0])
		if err != nil || t < 0 || t > maxTTL {
			return fmt.Errorf("%q is not a number of seconds from 0 to %d", args[0], maxTTL)
		}
		cfg.ttl = uint32(t)
		return nil
	}},
	"noendpoints": {0, 0, "noendpoints", false, func(cfg *config, _ []string) error {
		cfg.noEndpoints = true
		return nil
	}},
	"fallthrough": {0, many, "fallthrough in-addr.arpa ip6.arpa", false, func(cfg *config, args []string) error {
		cfg.fall.SetZonesFromArgs(args)
		return nil
	}},
	"ignore": {0, many, "ignore empty_service", false, func(cfg *config, args []string) error {
		if len(args) == 0 {
			return nil
		}
		if args[0] != "empty_service" {
			return fmt.Errorf("%q cannot be ignored, only empty_service can", args[0])
		}
		cfg.ignoreEmpty = true
		return nil
	}},
	"multicluster": {0, many, "multicluster clusterset.local", false, func(cfg *config, args []string) error {
		cfg.multicluster = plugin.OriginsFromArgsOrServerBlock(args, nil)
		return nil
	}},
	"zonal": {0, 0, "zonal", false, func(cfg *config, _ []string) error {
		cfg.zonal = true
		return nil
	}},
	"startup_timeout": {1, many, "startup_timeout 10s", false, func(cfg *config, args []string) error {
		d, err := time.ParseDuration(args[0])
		if err != nil || d < 0 {
			return fmt.Errorf("%q is not a duration, such as 10s", args[0])
		}
		cfg.startupTimeout = d
		return nil
	}},
	"manifests": {1, 1, "manifests /etc/coredns/cluster", false, func(cfg *config, args []string) error {
		cfg.manifests = args[0]
		return nil
	}},
	"snapshot": {1, 1, "snapshot /var/lib/coredns/cluster.snapshot", true, func(cfg *config, args []string) error {
		cfg.snapshot = args[0]
		return nil
	}},
	"autopath": {0, 0, "autopath", false, func(cfg *config, _ []string) error {
		cfg.autopath = true
		return nil
	}},
	"fastpath": {0, 1, "fastpath 4", false, func(cfg *config, args []string) error {
		mode, err := parseFastpath(args)
		cfg.fast = mode
		return err
	}},
	"env": {0, 0, "env", false, func(cfg *config, _ []string) error {
		cfg.env = true
		return nil
	}},
}

var podModes = map[string]zone.PodMode{
	"disabled": zone.PodsDisabled,
	"insecure": zone.PodsInsecure,
	"verified": zone.PodsVerified,
}

// parseFastpath reads [on|off|SOCKETS].
func parseFastpath(args []string) (fastMode, error) {
	switch {
	case len(args) == 0 || args[0] == "on":
		return fastMode{asked: true}, nil
	case args[0] == "off":
		return fastMode{off: true}, nil
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 1 || n > maxFastSockets {
		return fastMode{}, fmt.Errorf("%q is none of on, off and a number of sockets from 1 to %d", args[0], maxFastSockets)
	}
	return fastMode{asked: true, sockets: n}, nil
}

func parseCount(arg string, n *int) error {
	v, err := strconv.Atoi(arg)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a whole number of 0 or more", arg)
	}
	*n = v
	return nil
}

func parseSelector(args []string, to *string) error {
	s := strings.Join(args, " ")
	if _, err := labels.Parse(s); err != nil {
		return fmt.Errorf("%q is not a label selector, such as environment in (staging, qa),!internal: %v", s, err)
	}
	*to = s
	return nil
}

// check refuses options that contradict each other. It is called after each, so that the error names the line of the
// one that contradicts.
func (cfg *config) check(c *caddy.Controller) error {
	if len(cfg.namespaces) > 0 && cfg.nsLabels != "" {
		return c.Err("namespaces and namespace_labels cannot both be set: choose namespaces by name or by label")
	}
	for _, z := range cfg.multicluster {
		if !slices.Contains(cfg.zones, z) {
			return c.Errf("multicluster: %s is not one of the zones (%s): add it behind the word ropewalk", z, strings.Join(cfg.zones, " "))
		}
	}
	if cfg.zonal && cfg.noEndpoints {
		return c.Err("zonal and noendpoints cannot both be set: names of topology zones are made of endpoints")
	}
	if cfg.manifests != "" && cfg.apiOption != "" {
		return c.Errf("manifests and %s cannot both be set: records come from a directory or from an API server", cfg.apiOption)
	}
	return nil
}

// zoneOptions returns what the zone needs to know.
func (cfg *config) zoneOptions() zone.Options {
	return zone.Options{
		TTL:              cfg.ttl,
		Pods:             cfg.pods,
		WatchPods:        cfg.autopath,
		EndpointPodNames: cfg.endpointPodNames,
		NoEndpoints:      cfg.noEndpoints,
		IgnoreEmpty:      cfg.ignoreEmpty,
		Zonal:            cfg.zonal,
		Env:              cfg.env,
		MultiCluster:     len(cfg.multicluster) > 0,
		FollowReverse:    cfg.followReverse,
		Namespaces:       cfg.namespaces,
		Served:           observe,
	}
}

func (cfg *config) interest() cluster.Interest {
	o := cfg.zoneOptions()
	return cluster.Interest{
		Kinds:           o.Interest(),
		Labels:          cfg.labels,
		NamespaceLabels: cfg.nsLabels,
		PodLabels:       cfg.metadata,
	}
}

// newSource makes the source of records. It does not go to the network, but reads the directory or the kubeconfig.
func (cfg *config) newSource() (cluster.Source, error) {
	if cfg.manifests != "" {
		s, err := manifests.New(cfg.manifests, logger())
		if err != nil {
			return nil, fmt.Errorf("%s: manifests %s: %w", cfg.sourceAt, cfg.manifests, err)
		}
		return s, nil
	}
	api := cfg.api
	api.Log = logger()
	api.UserAgent = fmt.Sprintf("%s/%s ropewalk", caddy.AppName, caddy.AppVersion)
	api.OnError = func(k cluster.Kind, _ error) { apiErrors.WithLabelValues(k.String()).Inc() }
	s, err := apiserver.New(api)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.sourceAt, err)
	}
	return s, nil
}

// feedKey is equal for configurations that can share a feed.
func (cfg *config) feedKey() string {
	o := cfg.zoneOptions()
	o.Served = nil
	api := cfg.api
	var snapshot []string
	if cfg.snapshot != "" {
		snapshot = append([]string{cfg.snapshot}, cfg.zones...)
	}
	return fmt.Sprintf("%#v|%#v|%q|%q|%#v|%q", o, cfg.interest(), cfg.manifests, snapshot, []any{
		api.Kubeconfig, api.Context, api.Endpoint, api.CertFile, api.KeyFile, api.CAFile, api.QPS, api.Burst, api.MaxInflight},
		[]string{stamp(api.Kubeconfig), stamp(api.CertFile), stamp(api.KeyFile), stamp(api.CAFile)})
}

// stamp changes with the contents of a file, which a client of the API server reads once.
func stamp(file string) string {
	if file == "" {
		return ""
	}
	st, err := os.Stat(file)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(st.Size(), st.ModTime().UnixNano())
}

// logger returns the log for what is not CoreDNS's own, in CoreDNS's form.
func logger() *slog.Logger { return slog.New(logHandler{}) }
