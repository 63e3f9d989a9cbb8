package manifests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// maxFile bounds the bytes of a file.
	maxFile = 64 << 20
	// maxDepth bounds how deep values nest. The deepest path of the kinds understood has about fifteen levels.
	maxDepth = 100
	// maxAliased bounds how many values the aliases of a file may stand for, against "billion laughs".
	maxAliased = 100_000
)

// documents yields the root nodes of the documents in data, one at a time so that only one is in memory; empty ones are
// left out. It ends with the first error. JSON is read by a JSON parser, since it is not all YAML: escaped surrogate pairs,
// and objects that follow each other without a separator.
func documents(file string, data []byte) iter.Seq2[*yaml.Node, error] {
	if len(data) > maxFile {
		err := &Error{File: file, Problem: fmt.Sprintf("%d bytes, over the limit of %d; split the file", len(data), maxFile)}
		return func(yield func(*yaml.Node, error) bool) { yield(nil, err) }
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if path.Ext(file) == ".json" || startsWithJSON(data) {
		return jsonDocuments(file, data)
	}
	return yamlDocuments(file, data)
}

// startsWithJSON tells a JSON object from a YAML flow mapping, which starts with a brace, too.
func startsWithJSON(data []byte) bool {
	if !bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		return false
	}
	var object json.RawMessage
	return json.NewDecoder(bytes.NewReader(data)).Decode(&object) == nil
}

func yamlDocuments(file string, data []byte) iter.Seq2[*yaml.Node, error] {
	return func(yield func(*yaml.Node, error) bool) {
		dec := yaml.NewDecoder(bytes.NewReader(data))
		for {
			var doc yaml.Node
			err := dec.Decode(&doc)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(nil, yamlError(file, err))
				return
			}
			if len(doc.Content) == 1 && doc.Content[0].ShortTag() != "!!null" && !yield(doc.Content[0], nil) {
				return
			}
		}
	}
}

// yaml's errors carry their line in the text only.
func yamlError(file string, err error) error {
	e := &Error{File: file, Problem: "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
	m := regexp.MustCompile(`^yaml: line (\d+): (.*)`).FindStringSubmatch(err.Error())
	if m != nil {
		e.Line, _ = strconv.Atoi(m[1])
		e.Problem = "not YAML: " + m[2]
	}
	return e
}

// jsonDocuments yields JSON values, one after the other, as YAML nodes that know their lines.
func jsonDocuments(file string, data []byte) iter.Seq2[*yaml.Node, error] {
	return func(yield func(*yaml.Node, error) bool) {
		r := jsonReader{dec: json.NewDecoder(bytes.NewReader(data)), lines: lineStarts(data)}
		r.dec.UseNumber()
		for {
			n, err := r.value(0)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(nil, &Error{File: file, Line: r.errorLine(err), Problem: "not JSON: " + err.Error()})
				return
			}
			if n.Tag != "!!null" && !yield(n, nil) {
				return
			}
		}
	}
}

// lineStarts returns the offsets that lines start at.
func lineStarts(data []byte) []int {
	starts := []int{0}
	for i, c := range data {
		if c == '\n' {
			starts = append(starts, i+1)
		}
	}
	return starts
}

type jsonReader struct {
	dec   *json.Decoder
	lines []int
}

// line returns the line of the byte before offset, which is where the token ends that the decoder has just read.
func (r *jsonReader) line(offset int64) int {
	return sort.SearchInts(r.lines, int(offset))
}

func (r *jsonReader) errorLine(err error) int {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) && syntax.Offset > 0 {
		return r.line(syntax.Offset)
	}
	return max(1, r.line(r.dec.InputOffset()))
}

func (r *jsonReader) value(depth int) (*yaml.Node, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested over %d levels deep", maxDepth)
	}
	tok, err := r.dec.Token()
	if err != nil {
		return nil, unexpectedEOF(err, depth)
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: r.line(r.dec.InputOffset())}
	switch t := tok.(type) {
	case json.Delim:
		return r.collection(n, t, depth)
	case string:
		n.Tag, n.Value, n.Style = "!!str", t, yaml.DoubleQuotedStyle
	case json.Number:
		n.Tag, n.Value = "!!int", t.String()
		if strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!float"
		}
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(t)
	case nil:
		n.Tag, n.Value = "!!null", "null"
	}
	return n, nil
}

func (r *jsonReader) collection(n *yaml.Node, open json.Delim, depth int) (*yaml.Node, error) {
	n.Kind, n.Tag = yaml.MappingNode, "!!map"
	if open == '[' {
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
	}
	for r.dec.More() {
		c, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		n.Content = append(n.Content, c)
	}
	_, err := r.dec.Token() // the closing bracket
	return n, unexpectedEOF(err, depth+1)
}

// unexpectedEOF tells the end of the input inside a value from the one between values.
func unexpectedEOF(err error, depth int) error {
	if depth > 0 && errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// target follows an alias to what it stands for.
func target(n *yaml.Node) *yaml.Node {
	for i := 0; n != nil && n.Kind == yaml.AliasNode && i < maxDepth; i++ {
		n = n.Alias
	}
	return n
}

// child returns the value of key in the mapping n or in those that it merges, nil if there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	return lookup(n, key, map[*yaml.Node]bool{})
}

// lookup is child, and leaves out the mappings in seen: merges can be many, and go in circles.
func lookup(n *yaml.Node, key string, seen map[*yaml.Node]bool) *yaml.Node {
	n = target(n)
	if n == nil || n.Kind != yaml.MappingNode || seen[n] {
		return nil
	}
	seen[n] = true
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].ShortTag() != "!!merge" {
			continue
		}
		for _, m := range mergeSources(n.Content[i+1]) {
			if c := lookup(m, key, seen); c != nil {
				return c
			}
		}
	}
	return nil
}

// mergeSources returns what the value of a "<<" merges, one mapping or a list of them.
func mergeSources(n *yaml.Node) []*yaml.Node {
	if t := target(n); t.Kind == yaml.SequenceNode {
		return t.Content
	}
	return []*yaml.Node{n}
}

// text returns the scalar value of key in n, empty if there is none.
func text(n *yaml.Node, key string) string {
	if c := target(child(n, key)); c != nil && c.Kind == yaml.ScalarNode {
		return c.Value
	}
	return ""
}

// lineOf returns the line of the value at path ("spec.ports[1].name"), or of the deepest part of it that exists.
func lineOf(n *yaml.Node, path string) int {
	line := n.Line
	for _, step := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' }) {
		var c *yaml.Node
		if index, ok := strings.CutSuffix(step, "]"); ok {
			i, _ := strconv.Atoi(index)
			if s := target(n); s.Kind == yaml.SequenceNode && i < len(s.Content) {
				c = s.Content[i]
			}
		} else {
			c = child(n, step)
		}
		if c == nil {
			return line
		}
		n, line = c, c.Line
	}
	return line
}
