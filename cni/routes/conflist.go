package routes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
)

// ConfName is the file by which the runtime finds the plugin.
const ConfName = "10-ropewalk.conflist"

// unfinished is what the file is called while it is written: no name that runtimes look for.
const unfinished = "." + ConfName + ".*"

// sweep removes what processes have left that ended while they wrote.
func (r *Routes) sweep() error {
	if r.config.ConfDir == "" {
		return nil
	}
	left, err := filepath.Glob(filepath.Join(r.config.ConfDir, unfinished))
	for _, f := range left {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}

const (
	version = "1.1.0"
	network = "ropewalk"
)

// plugin is the plugin's configuration (package cni reads it).
type plugin struct {
	Type         string          `json:"type"`
	Mode         string          `json:"mode"`
	Bridge       string          `json:"bridge,omitempty"`
	SpoofCheck   bool            `json:"macspoofchk,omitempty"`
	MTU          int             `json:"mtu"`
	Ranges       []string        `json:"ranges"`
	DataDir      string          `json:"dataDir,omitempty"`
	Localhost    bool            `json:"localhostPorts,omitempty"`
	Masquerade   bool            `json:"masquerade,omitempty"`
	Capabilities map[string]bool `json:"capabilities"` // what the runtime passes on of what pods ask for
}

func (c Config) plugin(ranges []netip.Prefix, mtu int) plugin {
	p := plugin{
		Type: "ropewalk-cni", Mode: c.CNIMode, Bridge: c.Bridge, SpoofCheck: c.SpoofCheck, MTU: mtu, DataDir: c.DataDir, Localhost: c.LocalhostPorts, Masquerade: c.Masquerade,
		Capabilities: map[string]bool{"portMappings": true, "bandwidth": true, "ips": true, "mac": true, "io.kubernetes.cri.pod-annotations": true},
	}
	for _, r := range ranges {
		p.Ranges = append(p.Ranges, r.Masked().String())
	}
	return p
}

// conflist returns the file's content.
func (p plugin) conflist() ([]byte, error) {
	b, err := json.MarshalIndent(struct {
		CNIVersion string   `json:"cniVersion"`
		Name       string   `json:"name"`
		Plugins    []plugin `json:"plugins"`
	}{version, network, []plugin{p}}, "", "  ")
	return append(b, '\n'), err
}

// given returns what the runtime gives the plugin of it.
func (p plugin) given() ([]byte, error) {
	return json.Marshal(struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		plugin
	}{version, network, p})
}

// Plugin returns the plugin's configuration, as the runtime gives it to the plugin, or would if it were told; nil while pods cannot be attached.
func (r *Routes) Plugin() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.given
}

// recall takes the plugin's configuration from the file of an earlier process, until the cluster says what it is: the API server may be away.
func (r *Routes) recall() error {
	if r.config.ConfDir == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(r.config.ConfDir, ConfName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var file struct{ Plugins []plugin }
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err != nil || len(file.Plugins) != 1 {
		return errors.Join(fmt.Errorf("%s has %d plugins", ConfName, len(file.Plugins)), err)
	}
	given, err := file.Plugins[0].given()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.given = given
	return err
}

// announce has the runtime know that pods can be attached. The file is there whole or not at all: runtimes read it as it appears.
func (r *Routes) announce(v view, mtu int) error {
	p := r.config.plugin(v.self.PodCIDRs, mtu)
	given, err := p.given()
	b, err2 := p.conflist()
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	r.mu.Lock()
	r.given = given
	r.mu.Unlock()
	if r.config.ConfDir == "" {
		return nil
	}
	path := filepath.Join(r.config.ConfDir, ConfName)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, b) {
		return nil
	}
	if err := os.MkdirAll(r.config.ConfDir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(r.config.ConfDir, unfinished)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("CNI configuration: %w", err), os.Remove(f.Name()))
	}
	r.config.Log.Info("the runtime can attach pods", "file", path)
	return nil
}

// unannounce takes the file away while something is missing that ADD needs to know: what podCIDRs the node has. It stays while only the
// kernel or the API server does not do what it should: pods on this node can talk to each other, and a restart of the agent is no reason
// for the node to be not ready.
func (r *Routes) unannounce() error {
	if r.config.ConfDir == "" || !r.lacksRanges() {
		return nil
	}
	err := os.Remove(filepath.Join(r.config.ConfDir, ConfName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		r.config.Log.Warn("the runtime is told that pods cannot be attached: the node has no podCIDRs")
	}
	return err
}

func (r *Routes) lacksRanges() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.nodes.synced {
		return false
	}
	for _, n := range r.nodes.all {
		if n.Name == r.config.NodeName {
			return len(n.PodCIDRs) == 0
		}
	}
	return true
}
