// Command image packs the programs into images, with no daemon and no registry: a file for each architecture that `docker load` and
// `ctr images import` take, and one of the OCI's image layout with all of them, for tools that push it. The same programs give the
// same bytes, as far as this program is built by the same Go, whose gzip is used: there are no times in it but the epoch.
//
// What is in an image is what the Dockerfile beside says; a test compares them.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// programs are a layer each, so that a node loads those that another version has anew.
var programs = []string{"coredns", "ropewalk-cni", "ropewalk"}

var entrypoint = []string{"/ropewalk"}

// machines are what programs of an architecture, as Go calls it, say that they are for.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

func main() {
	bin := flag.String("bin", "bin", "directory that has one with the programs for each architecture")
	out := flag.String("out", "bin/image", "directory to write to")
	name := flag.String("name", "ropewalk:latest", "what the image is called")
	flag.Parse()
	if err := run(*bin, *out, *name, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// run writes the images of architectures and prints their paths.
func run(bin, out, name string, arches []string) error {
	repository, tag, ok := parse(name)
	if !ok || len(arches) == 0 {
		return fmt.Errorf("it is called with -name NAME:TAG, and architectures, not with %q and %q", name, arches)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	var images []*image
	for _, arch := range arches {
		i, err := read(filepath.Join(bin, arch), arch)
		if err != nil {
			return err
		}
		images = append(images, i)
		path := filepath.Join(out, filepath.Base(repository)+"-"+arch+".tar")
		if err := write(path, func(w *tar.Writer) error { return i.docker(w, name) }); err != nil {
			return err
		}
	}
	return write(filepath.Join(out, filepath.Base(repository)+"-oci.tar"), func(w *tar.Writer) error { return layout(w, images, full(repository)+":"+tag, tag) })
}

// parse takes the name of an image apart, in which a registry may have a port.
func parse(name string) (repository, tag string, ok bool) {
	i := strings.LastIndexByte(name, ':')
	if i <= 0 || i == len(name)-1 || strings.Contains(name[i:], "/") || strings.HasSuffix(name[:i], "/") || strings.Contains(name, "@") {
		return "", "", false
	}
	return name[:i], name[i+1:], true
}

// full returns what container runtimes take a repository for: what begins with no registry is one of Docker's.
func full(repository string) string {
	registry, _, ok := strings.Cut(repository, "/")
	switch {
	case !ok:
		return "docker.io/library/" + repository
	case registry != "localhost" && !strings.ContainsAny(registry, ".:"):
		return "docker.io/" + repository
	}
	return repository
}

// blob is what is known by its digest: bytes that are held, or a layer that is made of a program each time it is written.
type blob struct {
	Digest string // sha256:HEX
	Size   int64
	write  func(io.Writer) error
}

// hex is the digest without its algorithm.
func (b blob) hex() string { return strings.TrimPrefix(b.Digest, "sha256:") }

// newBlob learns what write writes.
func newBlob(write func(io.Writer) error) (blob, error) {
	h := sha256.New()
	size := &counter{w: h}
	err := write(size)
	return blob{Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), Size: size.n, write: write}, err
}

// newJSON is a blob of v, which can be encoded.
func newJSON(v any) (blob, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return blob{}, err
	}
	return newBlob(func(w io.Writer) error {
		_, err := w.Write(raw)
		return err
	})
}

// gzip returns what the blob is compressed. It is held, as to do it again takes longer than all else.
func (b blob) gzip() (blob, error) {
	var held bytes.Buffer
	z := gzip.NewWriter(&held)
	if err := errors.Join(b.write(z), z.Close()); err != nil {
		return blob{}, err
	}
	return newBlob(func(w io.Writer) error {
		_, err := w.Write(held.Bytes())
		return err
	})
}

// to writes the blob as a file. It is an error if a program has changed since its digest was taken.
func (b blob) to(w *tar.Writer, name string) error {
	if err := w.WriteHeader(header(name, b.Size, 0o644)); err != nil {
		return err
	}
	again, err := newBlob(func(digest io.Writer) error { return b.write(io.MultiWriter(w, digest)) })
	if err == nil && again.Digest != b.Digest {
		err = fmt.Errorf("%s has changed while it was read", name)
	}
	return err
}

// header has nothing that depends on when and by whom the file was made.
func header(name string, size, mode int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: mode, Format: tar.FormatUSTAR}
}

// image is one for an architecture.
type image struct {
	arch   string
	config blob
	layers []blob
}

// created is when everything was. The specification asks for no time, but tools take none for the year 1, or do not live through it.
const created = "1970-01-01T00:00:00Z"

// configuration is what the OCI's image specification calls so, as far as there is something to say.
type configuration struct {
	Created      string `json:"created"`
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Config       struct {
		Entrypoint []string
		WorkingDir string
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	History []history `json:"history"`
}

type history struct {
	Created   string `json:"created"`
	CreatedBy string `json:"created_by"`
}

// read makes an image of the programs in a directory.
func read(dir, arch string) (*image, error) {
	i := &image{arch: arch}
	c := configuration{Created: created, Architecture: arch, OS: "linux"}
	c.Config.Entrypoint, c.Config.WorkingDir = entrypoint, "/"
	c.RootFS.Type = "layers"
	for _, p := range programs {
		path := filepath.Join(dir, p)
		if err := static(path, arch); err != nil {
			return nil, err
		}
		l, err := newBlob(func(w io.Writer) error { return layer(w, path) })
		if err != nil {
			return nil, err
		}
		i.layers = append(i.layers, l)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.Digest)
		c.History = append(c.History, history{created, "COPY " + p + " /" + p})
	}
	var err error
	i.config, err = newJSON(c)
	return i, err
}

// static returns an error if a program is for another machine, or needs libraries, of which the image has none.
func static(path, arch string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	if want, ok := machines[arch]; !ok || f.Machine != want {
		return fmt.Errorf("%s is a program for %v, not for %s", path, f.Machine, arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not static: build it with CGO_ENABLED=0", path)
		}
	}
	return nil
}

// layer writes the layer that has a program at the top of the file system.
func layer(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	if err := t.WriteHeader(header(filepath.Base(path), info.Size(), 0o755)); err != nil {
		return err
	}
	if _, err := io.Copy(t, f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return t.Close()
}

// docker writes the image in the form of `docker save`, in which nodes take it by the name that pods have for it.
func (i *image) docker(w *tar.Writer, name string) error {
	type manifest struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	m := manifest{Config: i.config.hex() + ".json", RepoTags: []string{name}}
	if err := i.config.to(w, m.Config); err != nil {
		return err
	}
	for _, l := range i.layers {
		m.Layers = append(m.Layers, l.hex()+".tar")
		if err := l.to(w, l.hex()+".tar"); err != nil {
			return err
		}
	}
	b, err := newJSON([]manifest{m})
	if err != nil {
		return err
	}
	return b.to(w, "manifest.json")
}

// The OCI's media types, and its descriptor, manifest and index.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

type (
	descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int64             `json:"size"`
		Platform    *platform         `json:"platform,omitempty"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	platform struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	}
	manifest struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}
	index struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}
)

func (b blob) as(mediaType string) descriptor {
	return descriptor{MediaType: mediaType, Digest: b.Digest, Size: b.Size}
}

// layout writes the OCI's image layout: one index of all images, which has the tag, and the name by which runtimes that load it know it.
func layout(w *tar.Writer, images []*image, name, tag string) error {
	var blobs []blob
	all := index{SchemaVersion: 2, MediaType: typeIndex}
	for _, i := range images {
		m := manifest{SchemaVersion: 2, MediaType: typeManifest, Config: i.config.as(typeConfig)}
		for _, l := range i.layers {
			z, err := l.gzip()
			if err != nil {
				return err
			}
			m.Layers = append(m.Layers, z.as(typeLayer))
			blobs = append(blobs, z)
		}
		b, err := newJSON(m)
		if err != nil {
			return err
		}
		d := b.as(typeManifest)
		d.Platform = &platform{i.arch, "linux"}
		all.Manifests = append(all.Manifests, d)
		blobs = append(blobs, i.config, b)
	}
	b, err := newJSON(all)
	if err != nil {
		return err
	}
	blobs = append(blobs, b)
	top := b.as(typeIndex)
	top.Annotations = map[string]string{"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": name}
	for _, f := range []struct {
		name    string
		content any
	}{
		{"oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}},
		{"index.json", index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{top}}},
	} {
		b, err := newJSON(f.content)
		if err != nil {
			return err
		}
		if err := b.to(w, f.name); err != nil {
			return err
		}
	}
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, Format: tar.FormatUSTAR}); err != nil {
			return err
		}
	}
	written := map[string]bool{}
	for _, b := range blobs {
		if written[b.Digest] {
			continue
		}
		written[b.Digest] = true
		if err := b.to(w, "blobs/sha256/"+b.hex()); err != nil {
			return err
		}
	}
	return nil
}

// write makes a file that is whole or not there.
func write(path string, fill func(*tar.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it is called path by then, or nothing
	w := tar.NewWriter(f)
	err = fill(w)
	err = errors.Join(err, w.Close(), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	fmt.Println(path)
	return nil
}

// counter counts what goes through it.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
