package masquerade

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"sigs.k8s.io/yaml"
)

// ReadInside returns the ranges of a file as ip-masq-agent takes it: nonMasqueradeCIDRs, in YAML or JSON. Its other fields are not looked at. A
// file that is not there has none.
func ReadInside(path string) ([]netip.Prefix, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var file struct {
		NonMasqueradeCIDRs []netip.Prefix `json:"nonMasqueradeCIDRs"`
	}
	if err == nil {
		err = yaml.Unmarshal(b, &file)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return file.NonMasqueradeCIDRs, nil
}
