// Package manifests is a cluster.Source that reads a directory of ordinary Kubernetes YAML and JSON, with no API server.
//
// What it does is four steps, of which the first three are pure:
//
//	Parse   the bytes of a file   ->  objects, checked, each knowing where it stands
//	Fill    all objects           ->  objects as a control plane would have completed them
//	Values  completed objects     ->  cluster values, as far as they are selected
//	Source  the directory         ->  all of that again when a file changes, and the difference to the sink
//
// Files are *.yaml, *.yml and *.json right in the directory, as `kubectl apply -f DIR` takes them; symbolic links are
// followed, dotfiles and names that end in "~" are not files. A file holds any number of documents, and lists of objects.
// The kinds understood are Namespace, Service, EndpointSlice, Endpoints, Pod, Node, ServiceCIDR, ServiceImport and ConfigMap;
// others are ignored, and so are fields that are unknown.
//
// What a control plane would add, Fill adds: see there. It is not a control plane: nothing is scheduled, and no pod,
// node or deployment comes into being. A pod without a UID gets one that its namespace and name alone decide; where a kubelet
// runs the pod, its directory is called by the UID that the kubelet knows, so the file has to give that.
package manifests
