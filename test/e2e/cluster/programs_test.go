//go:build e2e

package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// programs are those of the cluster, by module. Each is built once for a version of its module.
var programs = map[string][]string{
	"k8s.io/kubernetes":                   {"cmd/kube-apiserver", "cmd/kube-controller-manager", "cmd/kube-scheduler", "cmd/kubelet"},
	"go.etcd.io/etcd/server/v3":           {"."},
	"github.com/containerd/containerd/v2": {"cmd/containerd", "cmd/containerd-shim-runc-v2"},
}

// shipped are the programs of the image.
var shipped = []string{"coredns", "ropewalk", "ropewalk-cni"}

// root is the repository's folder, seen from this package's.
const root = "../../.."

// build builds all programs that are not there yet, and returns a PATH that finds them.
func build() (string, error) {
	bin, err := filepath.Abs(filepath.Join(root, "bin"))
	if err != nil {
		return "", err
	}
	for _, name := range shipped {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return "", fmt.Errorf("%w; make e2e builds it", err)
		}
	}
	path := []string{bin}
	for module, packages := range programs {
		out, err := exec.Command("go", "list", "-m", "-f", "{{if .Replace}}{{.Replace.Version}}{{else}}{{.Version}}{{end}}", module).Output()
		if err != nil {
			return "", fmt.Errorf("go list -m %s: %w", module, err)
		}
		version := strings.TrimSpace(string(out))
		to := filepath.Join(bin, "e2e", strings.ReplaceAll(module, "/", "_")+"@"+version)
		path = append(path, to)
		for _, pkg := range packages {
			if err := buildOne(filepath.Join(module, pkg), to, version); err != nil {
				return "", err
			}
		}
	}
	own := filepath.Join(bin, "e2e")
	for _, pkg := range []string{"test/e2e/cluster/tool", "deploy/image"} {
		if err := goBuild("github.com/ropewalk-net/ropewalk/"+pkg, filepath.Join(own, filepath.Base(pkg)), "-s -w"); err != nil {
			return "", err
		}
	}
	return strings.Join(append(path, own, os.Getenv("PATH")), ":"), nil
}

// buildOne builds a program into a folder, whole or not at all.
func buildOne(pkg, dir, version string) error {
	name := filepath.Base(pkg)
	if name == "v3" {
		name = "etcd"
	}
	file := filepath.Join(dir, name)
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	fmt.Printf("building %s %s\n", name, version)
	number := strings.Split(strings.TrimPrefix(version, "v"), ".")
	const v = "k8s.io/component-base/version."
	flags := fmt.Sprintf("-s -w -X %sgitVersion=%s -X %sgitMajor=%s -X %sgitMinor=%s", v, version, v, number[0], v, number[1])
	if err := goBuild(pkg, file+".unfinished", flags); err != nil {
		return err
	}
	return os.Rename(file+".unfinished", file)
}

func goBuild(pkg, to, flags string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", flags, "-o", to, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s: %w", pkg, err)
	}
	return nil
}
