package manifests

import (
	"fmt"
	"slices"
	"strings"
)

// Error is what is wrong with one place of a file.
type Error struct {
	File string
	// Line counts from 1; 0 where the problem is the file as a whole.
	Line int
	// Object is the kind and key of the object, where it is known.
	Object string
	// Field is the path of the field, as kubectl explain spells it; empty where it is the object as a whole.
	Field string
	// Problem says what is wrong and what would be right.
	Problem string
	// Other is a second file that has a part in it, else empty.
	Other string
}

// Error returns file:line, the object, the field and the problem.
func (e *Error) Error() string {
	place := e.File
	if e.Line > 0 {
		place = fmt.Sprintf("%s:%d", e.File, e.Line)
	}
	parts := slices.DeleteFunc([]string{place, e.Object, e.Field, e.Problem}, func(s string) bool { return s == "" })
	return strings.Join(parts, ": ")
}
