package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ropewalk-net/ropewalk/cmd/ropewalk/hold"
	"github.com/ropewalk-net/ropewalk/cmd/ropewalk/parts"
	"github.com/ropewalk-net/ropewalk/hostsmgr"
)

// holds takes what no two processes may keep at a time, and returns what gives it back. Of an error that is hold.ErrHeld, another has it.
type holds func(*slog.Logger) (release func(), err error)

// holdNetwork is for a part that keeps something of the network namespace. me is how this process is called.
func holdNetwork(part, me string) holds {
	return func(log *slog.Logger) (func(), error) {
		release, err := hold.Namespace(part, me+" "+buildVersion(), log)
		return release, conflict(part, err)
	}
}

// holdHosts is for the hosts files below a kubelet's directory. While the kubelet has made none there is nothing to hold.
func holdHosts(c hostsmgr.Config) holds {
	return func(log *slog.Logger) (func(), error) {
		release, err := hold.Folder(filepath.Join(c.KubeletDir, "pods"), log)
		if errors.Is(err, fs.ErrNotExist) {
			return func() {}, nil
		}
		return release, conflict("hosts", err)
	}
}

// holdPlugins is for the folder of CNI plugins: one that ends writes nothing after the one that takes its place has.
func holdPlugins(dir string) holds {
	return func(log *slog.Logger) (func(), error) {
		if err := os.MkdirAll(dir, 0o755); err != nil { // the part says so, and goes on trying
			return func() {}, nil
		}
		release, err := hold.Folder(dir, log)
		return release, conflict("cni", err)
	}
}

func conflict(part string, err error) error {
	if !errors.Is(err, hold.ErrHeld) {
		return err
	}
	return fmt.Errorf("%s: %w; end that one, or do without it here (an agent's configuration has %s.enabled)", part, err, part)
}

type starts func(*slog.Logger, prometheus.Registerer) (parts.Running, error)

// alone has a part run while it holds what it needs for itself.
func alone(take holds, start starts) starts {
	return func(log *slog.Logger, reg prometheus.Registerer) (parts.Running, error) {
		release, err := take(log)
		if err != nil {
			return parts.Running{}, err
		}
		running, err := start(log, reg)
		if err != nil {
			release()
			return running, err
		}
		run := running.Run
		running.Run = func(ctx context.Context) error {
			defer release()
			return run(ctx)
		}
		return running, nil
	}
}
