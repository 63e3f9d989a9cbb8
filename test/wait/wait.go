// Package wait is for tests of what becomes true some time later.
package wait

import (
	"errors"
	"time"
)

// Until calls is until it returns nil, for as long as patience lasts, and returns its last error. One that is a Fatal ends it at once.
func Until(patience time.Duration, is func() error) error {
	for begun, pause := time.Now(), time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := is()
		var end *Fatal
		if err == nil || errors.As(err, &end) || time.Since(begun) > patience {
			return err
		}
		time.Sleep(pause)
	}
}

// Fatal is an error that time does not heal.
type Fatal struct{ Err error }

func (f *Fatal) Error() string { return f.Err.Error() }

// Unwrap returns the error.
func (f *Fatal) Unwrap() error { return f.Err }
