package apiserver

import (
	"strings"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// maxComplaints bounds how many bad objects are remembered, and so how many are logged one by one.
const maxComplaints = 512

// complaints remembers which objects have been complained about and why, so that one that comes again and again
// unmended is logged once. The zero value is ready for use.
type complaints struct{ about map[cluster.Key]string }

// verdict is what to do about a bad object.
type verdict uint8

const (
	silent verdict = iota
	speak
	// speakLast says that this object fills the memory: the ones after it are not logged.
	speakLast
)

// add returns what to do about the object called key, with what is wrong with it.
func (c *complaints) add(key cluster.Key, why faults) verdict {
	reasons := strings.Join(why, "; ")
	was, known := c.about[key]
	switch {
	case known && was == reasons:
		return silent
	case !known && len(c.about) >= maxComplaints:
		return silent
	}
	if c.about == nil {
		c.about = map[cluster.Key]string{}
	}
	c.about[key] = reasons
	if !known && len(c.about) == maxComplaints {
		return speakLast
	}
	return speak
}

// forget makes room when an object is good again or gone.
func (c *complaints) forget(key cluster.Key) { delete(c.about, key) }
