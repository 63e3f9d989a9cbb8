// Package external tests that the plugin can be built into somebody else's CoreDNS by a line in plugin.cfg.
package external

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const line = "ropewalk:github.com/ropewalk-net/ropewalk/plugin/ropewalk"

// TestPluginCfg does what docs/dns.md says to a copy of CoreDNS's source: a line in plugin.cfg, go generate, go build. Of
// the other plugins only a few are left in, for the time that compiling all takes.
func TestPluginCfg(t *testing.T) {
	guide, err := os.ReadFile("../../docs/dns.md")
	if err != nil || !strings.Contains(string(guide), line) {
		t.Fatalf("docs/dns.md does not say %q (%v)", line, err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	src := strings.TrimSpace(run(t, root, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/coredns/coredns"))
	dir := filepath.Join(t.TempDir(), "coredns")
	if err := os.CopyFS(dir, os.DirFS(src)); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "chmod", "-R", "u+w", ".") // the module cache is read-only, and so are copies of it

	cfg, err := os.ReadFile(filepath.Join(dir, "plugin.cfg"))
	if err != nil {
		t.Fatal(err)
	}
	var keep []string
	for l := range strings.Lines(string(cfg)) {
		if regexp.MustCompile(`^(bind|errors|cache|forward|kubernetes):`).MatchString(l) {
			if strings.HasPrefix(l, "kubernetes:") {
				keep = append(keep, line+"\n")
			}
			keep = append(keep, l)
		}
	}
	if len(keep) != 6 {
		t.Fatalf("plugin.cfg is not what it was: %q", keep)
	}
	if err := os.WriteFile(filepath.Join(dir, "plugin.cfg"), []byte(strings.Join(keep, "")), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "go", "mod", "edit", "-replace=github.com/ropewalk-net/ropewalk="+root,
		"-require=github.com/ropewalk-net/ropewalk@v0.0.0")
	run(t, dir, "go", "generate", "coredns.go")
	run(t, dir, "go", "build", "-mod=mod", "-o", "coredns", ".")
	plugins := run(t, dir, "./coredns", "-plugins")
	if !regexp.MustCompile(`(?m)^(dns\.)?ropewalk$`).MatchString(plugins) || strings.Contains(plugins, "whoami") {
		t.Errorf("plugins of the build:\n%s", plugins)
	}
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}
