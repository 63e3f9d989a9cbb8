package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// sandboxFlags say what there is to be in a sandbox.
type sandboxFlags struct {
	hostname, hosts, resolv, nss, name string
	ports                              []int32
	again                              bool
}

// newSandbox is the command of the first process in a pod's namespaces, or a node's. It waits for the end of its input, which says that the
// network is there.
func newSandbox() *cobra.Command {
	var f sandboxFlags
	cmd := &cobra.Command{Use: "sandbox [COMMAND...]", Hidden: true, RunE: func(_ *cobra.Command, args []string) error { return f.run(args) }}
	cmd.Flags().StringVar(&f.hostname, "hostname", "", "")
	cmd.Flags().StringVar(&f.hosts, "hosts", "", "what is to be /etc/hosts, and so with resolv")
	cmd.Flags().StringVar(&f.resolv, "resolv", "", "")
	cmd.Flags().StringVar(&f.nss, "nss", "", "what is to be /etc/nsswitch.conf, if there is one")
	cmd.Flags().BoolVar(&f.again, "again", false, "start the command again when it ends")
	cmd.Flags().StringVar(&f.name, "name", "", "without a command, who answers")
	cmd.Flags().Int32SliceVar(&f.ports, "port", nil, "without a command, where to answer")
	return cmd
}

func (f *sandboxFlags) run(command []string) error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	if err := errors.Join(unix.Sethostname([]byte(f.hostname)), setUp("lo"), unix.Mount("proc", "/proc", "proc", 0, "")); err != nil {
		return err
	}
	if f.hosts != "" {
		if err := errors.Join(
			unix.Mount(f.hosts, "/etc/hosts", "", unix.MS_BIND, ""), // the inode, as a runtime does it
			unix.Mount(f.resolv, "/etc/resolv.conf", "", unix.MS_BIND, ""),
			ifThere(unix.Mount(f.nss, "/etc/nsswitch.conf", "", unix.MS_BIND, "")),
			ifThere(unix.Mount("none", "/run/nscd", "tmpfs", 0, "")),
		); err != nil {
			return err
		}
	}
	switch {
	case f.again:
		for ; ; time.Sleep(time.Second) {
			cmd := exec.Command(command[0], command[1:]...)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			fmt.Fprintln(os.Stderr, "it has ended:", cmd.Run())
		}
	case len(command) > 0:
		return fmt.Errorf("%s: %w", command[0], unix.Exec(command[0], command, os.Environ()))
	}
	for _, port := range f.ports {
		if err := serve(fmt.Sprintf(":%d", port), f.name); err != nil {
			return err
		}
	}
	untilEnded()
	return nil
}

// ifThere is err, unless it says that there is nothing to mount on.
func ifThere(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// untilEnded returns when somebody wants this process to end. The first one of a process namespace gets no signals but those that it asks for.
func untilEnded() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	<-signals
}

// serve answers whoever asks by HTTP at an address, with who it is and whom it sees.
func serve(address, name string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	s := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s answers %s\n", name, client) // to somebody who may have gone
	})}
	go func() { fmt.Fprintln(os.Stderr, s.Serve(l)) }()
	return nil
}
