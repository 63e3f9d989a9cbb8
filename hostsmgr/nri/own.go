package nri

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

// Hosts files of our own are StateDir/<sandbox>/hosts: only root gets to the directory, and a container to the file.

// validID reports whether a sandbox's id can be the name of a directory. Runtimes make them of hexadecimal digits.
func validID(id string) bool {
	outside := func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_'
	}
	return id != "" && len(id) <= 255 && !strings.ContainsFunc(id, outside)
}

// writeOwn makes the hosts file of a pod that the kubelet has made none for, and returns where it is.
func (p *Plugin) writeOwn(pod *api.PodSandbox, aliases []cluster.HostAlias) (path string, err error) {
	if !validID(pod.GetId()) {
		return "", fmt.Errorf("sandbox id %.80q: want letters and digits", pod.GetId())
	}
	node := hostsfile.Node{ClusterDomain: p.ClusterDomain}
	v := podValue(pod)
	if v.Hosts.HostNetwork {
		have, err := p.nodeHosts()
		if err != nil {
			return "", err
		}
		if node.Hosts, err = hostsmgr.WithoutBlock(have); err != nil {
			return "", fmt.Errorf("%s: %w", p.NodeHostsFile, err)
		}
	}
	content, err := hostsfile.Render(v, node, aliases...)
	if err != nil {
		return "", fmt.Errorf("%w (older runtimes do not tell plugins)", err)
	}
	if len(content) > p.MaxSize {
		return "", podfile.TooLarge(len(content), p.MaxSize)
	}
	dir := filepath.Join(p.StateDir, pod.GetId())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path = filepath.Join(dir, "hosts")
	return path, replace(path, content, p.MaxSize)
}

// podValue returns what is known of a pod. A runtime does not tell its hostname, so that it is the name.
func podValue(pod *api.PodSandbox) *cluster.Pod {
	v := &cluster.Pod{Namespace: pod.GetNamespace(), Name: pod.GetName(), Hosts: &cluster.PodHosts{UID: pod.GetUid()}}
	for _, ip := range pod.GetIps() {
		if addr, err := netip.ParseAddr(ip); err == nil {
			v.IPs = append(v.IPs, addr)
		}
	}
	namespaces := pod.GetLinux().GetNamespaces()
	isNetwork := false
	for _, n := range namespaces {
		isNetwork = isNetwork || n.GetType() == "network"
	}
	v.Hosts.HostNetwork = len(namespaces) > 0 && !isNetwork
	return v
}

func (p *Plugin) nodeHosts() ([]byte, error) {
	f, err := podfile.Open(p.NodeHostsFile, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Read(nil, p.MaxSize)
}

// replace makes content what is in a file, which may be mounted: it stays the same file, and is not written to for nothing.
func replace(path string, content []byte, maxSize int) error {
	f, err := podfile.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Chmod(); err != nil {
		return err
	}
	have, err := f.Read(nil, maxSize)
	switch {
	case errors.Is(err, podfile.ErrTooLarge): // a container wrote that
		have = nil
	case err != nil || bytes.Equal(have, content):
		return err
	}
	_, err = f.Replace(have, content)
	return err
}

// forget removes the file of a sandbox.
func (p *Plugin) forget(sandbox string) error {
	if p.StateDir == "" || !validID(sandbox) {
		return nil
	}
	return os.RemoveAll(filepath.Join(p.StateDir, sandbox))
}

// keepOnly removes the files of all sandboxes but those named.
func (p *Plugin) keepOnly(sandboxes map[string]bool) error {
	if p.StateDir == "" {
		return nil
	}
	entries, err := os.ReadDir(p.StateDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if e.IsDir() && !sandboxes[e.Name()] {
			errs = append(errs, p.forget(e.Name()))
		}
	}
	return errors.Join(errs...)
}
