package cluster

import (
	"context"
	"time"
)

// Op is what a Change does.
type Op uint8

const (
	// Upsert adds Object, or puts it in the place of the one with the same kind and key.
	Upsert Op = iota
	// Delete removes the object called Key. There may be none.
	Delete
	// Replace opens a full listing of Kind: the upserts that follow, up to Synced, are all there is. What was known
	// before stays valid until then, and goes with Synced if it was not upserted again. A second Replace before Synced
	// starts the listing over.
	Replace
	// Synced says that everything of Kind has been delivered. It closes a Replace; a kind that a source cannot deliver
	// at all (the API does not serve it) is synced and empty.
	Synced
)

var opNames = [...]string{"upsert", "delete", "replace", "synced"}

// String returns the op in lower case.
func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return "unknown"
}

// Change is one step of the stream from a source to a consumer.
type Change struct {
	Op   Op
	Kind Kind
	// Key names the object of a Delete; it is also set for an Upsert.
	Key Key
	// Object is the new value of an Upsert, else nil.
	Object Object
	// Received is when the source got to know.
	Received time.Time
}

// Upserted returns the Change that upserts o.
func Upserted(o Object, received time.Time) Change {
	return Change{Op: Upsert, Kind: o.Kind(), Key: o.Key(), Object: o, Received: received}
}

// Deleted returns the Change that deletes an object.
func Deleted(k Kind, key Key, received time.Time) Change {
	return Change{Op: Delete, Kind: k, Key: key, Received: received}
}

// Sink takes changes. Changes of one kind come in order and from one goroutine at a time; different kinds may come
// from different goroutines. Apply may block for as long as the consumer is behind: that is how it slows a source down.
type Sink interface {
	Apply(Change)
}

// Interest says what a consumer wants to hear of.
type Interest struct {
	Kinds Kinds
	// Labels selects services, slices and pods, NamespaceLabels namespaces, both as Kubernetes label selectors
	// ("app in (a, b),!old"); empty selects all.
	Labels, NamespaceLabels string
	// ServiceLabels and SliceLabels are label selectors for services and for slices, besides Labels. A proxy of services, for
	// one, leaves those that are labelled service.kubernetes.io/service-proxy-name to another one (KEP-2447), and has no use
	// for slices that are labelled service.kubernetes.io/headless.
	ServiceLabels, SliceLabels string
	// NoHeadless leaves out headless services.
	NoHeadless bool
	// PodLabels asks for the labels of pods, PodHosts for Pod.Hosts, Proxy for Service.Proxy, ServicePort.NodePort and
	// Slice.Proxy, NodeNet for Node.Net.
	PodLabels, PodHosts, Proxy, NodeNet bool
	// NodeName selects the pods of a node; empty selects those of all nodes. OneNode says that of the nodes it selects that one,
	// too, and needs a NodeName.
	NodeName string
	OneNode  bool
	// ConfigMapLabels is a label selector for ConfigMaps; empty selects all.
	ConfigMapLabels string
}

// Source delivers the state of a cluster, and then its changes.
type Source interface {
	// Run delivers what interest names to sink until ctx ends, and returns after the last call of Apply. It goes on
	// through failures of what it reads from; an error means that it could not start.
	Run(ctx context.Context, interest Interest, sink Sink) error
	// Age returns for how long the source has been out of touch with what it reads from: 0 while what it delivered is
	// current. It is safe to call at any time.
	Age() time.Duration
}
