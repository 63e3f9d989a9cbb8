// Command ropewalk-cni is the CNI plugin of Ropewalk, which a container runtime starts for each pod. What it does is in package cni.
package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/ropewalk-net/ropewalk/cni"
)

// version is set by the linker.
var version = "unknown"

func main() {
	// A runtime that is gone is an error of writing the result, which takes the attachment back.
	signal.Ignore(syscall.SIGPIPE)
	// skel compares the pod's namespace with ours too, but after the deed, and for DEL, where it does not matter.
	_ = os.Setenv("CNI_NETNS_OVERRIDE", "1")
	skel.PluginMainFuncs(cni.Verbs(), cniversion.VersionsStartingFrom("0.3.1"), "CNI plugin ropewalk-cni "+version)
}
