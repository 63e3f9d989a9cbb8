package manifests

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// errBusy says that somebody is writing the file that was just read.
var errBusy = errors.New("the file is being written")

// isManifest reports whether a directory entry's name is that of a file to read: not those that editors make (.x.yaml.swp,
// x.yaml~), and not a ConfigMap volume's own (..data).
func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// list returns the files of dir by their names. What is neither a file nor a link to one is left out; one that
// cannot be looked at, such as a link that leads nowhere, has no info.
func list(dir string) (map[string]fs.FileInfo, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("%w; want a directory of Kubernetes YAML", err)
	}
	files := map[string]fs.FileInfo{}
	for _, e := range entries {
		if !isManifest(e.Name()) {
			continue
		}
		info, err := os.Stat(filepath.Join(dir, e.Name()))
		switch {
		case err == nil && info.Mode().IsRegular():
			files[e.Name()] = info
		case err != nil && (e.Type()&fs.ModeSymlink != 0 || !errors.Is(err, fs.ErrNotExist)):
			files[e.Name()] = nil // not just gone since; reading it will tell
		}
	}
	return files, nil
}

// same reports whether a and b, which may be nil, are of a file that has not been written or replaced in between.
func same(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// read returns what is in a file, and its info as of then; errBusy if the file changed meanwhile, or went since it was listed.
func read(path string) ([]byte, fs.FileInfo, error) {
	f, err := os.Open(path)
	if _, gone := os.Lstat(path); errors.Is(err, fs.ErrNotExist) && errors.Is(gone, fs.ErrNotExist) {
		return nil, nil, errBusy
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if before.Size() > maxFile {
		return nil, before, &Error{File: path, Problem: fmt.Sprintf("%d bytes, over the limit of %d; split the file", before.Size(), maxFile)}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, before, fmt.Errorf("%s: %w", path, err)
	}
	after, err := os.Stat(path)
	if err != nil || !same(before, after) || int64(len(data)) != after.Size() {
		return nil, before, errBusy
	}
	return data, after, nil
}
