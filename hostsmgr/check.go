package hostsmgr

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

// Difference is a file that is not what it should be.
type Difference struct {
	Path string
	// Pod is whose it is; zero for the node's own file.
	Pod cluster.Key
	// Want is what the file should hold, nil if that cannot be told; Got what it holds, at most Config.MaxSize bytes of
	// it, nil if it cannot be read.
	Want, Got []byte
	// Err is what keeps the file from being compared, or is wrong besides what it holds; nil if the bytes differ only.
	Err error
}

// Check takes in changes until all is synced, and returns the files that differ from what they should be, one after
// another as the result is read, pods by their keys, the node's file at the end if Config.NodeBlock asks for a block in it.
// It writes nothing. A file that does not exist is none that differs: the kubelet makes it when a container needs it. It fails
// if ctx ends before all is synced, or if there is no directory of the kubelet's.
func (m *Manager) Check(ctx context.Context) (iter.Seq[Difference], error) {
	if m.used.Swap(true) {
		return nil, ErrUsed
	}
	defer close(m.done)
	w := newWorker(m)
	w.state.touch, w.state.forget = func(*pod, bool, time.Time) {}, func(*pod) {}
	for !w.state.complete() {
		select {
		case c := <-m.changes:
			w.state.take(c)
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for pods and ConfigMaps: %w", ctx.Err())
		}
	}
	t, err := podfile.OpenTree(m.podsDir())
	if err != nil {
		return nil, err
	}
	t.Close()
	return func(yield func(Difference) bool) {
		if w.tree, err = podfile.OpenTree(m.podsDir()); err != nil {
			yield(Difference{Path: m.podsDir(), Err: err})
			return
		}
		defer w.tree.Close()
		w.differences(ctx, yield)
	}, nil
}

func (w *worker) differences(ctx context.Context, yield func(Difference) bool) {
	ofNode := w.checkNode()
	for _, key := range slices.SortedFunc(maps.Keys(w.state.pods), cluster.Key.Compare) {
		if ctx.Err() != nil {
			return
		}
		if d := w.check(w.state.pods[key]); d != nil && !yield(*d) {
			return
		}
	}
	if ofNode != nil && w.m.config.NodeBlock {
		yield(*ofNode)
	}
}

// check compares a pod's file; it returns nil if nothing is wrong.
func (w *worker) check(p *pod) *Difference {
	d := &Difference{Path: w.tree.File(p.Hosts.UID), Pod: p.Key()}
	h, err := w.tree.Open(p.Hosts.UID, unix.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		defer h.Close()
		d.Got, err = h.Read(nil, w.m.config.MaxSize)
		if errors.Is(err, podfile.ErrTooLarge) {
			err = fmt.Errorf("%w of %d bytes", podfile.ErrTooLarge, w.m.config.MaxSize)
		}
		if mode := h.Mode(); mode != podfile.Mode {
			err = cmp.Or(err, fmt.Errorf("its mode is %04o; want %04o", mode, podfile.Mode))
		}
	}
	want, wantErr := w.want(p)
	if errors.Is(wantErr, hostsfile.ErrNoAddress) {
		return nil
	}
	d.Want = want
	d.Err = cmp.Or(wantErr, err)
	if d.Err == nil && bytes.Equal(d.Want, d.Got) {
		return nil
	}
	return d
}

// checkNode reads the node's file for the pods that follow it, and compares our block in it.
func (w *worker) checkNode() *Difference {
	d := &Difference{Path: w.m.config.NodeHostsFile}
	h, have, err := readNode(d.Path, unix.O_RDONLY, w.m.config.MaxSize)
	if d.Err = err; err != nil {
		return d
	}
	h.Close()
	d.Got = have
	hosts, err := WithoutBlock(have)
	if err != nil {
		hosts = have
	}
	w.state.setNode(hosts)
	if d.Want, d.Err = withBlock(have, w.state.ofCluster()); d.Err == nil && bytes.Equal(d.Want, d.Got) {
		return nil
	}
	return d
}
