// Command probe is all there is in the tests' containers. It looks at its /etc/hosts when it is asked to, and ends with its
// standard input: a container does not outlive the test that it is for, however that ends.
package main

import (
	"encoding/json"
	"errors"
	"io"
	"log"
	"os"
	"syscall"
	"time"
)

// A request waits until the file holds Want, or until that took too long; without Want it waits for nothing.
type request struct {
	Want     *string
	Patience time.Duration
}

type response struct {
	Content string
	Inode   uint64
	Found   bool
}

func main() {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var r request
		switch err := in.Decode(&r); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			log.Fatal(err)
		}
		a, err := await(r)
		if err != nil {
			log.Fatal(err)
		}
		if err := out.Encode(a); err != nil {
			log.Fatal(err)
		}
	}
}

func await(r request) (response, error) {
	for began := time.Now(); ; time.Sleep(100 * time.Microsecond) {
		a, err := look()
		if err != nil {
			return a, err
		}
		if a.Found = r.Want == nil || a.Content == *r.Want; a.Found || time.Since(began) > r.Patience {
			return a, nil
		}
	}
}

// look opens the file anew, as every resolver does.
func look() (response, error) {
	f, err := os.Open("/etc/hosts")
	if err != nil {
		return response{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return response{}, err
	}
	var st syscall.Stat_t
	err = syscall.Fstat(int(f.Fd()), &st)
	return response{Content: string(b), Inode: st.Ino}, err
}
