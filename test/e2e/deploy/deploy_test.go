// Package deploy holds the tests of what deploy/ installs: kubectl renders it, a real API server takes it, and the programs are started
// as it says, from the image, with the rights that it gives them and no others.
package deploy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	kubectl "k8s.io/kubectl/pkg/cmd"
)

const (
	overlays = "deploy/overlays"
	// asKubectl has this program be kubectl.
	asKubectl = "ROPEWALK_TEST_AS_KUBECTL"
)

// programs are those of the image, with the variables that name some that make has built.
var programs = map[string]string{"coredns": "ROPEWALK_TEST_COREDNS", "ropewalk": "ROPEWALK_TEST_ROPEWALK", "ropewalk-cni": "ROPEWALK_TEST_CNI"}

func TestMain(m *testing.M) {
	if os.Getenv(asKubectl) != "" {
		if err := kubectl.NewDefaultKubectlCommand().Execute(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(withPrograms(m.Run))
}

// withPrograms builds the programs if make has not, in the module that they are of: this one lacks what coredns is made of.
func withPrograms(run func() int) int {
	dir, err := os.MkdirTemp("", "ropewalk")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	for name, env := range programs {
		if os.Getenv(env) != "" {
			continue
		}
		b := filepath.Join(dir, name)
		cmd := exec.Command("go", "build", "-o", b, "./cmd/"+name)
		cmd.Dir = root()
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			return 1
		}
		os.Setenv(env, b)
	}
	return run()
}

// root is the root of the repository.
func root() string {
	wd, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return filepath.Join(wd, "../../..")
}

// withKubectl puts a kubectl into PATH that knows one cluster, or none.
func withKubectl(t *testing.T, kubeconfig string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if kubeconfig == "" {
		kubeconfig = filepath.Join(dir, "none")
	}
	// HOME: no configuration of somebody's, and no cache that outlives the test.
	script := fmt.Sprintf("#!/bin/sh\n%s=1 HOME='%s' KUBECONFIG='%s' exec '%s' \"$@\"\n", asKubectl, dir, kubeconfig, self)
	if err := os.WriteFile(filepath.Join(dir, "kubectl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// sh runs a command in the repository and returns what it prints.
func sh(t *testing.T, stdin []byte, name string, args ...string) []byte {
	t.Helper()
	out, err := try(stdin, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return out
}

func try(stdin []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = root()
	cmd.Stdin = bytes.NewReader(stdin)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w\n%s%s", err, out, &errs)
	}
	return out, err
}

// all are the overlays.
func all(t *testing.T) (names []string) {
	t.Helper()
	dirs, err := os.ReadDir(filepath.Join(root(), overlays))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		names = append(names, d.Name())
	}
	if want := []string{"direct", "dns-only", "replace-kube-proxy", "vxlan"}; !slices.Equal(names, want) {
		t.Fatalf("overlays are %q", names)
	}
	return names
}

// objects are those of an overlay.
type objects struct {
	all     []runtime.Object
	configs map[string]*corev1.ConfigMap
	roles   map[string]*rbacv1.ClusterRole
	dns     *appsv1.Deployment
	agent   *appsv1.DaemonSet
}

// decode reads what kubectl has rendered, as strictly as an API server that is asked to.
func decode(t *testing.T, rendered []byte) *objects {
	t.Helper()
	o := &objects{configs: map[string]*corev1.ConfigMap{}, roles: map[string]*rbacv1.ClusterRole{}}
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	for docs := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(rendered))); ; {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return o
		} else if err != nil {
			t.Fatal(err)
		}
		obj, _, err := decoder.Decode(doc, nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		o.all = append(o.all, obj)
		switch obj := obj.(type) {
		case *corev1.ConfigMap:
			name := obj.Name
			if i := strings.LastIndex(name, "-"); i > 0 { // the hash of what is in it
				name = name[:i]
			}
			o.configs[name] = obj
		case *rbacv1.ClusterRole:
			o.roles[obj.Name] = obj
		case *appsv1.Deployment:
			o.dns = obj
		case *appsv1.DaemonSet:
			o.agent = obj
		}
	}
}

// render returns what an overlay has.
func render(t *testing.T, overlay string) *objects {
	t.Helper()
	return decode(t, sh(t, nil, "kubectl", "kustomize", filepath.Join(overlays, overlay)))
}

// config returns the file of a volume's ConfigMap.
func (o *objects) config(t *testing.T, volumes []corev1.Volume, key string) string {
	t.Helper()
	for _, v := range volumes {
		if v.ConfigMap == nil {
			continue
		}
		for _, c := range o.configs {
			if text, ok := c.Data[key]; ok && c.Name == v.ConfigMap.Name {
				return text
			}
		}
	}
	t.Fatalf("no volume has %s", key)
	return ""
}
