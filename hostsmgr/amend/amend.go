// Package amend adds aliases to the hosts file that the kubelet has made for a pod, for those who are called while a container of
// the pod is being made (the OCI hook, the NRI plugin): after the kubelet has written the file, and before the container's first
// instruction. It knows of the pod what it is told, and keeps no file up to date: that is the manager's part.
package amend

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ropewalk-net/ropewalk/cluster"
	"github.com/ropewalk-net/ropewalk/hostsmgr/hostsfile"
	"github.com/ropewalk-net/ropewalk/hostsmgr/podfile"
)

// aliasesHeader is the line that the kubelet begins a file's aliases with; they are the last part of the file.
const aliasesHeader = "# Entries added by HostAliases.\n"

// Tail returns what has to be appended to a hosts file of the kubelet's for the aliases to be in it, in their order and after those
// that are; nothing if they are.
func Tail(have []byte, aliases []cluster.HostAlias) []byte {
	if len(aliases) == 0 {
		return nil
	}
	lines := hostsfile.Lines(aliases)
	var tail []byte
	if len(have) > 0 && have[len(have)-1] != '\n' {
		tail = []byte("\n")
	}
	i := bytes.LastIndex(have, []byte("\n"+aliasesHeader))
	switch {
	case i < 0:
		tail = append(tail, "\n"+aliasesHeader...)
	case bytes.Contains(have[i:], append([]byte("\n"), lines...)):
		return nil
	}
	return append(tail, lines...)
}

// File adds aliases to the file of a pod, and reports whether any were missing. What it writes it appends, to the file that is there: a
// mount of it shows the change, and a full disk leaves it as it is. maxSize is in bytes; 0 is podfile.DefaultMaxSize.
func File(kubeletDir, uid string, aliases []cluster.HostAlias, maxSize int) (changed bool, err error) {
	if len(aliases) == 0 {
		return false, nil
	}
	if maxSize <= 0 {
		maxSize = podfile.DefaultMaxSize
	}
	if changed, err = file(filepath.Join(kubeletDir, "pods"), uid, aliases, maxSize); err != nil {
		err = fmt.Errorf("%s: %w", podfile.Path(kubeletDir, uid), err)
	}
	return changed, err
}

func file(pods, uid string, aliases []cluster.HostAlias, maxSize int) (changed bool, err error) {
	tree, err := podfile.OpenTree(pods)
	if err != nil {
		return false, err
	}
	defer tree.Close()
	f, err := tree.Open(uid, unix.O_RDWR)
	if err != nil {
		return false, err
	}
	defer f.Close()
	have, err := f.Read(nil, maxSize)
	if err != nil {
		return false, err
	}
	tail := Tail(have, aliases)
	switch size := len(have) + len(tail); {
	case len(tail) == 0:
		return false, nil
	case size > maxSize:
		return false, podfile.TooLarge(size, maxSize)
	}
	_, err = f.Replace(have, slices.Concat(have, tail))
	return err == nil, err
}
