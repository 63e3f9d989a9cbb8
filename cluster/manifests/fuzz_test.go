package manifests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// FuzzParse feeds Parse, and Fill and Values after it, what a file may hold. Nothing may panic, and every error has a
// file and is an Error. Time and memory are bounded by the limits that the "bomb" seeds run into.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/*/*.txtar", "../../corefile/example/*.yaml"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			f.Fatalf("no seeds in %s: %v", pattern, err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			if filepath.Ext(path) == ".yaml" {
				f.Add(data, false)
				continue
			}
			for _, file := range txtar.Parse(data).Files {
				f.Add(file.Data, filepath.Ext(file.Name) == ".json")
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, isJSON bool) {
		name := "f.yaml"
		if isJSON {
			name = "f.json"
		}
		objects, err := Parse(name, data)
		if err == nil {
			var c *Cluster
			if c, err = Fill(objects, nil); err == nil {
				interest := allKinds
				interest.PodHosts, interest.Proxy, interest.NodeNet = true, true, true
				var v View
				v, err = Values(c, interest)
				checkHosts(t, v)
				checkProxy(t, v)
			}
		}
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Errorf("not an Error: %v", err)
		}
	})
}

// checkProxy holds that proxies can make rules of the services and slices.
func checkProxy(t *testing.T, v View) {
	t.Helper()
	ports := map[string]bool{}
	for key, o := range v[cluster.KindService] {
		s := o.(*cluster.Service)
		if (s.Proxy != nil) != (len(s.ClusterIPs) > 0) {
			t.Errorf("Service %s has the addresses %v and the proxy %v", key, s.ClusterIPs, s.Proxy)
		}
		for _, p := range s.Ports {
			id := fmt.Sprint(p.Protocol, p.NodePort)
			if p.NodePort != 0 && ports[id] {
				t.Errorf("Service %s has the node port %s of another one", key, id)
			}
			ports[id] = true
		}
	}
	for key, o := range v[cluster.KindSlice] {
		if s := o.(*cluster.Slice); len(s.Endpoints) != len(s.Proxy.Endpoints) {
			t.Errorf("EndpointSlice %s has %d endpoints, of which a proxy is told %d", key, len(s.Endpoints), len(s.Proxy.Endpoints))
		}
	}
}

// checkHosts holds that each pod has a directory of its own, and that aliases are lines.
func checkHosts(t *testing.T, v View) {
	t.Helper()
	uids := map[string]bool{}
	for key, o := range v[cluster.KindPod] {
		h := o.(*cluster.Pod).Hosts
		if uids[h.UID] || h.UID == "" || h.UID == "." || h.UID == ".." || strings.Contains(h.UID, "/") {
			t.Errorf("Pod %s has the UID %q", key, h.UID)
		}
		uids[h.UID] = true
		for _, a := range h.Aliases {
			if strings.ContainsAny(a.IP+strings.Join(a.Hostnames, ""), " \t\r\n#") {
				t.Errorf("Pod %s has the alias %q", key, a)
			}
		}
	}
}
