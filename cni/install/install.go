// Package install puts the CNI plugin where the container runtime looks for plugins, and keeps it there.
package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Name is what the plugin's file is called: the type of the network configuration.
const Name = "ropewalk-cni"

// unfinished is what the file is called while it is written, which no configuration names.
const unfinished = "." + Name + ".*"

// Config says from where to where.
type Config struct {
	// Plugin is the program's file, Dir where the runtime looks for plugins, as in /opt/cni/bin.
	Plugin, Dir string
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

// Installer installs. Run does it.
type Installer struct {
	config Config
	sum    []byte // of the program

	mu    sync.Mutex
	ready error
}

// New looks at the program, and returns an Installer that does nothing before Run.
func New(c Config) (*Installer, error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	sum, err := sumOf(c.Plugin)
	if err != nil {
		return nil, fmt.Errorf("the CNI plugin: %w", err)
	}
	return &Installer{config: c, sum: sum, ready: errors.New("the CNI plugin is not installed yet")}, nil
}

// Ready returns nil when the plugin is there.
func (i *Installer) Ready() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ready
}

const (
	settle = 100 * time.Millisecond // for which changes of the folder are gathered
	often  = 5 * time.Minute        // how often is looked that nobody tells of
	blind  = 10 * time.Second       // the same where the folder cannot be watched
	retry  = time.Second            // the pause after a failure
)

// Run installs the plugin, and again when it is gone or another, until ctx ends. It stays.
func (i *Installer) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	watcher, err := fsnotify.NewWatcher()
	watch := func() error { return err }
	if err == nil {
		watch = func() error { return watcher.Add(i.config.Dir) } // no more than once
		defer watcher.Close()
		wg.Go(func() { i.watch(watcher, changed) })
	}
	if err := i.sweep(); err != nil {
		i.config.Log.Warn("what an earlier process has left of the CNI plugin stays", "error", err)
	}
	for told := false; ; {
		wait := often
		err := i.install()
		if err != nil {
			wait = retry
		} else if err := watch(); err != nil { // other programs may have all the watches there are (fs.inotify)
			if wait = blind; !told {
				i.config.Log.Warn("the folder of CNI plugins is not watched, but looked at now and then", "error", err, "every", wait)
			}
			told = true
		}
		i.tell(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		case <-changed:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(settle):
			}
		}
	}
}

// watch tells of changes of the plugin's file, or its folder, until the watcher is closed.
func (i *Installer) watch(w *fsnotify.Watcher, changed chan<- struct{}) {
	for {
		matters := true
		select {
		case e, ok := <-w.Events:
			if !ok {
				return
			}
			matters = filepath.Base(e.Name) == Name || filepath.Clean(e.Name) == filepath.Clean(i.config.Dir)
		case _, ok := <-w.Errors: // some changes were lost
			if !ok {
				return
			}
		}
		if !matters {
			continue
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

func (i *Installer) tell(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil && (i.ready == nil || i.ready.Error() != err.Error()) {
		i.config.Log.Error("the CNI plugin cannot be installed", "error", err)
	}
	i.ready = err
}

// install writes the file if it is not as it should be. It is there whole or not at all: the runtime may start it at any time.
func (i *Installer) install() error {
	path := filepath.Join(i.config.Dir, Name)
	have, err := sumOf(path)
	if info, err2 := os.Stat(path); err == nil && err2 == nil && info.Mode().Perm() == 0o755 && bytes.Equal(have, i.sum) {
		return nil
	}
	program, err := os.Open(i.config.Plugin)
	if err != nil {
		return err
	}
	defer program.Close()
	if err := os.MkdirAll(i.config.Dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(i.config.Dir, unfinished)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, program)
	err = errors.Join(err, f.Chmod(0o755), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	i.config.Log.Info("the CNI plugin is installed", "file", path)
	return nil
}

func sumOf(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), err
}

// sweep removes what processes have left that ended while they wrote.
func (i *Installer) sweep() error {
	left, err := filepath.Glob(filepath.Join(i.config.Dir, unfinished))
	for _, f := range left {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}
