package wait

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestUntil(t *testing.T) {
	no := errors.New("no")
	for _, test := range []struct {
		name     string
		patience time.Duration
		answers  []error
		want     error
	}{
		{"at once", 0, []error{nil}, nil},
		{"later", time.Minute, []error{no, no, no, nil}, nil},
		{"never", 0, []error{no}, no},
		{"fatal", time.Minute, []error{no, fmt.Errorf("it has ended: %w", &Fatal{no})}, no},
	} {
		calls := 0
		err := Until(test.patience, func() error {
			calls++
			return test.answers[calls-1]
		})
		if !errors.Is(err, test.want) || calls != len(test.answers) {
			t.Errorf("%s: %v after %d calls", test.name, err, calls)
		}
	}
}
