package deploy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestImport has containerd import both forms of the image, by the code of `ctr images import`: it gets the name by which pods ask for it, and all of
// its content.
func TestImport(t *testing.T) {
	docker := pack(t)
	for _, path := range []string{docker, filepath.Join(filepath.Dir(docker), "ropewalk-oci.tar")} {
		t.Run(filepath.Base(path), func(t *testing.T) { imported(t, path) })
	}
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
