package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const agentHead = "apiVersion: ropewalk.dev/v1alpha1\nkind: AgentConfiguration\n"

// TestAgentConfigRefuses holds that what is wrong in a configuration is told with its line, and with what would be right.
func TestAgentConfigRefuses(t *testing.T) {
	for in, says := range map[string]string{
		"":                         "it is empty",
		"hosts: [":                 "line 1",
		"- a":                      ":1: it is no mapping; it begins with apiVersion: ropewalk.dev/v1alpha1",
		"kind: AgentConfiguration": `apiVersion is ""; this program reads ropewalk.dev/v1alpha1`,
		"apiVersion: ropewalk.dev/v2\nkind: AgentConfiguration": `"ropewalk.dev/v2"; this program reads ropewalk.dev/v1alpha1`,
		"apiVersion: ropewalk.dev/v1alpha1\nkind: Agent":        `kind is "Agent", not AgentConfiguration`,
		agentHead + "---\na: b":                                 "second document",
		agentHead + "hots: {}":                                  `:3: there is no "hots"; there are hosts, proxy, routes, cni`,
		agentHead + "hosts: no":                                 ":3: hosts is a mapping, as in enabled: false",
		agentHead + "hosts:\n  enabled: maybe":                  `:4: hosts.enabled: "maybe"; it is true or false`,
		agentHead + "hosts:\n  enabled: \"true\"":               `:4: hosts.enabled: "true"; it is true or false`,
		agentHead + "hosts:\n  sizes: 1":                        `:4: hosts has no "sizes"; it has enabled, cluster-domain, cluster-namespaces`,
		agentHead + "hosts:\n  node-name: x":                    `:4: hosts has no "node-name"`,
		agentHead + "hosts:\n  max-size: many":                  ":4: hosts.max-size: strconv.ParseInt",
		agentHead + "hosts:\n  max-size: [1]":                   ":4: hosts.max-size: it is one value; it is: bytes that no hosts file grows beyond",
		agentHead + "hosts:\n  max-size:":                       ":4: hosts.max-size: it has no value",
		agentHead + "hosts:\n  max-size: 100":                   ": hosts: a limit of 100 bytes is too small",
		agentHead + "hosts:\n  kubelet-dir: kubelet":            `: hosts: "kubelet": want an absolute path`,
		agentHead + "proxy:\n  pod-interface: [a/b]":            ": proxy: ",
		agentHead + "proxy:\n  cluster-cidr: 10.0.0.0/8":        ":4: proxy.cluster-cidr: it is a list, as in [a, b]",
		agentHead + "proxy:\n  cluster-cidr: [[a]]":             ":4: proxy.cluster-cidr: a list has values",
		agentHead + "proxy:\n\n  cluster-cidr: [10.0.0.1/8]":    `:5: proxy: --cluster-cidr: 10.0.0.1/8 has bits behind its length; is 10.0.0.0/8 meant?`,
		agentHead + "routes:\n  mtu: 1400\n  overlay: ipip":     `:5: routes: --overlay: "ipip" is none`,
		agentHead + "routes:\n  vxlan-port: 70000":              ":4: routes: --vxlan-port 70000",
		agentHead + "routes: {}\nroutes: {}":                    ":4: routes is there a second time; the first is in line 3",
		agentHead + "hosts: &a {}\nroutes: *a":                  ":4: aliases are not followed",
		agentHead + "hosts: {enabled: false}\nproxy: {enabled: false}\nroutes: {enabled: false}\ncni: {enabled: false}": "all parts are turned off",
	} {
		c := agentConfig{file: filepath.Join(t.TempDir(), "agent.yaml"), node: "n"}
		if err := os.WriteFile(c.file, []byte(in), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := c.parts(); err == nil || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), c.file) {
			t.Errorf("%q: %v; want %q", in, err, says)
		}
	}
}

// TestAgentConfig holds that what --print-config prints is read as the same, and that a part's configuration is another only if it is.
func TestAgentConfig(t *testing.T) {
	c := agentConfig{node: "n"}
	f, _, err := c.read()
	if err != nil {
		t.Fatal(err)
	}
	defaults := f.text()
	c.file = filepath.Join(t.TempDir(), "agent.yaml")
	put := func(text string) (configs []string) {
		t.Helper()
		if err := os.WriteFile(c.file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		f, _, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		if text == defaults {
			if d := cmp.Diff(text, f.text()); d != "" {
				t.Error(d)
			}
		}
		all, err := c.parts()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range all {
			configs = append(configs, p.Name+"\n"+p.Config)
		}
		return configs
	}
	whole, none := put(defaults), put(agentHead)
	if d := cmp.Diff(whole, none); d != "" || len(whole) != 4 {
		t.Errorf("%d parts: %s", len(whole), d)
	}
	other := put(agentHead + "hosts: {enabled: false}\nproxy:\n  cluster-cidr: [10.0.0.0/8, 'fd00::/8']\n  min-sync-period: 1s\nroutes:\n")
	if len(other) != 3 || other[0] == whole[1] || other[1] != whole[2] || other[2] != whole[3] || !strings.Contains(other[0], "cluster-cidr: [10.0.0.0/8, 'fd00::/8']") {
		t.Errorf("%q", other)
	}
}

// TestAgentDoc holds that the configurations in the document are right.
func TestAgentDoc(t *testing.T) {
	text, err := os.ReadFile("../../docs/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, block := range strings.Split(string(text), "```yaml\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		c := agentConfig{file: filepath.Join(t.TempDir(), "agent.yaml"), node: "n"}
		if err := os.WriteFile(c.file, []byte(block), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := c.parts(); err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
		n++
	}
	if n == 0 {
		t.Error("there is none")
	}
}
