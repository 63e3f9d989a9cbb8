package manifests

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/tools/txtar"
)

// FuzzParse feeds Parse, and Fill and Values after it, what a file may hold. Nothing may panic, and every error has a
// file and is an Error. Time and memory are bounded by the limits that the "bomb" seeds run into.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/*/*.txtar", "../../corefile/example/*.yaml"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			f.Fatalf("no seeds in %s: %v", pattern, err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			if filepath.Ext(path) == ".yaml" {
				f.Add(data, false)
				continue
			}
			for _, file := range txtar.Parse(data).Files {
				f.Add(file.Data, filepath.Ext(file.Name) == ".json")
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, isJSON bool) {
		name := "f.yaml"
		if isJSON {
			name = "f.json"
		}
		objects, err := Parse(name, data)
		if err == nil {
			var c *Cluster
			if c, err = Fill(objects, nil); err == nil {
				_, err = Values(c, allKinds)
			}
		}
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Errorf("not an Error: %v", err)
		}
	})
}
