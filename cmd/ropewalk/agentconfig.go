package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// What an agent's configuration says that it is.
const (
	configVersion = "ropewalk.dev/v1alpha1"
	configKind    = "AgentConfiguration"
)

// section is a part of an agent's configuration. Its keys are the flags of the command that does the part alone.
type section struct {
	name, what string
	enabled    bool
	flags      *pflag.FlagSet
}

func newSection(name, what string, add func(*cobra.Command)) *section {
	cmd := &cobra.Command{}
	add(cmd)
	return &section{name: name, what: what, enabled: true, flags: cmd.Flags()}
}

// agentFile is an agent's configuration: sections, and the flags of the agent itself that may be there, too.
type agentFile struct {
	name     string
	sections []*section
	lines    map[string]int // where section.key stands
}

// read takes what a file says. Errors say where in the file, and what would be right.
func (f *agentFile) read() error {
	text, err := os.ReadFile(f.name)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	return f.parse(text)
}

func (f *agentFile) parse(text []byte) error {
	f.lines = map[string]int{}
	var doc yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	switch err := decoder.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%s: it is empty; ropewalk agent --print-config prints one with all that there is", f.name)
	case err != nil:
		return fmt.Errorf("%s: %w", f.name, err)
	}
	if err := decoder.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: there is a second document: one is all there may be", f.name)
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return f.wrong(root, "it is no mapping; it begins with apiVersion: %s", configVersion)
	}
	said := map[string]string{"apiVersion": "", "kind": ""}
	err := f.each(root, func(key, value *yaml.Node) error {
		if _, ok := said[key.Value]; ok {
			said[key.Value] = value.Value
			return nil
		}
		i := slices.IndexFunc(f.sections, func(s *section) bool { return s.name == key.Value })
		if i < 0 {
			return f.wrong(key, "there is no %q; there are %s", key.Value, strings.Join(f.names(), ", "))
		}
		return f.section(f.sections[i], value)
	})
	switch {
	case err != nil:
		return err
	case said["apiVersion"] != configVersion:
		return fmt.Errorf("%s: apiVersion is %q; this program reads %s", f.name, said["apiVersion"], configVersion)
	case said["kind"] != configKind:
		return fmt.Errorf("%s: kind is %q, not %s", f.name, said["kind"], configKind)
	}
	return nil
}

func (f *agentFile) names() []string {
	var out []string
	for _, s := range f.sections {
		out = append(out, s.name)
	}
	return out
}

func (f *agentFile) section(s *section, value *yaml.Node) error {
	if value.Kind == yaml.ScalarNode && value.Tag == "!!null" {
		return nil
	}
	if value.Kind != yaml.MappingNode {
		return f.wrong(value, "%s is a mapping, as in enabled: false", s.name)
	}
	return f.each(value, func(key, value *yaml.Node) error {
		if key.Value == "enabled" {
			if err := value.Decode(&s.enabled); err != nil || value.Tag != "!!bool" {
				return f.wrong(value, "%s.enabled: %q; it is true or false", s.name, value.Value)
			}
			return nil
		}
		flag := s.flags.Lookup(key.Value)
		if flag == nil {
			var all []string
			s.flags.VisitAll(func(g *pflag.Flag) { all = append(all, g.Name) })
			return f.wrong(key, "%s has no %q; it has enabled, %s", s.name, key.Value, strings.Join(all, ", "))
		}
		f.lines[s.name+"."+key.Value] = key.Line
		if err := set(flag, value); err != nil {
			return f.wrong(value, "%s.%s: %v; it is: %s", s.name, key.Value, err, flag.Usage)
		}
		return nil
	})
}

// set gives a flag a value of YAML: lists to those that take several, and one value to others.
func set(flag *pflag.Flag, value *yaml.Node) error {
	list, several := flag.Value.(pflag.SliceValue)
	switch {
	case value.Kind == yaml.SequenceNode && several:
		values := []string{}
		for _, v := range value.Content {
			if v.Kind != yaml.ScalarNode {
				return errors.New("a list has values, one each")
			}
			values = append(values, v.Value)
		}
		return list.Replace(values)
	case value.Kind == yaml.ScalarNode && several:
		return errors.New("it is a list, as in [a, b]")
	case value.Kind != yaml.ScalarNode:
		return errors.New("it is one value")
	case value.Tag == "!!null":
		return errors.New("it has no value")
	default:
		return flag.Value.Set(value.Value)
	}
}

// each goes through a mapping, none of whose keys may be there twice.
func (f *agentFile) each(mapping *yaml.Node, do func(key, value *yaml.Node) error) error {
	seen := map[string]int{}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		if line, ok := seen[key.Value]; ok {
			return f.wrong(key, "%s is there a second time; the first is in line %d", key.Value, line)
		}
		seen[key.Value] = key.Line
		if value.Kind == yaml.AliasNode {
			return f.wrong(value, "aliases are not followed")
		}
		if err := do(key, value); err != nil {
			return err
		}
	}
	return nil
}

func (f *agentFile) wrong(at *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s", f.name, at.Line, fmt.Sprintf(format, args...))
}

// text returns the configuration as it stands, with what each key means.
func (f *agentFile) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: %s\nkind: %s\n", configVersion, configKind)
	for _, s := range f.sections {
		fmt.Fprintf(&b, "\n# %s\n%s:\n  enabled: %t\n", s.what, s.name, s.enabled)
		s.flags.VisitAll(func(flag *pflag.Flag) {
			fmt.Fprintf(&b, "  # %s\n  %s: %s\n", flag.Usage, flag.Name, valueOf(flag))
		})
	}
	return b.String()
}

// own is what a section says, to be compared.
func (s *section) own() string {
	var b strings.Builder
	s.flags.VisitAll(func(flag *pflag.Flag) { fmt.Fprintf(&b, "%s: %s\n", flag.Name, valueOf(flag)) })
	return b.String()
}

// valueOf returns a flag's value as YAML.
func valueOf(flag *pflag.Flag) string {
	var value any = flag.Value.String()
	switch list, several := flag.Value.(pflag.SliceValue); {
	case several:
		value = list.GetSlice()
		if len(list.GetSlice()) == 0 {
			value = []string{}
		}
	case flag.Value.Type() == "string" || flag.Value.Type() == "duration":
	default: // numbers and truth values are written as they are
		return flag.Value.String()
	}
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	node := &yaml.Node{}
	if err := node.Encode(value); err != nil {
		return flag.Value.String() // which strings and lists of them do not lead to
	}
	node.Style = yaml.FlowStyle
	_ = encoder.Encode(node) // into memory
	return strings.TrimSpace(b.String())
}
