// Package snapshot keeps the values of a cluster in a file, for a consumer that starts while the API server is away.
//
// A file is either whole or not used: it is written beside the old one and renamed over it, and nothing of it is Synced
// before it has been read to its end, against its checksum. What is in it has a version and a key; a file of another
// version, or for another key, is refused.
//
// The package does not know what is worth keeping, nor when: that is its caller's.
//
// A file is the line "ropewalk snapshot 2", where 2 is the version, and records, each behind its length in four octets
// (big endian), of at most 8 MiB. The first record is the Header in CBOR (RFC 8949), each that follows a kind in one
// octet and a value of that kind in CBOR, its fields under their names in package cluster. A length of 0 ends them;
// behind it stands the SHA-256 of everything up to there, and nothing more.
package snapshot

import (
	"errors"
	"time"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// Header says what a snapshot is of.
type Header struct {
	// Key is equal for consumers that can use each other's snapshots. It is shown to people.
	Key string
	// Taken is when the values were known to be current.
	Taken time.Time
	// Kinds are the kinds that all values of are in the file.
	Kinds cluster.Kinds
}

// version changes with the format, and so with the fields of the values (testdata/schema), but for fields that are new and left
// out where they are empty: without them a file is what it was.
const version = 2

// Why a file is refused, besides that it cannot be read.
var (
	ErrDamaged = errors.New("the snapshot is damaged")
	ErrVersion = errors.New("the snapshot has a format of another version")
	ErrForeign = errors.New("the snapshot is of something else")
)
