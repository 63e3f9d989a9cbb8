package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// build fills a directory with small programs for both architectures, which say who they are.
func build(t *testing.T) (bin string) {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\n\nvar name string\n\nfunc main() { println(name) }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for arch := range machines {
		for _, p := range programs {
			compile(t, source, filepath.Join(dir, arch, p), "CGO_ENABLED=0", "GOARCH="+arch)
		}
	}
	return dir
}

func compile(t *testing.T, source, to string, env ...string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.name="+filepath.Base(to), "-o", to, source)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// files returns what a tar file has.
func files(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != 0 {
			t.Errorf("%s says by whom or when it was made: %+v", h.Name, h)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if _, ok := out[h.Name]; ok {
			t.Errorf("%s is there twice", h.Name)
		}
		if out[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

func open(t *testing.T, path string) map[string][]byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return files(t, bytes.NewReader(raw))
}

func decode(t *testing.T, raw []byte, into any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func gunzip(t *testing.T, b []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// TestImage holds both forms to the same images, every digest to what it is of, and layers to the programs.
func TestImage(t *testing.T) {
	bin, out := build(t), t.TempDir()
	if err := run(bin, out, "ropewalk:v1", []string{"amd64", "arm64"}); err != nil {
		t.Fatal(err)
	}
	oci := open(t, filepath.Join(out, "ropewalk-oci.tar"))
	blob := func(d descriptor) []byte {
		b, ok := oci["blobs/"+strings.Replace(d.Digest, ":", "/", 1)]
		if !ok || digest(b) != d.Digest || int64(len(b)) != d.Size {
			t.Fatalf("%+v: there %v, %s, %d bytes", d, ok, digest(b), len(b))
		}
		return b
	}
	var top, all index
	decode(t, oci["index.json"], &top)
	names := map[string]string{"org.opencontainers.image.ref.name": "v1", "io.containerd.image.name": "docker.io/library/ropewalk:v1"}
	if d := top.Manifests; len(d) != 1 || !cmp.Equal(d[0].Annotations, names) || string(oci["oci-layout"]) != `{"imageLayoutVersion":"1.0.0"}` {
		t.Fatalf("%+v", top)
	}
	decode(t, blob(top.Manifests[0]), &all)
	for i, arch := range []string{"amd64", "arm64"} {
		var m manifest
		decode(t, blob(all.Manifests[i]), &m)
		var c configuration
		decode(t, blob(m.Config), &c)
		if *all.Manifests[i].Platform != (platform{arch, "linux"}) || c.Architecture != arch || c.OS != "linux" {
			t.Errorf("%+v %+v", all.Manifests[i], c)
		}
		var layers []string
		for n, l := range m.Layers {
			plain := gunzip(t, blob(l))
			content := files(t, bytes.NewReader(plain))
			want, err := os.ReadFile(filepath.Join(bin, arch, programs[n]))
			if err != nil {
				t.Fatal(err)
			}
			if len(content) != 1 || !bytes.Equal(content[programs[n]], want) {
				t.Errorf("layer %d for %s is not %s", n, arch, programs[n])
			}
			layers = append(layers, digest(plain))
		}
		if d := cmp.Diff(layers, c.RootFS.DiffIDs); d != "" || len(layers) != len(programs) {
			t.Errorf("(-manifest +configuration)\n%s", d)
		}

		archive := open(t, filepath.Join(out, "ropewalk-"+arch+".tar"))
		var saved []struct {
			Config           string
			RepoTags, Layers []string
		}
		decode(t, archive["manifest.json"], &saved)
		if len(saved) != 1 || !cmp.Equal(saved[0].RepoTags, []string{"ropewalk:v1"}) || digest(archive[saved[0].Config]) != m.Config.Digest {
			t.Fatalf("%+v", saved)
		}
		var same []string
		for _, l := range saved[0].Layers {
			same = append(same, digest(archive[l]))
		}
		if d := cmp.Diff(layers, same); d != "" {
			t.Errorf("(-OCI +docker)\n%s", d)
		}
	}
}

// TestSameBytes holds that files depend on the programs alone: not on when, where and with which rights they were made.
func TestSameBytes(t *testing.T) {
	bin := build(t)
	var seen []map[string]string
	for range 2 {
		out := t.TempDir()
		if err := run(bin, out, "ropewalk:v1", []string{"amd64", "arm64"}); err != nil {
			t.Fatal(err)
		}
		sums := map[string]string{}
		paths, _ := filepath.Glob(filepath.Join(out, "*"))
		for _, p := range paths {
			raw, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			sums[filepath.Base(p)] = digest(raw)
		}
		seen = append(seen, sums)
		moved := filepath.Join(t.TempDir(), "elsewhere")
		if err := os.Rename(bin, moved); err != nil {
			t.Fatal(err)
		}
		bin = moved
		if err := os.Chmod(filepath.Join(bin, "amd64", "ropewalk"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(seen[0], seen[1]); d != "" || len(seen[0]) != 3 {
		t.Errorf("%d files, (-first +second)\n%s", len(seen[0]), d)
	}
}

// TestRefused: a program that could not run in the image does not get into one.
func TestRefused(t *testing.T) {
	bin := build(t)
	arch, other := runtime.GOARCH, map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	path := filepath.Join(bin, arch, "ropewalk")
	for what, spoil := range map[string]func(){
		"not for " + arch: func() { os.Rename(filepath.Join(bin, other, "ropewalk"), path) },
		"no such file":    func() { os.Remove(path) },
		"bad magic": func() {
			os.WriteFile(path, []byte("#!/bin/sh\n# this is not what it is called, and long enough for a header of ELF"), 0o755)
		},
		"not static": func() { // as the system's own programs are
			shell, err := os.ReadFile("/bin/sh")
			if err != nil {
				t.Fatal(err)
			}
			os.WriteFile(path, shell, 0o755)
		},
	} {
		spoil()
		out := t.TempDir()
		err := run(bin, out, "ropewalk:v1", []string{arch})
		left, _ := os.ReadDir(out)
		if err == nil || !strings.Contains(err.Error(), what) || len(left) != 0 {
			t.Errorf("%s: %v, %d files", what, err, len(left))
		}
	}
	for _, name := range []string{"", "ropewalk", "ropewalk:", ":v1", "registry.example:5000/ropewalk", "registry.example:5000/:v1", "ropewalk@sha256:00"} {
		if err := run(bin, t.TempDir(), name, []string{"amd64"}); err == nil || !strings.Contains(err.Error(), "NAME:TAG") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestNames: an image's name is what runtimes make of what pods ask for, and files are called like its last part.
func TestNames(t *testing.T) {
	for name, want := range map[string][3]string{
		"ropewalk:v1":                      {"docker.io/library/ropewalk", "v1", "ropewalk"},
		"infra/ropewalk:v1":                {"docker.io/infra/ropewalk", "v1", "ropewalk"},
		"localhost/rope:v1":                {"localhost/rope", "v1", "rope"},
		"localhost:5000/ropewalk:v1":       {"localhost:5000/ropewalk", "v1", "ropewalk"},
		"registry.example/infra/ropes:1.2": {"registry.example/infra/ropes", "1.2", "ropes"},
	} {
		repository, tag, ok := parse(name)
		if got := [3]string{full(repository), tag, filepath.Base(repository)}; !ok || got != want {
			t.Errorf("%s: %v %q", name, ok, got)
		}
	}
}

// TestDockerfile holds that both ways to an image have the same in it.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	want := "FROM scratch\nARG TARGETARCH\n"
	for _, p := range programs {
		want += "COPY bin/${TARGETARCH}/" + p + " /" + p + "\n"
	}
	start, _ := json.Marshal(entrypoint)
	want += "ENTRYPOINT " + string(start) + "\n"
	if d := cmp.Diff(want, regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(string(text), "")); d != "" {
		t.Errorf("(-program +Dockerfile)\n%s", d)
	}
}
