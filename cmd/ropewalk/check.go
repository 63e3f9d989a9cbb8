package main

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/ropewalk-net/ropewalk/hostsmgr"
)

// check prints how a node's hosts files differ from what they should be. It returns errDifferent if they do.
func check(cmd *cobra.Command, config hostsmgr.Config, source *once) error {
	config.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	m, err := hostsmgr.New(config)
	if err != nil {
		return err
	}
	return source.read(cmd.Context(), hostsmgr.Interest(config.NodeName), m, func(ctx context.Context) error {
		differences, err := m.Check(ctx)
		if err != nil {
			return err
		}
		different, unknown := 0, 0
		for d := range differences {
			if d.Want == nil {
				unknown++
			}
			different++
			if _, err := fmt.Fprint(cmd.OutOrStdout(), printable(describe(d))); err != nil {
				return err
			}
		}
		switch {
		case unknown > 0:
			return fmt.Errorf("what %d of %d files should be cannot be told, as said above", unknown, different)
		case different > 0:
			return errDifferent
		}
		return nil
	})
}

// describe returns a unified diff, or what is wrong where there is none.
func describe(d hostsmgr.Difference) string {
	whose := "the node"
	if d.Pod.Name != "" {
		whose = "pod " + d.Pod.String()
	}
	var b strings.Builder
	if d.Err != nil {
		fmt.Fprintf(&b, "%s: of %s: %v\n", d.Path, whose, d.Err)
	}
	if d.Want != nil && d.Got != nil {
		b.Write(diff.Diff(d.Path, d.Got, d.Path+" as "+whose+" should have it", d.Want))
	}
	return b.String()
}

// printable escapes what a terminal would obey: a pod may have written anything.
func printable(text string) string {
	var b strings.Builder
	for i, r := range text {
		_, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case r != '\n' && r != '\t' && !unicode.IsPrint(r):
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
