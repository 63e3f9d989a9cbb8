package hostsmgr

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// watcher tells of what happens to files; nil, which is ready to use, tells of nothing.
//
// A pod's directory is watched, not its file: so a file that is made or put there is seen as well. Writes from inside a
// container are, too: what is mounted there is the same entry of the same directory.
type watcher struct {
	*fsnotify.Watcher
	node string
}

// newWatcher watches the kubelet's directory, but nothing below it, the one that it is in, since nothing is heard of the end of
// a directory that we have open; and the node's file with its directory: an editor may put another file in its place, and a
// container may have nothing but the file mounted.
func newWatcher(tree, node string) (*watcher, error) {
	inotify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	w := &watcher{inotify, node}
	ofNode := inotify.Add(filepath.Dir(node))
	if errors.Is(ofNode, fs.ErrNotExist) { // the pods' files are watched all the same
		ofNode = nil
	}
	if err := errors.Join(inotify.Add(tree), inotify.Add(filepath.Dir(tree)), ofNode); err != nil {
		w.close()
		return nil, err
	}
	w.nodeAgain()
	return w, nil
}

// nodeAgain watches the file that has the node file's name now. It need not exist.
func (w *watcher) nodeAgain() {
	if w != nil {
		_ = w.Remove(w.node)
		_ = w.Add(w.node)
	}
}

func (w *watcher) close() {
	if w != nil {
		_ = w.Close()
	}
}

func (w *watcher) events() <-chan fsnotify.Event {
	if w == nil {
		return nil
	}
	return w.Events
}

func (w *watcher) errors() <-chan error {
	if w == nil {
		return nil
	}
	return w.Errors
}

// event takes in what happened to a file or directory.
func (w *worker) event(e fsnotify.Event, now time.Time) {
	if e.Name == w.m.config.NodeHostsFile {
		w.nodeEvent(now)
		return
	}
	const moved = fsnotify.Create | fsnotify.Remove | fsnotify.Rename
	if e.Name == w.tree.Path() {
		w.lostTree = w.lostTree || e.Op&moved != 0
		return
	}
	path, below := strings.CutPrefix(e.Name, w.tree.Path()+"/")
	uid, _, inside := strings.Cut(path, "/")
	p := w.state.byUID[uid]
	switch {
	case !below || p == nil:
	case e.Name == w.tree.File(uid):
		w.disturbed(p, now)
	case !inside && e.Op&moved != 0:
		p.file.watched = false // the watch was one of the directory that is gone
		w.enqueue(p, false)
	}
}

// watchPod watches a pod's directory, if it is there and not watched.
func (w *worker) watchPod(p *pod) {
	f := &p.file
	if f.watched {
		return
	}
	f.blind = w.watch == nil
	if f.blind {
		return
	}
	err := w.watch.Add(w.tree.Dir(p.Hosts.UID))
	switch {
	case err == nil:
		f.watched = true
	case !errors.Is(err, fs.ErrNotExist): // else we hear when the kubelet makes it
		f.blind = true
		w.sayBlind(err)
	}
}

func (w *worker) unwatch(p *pod) {
	if p.file.watched {
		p.file.watched = false
		_ = w.watch.Remove(w.tree.Dir(p.Hosts.UID)) // it is gone with the directory
	}
}

// sayBlind says that files are looked at from time to time only, since inotify fails with err.
func (w *worker) sayBlind(err error) {
	if again := time.Now().Add(recheckBlind); w.state.complete() && again.Before(w.recheckAt) {
		w.recheckAt = again
	}
	if w.saidBlind {
		return
	}
	w.saidBlind = true
	w.log.Error("cannot watch all hosts files, and so looks at all of them from time to time; "+
		"raise the sysctls fs.inotify.max_user_watches and fs.inotify.max_user_instances", "error", err, "interval", recheckBlind)
}

// missed is called when inotify has lost events.
func (w *worker) missed(err error, now time.Time) {
	w.log.Warn("events of hosts files are lost, looking at all of them; if this comes often, raise the sysctl "+
		"fs.inotify.max_queued_events", "error", err)
	if w.state.complete() {
		w.recheckAll(now)
	}
}
