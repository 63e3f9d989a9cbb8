// Package hook is what an OCI hook of the stages createRuntime and createContainer does for a pod's aliases: it gets the state of a
// container that is being made, finds the container's hosts file, and adds the aliases of the pod's annotation to it.
//
// A hook knows what the runtime tells it, and no API server: ConfigMaps' aliases, and annotations that are new, are the manager's
// part. It reads files that a container's image and a pod's author have a say in, and so believes little of them.
package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/amend"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

const (
	// maxState and maxConfig bound what is read, in bytes. A pod's annotations have 256 KiB (validation of the API), which CRI-O
	// repeats, and JSON may make six times as long.
	maxState  = 4 << 20
	maxConfig = 16 << 20
)

// The annotations by which runtimes tell what pod a container is of.
const (
	// criOAnnotations has a pod's annotations as JSON (CRI-O); containerd hands them on one by one, if pod_annotations says so.
	criOAnnotations = "io.kubernetes.cri-o.Annotations"
	// sandboxUID is containerd's.
	sandboxUID = "io.kubernetes.cri.sandbox-uid"
)

// Config is what the hook is told by whoever sets it up.
type Config struct {
	// KubeletDir is the kubelet's root directory. Only files of pods in it are written to.
	KubeletDir string
	// MaxSize bounds the hosts file, in bytes; 0 is podfile.DefaultMaxSize.
	MaxSize int
}

// Result is what a hook did.
type Result struct {
	// UID is the pod's; empty if the container has no hosts file of the kubelet's.
	UID string
	// Aliases is how many the pod's annotation has. Changed says that some of them were missing.
	Aliases int
	Changed bool
}

// state is the part of a container's state that is used (runtime-spec, "State").
type state struct {
	Bundle      string            `json:"bundle"`
	Annotations map[string]string `json:"annotations"`
}

// spec is the part of a bundle's config.json that is used (runtime-spec, "Configuration").
type spec struct {
	Mounts []struct {
		Destination string `json:"destination"`
		Source      string `json:"source"`
	} `json:"mounts"`
}

// Run does the hook's work for the container whose state, JSON, is on stdin. A container without aliases, or without a hosts file of
// the kubelet's, is none of its business, and no error.
func (c Config) Run(stdin io.Reader) (Result, error) {
	var s state
	if err := decode(stdin, maxState, &s); err != nil {
		return Result{}, fmt.Errorf("the container's state on standard input: %w; a runtime writes it there (OCI runtime-spec, State)", err)
	}
	aliases, err := aliasesOf(s.Annotations)
	if err != nil || len(aliases) == 0 {
		return Result{}, err
	}
	if !filepath.IsAbs(s.Bundle) {
		return Result{}, fmt.Errorf("the container's state has the bundle %q; want an absolute path", s.Bundle)
	}
	config, err := readSpec(filepath.Join(s.Bundle, "config.json"))
	if err != nil {
		return Result{}, err
	}
	uid, ok := config.uid(c.KubeletDir)
	if !ok {
		return Result{Aliases: len(aliases)}, nil
	}
	r := Result{UID: uid, Aliases: len(aliases)}
	if of := s.Annotations[sandboxUID]; of != "" && of != uid {
		return r, fmt.Errorf("the container of pod %.64q has the hosts file of pod %q, which stays as it is", of, uid)
	}
	r.Changed, err = amend.File(c.KubeletDir, uid, aliases, c.MaxSize)
	return r, err
}

// aliasesOf returns the aliases of the pod's annotation, as a runtime hands it on.
func aliasesOf(annotations map[string]string) ([]cluster.HostAlias, error) {
	value, ok := annotations[hostsfile.AliasesKey]
	if text := annotations[criOAnnotations]; !ok && text != "" {
		var pod map[string]string
		if err := json.Unmarshal([]byte(text), &pod); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", criOAnnotations, err)
		}
		value, ok = pod[hostsfile.AliasesKey]
	}
	if !ok {
		return nil, nil
	}
	aliases, err := hostsfile.ParseAnnotation(value)
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", hostsfile.AliasesKey, err)
	}
	return aliases, nil
}

// uid returns the pod whose hosts file the kubelet has given the container. The last mount at a place is the one that is seen.
func (s *spec) uid(kubeletDir string) (uid string, ok bool) {
	for _, m := range s.Mounts {
		if filepath.Join("/", m.Destination) == "/etc/hosts" { // runtime-spec before 1.0.0 had relative ones
			uid, ok = podfile.UID(kubeletDir, filepath.Clean(m.Source))
		}
	}
	return uid, ok
}

func readSpec(path string) (*spec, error) {
	// A regular file, and nothing that has us wait.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is not a regular file", path), err)
	}
	var s spec
	if err := decode(f, maxConfig, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &s, nil
}

// decode reads JSON of at most max bytes, to the end.
func decode(r io.Reader, max int64, into any) error {
	data, err := io.ReadAll(io.LimitReader(r, max+1))
	switch {
	case err != nil:
		return err
	case int64(len(data)) > max:
		return fmt.Errorf("over %d bytes", max)
	case len(data) == 0:
		return errors.New("nothing there")
	}
	return json.Unmarshal(data, into)
}
