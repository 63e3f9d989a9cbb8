package cni

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ropewalk-net/ropewalk/test/clusternet"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestCnitool goes through the verbs as somebody does who tries the plugin by hand.
func TestCnitool(t *testing.T) {
	if !enter(t) {
		return
	}
	n := newNode(t)
	netns.Tmpfs(t, "/var/lib", nil) // libcni's cache
	n.write("rope", n.ours())
	tool := func(verb string) (string, error) {
		cmd := exec.Command(filepath.Join(os.Getenv(peersEnv), "cnitool"), verb, "rope", "/run/netns/pod")
		cmd.Env = append(os.Environ(), "NETCONFPATH="+n.confDir, "CNI_PATH="+strings.Join(path(), ":"),
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web",
			`CAP_ARGS={"portMappings":[{"hostPort":9090,"containerPort":8080,"protocol":"tcp"}]}`)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(verb string) string {
		t.Helper()
		out, err := tool(verb)
		if err != nil {
			t.Errorf("%s: %v: %s", verb, err, out)
		}
		return out
	}
	must("status")
	var r current.Result
	if out := must("add"); json.Unmarshal([]byte(out), &r) != nil || len(r.IPs) != 2 || len(r.Interfaces) != 2 {
		t.Fatalf("ADD: %s", out)
	}
	must("check")
	n.talk(first4, first6)
	clusternet.Serve(t, "pod", first4+":8080")
	if server, _, err := clusternet.Ask(t, "", "tcp", node4+":9090"); err != nil || server != "pod" {
		t.Errorf("the port: %q, %v", server, err)
	}
	if out, err := tool("add"); err == nil || !strings.Contains(out, "eth0") {
		t.Errorf("a second ADD: %s", out)
	}
	netns.Run(t, "ip", "-n", "pod", "route", "del", "default")
	if out, err := tool("check"); err == nil || !strings.Contains(out, "default route by 169.254.1.1") {
		t.Errorf("CHECK without a route: %s", out)
	}
	for _, verb := range []string{"del", "gc"} {
		must(verb)
		n.empty("after " + verb)
		must("del")
		must("add")
	}
	must("gc") // of all, since cnitool names none
	n.empty("at the end")
}
