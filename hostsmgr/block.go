package hostsmgr

import (
	"bytes"
	"errors"
	"fmt"
)

// The lines around what is ours in the node's hosts file. The one behind beginBlock says whether the writing of the block came
// to its end; if it did not, we were killed, and all up to the end of the file is ours.
const (
	beginBlock   = "# BEGIN ropewalk"
	endBlock     = "# END ropewalk"
	writtenBlock = "# Kept by ropewalk, written: "
	written      = "yes"
	unwritten    = "no "
)

// ErrMarkers says that a file has lines that begin or end our block, but not one of each and in that order. What belongs to us
// cannot be told then.
var ErrMarkers = errors.New("damaged block")

// WithoutBlock returns a node's hosts file without our block, which is what pods on the node's network get: their own aliases
// hold those of the block already. It fails with ErrMarkers, saying which lines are wrong. A file without a block is returned
// as it is.
func WithoutBlock(hosts []byte) ([]byte, error) {
	begin, end, err := findBlock(hosts)
	if err != nil || begin == end {
		return hosts, err
	}
	return append(bytes.Clone(hosts[:begin]), hosts[end:]...), nil
}

// unwrite changes a file that ends with a block to say that the block is not written yet, and returns where that stands.
func unwrite(hosts []byte) (at int) {
	at = bytes.LastIndex(hosts, []byte(beginBlock+"\n"+writtenBlock)) + len(beginBlock+"\n"+writtenBlock)
	copy(hosts[at:], unwritten)
	return at
}

// withBlock returns the node's hosts file with the aliases, lines, in our block, and without a block if there are none. A block that
// is to change goes to the end of the file: then nothing that is not ours is ever moved up, and so, however far the writing
// comes, no line of somebody else's is overwritten before it stands elsewhere. (If we are killed while we move lines that
// somebody has put behind the block, some may stand there twice, or the markers be damaged.)
func withBlock(hosts []byte, aliases []byte) ([]byte, error) {
	begin, end, err := findBlock(hosts)
	if err != nil {
		return nil, err
	}
	rest := append(bytes.Clone(hosts[:begin]), hosts[end:]...)
	if len(aliases) == 0 {
		return rest, nil
	}
	if bytes.Equal(hosts[begin:end], makeBlock(aliases)) {
		return hosts, nil
	}
	return appendBlock(rest, aliases), nil
}

func appendBlock(hosts []byte, aliases []byte) []byte {
	if len(hosts) > 0 && hosts[len(hosts)-1] != '\n' {
		hosts = append(hosts, '\n')
	}
	return append(hosts, makeBlock(aliases)...)
}

func makeBlock(aliases []byte) []byte {
	var b bytes.Buffer
	b.WriteString(beginBlock + "\n" + writtenBlock + written + "\n")
	b.Write(aliases)
	b.WriteString(endBlock + "\n")
	return b.Bytes()
}

// findBlock returns where our block lies, with its markers; the end of the file twice if there is none.
func findBlock(hosts []byte) (begin, end int, err error) {
	var begins, ends []int // lines
	offset, n := 0, 0
	begin, end = len(hosts), len(hosts)
	for line := range bytes.Lines(hosts) {
		n++
		switch string(bytes.TrimSpace(line)) {
		case beginBlock:
			begins, begin = append(begins, n), offset
		case endBlock:
			ends, end = append(ends, n), offset+len(line)
		}
		offset += len(line)
		if len(begins) == 1 && begins[0] == n-1 && bytes.HasPrefix(line, []byte(writtenBlock)) &&
			!bytes.HasPrefix(line, []byte(writtenBlock+written)) {
			return begin, len(hosts), nil
		}
	}
	switch {
	case len(begins) == 0 && len(ends) == 0, len(begins) == 1 && len(ends) == 1 && begins[0] < ends[0]:
		return begin, end, nil
	}
	return 0, 0, fmt.Errorf("%w: %q in lines %v and %q in lines %v; want one of each in this order, or none", ErrMarkers,
		beginBlock, begins, endBlock, ends)
}
