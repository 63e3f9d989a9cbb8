// Command tool is all that is in the pods of the tests: it serves, asks, and puts load on services.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const usage = `usage: tool [serve | load REQUESTS LOOKUPS NAME:PORT... | get URL | ask (tcp|udp)[46] ADDRESS | lookup (A|AAAA|CNAME|SRV|PTR) NAME | env | cat FILE]`

// patience is for how long to wait for an answer.
const patience = 5 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 { // a pod's sandbox
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
		<-stop
		return nil
	}
	switch command, args := args[0], args[1:]; {
	case command == "serve":
		return serve()
	case command == "load" && len(args) >= 3:
		return load(args[0], args[1], args[2:])
	case command == "get" && len(args) == 1:
		return get(args[0])
	case command == "ask" && len(args) == 2:
		return ask(args[0], args[1])
	case command == "lookup" && len(args) == 2:
		return lookup(args[0], args[1])
	case command == "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case command == "cat" && len(args) == 1:
		b, err := os.ReadFile(args[0])
		fmt.Print(string(b))
		return err
	default:
		return errors.New(usage)
	}
	return nil
}

// linger is for how long a server goes on when it is told to end: until all nodes have heard that it is not to be asked any more, which
// takes seconds where a machine is busy.
const linger = 15 * time.Second

// serve says who it is and who asks: by HTTP at 8080, and to who sends something by TCP and UDP at 9000.
func serve() error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	failed := make(chan error)
	answer := func(client net.Addr) string {
		host, _, _ := net.SplitHostPort(client.String())
		return name + " " + strings.TrimPrefix(host, "::ffff:") + "\n"
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s %s\n", name, host)
	})
	l, err := net.Listen("tcp", ":9000")
	if err != nil {
		return err
	}
	var connections sync.WaitGroup
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				failed <- err
				return
			}
			connections.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(2 * lost)) // no client waits for so long
				if _, err := c.Read(make([]byte, 64)); err == nil {
					io.WriteString(c, answer(c.RemoteAddr()))
				}
			})
		}
	}()
	u, err := net.ListenPacket("udp", ":9000")
	if err != nil {
		return err
	}
	go func() {
		for b := make([]byte, 64); ; {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				failed <- err
				return
			}
			u.WriteTo([]byte(answer(from)), from)
		}
	}()
	go func() { failed <- http.ListenAndServe(":8080", nil) }() // the last one: it is what is asked whether all are there
	select {
	case err := <-failed:
		return err
	case <-stop:
		time.Sleep(linger)
		connections.Wait()
		return nil
	}
}

// get prints what an HTTP server says.
func get(url string) error {
	c := http.Client{Timeout: 2 * lost}
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", resp.Status)
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

// ask prints what a server says that is sent something.
func ask(network, addr string) error {
	answer, err := exchange(network, addr, patience)
	fmt.Print(answer)
	return err
}

func exchange(network, addr string, patience time.Duration) (string, error) {
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0) // or a load would use up the ports, as each of them would wait for a minute
	}
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("who?")); err != nil {
		return "", err
	}
	b := make([]byte, 256)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// lookup prints what the DNS says, a line each, sorted.
func lookup(kind, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var out []string
	var err error
	switch r := net.DefaultResolver; kind {
	case "A", "AAAA":
		ips, e := r.LookupNetIP(ctx, map[string]string{"A": "ip4", "AAAA": "ip6"}[kind], name)
		for _, ip := range ips {
			out = append(out, ip.Unmap().String())
		}
		err = e
	case "CNAME":
		var cname string
		cname, err = r.LookupCNAME(ctx, name)
		out = append(out, cname)
	case "SRV":
		_, srvs, e := r.LookupSRV(ctx, "", "", name)
		for _, s := range srvs {
			out = append(out, fmt.Sprintf("%d %s", s.Port, s.Target))
		}
		err = e
	case "PTR":
		out, err = r.LookupAddr(ctx, name)
	default:
		return errors.New(usage)
	}
	slices.Sort(out)
	fmt.Println(strings.Join(out, "\n"))
	return err
}
