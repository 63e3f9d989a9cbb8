// Command tool is all that is in the containers of the tests: it waits, and tells what a container sees.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 { // the pod's sandbox, or a container that is there
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
		<-stop
		return nil
	}
	switch args[0] {
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "cat":
		b, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		os.Stdout.Write(b)
	case "inode":
		var st syscall.Stat_t
		if err := syscall.Stat(args[1], &st); err != nil {
			return err
		}
		fmt.Println(st.Ino)
	case "serve":
		return serve(args[1])
	case "ask":
		return ask(args[1])
	default:
		return fmt.Errorf("usage: tool [env | cat FILE | inode FILE | serve ADDRESS | ask ADDRESS]")
	}
	return nil
}

// serve answers connections with its own name and the client's address, as test/clusternet does.
func serve(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		fmt.Fprintf(c, "tool %s", host)
		c.Close()
	}
}

// ask prints what an address answers.
func ask(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = io.Copy(os.Stdout, c)
	return err
}
