package ropewalk

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// logHandler writes what the packages behind the plugin log with slog into CoreDNS's log, so that operators find it
// where they look: "[WARNING] plugin/ropewalk: message key=value".
type logHandler struct{ attrs string }

// Enabled implements slog.Handler. CoreDNS's debug plugin decides about debug messages when they are written.
func (logHandler) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (l logHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message)
	b.WriteString(l.attrs)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	switch {
	case r.Level >= slog.LevelError:
		log.Error(b.String())
	case r.Level >= slog.LevelWarn:
		log.Warning(b.String())
	case r.Level >= slog.LevelInfo:
		log.Info(b.String())
	default:
		log.Debug(b.String())
	}
	return nil
}

// WithAttrs implements slog.Handler.
func (l logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		l.attrs += fmt.Sprintf(" %s=%v", a.Key, a.Value)
	}
	return l
}

// WithGroup implements slog.Handler. Groups are not used here.
func (l logHandler) WithGroup(string) slog.Handler { return l }
