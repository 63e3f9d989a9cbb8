package deploy

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/ropewalk-net/ropewalk/test/netns"
)

// TestImport has containerd import both forms of the image, by the code of `ctr images import`: it gets the name by which pods ask for it, and all of
// its content.
func TestImport(t *testing.T) {
	docker := pack(t)
	for _, path := range []string{docker, filepath.Join(filepath.Dir(docker), "ropewalk-oci.tar")} {
		t.Run(filepath.Base(path), func(t *testing.T) { imported(t, path) })
	}
}

// TestCopy copies the image as docs/install.md says, to a layout in the place of a registry: it is there for each architecture, in the same bytes.
func TestCopy(t *testing.T) {
	netns.NeedCommand(t, "skopeo")
	doc, err := os.ReadFile(filepath.Join(root(), "docs", "install.md"))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^    skopeo (.*) oci-archive:\S+ docker://\S+$`).FindSubmatch(doc)
	if line == nil {
		t.Fatal("docs/install.md has no such line")
	}
	from, to := filepath.Join(filepath.Dir(pack(t)), "ropewalk-oci.tar"), t.TempDir()
	args := append(strings.Fields(string(line[1])), "oci-archive:"+from, "oci:"+to+":v1")
	if out, err := exec.CommandContext(t.Context(), "skopeo", args...).CombinedOutput(); err != nil {
		t.Fatalf("skopeo %q: %v\n%s", args, err, out)
	}
	was := inspect(t, "oci-archive:"+from)
	if is := inspect(t, "oci:"+to+":v1"); !bytes.Equal(is, was) || !bytes.Contains(is, []byte(`"`+runtime.GOARCH+`"`)) {
		t.Errorf("the copy is\n%s, and it was\n%s", is, was)
	}
}

// inspect returns what an image lists, as it is stored.
func inspect(t *testing.T, image string) []byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "skopeo", "inspect", "--raw", image).Output()
	if err != nil {
		t.Fatal(image, err)
	}
	return out
}

func imported(t *testing.T, path string) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	top, err := archive.ImportIndex(t.Context(), store, f)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := content.ReadBlob(t.Context(), store, top)
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil || len(index.Manifests) != 1 {
		t.Fatalf("%v %+v", err, index)
	}
	// What the runtime makes of `image: ropewalk:test` in a pod.
	want, err := reference.ParseDockerRef("ropewalk:test")
	if name := index.Manifests[0].Annotations[images.AnnotationImageName]; err != nil || name != want.String() {
		t.Errorf("it is called %s, not %v: %v", name, want, err)
	}
	here := platforms.Only(ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH})
	manifest, err := images.Manifest(t.Context(), store, index.Manifests[0], here)
	if err != nil {
		t.Fatal(err)
	}
	var config ocispec.Image
	if raw, err = content.ReadBlob(t.Context(), store, manifest.Config); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &config); err != nil || !slices.Equal(config.Config.Entrypoint, []string{"/ropewalk"}) || len(config.RootFS.DiffIDs) != len(manifest.Layers) {
		t.Errorf("%v %+v", err, config)
	}
	if ok, _, _, missing, err := images.Check(t.Context(), store, index.Manifests[0], here); err != nil || !ok || len(missing) != 0 {
		t.Errorf("%v, missing %v", err, missing)
	}
}
