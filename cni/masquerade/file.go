package masquerade

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"go.yaml.in/yaml/v3"
)

// File is what a file of ip-masq-agent's says.
type File struct {
	// Inside are its nonMasqueradeCIDRs.
	Inside []netip.Prefix
	// LinkLocal and LinkLocal6 are its masqLinkLocal and masqLinkLocalIPv6.
	LinkLocal, LinkLocal6 bool
}

// ReadFile reads one, in YAML or JSON. A file that is not there says nothing. resyncInterval and cidrLimit are about ip-masq-agent itself, and passed over;
// what else there is that it does not know is an error: its reader would think that it holds. Errors have the line.
func ReadFile(path string) (File, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, nil
	}
	var doc yaml.Node
	if err == nil {
		err = yaml.Unmarshal(b, &doc)
	}
	if err != nil {
		return File{}, fmt.Errorf("%s: %w", path, err)
	}
	var f File
	if len(doc.Content) == 0 { // it is empty
		return f, nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return File{}, fmt.Errorf("%s:%d: it is no mapping, as in nonMasqueradeCIDRs: [10.0.0.0/8]", path, root.Line)
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if line, err := f.set(root.Content[i], root.Content[i+1]); err != nil {
			return File{}, fmt.Errorf("%s:%d: %s: %w", path, line, root.Content[i].Value, err)
		}
	}
	return f, nil
}

// set returns the line that an error is about.
func (f *File) set(key, value *yaml.Node) (line int, err error) {
	switch key.Value {
	case "nonMasqueradeCIDRs":
		if value.Kind != yaml.SequenceNode && value.Tag != "!!null" {
			return value.Line, errors.New("it is a list of ranges")
		}
		for _, v := range value.Content {
			p, err := netip.ParsePrefix(v.Value)
			if err != nil {
				return v.Line, fmt.Errorf("%q is no range; write it as 10.0.0.0/8 or fd00::/8", v.Value)
			}
			f.Inside = append(f.Inside, p)
		}
	case "masqLinkLocal":
		return value.Line, value.Decode(&f.LinkLocal)
	case "masqLinkLocalIPv6":
		return value.Line, value.Decode(&f.LinkLocal6)
	case "resyncInterval", "cidrLimit":
	default:
		return key.Line, errors.New("there is no such key; there are nonMasqueradeCIDRs, masqLinkLocal, masqLinkLocalIPv6, resyncInterval and cidrLimit")
	}
	return 0, nil
}
