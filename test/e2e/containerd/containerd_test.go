package containerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ropewalk-net/ropewalk/test/netns"
)

func TestContainer(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.Tmpfs(t, "/run", nil)
	r := Start(t)
	hosts := filepath.Join(t.TempDir(), "etc-hosts")
	if err := os.WriteFile(hosts, []byte("old\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := r.Pod(t, "", "default", "web", "uid-1", nil)
	id := p.Container(t, "main", map[string]string{"A": "b"}, map[string]string{"/etc/hosts": hosts})
	if env := r.Tool(t, id, "env"); !strings.Contains(env, "A=b\n") {
		t.Errorf("env:\n%s", env)
	}
	if got := r.Tool(t, id, "cat", "/etc/hosts"); got != "old\n" {
		t.Errorf("hosts: %q", got)
	}
}
