package hostsfile

import (
	"fmt"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	kjson "sigs.k8s.io/json"

	"github.com/ropewalk-net/ropewalk/cluster"
)

// AliasesKey is the annotation of a pod that has aliases, and the label of a ConfigMap that has some.
const AliasesKey = cluster.AnnotationPrefix + "host-aliases"

// The values of the label: whose aliases a ConfigMap has.
const (
	ScopeNamespace = "namespace"
	ScopeCluster   = "cluster"
)

// Sizes are the API server's own limits, so that only files can have more: of all annotations of an object, and of a ConfigMap.
const (
	maxAnnotation = 256 << 10
	maxText       = 1 << 20
	maxErrors     = 20 // of one text: what a log can take
)

// ParseAnnotation reads the value of a pod's annotation: JSON of the shape of spec.hostAliases, read as strictly as the API
// reads it. It fails if any of it is wrong, or does nothing: an address needs a name.
func ParseAnnotation(value string) ([]cluster.HostAlias, error) {
	if len(value) > maxAnnotation {
		return nil, fmt.Errorf("%d bytes, %d are allowed", len(value), maxAnnotation)
	}
	var aliases []cluster.HostAlias
	strict, err := kjson.UnmarshalStrict([]byte(value), &aliases)
	if err == nil && len(strict) > 0 {
		err = strict[0]
	}
	if err != nil {
		return nil, fmt.Errorf(`%s; want a list as of spec.hostAliases: [{"ip": "10.1.2.3", "hostnames": ["foo.remote"]}]`, clip(err.Error()))
	}
	for i, a := range aliases {
		if err := check(a); err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
	}
	return aliases, nil
}

// Parse reads lines of a hosts file (hosts(5)): an address and names with blanks or tabs between them, comments from # on. Lines
// end with LF or CR LF. It returns what is right in them, and an error for each line that is not, up to 20 and one that counts
// the rest. Names are held to the API's rules, lower case among them. Of a text of more than 1 MiB nothing is right.
func Parse(text string) (aliases []cluster.HostAlias, errs []error) {
	if len(text) > maxText {
		return nil, []error{fmt.Errorf("%d bytes, %d are allowed", len(text), maxText)}
	}
	n, more := 0, 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(strings.TrimRight(line, "\r\n"), "#")
		// A CR inside of a line is no blank: in a text whose lines end with CR alone, addresses would pass for names.
		fields := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
		if len(fields) == 0 {
			continue
		}
		a := cluster.HostAlias{IP: fields[0], Hostnames: fields[1:]}
		if err := check(a); err == nil {
			aliases = append(aliases, a)
		} else if len(errs) < maxErrors {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
		} else {
			more++
		}
	}
	if more > 0 {
		errs = append(errs, fmt.Errorf("%d more lines are wrong", more))
	}
	return aliases, errs
}

// check holds an alias to what the API holds spec.hostAliases to (k8s.io/kubernetes, ValidateHostAliases): strict addresses,
// and subdomains as of RFC 1123. More than the API, it wants a name.
func check(a cluster.HostAlias) error {
	switch ip, err := netip.ParseAddr(a.IP); {
	case err != nil || ip.Zone() != "":
		return fault{"%q is not an address as 10.1.2.3 or 2001:db8::4", a.IP}
	case ip.Is4In6(): // Some programs take it for IPv4, some for IPv6.
		return fault{"%q is an IPv4 address in IPv6 clothes; write it as 10.1.2.3", a.IP}
	case len(a.Hostnames) == 0:
		return fault{"%q has no names", a.IP}
	}
	for _, name := range a.Hostnames {
		if len(name) > validation.DNS1123SubdomainMaxLength {
			return fault{"name %q is longer than 253 characters", name}
		}
		if !isSubdomain(name) {
			return fault{"name %q: want lower case letters, digits, '-' and '.', and a letter or digit at either end of each label", name}
		}
	}
	return nil
}

// isSubdomain is validation.IsDNS1123Subdomain but for the length: that one is a regular expression, and makes its message each
// time. Labels are of any length to both.
func isSubdomain(name string) bool {
	last := byte('.') // as if a label had just ended
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
		case c == '-' && last != '.':
		case c == '.' && last != '.' && last != '-':
		default:
			return false
		}
		last = c
	}
	return last != '.' && last != '-'
}

// fault is what is wrong with a text. It makes its message when it is asked to: of a thousand, few are.
type fault struct{ format, text string }

func (f fault) Error() string { return fmt.Sprintf(f.format, clip(f.text)) }

// clip cuts what a stranger wrote to what a message can hold.
func clip(s string) string {
	const limit = 100
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "…"
}
