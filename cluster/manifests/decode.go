package manifests

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	kjson "sigs.k8s.io/json"
)

// misfit is a problem at a node, before it is known which file and object that is of.
type misfit struct {
	line  int
	field string
	what  string
}

func (m *misfit) Error() string { return m.what }

// decode puts the object at n into v, a pointer to a struct of the Kubernetes API. The library decodes; only when it
// refuses, blame looks for the field that it refused, because its errors know no lines and not always the field. aliased
// counts on from one object to the next.
func decode(n *yaml.Node, v any, aliased *int) *misfit {
	w := jsonWriter{aliased: *aliased}
	m := w.value(n, "", 0)
	if *aliased = w.aliased; m != nil {
		return m
	}
	err := kjson.UnmarshalCaseSensitivePreserveInts(w.out, v)
	if err == nil {
		return nil
	}
	if m := blame(n, reflect.TypeOf(v).Elem(), ""); m != nil {
		return m
	}
	return &misfit{line: n.Line, what: err.Error()}
}

// jsonWriter writes nodes as JSON, the way kubectl does before it sends them.
type jsonWriter struct {
	out []byte
	// inAlias is how many aliases the writer is inside of, aliased how many values it has written there.
	inAlias, aliased int
}

func (w *jsonWriter) value(n *yaml.Node, field string, depth int) *misfit {
	if depth > maxDepth {
		return &misfit{n.Line, "", fmt.Sprintf("nested over %d levels deep", maxDepth)}
	}
	if w.inAlias > 0 {
		if w.aliased++; w.aliased > maxAliased {
			return &misfit{n.Line, field, fmt.Sprintf("the file's aliases stand for over %d values; write out what is meant", maxAliased)}
		}
	}
	switch n.Kind {
	case yaml.AliasNode:
		w.inAlias++
		err := w.value(n.Alias, field, depth+1)
		w.inAlias--
		return err
	case yaml.MappingNode:
		return w.mapping(n, field, depth)
	case yaml.SequenceNode:
		w.out = append(w.out, '[')
		for i, c := range n.Content {
			if i > 0 {
				w.out = append(w.out, ',')
			}
			if err := w.value(c, fmt.Sprintf("%s[%d]", field, i), depth+1); err != nil {
				return err
			}
		}
		w.out = append(w.out, ']')
		return nil
	default:
		return w.scalar(n, field)
	}
}

func (w *jsonWriter) mapping(n *yaml.Node, field string, depth int) *misfit {
	pairs, err := w.pairs(n, field, depth)
	if err != nil {
		return err
	}
	w.out = append(w.out, '{')
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			w.out = append(w.out, ',')
		}
		w.string(pairs[i].Value)
		w.out = append(w.out, ':')
		if err := w.value(pairs[i+1], join(field, pairs[i].Value), depth+1); err != nil {
			return err
		}
	}
	w.out = append(w.out, '}')
	return nil
}

// pairs returns the keys and values of a mapping: its own, then those of the mappings it merges ("<<", YAML 1.1) that it
// does not have itself.
func (w *jsonWriter) pairs(n *yaml.Node, field string, depth int) ([]*yaml.Node, *misfit) {
	if depth > maxDepth {
		return nil, &misfit{n.Line, "", fmt.Sprintf("nested over %d levels deep", maxDepth)}
	}
	lines := make(map[string]int, len(n.Content)/2)
	var own, merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := target(n.Content[i]), n.Content[i+1]
		if k.ShortTag() == "!!merge" {
			merged = append(merged, v)
			continue
		}
		if k.Kind != yaml.ScalarNode {
			return nil, &misfit{k.Line, field, "a key is not a string"}
		}
		if first, ok := lines[k.Value]; ok {
			return nil, &misfit{k.Line, join(field, k.Value), fmt.Sprintf("given twice, first in line %d; keep one", first)}
		}
		lines[k.Value] = k.Line
		own = append(own, k, v)
	}
	for _, m := range merged {
		for _, s := range mergeSources(m) {
			if s = target(s); s.Kind != yaml.MappingNode {
				return nil, &misfit{m.Line, field, `"<<" merges mappings only`}
			}
			more, err := w.pairs(s, field, depth+1)
			if err != nil {
				return nil, err
			}
			if w.aliased += 1 + len(more)/2; w.aliased > maxAliased {
				return nil, &misfit{m.Line, field, fmt.Sprintf(`"<<" brings over %d values; write out what is meant`, maxAliased)}
			}
			for i := 0; i < len(more); i += 2 {
				if _, ok := lines[more[i].Value]; !ok {
					lines[more[i].Value] = more[i].Line
					own = append(own, more[i], more[i+1])
				}
			}
		}
	}
	return own, nil
}

func (w *jsonWriter) scalar(n *yaml.Node, field string) *misfit {
	switch n.ShortTag() {
	case "!!null":
		w.out = append(w.out, "null"...)
	case "!!bool":
		var b bool
		if err := n.Decode(&b); err != nil {
			return &misfit{n.Line, field, fmt.Sprintf("%q is not true or false", n.Value)}
		}
		w.out = strconv.AppendBool(w.out, b)
	case "!!int", "!!float":
		return w.number(n, field)
	default:
		if b, ok := oldBool(n); ok {
			w.out = strconv.AppendBool(w.out, b)
			return nil
		}
		w.string(n.Value)
	}
	return nil
}

// oldBool reads the words that are booleans in YAML 1.1, and hence to kubectl, but not in the parser used here.
func oldBool(n *yaml.Node) (value, ok bool) {
	if n.Style != 0 || n.Kind != yaml.ScalarNode {
		return false, false
	}
	switch n.Value {
	case "y", "Y", "yes", "Yes", "YES", "on", "On", "ON":
		return true, true
	case "n", "N", "no", "No", "NO", "off", "Off", "OFF":
		return false, true
	}
	return false, false
}

func (w *jsonWriter) number(n *yaml.Node, field string) *misfit {
	var i int64
	if n.ShortTag() == "!!int" && n.Decode(&i) == nil {
		w.out = strconv.AppendInt(w.out, i, 10)
		return nil
	}
	var f float64
	if err := n.Decode(&f); err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return &misfit{n.Line, field, fmt.Sprintf("%q is not a number that JSON has", n.Value)}
	}
	w.out = strconv.AppendFloat(w.out, f, 'g', -1, 64)
	return nil
}

func (w *jsonWriter) string(s string) {
	b, err := json.Marshal(s)
	if err != nil {
		b = []byte(`""`) // cannot be: strings always marshal
	}
	w.out = append(w.out, b...)
}

func join(field, name string) string {
	if field == "" {
		return name
	}
	return field + "." + name
}

// blame returns the innermost place below n that does not fit its type, nil if all fits t.
func blame(n *yaml.Node, t reflect.Type, field string) *misfit {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	w := jsonWriter{}
	if err := w.value(n, field, 0); err != nil {
		return err
	}
	err := kjson.UnmarshalCaseSensitivePreserveInts(w.out, reflect.New(t).Interface())
	if err == nil {
		return nil
	}
	for c := range parts(target(n), t, field) {
		if m := blame(c.node, c.typ, c.field); m != nil {
			return m
		}
	}
	return &misfit{n.Line, field, mismatch(target(n), t, err)}
}

// part is a member of a value, with the type that it should have.
type part struct {
	node  *yaml.Node
	typ   reflect.Type
	field string
}

// parts yields the members of n as far as t has types for them; none of a type that decodes itself.
func parts(n *yaml.Node, t reflect.Type, field string) func(yield func(part) bool) {
	return func(yield func(part) bool) {
		if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
			return
		}
		switch {
		case n.Kind == yaml.SequenceNode && t.Kind() == reflect.Slice:
			for i, c := range n.Content {
				if !yield(part{c, t.Elem(), fmt.Sprintf("%s[%d]", field, i)}) {
					return
				}
			}
		case n.Kind == yaml.MappingNode && (t.Kind() == reflect.Map || t.Kind() == reflect.Struct):
			pairs, err := new(jsonWriter).pairs(n, field, 0)
			if err != nil {
				return
			}
			for i := 0; i < len(pairs); i += 2 {
				key := pairs[i].Value
				if ft := memberType(t, key); ft != nil && !yield(part{pairs[i+1], ft, join(field, key)}) {
					return
				}
			}
		}
	}
}

// memberType returns the type of the value under key in t, a map or a struct; nil if there is no such field.
func memberType(t reflect.Type, key string) reflect.Type {
	if t.Kind() == reflect.Map {
		return t.Elem()
	}
	for f := range t.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == key && name != "" {
			return f.Type
		}
		if name == "" && (f.Anonymous || strings.Contains(opts, "inline")) && f.Type.Kind() == reflect.Struct {
			if ft := memberType(f.Type, key); ft != nil {
				return ft
			}
		}
	}
	return nil
}

// mismatch says what n is and what t wants.
func mismatch(n *yaml.Node, t reflect.Type, err error) string {
	var te *json.UnmarshalTypeError
	if !errors.As(err, &te) {
		return strings.TrimPrefix(err.Error(), "json: ")
	}
	got := map[yaml.Kind]string{yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list"}[n.Kind]
	if got == "" {
		got = map[string]string{"!!bool": "a boolean", "!!int": "a number", "!!float": "a number"}[n.ShortTag()]
	}
	if _, old := oldBool(n); old {
		got = "a boolean"
	}
	if got == "" {
		got = "a string"
	}
	if n.Kind == yaml.ScalarNode {
		got = fmt.Sprintf("%s is %s", n.Value, got)
	} else {
		got = "is " + got
	}
	return fmt.Sprintf("%s, want %s", got, wanted(t))
}

func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string (quote it)"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "base64 in a string"
		}
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a mapping"
	case reflect.Int32, reflect.Int64, reflect.Int:
		return fmt.Sprintf("a whole number of %d bits", t.Bits())
	}
	return "a " + t.String()
}
