// Package report writes what a benchmark has measured into a document, with the machine and the date that belong to it. It
// measures nothing.
package report

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
)

// Command is what one types to get this run: a make target, and the program's flags that were given, but for where to run
// and to write.
func Command(target string) string {
	var flags []string
	flag.Visit(func(f *flag.Flag) {
		if f.Name != "inside" && f.Name != "write" {
			flags = append(flags, fmt.Sprintf("-%s=%q", f.Name, f.Value))
		}
	})
	if len(flags) == 0 {
		return target
	}
	return fmt.Sprintf("%s FLAGS='%s'", target, strings.Join(flags, " "))
}

// Stamp says in Markdown with which command, when and on what machine the text under it was measured.
func Stamp(command string, at time.Time) string {
	return fmt.Sprintf("`%s`, %s, %s.\n", command, at.Format(time.DateOnly), Machine())
}

// Machine says in one line what this program runs on: the processor, the number of its cores, the kernel and Go.
func Machine() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	cores := strings.Count(string(info), "\nprocessor") + 1
	model := runtime.GOARCH
	if m := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(info); m != nil {
		model = string(m[1])
	}
	var u syscall.Utsname
	_ = syscall.Uname(&u) // fails for a bad pointer only
	var release []byte
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	return fmt.Sprintf("%s, %d cores, Linux %s, %s", model, cores, release, runtime.Version())
}

// Table returns rows of cells under their heads as a Markdown table that can be read as it is: the first column is
// aligned to the left, the others to the right. A row may be shorter than the head.
func Table(head []string, rows [][]string) string {
	width := make([]int, len(head))
	for _, row := range append([][]string{head}, rows...) {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell), 3)
		}
	}
	var b strings.Builder
	line := func(cells []string) {
		for i, w := range width {
			cell := ""
			if i < len(cells) {
				cell = cells[i]
			}
			pad := strings.Repeat(" ", w-utf8.RuneCountInString(cell))
			if i == 0 {
				fmt.Fprintf(&b, "| %s%s ", cell, pad)
			} else {
				fmt.Fprintf(&b, "| %s%s ", pad, cell)
			}
		}
		b.WriteString("|\n")
	}
	line(head)
	for i, w := range width {
		if i == 0 {
			b.WriteString("|" + strings.Repeat("-", w+2))
		} else {
			b.WriteString("|" + strings.Repeat("-", w+1) + ":")
		}
	}
	b.WriteString("|\n")
	for _, row := range rows {
		line(row)
	}
	return b.String()
}

// Save puts text between the lines <!-- name --> and <!-- /name --> of a file, in the place of what stands there. It is
// an error if the file does not have each of them once, in this order.
func Save(file, name, text string) error {
	doc, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	changed, err := put(string(doc), name, text)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, []byte(changed), 0o644)
}

func put(doc, name, text string) (string, error) {
	begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->\n"
	head, rest, ok := strings.Cut(doc, begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 || strings.Contains(tail, begin) || strings.Contains(head+tail, end) {
		return "", fmt.Errorf("no place for %s: one line %q is needed and one line %q after it", name, begin, end)
	}
	return head + begin + strings.TrimRight(text, "\n") + "\n" + end + tail, nil
}
