package hostsmgr

import (
	"bytes"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

const (
	// nodeSettle is how long a rewrite of the node's file is given to be complete.
	nodeSettle = 10 * time.Millisecond
	// busyMost is how often it is looked, after as long each time, whether nobody has the file open any more, before that is told.
	busyMost = 100
)

// node is how the node's hosts file is.
type node struct {
	due      time.Time // when it is to be looked at; zero if it need not be
	pace     pace
	wrote    bool // the next event may be our own
	failures int  // in a row
	failure  string
	busy     int // how often somebody had it open, in a row
}

// nodeEvent is called when somebody has written to the node's file, or put another in its place.
func (w *worker) nodeEvent(now time.Time) {
	w.watch.nodeAgain()
	n := &w.node
	if !n.due.IsZero() && n.failures == 0 {
		return
	}
	wait := nodeSettle
	if !n.wrote {
		wait = max(wait, n.pace.disturbed(now))
	}
	n.wrote = false
	n.due = now.Add(wait)
}

// seeToNode reads the node's file for the pods that follow it, and brings our block in it up to date.
func (w *worker) seeToNode(now time.Time) {
	n := &w.node
	n.due = time.Time{}
	hosts, err := w.bringNode()
	if hosts != nil {
		w.state.setNode(hosts)
	}
	if errors.Is(err, podfile.ErrBusy) && n.busy < busyMost { // it may be empty, and be written in a moment: what we wrote meanwhile would be mixed with that
		n.busy++
		n.due = now.Add(nodeSettle)
		return
	}
	n.busy = 0
	if err == nil {
		if n.failures > 0 {
			w.log.Info("the node's hosts file is in order again", "path", w.m.config.NodeHostsFile)
		}
		n.failures, n.failure = 0, ""
		return
	}
	n.failures++
	n.due = now.Add(retry(n.failures))
	why := reason(err)
	w.metrics.failures.WithLabelValues(why).Inc()
	if why != n.failure {
		n.failure = why
		w.log.Error("cannot bring the node's hosts file up to date; it stays as it is and is tried again",
			"path", w.m.config.NodeHostsFile, "reason", why, "error", err)
	}
}

// bringNode returns what the node's file holds besides our block, nil if it cannot be read. Pods get the file as it is while
// its block is damaged. Its mode and its links are its owner's affair.
func (w *worker) bringNode() (hosts []byte, err error) {
	h, have, err := readNode(w.m.config.NodeHostsFile, unix.O_RDONLY, w.m.config.MaxSize)
	if err != nil {
		return nil, err
	}
	h.Close()
	hosts, err = WithoutBlock(have)
	if err != nil {
		hosts = have
		if !w.m.config.NodeBlock { // then nothing that is ours is damaged
			err = nil
		}
	}
	if err != nil || !w.m.config.NodeBlock {
		return hosts, err
	}
	want, err := withBlock(have, w.state.ofCluster())
	if err != nil || bytes.Equal(have, want) {
		return hosts, err
	}
	return hosts, w.writeNode()
}

// writeNode reads the file again, by the handle that it then writes with.
func (w *worker) writeNode() error {
	h, have, err := readNode(w.m.config.NodeHostsFile, unix.O_RDWR, w.m.config.MaxSize)
	if err != nil {
		return err
	}
	defer h.Close()
	want, err := withBlock(have, w.state.ofCluster())
	switch {
	case err != nil:
		return err
	case bytes.Equal(have, want):
		return nil
	case len(want) > w.m.config.MaxSize:
		return podfile.TooLarge(len(want), w.m.config.MaxSize)
	}
	w.node.wrote = true
	n, err := putBlock(h, have, want)
	if err == nil {
		w.metrics.writes.Inc()
		w.metrics.bytes.Add(float64(n))
		w.log.Info("wrote the block of aliases in the node's hosts file", "path", w.m.config.NodeHostsFile, "bytes", n)
	}
	return err
}

// blockFile is what putBlock does with a podfile.File.
type blockFile interface {
	Replace(old, want []byte) (written int, err error)
	WriteAt(b []byte, at int) (written int, err error)
	Truncate(size int) error
}

// putBlock brings the file from have to want, which is the same with another block, or none, at its end. Wherever we are killed,
// the block that is found at the next start ends where ours does.
func putBlock(h blockFile, have, want []byte) (n int, err error) {
	if bytes.HasPrefix(have, want) { // no block any more; in one step
		return h.Replace(have, want)
	}
	stage := bytes.Clone(want)
	if begin, end, _ := findBlock(want); begin == end {
		stage = appendBlock(stage, nil)
	}
	at := unwrite(stage)
	if n, err = h.Replace(have, bytes.Clone(stage)); err != nil {
		return n, err
	}
	if begin, end, _ := findBlock(want); begin == end {
		return n, h.Truncate(len(want))
	}
	_, err = h.WriteAt([]byte(written), at)
	return n, err
}

// readNode opens the node's hosts file and reads all of it. To be written to, it has to be open for nobody else.
func readNode(path string, flags, limit int) (*podfile.File, []byte, error) {
	h, err := podfile.Open(path, flags)
	if err != nil {
		return nil, nil, err
	}
	var have []byte
	if flags == unix.O_RDWR {
		err = h.Alone()
	}
	if err == nil {
		have, err = h.Read(nil, limit)
	}
	if err != nil {
		h.Close()
		if errors.Is(err, podfile.ErrTooLarge) {
			err = podfile.TooLarge(int(h.Size()), limit)
		}
		return nil, nil, err
	}
	if have == nil {
		have = []byte{}
	}
	return h, have, nil
}
