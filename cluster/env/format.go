package env

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// The forms that Format knows.
const (
	Shell  = "shell"  // export NAME='value', for a POSIX shell to read
	Dotenv = "dotenv" // NAME=value, quoted only where it must be, for docker --env-file and the many that read .env
	JSON   = "json"   // one object
)

// Format writes variables in a form, one a line. It fails for a form that it does not know, and for a variable that no
// environment can have or whose name is not of letters, digits and _. A name that begins with a digit, which a service's may,
// is nothing that a shell can set: a comment stands in its place.
func Format(vars []string, form string) ([]byte, error) {
	var b bytes.Buffer
	object := map[string]string{}
	for _, v := range vars {
		name, value, ok := strings.Cut(v, "=")
		if !ok || !isName(name) || strings.Contains(value, "\x00") {
			return nil, fmt.Errorf("no variable: %.100q", v)
		}
		switch digit := name[0] >= '0' && name[0] <= '9'; {
		case form == Shell && digit:
			fmt.Fprintf(&b, "# %s: no name for a shell\n", name)
		case form == Shell:
			fmt.Fprintf(&b, "export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
		case form == Dotenv:
			fmt.Fprintf(&b, "%s=%s\n", name, dotenv(value))
		}
		object[name] = value
	}
	switch form {
	case Shell, Dotenv:
		return b.Bytes(), nil
	case JSON:
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		err := e.Encode(object)
		return b.Bytes(), err
	}
	return nil, fmt.Errorf("form %q: want %s, %s or %s", form, Shell, Dotenv, JSON)
}

func isName(s string) bool {
	for _, c := range []byte(s) {
		if c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return s != ""
}

// dotenv quotes a value where readers of .env files would take it for something else. Most values are addresses, which
// docker --env-file, knowing no quotes, needs to be bare.
func dotenv(value string) string {
	bare := func(r rune) bool {
		return r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || strings.ContainsRune("_-.,:/[]", r)
	}
	if strings.IndexFunc(value, func(r rune) bool { return !bare(r) }) < 0 {
		return value
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`", "\n", `\n`, "\r", `\r`).Replace(value) + `"`
}
