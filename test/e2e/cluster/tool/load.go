package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Report is what a load has come to since its start.
type Report struct {
	Requests, Lookups Outcome
	// Broken are the flows of UDP on which nothing is answered any more.
	Broken []string
	// Resent counts what TCP has sent again to open a connection. The kernel does so after a second: the first packet was lost.
	Resent int
}

// Outcome counts what was tried, and what of it failed or took longer than a second.
type Outcome struct {
	Done, Failed, Slow, Unsent int
	// When counts those that failed or were slow, by the seconds in which they were begun.
	When   map[string]int
	Errors []string // the last ones
}

type counter struct {
	mu sync.Mutex
	Outcome
	free     chan struct{}
	underWay sync.WaitGroup
}

// lost is for how long an answer is waited for: long, since machines that run tests are busy. TCP sends again after 1, 3, 7 and 15 s,
// and the resolver when the pod's resolv.conf says so.
const lost = 30 * time.Second

// inFlight is how many requests, or lookups, may wait for their answers at once.
const inFlight = 2000

func newCounter() *counter {
	return &counter{Outcome: Outcome{When: map[string]int{}}, free: make(chan struct{}, inFlight)}
}

// load sends requests to the services and looks their names up, each so many times a second. At port 8081 it says what has come of it;
// who asks for /stop there ends it, and is told when nothing is under way any more.
func load(requests, lookups string, targets []string) error {
	perSecond := [2]int{}
	for i, s := range []string{requests, lookups} {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("%q is no number a second", s)
		}
		perSecond[i] = n
	}
	// Requests go to addresses, so that a lookup that fails is not counted among them, too.
	var addrs []string
	for _, t := range targets {
		host, port, err := net.SplitHostPort(t)
		if err != nil {
			return err
		}
		ips, err := net.LookupHost(host)
		if err != nil {
			return err
		}
		for _, ip := range ips {
			addrs = append(addrs, net.JoinHostPort(ip, port))
		}
	}
	asked, looked := newCounter(), newCounter()
	running, stop := context.WithCancel(context.Background())
	asked.underWay.Go(func() {
		asked.each(running, perSecond[0], func(i int) error {
			answer, err := exchange("tcp", addrs[i%len(addrs)], lost)
			if err == nil && !strings.HasSuffix(answer, "\n") {
				err = fmt.Errorf("%q from %s", answer, addrs[i%len(addrs)])
			}
			return err
		})
	})
	looked.underWay.Go(func() {
		looked.each(running, perSecond[1], func(i int) error {
			host, _, _ := net.SplitHostPort(targets[i%len(targets)])
			ctx, cancel := context.WithTimeout(context.Background(), 2*lost)
			defer cancel()
			// One that is lost fails, whatever there is of the other family. A resolver of its own waits for no other's answer.
			_, err := (&net.Resolver{StrictErrors: true}).LookupNetIP(ctx, "ip", host)
			return err
		})
	})
	flows := make(chan string, len(addrs))
	for _, addr := range addrs {
		go func() { flows <- flow(running, addr) }()
	}
	report := func(w http.ResponseWriter, broken []string) {
		resent, err := resent()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		json.NewEncoder(w).Encode(Report{Requests: asked.outcome(), Lookups: looked.outcome(), Resent: resent, Broken: broken})
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { report(w, nil) })
	http.HandleFunc("/stop", func(w http.ResponseWriter, _ *http.Request) {
		stop()
		asked.underWay.Wait()
		looked.underWay.Wait()
		var broken []string
		for range addrs {
			if f := <-flows; f != "" {
				broken = append(broken, f)
			}
		}
		report(w, broken)
	})
	return http.ListenAndServe(":8081", nil)
}

// each does something so many times a second. What comes due while too much is under way is not done, and counted.
func (c *counter) each(ctx context.Context, perSecond int, do func(int) error) {
	period := time.Second / time.Duration(perSecond)
	due := time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		due = due.Add(period)
		time.Sleep(time.Until(due))
		select {
		case c.free <- struct{}{}:
		default:
			c.mu.Lock()
			c.Unsent++
			c.mu.Unlock()
			continue
		}
		c.underWay.Go(func() {
			begun := time.Now()
			err := do(i)
			c.count(begun, err)
			<-c.free
		})
	}
}

// flow goes on asking by UDP from one port, which leads it to one server for as long as there is that. It returns what is wrong if
// nothing is answered at the end.
func flow(running context.Context, addr string) string {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	end := time.Time{}
	for b := make([]byte, 256); ; time.Sleep(50 * time.Millisecond) {
		stopping := running.Err() != nil
		c.SetDeadline(time.Now().Add(time.Second))
		if _, err = c.Write([]byte("who?")); err == nil { // or it is told that there was nobody for the last one
			_, err = c.Read(b)
		}
		switch {
		case !stopping:
		case err == nil:
			return ""
		case end.IsZero():
			end = time.Now().Add(lost)
		case time.Now().After(end):
			return fmt.Sprintf("%s to %s: %v", c.LocalAddr(), addr, err)
		}
	}
}

func (c *counter) count(begun time.Time, err error) {
	took := time.Since(begun)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Done++
	if took > time.Second {
		c.Slow++
	}
	if took > time.Second || err != nil {
		c.When[begun.UTC().Format(time.TimeOnly)]++
	}
	if err != nil {
		c.Failed++
		c.Errors = append(c.Errors, fmt.Sprintf("%s after %v: %v", begun.UTC().Format("15:04:05.000"), took.Round(time.Millisecond), err))
		c.Errors = c.Errors[max(0, len(c.Errors)-10):]
	}
}

func (c *counter) outcome() Outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.Outcome
	out.When = maps.Clone(c.When)
	return out
}

// resent returns the kernel's counter TCPSynRetrans of this network namespace.
func resent() (int, error) {
	text, err := os.ReadFile("/proc/net/netstat")
	if err != nil {
		return 0, err
	}
	lines := strings.Split(string(text), "\n")
	for i := 0; i+1 < len(lines); i += 2 { // names, and their values below
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if at := slices.Index(names, "TCPSynRetrans"); at >= 0 && at < len(values) {
			return strconv.Atoi(values[at])
		}
	}
	return 0, errors.New("/proc/net/netstat has no TCPSynRetrans")
}
