package hostsmgr

import (
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

// kinds are those that have to be synced before a file can be right.
var kinds = cluster.KindsOf(cluster.KindPod, cluster.KindConfigMap)

// Why there is nothing that belongs in a file.
var (
	errNodeFile = errors.New("the node's hosts file could not be read so far")
	errPod      = errors.New("the kubelet refuses such a pod")
)

// state is what the cluster says about the hosts files of a node's pods. It decides what belongs in them, and which of them a
// change touches; it opens no file. It is used by one goroutine.
type state struct {
	domain string
	// clusterFrom are the namespaces whose ConfigMaps may be meant for the cluster; nil means all.
	clusterFrom []string
	// limit is how many bytes of aliases the ConfigMaps of a namespace may have together: what no file has room for would only
	// fill our memory, and that of every node.
	limit int
	seed  maphash.Seed
	// node is the node's hosts file without our block; nil before it has been read.
	node []byte

	pods   map[cluster.Key]*pod
	byUID  map[string]*pod
	spaces map[string]*space
	wide   aliases
	gens   [cluster.NumKinds]uint32
	synced cluster.Kinds

	// touch is told of pods whose files may have to change, forget of those that are not this node's any more, report of
	// what somebody wrote that cannot be used. None of them changes the state.
	touch  func(p *pod, wide bool, received time.Time)
	forget func(p *pod)
	report func(kind cluster.Kind, key cluster.Key, err error)
}

// space is a namespace, known by what is in it.
type space struct {
	pods map[string]*pod
	maps map[string]*configMap
	size int // of the aliases of its ConfigMaps, in bytes
	// aliases are those of its ConfigMaps that are meant for the namespace.
	aliases aliases
}

// aliases are those of all ConfigMaps of one scope, put together when they are asked for, and again when one has changed.
type aliases struct {
	lines []byte
	stale bool
}

// pod is a pod of the node: what it asks for, and how its file is.
type pod struct {
	*cluster.Pod
	gen uint32
	// extra are the aliases of the annotation, as lines.
	extra []byte

	file file
}

// configMap is what is kept of a ConfigMap: of its text, the lines that are right.
type configMap struct {
	key   cluster.Key
	gen   uint32
	scope string // as the label says; empty if it is none of ours
	lines []byte
	sum   uint64 // of all that it has
}

func newState(domain string, clusterFrom []string, limit int) *state {
	return &state{
		domain:      domain,
		clusterFrom: clusterFrom,
		limit:       limit,
		seed:        maphash.MakeSeed(),
		pods:        map[cluster.Key]*pod{},
		byUID:       map[string]*pod{},
		spaces:      map[string]*space{},
		touch:       func(*pod, bool, time.Time) {},
		forget:      func(*pod) {},
		report:      func(cluster.Kind, cluster.Key, error) {},
	}
}

// complete says that nothing is missing that a file depends on.
func (s *state) complete() bool { return s.synced&kinds == kinds }

// take brings one change into the state.
func (s *state) take(c cluster.Change) {
	if !kinds.Has(c.Kind) {
		return
	}
	switch c.Op {
	case cluster.Replace:
		s.gens[c.Kind]++
	case cluster.Synced:
		s.sweep(c.Kind, c.Received)
		s.synced |= cluster.KindsOf(c.Kind)
	case cluster.Upsert:
		switch o := c.Object.(type) {
		case *cluster.Pod:
			s.pod(o, c.Received)
		case *cluster.ConfigMap:
			s.configMap(o, c.Received)
		}
	case cluster.Delete:
		if c.Kind == cluster.KindPod {
			s.dropPod(c.Key)
		} else {
			s.dropConfigMap(c.Key, c.Received)
		}
	}
}

// sweep drops what the listing that has ended did not name.
func (s *state) sweep(k cluster.Kind, received time.Time) {
	gen := s.gens[k]
	if k == cluster.KindPod {
		for key, p := range s.pods {
			if p.gen != gen {
				s.dropPod(key)
			}
		}
		return
	}
	for _, sp := range s.spaces {
		for _, m := range sp.maps {
			if m.gen != gen {
				s.dropConfigMap(m.key, received)
			}
		}
	}
}

func (s *state) pod(o *cluster.Pod, received time.Time) {
	key, gen := o.Key(), s.gens[cluster.KindPod]
	p := s.pods[key]
	if p != nil && reflect.DeepEqual(p.Pod, o) {
		p.gen = gen
		return
	}
	if err := s.checkUID(o); err != nil {
		s.dropPod(key)
		s.report(cluster.KindPod, key, err)
		return
	}
	if p != nil && p.Hosts.UID != o.Hosts.UID { // made anew under the same name
		s.dropPod(key)
		p = nil
	}
	if other := s.byUID[o.Hosts.UID]; other != nil && other != p { // renamed, and the new name came first
		s.report(cluster.KindPod, other.Key(), fmt.Errorf("its UID %s is now that of pod %s", o.Hosts.UID, key))
		s.dropPod(other.Key())
	}
	if p == nil {
		p = &pod{}
		s.pods[key], s.byUID[o.Hosts.UID], s.space(o.Namespace).pods[o.Name] = p, p, p
	}
	before, had := "", p.Pod != nil
	if had {
		before = p.Hosts.Annotations[hostsfile.AliasesKey]
	}
	p.Pod, p.gen = o, gen
	if now := o.Hosts.Annotations[hostsfile.AliasesKey]; now != before {
		p.extra = s.annotation(key, now)
	}
	s.touch(p, false, received)
}

// annotation reads a pod's annotation. One that is wrong counts as none, as the API would have refused it in the spec.
func (s *state) annotation(key cluster.Key, value string) []byte {
	if value == "" {
		return nil
	}
	extra, err := hostsfile.ParseAnnotation(value)
	if err != nil {
		s.report(cluster.KindPod, key, fmt.Errorf("annotation %s: %w", hostsfile.AliasesKey, err))
		return nil
	}
	return hostsfile.Lines(extra)
}

// checkUID makes sure that a pod's UID is the name of a directory.
func (s *state) checkUID(o *cluster.Pod) error {
	switch {
	case o.Hosts == nil || o.Hosts.UID == "":
		return errors.New("it has no UID, by which its directory is known")
	case !podfile.ValidUID(o.Hosts.UID):
		return fmt.Errorf("its UID %.100q is no name of a directory", o.Hosts.UID)
	}
	return nil
}

func (s *state) dropPod(key cluster.Key) {
	p := s.pods[key]
	if p == nil {
		return
	}
	delete(s.pods, key)
	delete(s.byUID, p.Hosts.UID)
	delete(s.space(key.Namespace).pods, key.Name)
	s.tidy(key.Namespace)
	s.forget(p)
}

func (s *state) configMap(o *cluster.ConfigMap, received time.Time) {
	sp := s.space(o.Namespace)
	m, sum := sp.maps[o.Name], s.sumOf(o)
	if m == nil {
		m = &configMap{key: o.Key(), sum: ^sum}
		sp.maps[o.Name] = m
	}
	m.gen = s.gens[cluster.KindConfigMap]
	if m.sum == sum {
		return
	}
	scopeBefore := m.scope
	sp.size -= len(m.lines)
	m.scope, m.lines, m.sum = s.scope(o), nil, sum
	if m.scope != "" {
		m.lines = s.parse(o)
	}
	if sp.size+len(m.lines) > s.limit {
		s.report(cluster.KindConfigMap, m.key, fmt.Errorf("left out until it changes: it has %d bytes of aliases, others of its "+
			"namespace %d, and %d are allowed together", len(m.lines), sp.size, s.limit))
		m.lines = nil
	}
	sp.size += len(m.lines)
	s.changed(scopeBefore, o.Namespace, received)
	if m.scope != scopeBefore {
		s.changed(m.scope, o.Namespace, received)
	}
}

func (s *state) dropConfigMap(key cluster.Key, received time.Time) {
	sp := s.spaces[key.Namespace]
	if sp == nil || sp.maps[key.Name] == nil {
		return
	}
	m := sp.maps[key.Name]
	delete(sp.maps, key.Name)
	sp.size -= len(m.lines)
	s.changed(m.scope, key.Namespace, received)
	s.tidy(key.Namespace)
}

// sumOf returns a hash of what a ConfigMap says.
func (s *state) sumOf(o *cluster.ConfigMap) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	put := func(text string) {
		maphash.WriteComparable(&h, len(text))
		h.WriteString(text)
	}
	put(o.Labels[hostsfile.AliasesKey])
	for _, k := range slices.Sorted(maps.Keys(o.Data)) {
		put(k)
		put(o.Data[k])
	}
	return h.Sum64()
}

// scope returns whose aliases a ConfigMap has, empty for nobody's.
func (s *state) scope(o *cluster.ConfigMap) string {
	scope := o.Labels[hostsfile.AliasesKey]
	switch scope {
	case hostsfile.ScopeNamespace:
		return scope
	case hostsfile.ScopeCluster:
		if s.clusterFrom == nil || slices.Contains(s.clusterFrom, o.Namespace) {
			return scope
		}
		s.report(cluster.KindConfigMap, o.Key(), fmt.Errorf("label %s: ConfigMaps of namespace %s may not be meant for the cluster; see --cluster-namespaces",
			hostsfile.AliasesKey, o.Namespace))
	default:
		s.report(cluster.KindConfigMap, o.Key(), fmt.Errorf("label %s is %q; want %q or %q",
			hostsfile.AliasesKey, scope, hostsfile.ScopeNamespace, hostsfile.ScopeCluster))
	}
	return ""
}

// parse returns the aliases of a ConfigMap by its keys, as lines. What is wrong is reported, all of it together: somebody may have put
// a file of another kind there.
func (s *state) parse(o *cluster.ConfigMap) []byte {
	var all []byte
	var first error
	wrong := 0
	for _, k := range slices.Sorted(maps.Keys(o.Data)) {
		good, errs := hostsfile.Parse(o.Data[k])
		all = append(all, hostsfile.Lines(good)...)
		if len(errs) > 0 && first == nil {
			first = fmt.Errorf("%s: %w", k, errs[0])
		}
		wrong += len(errs)
	}
	switch {
	case wrong == 1:
		s.report(cluster.KindConfigMap, o.Key(), first)
	case wrong > 1:
		s.report(cluster.KindConfigMap, o.Key(), fmt.Errorf("%w; and %d more lines are wrong", first, wrong-1))
	}
	return slices.Clip(all)
}

// changed notes that the aliases of a scope, and of a namespace if it is that one, are different.
func (s *state) changed(scope, namespace string, received time.Time) {
	switch scope {
	case hostsfile.ScopeNamespace:
		sp := s.space(namespace)
		sp.aliases.stale = true
		for _, p := range sp.pods {
			s.touch(p, false, received)
		}
	case hostsfile.ScopeCluster:
		s.wide.stale = true
		for _, p := range s.pods {
			s.touch(p, true, received)
		}
	}
}

// space returns a namespace, made if need be.
func (s *state) space(name string) *space {
	sp := s.spaces[name]
	if sp == nil {
		sp = &space{pods: map[string]*pod{}, maps: map[string]*configMap{}}
		s.spaces[name] = sp
	}
	return sp
}

func (s *state) tidy(name string) {
	if sp := s.spaces[name]; sp != nil && len(sp.pods)+len(sp.maps) == 0 {
		delete(s.spaces, name)
	}
}

// ofCluster returns the aliases that all pods have, as lines.
func (s *state) ofCluster() []byte {
	if s.wide.stale {
		var of []*configMap
		for _, sp := range s.spaces {
			of = append(of, sp.of(hostsfile.ScopeCluster)...)
		}
		s.wide.set(of)
	}
	return s.wide.lines
}

// ofNamespace returns the aliases that the pods of sp have besides.
func (sp *space) ofNamespace() []byte {
	if sp.aliases.stale {
		sp.aliases.set(sp.of(hostsfile.ScopeNamespace))
	}
	return sp.aliases.lines
}

func (sp *space) of(scope string) []*configMap {
	var of []*configMap
	for _, m := range sp.maps {
		if m.scope == scope {
			of = append(of, m)
		}
	}
	return of
}

func (a *aliases) set(of []*configMap) {
	slices.SortFunc(of, func(x, y *configMap) int { return x.key.Compare(y.key) })
	var all [][]byte
	for _, m := range of {
		all = append(all, m.lines)
	}
	a.lines, a.stale = slices.Concat(all...), false
}

// want returns the bytes that belong in a pod's file. It fails as hostsfile.Render does, and for a pod on the node's network as
// long as the node's file is not known.
func (s *state) want(p *pod) ([]byte, error) {
	if p.Hosts.HostNetwork && s.node == nil {
		return nil, errNodeFile
	}
	node := hostsfile.Node{ClusterDomain: s.domain, Hosts: s.node}
	want, err := hostsfile.RenderLines(p.Pod, node, p.extra, s.space(p.Namespace).ofNamespace(), s.ofCluster())
	if err != nil && !errors.Is(err, hostsfile.ErrNoAddress) {
		err = fmt.Errorf("%w: %w", errPod, err)
	}
	return want, err
}

// setNode takes what the node's file holds, without our block, and touches the pods that follow it.
func (s *state) setNode(hosts []byte) {
	if s.node != nil && string(s.node) == string(hosts) {
		return
	}
	s.node = append([]byte{}, hosts...)
	for _, p := range s.pods {
		if p.Hosts.HostNetwork {
			s.touch(p, true, time.Time{})
		}
	}
}
