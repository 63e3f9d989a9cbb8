// Package cni is a CNI plugin (https://www.cni.dev/docs/spec/, 1.1.0) that gives a pod its interface and addresses in routed mode.
// Each verb is a function of its own, in the file of its name. What they share is the configuration (config.go), which is the
// only thing here that strangers write, and the order in which an attachment's parts come and go: the lease is there before
// the interface and after it, so that whatever is on the node can be found by its lease.
//
// Link makes the interfaces and ipam gives the addresses. What goes on between nodes is not of the plugin.
package cni

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cni/ipam"
)

// Error codes of this plugin's own. The specification leaves those from 100 on to plugins.
const (
	// CodeExhausted says that a range has no address left. Ranges do not grow by trying again.
	CodeExhausted uint = 100 + iota
	// CodeExists says that the attachment is there already, or a part of it. DEL removes it.
	CodeExists
	// CodeTaken says that the wanted address is another pod's.
	CodeTaken
	// CodeKernel says that the kernel refused an interface, an address, a route or a setting.
	CodeKernel
	// CodeChanged says that CHECK has found something other than what ADD has made.
	CodeChanged
)

// What STATUS says (specification, section 2, STATUS); the library has no names for them.
const (
	codeUnavailable uint = 50
	codeLimited     uint = 51
)

// Verbs returns what the plugin does, for skel.
func Verbs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: Add, Del: Del, Check: Check, GC: GC, Status: Status}
}

// withStore runs f with the leases, which other processes wait for meanwhile.
func withStore(dir string, f func(*ipam.Store) error) error {
	s, err := ipam.Open(dir)
	if err != nil {
		return storeError(err)
	}
	return storeError(errors.Join(f(s), s.Close()))
}

// storeError gives an error of the leases its code.
func storeError(err error) error {
	var exhausted *ipam.ExhaustedError
	code := types.ErrIOFailure
	switch {
	case err == nil || codeOf(err) != 0:
		return err
	case errors.Is(err, ipam.ErrBusy):
		code = types.ErrTryAgainLater
	case errors.As(err, &exhausted):
		code = CodeExhausted
	case errors.Is(err, ipam.ErrExists):
		code = CodeExists
	case errors.Is(err, ipam.ErrTaken):
		code = CodeTaken
	case errors.Is(err, ipam.ErrOwner): // its names are those of the environment
		code = types.ErrInvalidEnvironmentVariables
	}
	return types.NewError(code, err.Error(), "")
}

// openPod opens the namespace of CNI_NETNS. The node's own is refused here, before anything is touched: skel looks only afterwards.
// The caller closes it.
func openPod(path string) (ns.NetNS, error) {
	pod, err := ns.GetNS(path)
	if err == nil {
		if kind, _ := unix.IoctlRetInt(int(pod.Fd()), unix.NS_GET_NSTYPE); kind != unix.CLONE_NEWNET {
			err = errors.Join(fmt.Errorf("%s is a namespace of another kind", path), pod.Close())
		}
	}
	if err != nil {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_NETNS is no network namespace", err.Error())
	}
	var own, its unix.Stat_t
	if err := errors.Join(unix.Stat("/proc/thread-self/ns/net", &own), unix.Fstat(int(pod.Fd()), &its)); err != nil {
		_ = pod.Close()
		return nil, types.NewError(types.ErrIOFailure, "the network namespaces cannot be compared", err.Error())
	}
	if own.Dev == its.Dev && own.Ino == its.Ino {
		_ = pod.Close()
		return nil, types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS %s is the node's own network namespace", path), "")
	}
	return pod, nil
}

// kernelError gives an error of the link package its code.
func kernelError(what string, err error) error {
	return types.NewError(CodeKernel, what, err.Error())
}

// codeOf returns the code of an error, 0 of one that has none.
func codeOf(err error) uint {
	var e *types.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// undone adds what went wrong while things were taken away. skel prints the first error of its type alone.
func undone(err, undo error) error {
	var e *types.Error
	if undo == nil || !errors.As(err, &e) {
		return err
	}
	return types.NewError(e.Code, e.Msg, fmt.Sprintf("%s; and taking away what there was: %v", e.Details, undo))
}
