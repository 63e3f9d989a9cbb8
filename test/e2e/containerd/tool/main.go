// Command tool is all that is in the containers of the tests: it waits, and tells what a container sees.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
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
	default:
		return fmt.Errorf("usage: tool [env | cat FILE | inode FILE]")
	}
	return nil
}
