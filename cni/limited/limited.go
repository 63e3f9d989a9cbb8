// Package limited is how the daemon tells the plugin what of the node's network it cannot make: a file in the plugin's data directory, with
// a line of text for people. The plugin answers STATUS by it, as long as the daemon says so again and again: nobody else takes it away when
// the daemon is gone for good.
package limited

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const fileName = "limited"

// longest is how much of a text is kept, in bytes: it goes from the runtime into the Node object.
const longest = 1000

// Stale is how old a file is that counts no more.
const Stale = 5 * time.Minute

// Write says what is missing, in place of what was said before. The file is there whole or not at all.
func Write(dir, what string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text := strings.ToValidUTF8(strings.Join(strings.Fields(what), " "), "")
	text = strings.ToValidUTF8(text[:min(len(text), longest)], "")
	unfinished := filepath.Join(dir, "."+fileName) // there is one writer
	err := os.WriteFile(unfinished, []byte(text+"\n"), 0o644)
	if err == nil {
		err = os.Rename(unfinished, filepath.Join(dir, fileName))
	}
	return err
}

// Clear says that nothing is missing.
func Clear(dir string) error {
	err := os.Remove(filepath.Join(dir, fileName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Read returns what is missing; nothing if it is empty, or stale.
func Read(dir string) (string, error) {
	f, err := os.Open(filepath.Join(dir, fileName))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || time.Since(info.ModTime()) > Stale {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, longest))
	return strings.TrimSpace(string(b)), err
}
